package node

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workers/node/guard"
	"github.com/nextstack/nextstack/workflows/steps"
)

// startsWithin is what must be left of the lease for an HA guest to be started: a start that takes longer finds the guardian
// waiting for it.
const startsWithin = 3 * time.Second

// freshOrders is how old the answer to a report may be for its orders to stop VMs. What has come back here since is told by the
// steps that brought it; an answer that was slow for some other reason is not acted on either.
const freshOrders = 3 * time.Second

// guardian is what holds the node to its lease even when the agent is dead; a guard.Keeper but in tests.
type guardian interface {
	Renew(ctx context.Context, until time.Duration) error
	Status(ctx context.Context, running ...string) (guard.State, error)
	Noted(ctx context.Context, vms []string) error
	Run(ctx context.Context)
}

// lease is until when this node may run HA VMs without hearing from the server. All methods may be called on nil: an agent
// without a lease is one that nobody holds to it.
type lease struct {
	guardian guardian // nil: nothing guards it, and the server is told so
	log      *slog.Logger
	clock    func() time.Duration

	mu      sync.Mutex
	promise guard.Promise
	blind   int // reports in a row of whose guests the guardian did not see all
}

func newLease(g guardian, log *slog.Logger) *lease {
	return &lease{guardian: g, log: log, clock: guard.Boottime}
}

// run looks after the guardian until ctx is done. The guardian stays.
func (l *lease) run(ctx context.Context) {
	if l != nil && l.guardian != nil {
		l.guardian.Run(ctx)
	}
}

// now is the moment that a lease granted by the answer to what is sent next counts from.
func (l *lease) now() time.Duration {
	if l == nil {
		return 0
	}
	return l.clock()
}

// stopped returns the VMs that the guardian has stopped. It is to be asked before the node is looked at: a VM that is seen to
// run after that has been started again.
func (l *lease) stopped(ctx context.Context) []string {
	if l == nil || l.guardian == nil {
		return nil
	}
	s, err := l.guardian.Status(ctx)
	if err != nil {
		return nil // whoever keeps it says so
	}
	return s.Stopped
}

// tell writes into a report what the guardian says. A lease that it knows of and this agent does not is one that the agent
// before has got. That the guardian does not see a guest may be because it has just ended; the second time it is not.
func (l *lease) tell(ctx context.Context, r *api.AgentReport) {
	r.Guarded = false // it may be an earlier one that is sent again
	if l == nil || l.guardian == nil {
		return
	}
	var running []string
	if r.Error == "" { // else they are as they were
		for _, o := range r.VMs {
			if o.Phase != api.PhaseStopped {
				running = append(running, o.ID)
			}
		}
	}
	s, err := l.guardian.Status(ctx, running...)
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.promise.Renew(s.Until)
	switch {
	case s.Blind:
		l.blind++
	case r.Error == "":
		l.blind = 0
	}
	r.Guarded = s.Armed && l.blind < 2
	if l.blind == 2 {
		l.log.Error("THE GUARDIAN DOES NOT SEE THE GUESTS OF THIS NODE: its HA VMs are not restarted elsewhere if it dies", "error", s.Error)
	}
}

// renew takes a lease that was granted by the answer to what was sent at the time sent.
func (l *lease) renew(ctx context.Context, sent, granted time.Duration) error {
	if l == nil || granted <= 0 {
		return nil
	}
	until := sent + granted
	l.mu.Lock()
	l.promise.Renew(until)
	l.mu.Unlock()
	if l.guardian == nil {
		return nil
	}
	return l.guardian.Renew(ctx, until)
}

// noted has the guardian forget VMs.
func (l *lease) noted(ctx context.Context, vms []string) error {
	if l == nil || l.guardian == nil || len(vms) == 0 {
		return nil
	}
	return l.guardian.Noted(ctx, vms)
}

// allows returns a problem if an HA VM must not be started here now.
func (l *lease) allows(vm string) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.promise.Valid(l.clock() + startsWithin) {
		return nil
	}
	return problem.New(problem.Unavailable, "vm %s is HA, and this node may not run such VMs now", vm).
		Because("it has no lease: it has not heard from the server for too long, or the server takes it for dead").
		Try("see gnext host list; a lease comes with the node's next report")
}

// leased is a registry in which steps that let HA guests run are refused while there is no lease.
type leased struct {
	activities.Registry
	lease *lease
}

