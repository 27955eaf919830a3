// Package state is the control plane's hand on the store: it places VMs, keeps the journals of operations and settles them,
// and compares what is written with what is there.
package state

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/placement"
	"github.com/nextstack/nextstack/workflows/steps"
)

// State implements the steps on the store.
type State struct {
	kv      store.KV
	settle  *admission.Admission
	network NetworkView
	images  ImageView
	h       auth.Handle
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
	return &State{kv: kv, settle: a, network: network, images: images, h: auth.ControlPlane("steps")}
}

// Register implements the steps in reg.
func (s *State) Register(reg activities.Registry, host *activities.Host) {
	activities.Implement(reg, host, steps.Noop, func(context.Context, steps.Token, steps.Nothing) (steps.Nothing, error) { return steps.Nothing{}, nil })
	activities.Implement(reg, host, steps.SaveJournal, s.saveJournal)
	activities.Implement(reg, host, steps.Settle, s.settleOperation)
	activities.Implement(reg, host, steps.PlaceVM, s.placeVM)
	activities.Implement(reg, host, steps.UnplaceVM, s.unplaceVM)
	activities.Implement(reg, host, steps.LoadVM, s.loadVM)
	activities.Implement(reg, host, steps.LoadAgents, s.loadAgents)
	activities.Implement(reg, host, steps.CompareWorlds, s.compareWorlds)
	activities.Implement(reg, host, steps.RepairStore, s.repairStore)
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

// placeVM is optimistic: it decides on what it read, and the commit fails if the chosen node's ledger has moved since.
func (s *State) placeVM(ctx context.Context, t steps.Token, ref steps.VMRef) (out steps.Placement, err error) {
	err = store.Retry(ctx, func() error {
		vm, err := s.held(ctx, t, ref)
		if err != nil {
			return err
		}
		if vm.Status.Agent == "" {
			if err := s.claimNode(ctx, vm); err != nil {
				return err
			}
		}
		out, err = s.placement(ctx, vm)
		out.Phase = api.PhaseCreating
		return err
	})
	return out, err
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

func (s *State) claimNode(ctx context.Context, vm *api.VM) error {
	nodes, ledgers, err := s.nodes(ctx)
	if err != nil {
		return err
	}
	image, err := store.Get[api.Image](ctx, s.kv, s.h, vm.Project, vm.Spec.Image)
	if err != nil {
		return err
	}
	want := api.Amount{VCPUs: vm.Spec.VCPUs, Memory: vm.Spec.Memory}
	// A root disk is thin; what it needs at once is room for its image, should the pool not have it yet.
	request := placement.Request{VM: vm.Name, Amount: want, Pool: vm.Spec.Pool, Disk: image.Status.Size}
	choice, err := placement.Place(nodes, request)
	if err != nil {
		return worthWaiting(nodes, request, err)
	}
	d := store.NewDraft(s.h)
	value, err := json.Marshal(want)
	if err != nil {
		return problem.Wrap(err, problem.Internal, "the claim cannot be encoded")
	}
	d.Claim(store.NodeClaim(choice.Node, vm.ID), string(value))
	d.Touch(store.NodePrefix(choice.Node), ledgers[choice.Node])
	vm.Status.Agent = choice.Node
	for _, n := range nodes {
		if n.ID == choice.Node {
			vm.Status.AgentName = n.Name
		}
	}
	d.Update(vm)
	if err := s.volumesOn(ctx, d, vm, choice.Node); err != nil {
		return err
	}
	_, err = d.Commit(ctx, s.kv)
	return err
}

// worthWaiting makes a refusal temporary if a node that is away would take the VM: it may be a matter of seconds, as when its
// libvirt is being restarted.
func worthWaiting(nodes []placement.Node, request placement.Request, refusal error) error {
	back := slices.Clone(nodes)
	for i := range back {
		back[i].Ready = true
	}
	choice, err := placement.Place(back, request)
	if err != nil {
		return refusal
	}
	p := problem.From(refusal)
	for _, n := range nodes {
		if n.ID == choice.Node {
			return problem.New(problem.Unavailable, "%s", p.What).Because("agent %s could, but is not ready: %s", n.Name, n.Reason).Try("see gnext agent list")
		}
	}
	return refusal
}

// volumesOn writes into the VM's volumes on which node they are.
func (s *State) volumesOn(ctx context.Context, d *store.Draft, vm *api.VM, agent string) error {
	for _, id := range vm.Status.Volumes {
		v, err := store.Get[api.Volume](ctx, s.kv, s.h, vm.Project, id)
		if err != nil {
			return err
		}
		v.Status.Agent = agent
		d.Update(v)
	}
	return nil
}

// nodes returns what placement decides on, and the revision of each node's ledger.
func (s *State) nodes(ctx context.Context) ([]placement.Node, map[string]int64, error) {
	agents, err := store.List[api.Agent](ctx, s.kv, s.h, "")
	if err != nil {
		return nil, nil, err
	}
	pools, err := store.List[api.Pool](ctx, s.kv, s.h, "")
	if err != nil {
		return nil, nil, err
	}
	ledgers := map[string]int64{}
	var nodes []placement.Node
	for _, a := range agents {
		ledger, err := store.Ledger(ctx, s.kv, store.NodePrefix(a.ID))
		if err != nil {
			return nil, nil, err
		}
		ledgers[a.ID] = ledger.Revision
		inv := a.Status.Inventory
		n := placement.Node{
			ID: a.ID, Name: a.Name, Ready: a.Status.Phase == api.PhaseReady, Reason: a.Status.Reason, Arch: inv.Arch,
			Cores: inv.Cores, Memory: inv.Memory, ReservedMemory: a.Spec.ReservedMemory, CPURatio: a.Spec.CPURatio,
			Pools: poolsOf(a, pools), Labels: a.Labels,
		}
		for _, c := range ledger.Claims {
			var amount api.Amount
			if err := json.Unmarshal(c.Value, &amount); err != nil {
				return nil, nil, problem.Wrap(err, problem.Internal, "the claim at %s cannot be read", c.Key)
			}
			n.Claimed.VCPUs += amount.VCPUs
			n.Claimed.Memory += amount.Memory
		}
		nodes = append(nodes, n)
	}
	return nodes, ledgers, nil
}

// poolsOf returns the free bytes of the pools that a node has and has reported on without an error. A pool that is too new
// for a report counts with the room that the pool itself tells of.
func poolsOf(a *api.Agent, pools []*api.Pool) map[string]int64 {
	out := map[string]int64{}
	for _, p := range pools {
		if p.Status.Phase == api.PhaseReady && slices.Contains(p.Spec.Agents, a.ID) {
			out[p.ID] = placement.UnknownSpace
		}
	}
	for _, u := range a.Status.Inventory.Pools {
		if _, ok := out[u.Pool]; ok && u.Error == "" {
			out[u.Pool] = u.Free
		} else {
			delete(out, u.Pool)
		}
	}
	return out
}

// placement says what the VM's node and its network need to know.
func (s *State) placement(ctx context.Context, vm *api.VM) (steps.Placement, error) {
	out := steps.Placement{Phase: vm.Status.Phase, Plan: steps.VMPlan{
		VM: vm.ID, Name: vm.Name, Project: vm.Project, Agent: vm.Status.Agent, AgentName: vm.Status.AgentName,
		VCPUs: vm.Spec.VCPUs, Memory: vm.Spec.Memory, Hostname: vm.Spec.Hostname,
	}}
	for _, n := range vm.Spec.NICs {
		p, err := store.Get[api.Port](ctx, s.kv, s.h, vm.Project, n.Port)
		if err != nil {
			return out, err
		}
		out.Plan.NICs = append(out.Plan.NICs, steps.NICPlan{Port: p.ID, MAC: p.Spec.MAC})
		out.Ports = append(out.Ports, p.Wiring())
	}
	image, err := store.Get[api.Image](ctx, s.kv, s.h, vm.Project, vm.Spec.Image)
	if err != nil {
		return out, err
	}
	pool, err := store.Get[api.Pool](ctx, s.kv, s.h, "", vm.Spec.Pool)
	if err != nil {
		return out, err
	}
	if len(vm.Status.Volumes) == 0 {
		return out, problem.New(problem.Internal, "vm %s has no root volume", vm.Name)
	}
	out.Plan.Disk = steps.DiskPlan{
		Volume: vm.Status.Volumes[0], Pool: pool.ID, PoolPath: pool.Spec.Path, Size: vm.Spec.RootDisk,
		Image: image.ID, ImageSHA256: image.Status.SHA256, ImageSize: image.Status.Size,
	}
	return out, nil
}

func (s *State) unplaceVM(ctx context.Context, t steps.Token, ref steps.VMRef) (steps.Nothing, error) {
	return steps.Nothing{}, store.Retry(ctx, func() error {
		vm, err := s.held(ctx, t, ref)
		if problem.Is(err, problem.NotFound) || problem.Is(err, problem.Stale) {
			return nil // it is gone, and its claim with it, or it is somebody else's
		}
		if err != nil || vm.Status.Agent == "" {
			return err
		}
		prefix := store.NodePrefix(vm.Status.Agent)
		ledger, err := store.Ledger(ctx, s.kv, prefix)
		if err != nil {
			return err
		}
		d := store.NewDraft(s.h)
		d.Release(store.NodeClaim(vm.Status.Agent, vm.ID))
		d.Touch(prefix, ledger.Revision)
		vm.Status.Agent, vm.Status.AgentName = "", ""
		d.Update(vm)
		if err := s.volumesOn(ctx, d, vm, ""); err != nil {
			return err
		}
		_, err = d.Commit(ctx, s.kv)
		return err
	})
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
	op, err := store.Get[api.Operation](ctx, s.kv, s.h, "", t.Operation)
	if err != nil {
		return out, err
	}
	for _, l := range op.Plan.Locks {
		if l.Ref.ID == vm.ID {
			out.Phase = l.Before
		}
	}
	return out, nil
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
		ref := steps.AgentPools{AgentRef: steps.AgentRef{ID: a.ID, Name: a.Name, Ready: a.Status.Phase == api.PhaseReady}}
		for _, p := range pools {
			if slices.Contains(p.Spec.Agents, a.ID) {
				ref.Pools = append(ref.Pools, steps.PoolOnNode{Pool: p.ID, Type: p.Spec.Type, Path: p.Spec.Path})
			}
		}
		out.Agents = append(out.Agents, ref)
	}
	return out, nil
}
