package state

import (
	"context"
	"fmt"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/placement"
	"github.com/nextstack/nextstack/workflows/steps"
)

// traffic is all that plans of many moves are made of, read once.
type traffic struct {
	world  *world
	agents map[string]*api.Agent
	pools  map[string]*api.Pool
	images map[string]*api.Image
	groups map[string]*api.VMGroup
	vols   map[string]*api.Volume
	vms    []*api.VM
}

// traffic reads the VMs that want says, all others are left out.
func (s *State) traffic(ctx context.Context, want func(*api.VM) bool) (*traffic, error) {
	t := &traffic{}
	var err error
	if t.world, err = s.world(ctx); err != nil {
		return nil, err
	}
	if t.agents, err = byID[api.Agent](ctx, s); err != nil {
		return nil, err
	}
	if t.pools, err = byID[api.Pool](ctx, s); err != nil {
		return nil, err
	}
	if t.images, err = byID[api.Image](ctx, s); err != nil {
		return nil, err
	}
	if t.groups, err = byID[api.VMGroup](ctx, s); err != nil {
		return nil, err
	}
	if t.vols, err = byID[api.Volume](ctx, s); err != nil {
		return nil, err
	}
	all, err := store.List[api.VM](ctx, s.kv, s.h, "*")
	for _, vm := range all {
		if want(vm) {
			t.vms = append(t.vms, vm)
		}
	}
	return t, err
}

func byID[T any, P interface {
	*T
	api.Resource
}](ctx context.Context, s *State) (map[string]*T, error) {
	list, err := store.List[T, P](ctx, s.kv, s.h, "*")
	out := make(map[string]*T, len(list))
	for _, r := range list {
		out[P(r).GetMeta().ID] = r
	}
	return out, err
}

// disks returns the disks of a VM that there are records of, the root disk first.
func (t *traffic) disks(vm *api.VM) (out []piece) {
	for _, id := range vm.Status.Volumes {
		if v := t.vols[id]; v != nil && t.pools[v.Spec.Pool] != nil {
			out = append(out, piece{v, t.pools[v.Spec.Pool]})
		}
	}
	return out
}

// local returns a disk of a VM that no other node reaches; nil: there is none.
func (t *traffic) local(vm *api.VM) *piece { return firstLocal(t.disks(vm)) }

// fixedBy says which disk keeps a VM where it is, whoever asks; empty: none does.
func (t *traffic) fixedBy(vm *api.VM) string {
	for _, d := range t.disks(vm) {
		if why, _ := admission.Anchor(d.volume, d.pool); why != "" {
			return why
		}
	}
	return ""
}

// also returns the pools of a VM's disks besides its root disk, with the room that those need that go along.
func (t *traffic) also(vm *api.VM) []placement.Pool {
	disks := t.disks(vm)
	return poolsFor(disks[min(1, len(disks)):], func(d piece) int64 {
		room := d.volume.Spec.Size
		if img := t.images[d.volume.Spec.Image]; img != nil {
			room += img.Status.Size
		}
		return room
	})
}

// passenger returns a VM as placement sees it; stays says why it cannot be moved, or is empty.
func (s *State) passenger(t *traffic, vm *api.VM, stays string) placement.VM {
	req := placement.Request{
		VM: vm.Name, Amount: admission.PromiseOf(vm).Amount, Pool: vm.Spec.Pool, Also: t.also(vm), Network: len(vm.Spec.NICs) > 0, Seed: seed(vm.ID), At: vm.Status.Agent,
		Arch: vm.Spec.Arch, CPUModel: vm.Spec.CPUModel, NodeID: vm.Spec.NodeID, NodeLabels: vm.Spec.NodeLabels, Strategy: s.strategy(vm),
	}
	if a := t.agents[vm.Status.Agent]; a != nil && req.Arch == "" {
		req.Arch = a.Status.Inventory.Arch
	}
	if p := t.pools[vm.Spec.Pool]; p == nil || !p.Spec.Shared {
		req.Disk = vm.Spec.RootDisk
		if img := t.images[vm.Spec.Image]; img != nil {
			req.Disk, req.Image = req.Disk+img.Status.Size, img.Status.SHA256
		}
	}
	if g := t.groups[vm.Spec.Group]; g != nil {
		req.Group = placement.Group{ID: g.ID, Policy: g.Spec.Policy, Soft: g.Spec.Soft}
	}
	return placement.VM{ID: vm.ID, Name: vm.Name, Node: vm.Status.Agent, Amount: req.Amount, Request: req, Copy: t.local(vm) != nil, Stays: stays}
}

