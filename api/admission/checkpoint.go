package admission

import (
	"context"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// CreateCheckpoint accepts keeping a VM, with its memory and all its disks, as it is at a moment, which is when the operation is
// carried out. Each disk gets a snapshot, which belongs to the checkpoint.
func (a *Admission) CreateCheckpoint(ctx context.Context, h auth.Handle, o Options, req api.CheckpointCreate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpCheckpointCreate, req, func(c *acceptance) error {
		vm, err := store.Find[api.VM](ctx, a.kv, h, o.Project, req.VM)
		if err != nil {
			return err
		}
		no := problem.New(problem.Conflict, "no checkpoint of vm %s can be taken", vm.Name)
		if p := vm.Status.Phase; vm.Operation == "" && p != api.PhaseRunning {
			return no.Because("it is %s, so it has no memory that could be kept", p).Try("start it, or take snapshots of its volumes: gnext snap add NAME --volume VOLUME")
		}
		if err := c.keeps(vm); err != nil {
			return err
		}
		cp := &api.Checkpoint{Meta: c.meta(o.Project, req.Name, req.Labels), Spec: api.CheckpointSpec{VM: vm.ID, Parent: vm.Status.Checkpoint}}
		cp.Status.Pool = vm.Spec.Pool
		order := api.CheckpointOrder{Checkpoint: cp.ID, VM: vm.ID}
		for _, id := range vm.Status.Volumes {
			v, err := store.Get[api.Volume](ctx, a.kv, h, vm.Project, id)
			if err != nil {
				return err
			}
			disk, err := a.keepDisk(c, vm, v, cp, no)
			if err != nil {
				return err
			}
			order.Disks = append(order.Disks, disk)
		}
		c.makes(cp, api.PhaseReady)
		after := *vm
		after.Status.Checkpoint = cp.ID
		// The file has no more than the guest may have of memory, but for its devices.
		return firstOf(c.target(cp), c.becomes(&after), c.input(order), a.claimQuota(c, cp, quotaUse{Disk: vm.Spec.Memory}))
	})
}

// keepDisk drafts the snapshot of a disk of a VM for its checkpoint.
func (a *Admission) keepDisk(c *acceptance, vm *api.VM, v *api.Volume, cp *api.Checkpoint, no *problem.Problem) (api.SnapshotOrder, error) {
	pool, snaps, err := a.tree(c, v)
	if err != nil {
		return api.SnapshotOrder{}, err
	}
	if err := keepable(vm, v, pool, snaps, no); err != nil {
		return api.SnapshotOrder{}, err
	}
	device := api.RootDevice
	if at := v.Attachment(vm.ID); at != nil {
		device = at.Device
	}
	snap := &api.Snapshot{
		Meta: c.meta(vm.Project, partName(cp.Name, device), nil),
		Spec: api.SnapshotSpec{Volume: v.ID, Parent: v.Status.Snapshot, Checkpoint: cp.ID},
	}
	snap.Status.Size = v.Spec.Size
	order := api.SnapshotOrder{Snapshot: snap.ID, Volume: v.ID, Size: v.Spec.Size, Files: pool.Spec.Files()}
	after := changed(v)
	after.Status.Snapshot = snap.ID
	if order.Files {
		snap.Status.Layer = v.LayerName()
		order.Frozen, order.Layer = v.Status.Layer, c.layer()
		after.Status.Layer = order.Layer
	}
	c.claims(store.UseClaim(api.RefTo(v), api.RefTo(snap)), "")
	cp.Status.Disks = append(cp.Status.Disks, api.CheckpointDisk{Volume: v.ID, Snapshot: snap.ID, Device: device})
	if err := firstOf(ready(v), c.keeps(v), c.becomes(after)); err != nil {
		return order, err
	}
	c.makes(snap, api.PhaseReady)
	return order, nil
}

// layer returns a name for a file that the operation makes. An audit knows whose it is.
func (c *acceptance) layer() string {
	id := api.NewID()
	c.op.Plan.Makes = append(c.op.Plan.Makes, id)
	return id
}

