// Package volume has the steps on volumes that take both: what is stored, and the guest that may have it open.
package volume

import (
	"context"
	"time"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Pool is what is needed of the storage of a node.
type Pool interface {
	storage.Volumes
	storage.Snapshots
	storage.Flattener
	// Locate says how a hypervisor of this node opens the disks of a VM.
	Locate(plan steps.VMPlan) (compute.DomainFiles, error)
}

// Guests is what is needed of the hypervisor of a node.
type Guests interface {
	compute.Disks
	compute.Checkpoints
	compute.Creator
	compute.Power
	State(ctx context.Context, vm string) (api.Phase, error)
}

// Register registers the implementations of the steps in reg.
func Register(reg activities.Registry, h *activities.Host, guests Guests, pool Pool) {
	s := &service{guests: guests, pool: pool}
	s.registerCheckpoints(reg, h)
	activities.Implement(reg, h, steps.ResizeVolume, step(s.resize, "cannot resize volume %s", func(in steps.Resize) string { return in.Volume.Name }))
	activities.Implement(reg, h, steps.FlattenVolume, step(s.flatten, "cannot make volume %s independent of its image", func(in steps.Flatten) string { return in.Volume.Name }))
	activities.Implement(reg, h, steps.StopFlatten, func(ctx context.Context, _ steps.Token, in steps.Flatten) (steps.Flattened, error) {
		alone, err := s.stopFlatten(ctx, in)
		return steps.Flattened{Alone: alone}, problem.Wrap(err, problem.Internal, "cannot tell whether volume %s needs its image", in.Volume.Name)
	})
	activities.Implement(reg, h, steps.TakeSnapshot, func(ctx context.Context, _ steps.Token, in steps.SnapshotPlan) (steps.SnapshotTaken, error) {
		taken, err := s.take(ctx, in)
		return taken, problem.Wrap(err, problem.Internal, "cannot take a snapshot of volume %s", in.Volume.Name)
	})
	activities.Implement(reg, h, steps.UndoSnapshot, step(s.undoTake, "cannot undo the snapshot of volume %s", func(in steps.SnapshotPlan) string { return in.Volume.Name }))
	activities.Implement(reg, h, steps.DropSnapshot, step(s.drop, "cannot drop the snapshot of volume %s", func(in steps.SnapshotDrop) string { return in.Volume.Name }))
	activities.Implement(reg, h, steps.CheckRevert, step(s.pool.CheckRevert, "volume %s cannot go back", func(in steps.VolumeRevert) string { return in.Volume.Name }))
	activities.Implement(reg, h, steps.RevertVolume, step(s.revert, "cannot revert volume %s", func(in steps.VolumeRevert) string { return in.Volume.Name }))
	activities.Implement(reg, h, steps.CopyVolume, func(ctx context.Context, _ steps.Token, in steps.VolumeCopy) (steps.VolumeCopied, error) {
		copied, err := s.copy(ctx, in)
		return copied, problem.Wrap(err, problem.Internal, "cannot copy volume %s", in.From.Name)
	})
	activities.Implement(reg, h, steps.SwitchVolume, func(ctx context.Context, _ steps.Token, in steps.VolumeCopy) (steps.VolumeSwitched, error) {
		switched, err := s.goOn(ctx, in)
		return switched, problem.Wrap(err, problem.Internal, "cannot let the guest go on with the copy of volume %s", in.From.Name)
	})
	activities.Implement(reg, h, steps.MoveSeed, step(s.moveSeed, "cannot move the seed of vm %s", func(in steps.SeedMove) string { return in.From.Name }))
	activities.Implement(reg, h, steps.SettleVolumeCopy, func(ctx context.Context, _ steps.Token, in steps.VolumeCopy) (steps.VolumeSettled, error) {
		settled, err := s.settle(ctx, in)
		return settled, problem.Wrap(err, problem.Internal, "cannot tell where volume %s is", in.From.Name)
	})
	activities.Implement(reg, h, steps.UndoRevert, step(s.undoRevert, "cannot bring volume %s back", func(in steps.VolumeRevert) string { return in.Volume.Name }))
}

// step makes an implementation of a function without an answer.
func step[In any](do func(context.Context, In) error, what string, name func(In) string) func(context.Context, steps.Token, In) (steps.Nothing, error) {
	return func(ctx context.Context, _ steps.Token, in In) (steps.Nothing, error) {
		return steps.Nothing{}, problem.Wrap(do(ctx, in), problem.Internal, what, name(in))
	}
}

type service struct {
	guests Guests
	pool   Pool
}

// absent makes nothing of the problem that a VM has no domain, or that its domain has no such disk: then no guest has it open,
// and the domain is defined with what the plan says when it is started.
func absent(err error) error {
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// resize: a guest that runs has the volume open, so its hypervisor does it.
func (s *service) resize(ctx context.Context, in steps.Resize) error {
	if in.VM != nil {
		running, err := s.guests.ResizeDisk(ctx, in.VM.VM, in.Volume.Volume, in.Volume.Size)
		if absent(err) != nil || running {
			return err
		}
	}
	return s.pool.GrowVolume(ctx, in.Volume)
}

// pulled is the VM whose hypervisor may have the volume's file open; nil: the pool does it all by itself.
func (s *service) pulled(in steps.Flatten) *steps.VMPlan {
	if !s.files(in.Volume) || in.Volume.Shareable {
		return nil
	}
	return in.VM
}

// flatten: a file that a guest has open is filled by its hypervisor.
func (s *service) flatten(ctx context.Context, in steps.Flatten) error {
	tell := activities.Reporting(ctx)
	vm := s.pulled(in)
	if vm == nil {
		return s.pool.FlattenVolume(ctx, in.Volume, tell)
	}
	// First, because a chain of several layers would become one, and their snapshots nothing.
	if alone, err := s.pool.StandsAlone(ctx, in.Volume); alone || err != nil {
		return err
	}
	running, err := s.guests.PullDisk(ctx, vm.VM, in.Volume.Volume, tell)
	if absent(err) != nil {
		return err
	}
	if !running {
		return s.pool.FlattenVolume(ctx, in.Volume, tell)
	}
	alone, err := s.pool.StandsAlone(ctx, in.Volume)
	if err == nil && !alone {
		err = problem.New(problem.Unavailable, "volume %s still needs its image", in.Volume.Name).Because("the hypervisor of vm %s has said that it does not", vm.Name).Try("see the log of libvirt")
	}
	return err
}

func (s *service) stopFlatten(ctx context.Context, in steps.Flatten) (alone bool, err error) {
	if vm := s.pulled(in); vm != nil {
		if err := absent(s.guests.StopPull(ctx, vm.VM, in.Volume.Volume)); err != nil {
			return false, err
		}
	}
	return s.pool.StandsAlone(ctx, in.Volume)
}

func (s *service) files(p steps.VolumePlan) bool { return s.pool.Capabilities(p.Pool).Files }

func (s *service) take(ctx context.Context, in steps.SnapshotPlan) (steps.SnapshotTaken, error) {
	if !s.files(in.Volume) {
		return s.takeNamed(ctx, in)
	}
	up, err := s.up(ctx, in.VM)
	if err != nil {
		return steps.SnapshotTaken{}, err
	}
	if !up {
		if err := s.pool.AddSnapshot(ctx, in); err != nil || in.VM == nil {
			return steps.SnapshotTaken{}, err
		}
	}
	to, err := s.locate(in.Volume, in.Layer)
	if err != nil {
		return steps.SnapshotTaken{}, err
	}
	done, err := s.guests.SwitchDisk(ctx, in.VM.VM, in.Volume.Volume, compute.LayerSwitch{To: to, Freeze: in.Freeze, Fresh: func() error { return s.fresh(ctx, in) }})
	if err = absent(err); err == nil && up && !done.Running { // the guest has ended meanwhile
		err = s.pool.AddSnapshot(ctx, in)
	}
	return steps.SnapshotTaken{Frozen: done.Frozen, Pause: done.Pause}, err
}

// up reports whether the guest of a VM, which may be none, has its disks open.
func (s *service) up(ctx context.Context, vm *steps.VMPlan) (bool, error) {
	if vm == nil {
		return false, nil
	}
	phase, err := s.guests.State(ctx, vm.VM)
	return err == nil && phase != api.PhaseStopped, absent(err)
}

// fresh makes the layer of a snapshot anew.
func (s *service) fresh(ctx context.Context, in steps.SnapshotPlan) error {
	old := in.Volume
	old.Layer = in.Layer
	if err := s.pool.RemoveVolume(ctx, old); err != nil {
		return err
	}
	return s.pool.AddSnapshot(ctx, in)
}

// takeNamed is for pools that keep all of a volume at one moment by themselves. The guest goes on; what it writes meanwhile waits.
func (s *service) takeNamed(ctx context.Context, in steps.SnapshotPlan) (out steps.SnapshotTaken, err error) {
	var waited time.Duration
	add := func() (err error) {
		waited, err = storage.TimeSnapshot(ctx, s.pool, in)
		return err
	}
	if in.VM == nil {
		return out, add()
	}
	added := false
	done, err := s.guests.Freezing(ctx, in.VM.VM, in.Freeze, func() error { added = true; return add() })
	out = steps.SnapshotTaken{Frozen: done.Frozen, Pause: done.Pause}
	if !done.Frozen && waited > 0 { // one whose file systems are at rest waits for all of it
		out.Pause = min(out.Pause, waited)
	}
	if problem.Is(err, problem.NotFound) && !added { // no domain
		return steps.SnapshotTaken{}, add()
	}
	return out, err
}

// place has a VM that does not run be started with a layer of the volume. Running: it does run.
func (s *service) place(ctx context.Context, vm *steps.VMPlan, v steps.VolumePlan, layer string) (running bool, err error) {
	if vm == nil {
		return false, nil
	}
	to, err := s.locate(v, layer)
	if err != nil {
		return false, err
	}
	running, err = s.guests.PlaceDisk(ctx, vm.VM, v.Volume, to)
	return running, absent(err)
}

func (s *service) locate(v steps.VolumePlan, layer string) (compute.DiskSource, error) {
	v.Layer = layer
	return s.pool.LocateVolume(v)
}

// undoTake: what was written to the new layer is brought into the one that it was made on, which is written to again.
func (s *service) undoTake(ctx context.Context, in steps.SnapshotPlan) error {
	if !s.files(in.Volume) {
		return s.pool.UndoSnapshot(ctx, in)
	}
	written := in.Volume
	written.Layer = in.Layer
	return s.drop(ctx, steps.SnapshotDrop{Snapshot: in.Snapshot, Volume: written, VM: in.VM, Frozen: in.Volume.Layer, Child: in.Layer})
}

// drop: a layer that a guest has open is merged by its hypervisor; then, or if none has, the pool does the rest. Last, a domain
// that does not run learns what it is started with: until then its start fails, instead of writing to what was merged.
func (s *service) drop(ctx context.Context, in steps.SnapshotDrop) error {
	tell := activities.Reporting(ctx)
	if in.Child == "" || !s.files(in.Volume) {
		return s.pool.DropSnapshot(ctx, in, false, tell)
	}
	merged := false
	if in.VM != nil {
		top, err := s.locate(in.Volume, in.Child)
		if err != nil {
			return err
		}
		below, err := s.locate(in.Volume, in.Frozen)
		if err != nil {
			return err
		}
		retire := func() error {
			child := in.Volume
			child.Layer = in.Child
			return s.pool.RetireLayer(child)
		}
		merged, err = s.guests.MergeDisk(ctx, in.VM.VM, in.Volume.Volume, compute.Merge{Top: top, Below: below, Retired: retire}, tell)
		if absent(err) != nil {
			return err
		}
	}
	if err := s.pool.DropSnapshot(ctx, in, merged, tell); err != nil || in.Child != in.Volume.Layer {
		return err
	}
	_, err := s.place(ctx, in.VM, in.Volume, in.Frozen)
	return err
}

// revert: nobody may have the volume open, and the domain is started with the new layer.
func (s *service) revert(ctx context.Context, in steps.VolumeRevert) error {
	if err := s.pool.RevertVolume(ctx, in); err != nil || !s.files(in.Volume) {
		return err
	}
	running, err := s.place(ctx, in.VM, in.Volume, in.Layer)
	if running {
		return problem.New(problem.Conflict, "volume %s cannot go back to a snapshot", in.Volume.Name).Because("vm %s runs, and has it open", in.VM.Name).Try("stop the vm first")
	}
	return err
}

func (s *service) undoRevert(ctx context.Context, in steps.VolumeRevert) error {
	if s.files(in.Volume) {
		if _, err := s.place(ctx, in.VM, in.Volume, in.Volume.Layer); err != nil {
			return err
		}
	}
	return s.pool.UndoRevert(ctx, in)
}