// unmovable says why a VM cannot be moved by anybody now; empty: it can.
func unmovable(vm *api.VM) string {
	switch p := vm.Status.Phase; {
	case vm.Status.MovingTo != "":
		return fmt.Sprintf("operation %s is moving it already", vm.Operation)
	case p == api.PhaseDeleting:
		return fmt.Sprintf("operation %s is deleting it", vm.Operation)
	case p == api.PhasePaused:
		return "it is paused: resume or stop it first"
	case p == api.PhaseCreating && vm.Operation != "", p == api.PhaseRunning, p == api.PhaseStopped:
		return ""
	default:
		return becauseOf(fmt.Sprintf("it is %s", p), vm.Status.Reason)
	}
}

func becauseOf(what, reason string) string {
	if reason == "" {
		return what
	}
	return what + ": " + reason
}

func (s *State) planDrain(ctx context.Context, _ steps.Token, in steps.DrainPlan) (api.MovePlan, error) {
	return s.drainPlan(ctx, in)
}

// drainPlan says where the VMs of a node would go. One that an operation works on is waited for when its turn comes.
func (s *State) drainPlan(ctx context.Context, in steps.DrainPlan) (api.MovePlan, error) {
	t, err := s.traffic(ctx, func(vm *api.VM) bool { return vm.Status.Agent == in.Agent || vm.Status.MovingTo == in.Agent })
	if err != nil {
		return api.MovePlan{}, err
	}
	plan := api.MovePlan{Moves: []api.Move{}}
	var leaving []placement.VM
	vms := map[string]*api.VM{}
	for _, vm := range t.vms {
		if vm.Status.Agent != in.Agent {
			m := t.stays(vm, fmt.Sprintf("operation %s is moving it to this node: drain it again when that is over", vm.Operation))
			plan.Stays = append(plan.Stays, m)
			continue
		}
		why := unmovable(vm)
		if why == "" {
			why = t.fixedBy(vm)
		}
		if d := t.local(vm); why == "" && !in.CopyStorage && d != nil {
			why = admission.Local(d.volume, d.pool) + ": say --copy-storage to have disks copied"
		}
		vms[vm.ID] = vm
		leaving = append(leaving, s.passenger(t, vm, why))
	}
	for _, d := range placement.Drain(t.world.nodes, leaving, in.Agent) {
		vm := vms[d.VM.ID]
		if d.Problem != nil {
			plan.Stays = append(plan.Stays, t.stays(vm, whyOf(d.Problem)))
			continue
		}
		m := t.goes(vm, d.Decision.Node)
		if why := t.notLive(vm, d.Decision.Node); why != "" && m.Kind == api.MoveLive {
			if m.Kind = api.MoveCold; !in.Cold {
				plan.Stays = append(plan.Stays, t.stays(vm, why+": say --cold to have it stopped and started there"))
				continue
			}
			m.Reason = why
		}
		plan.Moves = append(plan.Moves, m)
	}
	return plan, nil
}

// whyOf says in one sentence why a VM has no place: what was wrong is that it has none, which those who read it know.
func whyOf(p *problem.Problem) string {
	if p.Why != "" {
		return p.Why
	}
	return p.What
}

// goes returns the move of a VM to a node.
func (t *traffic) goes(vm *api.VM, to string) api.Move {
	m := api.Move{VM: api.RefTo(vm), From: vm.Status.AgentName, Kind: api.MoveLive, Copy: t.local(vm) != nil}
	if vm.Status.Phase == api.PhaseStopped {
		m.Kind = api.MoveCold
	}
	if n, _ := t.world.node(to); n != nil {
		m.To = n.Name
	}
	return m
}

// stays returns the move that a VM does not make.
func (t *traffic) stays(vm *api.VM, why string) api.Move {
	return api.Move{VM: api.RefTo(vm), From: vm.Status.AgentName, Reason: why}
}

// notLive says why a guest cannot be moved to a node while it runs, as far as the nodes' own words tell; the rest is found out
// by the move's check.
func (t *traffic) notLive(vm *api.VM, to string) string {
	from, target := t.agents[vm.Status.Agent], t.agents[to]
	if from == nil || target == nil {
		return ""
	}
	a, b := &from.Status.Inventory, &target.Status.Inventory
	switch {
	case a.Accel != b.Accel && a.Accel != "" && b.Accel != "":
		return fmt.Sprintf("it runs with %s, and node %s has %s", a.Accel, target.Name, b.Accel)
	case a.Peer.Libvirt != "" && b.Peer.Libvirt == "":
		return fmt.Sprintf("other nodes do not reach the libvirt of node %s", target.Name)
	default:
		return ""
	}
}

func (s *State) planBalance(ctx context.Context, _ steps.Token, in api.HostBalance) (api.MovePlan, error) {
	return s.balancePlan(ctx, in)
}

