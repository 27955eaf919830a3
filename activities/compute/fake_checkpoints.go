package compute

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Remember does what a guest does that writes to its memory.
func (f *Fake) Remember(vm, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.domains[vm]; d != nil {
		d.memory = text
	}
}

// Memory returns what a guest has in its memory; nothing: it does not run, or was just started.
func (f *Fake) Memory(vm string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.domains[vm]; d != nil && d.phase != api.PhaseStopped {
		return d.memory
	}
	return ""
}

// onDisks says how many of its disks a domain has on layers.
func (d *fakeDomain) onDisks(disks []SwitchedDisk) (on int) {
	for _, k := range disks {
		if disk := d.disk(k.Volume); disk != nil && disk.Source.Same(k.To) {
			on++
		}
	}
	return on
}

var errNoBacking = errors.New("there is nothing behind the disks of this fake")

// TakeCheckpoint implements Checkpoints.
func (f *Fake) TakeCheckpoint(ctx context.Context, vm string, c Checkpoint, tell func(api.Progress)) (time.Duration, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	if err != nil {
		return 0, err
	}
	if d.phase == api.PhaseStopped {
		return 0, NotRunning(vm)
	}
	if err := f.allBack(d, c.Disks); err != nil {
		return 0, err
	}
	switch on := d.onDisks(c.Disks); {
	case on == len(c.Disks):
		return 0, nil
	case on > 0:
		return 0, HalfSwitched(vm)
	case f.Backing == nil:
		return 0, errNoBacking
	}
	if tell != nil {
		tell(api.Progress{Text: "writing the memory of the guest", Done: 1, Total: 1})
	}
	if err := f.Backing.WriteMemory(c.Memory, d.memory); err != nil {
		return 0, err
	}
	if c.Fresh != nil {
		if err := c.Fresh(); err != nil {
			return 0, err
		}
	}
	for _, k := range c.Disks {
		if d.disk(k.Volume) == nil {
			return 0, NoSuchDisk(vm, k.Volume)
		}
	}
	var torn error
	for _, k := range c.Disks {
		torn = errors.Join(torn, f.over(k, d.disk(k.Volume)))
	}
	return fakePause, torn
}

// TakeStill implements Checkpoints.
func (f *Fake) TakeStill(ctx context.Context, vm string, s StillCheckpoint, tell func(api.Progress)) (time.Duration, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	switch {
	case err != nil:
		return 0, err
	case d.phase == api.PhaseStopped:
		return 0, NotRunning(vm)
	case f.Backing == nil:
		return 0, errNoBacking
	}
	d.wake()
	if err := d.allIn(vm, s); err != nil {
		return 0, err
	}
	if err := f.layersFor(d, vm, s); err != nil {
		return 0, err
	}
	if tell != nil {
		tell(api.Progress{Text: "writing the memory of the guest", Done: 1, Total: 1})
	}
	if err := f.Backing.WriteMemory(s.Memory, d.memory); err != nil {
		return 0, err
	}
	d.phase, d.still = api.PhasePaused, true
	for _, k := range s.Disks {
		err = errors.Join(err, f.over(k, d.disk(k.Volume)))
	}
	for _, do := range []func() error{s.Keep, s.Kept} {
		if err == nil && (!d.still || d.phase != api.PhasePaused) {
			err = WokenMeanwhile(vm)
		}
		if err == nil {
			f.mu.Unlock()
			err = do()
			f.mu.Lock()
		}
	}
	if ctx.Err() == nil { // else it stays so until somebody comes
		d.wake()
	}
	return fakePause, err
}

// allIn checks that a checkpoint has all of a guest's disks.
func (d *fakeDomain) allIn(vm string, s StillCheckpoint) error {
	in := slices.Clone(s.Volumes)
	for _, k := range s.Disks {
		in = append(in, k.Volume)
	}
	for _, v := range in {
		if d.disk(v) == nil {
			return NoSuchDisk(vm, v)
		}
	}
	for _, disk := range d.disks {
		if !disk.ReadOnly && !slices.Contains(in, disk.Volume) {
			return problem.New(problem.Conflict, "disk %s of the domain would not be in the checkpoint", disk.Device)
		}
	}
	return nil
}

