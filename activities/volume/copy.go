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

// copy: a guest that runs has the volume open, so its hypervisor does it. Else the pools do, and then the domain is started with
// the new one.
func (s *service) copy(ctx context.Context, in steps.VolumeCopy) (out steps.VolumeCopied, err error) {
	began := time.Now()
	tell := activities.Reporting(ctx)
	to, err := s.pool.LocateVolume(in.To)
	if err != nil {
		return out, err
	}
	if in.VM != nil {
		move := s.guests.MoveDisk
		if in.Hold {
			move = s.guests.MoveDiskStill
		}
		var done compute.Moved
		if done, err = move(ctx, in.VM.VM, in.From.Volume, to, in.Bandwidth, tell); absent(err) != nil {
			return out, err
		}
		switch {
		case err == nil && done.There && done.Pause > 0:
			out = steps.VolumeCopied{Live: true, Took: time.Since(began)}
			if !in.Hold {
				out.Pause = done.Pause
			}
			return out, nil
		case err == nil && done.There && (done.Running || !in.Hold):
			return out, nil // by an earlier attempt: what is in the old pool may be outdated
		}
		// A domain that is only started with the copy may name one of an earlier move, which somebody else has taken back.
	}
	pools, ok := s.pool.(storage.Copier)
	if !ok {
		return out, problem.New(problem.Unsupported, "this node cannot copy volumes from one pool to another").Because("its storage has pools of one type only").Try("choose another node: --node")
	}
	if err := pools.CopyVolume(ctx, in.From, in.To, in.Bandwidth, tell); err != nil {
		return out, err
	}
	if in.VM != nil {
		running, err := s.guests.PlaceDisk(ctx, in.VM.VM, in.From.Volume, to)
		if absent(err) != nil {
			return out, err
		}
		if running {
			return out, problem.New(problem.Unavailable, "vm %s was started while volume %s was copied", in.VM.Name, in.From.Name).
				Because("what it has written since is not in the copy").Try("nothing: the copy is made again, while the VM runs")
		}
	}
	return steps.VolumeCopied{Took: time.Since(began)}, nil
}

// goOn has a guest go on that copy has left still; nobody waits if there is no VM, or no domain.
func (s *service) goOn(ctx context.Context, in steps.VolumeCopy) (out steps.VolumeSwitched, err error) {
	if in.VM == nil {
		return out, nil
	}
	out.Pause, err = s.guests.LetGoOn(ctx, in.VM.VM)
	return out, absent(err)
}

// settle: without a VM that has been told of the new volume, the old one is the good one.
func (s *service) settle(ctx context.Context, in steps.VolumeCopy) (out steps.VolumeSettled, err error) {
	if in.VM == nil {
		return out, nil
	}
	to, err := s.pool.LocateVolume(in.To)
	if err != nil {
		return out, err
	}
	out.Moved, err = s.guests.SettleDisk(ctx, in.VM.VM, in.From.Volume, to)
	if err != nil || !out.Moved || !in.Hold {
		return out, absent(err)
	}
	// Nobody has written to the copy, so what does not run is better off with what it had: the copy that its domain names may be one of an
	// earlier move, which somebody else has taken back.
	from, err := s.pool.LocateVolume(in.From)
	if err != nil {
		return out, err
	}
	out.Moved, err = s.guests.PlaceDisk(ctx, in.VM.VM, in.From.Volume, from)
	return out, absent(err)
}

// moveSeed: a guest that runs has it open, and reads it at most.
func (s *service) moveSeed(ctx context.Context, in steps.SeedMove) error {
	files, err := s.pool.Locate(in.To)
	if err != nil {
		return err
	}
	done, err := s.guests.MoveDisk(ctx, in.From.VM, compute.SeedDisk, files.Seed, 0, activities.Reporting(ctx))
	if err != nil || done.There {
		return absent(err)
	}
	_, err = s.guests.PlaceDisk(ctx, in.From.VM, compute.SeedDisk, files.Seed)
	return absent(err)
}
