package admission

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// MigrateVolume accepts bringing a volume into another pool, while a VM has it. It is whole by itself then: what it was made of is
// not needed by it any more.
func (a *Admission) MigrateVolume(ctx context.Context, h auth.Handle, o Options, ref string, req api.VolumeMigrate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpVolumeMigrate, updateRequest[api.VolumeMigrate]{targetRequest{ref}, req}, a.migrateVolume(ctx, h, o, ref, req))
}

// PreviewMigrateVolume tells whether MigrateVolume would accept the request now, without accepting it. It returns what the acceptance
// decided.
func (a *Admission) PreviewMigrateVolume(ctx context.Context, h auth.Handle, o Options, ref string, req api.VolumeMigrate) (move api.VolumeMove, err error) {
	if err := req.Validate(); err != nil {
		return move, err
	}
	build := a.migrateVolume(ctx, h, o, ref, req)
	err = a.rehearse(ctx, h, o, api.OpVolumeMigrate, func(c *acceptance) error {
		if err := build(c); err != nil {
			return err
		}
		return problem.Wrap(json.Unmarshal(c.op.Plan.Input, &move), problem.Internal, "the plan of an operation cannot be read")
	})
	return move, err
}

func (a *Admission) migrateVolume(ctx context.Context, h auth.Handle, o Options, ref string, req api.VolumeMigrate) func(*acceptance) error {
	return func(c *acceptance) error {
		v, err := store.Find[api.Volume](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		to, err := store.Find[api.Pool](ctx, a.kv, h, "", req.Pool)
		if err != nil {
			return err
		}
		no := problem.New(problem.Conflict, "volume %s cannot be moved to pool %s", v.Name, to.Name)
		from, snaps, err := a.tree(c, v)
		if err != nil {
			return err
		}
		switch {
		case v.Operation == "" && from.ID == to.ID:
			return no.Because("it is there already").Try("name another pool: gnext pool list")
		case len(snaps) > 0:
			return no.Because("it has %d snapshots, which cannot be copied", len(snaps)).Try("delete them first: gnext snap list --volume %s", v.Name)
		}
		me := api.RefTo(v)
		if err := firstOf(c.target(v), ready(v), c.keeps(v)); err != nil {
			return err
		}
		vm, err := a.onlyVM(c, v, no)
		if err != nil {
			return err
		}
		if vm != nil {
			if err := movesUnder(v, vm, to, no); err != nil {
				return err
			}
		}
		if err := c.needs(me, to); err != nil {
			return err
		}
		agent, err := a.carrier(c, v, vm, from, to, req.Node, no)
		if err != nil {
			return err
		}
		move := api.VolumeMove{From: from.OnNode(), To: to.OnNode(), Agent: agentRef(agent), Bandwidth: req.Bandwidth}
		after := changed(v)
		after.Spec.Pool, after.Spec.Image, after.Status.Layer, after.Status.Agent = to.ID, "", "", ""
		if to.Spec.Files() { // called as the operation: an audit knows whose it is, and no file of an earlier stay has that name
			move.Layer = c.op.ID
			after.Status.Layer = move.Layer
		}
		if !to.Spec.Shared || v.Spec.Root {
			after.Status.Agent = agent.ID
		}
		c.releases(store.UseClaim(api.RefTo(from), me))
		if v.Spec.Image != "" {
			c.releases(imageClaim(v))
		}
		if v.Spec.Root { // its seed goes along
			vmAfter := *vm
			vmAfter.Spec.Pool, vmAfter.Spec.Image = to.ID, ""
			if err := c.becomes(&vmAfter); err != nil {
				return err
			}
		}
		return firstOf(c.becomes(after), c.input(move))
	}
}

// movesUnder checks that a VM can have its volume in another pool.
func movesUnder(v *api.Volume, vm *api.VM, to *api.Pool, no *problem.Problem) error {
	switch {
	case !to.Spec.Shared && vm.Spec.HA:
		return no.Because("vm %s is to be restarted elsewhere when its node is dead, and the pool is not shared: no other node reaches it", vm.Name).
			Try("use a shared pool, or turn that off: gnext vm update %s --no-ha", vm.Name)
	case v.Spec.Shareable && vm.Status.Phase != api.PhaseStopped:
		return no.Because("vm %s runs, and has it as a disk that others may write to: a hypervisor does not copy those", vm.Name).
			Try("stop the VM first (gnext vm poweroff %s), or detach the volume: gnext vol detach %s", vm.Name, v.Name)
	}
	return nil
}

// carrier finds the agent that makes the copy: it has both pools. If the new pool is not shared, the volume is there afterwards.
func (a *Admission) carrier(c *acceptance, v *api.Volume, vm *api.VM, from, to *api.Pool, node string, no *problem.Problem) (*api.Agent, error) {
	must, whose := "", ""
	switch {
	case vm != nil:
		must, whose = vm.Status.Agent, "node "+vm.Status.AgentName+" of vm "+vm.Name
	case !from.Spec.Shared:
		must, whose = v.Status.Agent, "the node that it is on"
	}
	agents, err := a.poolAgents(c, to)
	if err != nil {
		return nil, err
	}
	agents = slices.DeleteFunc(agents, func(ag *api.Agent) bool { return !to.Takes(ag.ID) || !from.Takes(ag.ID) || must != "" && ag.ID != must })
	if len(agents) == 0 && must != "" {
		return nil, no.Because("%s does not have both pools", whose).Try("bring it into the pool (gnext pool update %s --add-agent NODE); see: gnext pool get %s", to.Name, to.Name)
	}
	if len(agents) == 0 {
		return nil, no.Because("no node has both that pool and %s, and one has to make the copy", from.Name).Try("bring a node into both: gnext pool update %s --add-agent NODE", to.Name)
	}
	if node != "" {
		wanted, err := store.Find[api.Agent](c.ctx, c.kv, c.h, "", node)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(agents, func(ag *api.Agent) bool { return ag.ID == wanted.ID })
		if i < 0 {
			return nil, no.Because("node %s cannot keep it: either it does not have both pools, or it is not where the volume is", wanted.Name).Try("leave the node out")
		}
		agents = agents[i : i+1]
	}
	slices.SortStableFunc(agents, func(x, y *api.Agent) int {
		return cmp.Or(readiness(x)-readiness(y), cmp.Compare(freeIn(y, to.ID), freeIn(x, to.ID)))
	})
	// Whoever takes the node out of a pool writes its ledger, too.
	revision, err := store.LedgerRevision(c.ctx, c.kv, store.NodePrefix(agents[0].ID))
	if err != nil {
		return nil, err
	}
	c.Touch(store.NodePrefix(agents[0].ID), revision)
	return agents[0], nil
}

// freeIn returns how much space in a pool an agent has told of, in bytes.
func freeIn(ag *api.Agent, pool string) int64 {
	for _, u := range ag.Status.Inventory.Pools {
		if u.Pool == pool {
			return u.Free
		}
	}
	return 0
}
