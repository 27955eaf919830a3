// Package saga runs operations: step tables whose steps are done in order and, when one fails or somebody cancels, undone
// in reverse. It keeps three promises. An undo is noted before its step runs, because after a timeout nobody knows whether
// the step happened. An operation ends either done or undone; when it can go neither way for now it says so loudly and
// keeps trying. And every attempt is written to the operation's record before it is made, so that even a lost workflow can
// be undone from the record alone.
package saga

import (
	"encoding/json"
	"errors"
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// ResumeSignal hurries a stuck operation: it tries again at once.
const ResumeSignal = "resume"

// Step is one row of a table. S is what the steps of one operation share; it must survive JSON, because it is the
// operation's checkpoint.
type Step[S any] struct {
	Name  string
	Where string // "control" or "node", for people; On names the node when it is known
	On    func(s *S) string
	Do    func(r *Run, s *S) error
	Undo  func(r *Run, s *S) error // nil: there is nothing to undo, and a comment in the table says why
	// Detail is what people may want to know of the step when it is done; nil, or a nil value: nothing.
	Detail func(s *S) any
	// Commit marks the point of no return: from this step on the operation only goes forward, and cannot be cancelled.
	Commit bool
	// Patience is how long a failure that may pass is tried again; 0: as often as DefaultRetry says, however long each attempt takes.
	Patience time.Duration
}

// ErrDone is what an undo returns when it finds that its step happened and can no longer be taken back: a guest that runs at
// the target of its move already, say. The operation then turns around and goes on to its end, whatever made it go back.
var ErrDone = errors.New("the step has happened and cannot be taken back")

// Table is an operation: its kind and its steps.
type Table[S any] struct {
	Kind   string
	Start  func(op steps.Op) (S, error)        // makes the shared state from the operation's input
	Steps  []Step[S]                           //
	Result func(s *S) (json.RawMessage, error) // what the operation found, for those that look; may be nil
}

// Retry is how a failed attempt is repeated: First, doubled each time up to Max; Attempts bounds the way forward only.
type Retry struct {
	First, Max time.Duration
	Attempts   int
}

// DefaultRetry rides out the restart of a daemon (up to about 25 s) before it gives up going forward.
var DefaultRetry = Retry{First: 200 * time.Millisecond, Max: 10 * time.Second, Attempts: 8}

// stuckAfter is how many failed undo attempts it takes until the operation says that it is stuck. It still goes on trying.
const stuckAfter = 6

// patient is after how many attempts the pauses become long: by then somebody has been told, and an operation that waits for
// days must not fill its history. `op resume` ends any pause.
const (
	patient   = 30
	longPause = time.Minute
)

func (r Retry) pause(attempt int) time.Duration {
	if attempt >= patient {
		return longPause
	}
	d := r.First
	for i := 1; i < attempt && d < r.Max; i++ {
		d *= 2
	}
	return min(d, r.Max)
}

// Run is one running operation. Steps get it to make their calls.
type Run struct {
	ctx   workflow.Context
	op    steps.Op
	seq   int
	step  string
	undo  bool
	taken *bool // a worker may have taken a call of this attempt
}

// Context returns the context to make calls with. It implements steps.Caller.
func (r *Run) Context() workflow.Context { return r.ctx }

// Token says which attempt is calling. It implements steps.Caller.
func (r *Run) Token() steps.Token {
	return steps.Token{Operation: r.op.ID, Kind: r.op.Kind, Step: r.step, Epoch: r.op.Epoch, Seq: r.seq, Undo: r.undo}
}

// Taken implements steps.Caller.
func (r *Run) Taken() { *r.taken = true }

// Op returns the operation.
func (r *Run) Op() steps.Op { return r.op }

// CancelOperation asks another operation to go back, without waiting for it. One that has ended, or whose workflow has not
// begun, does not hear it: whoever needs to be sure asks again until the operation has ended.
func (r *Run) CancelOperation(id string) {
	ctx, stop := workflow.NewDisconnectedContext(r.ctx)
	defer stop()
	_ = workflow.RequestCancelExternalWorkflow(ctx, id, "").Get(ctx, nil)
}

// Steady returns the same run for what must be done even though the operation was cancelled. Done must be called in the end.
func (r *Run) Steady() (steady *Run, done func()) {
	c := *r
	ctx, cancel := workflow.NewDisconnectedContext(r.ctx)
	c.ctx = ctx
	return &c, cancel
}

// Sleep waits for d, or until the operation is cancelled.
func (r *Run) Sleep(d time.Duration) error { return workflow.Sleep(r.ctx, d) }

// runner holds what one execution of a table needs.
type runner[S any] struct {
	table   Table[S]
	run     *Run
	state   S
	journal steps.Journal
	live    workflow.Context // is done when somebody cancels
	steady  workflow.Context // never is
	started int              // steps that may have changed the world: undo begins here
	commit  bool             // past the point of no return
}

// Workflow runs the table for op. It returns nil if the operation is done, and the reason if it was undone; by then the
// operation's record says the same.
func (t Table[S]) Workflow(ctx workflow.Context, op steps.Op) error {
	steady, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	r := &runner[S]{table: t, run: &Run{ctx: ctx, op: op, taken: new(bool)}, live: ctx, steady: steady}
	r.journal = steps.Journal{Operation: op.ID, State: api.OpRunning, Steps: make([]api.StepRecord, len(t.Steps))}
	for i, s := range t.Steps {
		r.journal.Steps[i] = api.StepRecord{Name: s.Name, Where: s.Where, State: api.StepPending}
	}
	if op.Recover != nil {
		return r.recover(op.Recover)
	}
	var err error
	if r.state, err = t.Start(op); err == nil {
		err = r.forward(0)
	}
	if err != nil {
		return r.backward(err)
	}
	return r.settle(api.OpSucceeded, nil)
}

// recover takes up an operation whose workflow was lost: forward if it had passed the point of no return, else back.
func (r *runner[S]) recover(from *steps.Recovery) error {
	r.run.seq, r.journal.Number = from.Seq, from.Seq
	r.started = from.Started
	// What the input tells is a start, should the checkpoint be missing or unreadable: undos go by IDs that stand there.
	var err error
	if r.state, err = r.table.Start(r.run.op); err == nil && len(from.Checkpoint) > 0 {
		err = json.Unmarshal(from.Checkpoint, &r.state)
	}
	if err != nil {
		return r.backward(problem.Wrap(err, problem.Internal, "the checkpoint cannot be read"))
	}
	if from.Committed {
		r.commit, r.run.ctx = true, r.steady
		if err := r.forward(max(0, from.Started-1)); err != nil {
			return r.backward(err)
		}
		return r.settle(api.OpSucceeded, nil)
	}
	err = error(problem.New(problem.Internal, "the workflow of this operation was lost, so it was undone").Try("run `gnext op retry %s`", r.run.op.ID))
	if from.Error != nil {
		err = from.Error
	}
	return r.backward(err)
}

func (r *runner[S]) forward(from int) error {
	for i := from; i < len(r.table.Steps); i++ {
		if err := r.cancelled(); err != nil {
			return err
		}
		step := r.table.Steps[i]
		if r.commit = r.commit || step.Commit; r.commit {
			r.run.ctx = r.steady
		}
		r.started = i + 1
		if err := r.do(i, step); err != nil {
			return err
		}
	}
	// Whoever cancelled it during the last step has been told that it will be undone.
	return r.cancelled()
}

// cancelled returns a problem if somebody cancelled the operation and it can still go back.
func (r *runner[S]) cancelled() error {
	if r.commit || r.live.Err() == nil {
		return nil
	}
	return problem.New(problem.Cancelled, "the operation was cancelled")
}

func (r *runner[S]) do(i int, step Step[S]) error {
	r.begin(i, step, api.StepRunning)
	begun := workflow.Now(r.steady)
	for attempt := 1; ; attempt++ {
		r.save(i, attempt, nil)
		err := step.Do(r.next(step.Name, false), &r.state)
		if err == nil {
			r.done(i, step)
			return nil
		}
		p := problem.From(err)
		r.journal.Steps[i].Error = p
		cancelled := r.cancelled()
		gone := errors.Is(err, steps.ErrNeverStarted)
		giveUp := !problem.TraitsOf(p.Kind).Retry || gone || attempt >= DefaultRetry.Attempts ||
			step.Patience > 0 && workflow.Now(r.steady).Sub(begun) >= step.Patience
		if cancelled != nil || giveUp && !r.commit {
			r.journal.Steps[i].State = api.StepFailed
			if gone && attempt == 1 && !*r.run.taken {
				r.started = i // no worker ever took a call of it
			}
			if cancelled != nil {
				return cancelled
			}
			return err
		}
		if r.commit && (giveUp || gone) {
			r.stuck(i, p)
		}
		r.pause(r.live, attempt)
	}
}

// backward undoes every step that may have run, and ends the operation with the reason.
func (r *runner[S]) backward(cause error) error {
	p := problem.From(cause)
	r.journal.State, r.journal.Error, r.journal.Cause = api.OpUndoing, p, p
	r.run.ctx = r.steady
	for i := r.started - 1; i >= 0; i-- {
		if step := r.table.Steps[i]; step.Undo != nil && r.undo(i, step) {
			return r.onward(i, step)
		}
	}
	if p.Kind == problem.Cancelled {
		return r.settle(api.OpCancelled, p)
	}
	return r.settle(api.OpFailed, p)
}

// onward goes forward again from step i, which its undo found to have happened.
func (r *runner[S]) onward(i int, step Step[S]) error {
	r.journal.State, r.journal.Error, r.journal.Cause = api.OpRunning, nil, nil
	r.commit = true
	for later := i + 1; later < r.started; later++ { // undone on the way here: they are done anew
		r.journal.Steps[later].State = api.StepPending
	}
	r.done(i, step)
	if err := r.forward(i + 1); err != nil {
		return r.backward(err)
	}
	return r.settle(api.OpSucceeded, nil)
}

func (r *runner[S]) done(i int, step Step[S]) {
	r.journal.Steps[i].State, r.journal.Steps[i].Error = api.StepDone, nil
	r.where(i, step)
	if step.Detail == nil {
		return
	}
	if detail, err := json.Marshal(step.Detail(&r.state)); err == nil && string(detail) != "null" {
		r.journal.Steps[i].Detail = detail
	}
}

// undo repeats until it wins. There is no other way out: giving up would leave something behind. It reports whether the step
// turned out to have happened for good.
func (r *runner[S]) undo(i int, step Step[S]) (onward bool) {
	r.begin(i, step, api.StepUndoing)
	for attempt := 1; ; attempt++ {
		r.save(i, attempt, nil)
		err := step.Undo(r.next(step.Name, true), &r.state)
		if err == nil {
			r.journal.Steps[i].State = api.StepUndone
			return false
		}
		if errors.Is(err, ErrDone) {
			return true
		}
		p := problem.From(err)
		r.journal.Steps[i].Error = p
		if attempt >= stuckAfter || !problem.TraitsOf(p.Kind).Retry || errors.Is(err, steps.ErrNeverStarted) {
			r.stuck(i, p)
		}
		r.pause(r.steady, attempt)
	}
}

// next counts one more attempt and returns the run to make it with.
func (r *runner[S]) next(step string, undo bool) *Run {
	r.run.seq++
	r.run.step, r.run.undo, r.run.taken = step, undo, new(bool)
	return r.run
}

func (r *runner[S]) begin(i int, step Step[S], state api.StepState) {
	r.journal.Steps[i].State = state
	r.where(i, step)
}

func (r *runner[S]) where(i int, step Step[S]) {
	if step.On != nil {
		if node := step.On(&r.state); node != "" {
			r.journal.Steps[i].Where = node
		}
	}
}

// stuck tells the world that the operation waits for help at step i. The next attempt that works takes it back.
func (r *runner[S]) stuck(i int, p *problem.Problem) {
	state := r.journal.State
	r.journal.State = api.OpStuck
	r.save(i, r.journal.Steps[i].Attempts, p)
	r.journal.State = state
}

// pause waits before the next attempt, at most until somebody resumes or cancels the operation.
func (r *runner[S]) pause(ctx workflow.Context, attempt int) {
	timerCtx, stop := workflow.WithCancel(r.steady)
	defer stop()
	sel := workflow.NewSelector(timerCtx)
	sel.AddFuture(workflow.NewTimer(timerCtx, DefaultRetry.pause(attempt)), func(workflow.Future) {})
	sel.AddReceive(workflow.GetSignalChannel(r.steady, ResumeSignal), func(c workflow.ReceiveChannel, _ bool) { c.Receive(r.steady, nil) })
	if ctx.Err() == nil {
		sel.AddReceive(ctx.Done(), func(workflow.ReceiveChannel, bool) {})
	}
	sel.Select(timerCtx)
}

// save writes the journal. Nothing goes on before it is written, so the store always knows at least what may have happened.
func (r *runner[S]) save(i, attempt int, reason *problem.Problem) {
	r.journal.Steps[i].Attempts = attempt
	r.journal.Number++
	j := r.journal
	if reason != nil {
		j.Error = reason
	}
	checkpoint, err := json.Marshal(r.state)
	if err == nil {
		j.Checkpoint = checkpoint
	}
	r.insist("journal", func(run *Run, light bool) error {
		if light {
			j.Checkpoint, j.Error, j.Cause = nil, brief(j.Error), brief(j.Cause)
		}
		_, err := steps.SaveJournal.Call(run, "", j)
		return err
	})
}

// settle ends the operation. The returned error is the outcome, for those who look at the workflow rather than the record.
func (r *runner[S]) settle(state api.OperationState, p *problem.Problem) error {
	out := steps.Outcome{Journal: r.journal}
	out.State, out.Error = state, p
	if state == api.OpSucceeded && r.table.Result != nil {
		result, err := r.table.Result(&r.state)
		if err != nil {
			return r.backward(problem.Wrap(err, problem.Internal, "the result cannot be written down"))
		}
		out.Result = result
	}
	r.insist("settle", func(run *Run, light bool) error {
		if light {
			out.Result, out.Error, out.Cause = nil, brief(out.Error), brief(out.Cause)
		}
		_, err := steps.Settle.Call(run, "", out)
		return err
	})
	if p != nil {
		return steps.ToActivity(p)
	}
	return nil
}

// insist repeats a call on the store until it works: without the store there is neither forward nor back. What the store
// refuses for its size it is given again without what can be done without.
func (r *runner[S]) insist(name string, call func(run *Run, light bool) error) {
	light := false
	for attempt := 1; ; attempt++ {
		run := Run{ctx: r.steady, op: r.run.op, seq: r.run.seq, step: name, undo: r.run.undo, taken: new(bool)}
		err := call(&run, light)
		if err == nil {
			return
		}
		if problem.Is(err, problem.TooLarge) && !light {
			light = true
			continue
		}
		r.pause(r.steady, attempt)
	}
}

// briefly is how many bytes of a text a brief problem keeps.
const briefly = 2048

// brief returns p without what makes it long.
func brief(p *problem.Problem) *problem.Problem {
	if p == nil {
		return nil
	}
	short := *p
	short.Fields = nil
	for _, s := range []*string{&short.What, &short.Why, &short.Fix} {
		if len(*s) > briefly {
			*s = (*s)[:briefly] + "..."
		}
	}
	return &short
}

// RecoveryOf reads from op's journal how far its lost workflow had come. Op must be as it is in the store now; epoch is the
// revision at which it was accepted.
func RecoveryOf(d Definition, op *api.Operation, epoch int64) *steps.Recovery {
	// Every attempt was journalled before it was made, so the store has moved at least as often as there were attempts.
	r := &steps.Recovery{Checkpoint: op.Checkpoint, Seq: int(op.Revision - epoch)}
	for i, s := range op.Steps {
		if s.State != api.StepPending {
			r.Started = i + 1
		}
	}
	r.Committed = d.Committed(r.Started)
	if op.Plan != nil {
		r.Error = op.Plan.Cause
	}
	return r
}

// Definition is a table with its type parameter hidden, so that tables can stand in one list.
type Definition interface {
	Name() string
	Plan() []api.StepRecord
	// Committed reports whether an operation that has come to this number of started steps can only go forward.
	Committed(started int) bool
	Func() any
}

// Name returns the operation's kind, which is also the workflow's name.
func (t Table[S]) Name() string { return t.Kind }

// Plan returns the step table as it looks before anything has happened.
func (t Table[S]) Plan() []api.StepRecord {
	out := make([]api.StepRecord, len(t.Steps))
	for i, s := range t.Steps {
		out[i] = api.StepRecord{Name: s.Name, Where: s.Where, State: api.StepPending}
	}
	return out
}

// Committed implements Definition.
func (t Table[S]) Committed(started int) bool {
	return slices.ContainsFunc(t.Steps[:min(started, len(t.Steps))], func(s Step[S]) bool { return s.Commit })
}

// Func returns the workflow function.
func (t Table[S]) Func() any { return t.Workflow }
