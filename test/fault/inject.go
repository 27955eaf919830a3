package fault

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	enumspb "go.temporal.io/api/enums/v1"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Call is one call that a workflow makes, as far as calls of several runs can be compared.
type Call struct {
	Step     string // of the table; "journal" and "settle" for what the saga does by itself
	Undo     bool
	Activity string
	Queue    string // "" for what runs inside the workflow task
}

// String names the call for people.
func (c Call) String() string {
	s := c.Step
	if c.Undo {
		s = "undo " + s
	}
	s += " (" + c.Activity
	if c.onNode() {
		s += " on " + c.Queue
	}
	return s + ")"
}

// bookkeeping reports whether the saga makes the call by itself.
func (c Call) bookkeeping() bool {
	return c.Activity == steps.SaveJournal.Name || c.Activity == steps.Settle.Name
}

// onNode reports whether the call goes to an agent.
func (c Call) onNode() bool { return len(c.Queue) > 5 && c.Queue[:5] == "node/" }

// Mode is a way in which a call goes wrong.
type Mode struct {
	Name  string
	Times int // how many attempts of the call are hit, at most; the first one always is

	Before       problem.Kind // it fails so, and does not run
	After        problem.Kind // it runs, and fails so
	Twice        bool         // it runs twice
	CancelBefore bool         // the operation is cancelled before it runs
	CancelAfter  bool         // the operation is cancelled when it has run
	LoseBefore   bool         // it does not run, and the workflow is lost
	LoseAfter    bool         // it runs, and the workflow is lost
	Gone         bool         // no worker takes it
	Dies         bool         // it runs, and its worker dies before it can answer
	Kills        string       // before it runs nodes die for good, which is proven: their names
	KillsAfter   string       // the same, when it has run, so that nobody hears of it
	Late         bool         // its worker hangs before it runs, and goes on when the operation has ended
}

// Fault is a mode at one call of a run.
type Fault struct {
	At   int // how many calls, retries included, the run has made before
	Call Call
	Mode Mode
}

// String names the fault for people.
func (f Fault) String() string { return fmt.Sprintf("%s at call %d, %s", f.Mode.Name, f.At, f.Call) }

// injector makes the faults of one run happen, and notes every call of it.
type injector struct {
	mu       sync.Mutex
	faults   []*armed
	trace    []Call
	modes    map[pending][]Mode // of calls that were made and do not run yet, in their order
	late     []func()
	lost     bool   // the workflow must not make another call
	cancel   func() // cancels the operation
	hopeless bool   // the harness cannot go on, and wrong says why
	wrong    error  // a fault did not hit the call that it was meant for, or the harness could not go on
	// cancelAt, if not nil, says before which call the operation is cancelled.
	cancelAt func(Call) bool
}

// armed is a fault and how often it has happened.
type armed struct {
	Fault
	hits int
}

// maxCalls is how many calls an operation may make until it counts as stuck: one that ends makes far fewer.
const maxCalls = 400

func newInjector(faults []Fault) *injector {
	j := &injector{modes: map[pending][]Mode{}, cancel: func() {}}
	for _, f := range faults {
		j.faults = append(j.faults, &armed{Fault: f})
	}
	return j
}

// pending is a call that was made, as both its ends know it.
type pending struct {
	token steps.Token
	call  Call
}

// begin notes a call that the workflow makes, and decides what shall go wrong with it. Calls that are made side by side run in
// any order, but are made in the same one in every run.
func (j *injector) begin(t steps.Token, c Call) {
	j.mu.Lock()
	defer j.mu.Unlock()
	key := pending{t, c}
	j.modes[key] = append(j.modes[key], j.decide(c))
}

// take returns what shall go wrong with a call that is about to run.
func (j *injector) take(t steps.Token, c Call) (m Mode) {
	j.mu.Lock()
	defer j.mu.Unlock()
	key := pending{t, c}
	if modes := j.modes[key]; len(modes) > 0 {
		m, j.modes[key] = modes[0], modes[1:]
	} else {
		j.wrong = fmt.Errorf("%s runs, and nobody has called it", c)
	}
	return m
}

