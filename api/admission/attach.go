package admission

import (
	"context"
	"fmt"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// attachRequest is a request to attach a volume as an operation remembers it.
type attachRequest struct {
	targetRequest
	api.VolumeAttach
}

// AttachVolume accepts giving a volume to a VM. One that the VM has already it keeps.
func (a *Admission) AttachVolume(ctx context.Context, h auth.Handle, o Options, ref string, req api.VolumeAttach) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpVolumeAttach, attachRequest{targetRequest{ref}, req}, func(c *acceptance) error {
		v, vm, err := a.volumeAndVM(c, ref, req.VM)
		if err != nil {
			return err
		}
		no := problem.New(problem.Conflict, "volume %s cannot be attached to vm %s", v.Name, vm.Name)
		if err := firstOf(c.target(v), ready(v), reachable(vm, no), c.keeps(v), c.keeps(vm)); err != nil {
			return err
		}
		order := api.DiskOrder{VM: vm.ID, ReadOnly: req.ReadOnly}
		if has := v.Attachment(vm.ID); has != nil {
			if has.ReadOnly != req.ReadOnly {
				how := "to write"
				if has.ReadOnly {
					how = "read-only"
				}
				return no.Because("it has it already, %s", how).Try("detach it first: gnext vol detach %s --vm %s", v.Name, vm.Name)
			}
			order.Device, order.Had = has.Device, true
			return c.input(order)
		}
		if err := firstOf(a.within(c, v, vm, no), alone(v, req.ReadOnly, no)); err != nil {
			return err
		}
		if order.Device, err = a.freeDevice(c, vm, no); err != nil {
			return err
		}
		after, vmAfter := changed(v), *vm
		after.Status.Attachments = append(after.Status.Attachments, api.Attachment{VM: vm.ID, Device: order.Device, ReadOnly: req.ReadOnly})
		vmAfter.Status.Volumes = append(slices.Clone(vm.Status.Volumes), v.ID)
		return firstOf(c.becomes(after), c.becomes(&vmAfter), c.input(order))
	})
}

// givenTo drafts that a volume that is made in a pool which its VM reaches is attached to that as well.
func (a *Admission) givenTo(c *acceptance, v *api.Volume, pool *api.Pool, ref string) (*api.DiskOrder, error) {
	vm, err := store.Find[api.VM](c.ctx, c.kv, c.h, v.Project, ref)
	if err != nil {
		return nil, err
	}
	no := problem.New(problem.Conflict, "volume %s cannot be attached to vm %s", v.Name, vm.Name)
	if err := reachable(vm, no); err != nil {
		return nil, err
	}
	if !c.locks(vm) { // else it has what is copied
		if err := c.keeps(vm); err != nil {
			return nil, err
		}
	}
	if !pool.Spec.Shared && vm.Spec.HA {
		return nil, haNeedsShared(pool, no).Try("make it in a shared pool, or turn that off: gnext vm update %s --no-ha", vm.Name)
	}
	order := api.DiskOrder{VM: vm.ID}
	if order.Device, err = a.freeDevice(c, vm, no); err != nil {
		return nil, err
	}
	v.Status.Attachments = []api.Attachment{{VM: vm.ID, Device: order.Device}}
	after := *vm
	after.Status.Volumes = append(slices.Clone(vm.Status.Volumes), v.ID)
	return &order, c.becomes(&after)
}

func (a *Admission) volumeAndVM(c *acceptance, volume, vm string) (*api.Volume, *api.VM, error) {
	v, err := store.Find[api.Volume](c.ctx, c.kv, c.h, c.opts.Project, volume)
	if err != nil {
		return nil, nil, err
	}
	m, err := store.Find[api.VM](c.ctx, c.kv, c.h, c.opts.Project, vm)
	return v, m, err
}

