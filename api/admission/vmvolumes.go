package admission

import (
	"fmt"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// addVolumes drafts the volumes that are made with a VM, and says how many bytes of disk they claim. Those without a pool go into that of
// its root disk.
func (a *Admission) addVolumes(c *acceptance, vm *api.VM, root *api.Pool, reqs []api.VMVolume) (disk int64, err error) {
	for i, req := range reqs {
		device := fmt.Sprintf("vd%c", firstDevice+i)
		name := req.Name
		if name == "" {
			name = partName(vm.Name, device)
		}
		pool := root
		if req.Pool != "" {
			if pool, err = store.Find[api.Pool](c.ctx, c.kv, c.h, "", req.Pool); err != nil {
				return 0, err
			}
		}
		if err := restartable(vm, pool); err != nil {
			return 0, err
		}
		v := &api.Volume{Meta: c.meta(vm.Project, name, nil), Spec: api.VolumeSpec{Size: req.Size, Pool: pool.ID}}
		v.Status.Attachments = []api.Attachment{{VM: vm.ID, Device: device}}
		if err := c.needs(api.RefTo(v), pool); err != nil {
			return 0, err
		}
		value, err := quotaUse{Disk: req.Size}.encode()
		if err != nil {
			return 0, err
		}
		c.claims(store.QuotaClaim(vm.Project, v.ID), value)
		c.makes(v, api.PhaseReady)
		vm.Status.Volumes = append(vm.Status.Volumes, v.ID)
		disk += req.Size
	}
	return disk, nil
}

// giveVolumes drafts that a VM that is made gets volumes that exist, as the devices from first on. They say so when it is made, and
// otherwise stay as they are.
func (a *Admission) giveVolumes(c *acceptance, vm *api.VM, first int, reqs []api.VMAttach) error {
	if len(reqs) == 0 {
		return nil
	}
	var made api.VMMake
	var tie *api.Volume // that says which node the VM must be on
	for i, req := range reqs {
		v, err := store.Find[api.Volume](c.ctx, c.kv, c.h, vm.Project, req.Volume)
		if err != nil {
			return err
		}
		no := problem.New(problem.Conflict, "volume %s cannot be attached to vm %s", v.Name, vm.Name)
		if slices.Contains(vm.Status.Volumes, v.ID) {
			return no.Because("it is named twice").Try("name it once")
		}
		if err := firstOf(ready(v), c.keeps(v), a.givable(c, v, vm, &tie, no), alone(v, req.ReadOnly, no)); err != nil {
			return err
		}
		d := api.VMDisk{Volume: v.ID, Device: fmt.Sprintf("vd%c", first+i), ReadOnly: req.ReadOnly}
		after := changed(v)
		after.Status.Attachments = append(after.Status.Attachments, api.Attachment{VM: vm.ID, Device: d.Device, ReadOnly: d.ReadOnly})
		if err := c.becomes(after); err != nil {
			return err
		}
		vm.Status.Volumes = append(vm.Status.Volumes, v.ID)
		made.Attach = append(made.Attach, d)
	}
	return c.input(made)
}

// givable checks that there can be a node on which a VM that is made reaches a volume where it is. Those in pools that are not shared
// tie it to one: all to the same.
func (a *Admission) givable(c *acceptance, v *api.Volume, vm *api.VM, tie **api.Volume, no *problem.Problem) error {
	if v.Spec.Root {
		return isRoot(v, no)
	}
	pool, err := store.Get[api.Pool](c.ctx, c.kv, c.h, "", v.Spec.Pool)
	if err != nil {
		return err
	}
	c.Unchanged(pool)
	if pool.Spec.Shared {
		return nil
	}
	switch {
	case vm.Spec.HA:
		return haNeedsShared(pool, no).Try("use a volume in a shared pool, or leave ha out")
	case vm.Spec.NodeID != "" && vm.Spec.NodeID != v.Status.Agent:
		return no.Because("it is on another node than the one that the VM is pinned to, and pool %s is not shared", pool.Name).
			Try("leave the node out: the VM goes to where the volume is (gnext vol get %s)", v.Name)
	case *tie != nil && (*tie).Status.Agent != v.Status.Agent:
		return no.Because("it is on another node than volume %s, and pool %s is not shared", (*tie).Name, pool.Name).
			Try("keep them in a pool that is shared: gnext vol migrate %s --pool NAME", v.Name)
	}
	*tie = v
	return nil
}
