package compute

import (
	"context"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Locate says where the files of a VM are on this node.
type Locate func(steps.VMPlan) (DomainFiles, error)

// Register registers the implementations of the compute steps in reg.
func Register(reg activities.Registry, h *activities.Host, d Driver, locate Locate) {
	s := &service{driver: d, locate: locate}
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
}

type service struct {
	driver Driver
	locate Locate
}

func (s *service) create(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.Nothing, error) {
	files, err := s.locate(plan)
	if err == nil {
		err = s.driver.Create(ctx, plan, files)
	}
	return steps.Nothing{}, problem.Wrap(err, problem.Internal, "cannot create domain of vm %s", plan.Name)
}

func (s *service) remove(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.Nothing, error) {
	return steps.Nothing{}, problem.Wrap(s.driver.Remove(ctx, plan.VM), problem.Internal, "cannot remove domain of vm %s", plan.Name)
}

// start defines the domain again when it is gone: a node that was installed anew keeps its pool, but not its domains.
func (s *service) start(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.PowerResult, error) {
	before, err := s.driver.Start(ctx, plan.VM)
	if problem.Is(err, problem.NotFound) {
		var files DomainFiles
		before = api.PhaseStopped
		if files, err = s.locate(plan); err == nil {
			err = s.driver.Create(ctx, plan, files)
		}
	}
	return steps.PowerResult{Before: before}, problem.Wrap(err, problem.Internal, "cannot start vm %s", plan.Name)
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