// keepable checks that a disk of a VM can be kept together with the memory.
func keepable(vm *api.VM, v *api.Volume, pool *api.Pool, snaps []*api.Snapshot, no *problem.Problem) error {
	instead := func() error {
		if v.Spec.Root {
			return no.Try("take a snapshot of each of its volumes: gnext snap add NAME --volume %s", v.Name)
		}
		return no.Try("detach it first (gnext vol detach %s --vm %s), or take snapshots one by one: gnext snap add NAME --volume %s", v.Name, vm.Name, v.Name)
	}
	at := v.Attachment(vm.ID)
	if v.Spec.Shareable {
		no.Kind = problem.Unsupported
	}
	switch {
	case v.Spec.Shareable:
		no = no.Because("several VMs may write to volume %s, and going back would change it below their feet", v.Name)
	case at != nil && at.ReadOnly && !pool.Spec.Files():
		no = no.Because("it has volume %s read-only, and going back would change what it does not write to", v.Name)
	case at != nil && at.ReadOnly:
		no = no.Because("it has volume %s read-only, and its hypervisor does not change such a disk while it runs", v.Name)
	case len(snaps) >= api.MaxSnapshots:
		return no.Because("volume %s has %d snapshots, and each makes it slower", v.Name, len(snaps)).Try("delete one that is not needed: gnext cp list --vm %s, gnext snap list --volume %s", vm.Name, v.Name)
	default:
		return nil
	}
	return instead()
}

// checkpoint finds a checkpoint and its VM.
func (a *Admission) checkpoint(c *acceptance, ref string) (*api.Checkpoint, *api.VM, error) {
	cp, err := store.Find[api.Checkpoint](c.ctx, c.kv, c.h, c.opts.Project, ref)
	if err != nil {
		return nil, nil, err
	}
	vm, err := store.Get[api.VM](c.ctx, c.kv, c.h, cp.Project, cp.Spec.VM)
	return cp, vm, err
}

// kept returns what a checkpoint keeps of a disk, and the volume.
func (a *Admission) kept(c *acceptance, cp *api.Checkpoint, d api.CheckpointDisk) (*api.Snapshot, *api.Volume, error) {
	snap, err := store.Get[api.Snapshot](c.ctx, c.kv, c.h, cp.Project, d.Snapshot)
	if err != nil {
		return nil, nil, problem.Wrap(err, problem.Internal, "checkpoint %s has lost the snapshot of disk %s", cp.Name, d.Device)
	}
	v, err := store.Get[api.Volume](c.ctx, c.kv, c.h, cp.Project, d.Volume)
	return snap, v, err
}

// checkpointsOf returns the checkpoints of a VM.
func (a *Admission) checkpointsOf(c *acceptance, vm *api.VM) ([]*api.Checkpoint, error) {
	all, err := store.List[api.Checkpoint](c.ctx, c.kv, c.h, vm.Project)
	return slices.DeleteFunc(all, func(cp *api.Checkpoint) bool { return cp.Spec.VM != vm.ID }), err
}

// DeleteCheckpoint accepts giving a checkpoint up. In pools of files what it keeps of each disk is merged with what goes on from that,
// so no more than one thing may.
func (a *Admission) DeleteCheckpoint(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpCheckpointDelete, targetRequest{ref}, func(c *acceptance) error {
		cp, vm, err := a.checkpoint(c, ref)
		if err != nil {
			return err
		}
		no := problem.New(problem.Conflict, "checkpoint %s cannot be deleted", cp.Name)
		if err := firstOf(ready(cp), c.deletes(cp), reachable(vm, no), c.keeps(vm)); err != nil {
			return err
		}
		order, held := api.CheckpointOrder{Checkpoint: cp.ID, VM: vm.ID}, map[string]bool{vm.ID: true}
		for _, d := range cp.Status.Disks {
			disk, err := a.dropDisk(c, cp, d, held, no)
			if err != nil {
				return err
			}
			order.Disks = append(order.Disks, disk)
		}
		if err := a.inheritCheckpoint(c, vm, cp); err != nil {
			return err
		}
		c.releases(store.QuotaClaim(cp.Project, cp.ID))
		return c.input(order)
	})
}

