package state

import (
	"context"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/placement"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Planner tells what requests would do. It decides as the steps do, and writes nothing. What it says is true of the moment: the
// nodes may be others when the request is sent in earnest.
//
// A request that would be refused, or that could not be carried out now, is a plan with an Error. An error of the methods
// themselves is for requests that make no sense, and for a store that cannot be asked.
type Planner struct{ s *State }

// Planner returns who plans with the same eyes as the steps of s.
func (s *State) Planner() *Planner { return &Planner{s} }

// planned completes a plan with the reason why it would fail.
func planned(out *api.DryRun, err error) (*api.DryRun, error) {
	if err == nil {
		return out, nil
	}
	switch p := problem.From(err); p.Kind {
	case problem.NotFound, problem.Conflict, problem.Locked, problem.InUse, problem.Precondition, problem.Quota, problem.NoCapacity, problem.Unsupported:
		out.Error = p
		return out, nil
	case problem.Unavailable:
		if out.Decision != nil || out.Plan != nil { // a node is away, not the store
			out.Error = p
			return out, nil
		}
	}
	return nil, err
}

func dryRun(d saga.Definition) *api.DryRun { return &api.DryRun{Kind: d.Name(), Steps: d.Plan()} }

// whole makes the decision tell of all nodes: what a plan says is kept nowhere, and need not be short.
func whole(wish func(context.Context, *api.VM) (placement.Request, error)) func(context.Context, *api.VM) (placement.Request, error) {
	return func(ctx context.Context, vm *api.VM) (placement.Request, error) {
		req, err := wish(ctx, vm)
		req.Whole = true
		return req, err
	}
}

// PlanVMCreate tells which node a new VM would go to, and why the others are refused.
func (p *Planner) PlanVMCreate(ctx context.Context, h auth.Handle, o admission.Options, req api.VMCreate) (*api.DryRun, error) {
	out := dryRun(workflows.VMCreate)
	vm, err := p.s.settle.Preview(ctx, h, o, req)
	if err != nil {
		return planned(out, err)
	}
	vm.Revision = 0 // it is in no store, and nor are the volumes that would be made with it
	vm.Status.Volumes = slices.Delete(vm.Status.Volumes, 1, len(vm.Status.Volumes)-len(req.Attach))
	c, err := p.s.choose(ctx, vm, whole(func(ctx context.Context, vm *api.VM) (placement.Request, error) {
		r, err := p.s.wish(ctx, vm)
		for _, v := range req.Volumes {
			if v.Pool == "" || err != nil {
				continue
			}
			var pool *api.Pool
			if pool, err = store.Find[api.Pool](ctx, p.s.kv, p.s.h, "", v.Pool); err == nil {
				r.Also = append(r.Also, placement.Pool{ID: pool.ID, Name: pool.Name})
			}
		}
		return r, err
	}))
	if c == nil {
		return planned(out, err)
	}
	out.Decision = &c.decision
	for i := range out.Steps {
		if out.Steps[i].Where == "node" && c.decision.Name != "" {
			out.Steps[i].Where = c.decision.Name
		}
	}
	return planned(out, err)
}

// PlanMigrate tells how and where to a VM would be moved.
func (p *Planner) PlanMigrate(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VMMigrate) (*api.DryRun, error) {
	out := dryRun(workflows.VMMigrate)
	vm, req, err := p.s.settle.PreviewMigrate(ctx, h, o, ref, req)
	if err != nil {
		return planned(out, err)
	}
	j, err := p.s.journey(ctx, vm, vm.Status.Phase, steps.MoveRequest{VMRef: steps.VMRef{Project: vm.Project, VM: vm.ID}, VMMigrate: req})
	if err != nil {
		return planned(out, err)
	}
	move := api.Move{VM: api.RefTo(vm), From: vm.Status.AgentName, Kind: j.kind, Copy: j.copied}
	c, err := p.s.choose(ctx, vm, whole(j.wish(p.s, req.To)))
	if c != nil {
		out.Decision, move.To = &c.decision, c.decision.Name
		out.Plan = &api.MovePlan{Moves: []api.Move{move}}
		if err != nil {
			move.Reason = whyOf(problem.From(err))
			out.Plan = &api.MovePlan{Moves: []api.Move{}, Stays: []api.Move{move}}
		}
	}
	return planned(out, err)
}

// PlanDrain tells where the VMs of a node would go, and which would stay.
func (p *Planner) PlanDrain(ctx context.Context, h auth.Handle, _ admission.Options, ref string, req api.HostDrain) (*api.DryRun, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	out := dryRun(workflows.HostDrain)
	agent, err := store.Find[api.Agent](ctx, p.s.kv, h, "", ref)
	if err != nil {
		return planned(out, err)
	}
	plan, err := p.s.drainPlan(ctx, steps.DrainPlan{Agent: agent.ID, HostDrain: req})
	if err != nil {
		return nil, err
	}
	out.Plan = &plan
	return planned(out, drainable(agent))
}

// drainable tells whether a drain of the node would be accepted now.
func drainable(agent *api.Agent) error {
	switch {
	case agent.Operation != "":
		return problem.New(problem.Locked, "host %s is being worked on", agent.Name).Because("operation %s holds it", agent.Operation).
			Try("wait for it (`gnext op show %s`) or cancel it", agent.Operation)
	case !agent.Status.Alive():
		return problem.New(problem.Conflict, "host %s cannot be drained", agent.Name).Because("it is %s: nothing can be moved away from it", agent.Status.Phase).
			Try("its HA VMs are restarted elsewhere by its recovery; see: gnext host get %s", agent.Name)
	default:
		return nil
	}
}

// PlanBalance tells which moves would even out the nodes.
func (p *Planner) PlanBalance(ctx context.Context, h auth.Handle, _ admission.Options, req api.HostBalance) (*api.DryRun, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	if err := h.Check(auth.Read, api.KindAgent, ""); err != nil {
		return nil, err
	}
	out := dryRun(workflows.HostBalance)
	plan, err := p.s.balancePlan(ctx, req)
	if err != nil {
		return nil, err
	}
	out.Plan = &plan
	return out, nil
}

// Recoverable returns the VMs, by their IDs, that a recovery of a node would start elsewhere now: none unless the node is proven
// to be down.
func (p *Planner) Recoverable(ctx context.Context, agent string) ([]string, error) {
	all, _, err := p.s.rescues(ctx, agent)
	var out []string
	for _, r := range all {
		if r.goes {
			out = append(out, r.vm.ID)
		}
	}
	return out, err
}
