// Package state is the control plane's hand on the store: it places VMs, keeps the journals of operations and settles them,
// and compares what is written with what is there.
package state

import (
	"context"
	"slices"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/fleet"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

// State implements the steps on the store.
type State struct {
	kv      store.KV
	settle  *admission.Admission
	network NetworkView
	images  ImageView
	view    *view         // nil: the store is read for each decision
	packs   bool          // VMs that do not say are packed
	packing chan struct{} // is held by the one that is being packed; see line
	h       auth.Handle
	clock   *fleet.Clock // that leases are judged by; nil: the process's
}

// NetworkView tells what the network has, for the audit.
type NetworkView interface {
	Rows(ctx context.Context) ([]Row, error)
}

// Row is one thing in the network that says whose it is.
type Row struct {
	Kind    string // vpc, subnet, port, security-group
	ID      string
	What    string   // for people
	Defects []string // what is wrong with it in itself
}

// ImageView tells which image files the server has, for the audit, and removes those that are nobody's.
type ImageView interface {
	Stored(ctx context.Context) (images []string, err error)
	Remove(ctx context.Context, image string) error
}

// New returns the steps over kv; network and images are asked by audits only.
func New(kv store.KV, a *admission.Admission, network NetworkView, images ImageView) *State {
	return &State{kv: kv, settle: a, network: network, images: images, h: auth.ControlPlane("steps"), packing: make(chan struct{}, 1)}
}

// Pack makes s pack VMs that do not say how they want to be placed, if by is api.Pack; else they are spread. It returns s.
func (s *State) Pack(by string) *State {
	s.packs = by == api.Pack
	return s
}

// Follow makes s decide on what a cache shows, which must be of all that is below store.Root, instead of reading the store for
// each decision. It returns s. The cache is run by whoever owns it; while it does not follow the store, the store is read.
func (s *State) Follow(cache *store.Cache) *State {
	s.view = &view{cache: cache}
	return s
}

// Register implements the steps in reg.
func (s *State) Register(reg activities.Registry, host *activities.Host) {
	activities.Implement(reg, host, steps.Noop, func(context.Context, steps.Token, steps.Nothing) (steps.Nothing, error) { return steps.Nothing{}, nil })
	activities.Implement(reg, host, steps.SaveJournal, s.saveJournal)
	activities.Implement(reg, host, steps.Settle, s.settleOperation)
	activities.Implement(reg, host, steps.PlaceVM, s.placeVM)
	activities.Implement(reg, host, steps.UnplaceVM, s.unplaceVM)
	activities.Implement(reg, host, steps.LoadVM, s.loadVM)
	activities.Implement(reg, host, steps.PlaceMove, s.placeMove)
	activities.Implement(reg, host, steps.UnplaceMove, s.unplaceMove)
	activities.Implement(reg, host, steps.SwitchVM, s.switchVM)
	activities.Implement(reg, host, steps.PlanDrain, s.planDrain)
	activities.Implement(reg, host, steps.PlanBalance, s.planBalance)
	activities.Implement(reg, host, steps.PlanRecovery, s.planRecovery)
	activities.Implement(reg, host, steps.OrderMove, s.orderMove)
	activities.Implement(reg, host, steps.AwaitOperations, s.awaitOperations)
	activities.Implement(reg, host, steps.LoadAgents, s.loadAgents)
	activities.Implement(reg, host, steps.CompareWorlds, s.compareWorlds)
	activities.Implement(reg, host, steps.RepairStore, s.repairStore)
	s.registerHosts(reg, host)
	s.registerVolumes(reg, host)
}

func (s *State) saveJournal(ctx context.Context, _ steps.Token, j steps.Journal) (steps.Nothing, error) {
	return steps.Nothing{}, s.settle.Record(ctx, s.h, outcome(j), j.Checkpoint)
}

func (s *State) settleOperation(ctx context.Context, _ steps.Token, o steps.Outcome) (steps.Nothing, error) {
	out := outcome(o.Journal)
	out.Result = o.Result
	return steps.Nothing{}, s.settle.Settle(ctx, s.h, out)
}

func outcome(j steps.Journal) admission.Outcome {
	return admission.Outcome{Operation: j.Operation, State: j.State, Steps: j.Steps, Error: j.Error, Number: j.Number, Cause: j.Cause}
}

// held returns the VM if the calling operation still holds it: a late attempt of an operation that has ended must not
// touch what belongs to others now.
func (s *State) held(ctx context.Context, t steps.Token, ref steps.VMRef) (*api.VM, error) {
	vm, err := store.Get[api.VM](ctx, s.kv, s.h, ref.Project, ref.VM)
	if err != nil {
		return nil, err
	}
	if vm.Operation != t.Operation {
		return nil, problem.New(problem.Stale, "operation %s no longer holds vm %s", t.Operation, vm.Name)
	}
	return vm, nil
}

func (s *State) loadVM(ctx context.Context, t steps.Token, ref steps.VMRef) (out steps.Placement, err error) {
	vm, err := s.held(ctx, t, ref)
	if err != nil {
		return out, err
	}
	if vm.Status.Agent == "" {
		return out, problem.New(problem.Internal, "vm %s is on no node", vm.Name).Try("run gnext audit")
	}
	if out, err = s.placement(ctx, vm); err != nil {
		return out, err
	}
	out.Phase, err = s.phaseBefore(ctx, t.Operation, vm)
	return out, err
}

// phaseBefore returns the phase that a VM had before an operation took hold of it.
func (s *State) phaseBefore(ctx context.Context, operation string, vm *api.VM) (api.Phase, error) {
	op, err := store.Get[api.Operation](ctx, s.kv, s.h, "", operation)
	if err != nil {
		return "", err
	}
	for _, l := range op.Plan.Locks {
		if l.Ref.ID == vm.ID {
			return l.Before, nil
		}
	}
	return vm.Status.Phase, nil
}

func (s *State) loadAgents(ctx context.Context, _ steps.Token, _ steps.Nothing) (out steps.AgentList, err error) {
	agents, err := store.List[api.Agent](ctx, s.kv, s.h, "")
	if err != nil {
		return out, err
	}
	pools, err := store.List[api.Pool](ctx, s.kv, s.h, "")
	if err != nil {
		return out, err
	}
	for _, a := range agents {
		able := a.Status.Phase == api.PhaseReady || a.Status.Phase == api.PhaseMaintenance
		ref := steps.AgentPools{AgentRef: steps.AgentRef{ID: a.ID, Name: a.Name, Ready: able}}
		for _, p := range pools {
			if slices.Contains(p.Spec.Agents, a.ID) {
				ref.Pools = append(ref.Pools, p.OnNode())
			}
		}
		out.Agents = append(out.Agents, ref)
	}
	return out, nil
}