// balancePlan says which moves would even out the nodes. What cannot be moved without being noticed stays where it is, and so
// do VMs that wish to be packed. That the server packs those that do not say is no reason: somebody asks for this balance.
func (s *State) balancePlan(ctx context.Context, in api.HostBalance) (api.MovePlan, error) {
	plan := api.MovePlan{Moves: []api.Move{}}
	t, err := s.traffic(ctx, func(vm *api.VM) bool {
		return vm.Status.Agent != "" && vm.Operation == "" && unmovable(vm) == "" && vm.Spec.Placement != api.Pack
	})
	if err != nil {
		return plan, err
	}
	vms := map[string]*api.VM{}
	var all []placement.VM
	for _, vm := range t.vms {
		vms[vm.ID] = vm
		all = append(all, s.passenger(t, vm, t.fixedBy(vm)))
	}
	for _, p := range placement.Balance(t.world.nodes, all, placement.BalanceOptions{Moves: in.Moves}) {
		m := t.goes(vms[p.VM.ID], p.To)
		m.Reason = p.Reason
		plan.Moves = append(plan.Moves, m)
	}
	return plan, nil
}

// rescue is a VM of a dead node, and the move that it makes or does not make.
type rescue struct {
	vm   *api.VM
	move api.Move
	goes bool
}

// rescues says which VMs of a dead node would be started elsewhere now, and why the others stay. There are none if nothing
// proves that the node is down. It writes nothing.
func (s *State) rescues(ctx context.Context, agent string) (out []rescue, down string, err error) {
	t, err := s.traffic(ctx, func(vm *api.VM) bool { return vm.Status.Agent == agent })
	if err != nil {
		return nil, "", err
	}
	node := t.agents[agent]
	if node == nil || node.Status.Phase != api.PhaseDown || node.Status.Proof == nil {
		return nil, "", nil // it is back, and runs what it runs
	}
	down = fmt.Sprintf("node %s is down", node.Name)
	vms := map[string]*api.VM{}
	var lost []placement.VM
	for _, vm := range t.vms {
		vms[vm.ID] = vm
		lost = append(lost, s.passenger(t, vm, t.unrecoverable(vm)))
	}
	for _, d := range placement.Drain(t.world.nodes, lost, agent) {
		r := rescue{vm: vms[d.VM.ID], goes: d.Problem == nil}
		if r.goes {
			r.move = t.goes(r.vm, d.Decision.Node)
			r.move.Kind, r.move.Copy, r.move.Reason = api.MoveRestart, false, down
		} else {
			r.move = t.stays(r.vm, whyOf(d.Problem))
		}
		out = append(out, r)
	}
	return out, down, nil
}

// planRecovery says which VMs of a dead node are started elsewhere, and writes of all of them that nobody knows whether they
// run, and of those that stay why they do. It may be asked again: what it has written, it would write again.
func (s *State) planRecovery(ctx context.Context, _ steps.Token, in steps.NodeRef) (api.MovePlan, error) {
	plan := api.MovePlan{Moves: []api.Move{}}
	all, down, err := s.rescues(ctx, in.Agent)
	if err != nil {
		return plan, err
	}
	for _, r := range all {
		why := down
		if !r.goes {
			why = down + ", and it is not restarted elsewhere: " + r.move.Reason
		}
		if err := s.lose(ctx, r.vm, in.Agent, why); err != nil {
			return plan, err
		}
		if r.goes {
			plan.Moves = append(plan.Moves, r.move)
		} else {
			plan.Stays = append(plan.Stays, r.move)
		}
	}
	return plan, nil
}

// unrecoverable says why a VM of a dead node is not started elsewhere, whatever room there is; empty: it may be.
func (t *traffic) unrecoverable(vm *api.VM) string {
	switch {
	case vm.Operation != "":
		return fmt.Sprintf("operation %s holds it", vm.Operation)
	case vm.Status.Phase == api.PhaseStopped:
		return "it was stopped"
	case !vm.Spec.HA:
		return "it is not marked ha"
	case t.local(vm) != nil:
		return fmt.Sprintf("its disk is in pool %s, which no other node reaches", t.local(vm).pool.Name)
	default:
		return ""
	}
}

// lose writes that nobody knows whether a VM runs. One that was stopped does not, and what an operation holds is that one's.
func (s *State) lose(ctx context.Context, vm *api.VM, agent, why string) error {
	return store.Retry(ctx, func() error {
		now, err := store.Get[api.VM](ctx, s.kv, s.h, vm.Project, vm.ID)
		if problem.Is(err, problem.NotFound) {
			return nil
		}
		if err != nil || now.Operation != "" || now.Status.Agent != agent || now.Status.Phase == api.PhaseStopped ||
			now.Status.Phase == api.PhaseUnknown && now.Status.Reason == why {
			return err
		}
		now.SetPhase(api.PhaseUnknown, why)
		d := store.NewDraft(s.h)
		d.Update(now)
		_, err = d.Commit(ctx, s.kv)
		return err
	})
}