func (j *injector) decide(c Call) (m Mode) {
	at := len(j.trace)
	j.trace = append(j.trace, c)
	for _, f := range j.faults {
		switch {
		case f.hits == 0 && f.At == at && f.Call != c:
			j.wrong = fmt.Errorf("%s: that call was %s", f.Fault, c)
		case f.hits == 0 && f.At == at, f.hits > 0 && f.hits < f.Mode.Times && f.Call == c:
			f.hits++
			m = f.Mode
		}
	}
	if j.cancelAt != nil && j.cancelAt(c) {
		j.cancelAt, m.CancelBefore = nil, true
	}
	return m
}

// missed says which fault did not happen where it should.
func (j *injector) missed() error {
	for _, f := range j.faults {
		if f.hits == 0 && j.wrong == nil {
			return fmt.Errorf("%s: never happened", f.Fault)
		}
	}
	return j.wrong
}

// fail ends the run: the harness cannot go on.
func (j *injector) fail(err error) {
	j.mu.Lock()
	j.wrong, j.hopeless = err, true
	j.mu.Unlock()
}

func (j *injector) lose() {
	j.mu.Lock()
	j.lost = true
	j.mu.Unlock()
}

// over reports whether the workflow must end here: it is lost, or runs in circles.
func (j *injector) over() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lost || j.hopeless || len(j.trace) > maxCalls
}

// callOf returns a call of an activity, and the attempt that makes it.
func callOf(activity, queue string, args []any) (steps.Token, Call) {
	t := reflect.Indirect(reflect.ValueOf(args[0])).FieldByName("Token").Interface().(steps.Token)
	return t, Call{Step: t.Step, Undo: t.Undo, Activity: activity, Queue: queue}
}

type modeKey struct{}

// hit is what goes wrong with a call, and whose call it is.
type hit struct {
	Mode
	by *injector
}

func hitOf(ctx context.Context) hit {
	h, ok := ctx.Value(modeKey{}).(hit)
	if !ok {
		h.by = newInjector(nil)
	}
	return h
}

func failure(k problem.Kind) error { return problem.New(k, "this failure was injected") }

// hook is what the hosts of a world call. It belongs to the world; the injector behind it changes with every run.
type hook struct{ *injector }

// Before implements activities.Hook.
func (h *hook) Before(ctx context.Context, _ steps.Token) error {
	m := hitOf(ctx)
	if m.CancelBefore {
		m.by.cancel()
	}
	if m.LoseBefore {
		m.by.lose()
		return failure(problem.Timeout)
	}
	if m.Before != "" {
		return failure(m.Before)
	}
	return nil
}

// After implements activities.Hook.
func (h *hook) After(ctx context.Context, _ steps.Token, err error) error {
	m := hitOf(ctx)
	if m.CancelAfter {
		m.by.cancel()
	}
	if m.LoseAfter {
		m.by.lose()
	}
	if m.After != "" && err == nil {
		return failure(m.After)
	}
	return err
}

// Repeat implements activities.Hook. What runs twice is called twice.
func (h *hook) Repeat(steps.Token) int { return 1 }

// worker stands between Temporal and the workers: it makes them vanish, and workflows too.
type worker struct {
	interceptor.WorkerInterceptorBase
	w *World
	j *injector
}

// InterceptActivity implements interceptor.WorkerInterceptor.
func (w *worker) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	return &stepCalls{ActivityInboundInterceptorBase: interceptor.ActivityInboundInterceptorBase{Next: next}, w: w.w, j: w.j}
}

type stepCalls struct {
	interceptor.ActivityInboundInterceptorBase
	w *World
	j *injector
}

