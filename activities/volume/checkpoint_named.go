package volume

import (
	"context"
	"time"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Pools whose snapshots have names keep a volume at a moment by themselves, and what a guest has open stays the same. So if any disk of a
// VM is in one, it is not its disks that say whether a checkpoint was taken, or whether a guest has gone back: it is the memory, which is
// sealed when all is kept that goes with it, and how the guest's going on was called. Disks in pools of files go along with that.

// asThen is what going back is called, which has layers of its own each time; asNow is what going on from where a guest was put aside is.
func asThen(in steps.CheckpointSwitch) string {
	for _, d := range in.Disks {
		return "then " + d.Layer
	}
	return ""
}

func asNow(in steps.GuestSave) string { return "now " + in.Memory }

// takeStill: disks in pools of files go over to their new layers with the last of the memory, and the guest stands still while the others get
// their snapshots. What an attempt has left that did not come to its end is of no use, since the guest has gone on: layers that were
// written to are brought back, and snapshots are taken anew.
func (s *service) takeStill(ctx context.Context, in steps.CheckpointPlan, mem storage.Memories, m steps.MemoryFile) (out steps.CheckpointTaken, err error) {
	m.Seal = true
	tell := activities.Reporting(ctx)
	out.Memory, err = mem.KeepMemory(ctx, m, tell)
	if err == nil {
		return out, s.guests.EndStill(ctx, in.VM.VM)
	}
	if !problem.Is(err, problem.NotFound) {
		return out, err
	}
	still := compute.StillCheckpoint{
		Fresh: func() error { return s.freshAll(ctx, in) },
		Keep:  func() error { return s.keepNamed(ctx, in) },
		Kept:  func() error { return mem.SealMemory(ctx, m) },
	}
	if still.Memory, err = mem.PlaceMemory(ctx, m, in.VM.Memory); err != nil {
		return out, err
	}
	if still.Disks, err = s.layers(in); err != nil {
		return out, err
	}
	for _, d := range in.Disks {
		if !s.files(d.Volume) {
			still.Volumes = append(still.Volumes, d.Volume.Volume)
		}
	}
	if len(still.Disks) > 0 {
		if err := s.layersBack(ctx, in); err != nil {
			return out, err
		}
	}
	if out.Pause, err = s.guests.TakeStill(ctx, in.VM.VM, still, tell); err != nil {
		return out, err
	}
	out.Memory, err = mem.KeepMemory(ctx, m, tell)
	return out, err
}

// layersBack undoes what an attempt that has not sealed the memory has done to disks in pools of files, if it has done anything.
func (s *service) layersBack(ctx context.Context, in steps.CheckpointPlan) error {
	if err := s.guests.EndStill(ctx, in.VM.VM); err != nil {
		return err
	}
	for _, d := range in.Disks {
		if !s.files(d.Volume) {
			continue
		}
		d.VM = &in.VM
		if err := s.undoTake(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// stillPatience is for how long a guest may stand still because its pool does not answer.
const stillPatience = 30 * time.Second

// keepNamed drops what an earlier attempt has left only now: whatever comes late of that is of a guest that stands still.
func (s *service) keepNamed(ctx context.Context, in steps.CheckpointPlan) error {
	ctx, cancel := context.WithTimeout(ctx, stillPatience)
	defer cancel()
	for _, d := range in.Disks {
		if s.files(d.Volume) {
			continue
		}
		if err := s.pool.UndoSnapshot(ctx, d); err != nil {
			return err
		}
		if err := s.pool.AddSnapshot(ctx, d); err != nil {
			return err
		}
	}
	return nil
}
