package admission

import (
	"context"
	"fmt"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// migrateRequest is a request to move a VM as an operation remembers it.
type migrateRequest struct {
	targetRequest
	api.VMMigrate
}

// MigrateVM accepts moving a VM to another node. Whether there is one that can take it is found out by the operation.
func (a *Admission) MigrateVM(ctx context.Context, h auth.Handle, o Options, ref string, req api.VMMigrate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpVMMigrate, migrateRequest{targetRequest{ref}, req}, func(c *acceptance) error {
		_, _, err := a.migrateVM(c, ref, req)
		return err
	})
}

// PreviewMigrate tells whether MigrateVM would accept the request now, without accepting it. It returns the VM as it is, and
// the request with its target as an agent ID.
func (a *Admission) PreviewMigrate(ctx context.Context, h auth.Handle, o Options, ref string, req api.VMMigrate) (*api.VM, api.VMMigrate, error) {
	if err := req.Validate(); err != nil {
		return nil, req, err
	}
	var vm *api.VM
	resolved := req
	err := a.rehearse(ctx, h, o, api.OpVMMigrate, func(c *acceptance) (err error) {
		_, resolved, err = a.migrateVM(c, ref, req)
		return err
	})
	if err == nil { // the acceptance has changed its own copy
		vm, err = store.Find[api.VM](ctx, a.kv, h, o.Project, ref)
	}
	return vm, resolved, err
}

func (a *Admission) migrateVM(c *acceptance, ref string, req api.VMMigrate) (*api.VM, api.VMMigrate, error) {
	vm, err := store.Find[api.VM](c.ctx, c.kv, c.h, c.opts.Project, ref)
	if err != nil {
		return nil, req, err
	}
	if err := c.target(vm); err != nil {
		return nil, req, err
	}
	was := vm.Status.Phase
	if err := c.holds(vm, api.PhaseMigrating, was); err != nil {
		return nil, req, err
	}
	if err := Movable(vm, was); err != nil {
		return nil, req, err
	}
	if req, err = a.moveTarget(c, vm, req); err != nil {
		return nil, req, err
	}
	if err := a.disksMovable(c, vm, req); err != nil {
		return nil, req, err
	}
	return vm, req, firstOf(a.holdVolumes(c, vm), c.input(req))
}

// Movable checks that a VM that was in this phase can leave its node, as far as its own record tells.
func Movable(vm *api.VM, was api.Phase) error {
	no := problem.New(problem.Conflict, "vm %s cannot be moved", vm.Name)
	switch {
	case was == api.PhaseUnknown:
		return no.Because("it is %s: its node is silent", was).Try("wait for the node, or for its recovery: gnext host get %s", vm.Status.AgentName)
	case was == api.PhasePaused:
		return no.Because("it is %s", was).Try("resume or stop it first: gnext vm start %s", vm.Name)
	case was != api.PhaseRunning && was != api.PhaseStopped:
		return no.Because("it is %s", was).Try("see: gnext vm get %s", vm.Name)
	case vm.Spec.NodeID != "":
		return no.Because("it is pinned to node %s", PinnedTo(vm)).Try("take the pin away first: gnext vm update %s --no-node", vm.Name)
	}
	return nil
}

// PinnedTo returns what to call the node that a VM is pinned to.
func PinnedTo(vm *api.VM) string {
	if vm.Spec.NodeID == vm.Status.Agent {
		return vm.Status.AgentName
	}
	return vm.Spec.NodeID
}

// moveTarget resolves the node that a VM shall move to, if one is named.
func (a *Admission) moveTarget(c *acceptance, vm *api.VM, req api.VMMigrate) (api.VMMigrate, error) {
	if req.To == "" {
		return req, nil
	}
	agent, err := store.Find[api.Agent](c.ctx, c.kv, c.h, "", req.To)
	if err != nil {
		return req, err
	}
	if agent.ID == vm.Status.Agent {
		return req, problem.New(problem.Conflict, "vm %s is on %s already", vm.Name, agent.Name).Try("name another node, or none: then the best one is chosen")
	}
	req.To = agent.ID
	return req, nil
}