// ExecuteActivity implements interceptor.ActivityInboundInterceptor.
func (s *stepCalls) ExecuteActivity(ctx context.Context, in *interceptor.ExecuteActivityInput) (any, error) {
	info := activity.GetInfo(ctx)
	queue := info.TaskQueue
	if info.IsLocalActivity {
		queue = ""
	}
	t, c := callOf(info.ActivityType.Name, queue, in.Args)
	m := s.j.take(t, c)
	ctx = context.WithValue(ctx, modeKey{}, hit{m, s.j})
	node := s.w.node(c.Queue)
	s.kill(ctx, m.Kills)
	switch {
	case m.Gone, node != nil && node.dead:
		if m.CancelBefore {
			s.j.cancel()
		}
		return nil, temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START, nil)
	case m.Late:
		s.j.mu.Lock()
		s.j.late = append(s.j.late, func() { _, _ = s.Next.ExecuteActivity(context.WithoutCancel(ctx), in) })
		s.j.mu.Unlock()
		return nil, temporal.NewHeartbeatTimeoutError()
	}
	// Who is cancelled while it waits must find that nothing has ended yet; who cannot be cancelled would wait in vain.
	vain := m.CancelBefore && !s.w.Tables[t.Kind].Committed(1)
	if c.Activity == steps.AwaitOperations.Name && m.Before == "" && !vain && !m.LoseBefore {
		watched := reflect.Indirect(reflect.ValueOf(in.Args[0])).FieldByName("In").Interface().(steps.Watched)
		if err := s.w.runNext(ctx, watched.Operations); err != nil {
			s.j.fail(err)
		}
	}
	if m.Twice {
		_, _ = s.Next.ExecuteActivity(ctx, in)
	}
	out, err := s.Next.ExecuteActivity(ctx, in)
	s.w.watch(context.WithoutCancel(ctx))
	s.kill(ctx, m.KillsAfter)
	if m.Dies || m.KillsAfter != "" && s.w.node(c.Queue) != nil {
		return nil, temporal.NewHeartbeatTimeoutError()
	}
	return out, err
}

// kill has nodes die.
func (s *stepCalls) kill(ctx context.Context, nodes string) {
	for _, name := range strings.Fields(nodes) {
		if err := died(name)(context.WithoutCancel(ctx), s.w); err != nil {
			s.j.fail(err)
		}
	}
}

// InterceptWorkflow implements interceptor.WorkerInterceptor.
func (w *worker) InterceptWorkflow(_ workflow.Context, next interceptor.WorkflowInboundInterceptor) interceptor.WorkflowInboundInterceptor {
	return &workflowIn{WorkflowInboundInterceptorBase: interceptor.WorkflowInboundInterceptorBase{Next: next}, w: w.w, j: w.j}
}

type workflowIn struct {
	interceptor.WorkflowInboundInterceptorBase
	w *World
	j *injector
}

// Init implements interceptor.WorkflowInboundInterceptor.
func (w *workflowIn) Init(out interceptor.WorkflowOutboundInterceptor) error {
	return w.Next.Init(&workflowOut{WorkflowOutboundInterceptorBase: interceptor.WorkflowOutboundInterceptorBase{Next: out}, w: w.w, j: w.j})
}

// workflowOut ends a workflow at its next call when it is lost: nothing of it but its calls is seen by anybody.
type workflowOut struct {
	interceptor.WorkflowOutboundInterceptorBase
	w *World
	j *injector
}

func (w *workflowOut) check() {
	if w.j.over() {
		panic("the workflow is lost")
	}
}

// ExecuteActivity implements interceptor.WorkflowOutboundInterceptor.
func (w *workflowOut) ExecuteActivity(ctx workflow.Context, name string, args ...any) workflow.Future {
	w.check()
	w.j.begin(callOf(name, workflow.GetActivityOptions(ctx).TaskQueue, args))
	return w.Next.ExecuteActivity(ctx, name, args...)
}

// ExecuteLocalActivity implements interceptor.WorkflowOutboundInterceptor.
func (w *workflowOut) ExecuteLocalActivity(ctx workflow.Context, name string, args ...any) workflow.Future {
	w.check()
	w.j.begin(callOf(name, "", args))
	return w.Next.ExecuteLocalActivity(ctx, name, args...)
}

// RequestCancelExternalWorkflow implements interceptor.WorkflowOutboundInterceptor. The other operation hears it when it runs.
func (w *workflowOut) RequestCancelExternalWorkflow(ctx workflow.Context, id, _ string) workflow.Future {
	w.check()
	w.w.cancelOrder(id)
	f, set := workflow.NewFuture(ctx)
	set.SetValue(nil)
	return f
}
