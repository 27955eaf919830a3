package compute

import (
	"context"

	"go.temporal.io/sdk/activity"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

func (s *service) describe(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.Leaving, error) {
	l, err := s.driver.Describe(ctx, plan.VM)
	return l, problem.Wrap(err, problem.Internal, "cannot look at vm %s", plan.Name)
}

func (s *service) checkIncoming(ctx context.Context, _ steps.Token, in steps.IncomingRequest) (steps.Incoming, error) {
	files, err := s.files.Locate(in.Plan)
	if err != nil {
		return steps.Incoming{}, problem.Wrap(err, problem.Internal, "%s cannot take vm %s", in.Plan.AgentName, in.Plan.Name)
	}
	out, err := s.driver.CheckIncoming(ctx, in, files)
	return out, problem.Wrap(err, problem.Internal, "%s cannot take vm %s", in.Plan.AgentName, in.Plan.Name)
}

// migrate leaves the move to itself when the worker stops: the agent that comes next joins it, or ends it.
func (s *service) migrate(ctx context.Context, _ steps.Token, in steps.MoveDomain) (steps.Moved, error) {
	moving, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	stopping := activity.GetWorkerStopChannel(ctx)
	go func() {
		select {
		case <-stopping:
			leave(ErrLeave)
		case <-moving.Done():
		}
	}()
	moved, err := s.driver.Migrate(moving, in, activities.Reporting(ctx))
	return moved, problem.Wrap(err, problem.Internal, "cannot move vm %s", in.Plan.Name)
}

func (s *service) settle(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.DomainState, error) {
	state, err := s.driver.Settle(ctx, plan.VM)
	return state, problem.Wrap(err, problem.Internal, "cannot find out where vm %s is", plan.Name)
}

func (s *service) look(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.DomainState, error) {
	state, err := s.driver.Look(ctx, plan.VM)
	return state, problem.Wrap(err, problem.Internal, "cannot look at vm %s", plan.Name)
}

func (s *service) define(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.Nothing, error) {
	files, err := s.files.Locate(plan)
	if err == nil {
		err = s.driver.Define(ctx, plan, files)
	}
	return steps.Nothing{}, problem.Wrap(err, problem.Internal, "cannot define domain of vm %s", plan.Name)
}

func (s *service) markHA(ctx context.Context, _ steps.Token, in steps.HAMark) (steps.Nothing, error) {
	return steps.Nothing{}, problem.Wrap(s.driver.MarkHA(ctx, in.Plan.VM, in.HA), problem.Internal, "cannot mark domain of vm %s", in.Plan.Name)
}
