package compute

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Fake is a hypervisor in memory. Its zero value is ready, reports Inv as its inventory, and has guests that obey at once.
type Fake struct {
	Inv  api.Inventory
	Deaf bool // guests ignore requests to power off or restart
	// Backing is what is behind disks; nil: they cannot be merged, and resizing one changes nothing.
	Backing FakeBacking

	mu      sync.Mutex
	domains map[string]*fakeDomain
	secrets map[string]string // by pool
	down    bool
	subs    map[chan Event]bool

	rack     *Rack // nil: it is alone
	uri      string
	restless bool
	lingers  bool
	clingy   bool
	mute     bool
	torn     func(volume string) bool // whether the management dies in the next switch; nil: no
	tornText string                   // what guests write then
	busyText string                   // what guests write that go on with the copy of a disk
	writes   func(volume string) bool // whether they do, of a volume; nil: no
	hook     func(vm string, at MovePoint) MoveFate
}

type fakeDomain struct {
	name     string
	phase    api.Phase
	ours     bool
	boots    int
	cpu      string        // model; empty: any
	ha       bool          //
	broken   bool          // paused with half of its memory
	left     bool          // off because it has moved away
	move     *fakeMove     // under way; nil: none
	incoming chan struct{} // of a guest that is just arriving: closed when it has, or is gone
	turnAway func()        // has the source of such a guest look again
	disks    []FakeDisk
	memory   string // nothing after a start
	as       string // how it has gone on from a memory, nothing after a start
	still    bool   // paused by us, for a moment
	held     bool   // paused by us until it is let go on
}

// stir has a move under way see that something has happened to its guest. One that is off has no disks but those that are known.
func (d *fakeDomain) stir() {
	if d.phase == api.PhaseStopped {
		d.letStraysGo()
	}
	if d.move != nil {
		d.move.stop()
	}
}

var _ Driver = (*Fake)(nil)

// Disconnect makes every call fail as unavailable, until it is called with false.
func (f *Fake) Disconnect(down bool) {
	f.mu.Lock()
	f.down = down
	f.mu.Unlock()
	if !down {
		f.publish("")
	}
}

// AddStranger adds a running domain that is not ours.
func (f *Fake) AddStranger(id, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(id, &fakeDomain{name: name, phase: api.PhaseRunning})
}

// PowerOff does what a guest does that powers itself off.
func (f *Fake) PowerOff(vm string) {
	f.mu.Lock()
	if d := f.domains[vm]; d != nil {
		d.phase = api.PhaseStopped
		d.stir()
	}
	f.mu.Unlock()
	f.publish(vm)
}

// Boots says how often the guest of vm was started or reset.
func (f *Fake) Boots(vm string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.domains[vm]; d != nil {
		return d.boots
	}
	return 0
}

func (f *Fake) put(id string, d *fakeDomain) {
	if f.domains == nil {
		f.domains = map[string]*fakeDomain{}
	}
	f.domains[id] = d
}

// check is called with the lock held, at the begin of every call.
func (f *Fake) check(ctx context.Context) error {
	if ctx.Err() != nil {
		return problem.New(problem.Cancelled, "the request was cancelled")
	}
	if f.down {
		return problem.New(problem.Unavailable, "the hypervisor cannot be reached")
	}
	return nil
}

func (f *Fake) find(ctx context.Context, vm string) (*fakeDomain, error) {
	if err := f.check(ctx); err != nil {
		return nil, err
	}
	d := f.domains[vm]
	if d == nil {
		return nil, problem.New(problem.NotFound, "there is no domain %s", vm)
	}
	if !d.ours {
		return nil, NotOurs(vm, d.name)
	}
	return d, nil
}

// NotOurs is the problem of a domain that carries no mark of ours.
func NotOurs(vm, name string) *problem.Problem {
	return problem.New(problem.Conflict, "domain %s (%s) was not made by NextStack", name, vm).Try("remove or rename it by hand if nobody needs it")
}

// Create implements Creator.
func (f *Fake) Create(ctx context.Context, plan steps.VMPlan, files DomainFiles) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.define(ctx, plan, files)
	if err != nil {
		return err
	}
	return f.powerOn(plan.VM, d)
}

// define is called with the lock held.
func (f *Fake) define(ctx context.Context, plan steps.VMPlan, files DomainFiles) (*fakeDomain, error) {
	d, err := f.find(ctx, plan.VM)
	if err != nil && !problem.Is(err, problem.NotFound) {
		return nil, err
	}
	if !api.IsUUID(plan.VM) || !files.Disk.IsSet() {
		return nil, problem.New(problem.Invalid, "the plan of vm %s has no ID or no disk", plan.Name)
	}
	if plan.CPUModel != "" && len(f.Inv.CPUModels) > 0 && !slices.Contains(f.Inv.CPUModels, plan.CPUModel) {
		return nil, NoModel(plan.CPUModel, f.Inv.CPUModels)
	}
	if d == nil {
		d = &fakeDomain{name: DomainName(plan.VM), phase: api.PhaseStopped, ours: true}
		f.put(plan.VM, d)
	}
	if d.phase == api.PhaseStopped {
		d.ha, d.cpu, d.left, d.disks = plan.HA, plan.CPUModel, false, disksOf(plan, files)
	}
	return d, nil
}