// within checks that a VM reaches a volume where it is, and will.
func (a *Admission) within(c *acceptance, v *api.Volume, vm *api.VM, no *problem.Problem) error {
	if v.Spec.Root {
		return isRoot(v, no)
	}
	pool, err := store.Get[api.Pool](c.ctx, c.kv, c.h, "", v.Spec.Pool)
	if err != nil {
		return err
	}
	c.Unchanged(pool)
	switch {
	case !pool.Takes(vm.Status.Agent):
		return no.Because("it is in pool %s, which the node %s of the VM does not have", pool.Name, vm.Status.AgentName).
			Try("move the VM to a node that has it (gnext vm migrate %s --to NODE), or bring the node into the pool (gnext pool update %s --add-agent %s)", vm.Name, pool.Name, vm.Status.AgentName)
	case !pool.Spec.Shared && v.Status.Agent != vm.Status.Agent:
		return no.Because("it is on another node than the VM, and pool %s is not shared", pool.Name).
			Try("move the VM there (gnext vm migrate %s --to NODE), or keep the volume in a pool that is shared", vm.Name)
	case !pool.Spec.Shared && vm.Spec.HA:
		return haNeedsShared(pool, no).
			Try("use a volume in a shared pool, or turn that off: gnext vm update %s --no-ha", vm.Name)
	}
	return nil
}

func isRoot(v *api.Volume, no *problem.Problem) *problem.Problem {
	return no.Because("it is the root disk of a VM").Try("make a copy of it: gnext vol add NAME --from-volume %s", v.Name)
}

func haNeedsShared(pool *api.Pool, no *problem.Problem) *problem.Problem {
	return no.Because("the VM is to be restarted elsewhere when its node is dead, and pool %s is not shared: no other node reaches the volume", pool.Name)
}

// alone checks that those who have a volume can have it together.
func alone(v *api.Volume, readOnly bool, no *problem.Problem) error {
	if v.Spec.Shareable || len(v.Status.Attachments) == 0 {
		return nil
	}
	reads := readOnly
	for _, at := range v.Status.Attachments {
		reads = reads && at.ReadOnly
	}
	if reads {
		return nil
	}
	return no.Because("another VM has it, and one of them would write to it").
		Try("detach it first (gnext vol detach %s), attach it read-only to all, or have it shareable if its users agree on who writes", v.Name)
}

// Data disks are called vdc to vdz: vda is the root disk, and vdb the seed.
const (
	firstDevice = 'c'
	lastDevice  = 'z'
)

// freeDevice returns a device name that no volume of a VM has.
func (a *Admission) freeDevice(c *acceptance, vm *api.VM, no *problem.Problem) (string, error) {
	used := map[string]bool{}
	for _, id := range vm.Status.Volumes[min(1, len(vm.Status.Volumes)):] {
		v, err := store.Get[api.Volume](c.ctx, c.kv, c.h, vm.Project, id)
		if err != nil {
			return "", err
		}
		if at := v.Attachment(vm.ID); at != nil {
			used[at.Device] = true
		}
	}
	for d := firstDevice; d <= lastDevice; d++ {
		if name := fmt.Sprintf("vd%c", d); !used[name] {
			return name, nil
		}
	}
	return "", no.Because("it has %d volumes already", len(used)).Try("detach one that is not needed")
}

// detachRequest is a request to detach a volume as an operation remembers it.
type detachRequest struct {
	targetRequest
	api.VolumeDetach
}