// dropDisk drafts giving up what a checkpoint keeps of a disk, whoever has the volume now.
func (a *Admission) dropDisk(c *acceptance, cp *api.Checkpoint, d api.CheckpointDisk, held map[string]bool, no *problem.Problem) (order api.SnapshotOrder, err error) {
	snap, v, err := a.kept(c, cp, d)
	if err != nil {
		return order, err
	}
	pool, all, err := a.tree(c, v)
	if err != nil {
		return order, err
	}
	children := slices.DeleteFunc(all, func(s *api.Snapshot) bool { return s.Spec.Parent != snap.ID })
	if pool.Spec.Files() {
		if err := unbranched(v, snap, children, no); err != nil {
			return order, err
		}
	}
	if err := firstOf(ready(v), c.keeps(v), c.holds(snap, api.PhaseDeleting, "")); err != nil {
		return order, err
	}
	for _, id := range v.VMs() {
		if held[id] {
			continue
		}
		held[id] = true
		if _, err := a.onlyVM(c, v, no); err != nil {
			return order, err
		}
	}
	c.releases(store.UseClaim(api.RefTo(v), api.RefTo(snap)))
	return c.inherit(v, snap, children, pool.Spec.Files())
}

// inheritCheckpoint has those that go on from a checkpoint that is deleted go on from its parent.
func (a *Admission) inheritCheckpoint(c *acceptance, vm *api.VM, cp *api.Checkpoint) error {
	all, err := a.checkpointsOf(c, vm)
	if err != nil {
		return err
	}
	for _, child := range all {
		if child.Spec.Parent != cp.ID {
			continue
		}
		after := *child
		after.Spec.Parent = cp.Spec.Parent
		if err := firstOf(c.keeps(child), c.becomes(&after)); err != nil {
			return err
		}
	}
	if vm.Status.Checkpoint != cp.ID {
		return nil
	}
	after := *vm
	after.Status.Checkpoint = cp.Spec.Parent
	return c.becomes(&after)
}

// RevertCheckpoint accepts bringing a VM back to the moment of a checkpoint: it runs then, whatever it does now. What it has in its
// memory now, and what was written since its last checkpoint or snapshot, is lost.
func (a *Admission) RevertCheckpoint(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpCheckpointRevert, targetRequest{ref}, func(c *acceptance) error {
		cp, vm, err := a.checkpoint(c, ref)
		if err != nil {
			return err
		}
		no := problem.New(problem.Conflict, "vm %s cannot go back to checkpoint %s", vm.Name, cp.Name)
		if err := firstOf(c.target(cp), ready(cp), c.keeps(cp), reachable(vm, no)); err != nil {
			return err
		}
		order := api.CheckpointOrder{Checkpoint: cp.ID, VM: vm.ID}
		if vm.Status.Phase == api.PhaseRunning {
			order.Save = c.op.ID
		}
		if err := c.holds(vm, vm.Status.Phase, api.PhaseRunning); err != nil {
			return err
		}
		if err := a.sameDisks(c, vm, cp, no); err != nil {
			return err
		}
		after := *vm
		after.Status.Checkpoint = cp.ID
		for _, d := range cp.Status.Disks {
			disk, grown, err := a.revertDisk(c, cp, d)
			if err != nil {
				return err
			}
			order.Disks = append(order.Disks, disk)
			if d.Device == api.RootDevice {
				after.Spec.RootDisk += grown
				if err := a.growQuota(c, vm, grown); err != nil {
					return err
				}
			}
		}
		return firstOf(c.becomes(&after), c.input(order))
	})
}

// sameDisks checks that a VM has the disks that it had then: its memory knows those, and no others.
func (a *Admission) sameDisks(c *acceptance, vm *api.VM, cp *api.Checkpoint, no *problem.Problem) error {
	has := slices.Clone(vm.Status.Volumes)
	for _, d := range cp.Status.Disks {
		i := slices.Index(has, d.Volume)
		v, err := store.Get[api.Volume](c.ctx, c.kv, c.h, vm.Project, d.Volume)
		if err != nil {
			return err
		}
		if i < 0 {
			return no.Because("it had volume %s then, and its memory knows of it", v.Name).Try("attach it again: gnext vol attach %s --vm %s", v.Name, vm.Name)
		}
		has = slices.Delete(has, i, i+1)
		if at := v.Attachment(vm.ID); at != nil && (at.Device != d.Device || at.ReadOnly) {
			return no.Because("it had volume %s as %s then, and could write to it; now it has it as %s, read-only: %v", v.Name, d.Device, at.Device, at.ReadOnly).
				Try("detach it and attach it again, so that it is %s", d.Device)
		}
	}
	var names []string
	for _, id := range has {
		v, err := store.Get[api.Volume](c.ctx, c.kv, c.h, vm.Project, id)
		if err != nil {
			return err
		}
		names = append(names, v.Name)
	}
	if len(names) == 0 {
		return nil
	}
	return no.Because("it did not have volume %s then, and its memory knows nothing of it", strings.Join(first(names, 5), ", ")).Try("detach it first: gnext vol detach %s --vm %s", names[0], vm.Name)
}

