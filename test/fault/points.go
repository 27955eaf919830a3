package fault

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Scenario is one operation to be disturbed, and the world that it runs in.
type Scenario struct {
	Name    string
	Prepare []Accept // operations that are done before, undisturbed
	Accept  Accept
	// Plant changes the prepared world behind the control plane's back; nil: it does not.
	Plant func(ctx context.Context, w *World) error
	// Ignore names lines of a dump that may be there or not; nil: there are none.
	Ignore func(line string) bool
	// Excuse names findings of an audit that are no fault; nil: there are none.
	Excuse func(api.Finding) bool
	// First ends the run with the first leak or stuck operation.
	First bool
	// Looks marks an operation that only looks: it may succeed although a step of it did not.
	Looks bool
	// Spares is a call that the operation can do without: it may succeed although that did not.
	Spares string
	// Turns marks a move: what fails in its step "move" may be found to have happened, and the operation goes on to its end.
	Turns bool
	// TurnsAt is another step that may turn out to have happened.
	TurnsAt string
	// Orders marks an operation that has VMs moved by others: where they are then, they stay, whatever becomes of it.
	Orders bool
	// Fate makes what decides on the live moves of a world; nil: they go on.
	Fate func() func(compute.MovePoint) compute.MoveFate
	// Tears is in how many switches of disks libvirtd dies when the guest has gone over, and forgets it; or when the guest has been given one.
	Tears int
	// Busy: guests write as soon as they go on with the copy of a disk, and none of that may be lost.
	Busy bool
	// Any marks an operation that meets with so much by itself that it may end in any way. It is not disturbed twice.
	Any bool
	// From is the step at whose first call disturbing begins; empty: with the first.
	From string
	// Every says of how many second faults one is tried, and if it may end in any way, of how many faults; 0: all are.
	Every int
	// Check says what is wrong with the world that the undisturbed operation leaves; nil: nothing is.
	Check func(ctx context.Context, w *World) (string, error)
	// Always says what is wrong with a world, however the operation has ended; nil: what is never right anyhow.
	Always func(ctx context.Context, w *World) (string, error)
}

// Point is one way to disturb an operation. More than one fault: the first makes the operation go back.
type Point []Fault

// String names the point for people.
func (p Point) String() string {
	parts := make([]string, len(p))
	for i, f := range p {
		parts[i] = f.String()
	}
	return strings.Join(parts, ", then ")
}

// Report is what came of many points.
type Report struct {
	Points, Leaks, Stuck int
	Left                 int      // points that were left out, because a scenario tries some of many
	Wrong                int      // operations that ended otherwise than they should have
	Details              []string // one per leak, stuck operation or wrong end
}

// Add adds other to r.
func (r *Report) Add(other Report) {
	r.Points, r.Leaks, r.Stuck, r.Wrong, r.Left = r.Points+other.Points, r.Leaks+other.Leaks, r.Stuck+other.Stuck, r.Wrong+other.Wrong, r.Left+other.Left
	r.Details = append(r.Details, other.Details...)
}

// bench disturbs one scenario.
type bench struct {
	*Scenario
	base          *World // prepared
	before, after Dump   // of the world, around an undisturbed run, the latter its shape; no after: it did not succeed
	killing       bool   // there is no world to compare with
	second        int    // second faults that were thought of
	clean         []Call // of the undisturbed run
	end           api.OperationState
	table         saga.Definition
	report        Report
}

// Run disturbs the scenario in a clone of base at every point there is. An error means that the harness is at fault, not
// what it tests.
func (s *Scenario) Run(ctx context.Context, base *World) (Report, error) {
	b := &bench{Scenario: s}
	if err := b.prepare(ctx, base); err != nil {
		return b.report, fmt.Errorf("%s: %w", s.Name, err)
	}
	begun := s.From == ""
	for at, c := range b.clean {
		if begun = begun || c.Step == s.From; !begun {
			continue
		}
		committed := b.committed(at)
		if b.undoes(b.clean[:at+1]) { // of itself: as after a first fault
			if err := b.points(ctx, nil, at, c, []api.OperationState{api.OpSucceeded, b.end}); err != nil {
				return b.report, err
			}
			continue
		}
		for _, m := range forward(c) {
			if s.Any && b.skip() {
				continue
			}
			if err := b.point(ctx, Point{{at, c, m}}, s.ends(c, m, committed)); err != nil {
				return b.report, err
			}
		}
		if c.bookkeeping() || s.Any {
			continue
		}
		lost := Fault{at, c, Mode{Name: "workflow lost after", LoseAfter: true}}
		if err := b.then(ctx, lost); err != nil {
			return b.report, err
		}
		fails := Fault{at, c, Mode{Name: "done, but fails for good", After: problem.Invalid, Times: many}}
		if committed {
			continue
		}
		if err := b.then(ctx, fails); err != nil {
			return b.report, err
		}
	}
	return b.report, nil
}

