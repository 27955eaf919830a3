package state

import (
	"context"
	"hash/fnv"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/placement"
	"github.com/nextstack/nextstack/workflows/steps"
)

// placeVM is optimistic: it decides on what it knows, and the commit fails if the chosen node's ledger has moved since.
func (s *State) placeVM(ctx context.Context, t steps.Token, in steps.VMOrder) (out steps.Placement, err error) {
	err = s.retry(ctx, func() error {
		vm, err := s.held(ctx, t, in.VMRef)
		if err != nil {
			return err
		}
		var decision *api.Decision
		if vm.Status.Agent == "" {
			if decision, err = s.claimNode(ctx, vm); err != nil {
				return err
			}
		}
		if out, err = s.placement(ctx, vm, in.Attach...); err != nil {
			return err
		}
		if out.Volumes, err = s.newVolumes(ctx, vm); err != nil {
			return err
		}
		out.Phase, out.Decision = api.PhaseCreating, decision
		out.ImageAt = s.imageAt(ctx, vm, out.Plan)
		return nil
	})
	return out, err
}

func (s *State) claimNode(ctx context.Context, vm *api.VM) (*api.Decision, error) {
	done, err := s.line(ctx, vm)
	if err != nil {
		return nil, err
	}
	defer done()
	c, err := s.choose(ctx, vm, s.wish)
	if err != nil {
		return nil, err
	}
	d := store.NewDraft(s.h)
	if err := c.claim(d, vm); err != nil {
		return nil, err
	}
	vm.Status.Agent, vm.Status.AgentName = c.decision.Node, c.decision.Name
	d.Update(vm)
	if err := s.volumesOn(ctx, d, vm, vm.Status.Agent); err != nil {
		return nil, err
	}
	_, err = d.Commit(ctx, s.kv)
	return &c.decision, err
}

// line lets VMs that are packed decide one after the other. All want the same node: they would only lose each other's races.
// Done must be called when the decision is written.
func (s *State) line(ctx context.Context, vm *api.VM) (done func(), err error) {
	if s.strategy(vm) != placement.Pack {
		return func() {}, nil
	}
	select {
	case s.packing <- struct{}{}:
		return func() { <-s.packing }, nil
	case <-ctx.Done():
		return nil, problem.New(problem.Unavailable, "vm %s cannot be placed now", vm.Name).Because("too many others are being packed").Try("wait a moment")
	}
}

// strategy says how a VM is placed: as it wishes, or as the server does by default.
func (s *State) strategy(vm *api.VM) placement.Strategy {
	switch {
	case vm.Spec.Placement != "":
		return placement.Strategy(vm.Spec.Placement)
	case s.packs:
		return placement.Pack
	default:
		return placement.Spread
	}
}

// choice is a decision and what it rests on.
type choice struct {
	decision api.Decision
	request  placement.Request
	ledger   int64 // revision of the chosen node's
	group    int64 // revision of the group's; counts for rules that look at more than one node
}

