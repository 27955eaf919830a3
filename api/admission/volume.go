package admission

import (
	"context"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// CreateVolume accepts a new volume that belongs to no VM; one may get it at once.
func (a *Admission) CreateVolume(ctx context.Context, h auth.Handle, o Options, req api.VolumeCreate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpVolumeCreate, req, func(c *acceptance) error {
		v := &api.Volume{Meta: c.meta(o.Project, req.Name, req.Labels)}
		v.Spec = api.VolumeSpec{Size: req.Size, Protected: req.Protected, Shareable: req.Shareable, QoS: req.QoS}
		src, err := a.volumeSource(c, v, req)
		if err != nil {
			return err
		}
		pool, err := a.poolForVolume(c, req, src)
		if err != nil {
			return err
		}
		v.Spec.Pool = pool.ID
		if err := firstOf(c.needs(api.RefTo(v), pool), sized(v, src)); err != nil {
			return err
		}
		work := api.VolumeMake{From: src.origin}
		if work.Node, err = a.volumeNode(c, pool, src, req); err != nil {
			return err
		}
		if req.Attach {
			if work.Attach, err = a.givenTo(c, v, pool, req.VM); err != nil {
				return err
			}
		}
		c.makes(v, api.PhaseReady)
		return firstOf(c.target(v), c.input(work), a.claimQuota(c, v, quotaUse{Disk: v.Spec.Size}))
	})
}

// volumeSource is what a new volume begins with.
type volumeSource struct {
	what   string            // for people; empty: nothing
	size   int64             // bytes that the volume must have at least
	volume *api.Volume       // that is copied; nil: none
	origin *api.VolumeOrigin // likewise
}

// volumeSource finds what a new volume is made from, and sees to it that it stays: an image for ever, what is copied as long
// as the operation runs.
func (a *Admission) volumeSource(c *acceptance, v *api.Volume, req api.VolumeCreate) (src volumeSource, err error) {
	switch {
	case req.Image != "":
		img, err := store.Find[api.Image](c.ctx, c.kv, c.h, v.Project, req.Image)
		if err != nil {
			return src, err
		}
		v.Spec.Image = img.ID
		c.deprecated(img)
		return volumeSource{what: "image " + img.Name, size: img.Status.VirtualSize}, c.needs(api.RefTo(v), img)
	case req.Snapshot != "":
		snap, err := store.Find[api.Snapshot](c.ctx, c.kv, c.h, v.Project, req.Snapshot)
		if err != nil {
			return src, err
		}
		if src.volume, err = store.Get[api.Volume](c.ctx, c.kv, c.h, v.Project, snap.Spec.Volume); err != nil {
			return src, err
		}
		src.what, src.size = "snapshot "+snap.Name, snap.Status.Size
		src.origin = &api.VolumeOrigin{Volume: src.volume.ID, Layer: layerOf(src.volume, snap), Snapshot: snap.ID}
		// Not the snapshot alone: when one before it is deleted, its layer goes.
		return src, firstOf(ready(src.volume), ready(snap), c.keeps(snap), c.keeps(src.volume))
	case req.Volume != "":
		if src.volume, err = store.Find[api.Volume](c.ctx, c.kv, c.h, v.Project, req.Volume); err != nil {
			return src, err
		}
		src.what, src.size = "volume "+src.volume.Name, src.volume.Spec.Size
		src.origin = &api.VolumeOrigin{Volume: src.volume.ID, Layer: src.volume.Status.Layer}
		return src, firstOf(ready(src.volume), a.holdStopped(c, src.volume), c.keeps(src.volume))
	}
	return src, nil
}

// holdStopped holds the VMs that have a volume, none of which may run.
func (a *Admission) holdStopped(c *acceptance, v *api.Volume) error {
	vms, err := a.vmsOf(c, v)
	if err != nil {
		return err
	}
	for _, vm := range vms {
		if vm.Operation == "" && vm.Status.Phase != api.PhaseStopped {
			return problem.New(problem.Conflict, "volume %s cannot be copied", v.Name).Because("vm %s has it, and is %s", vm.Name, vm.Status.Phase).
				Try("copy a snapshot of it: gnext snap add NAME --volume %s", v.Name)
		}
		if err := c.keeps(vm); err != nil {
			return err
		}
	}
	return nil
}

