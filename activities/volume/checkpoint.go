package volume

import (
	"context"
	"slices"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// registerCheckpoints registers the implementations of the steps on checkpoints.
func (s *service) registerCheckpoints(reg activities.Registry, h *activities.Host) {
	activities.Implement(reg, h, steps.TakeCheckpoint, func(ctx context.Context, _ steps.Token, in steps.CheckpointPlan) (steps.CheckpointTaken, error) {
		taken, err := s.takeCheckpoint(ctx, in)
		return taken, problem.Wrap(err, problem.Internal, "cannot take a checkpoint of vm %s", in.VM.Name)
	})
	activities.Implement(reg, h, steps.UndoCheckpoint, step(s.undoCheckpoint, "cannot undo the checkpoint of vm %s", func(in steps.CheckpointPlan) string { return in.VM.Name }))
	activities.Implement(reg, h, steps.SaveGuest, step(s.save, "cannot put vm %s aside", func(in steps.GuestSave) string { return in.VM.Name }))
	activities.Implement(reg, h, steps.UndoSave, step(s.undoSave, "cannot have vm %s go on", func(in steps.GuestSave) string { return in.VM.Name }))
	activities.Implement(reg, h, steps.SwitchCheckpoint, step(s.switchTo, "cannot have vm %s go back to its checkpoint", func(in steps.CheckpointSwitch) string { return in.VM.Name }))
	activities.Implement(reg, h, steps.UndoSwitch, step(s.undoSwitch, "cannot have vm %s be as before", func(in steps.CheckpointSwitch) string { return in.VM.Name }))
	activities.Implement(reg, h, steps.RemoveMemory, step(s.removeMemory, "cannot remove memory %s", func(in steps.MemoryFile) string { return in.Memory }))
}

// memory is a file with the memory of a guest, which is in the pool of its root disk.
func memory(id string, vm steps.VMPlan) steps.MemoryFile {
	return steps.MemoryFile{Memory: id, Pool: vm.Disk.OnNode()}
}

// memories returns who keeps the memory of a guest.
func (s *service) memories(m steps.MemoryFile) (storage.Memories, error) {
	return storage.MemoriesOf(s.pool, m.Pool.Type)
}

// takeCheckpoint: the hypervisor asks for the layers first, as for snapshots; then the hypervisor takes them all at one moment with the memory.
func (s *service) takeCheckpoint(ctx context.Context, in steps.CheckpointPlan) (out steps.CheckpointTaken, err error) {
	m := memory(in.Checkpoint, in.VM)
	mem, err := s.memories(m)
	if err != nil {
		return out, err
	}
	for _, d := range in.Disks {
		if !s.pool.Capabilities(d.Volume.Pool).Checkpoint {
			return out, problem.New(problem.Unsupported, "volume %s cannot be in a checkpoint", d.Volume.Name).Because("its pool is of type %s", d.Volume.Pool.Type)
		}
	}
	if !s.layered(in.VM) {
		return s.takeStill(ctx, in, mem, m)
	}
	c := compute.Checkpoint{}
	if c.Memory, err = mem.PlaceMemory(ctx, m, in.VM.Memory); err != nil {
		return out, err
	}
	if c.Disks, err = s.layers(in); err != nil {
		return out, err
	}
	c.Fresh = func() error { return s.freshAll(ctx, in) }
	if out.Pause, err = s.guests.TakeCheckpoint(ctx, in.VM.VM, c, activities.Reporting(ctx)); err != nil {
		return out, err
	}
	out.Memory, err = mem.KeepMemory(ctx, m, nil)
	return out, err
}

// layered reports whether all disks of a VM are in pools of files. Then their layers say what has become of a checkpoint.
func (s *service) layered(vm steps.VMPlan) bool {
	return s.pool.Capabilities(vm.Disk.OnNode()).Files && !slices.ContainsFunc(vm.Data, func(d steps.DataDisk) bool { return !s.pool.Capabilities(d.Pool).Files })
}

// layers returns what those disks of a VM that have layers are written to after a checkpoint.
func (s *service) layers(in steps.CheckpointPlan) (out []compute.SwitchedDisk, err error) {
	for _, d := range in.Disks {
		if !s.files(d.Volume) {
			continue
		}
		to, err := s.locate(d.Volume, d.Layer)
		if err != nil {
			return nil, err
		}
		out = append(out, compute.SwitchedDisk{Volume: d.Volume.Volume, To: to})
	}
	return out, nil
}

// freshAll makes those layers anew.
func (s *service) freshAll(ctx context.Context, in steps.CheckpointPlan) error {
	for _, d := range in.Disks {
		if !s.files(d.Volume) {
			continue
		}
		if err := s.fresh(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// undoCheckpoint: the guest, which may be on the new layers, goes on, and they are merged back.
func (s *service) undoCheckpoint(ctx context.Context, in steps.CheckpointPlan) error {
	disks, err := s.layers(in)
	if err != nil {
		return err
	}
	if s.layered(in.VM) {
		err = s.guests.EndCheckpoint(ctx, in.VM.VM, disks)
	} else {
		err = s.guests.EndStill(ctx, in.VM.VM)
	}
	if err != nil {
		return err
	}
	for _, d := range in.Disks {
		d.VM = &in.VM
		if err := s.undoTake(ctx, d); err != nil {
			return err
		}
	}
	return s.removeMemory(ctx, memory(in.Checkpoint, in.VM))
}

// aside is where the memory of a guest is that is put aside.
func aside(in steps.GuestSave) steps.MemoryFile {
	m := memory(in.Memory, in.VM)
	m.Aside = true
	return m
}

func (s *service) save(ctx context.Context, in steps.GuestSave) error {
	m := aside(in)
	mem, err := s.memories(m)
	if err != nil {
		return err
	}
	path, err := mem.PlaceMemory(ctx, m, in.VM.Memory)
	if err != nil {
		return err
	}
	if err := absent(s.guests.SaveGuest(ctx, in.VM.VM, path, activities.Reporting(ctx))); err != nil {
		return err
	}
	if _, err = mem.KeepMemory(ctx, m, nil); problem.Is(err, problem.NotFound) {
		return nil // it did not run
	}
	return err
}

// undoSave: a memory counts for a guest that does not run, and until it has gone on from it: then the file goes, before the guest
// does anything that would make it wrong.
func (s *service) undoSave(ctx context.Context, in steps.GuestSave) error {
	m := aside(in)
	mem, err := s.memories(m)
	if err != nil {
		return err
	}
	path, err := mem.LocateMemory(m)
	if err != nil {
		return err
	}
	if err := s.guests.EndCheckpoint(ctx, in.VM.VM, nil); err != nil {
		return err
	}
	phase, err := s.guests.State(ctx, in.VM.VM)
	if absent(err) != nil {
		return err
	}
	whole := false
	if phase != api.PhaseRunning {
		if whole, err = s.guests.MemoryWhole(ctx, path); err != nil {
			return err
		}
	}
	forget := func() error { return mem.RemoveMemory(ctx, m) }
	switch {
	case whole:
		files, err := s.pool.Locate(in.VM)
		if err != nil {
			return err
		}
		r := compute.Restore{Plan: in.VM, Files: files, Memory: path, Used: forget}
		if !s.layered(in.VM) {
			r.As = asNow(in)
		}
		return s.guests.RestoreGuest(ctx, r, activities.Reporting(ctx))
	case phase == api.PhaseRunning:
		return forget()
	}
	// It was broken off, or the guest has ended by itself.
	_, err = s.guests.Start(ctx, in.VM.VM)
	if problem.Is(err, problem.NotFound) {
		files, lerr := s.pool.Locate(in.VM)
		if lerr != nil {
			return lerr
		}
		err = s.guests.Create(ctx, in.VM, files)
	}
	if err != nil {
		return err
	}
	return forget()
}

// switchTo: should the guest have gone on, and ended, before anybody heard of it, its disks are not those of the memory any more.
// So they are made anew each time.
func (s *service) switchTo(ctx context.Context, in steps.CheckpointSwitch) error {
	m, after := memory(in.Checkpoint, in.VM), in.After()
	mem, err := s.memories(m)
	if err != nil {
		return err
	}
	files, err := s.pool.Locate(after)
	if err != nil {
		return err
	}
	tell, r := activities.Reporting(ctx), compute.Restore{Plan: after, Files: files}
	if !s.layered(in.VM) {
		r.As = asThen(in)
	}
	r.Fresh = func() error {
		whole, err := s.guests.MemoryWhole(ctx, r.Memory)
		if err == nil && !whole {
			err = problem.New(problem.NotFound, "the memory of the checkpoint is not there").Because("there is no whole file %s", r.Memory).Try("run gnext audit")
		}
		if err != nil {
			return err
		}
		for _, d := range in.Disks {
			if err := s.pool.UndoRevert(ctx, d); err != nil {
				return err
			}
			if err := s.pool.RevertVolume(ctx, d); err != nil {
				return err
			}
		}
		return nil
	}
	return mem.LendMemory(ctx, m, tell, func(path string) error {
		r.Memory = path
		return s.guests.RestoreGuest(ctx, r, tell)
	})
}

func (s *service) undoSwitch(ctx context.Context, in steps.CheckpointSwitch) error {
	if err := s.guests.EndCheckpoint(ctx, in.VM.VM, nil); err != nil {
		return err
	}
	after := in.After()
	files, err := s.pool.Locate(after)
	if err != nil {
		return err
	}
	// Not one that has gone on from now already: this may be done once more after that.
	if s.layered(in.VM) {
		err = s.guests.DropGuest(ctx, in.VM.VM, compute.Restore{Plan: after, Files: files}.Disks())
	} else {
		err = s.guests.DropRestored(ctx, in.VM.VM, asThen(in))
	}
	if err != nil {
		return err
	}
	for _, d := range in.Disks {
		d.VM = &in.VM
		if err := s.undoRevert(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

func (s *service) removeMemory(ctx context.Context, in steps.MemoryFile) error {
	mem, err := s.memories(in)
	if err != nil {
		return err
	}
	return mem.RemoveMemory(ctx, in)
}
