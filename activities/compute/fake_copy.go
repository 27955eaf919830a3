package compute

import (
	"context"
	"errors"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// MoveDisk implements Disks.
func (f *Fake) MoveDisk(ctx context.Context, vm, volume string, to DiskSource, _ int64, tell func(api.Progress)) (Moved, error) {
	return f.moveDisk(ctx, vm, volume, to, tell, f.busy)
}

// MoveDiskStill implements Disks.
func (f *Fake) MoveDiskStill(ctx context.Context, vm, volume string, to DiskSource, _ int64, tell func(api.Progress)) (Moved, error) {
	return f.moveDisk(ctx, vm, volume, to, tell, func(d *fakeDomain) error {
		if d.phase == api.PhaseRunning {
			d.phase, d.held = api.PhasePaused, true
		}
		return nil
	})
}

// moveDisk calls then when the guest has got the copy.
func (f *Fake) moveDisk(ctx context.Context, vm, volume string, to DiskSource, tell func(api.Progress), then func(*fakeDomain) error) (done Moved, err error) {
	err = f.onDisk(ctx, vm, volume, func(d *fakeDomain, disk *FakeDisk) error {
		done = Moved{Running: d.phase != api.PhaseStopped, There: disk.Source.Same(to)}
		if !done.Running || done.There {
			return nil
		}
		if f.Backing == nil {
			return errors.New("there is nothing behind the disks of this fake")
		}
		if err := disk.agreed(); err != nil {
			return err
		}
		if tell != nil {
			tell(api.Progress{Text: "copying the disk", Done: 1, Total: 1})
		}
		if ctx.Err() != nil {
			return problem.New(problem.Cancelled, "the copy was given up")
		}
		if err := f.Backing.CopyLayer(disk.Source, to); err != nil {
			return err
		}
		disk.Source = to
		done.There, done.Pause = true, fakePause
		return then(d)
	})
	return done, err
}

// SettleDisk implements Disks.
func (f *Fake) SettleDisk(ctx context.Context, vm, volume string, to DiskSource) (there bool, err error) {
	err = f.onDisk(ctx, vm, volume, func(_ *fakeDomain, disk *FakeDisk) error {
		there = disk.Source.Same(to)
		return nil
	})
	return there, err
}

// LetGoOn implements Disks.
func (f *Fake) LetGoOn(ctx context.Context, vm string) (pause time.Duration, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	if err != nil || !d.held || d.phase != api.PhasePaused {
		return 0, err
	}
	d.phase, d.held = api.PhaseRunning, false
	return fakePause, f.busy(d)
}

// Busy has guests write a text to a disk as soon as they go on with the copy of one, where writes says so of its volume. It is called with the
// lock held. Nil: none do.
func (f *Fake) Busy(text string, writes func(volume string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busyText, f.writes = text, writes
}

// busy has a guest write that goes on.
func (f *Fake) busy(d *fakeDomain) error {
	if f.writes == nil || f.Backing == nil || d.phase != api.PhaseRunning {
		return nil
	}
	for _, k := range d.disks {
		if !k.ReadOnly && f.writes(k.Volume) {
			if err := f.Backing.WriteLayer(k.Source, f.busyText); err != nil {
				return err
			}
		}
	}
	return nil
}