// DomainName is what the hypervisor calls the domain of a VM.
func DomainName(vm string) string { return "ns-" + vm }

func (f *Fake) powerOn(vm string, d *fakeDomain) error {
	if d.incoming != nil {
		return AlreadyHere(vm)
	}
	if d.phase == api.PhaseStopped || d.broken {
		d.boots, d.memory, d.as, d.still = d.boots+1, "", "", false
		for i := range d.disks { // it is started with what it had open
			d.disks[i].Torn = DiskSource{}
		}
	}
	d.phase, d.broken, d.left, d.held = api.PhaseRunning, false, false, false
	go f.publish(vm)
	return nil
}

// Remove implements Creator.
func (f *Fake) Remove(ctx context.Context, vm string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if d.incoming != nil {
		close(d.incoming)
		d.incoming = nil
		d.turnAway()
	}
	delete(f.domains, vm)
	d.stir()
	go f.publish(vm)
	return nil
}

// Start implements Power.
func (f *Fake) Start(ctx context.Context, vm string) (api.Phase, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	if err != nil {
		return "", err
	}
	before := d.phase
	if before == api.PhaseStopped && f.Backing != nil {
		for _, k := range d.disks {
			if err := f.Backing.WriteLayer(k.Source, ""); problem.Is(err, problem.NotFound) {
				return before, DiskGone(vm, err)
			}
		}
	}
	return before, f.powerOn(vm, d)
}

// Stop implements Power.
func (f *Fake) Stop(ctx context.Context, vm string, force bool, timeout time.Duration, _ func(string)) (steps.PowerResult, error) {
	return f.end(ctx, vm, force, timeout, func(d *fakeDomain) { d.phase = api.PhaseStopped })
}

// Reboot implements Power.
func (f *Fake) Reboot(ctx context.Context, vm string, force bool, timeout time.Duration, _ func(string)) (steps.PowerResult, error) {
	if p, err := f.State(ctx, vm); err == nil && p == api.PhaseStopped {
		return steps.PowerResult{}, NotRunning(vm)
	}
	return f.end(ctx, vm, force, timeout, func(d *fakeDomain) {
		d.phase, d.boots, d.memory, d.as, d.still = api.PhaseRunning, d.boots+1, "", "", false
	})
}

// NotRunning is the problem of a VM that should be running and is not.
func NotRunning(vm string) *problem.Problem {
	return problem.New(problem.Conflict, "vm %s is not running", vm).Try("start it instead")
}

func (f *Fake) end(ctx context.Context, vm string, force bool, timeout time.Duration, do func(*fakeDomain)) (steps.PowerResult, error) {
	f.mu.Lock()
	d, err := f.find(ctx, vm)
	if err != nil {
		f.mu.Unlock()
		return steps.PowerResult{}, err
	}
	res := steps.PowerResult{Before: d.phase}
	wait := f.Deaf && !force && d.phase == api.PhaseRunning
	f.mu.Unlock()
	if wait {
		t := time.NewTimer(timeout)
		defer t.Stop()
		select {
		case <-t.C:
			res.Forced = true
		case <-ctx.Done():
			return res, problem.New(problem.Cancelled, "the request was cancelled")
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if d, err = f.find(ctx, vm); err != nil {
		return res, err
	}
	if res.Before != api.PhaseStopped {
		res.Forced = res.Forced || force
		do(d)
		if d.phase == api.PhaseStopped {
			d.stir()
		}
		go f.publish(vm)
	}
	return res, nil
}

// State implements Observer.
func (f *Fake) State(ctx context.Context, vm string) (api.Phase, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	if err != nil {
		return "", err
	}
	return d.phase, nil
}

// List implements Observer.
func (f *Fake) List(ctx context.Context) ([]steps.DomainFound, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.check(ctx); err != nil {
		return nil, err
	}
	out := []steps.DomainFound{}
	for id, d := range f.domains {
		out = append(out, steps.DomainFound{ID: id, Name: d.name, Phase: d.phase, Ours: d.ours})
	}
	slices.SortFunc(out, func(a, b steps.DomainFound) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Inventory implements Observer.
func (f *Fake) Inventory(ctx context.Context) (api.Inventory, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	inv := f.Inv
	if f.uri != "" {
		inv.Peer.Libvirt = f.uri
	}
	return inv, f.check(ctx)
}

// Events implements Observer.
func (f *Fake) Events(ctx context.Context) <-chan Event {
	ch := make(chan Event, eventsKept)
	f.mu.Lock()
	if f.subs == nil {
		f.subs = map[chan Event]bool{}
	}
	f.subs[ch] = true
	f.mu.Unlock()
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.subs, ch)
		close(ch)
	})
	return ch
}

// eventsKept is how many events wait for a slow reader; it looks at everything anyway, so more tell it nothing.
const eventsKept = 16

func (f *Fake) publish(vm string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ch := range f.subs {
		select {
		case ch <- Event{VM: vm}:
		default:
		}
	}
}