// choose decides where a VM goes; wish says what it needs. Without a node the error says why, and the decision tells of all
// nodes.
func (s *State) choose(ctx context.Context, vm *api.VM, wish func(context.Context, *api.VM) (placement.Request, error)) (*choice, error) {
	var c choice
	var err error
	if c.request, err = wish(ctx, vm); err != nil {
		return nil, err
	}
	// What must stay together is a rule about all nodes, which the ledger of one cannot keep. What must be kept apart is not:
	// whoever else wants to the same node touches the same ledger.
	if c.together() {
		if c.group, err = s.groupLedger(ctx, vm.Spec.Group); err != nil {
			return nil, err
		}
	}
	w, err := s.world(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.settled(w); err != nil {
		return nil, err
	}
	if c.decision, err = placement.Place(w.nodes, c.request); err != nil {
		return &c, worthWaiting(w.nodes, c.request, err)
	}
	_, c.ledger = w.node(c.decision.Node)
	return &c, nil
}

func (c *choice) together() bool {
	g := c.request.Group
	return g.ID != "" && !g.Soft && g.Policy == api.Affinity
}

// settled makes sure that the group of a VM is where it will be: while one that must stay together is on its way, nobody knows
// on which of its nodes it is going to be.
func (c *choice) settled(w *world) error {
	if !c.together() {
		return nil
	}
	var on []string
	for i := range w.nodes {
		n := &w.nodes[i]
		count := n.Groups[c.request.Group.ID]
		if n.ID == c.request.At {
			count--
		}
		if count > 0 && n.Phase != api.PhaseDown {
			on = append(on, n.Name)
		}
	}
	if len(on) < 2 {
		return nil
	}
	slices.Sort(on)
	return problem.New(problem.Unavailable, "vm %s cannot be placed now", c.request.VM).
		Because("its group must stay together, and is on its way from one node to another: it is on %s and on %s", on[0], on[1]).Try("wait until the move is over")
}

// claim drafts the promise of the chosen node, on the ledgers that the decision was made on.
func (c *choice) claim(d *store.Draft, vm *api.VM) error {
	value, err := admission.PromiseOf(vm).Encode()
	if err != nil {
		return err
	}
	d.Claim(store.NodeClaim(c.decision.Node, vm.ID), value)
	d.Touch(store.NodePrefix(c.decision.Node), c.ledger)
	if c.together() {
		d.Touch(store.GroupPrefix(vm.Spec.Group), c.group)
	}
	return nil
}

// groupLedger returns the revision of a group's ledger, once the view shows what was written with it.
func (s *State) groupLedger(ctx context.Context, group string) (int64, error) {
	e, err := s.kv.Get(ctx, store.LedgerKey(store.GroupPrefix(group)))
	if problem.Is(err, problem.NotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if s.view != nil && s.view.cache.Err() == nil {
		wait, cancel := context.WithTimeout(ctx, catchUp)
		defer cancel()
		if err := s.view.cache.WaitFor(wait, e.Revision); err != nil && s.view.cache.Err() == nil {
			return 0, problem.Wrap(err, problem.Unavailable, "what is known of the nodes is too old")
		}
	}
	return e.Revision, nil
}

// wish says what a VM needs of its first node.
func (s *State) wish(ctx context.Context, vm *api.VM) (placement.Request, error) {
	req := placement.Request{
		VM: vm.Name, Amount: admission.PromiseOf(vm).Amount, Pool: vm.Spec.Pool, Network: len(vm.Spec.NICs) > 0, Seed: seed(vm.ID),
		Arch: vm.Spec.Arch, CPUModel: vm.Spec.CPUModel, NodeID: vm.Spec.NodeID, NodeLabels: vm.Spec.NodeLabels, Strategy: s.strategy(vm),
	}
	image, err := s.imageOf(ctx, vm)
	if err != nil {
		return req, err
	}
	// A root disk is thin; what it needs at once is room for its image, should the pool not have it yet.
	req.Disk, req.Image = image.Status.Size, image.Status.SHA256
	if err = s.besides(ctx, vm, &req); err != nil || vm.Spec.Group == "" {
		return req, err
	}
	group, err := known[api.VMGroup](ctx, s, vm, vm.Project, vm.Spec.Group)
	if err != nil {
		return req, err
	}
	req.Group = placement.Group{ID: group.ID, Policy: group.Spec.Policy, Soft: group.Spec.Soft}
	return req, nil
}

// imageOf returns the image that the root disk of a VM is made on; nothing is in it if it is made on none any more.
func (s *State) imageOf(ctx context.Context, vm *api.VM) (*api.Image, error) {
	if vm.Spec.Image == "" {
		return &api.Image{}, nil
	}
	return known[api.Image](ctx, s, vm, vm.Project, vm.Spec.Image)
}

// besides asks for what the volumes of a VM besides its root disk need of its node: their pools and, when it is made and gets volumes that
// exist already on one node only, that one.
func (s *State) besides(ctx context.Context, vm *api.VM, req *placement.Request) error {
	disks, err := s.pieces(ctx, vm, besideRoot(vm))
	if err != nil {
		return err
	}
	req.Also = poolsFor(disks, func(piece) int64 { return 0 })
	for _, d := range disks {
		if vm.Status.Phase == api.PhaseCreating && !comesWith(d.volume) && d.local() {
			req.NodeID, req.Tie = d.volume.Status.Agent, d.volume.Name
		}
	}
	return nil
}

// comesWith reports whether a volume of a VM that is made is made with it. The others exist already.
func comesWith(v *api.Volume) bool { return v.Status.Phase == api.PhaseCreating }

// seed makes VMs that are placed at the same time prefer different ones of equally good nodes.
func seed(vm string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(vm))
	return h.Sum64() | 1 // 0 means no preference
}

// worthWaiting makes a refusal temporary if a node that is away for a moment would take the VM: one whose libvirt is being
// restarted, or that has not reported for a while. Of one that is down nobody knows whether it will be back.
func worthWaiting(nodes []placement.Node, request placement.Request, refusal error) error {
	back := slices.Clone(nodes)
	for i := range back {
		if p := back[i].Phase; p == api.PhaseUnavailable || p == api.PhaseSuspect {
			back[i].Ready = true
		}
	}
	d, err := placement.Place(back, request)
	if err != nil {
		return refusal
	}
	p := problem.From(refusal)
	for _, n := range nodes {
		if n.ID == d.Node {
			return problem.New(problem.Unavailable, "%s", p.What).Because("agent %s could, but is %s: %s", n.Name, n.Phase, n.Reason).Try("see gnext agent list")
		}
	}
	return refusal
}

// volumesOn writes into the VM's root volume on which node it is, and into those that are made with the VM. All others do not follow it:
// they are on no node, or the VM does not leave theirs.
func (s *State) volumesOn(ctx context.Context, d *store.Draft, vm *api.VM, agent string) error {
	for i, id := range vm.Status.Volumes {
		if i > 0 && vm.Status.Phase != api.PhaseCreating {
			break
		}
		v, err := store.Get[api.Volume](ctx, s.kv, s.h, vm.Project, id)
		if err != nil {
			return err
		}
		if i > 0 && !comesWith(v) {
			continue // it is where it is
		}
		if i > 0 {
			pool, err := known[api.Pool](ctx, s, vm, "", v.Spec.Pool)
			if err != nil {
				return err
			}
			if pool.Spec.Shared {
				continue // it is on no node
			}
		}
		v.Status.Agent = agent
		d.Update(v)
	}
	return nil
}

// newVolumes returns the volumes that are made with a VM, as they are made where it is.
func (s *State) newVolumes(ctx context.Context, vm *api.VM) (out []steps.VolumePlan, err error) {
	disks, err := s.pieces(ctx, vm, besideRoot(vm))
	if err != nil {
		return nil, err
	}
	for _, d := range disks {
		if !comesWith(d.volume) {
			continue
		}
		plan, err := s.volumePlan(ctx, d.volume, d.pool)
		if err != nil {
			return nil, err
		}
		plan.Agent = vm.Status.Agent
		out = append(out, plan)
	}
	return out, nil
}

// known returns a record that was as it is now when the VM was accepted: from the view if that has seen the VM, else from the
// store. It may be everybody's, and must not be changed.
func known[T any, P interface {
	*T
	api.Resource
}](ctx context.Context, s *State, vm *api.VM, project, id string) (*T, error) {
	if s.view != nil && vm.Revision > 0 && s.view.cache.Revision() >= vm.Revision {
		if r, err := store.GetCached[T, P](s.view.cache, s.h, project, id); err == nil {
			return r, nil
		}
	}
	return store.Get[T, P](ctx, s.kv, s.h, project, id)
}

// placement says what the VM's node and its network need to know; gets are the volumes that it is about to get.
func (s *State) placement(ctx context.Context, vm *api.VM, gets ...api.VMDisk) (steps.Placement, error) {
	out := steps.Placement{Phase: vm.Status.Phase, Plan: steps.VMPlan{
		VM: vm.ID, Name: vm.Name, Project: vm.Project, Agent: vm.Status.Agent, AgentName: vm.Status.AgentName,
		VCPUs: vm.Spec.VCPUs, Memory: vm.Spec.Memory, Hostname: vm.Spec.Hostname, CPUModel: vm.Spec.CPUModel, HA: vm.Spec.HA,
	}}
	chassis, err := s.chassis(ctx, vm, vm.Status.Agent)
	if err != nil {
		return out, err
	}
	for _, n := range vm.Spec.NICs {
		p, err := store.Get[api.Port](ctx, s.kv, s.h, vm.Project, n.Port)
		if err != nil {
			return out, err
		}
		out.Plan.NICs = append(out.Plan.NICs, steps.NICPlan{Port: p.ID, MAC: p.Spec.MAC})
		w := p.Wiring()
		if chassis != "" {
			w.Chassis = []string{chassis}
		}
		out.Ports = append(out.Ports, w)
	}
	image, err := s.imageOf(ctx, vm)
	if err != nil {
		return out, err
	}
	pool, err := known[api.Pool](ctx, s, vm, "", vm.Spec.Pool)
	if err != nil {
		return out, err
	}
	if len(vm.Status.Volumes) == 0 {
		return out, problem.New(problem.Internal, "vm %s has no root volume", vm.Name)
	}
	out.Plan.Disk = steps.DiskPlan{
		Volume: vm.Status.Volumes[0], Pool: pool.ID, PoolName: pool.Name, PoolPath: pool.Spec.Path, Size: vm.Spec.RootDisk,
		Image: image.ID, ImageSHA256: image.Status.SHA256, ImageSize: image.Status.Size, Shared: pool.Spec.Shared,
		Type: pool.Spec.Type, Source: pool.Spec.Source,
	}
	return out, s.disks(ctx, vm, &out.Plan, gets)
}

// chassis returns what a node is called in the network; empty: nobody knows.
func (s *State) chassis(ctx context.Context, vm *api.VM, agent string) (string, error) {
	a, err := known[api.Agent](ctx, s, vm, "", agent)
	if problem.Is(err, problem.NotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return a.Status.Inventory.OVNChassis, nil
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
		d := store.NewDraft(s.h)
		if err := s.giveBack(ctx, d, vm.Status.Agent, vm); err != nil {
			return err
		}
		vm.Status.Agent, vm.Status.AgentName = "", ""
		d.Update(vm)
		if err := s.volumesOn(ctx, d, vm, ""); err != nil {
			return err
		}
		_, err = d.Commit(ctx, s.kv)
		return err
	})
}

// giveBack drafts the end of what a node has promised to a VM.
func (s *State) giveBack(ctx context.Context, d *store.Draft, agent string, vm *api.VM) error {
	d.Release(store.NodeClaim(agent, vm.ID))
	return s.touchNode(ctx, d, agent)
}

// touchNode makes decisions that were made on what the node was, or had promised, fail.
func (s *State) touchNode(ctx context.Context, d *store.Draft, agent string) error {
	e, err := s.kv.Get(ctx, store.LedgerKey(store.NodePrefix(agent)))
	if err != nil && !problem.Is(err, problem.NotFound) {
		return err
	}
	d.Touch(store.NodePrefix(agent), e.Revision)
	return nil
}
