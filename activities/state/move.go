package state

import (
	"context"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/placement"
	"github.com/nextstack/nextstack/workflows/steps"
)

// journey is a move that may be made, as far as it can be told without asking the nodes.
type journey struct {
	vm     *api.VM
	phase  api.Phase // before the operation
	source *api.Agent
	pool   *api.Pool
	disks  []piece
	kind   string
	copied bool // some of its disks go with it
}

// journey says how a VM would be moved, or why it cannot be.
func (s *State) journey(ctx context.Context, vm *api.VM, phase api.Phase, in steps.MoveRequest) (*journey, error) {
	j := &journey{vm: vm, phase: phase}
	if vm.Status.Agent == "" {
		return nil, cannotMove(vm).Because("it is on no node").Try("see: gnext vm get %s", vm.Name)
	}
	var err error
	if j.source, err = store.Get[api.Agent](ctx, s.kv, s.h, "", vm.Status.Agent); err != nil {
		return nil, err
	}
	if j.pool, err = store.Get[api.Pool](ctx, s.kv, s.h, "", vm.Spec.Pool); err != nil {
		return nil, err
	}
	if j.disks, err = s.baggage(ctx, vm); err != nil {
		return nil, err
	}
	if in.Recover {
		j.kind = api.MoveRestart
		return j, j.recoverable()
	}
	switch {
	case phase == api.PhaseRunning && !in.Cold:
		j.kind = api.MoveLive
	case phase == api.PhaseRunning || phase == api.PhaseStopped:
		j.kind = api.MoveCold
	}
	j.copied = firstLocal(j.disks) != nil
	return j, j.movable(in.VMMigrate)
}

func cannotMove(vm *api.VM) *problem.Problem {
	return problem.New(problem.Conflict, "vm %s cannot be moved", vm.Name)
}

func (j *journey) movable(req api.VMMigrate) error {
	vm, no := j.vm, cannotMove(j.vm)
	if err := admission.Movable(vm, j.phase); err != nil { // as when it was accepted, but much may have changed since
		return err
	}
	switch {
	case req.To == vm.Status.Agent || req.To == vm.Status.AgentName && req.To != "":
		return no.Because("it is on %s already", vm.Status.AgentName).Try("name another node, or none: then the best one is chosen")
	case j.source.Status.Phase == api.PhaseDown:
		return no.Because("its node %s is down", j.source.Name).Try("if it is marked ha, the node's recovery restarts it elsewhere; see gnext host get %s", j.source.Name)
	case !j.source.Status.Alive():
		no.Kind = problem.Unavailable // it may be back in a moment
		return no.Because("its node %s is %s: %s", j.source.Name, j.source.Status.Phase, j.source.Status.Reason).Try("wait until the node is back")
	case j.copied && !req.CopyStorage:
		d := firstLocal(j.disks)
		return admission.WithoutDisks(vm, d.volume, d.pool)
	}
	return j.reachable()
}

// reachable checks that the pools are some of the VM's own node; that they are some of the target is placement's to see to.
func (j *journey) reachable() error {
	for i, d := range j.disks {
		if i > 0 && !d.local() || slices.Contains(d.pool.Spec.Agents, j.source.ID) {
			continue
		}
		return cannotMove(j.vm).Because("node %s does not have pool %s any more, which its disk is in", j.source.Name, d.pool.Name).
			Try("bring it back into the pool: gnext pool update %s --add-agent %s", d.pool.Name, j.source.Name)
	}
	return nil
}

// recoverable checks that a VM may be started elsewhere without asking its node: nothing but a proof allows that.
func (j *journey) recoverable() error {
	vm := j.vm
	no := problem.New(problem.Conflict, "vm %s cannot be restarted on another node", vm.Name)
	switch {
	case j.source.Status.Phase != api.PhaseDown || j.source.Status.Proof == nil:
		return no.Because("nothing proves that its node %s is off: it is %s", j.source.Name, j.source.Status.Phase).
			Try("make sure that it is off, and say so: gnext host recover %s --confirm-off", j.source.Name)
	case !vm.Spec.HA:
		return no.Because("it is not marked ha").Try("wait until node %s is back", j.source.Name)
	case firstLocal(j.disks) != nil:
		return no.Because("its disk is on node %s only: pool %s is not shared", j.source.Name, firstLocal(j.disks).pool.Name).
			Try("bring the node back, or restore the VM from a copy")
	case vm.Spec.NodeID != "":
		return no.Because("it is pinned to node %s", admission.PinnedTo(vm)).Try("take the pin away: gnext vm update %s --no-node", vm.Name)
	}
	return nil
}

// wish says what the VM needs of its next node.
func (j *journey) wish(s *State, to string) func(context.Context, *api.VM) (placement.Request, error) {
	return func(ctx context.Context, vm *api.VM) (placement.Request, error) {
		req, err := s.wish(ctx, vm)
		if err != nil {
			return req, err
		}
		req.At = vm.Status.Agent
		req.Exclude = map[string]string{vm.Status.Agent: "the VM is there already"}
		if to != "" {
			if req.NodeID, err = store.Resolve(ctx, s.kv, api.KindAgent, "", to); err != nil {
				return req, err
			}
		}
		if req.Arch == "" {
			req.Arch = j.source.Status.Inventory.Arch // what is on its disk is made for it
		}
		if j.pool.Spec.Shared {
			req.Disk, req.Image = 0, ""
		} else {
			req.Disk += vm.Spec.RootDisk
		}
		req.Also, err = s.roomFor(ctx, j.disks)
		return req, err
	}
}

