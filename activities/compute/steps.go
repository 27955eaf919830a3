package compute

import (
	"context"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Files says how this node's hypervisor opens disks.
type Files interface {
	// Locate says it of the disks of a VM.
	Locate(plan steps.VMPlan) (DomainFiles, error)
	// LocateVolume says it of one volume.
	LocateVolume(v steps.VolumePlan) (DiskSource, error)
}

// Register registers the implementations of the compute steps in reg.
func Register(reg activities.Registry, h *activities.Host, d Driver, files Files) {
	s := &service{driver: d, files: files}
	activities.Implement(reg, h, steps.CreateDomain, s.create)
	activities.Implement(reg, h, steps.RemoveDomain, s.remove)
	activities.Implement(reg, h, steps.StartDomain, s.start)
	activities.Implement(reg, h, steps.StopDomain, s.stop)
	activities.Implement(reg, h, steps.RebootDomain, s.reboot)
	activities.Implement(reg, h, steps.DescribeDomain, s.describe)
	activities.Implement(reg, h, steps.CheckIncoming, s.checkIncoming)
	activities.Implement(reg, h, steps.MigrateDomain, s.migrate)
	activities.Implement(reg, h, steps.SettleDomain, s.settle)
	activities.Implement(reg, h, steps.LookAtDomain, s.look)
	activities.Implement(reg, h, steps.DefineDomain, s.define)
	activities.Implement(reg, h, steps.MarkHA, s.markHA)
	activities.Implement(reg, h, steps.AttachDisk, s.attach)
	activities.Implement(reg, h, steps.DetachDisk, s.detach)
	activities.Implement(reg, h, steps.TuneDisk, s.tune)
}

type service struct {
	driver Driver
	files  Files
}

func (s *service) create(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.Nothing, error) {
	files, err := s.files.Locate(plan)
	if err == nil {
		err = s.driver.Create(ctx, plan, files)
	}
	return steps.Nothing{}, problem.Wrap(err, problem.Internal, "cannot create domain of vm %s", plan.Name)
}

func (s *service) remove(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.Nothing, error) {
	return steps.Nothing{}, problem.Wrap(s.driver.Remove(ctx, plan.VM), problem.Internal, "cannot remove domain of vm %s", plan.Name)
}

// start defines the domain again when it is gone: a node that was installed anew keeps its pool, but not its domains. So it does when a disk
// of the domain is: it may have come into another pool, or not, while its node was lost, which has not heard of it.
func (s *service) start(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.PowerResult, error) {
	before := api.PhaseStopped
	files, nowhere := s.files.Locate(plan)
	err := s.redirect(ctx, plan, files)
	if err == nil {
		before, err = s.driver.Start(ctx, plan.VM)
	}
	if problem.Is(err, problem.NotFound) {
		if before, err = api.PhaseStopped, nowhere; err == nil {
			err = s.driver.Create(ctx, plan, files)
		}
	}
	return steps.PowerResult{Before: before}, problem.Wrap(err, problem.Internal, "cannot start vm %s", plan.Name)
}

// redirect: how a Ceph pool is reached may have changed since the domain was defined.
func (s *service) redirect(ctx context.Context, plan steps.VMPlan, files DomainFiles) error {
	told := map[string]bool{}
	for _, f := range files.All() {
		if f.RBD == nil || told[f.RBD.Secret] {
			continue
		}
		told[f.RBD.Secret] = true
		if err := s.driver.Redirect(ctx, plan.VM, *f.RBD); err != nil {
			return err
		}
	}
	return nil
}

func (s *service) stop(ctx context.Context, _ steps.Token, in steps.StopVM) (steps.PowerResult, error) {
	res, err := s.driver.Stop(ctx, in.Plan.VM, in.Force, in.Timeout, activities.Telling(ctx))
	if problem.Is(err, problem.NotFound) { // what is not defined does not run
		return steps.PowerResult{Before: api.PhaseStopped}, nil
	}
	return res, problem.Wrap(err, problem.Internal, "cannot stop vm %s", in.Plan.Name)
}

func (s *service) reboot(ctx context.Context, _ steps.Token, in steps.StopVM) (steps.PowerResult, error) {
	res, err := s.driver.Reboot(ctx, in.Plan.VM, in.Force, in.Timeout, activities.Telling(ctx))
	return res, problem.Wrap(err, problem.Internal, "cannot reboot vm %s", in.Plan.Name)
}