// revertDisk drafts a disk going back to what a checkpoint keeps of it, with the size that it had.
func (a *Admission) revertDisk(c *acceptance, cp *api.Checkpoint, d api.CheckpointDisk) (order api.SnapshotOrder, grown int64, err error) {
	snap, v, err := a.kept(c, cp, d)
	if err != nil {
		return order, 0, err
	}
	pool, err := store.Get[api.Pool](c.ctx, c.kv, c.h, "", v.Spec.Pool)
	if err != nil {
		return order, 0, err
	}
	order = api.SnapshotOrder{Snapshot: snap.ID, Volume: v.ID, Size: snap.Status.Size, Files: pool.Spec.Files(), Frozen: layerOf(v, snap)}
	after := changed(v)
	grown = snap.Status.Size - v.Spec.Size
	after.Status.Snapshot, after.Spec.Size = snap.ID, snap.Status.Size
	if order.Files {
		order.Layer = c.layer()
		after.Status.Layer = order.Layer
	} else {
		order.Layer = c.op.ID // see RevertSnapshot
	}
	if err := firstOf(ready(v), c.keeps(v), c.keeps(snap), c.becomes(after)); err != nil || v.Spec.Root {
		return order, grown, err
	}
	return order, grown, a.growQuota(c, v, grown)
}

// ownSnapshot checks that a snapshot does not belong to a checkpoint, with which it lives and dies.
func (a *Admission) ownSnapshot(c *acceptance, snap *api.Snapshot, verb string, no *problem.Problem) error {
	if snap.Spec.Checkpoint == "" {
		return nil
	}
	cp, err := store.Get[api.Checkpoint](c.ctx, c.kv, c.h, snap.Project, snap.Spec.Checkpoint)
	if err != nil {
		return err
	}
	return no.Because("it belongs to checkpoint %s, which has the memory that goes with it", cp.Name).Try("gnext cp %s %s", verb, cp.Name)
}

// leaveCheckpoints drafts the end of the checkpoints of a VM that is deleted, and returns the files with their memory. What they
// keep of volumes that stay becomes a snapshot of its own.
func (a *Admission) leaveCheckpoints(c *acceptance, vm *api.VM, req api.VMDelete) (memories []string, err error) {
	all, err := a.checkpointsOf(c, vm)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	if !req.Snapshots {
		var names []string
		for _, cp := range all {
			names = append(names, cp.Name)
		}
		slices.Sort(names)
		return nil, problem.New(problem.Conflict, "vm %s cannot be deleted", vm.Name).Because("it has checkpoints: %s", strings.Join(first(names, 5), ", ")).
			Try("delete them with it (gnext vm del %s --snapshots), or before (gnext cp list --vm %s)", vm.Name, vm.Name)
	}
	for _, cp := range all {
		memories = append(memories, cp.ID)
		if err := c.holds(cp, api.PhaseDeleting, ""); err != nil {
			return nil, err
		}
		c.releases(store.QuotaClaim(cp.Project, cp.ID))
		for _, d := range cp.Status.Disks {
			snap, v, err := a.kept(c, cp, d)
			if err != nil {
				return nil, err
			}
			if v.Spec.Root {
				continue // it goes
			}
			after := *snap
			after.Spec.Checkpoint = ""
			if err := firstOf(c.keeps(snap), c.becomes(&after)); err != nil {
				return nil, err
			}
		}
	}
	return memories, nil
}
