// Package steps says what workflows ask of the world. A step is a typed descriptor: its name, what goes in, what comes out,
// where it runs and how long it may take. Activities implement steps; workflows call them; neither knows the other.
package steps

import (
	"errors"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/nextstack/nextstack/api/problem"
)

// ControlQueue is the task queue of the control plane: workflows, and steps that are too long to run inside a workflow task.
const ControlQueue = "control"

// NodeQueue returns the task queue of one agent. Each node has its own, so that a hung node holds up nobody else.
func NodeQueue(agent string) string { return "node/" + agent }

// Where says which process runs a step.
type Where int

// The places.
const (
	Local   Where = iota // in the control plane, inside the workflow task: quick, central work
	Control              // in the control plane, as a task of its own: long central work
	Node                 // on the agent of one node
)

// Timing of steps on nodes. ScheduleToStart is how we notice that a node's agent is gone: a live agent takes a task in
// milliseconds. Heartbeat is how we notice that it died in the middle.
const (
	ScheduleToStart = 30 * time.Second
	Heartbeat       = 6 * time.Second
)

// Token says which attempt of which step of which operation is calling. Epoch is the store revision at which the operation
// was accepted, so tokens of one resource are ordered in time: whoever carries an older one than was seen is late, and must
// not touch anything.
type Token struct {
	Operation string `json:"operation"`
	Kind      string `json:"kind"`
	Step      string `json:"step"`
	Epoch     int64  `json:"epoch"`
	Seq       int    `json:"seq"` // counts the step attempts of the operation, forward and back
	Undo      bool   `json:"undo,omitempty"`
}

// Before reports whether t is older than u.
func (t Token) Before(u Token) bool {
	if t.Epoch != u.Epoch {
		return t.Epoch < u.Epoch
	}
	return t.Seq < u.Seq
}

// Envelope is what a step's activity receives.
type Envelope[In any] struct {
	Token Token `json:"token"`
	In    In    `json:"in"`
}

// Nothing is the input or output of a step that has none.
type Nothing struct{}

// Step describes one thing that can be asked for.
type Step[In, Out any] struct {
	Name    string        // activity name; histories hold it, so it never changes
	Where   Where         //
	Timeout time.Duration // for one attempt
	// Interruptible steps learn that the operation was cancelled and may stop early; all others run to their end, because
	// half a step is harder to undo than a whole one.
	Interruptible bool
}

// Caller is the running operation: the saga implements it.
type Caller interface {
	Context() workflow.Context
	Token() Token
	// Taken is told of each call that a worker may have taken: of all but those that are ErrNeverStarted.
	Taken()
}

// Call runs the step once and returns its answer or a *problem.Problem. Agent names the node of a Node step and is ignored
// otherwise.
func (s Step[In, Out]) Call(c Caller, agent string, in In) (Out, error) {
	var out Out
	ctx := c.Context()
	if !s.Interruptible {
		ctx, _ = workflow.NewDisconnectedContext(ctx)
	}
	env := Envelope[In]{Token: c.Token(), In: in}
	once := &temporal.RetryPolicy{MaximumAttempts: 1} // the saga retries, so that every attempt is in the operation's journal
	var f workflow.Future
	switch s.Where {
	case Local:
		f = workflow.ExecuteLocalActivity(workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{
			StartToCloseTimeout: s.Timeout, RetryPolicy: once,
		}), s.Name, env)
	default:
		queue, toStart := ControlQueue, time.Duration(0)
		if s.Where == Node {
			queue, toStart = NodeQueue(agent), ScheduleToStart
		}
		f = workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
			TaskQueue: queue, ScheduleToStartTimeout: toStart, StartToCloseTimeout: s.Timeout,
			HeartbeatTimeout: Heartbeat, RetryPolicy: once, WaitForCancellation: true,
		}), s.Name, env)
	}
	err := FromActivity(s.Name, agent, f.Get(ctx, &out))
	if !errors.Is(err, ErrNeverStarted) {
		c.Taken()
	}
	return out, err
}

// ErrNeverStarted marks a call that no worker ever took: the world did not change by it, so there is nothing of it to undo. What
// the same step has called before is another matter, which the saga sees to.
var ErrNeverStarted = errors.New("the step was never started")

type neverStarted struct{ *problem.Problem }

func (n neverStarted) Unwrap() []error { return []error{n.Problem, ErrNeverStarted} }

// FromActivity turns the error of an activity into a problem: the one the activity made, or one that says how it was lost.
func FromActivity(step, agent string, err error) error {
	if err == nil {
		return nil
	}
	var app *temporal.ApplicationError
	var timeout *temporal.TimeoutError
	switch {
	case errors.As(err, &app):
		var p problem.Problem
		if app.HasDetails() && app.Details(&p) == nil && p.Kind != "" {
			return &p
		}
		return problem.New(problem.Internal, "step %s failed", step).Because("%s", app.Error())
	case errors.As(err, &timeout):
		if timeout.TimeoutType() == enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START {
			return neverStarted{problem.New(problem.Unavailable, "agent %s did not take step %s within %s", agent, step, ScheduleToStart).
				Try("see `gnext agent list`; start the agent, or wait until it is back")}
		}
		return problem.New(problem.Timeout, "step %s gave no answer in time", step).Because("%s", timeout.Error())
	case temporal.IsCanceledError(err):
		return problem.New(problem.Cancelled, "step %s was cancelled", step)
	default:
		return problem.New(problem.Internal, "step %s failed", step).Because("%s", err.Error())
	}
}

// ToActivity turns a problem into the error that carries it through Temporal.
func ToActivity(err error) error {
	if err == nil {
		return nil
	}
	p := problem.From(err)
	return temporal.NewApplicationErrorWithOptions(p.Error(), string(p.Kind), temporal.ApplicationErrorOptions{
		NonRetryable: true, Details: []any{*p}, // the value: a local activity hands it over as it is
	})
}