// disksMovable checks that the disks of a VM can be left where they are when it moves, or go along.
func (a *Admission) disksMovable(c *acceptance, vm *api.VM, req api.VMMigrate) error {
	for _, id := range vm.Status.Volumes {
		v, err := store.Get[api.Volume](c.ctx, c.kv, c.h, vm.Project, id)
		if err != nil {
			return err
		}
		pool, err := store.Get[api.Pool](c.ctx, c.kv, c.h, "", v.Spec.Pool)
		if err != nil {
			return err
		}
		if why, fix := Anchor(v, pool); why != "" {
			return problem.New(problem.Conflict, "vm %s cannot be moved", vm.Name).Because("%s", why).Try("%s", fix)
		}
		if !pool.Spec.Shared && !req.CopyStorage {
			return WithoutDisks(vm, v, pool)
		}
	}
	return nil
}

// Anchor says why a volume keeps a VM that has it where it is, and what to do; nothing: it does not, though it may have to be copied.
func Anchor(v *api.Volume, pool *api.Pool) (why, fix string) {
	if pool.Spec.Shared {
		return "", ""
	}
	what := fmt.Sprintf("volume %s is in pool %s, which is not shared", v.Name, pool.Name)
	if v.Spec.Root {
		what = fmt.Sprintf("its root disk %s is in pool %s, which is not shared", v.Name, pool.Name)
	}
	switch {
	case v.Status.Snapshot != "":
		return what + ", and has snapshots, which cannot be copied", "delete those first: gnext snap list --volume " + v.Name
	case len(v.VMs()) > 1:
		return what + ", and other VMs have it, too", "detach it first from this vm or from the others: gnext vol get " + v.Name
	}
	return "", ""
}

// WithoutDisks is the problem of a VM with a volume in a pool that is not shared, which nobody has asked to have copied.
func WithoutDisks(vm *api.VM, v *api.Volume, pool *api.Pool) error {
	return problem.New(problem.Conflict, "vm %s cannot be moved without its disks", vm.Name).Because("%s", Local(v, pool)).
		Try("have them copied: gnext vm migrate %s --copy-storage", vm.Name)
}

// Local says that a volume is in a pool that is not shared.
func Local(v *api.Volume, pool *api.Pool) string {
	if v.Spec.Root {
		return fmt.Sprintf("its disk is in pool %s, which is not shared", pool.Name)
	}
	return fmt.Sprintf("its volume %s is in pool %s, which is not shared", v.Name, pool.Name)
}

// holdVolumes locks the volumes of a VM that moves: their files may be at two places meanwhile, and nobody should wonder.
func (a *Admission) holdVolumes(c *acceptance, vm *api.VM) error {
	for _, id := range vm.Status.Volumes {
		v, err := store.Get[api.Volume](c.ctx, c.kv, c.h, vm.Project, id)
		if err != nil {
			return err
		}
		if err := c.keeps(v); err != nil {
			return err
		}
	}
	return nil
}

// RecoverVM accepts starting a VM elsewhere whose node is dead. That this is proven, the operation makes sure of.
func (a *Admission) RecoverVM(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpVMRecover, targetRequest{ref}, func(c *acceptance) error {
		vm, err := store.Find[api.VM](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		was := vm.Status.Phase
		if err := firstOf(c.target(vm), c.holds(vm, api.PhaseMigrating, api.PhaseRunning)); err != nil {
			return err
		}
		if was != api.PhaseUnknown {
			return problem.New(problem.Conflict, "vm %s cannot be recovered", vm.Name).Because("it is %s: only a VM whose node is silent can be", was).
				Try("see: gnext vm get %s", vm.Name)
		}
		return a.holdVolumes(c, vm)
	})
}
