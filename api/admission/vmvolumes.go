package admission

import (
	"fmt"

	"github.com/nextstack/nextstack/api"
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