// layersFor makes the layers that disks of a guest are to be written to.
func (f *Fake) layersFor(d *fakeDomain, vm string, s StillCheckpoint) error {
	if len(s.Disks) == 0 {
		return nil
	}
	for i := range d.disks {
		if err := d.disks[i].agreed(); err != nil {
			return err
		}
	}
	if d.onDisks(s.Disks) > 0 {
		return StillOn(vm)
	}
	if s.Fresh != nil {
		return s.Fresh()
	}
	return nil
}

// wake has a guest go on that was left still.
func (d *fakeDomain) wake() {
	if d.still && d.phase == api.PhasePaused {
		d.phase = api.PhaseRunning
	}
	d.still = false
}

// EndStill implements Checkpoints.
func (f *Fake) EndStill(ctx context.Context, vm string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	if err == nil {
		d.wake()
	}
	return err
}

// EndCheckpoint implements Checkpoints.
func (f *Fake) EndCheckpoint(ctx context.Context, vm string, _ []SwitchedDisk) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.find(ctx, vm)
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// SaveGuest implements Checkpoints.
func (f *Fake) SaveGuest(ctx context.Context, vm, memory string, _ func(api.Progress)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	switch {
	case err != nil || d.phase == api.PhaseStopped:
		return err
	case f.Backing == nil:
		return errNoBacking
	}
	d.wake()
	if err := f.Backing.WriteMemory(memory, d.memory); err != nil {
		return err
	}
	d.phase = api.PhaseStopped
	d.stir()
	go f.publish(vm)
	return nil
}

// DropGuest implements Checkpoints.
func (f *Fake) DropGuest(ctx context.Context, vm string, disks []SwitchedDisk) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	if err != nil || d.phase == api.PhaseStopped || d.onDisks(disks) == 0 {
		return err
	}
	d.phase = api.PhaseStopped
	d.stir()
	go f.publish(vm)
	return nil
}

// DropRestored implements Checkpoints.
func (f *Fake) DropRestored(ctx context.Context, vm, as string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	if err != nil || d.phase == api.PhaseStopped || d.as != as {
		return err
	}
	d.phase = api.PhaseStopped
	d.stir()
	go f.publish(vm)
	return nil
}

// MemoryWhole implements Checkpoints.
func (f *Fake) MemoryWhole(_ context.Context, memory string) (bool, error) {
	if f.Backing == nil {
		return false, errNoBacking
	}
	_, there, err := f.Backing.ReadMemory(memory)
	return there, err
}

// RestoreGuest implements Checkpoints.
func (f *Fake) RestoreGuest(ctx context.Context, r Restore, _ func(api.Progress)) error {
	vm := r.Plan.VM
	f.mu.Lock()
	d, err := f.find(ctx, vm)
	f.mu.Unlock()
	switch {
	case err != nil && !problem.Is(err, problem.NotFound):
		return err
	case f.Backing == nil:
		return errNoBacking
	case d != nil && d.phase == api.PhaseRunning && d.onDisks(r.Disks()) == len(r.Disks()) && (r.As == "" || r.As == d.as):
		return nil
	case d != nil && d.phase == api.PhaseRunning:
		return RunsElsewise(r.Plan.Name)
	}
	if r.Fresh != nil {
		if err := r.Fresh(); err != nil {
			return err
		}
	}
	text, there, err := f.Backing.ReadMemory(r.Memory)
	if err != nil || !there {
		return errors.Join(err, problem.New(problem.NotFound, "there is no memory %s", r.Memory))
	}
	f.mu.Lock()
	if d != nil {
		d.phase = api.PhaseStopped
	}
	if d, err = f.define(ctx, r.Plan, r.Files); err == nil {
		d.phase, d.memory, d.as, d.still, d.broken, d.left = api.PhasePaused, text, r.As, false, false, false
	}
	f.mu.Unlock()
	if err == nil && r.Used != nil {
		err = r.Used()
	}
	if err != nil {
		return err
	}
	_, err = f.Start(ctx, vm)
	return err
}
