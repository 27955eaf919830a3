package admission

import (
	"context"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// updatable are the phases in which a VM can be changed: those in which its node can be asked.
var updatable = []api.Phase{api.PhaseRunning, api.PhaseStopped, api.PhasePaused}

// UpdateVM accepts a change of what is written about a VM.
func (a *Admission) UpdateVM(ctx context.Context, h auth.Handle, o Options, ref string, req api.VMUpdate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpVMUpdate, updateRequest[api.VMUpdate]{targetRequest{ref}, req}, func(c *acceptance) error {
		vm, err := store.Find[api.VM](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		after := *vm
		if err := a.changeVM(c, vm, &after, req); err != nil {
			return err
		}
		return updates(c, vm, &after, vm.Spec.HA, after.Spec.HA)
	})
}

// changeVM makes of after what vm becomes.
func (a *Admission) changeVM(c *acceptance, vm, after *api.VM, req api.VMUpdate) error {
	if vm.Operation == "" && !slices.Contains(updatable, vm.Status.Phase) {
		return problem.New(problem.Conflict, "vm %s cannot be changed", vm.Name).Because("it is %s", vm.Status.Phase).Try("see: gnext vm get %s", vm.Name)
	}
	if req.Labels != nil {
		after.Labels = *req.Labels
	}
	if req.NodeLabels != nil {
		after.Spec.NodeLabels = *req.NodeLabels
	}
	if req.Placement != nil {
		after.Spec.Placement = *req.Placement
	}
	if req.HA != nil {
		after.Spec.HA = *req.HA
	}
	if req.NodeID != nil {
		if err := a.pin(c, after, *req.NodeID); err != nil {
			return err
		}
	}
	if req.Group != nil {
		if err := a.changeGroup(c, vm, after, *req.Group); err != nil {
			return err
		}
	}
	if !after.Spec.HA || after.Spec.HA == vm.Spec.HA && after.Spec.NodeID == vm.Spec.NodeID {
		return nil
	}
	pool, err := store.Get[api.Pool](c.ctx, c.kv, c.h, "", vm.Spec.Pool)
	if err != nil {
		return err
	}
	return firstOf(restartable(after, pool), a.disksRestartable(c, after))
}

// disksRestartable checks that other nodes reach the volumes that a VM has besides its root disk.
func (a *Admission) disksRestartable(c *acceptance, vm *api.VM) error {
	for _, id := range vm.Status.Volumes[min(1, len(vm.Status.Volumes)):] {
		v, err := store.Get[api.Volume](c.ctx, c.kv, c.h, vm.Project, id)
		if err != nil {
			return err
		}
		pool, err := store.Get[api.Pool](c.ctx, c.kv, c.h, "", v.Spec.Pool)
		if err != nil {
			return err
		}
		if !pool.Spec.Shared {
			return problem.New(problem.Conflict, "vm %s cannot be restarted on another node", vm.Name).
				Because("it has volume %s in pool %s, which is not shared: no other node reaches it", v.Name, pool.Name).Try("detach it first: gnext vol detach %s --vm %s", v.Name, vm.Name)
		}
	}
	return nil
}

// pin ties a VM to the node it is on, or to none.
func (a *Admission) pin(c *acceptance, after *api.VM, ref string) error {
	if ref == "" {
		after.Spec.NodeID = ""
		return nil
	}
	agent, err := store.Find[api.Agent](c.ctx, c.kv, c.h, "", ref)
	if err != nil {
		return err
	}
	if agent.ID != after.Status.Agent {
		return problem.New(problem.Conflict, "vm %s cannot be pinned to %s", after.Name, agent.Name).Because("it is on node %q", after.Status.AgentName).
			Try("move it there first: gnext vm migrate %s --to %s", after.Name, agent.Name)
	}
	after.Spec.NodeID = agent.ID
	return nil
}

// changeGroup brings a VM from its group to another one, or to none.
func (a *Admission) changeGroup(c *acceptance, vm, after *api.VM, ref string) error {
	after.Spec.Group = ""
	var group *api.VMGroup
	if ref != "" {
		var err error
		if group, err = store.Find[api.VMGroup](c.ctx, c.kv, c.h, vm.Project, ref); err != nil {
			return err
		}
		if after.Spec.Group = group.ID; group.ID == vm.Spec.Group {
			return nil
		}
		if err := c.needs(api.RefTo(vm), group); err != nil {
			return err
		}
	}
	if vm.Spec.Group == after.Spec.Group {
		return nil
	}
	if vm.Spec.Group != "" {
		c.releases(groupClaim(vm.Spec.Group, vm))
	}
	return a.changeClaim(c, vm, group)
}
