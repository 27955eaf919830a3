package compute

import (
	"context"
	"time"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// letGoWithin is how long a guest may take to let a disk go. It is less than the step may take, so that there is an answer.
const letGoWithin = time.Minute

// attach defines the domain again when it is gone, as start does.
func (s *service) attach(ctx context.Context, _ steps.Token, in steps.DiskChange) (steps.Nothing, error) {
	source, err := s.source(in.Disk)
	if err == nil {
		err = s.driver.AttachDisk(ctx, in.Plan.VM, in.Disk, source)
	}
	if problem.Is(err, problem.NotFound) && source.IsSet() {
		plan := in.Plan
		plan.Data = append(append([]steps.DataDisk{}, plan.Data...), in.Disk)
		var files DomainFiles
		if files, err = s.files.Locate(plan); err == nil {
			err = s.driver.Define(ctx, plan, files)
		}
	}
	return steps.Nothing{}, problem.Wrap(err, problem.Internal, "cannot attach volume %s to vm %s", in.Disk.Volume, in.Plan.Name)
}

func (s *service) source(d steps.DataDisk) (DiskSource, error) {
	return s.files.LocateVolume(steps.VolumePlan{Volume: d.Volume, Pool: d.Pool, Layer: d.Layer, Shareable: d.Shareable})
}

func (s *service) detach(ctx context.Context, _ steps.Token, in steps.DiskChange) (steps.Nothing, error) {
	ctx, cancel := context.WithTimeout(ctx, letGoWithin)
	defer cancel()
	err := s.driver.DetachDisk(ctx, in.Plan.VM, in.Disk.Volume)
	if problem.Is(err, problem.NotFound) {
		return steps.Nothing{}, nil // what is not defined has no disk
	}
	return steps.Nothing{}, problem.Wrap(err, problem.Internal, "cannot detach volume %s from vm %s", in.Disk.Volume, in.Plan.Name)
}

func (s *service) tune(ctx context.Context, _ steps.Token, in steps.DiskChange) (steps.Nothing, error) {
	err := s.driver.TuneDisk(ctx, in.Plan.VM, in.Disk.Volume, in.Disk.QoS)
	if problem.Is(err, problem.NotFound) {
		return steps.Nothing{}, nil // it is defined with the limits that it has then
	}
	return steps.Nothing{}, problem.Wrap(err, problem.Internal, "cannot limit volume %s of vm %s", in.Disk.Volume, in.Plan.Name)
}