// Kill disturbs the scenario by the death of a node, at each call there is, and before each node can tell what it has done. What is on a dead node is not looked at, but for
// guests that run there: it was off when it counted as dead.
func (s *Scenario) Kill(ctx context.Context, base *World, nodes ...string) (Report, error) {
	b := &bench{Scenario: s}
	if err := b.prepare(ctx, base); err != nil {
		return b.report, fmt.Errorf("%s: %w", s.Name, err)
	}
	b.before, b.after, b.killing = nil, nil, true
	for at, c := range b.clean {
		for _, n := range nodes {
			p := Point{{at, c, Mode{Name: "node " + n + " dies", Kills: n}}}
			ends := []api.OperationState{api.OpSucceeded, api.OpFailed}
			if err := b.point(ctx, p, ends); err != nil {
				return b.report, err
			}
			if !c.onNode() || b.base.node(c.Queue).Name != n {
				continue
			}
			for _, m := range []Mode{
				{Name: "node " + n + " dies with what it has done", KillsAfter: n},
				{Name: "node " + n + " dies with what it has done, and the workflow is lost", KillsAfter: n, LoseAfter: true},
			} {
				p[0].Mode = m
				if err := b.point(ctx, p, ends); err != nil {
					return b.report, err
				}
			}
		}
	}
	return b.report, nil
}

// World returns a clone of base in which the scenario's operation can be asked for.
func (s *Scenario) World(ctx context.Context, base *World) (*World, error) {
	w, err := base.Clone(ctx, nil)
	if err != nil {
		return nil, err
	}
	for i, accept := range s.Prepare {
		if _, err := w.Do(ctx, accept); err != nil {
			return nil, fmt.Errorf("preparation %d: %w", i, err)
		}
	}
	if s.Plant != nil {
		err = s.Plant(ctx, w)
	}
	return w, err
}

func (b *bench) prepare(ctx context.Context, base *World) (err error) {
	if b.base, err = b.World(ctx, base); err != nil {
		return err
	}
	if b.before, err = b.base.Dump(ctx); err != nil {
		return err
	}
	w, op, j, err := b.run(ctx, nil)
	if err != nil {
		return err
	}
	if op.State != api.OpSucceeded && (!b.Any || !op.State.Ended()) {
		return fmt.Errorf("undisturbed, it is %s: %w", op.State, op.Error)
	}
	b.clean, b.table, b.end = j.trace, w.Tables[op.Kind], op.State
	wrong, err := b.wrong(ctx, w)
	if err == nil && b.Check != nil {
		var what string
		if what, err = b.Check(ctx, w); what != "" {
			wrong = append(wrong, what)
		}
	}
	if err == nil && len(wrong) > 0 {
		err = fmt.Errorf("undisturbed, it is %s and leaves:\n\t%s", op.State, strings.Join(wrong, "\n\t"))
	}
	if err == nil && op.State == api.OpSucceeded {
		b.after, err = w.Dump(ctx)
		b.after = b.visible(b.after).Shape()
	}
	return err
}

// turns reports whether the operation may turn around at a call.
func (s *Scenario) turns(c Call) bool {
	return s.Turns && c.Step == "move" || s.TurnsAt != "" && c.Step == s.TurnsAt
}

// undoes reports whether the operation has begun to go back in these calls.
func (b *bench) undoes(calls []Call) bool {
	return slices.ContainsFunc(calls, func(c Call) bool { return c.Undo })
}

// committed reports whether the operation can only go forward once call at of the undisturbed run has begun.
func (b *bench) committed(at int) bool {
	seen := map[string]bool{}
	for _, c := range b.clean[:at+1] {
		seen[c.Step] = true
	}
	started := 0
	for i, step := range b.table.Plan() {
		if seen[step.Name] {
			started = i + 1
		}
	}
	return b.table.Committed(started)
}

// then makes first happen, and disturbs the operation in what it does next: going back, or forward if there is no way back.
func (b *bench) then(ctx context.Context, first Fault) error {
	_, op, j, err := b.run(ctx, Point{first})
	if err != nil {
		return err
	}
	if op.State == api.OpSucceeded && !b.committed(first.At) && !b.undoes(j.trace) {
		return nil // it does not mind
	}
	ends := []api.OperationState{op.State}
	if b.turns(first.Call) { // where the guest is then depends on how far the second fault let it come
		ends = []api.OperationState{api.OpSucceeded, api.OpFailed}
	}
	for i := first.At + 1; i < len(j.trace); i++ {
		mays := ends
		if c := j.trace[i]; c.Step == first.Call.Step && !c.Undo { // was made beside it, so it does not go back yet
			mays = append(slices.Clone(ends), api.OpCancelled)
		}
		if err := b.points(ctx, Point{first}, i, j.trace[i], mays); err != nil {
			return err
		}
	}
	return nil
}

