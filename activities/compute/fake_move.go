package compute

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// fakeMove is a guest on its way. It belongs to the hypervisor, not to whoever began it.
type fakeMove struct {
	in     steps.MoveDomain
	target *Fake
	began  time.Time
	abort  chan struct{} // closed by stop
	stop   func()        // has the move look again whether it can go on
	asked  atomic.Bool   // somebody has asked to end it
	ready  chan struct{} // closed when the target has a domain for it, or never will
	over   chan struct{} // closed when it has ended, and moved and err are set
	post   bool          // the guest has been switched with part of its memory still here
	moved  steps.Moved
	err    error
}

// Restless makes the guests of f change their memory faster than it can be sent: they can only be moved with auto-converge or
// post-copy.
func (f *Fake) Restless(yes bool) {
	f.mu.Lock()
	f.restless = yes
	f.mu.Unlock()
}

// Linger has guests that move away from f stay defined there, as when the hypervisor dies before it can forget them.
func (f *Fake) Linger(yes bool) {
	f.mu.Lock()
	f.lingers = yes
	f.mu.Unlock()
}

// OnMove has hook called at every point of every move away from f, without a lock held: it may wait, and it decides what
// happens. Nil: moves go on.
func (f *Fake) OnMove(hook func(vm string, at MovePoint) MoveFate) {
	f.mu.Lock()
	f.hook = hook
	f.mu.Unlock()
}

// HA reports whether the domain of vm is marked to be stopped when the lease ends.
func (f *Fake) HA(vm string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.domains[vm]
	return d != nil && d.ha
}

// Describe implements Migrator.
func (f *Fake) Describe(ctx context.Context, vm string) (steps.Leaving, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	if err != nil {
		return steps.Leaving{}, err
	}
	return steps.Leaving{Phase: d.phase, CPU: d.cpu, HostUUID: f.Inv.HostUUID, Accel: f.Inv.Accel, Arch: f.Inv.Arch, Machine: f.Inv.Machine}, nil
}

// CheckIncoming implements Migrator.
func (f *Fake) CheckIncoming(ctx context.Context, req steps.IncomingRequest, files DomainFiles) (steps.Incoming, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, req.Plan.VM)
	switch {
	case err != nil && !problem.Is(err, problem.NotFound):
		return steps.Incoming{}, err
	case d != nil && d.phase != api.PhaseStopped:
		return steps.Incoming{}, AlreadyHere(req.Plan.VM)
	case f.uri == "":
		return steps.Incoming{}, NoPeer()
	case !files.Disk.IsSet():
		return steps.Incoming{}, problem.New(problem.Invalid, "the plan of vm %s has no disk", req.Plan.Name)
	}
	if err := DisksCanArrive(req); err != nil {
		return steps.Incoming{}, err
	}
	if err := CanArrive(req.Leaving, f.Inv.HostUUID, f.Inv.Accel, f.Inv.Arch); err != nil {
		return steps.Incoming{}, err
	}
	for _, cpu := range []string{req.Leaving.CPU, req.Plan.CPUModel} {
		if cpu != "" && len(f.Inv.CPUModels) > 0 && !slices.Contains(f.Inv.CPUModels, cpu) {
			return steps.Incoming{}, NoModel(cpu, f.Inv.CPUModels)
		}
	}
	return steps.Incoming{URI: f.uri, XML: "<domain/>"}, nil
}