// placeMove claims room at the target. The VM is then promised room on two nodes, and where it is stays written as it was.
func (s *State) placeMove(ctx context.Context, t steps.Token, in steps.MoveRequest) (out steps.Move, err error) {
	err = s.retry(ctx, func() error {
		vm, err := s.held(ctx, t, in.VMRef)
		if err != nil {
			return err
		}
		phase, err := s.phaseBefore(ctx, t.Operation, vm)
		if err != nil {
			return err
		}
		j, err := s.journey(ctx, vm, phase, in)
		if err != nil {
			return err
		}
		var decision *api.Decision
		if vm.Status.MovingTo == "" {
			if decision, err = s.claimTarget(ctx, j, in); err != nil {
				return err
			}
		}
		out, err = s.move(ctx, j, decision)
		return err
	})
	return out, err
}

func (s *State) claimTarget(ctx context.Context, j *journey, in steps.MoveRequest) (*api.Decision, error) {
	vm := j.vm
	done, err := s.line(ctx, vm)
	if err != nil {
		return nil, err
	}
	defer done()
	c, err := s.choose(ctx, vm, j.wish(s, in.To))
	if err != nil {
		return nil, err
	}
	d := store.NewDraft(s.h)
	if err := c.claim(d, vm); err != nil {
		return nil, err
	}
	vm.Status.MovingTo = c.decision.Node
	d.Update(vm)
	if in.Recover {
		d.Unchanged(j.source) // the proof holds
	}
	_, err = d.Commit(ctx, s.kv)
	return &c.decision, err
}

// move describes the move of a VM that has a target.
func (s *State) move(ctx context.Context, j *journey, decision *api.Decision) (steps.Move, error) {
	vm := j.vm
	out := steps.Move{Phase: j.phase, Kind: j.kind, Copy: j.copied}
	target, err := store.Get[api.Agent](ctx, s.kv, s.h, "", vm.Status.MovingTo)
	if err != nil {
		return out, err
	}
	if j.phase == api.PhaseUnknown {
		out.Phase = api.PhaseRunning // as it is going to be
	}
	here, err := s.placement(ctx, vm)
	if err != nil {
		return out, err
	}
	out.Source, out.Target = here.Plan, here.Plan
	out.Target.Agent, out.Target.AgentName = target.ID, target.Name
	for _, p := range here.Ports {
		out.Ports = append(out.Ports, p.Port)
	}
	out.From, out.To = j.source.Status.Inventory.OVNChassis, target.Status.Inventory.OVNChassis
	if j.copied {
		if out.Volumes, err = s.alone(ctx, j.disks); err != nil {
			return out, err
		}
	}
	out.Decision = api.Decision{Node: target.ID, Name: target.Name}
	if decision != nil {
		out.Decision = *decision
	}
	return out, nil
}

func (s *State) unplaceMove(ctx context.Context, t steps.Token, ref steps.VMRef) (steps.Nothing, error) {
	return steps.Nothing{}, store.Retry(ctx, func() error {
		vm, err := s.held(ctx, t, ref)
		if problem.Is(err, problem.NotFound) || problem.Is(err, problem.Stale) {
			return nil // its target's claim went with it, or with the operation that held it
		}
		if err != nil || vm.Status.MovingTo == "" {
			return err
		}
		d := store.NewDraft(s.h)
		if err := s.giveBack(ctx, d, vm.Status.MovingTo, vm); err != nil {
			return err
		}
		if err := s.touchGroup(ctx, d, vm); err != nil {
			return err
		}
		vm.Status.MovingTo = ""
		d.Update(vm)
		_, err = d.Commit(ctx, s.kv)
		return err
	})
}

// switchVM: until here the VM was at its source, from here on it is at its target.
func (s *State) switchVM(ctx context.Context, t steps.Token, in steps.MoveEnd) (steps.Nothing, error) {
	return steps.Nothing{}, store.Retry(ctx, func() error {
		vm, err := s.held(ctx, t, in.VMRef)
		if err != nil || vm.Status.Agent == in.Target && vm.Status.MovingTo == "" {
			return err
		}
		if vm.Status.MovingTo != in.Target {
			return problem.New(problem.Internal, "vm %s cannot be written down as moved", vm.Name).
				Because("it is not on its way to node %s, but to %q", in.Target, vm.Status.MovingTo).Try("run gnext audit")
		}
		target, err := store.Get[api.Agent](ctx, s.kv, s.h, "", in.Target)
		if err != nil {
			return err
		}
		d := store.NewDraft(s.h)
		if err := s.giveBack(ctx, d, vm.Status.Agent, vm); err != nil {
			return err
		}
		if err := s.touchNode(ctx, d, target.ID); err != nil {
			return err
		}
		if err := s.touchGroup(ctx, d, vm); err != nil {
			return err
		}
		vm.Status.Agent, vm.Status.AgentName, vm.Status.MovingTo = target.ID, target.Name, ""
		d.Update(vm)
		if err := s.follow(ctx, d, vm, target.ID); err != nil {
			return err
		}
		_, err = d.Commit(ctx, s.kv)
		return err
	})
}

// touchGroup makes decisions about the VM's group that were made on where it is now fail.
func (s *State) touchGroup(ctx context.Context, d *store.Draft, vm *api.VM) error {
	if vm.Spec.Group == "" {
		return nil
	}
	prefix := store.GroupPrefix(vm.Spec.Group)
	e, err := s.kv.Get(ctx, store.LedgerKey(prefix))
	if problem.Is(err, problem.NotFound) {
		return nil // nobody has decided on it yet, or its rule is about single nodes
	}
	if err == nil {
		d.Touch(prefix, e.Revision)
	}
	return err
}