// DetachVolume accepts taking a volume from a VM.
func (a *Admission) DetachVolume(ctx context.Context, h auth.Handle, o Options, ref string, req api.VolumeDetach) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpVolumeDetach, detachRequest{targetRequest{ref}, req}, func(c *acceptance) error {
		v, err := store.Find[api.Volume](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		no := problem.New(problem.Conflict, "volume %s cannot be detached", v.Name)
		at, err := a.attachment(c, v, req.VM, no)
		if err != nil {
			return err
		}
		vm, err := store.Get[api.VM](ctx, a.kv, h, v.Project, at.VM)
		if err != nil {
			return err
		}
		after, vmAfter := changed(v), *vm
		after.Status.Attachments = slices.DeleteFunc(after.Status.Attachments, func(x api.Attachment) bool { return x.VM == vm.ID })
		vmAfter.Status.Volumes = slices.DeleteFunc(slices.Clone(vm.Status.Volumes), func(id string) bool { return id == v.ID })
		return firstOf(c.target(v), reachable(vm, no), c.keeps(v), c.keeps(vm), c.becomes(after), c.becomes(&vmAfter),
			c.input(api.DiskOrder{VM: vm.ID, Device: at.Device, ReadOnly: at.ReadOnly}))
	})
}

// attachment finds out from which VM a volume is to be detached.
func (a *Admission) attachment(c *acceptance, v *api.Volume, ref string, no *problem.Problem) (*api.Attachment, error) {
	if v.Spec.Root {
		return nil, no.Because("it is the root disk of a VM, which it lives and dies with").Try("make a copy of it: gnext vol add NAME --from-volume %s", v.Name)
	}
	if ref == "" {
		switch len(v.Status.Attachments) {
		case 0:
			return nil, no.Because("no VM has it").Try("see: gnext vol get %s", v.Name)
		case 1:
			return &v.Status.Attachments[0], nil
		default:
			return nil, no.Because("%d VMs have it", len(v.Status.Attachments)).Try("say from which: gnext vol detach %s --vm NAME", v.Name)
		}
	}
	vm, err := store.Find[api.VM](c.ctx, c.kv, c.h, v.Project, ref)
	if err != nil {
		return nil, err
	}
	if at := v.Attachment(vm.ID); at != nil {
		return at, nil
	}
	return nil, no.Because("vm %s does not have it", vm.Name).Try("see who has it: gnext vol get %s", v.Name)
}

// leaveVM takes a volume from a VM that is deleted: a root disk goes with it, and its snapshots if they were mentioned; all other
// volumes stay.
func (a *Admission) leaveVM(c *acceptance, vm *api.VM, v *api.Volume, req api.VMDelete, checkpoints []string) error {
	if !v.Spec.Root {
		after := changed(v)
		after.Status.Attachments = slices.DeleteFunc(after.Status.Attachments, func(x api.Attachment) bool { return x.VM == vm.ID })
		return firstOf(c.keeps(v), c.becomes(after))
	}
	me := api.RefTo(v)
	if v.Operation == "" && v.Spec.Protected {
		return problem.New(problem.Conflict, "vm %s cannot be deleted", vm.Name).Because("its root disk %s is protected against that, and would go with it", v.Name).
			Try("take the protection away first: gnext vol update %s --no-protect", v.Name)
	}
	if v.Operation == "" && v.Status.Snapshot != "" {
		if !req.Snapshots {
			return problem.New(problem.Conflict, "vm %s cannot be deleted", vm.Name).Because("its root disk %s has snapshots", v.Name).
				Try("delete them with it (gnext vm del %s --snapshots), or before (gnext snap list --volume %s)", vm.Name, v.Name)
		}
		snaps, err := a.snapshotsOf(c, v)
		if err != nil {
			return err
		}
		removal, err := a.removal(c, v, snaps)
		if err := firstOf(err, c.input(api.VMRemoval{VolumeRemoval: removal, Checkpoints: checkpoints}), c.holdAll(snaps, api.PhaseDeleting, "")); err != nil {
			return err
		}
		for _, s := range snaps {
			c.releases(store.UseClaim(me, api.RefTo(s)))
		}
	}
	c.releases(store.UseClaim(api.Ref{Kind: api.KindPool, ID: v.Spec.Pool}, me))
	if v.Spec.Image != "" {
		c.releases(imageClaim(v))
	}
	return c.holds(v, api.PhaseDeleting, "")
}
