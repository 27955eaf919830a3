// Package control is the worker of the control plane: it starts accepted operations, runs their workflows and their central
// steps, and takes up operations whose workflow was lost.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Config is what a Control needs.
type Config struct {
	KV        store.KV
	Temporal  client.Client
	Namespace string
	UIURL     string // base of the Temporal UI; "" if there is none
	Register  func(activities.Registry)
	Hook      activities.Hook // around the start of every workflow, as a step called "accept"; nil but in crash tests
	Log       *slog.Logger
}

// Control is the worker of the control plane.
type Control struct {
	Config
	definitions map[string]saga.Definition
	starter     *starter
}

// New returns a Control; Run makes it work.
func New(cfg Config) *Control {
	c := &Control{Config: cfg, definitions: map[string]saga.Definition{}}
	for _, d := range workflows.All() {
		c.definitions[d.Name()] = d
	}
	c.starter = newStarter(c)
	return c
}

// workflowTaskTimeout is how long Temporal waits for a worker that has taken a workflow task before it gives the task to
// another: the time that an operation stands still when its control plane is killed.
const workflowTaskTimeout = 5 * time.Second

// Run works until ctx is done. It does not mind Temporal being away, at the start or later: it waits for it.
func (c *Control) Run(ctx context.Context) error {
	go c.starter.run(ctx)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		w, fatal := c.worker()
		err := w.Start()
		if err == nil {
			pause = 100 * time.Millisecond
			select {
			case <-ctx.Done():
				w.Stop()
				return nil
			case err = <-fatal:
				w.Stop()
			}
		}
		c.Log.Warn("the worker cannot work; trying again", "in", pause, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

func (c *Control) worker() (worker.Worker, <-chan error) {
	fatal := make(chan error, 1)
	w := worker.New(c.Temporal, steps.ControlQueue, worker.Options{
		DisableRegistrationAliasing: true,
		WorkerStopTimeout:           5 * time.Second,
		// A machine that is busy booting guests may take its time; a false alarm here would only repeat the task.
		DeadlockDetectionTimeout: 10 * time.Second,
		OnFatalError: func(err error) {
			select {
			case fatal <- err:
			default:
			}
		},
	})
	for name, d := range c.definitions {
		w.RegisterWorkflowWithOptions(d.Func(), workflow.RegisterOptions{Name: name})
	}
	c.Register(w)
	return w, fatal
}

// Cancel asks an operation to undo what it has done.
func (c *Control) Cancel(ctx context.Context, id string) error {
	return engineError(c.Temporal.CancelWorkflow(ctx, id, ""), id, "cancelled")
}

// Resume makes a stuck operation try again at once.
func (c *Control) Resume(ctx context.Context, id string) error {
	return engineError(c.Temporal.SignalWorkflow(ctx, id, "", saga.ResumeSignal, nil), id, "resumed")
}

// URL returns the operation's page in the Temporal UI, or "" if there is none.
func (c *Control) URL(id string) string {
	if c.UIURL == "" {
		return ""
	}
	return fmt.Sprintf("%s/namespaces/%s/workflows/%s", c.UIURL, c.Namespace, id)
}

func engineError(err error, id, what string) error {
	var gone *serviceerror.NotFound
	if errors.As(err, &gone) {
		return problem.New(problem.Conflict, "operation %s cannot be %s", id, what).Because("it does not run").Try("see gnext op show %s", id)
	}
	return problem.Wrap(err, problem.Unavailable, "operation %s cannot be %s now", id, what)
}

// start begins the workflow of op. Doing it twice is harmless: the operation's ID is the workflow's. Lost says that an earlier
// workflow of op is known to be gone, and may be followed by another.
func (c *Control) start(ctx context.Context, op *api.Operation, epoch int64, from *steps.Recovery, lost bool) error {
	if c.definitions[op.Kind] == nil {
		return noWorkflow(op.Kind)
	}
	reuse := enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE
	if lost {
		reuse = enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE
	}
	token := steps.Token{Operation: op.ID, Kind: op.Kind, Step: "accept", Epoch: epoch}
	if c.Hook != nil {
		if err := c.Hook.Before(ctx, token); err != nil {
			return err
		}
	}
	_, err := c.Temporal.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID: op.ID, TaskQueue: steps.ControlQueue, WorkflowTaskTimeout: workflowTaskTimeout,
		WorkflowIDReusePolicy: reuse, WorkflowIDConflictPolicy: enumspb.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
		EnableEagerStart: true,
		StaticSummary:    summary(op),
	}, op.Kind, steps.OpOf(op, epoch, from))
	if c.Hook != nil {
		err = c.Hook.After(ctx, token, err)
	}
	return err
}

func noWorkflow(kind string) error {
	return problem.New(problem.Internal, "no workflow for operations of kind %q", kind)
}

// summary is what the Temporal UI shows of an operation in its list.
func summary(op *api.Operation) string {
	if op.Target.Name == "" {
		return op.Kind
	}
	return op.Kind + " " + op.Target.Name
}

// lost reports whether op has no workflow that works on it.
func (c *Control) lost(ctx context.Context, op *api.Operation) (bool, error) {
	d, err := c.Temporal.DescribeWorkflowExecution(ctx, op.ID, "")
	var gone *serviceerror.NotFound
	if errors.As(err, &gone) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return d.GetWorkflowExecutionInfo().GetStatus() != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING, nil
}