// Migrate implements Migrator.
func (f *Fake) Migrate(ctx context.Context, m steps.MoveDomain, tell func(api.Progress)) (steps.Moved, error) {
	vm := m.Plan.VM
	f.mu.Lock()
	d, err := f.find(ctx, vm)
	if problem.Is(err, problem.NotFound) || err == nil && d.left {
		f.mu.Unlock()
		return steps.Moved{}, nil
	}
	if err == nil && d.move == nil {
		err = canLeave(m.Plan.Name, d)
	}
	if err == nil && d.move == nil {
		err = f.depart(d, m)
	}
	if err != nil {
		f.mu.Unlock()
		return steps.Moved{}, err
	}
	mv := d.move
	f.mu.Unlock()
	if <-mv.ready; tell != nil {
		tell(api.Progress{Step: "move", Text: "the guest is on its way", Migrate: &api.MoveProgress{Iteration: 1}})
	}
	timeout := m.Timeout
	if timeout <= 0 {
		timeout = DefaultMoveTimeout
	}
	late := time.NewTimer(timeout - time.Since(mv.began))
	defer late.Stop()
	select {
	case <-mv.over:
		return mv.moved, mv.err
	case <-late.C:
		endMove(mv)
		if <-mv.over; mv.err != nil {
			return steps.Moved{}, NotConverging(m.Plan.Name, 100*api.MiB, 50*api.MiB, 0)
		}
	case <-ctx.Done():
		if errors.Is(context.Cause(ctx), ErrLeave) {
			return steps.Moved{}, Left(m.Plan.Name)
		}
		endMove(mv)
		if <-mv.over; mv.err != nil {
			return steps.Moved{}, problem.New(problem.Cancelled, "the move of vm %s was cancelled", m.Plan.Name)
		}
	}
	return mv.moved, nil
}

func canLeave(name string, d *fakeDomain) error {
	switch {
	case d.broken:
		return InHalves(name)
	case d.phase == api.PhaseStopped:
		return PoweredOff(name)
	case d.phase == api.PhasePaused:
		return PausedMeanwhile(name)
	}
	return nil
}

// endMove asks a move to end. It is content if it has.
func endMove(mv *fakeMove) {
	mv.asked.Store(true)
	mv.stop()
}

// depart begins a move. It is called with the lock held.
func (f *Fake) depart(d *fakeDomain, m steps.MoveDomain) error {
	target := f.rack.at(m.Incoming.URI)
	if target == nil || target == f {
		return problem.New(problem.Unavailable, "libvirt at %s cannot be reached", m.Incoming.URI)
	}
	abort := make(chan struct{})
	d.move = &fakeMove{in: m, target: target, began: time.Now(), abort: abort, stop: sync.OnceFunc(func() { close(abort) }), ready: make(chan struct{}), over: make(chan struct{})}
	go f.carry(d, d.move)
	return nil
}

// Settle implements Migrator.
func (f *Fake) Settle(ctx context.Context, vm string) (steps.DomainState, error) {
	f.mu.Lock()
	d, err := f.find(ctx, vm)
	var mv *fakeMove
	if err == nil {
		mv = d.move
	}
	f.mu.Unlock()
	if mv != nil {
		endMove(mv)
		select {
		case <-mv.over:
		case <-ctx.Done():
			return steps.DomainState{}, problem.New(problem.Cancelled, "the request was cancelled")
		}
	}
	return f.see(ctx, vm)
}

// Look implements Migrator.
func (f *Fake) Look(ctx context.Context, vm string) (steps.DomainState, error) {
	f.mu.Lock()
	var arriving chan struct{}
	if d, err := f.find(ctx, vm); err == nil {
		arriving = d.incoming
	}
	f.mu.Unlock()
	if arriving != nil {
		t := time.NewTimer(ArrivalWait)
		defer t.Stop()
		select {
		case <-arriving:
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return f.see(ctx, vm)
}

func (f *Fake) see(ctx context.Context, vm string) (steps.DomainState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	if problem.Is(err, problem.NotFound) {
		return steps.DomainState{Phase: api.PhaseStopped}, nil
	}
	if err != nil {
		return steps.DomainState{}, err
	}
	return steps.DomainState{Exists: !d.left, Phase: d.phase, Broken: d.broken}, nil
}

// Define implements Creator.
func (f *Fake) Define(ctx context.Context, plan steps.VMPlan, files DomainFiles) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.define(ctx, plan, files)
	return err
}

// MarkHA implements Creator.
func (f *Fake) MarkHA(ctx context.Context, vm string, ha bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	if err == nil {
		d.ha = ha
	}
	return err
}
