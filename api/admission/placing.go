package admission

import (
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// placing resolves what a new VM asks of its node, and makes it a member of its group.
func (a *Admission) placing(c *acceptance, vm *api.VM, req api.Placing) (api.Placing, error) {
	out := req
	if req.NodeID != "" {
		agent, err := store.Find[api.Agent](c.ctx, c.kv, c.h, "", req.NodeID)
		if err != nil {
			return out, err
		}
		out.NodeID = agent.ID
	}
	if req.Group != "" {
		group, err := a.joinGroup(c, vm, req.Group)
		if err != nil {
			return out, err
		}
		out.Group = group.ID
	}
	return out, nil
}

// joinGroup makes vm need a group, which cannot be deleted from here on.
func (a *Admission) joinGroup(c *acceptance, vm *api.VM, ref string) (*api.VMGroup, error) {
	group, err := store.Find[api.VMGroup](c.ctx, c.kv, c.h, vm.Project, ref)
	if err != nil {
		return nil, err
	}
	return group, c.needs(api.RefTo(vm), group)
}

// groupClaim is what a VM's membership of a group is.
func groupClaim(group string, vm *api.VM) string {
	return store.UseClaim(api.Ref{Kind: api.KindVMGroup, ID: group}, api.RefTo(vm))
}

// restartable checks that a VM that is to be restarted elsewhere can be.
func restartable(vm *api.VM, pool *api.Pool) error {
	switch {
	case !vm.Spec.HA:
		return nil
	case !pool.Spec.Shared:
		return problem.New(problem.Conflict, "vm %s cannot be restarted on another node", vm.Name).
			Because("its disk is in pool %s, which is not shared: no other node reaches it", pool.Name).
			Try("use a pool that was added as shared, or leave ha out")
	case vm.Spec.NodeID != "":
		return problem.New(problem.Conflict, "vm %s cannot be restarted on another node", vm.Name).
			Because("it is pinned to one").Try("leave out either ha or the node; labels choose among nodes without pinning")
	}
	return nil
}