// RegisterActivityWithOptions implements activities.Registry.
func (r leased) RegisterActivityWithOptions(do any, o activity.RegisterOptions) {
	plan := func(p steps.VMPlan) (string, bool) { return p.Name, p.HA }
	switch o.Name {
	case steps.CreateDomain.Name:
		do = gated(r.lease, steps.CreateDomain, do, plan)
	case steps.StartDomain.Name:
		do = gated(r.lease, steps.StartDomain, do, plan)
	case steps.CheckIncoming.Name:
		do = gated(r.lease, steps.CheckIncoming, do, func(i steps.IncomingRequest) (string, bool) { return i.Plan.Name, i.Plan.HA })
	case steps.SwitchCheckpoint.Name:
		do = gated(r.lease, steps.SwitchCheckpoint, do, func(c steps.CheckpointSwitch) (string, bool) { return plan(c.VM) })
	case steps.SwitchVolume.Name:
		do = gated(r.lease, steps.SwitchVolume, do, func(v steps.VolumeCopy) (string, bool) {
			if v.VM == nil {
				return "", false
			}
			return plan(*v.VM)
		})
	case steps.UndoSave.Name:
		do = gated(r.lease, steps.UndoSave, do, func(g steps.GuestSave) (string, bool) { return plan(g.VM) })
	case steps.MarkHA.Name: // of a guest that runs: without a lease it would be its end
		do = gated(r.lease, steps.MarkHA, do, func(m steps.HAMark) (string, bool) { return m.Plan.Name, m.HA })
	}
	r.Registry.RegisterActivityWithOptions(do, o)
}

// gated puts the lease before the implementation of a step.
func gated[In, Out any](l *lease, step steps.Step[In, Out], do any, of func(In) (vm string, ha bool)) any {
	run := implementation(step, do)
	return func(ctx context.Context, env steps.Envelope[In]) (out Out, err error) {
		if vm, ha := of(env.In); ha {
			if err := l.allows(vm); err != nil {
				return out, steps.ToActivity(err)
			}
		}
		return run(ctx, env)
	}
}

// implementation is what a registry is given for a step.
func implementation[In, Out any](step steps.Step[In, Out], do any) func(context.Context, steps.Envelope[In]) (Out, error) {
	run, ok := do.(func(context.Context, steps.Envelope[In]) (Out, error))
	if !ok {
		panic("step " + step.Name + " is implemented by something of another shape") // no agent would start
	}
	return run
}

// obey carries out what the answer to a report asks for that was begun and sent at these times. It reports whether the node is another one now.
func (r *reporter) obey(ctx context.Context, began time.Time, sent time.Duration, report *api.AgentReport, o *api.AgentOrders) (changed bool) {
	granted := time.Duration(o.Lease * float64(time.Second))
	r.say("guardian", r.lease.renew(ctx, sent, granted))
	r.say("guardian's notes", r.lease.noted(ctx, o.Noted))
	if len(o.Stop) > 0 && (r.lease == nil || r.lease.now()-sent < freshOrders) {
		changed = r.stop(ctx, began, o.Stop, report)
	}
	return changed
}

// stop ends VMs that run elsewhere now. Their disks are not this node's any more. One that a step has worked on since the report
// was begun is left alone: it may have come back, by an operation that the server did not know of when it answered.
func (r *reporter) stop(ctx context.Context, began time.Time, vms []string, report *api.AgentReport) bool {
	var wg sync.WaitGroup
	errs, removed := make([]error, len(vms)), make([]bool, len(vms))
	for i, vm := range vms {
		if !slices.ContainsFunc(report.VMs, func(o api.VMObservation) bool { return o.ID == vm }) {
			continue // it was not told of
		}
		wg.Go(func() {
			removed[i], errs[i] = r.host.Alone(vm, began, func() error {
				r.log.Warn("vm is removed from this node: it is elsewhere now", "vm", vm)
				return r.driver.Remove(ctx, vm)
			})
			if !removed[i] {
				r.log.Info("vm is not removed from this node: a step has worked on it meanwhile", "vm", vm)
			}
		})
	}
	wg.Wait()
	err := joined(errs)
	r.say("VMs that are elsewhere now", err)
	return err == nil && slices.Contains(removed, true)
}

// pace returns how long to wait between reports: as configured, unless the server wants fewer of them, and never so long that a
// lease could run out between two.
func pace(configured time.Duration, o *api.AgentOrders) time.Duration {
	every := configured
	if o == nil {
		return every
	}
	every = max(every, time.Duration(o.ReportEvery*float64(time.Second)))
	if granted := time.Duration(o.Lease * float64(time.Second)); granted > 0 {
		every = min(every, granted/3)
	}
	return max(every, minReportEvery)
}

// minReportEvery is the least pause between two reports that nothing but time asks for.
const minReportEvery = 100 * time.Millisecond