// poolForVolume finds the pool of a new volume. A copy is made in the pool of what is copied, and a volume for a VM where its root
// disk is, unless another one is named.
func (a *Admission) poolForVolume(c *acceptance, req api.VolumeCreate, src volumeSource) (*api.Pool, error) {
	ref := req.Pool
	if src.volume == nil {
		if ref != "" || req.VM == "" {
			return a.poolFor(c, ref)
		}
		vm, err := store.Find[api.VM](c.ctx, c.kv, c.h, c.opts.Project, req.VM)
		if err != nil {
			return nil, err
		}
		return store.Get[api.Pool](c.ctx, c.kv, c.h, "", vm.Spec.Pool)
	}
	pool, err := store.Get[api.Pool](c.ctx, c.kv, c.h, "", src.volume.Spec.Pool)
	if err != nil || ref == "" {
		return pool, err
	}
	wanted, err := store.Find[api.Pool](c.ctx, c.kv, c.h, "", ref)
	if err != nil || wanted.ID == pool.ID {
		return pool, err
	}
	return nil, problem.New(problem.Conflict, "%s cannot be copied into pool %s", src.what, wanted.Name).Because("it is in pool %s, and is copied inside of it", pool.Name).
		Try("leave the pool out")
}

// sized gives a new volume its size.
func sized(v *api.Volume, src volumeSource) error {
	if v.Spec.Size == 0 {
		v.Spec.Size = (src.size + api.MiB - 1) / api.MiB * api.MiB
	}
	if v.Spec.Size >= src.size {
		return nil
	}
	return problem.New(problem.Invalid, "a volume of %s is too small", api.ExactSize(v.Spec.Size)).Because("%s has %s", src.what, api.ExactSize(src.size)).
		Try("ask for at least that, or leave the size out")
}

// volumeNode says which node a new volume must be on; empty: any of the pool.
func (a *Admission) volumeNode(c *acceptance, pool *api.Pool, src volumeSource, req api.VolumeCreate) (string, error) {
	node, why := "", ""
	if src.volume != nil && !pool.Spec.Shared {
		node, why = src.volume.Status.Agent, src.what+" is there"
	}
	wanted, whose := "", ""
	switch {
	case req.Node != "":
		agent, err := store.Find[api.Agent](c.ctx, c.kv, c.h, "", req.Node)
		if err != nil {
			return "", err
		}
		wanted, whose = agent.ID, "node "+agent.Name
	case req.VM != "":
		vm, err := store.Find[api.VM](c.ctx, c.kv, c.h, c.opts.Project, req.VM)
		if err != nil {
			return "", err
		}
		if vm.Status.Agent == "" {
			return "", problem.New(problem.Conflict, "a volume cannot be made where vm %s is", vm.Name).Because("it is on no node").Try("see: gnext vm get %s", vm.Name)
		}
		wanted, whose = vm.Status.Agent, "node "+vm.Status.AgentName+" of vm "+vm.Name
	}
	if wanted == "" {
		return node, nil
	}
	no := problem.New(problem.Conflict, "volume %s cannot be made on %s", req.Name, whose)
	switch {
	case !pool.Takes(wanted):
		return "", no.Because("that does not have pool %s", pool.Name).Try("see: gnext pool get %s", pool.Name)
	case node != "" && node != wanted:
		return "", no.Because("the copy is made on another one, where %s", why).Try("leave the node out")
	case pool.Spec.Shared:
		return "", nil // it is on no node
	}
	return wanted, nil
}

// layerOf returns the file that a snapshot keeps, as plans say it: empty for the volume's first, and in pools without files.
func layerOf(v *api.Volume, s *api.Snapshot) string {
	if s.Status.Layer == v.ID {
		return ""
	}
	return s.Status.Layer
}

// vmsOf returns the VMs that have a volume.
func (a *Admission) vmsOf(c *acceptance, v *api.Volume) ([]*api.VM, error) {
	var out []*api.VM
	for _, id := range v.VMs() {
		vm, err := store.Get[api.VM](c.ctx, c.kv, c.h, v.Project, id)
		if err != nil {
			return nil, err
		}
		out = append(out, vm)
	}
	return out, nil
}

// onlyVM returns the VM that has a volume, held in the phase that it is in; nil: none. What changes a volume below the feet of
// its guest must know which guest that is, so there must be one only.
func (a *Admission) onlyVM(c *acceptance, v *api.Volume, no *problem.Problem) (*api.VM, error) {
	vms, err := a.vmsOf(c, v)
	if err != nil || len(vms) == 0 {
		return nil, err
	}
	vm := vms[0]
	if len(vms) > 1 {
		return nil, no.Because("%d VMs have it", len(vms)).Try("detach it from all but one: gnext vol detach %s --vm %s", v.Name, vms[1].Name)
	}
	if err := reachable(vm, no); err != nil {
		return nil, err
	}
	if at := v.Attachment(vm.ID); at != nil && at.ReadOnly && vm.Operation == "" && vm.Status.Phase == api.PhaseRunning {
		return nil, no.Because("vm %s has it read-only, and runs: its hypervisor does not change such a disk", vm.Name).
			Try("stop it first (gnext vm poweroff %s), or detach the volume: gnext vol detach %s --vm %s", vm.Name, v.Name, vm.Name)
	}
	return vm, c.keeps(vm)
}