// skip reports whether the next point is left out. It is the same one in every run.
func (b *bench) skip() bool {
	if b.second++; b.Every < 2 || b.second%b.Every == 0 {
		return false
	}
	b.report.Left++
	return true
}

// points disturbs, after first, one more call of an operation that goes back, or that cannot but go on.
func (b *bench) points(ctx context.Context, first Point, at int, c Call, ends []api.OperationState) error {
	for _, m := range back(c) {
		if b.skip() {
			continue
		}
		if err := b.point(ctx, append(slices.Clone(first), Fault{at, c, m}), ends); err != nil {
			return err
		}
	}
	return nil
}

// run disturbs the operation at p in a world of its own.
func (b *bench) run(ctx context.Context, p Point) (*World, *api.Operation, *injector, error) {
	j := newInjector(p)
	w, err := b.base.Clone(ctx, &hook{j})
	if err != nil {
		return nil, nil, nil, err
	}
	w.tears, w.busy = b.Tears, b.Busy
	if b.Fate != nil {
		w.Fate = b.Fate()
	}
	op, err := b.Accept(ctx, w, w.User)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("it is not accepted: %w", err)
	}
	op, err = w.run(ctx, op.ID, j)
	if err == nil {
		err = j.missed()
	}
	return w, op, j, err
}

// point disturbs the operation at p and looks at what it leaves behind.
func (b *bench) point(ctx context.Context, p Point, ends []api.OperationState) error {
	if b.First && b.report.Leaks+b.report.Stuck > 0 {
		return nil
	}
	b.report.Points++
	w, op, _, err := b.run(ctx, p)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", b.Name, p, err)
	}
	if !op.State.Ended() {
		b.report.Stuck++
		b.fault(p, "it is "+string(op.State)+" for ever: "+problem.Marshal(op.Error))
		return nil
	}
	if !slices.Contains(ends, op.State) && b.Tears == 0 { // else an attempt that fails by itself is one more, or less
		b.report.Wrong++
		b.fault(p, fmt.Sprintf("it is %s, and not one of %v: %s", op.State, ends, problem.Marshal(op.Error)))
	}
	now, err := w.Dump(ctx)
	if err != nil {
		return err
	}
	diff := b.compare(w, op, p, now)
	wrong, err := b.wrong(ctx, w)
	if err != nil {
		return err
	}
	diff = append(diff, wrong...)
	if len(diff) > 0 {
		b.report.Leaks++
		b.fault(p, "it is "+string(op.State)+" and leaves:\n\t"+strings.Join(diff, "\n\t"))
	}
	return nil
}

// compare returns what is otherwise than in the world before or after the undisturbed operation, as it ended.
func (b *bench) compare(w *World, op *api.Operation, p Point, now Dump) []string {
	done := op.State == api.OpSucceeded
	want, got := b.visible(b.before), b.visible(now)
	switch {
	case b.killing, done && b.after == nil:
		return nil // it turned around, which the undisturbed one did not
	case done:
		want, got = b.after, got.Shape()
	}
	if b.Orders {
		if done && slices.ContainsFunc(p, func(f Fault) bool {
			return f.Call.Activity == steps.OrderMove.Name || f.Mode.CancelBefore || f.Mode.CancelAfter
		}) {
			return nil // VMs whose moves could not be ordered are as they were
		}
		want, got = want.Anywhere(w.Nodes), got.Anywhere(w.Nodes)
	}
	return Diff(want, got)
}

// wrong returns what must not be, however the operation has ended.
func (b *bench) wrong(ctx context.Context, w *World) ([]string, error) {
	out, err := w.Wrong(ctx)
	if err != nil {
		return nil, err
	}
	findings, err := w.Audit(ctx)
	for _, f := range findings {
		out = append(out, "audit: "+f.Problem)
		if b.Excuse != nil && b.Excuse(f) {
			out = out[:len(out)-1]
		}
	}
	if err == nil && b.Always != nil {
		var what string
		if what, err = b.Always(ctx, w); what != "" {
			out = append(out, what)
		}
	}
	return out, err
}

func (b *bench) visible(d Dump) Dump {
	if b.Ignore == nil {
		return d
	}
	var out Dump
	for _, line := range d {
		if !b.Ignore(line) {
			out = append(out, line)
		}
	}
	return out
}

func (b *bench) fault(p Point, what string) {
	b.report.Details = append(b.report.Details, fmt.Sprintf("%s: %s: %s", b.Name, p, what))
}