// changed returns a copy of a volume to be changed, which shares nothing with it.
func changed(v *api.Volume) *api.Volume {
	after := *v
	after.Status.Attachments = slices.Clone(v.Status.Attachments)
	return &after
}

// UpdateVolume accepts a change of what is decided about a volume.
func (a *Admission) UpdateVolume(ctx context.Context, h auth.Handle, o Options, ref string, req api.VolumeUpdate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpVolumeUpdate, updateRequest[api.VolumeUpdate]{targetRequest{ref}, req}, func(c *acceptance) error {
		v, err := store.Find[api.Volume](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		after, was := changed(v), v.Spec.QoS
		if err := firstOf(c.target(v), ready(v), c.keeps(v), a.changeVolume(c, v, after, req)); err != nil {
			return err
		}
		if after.Spec.QoS != was { // the nodes of its VMs are told
			vms, err := a.vmsOf(c, v)
			if err != nil {
				return err
			}
			for _, vm := range vms {
				no := problem.New(problem.Conflict, "the limits of volume %s cannot be changed", v.Name)
				if err := firstOf(reachable(vm, no), c.keeps(vm)); err != nil {
					return err
				}
			}
		}
		return firstOf(c.becomes(after), c.input(api.VolumeTuning{QoS: after.Spec.QoS, Before: was}))
	})
}

// changeVolume makes of after what v becomes.
func (a *Admission) changeVolume(c *acceptance, v, after *api.Volume, req api.VolumeUpdate) error {
	if req.Labels != nil {
		after.Labels = *req.Labels
	}
	if req.Protected != nil {
		after.Spec.Protected = *req.Protected
	}
	if req.QoS != nil {
		after.Spec.QoS = *req.QoS
	}
	if req.Name != nil && *req.Name != v.Name {
		after.Name = *req.Name
		key := store.NameClaim(api.KindVolume, v.Project, after.Name)
		c.claims(key, v.ID)
		c.MeaningFound(key, func() error { return c.taken(api.KindVolume, v.Project, after.Name) })
		c.releases(store.NameClaim(api.KindVolume, v.Project, v.Name))
	}
	if req.Shareable == nil || *req.Shareable == v.Spec.Shareable {
		return nil
	}
	if after.Spec.Shareable = *req.Shareable; len(v.VMs()) > 0 { // their disks are defined with it
		return problem.New(problem.Conflict, "whether volume %s is shareable cannot be changed", v.Name).Because("a VM has it").Try("detach it first: gnext vol detach %s", v.Name)
	}
	pool, err := store.Get[api.Pool](c.ctx, c.kv, c.h, "", v.Spec.Pool)
	if err != nil || !pool.Spec.Files() {
		return err
	}
	return problem.New(problem.Unsupported, "whether volume %s is shareable cannot be changed", v.Name).
		Because("pool %s keeps volumes that several VMs may write to in files of another format", pool.Name).
		Try("make a copy that is what you want: gnext vol add NAME --from-volume %s, with or without --shareable", v.Name)
}

// ResizeVolume accepts making a volume bigger.
func (a *Admission) ResizeVolume(ctx context.Context, h auth.Handle, o Options, ref string, req api.VolumeResize) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpVolumeResize, resizeRequest{targetRequest{ref}, req}, func(c *acceptance) error {
		v, err := store.Find[api.Volume](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		no := problem.New(problem.Conflict, "volume %s cannot be resized", v.Name)
		if v.Operation == "" && req.Size < v.Spec.Size {
			return no.Because("it has %s, and would shrink to %s: what is behind the new end would be lost", api.ExactSize(v.Spec.Size), api.ExactSize(req.Size)).
				Try("ask for more, or make a smaller volume and copy what is needed")
		}
		grown := req.Size - v.Spec.Size
		if err := firstOf(c.target(v), ready(v), c.keeps(v)); err != nil {
			return err
		}
		vm, err := a.onlyVM(c, v, no)
		if err != nil {
			return err
		}
		after := changed(v)
		after.Spec.Size = req.Size
		return firstOf(c.becomes(after), c.input(req), a.resized(c, v, vm, grown))
	})
}

// resized has what a volume uses of its quota follow its size; a root disk is its VM's.
func (a *Admission) resized(c *acceptance, v *api.Volume, vm *api.VM, grown int64) error {
	if !v.Spec.Root {
		return a.growQuota(c, v, grown)
	}
	after := *vm
	after.Spec.RootDisk += grown
	return firstOf(c.becomes(&after), a.growQuota(c, vm, grown))
}

// resizeRequest is a request to resize a volume as an operation remembers it.
type resizeRequest struct {
	targetRequest
	api.VolumeResize
}
