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

// snapshotsOf returns the snapshots of a volume.
func (a *Admission) snapshotsOf(c *acceptance, v *api.Volume) ([]*api.Snapshot, error) {
	all, err := store.List[api.Snapshot](c.ctx, c.kv, c.h, v.Project)
	return slices.DeleteFunc(all, func(s *api.Snapshot) bool { return s.Spec.Volume != v.ID }), err
}

// CreateSnapshot accepts keeping a volume as it is at a moment, which is when the operation is carried out.
func (a *Admission) CreateSnapshot(ctx context.Context, h auth.Handle, o Options, req api.SnapshotCreate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpSnapshotCreate, req, func(c *acceptance) error {
		v, err := store.Find[api.Volume](ctx, a.kv, h, o.Project, req.Volume)
		if err != nil {
			return err
		}
		no := problem.New(problem.Conflict, "volume %s cannot be snapshotted", v.Name)
		pool, snaps, err := a.tree(c, v)
		if err != nil {
			return err
		}
		if v.Spec.Shareable && pool.Spec.Files() {
			no.Kind = problem.Unsupported
			return no.Because("several VMs may write to it, and pool %s keeps such volumes as raw files, which have no snapshots", pool.Name).
				Try("make a copy of it: gnext vol add NAME --from-volume %s", v.Name)
		}
		if len(snaps) >= api.MaxSnapshots {
			return no.Because("it has %d snapshots, and each makes it slower", len(snaps)).Try("delete one that is not needed: gnext snap list --volume %s", v.Name)
		}
		if err := firstOf(ready(v), c.keeps(v)); err != nil {
			return err
		}
		if _, err := a.onlyVM(c, v, no); err != nil {
			return err
		}
		snap := &api.Snapshot{Meta: c.meta(o.Project, req.Name, req.Labels), Spec: api.SnapshotSpec{Volume: v.ID, Parent: v.Status.Snapshot}}
		snap.Status.Size = v.Spec.Size
		after := changed(v)
		after.Status.Snapshot = snap.ID
		order := api.SnapshotOrder{Snapshot: snap.ID, Volume: v.ID, Size: v.Spec.Size, Files: pool.Spec.Files(), Freeze: !req.NoFreeze}
		if order.Files { // the new layer is called as the operation, so that an audit knows whose it is
			snap.Status.Layer = v.LayerName()
			order.Frozen, order.Layer = v.Status.Layer, c.op.ID
			after.Status.Layer = order.Layer
		}
		c.claims(store.UseClaim(api.RefTo(v), api.RefTo(snap)), "")
		c.makes(snap, api.PhaseReady)
		return firstOf(c.target(snap), c.becomes(after), c.input(order))
	})
}

// tree returns the pool of a volume, and its snapshots.
func (a *Admission) tree(c *acceptance, v *api.Volume) (*api.Pool, []*api.Snapshot, error) {
	pool, err := store.Get[api.Pool](c.ctx, c.kv, c.h, "", v.Spec.Pool)
	if err != nil {
		return nil, nil, err
	}
	snaps, err := a.snapshotsOf(c, v)
	return pool, snaps, err
}

// DeleteSnapshot accepts giving a snapshot up. In a pool of files what it keeps is merged with what goes on from it, so no more
// than one thing may.
func (a *Admission) DeleteSnapshot(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpSnapshotDelete, targetRequest{ref}, func(c *acceptance) error {
		snap, v, err := a.snapshot(c, ref)
		if err != nil {
			return err
		}
		no := problem.New(problem.Conflict, "snapshot %s cannot be deleted", snap.Name)
		if err := a.ownSnapshot(c, snap, "del", no); err != nil {
			return err
		}
		pool, all, err := a.tree(c, v)
		if err != nil {
			return err
		}
		children := slices.DeleteFunc(all, func(s *api.Snapshot) bool { return s.Spec.Parent != snap.ID })
		if pool.Spec.Files() {
			if err := unbranched(v, snap, children, no); err != nil {
				return err
			}
		}
		if err := firstOf(ready(v), ready(snap), c.deletes(snap), c.keeps(v)); err != nil {
			return err
		}
		if _, err := a.onlyVM(c, v, no); err != nil {
			return err
		}
		c.releases(store.UseClaim(api.RefTo(v), api.RefTo(snap)))
		order, err := c.inherit(v, snap, children, pool.Spec.Files())
		if err != nil {
			return err
		}
		return c.input(order)
	})
}

// snapshot finds a snapshot and its volume.
func (a *Admission) snapshot(c *acceptance, ref string) (*api.Snapshot, *api.Volume, error) {
	snap, err := store.Find[api.Snapshot](c.ctx, c.kv, c.h, c.opts.Project, ref)
	if err != nil {
		return nil, nil, err
	}
	v, err := store.Get[api.Volume](c.ctx, c.kv, c.h, snap.Project, snap.Spec.Volume)
	return snap, v, err
}

// unbranched checks that no more than one thing goes on from a snapshot.
func unbranched(v *api.Volume, snap *api.Snapshot, children []*api.Snapshot, no *problem.Problem) error {
	var names []string
	for _, s := range children {
		names = append(names, "snapshot "+s.Name)
	}
	if v.Status.Snapshot == snap.ID {
		names = append(names, "volume "+v.Name+" as it is now")
	}
	if len(names) < 2 {
		return nil
	}
	return no.Because("%s go on from it, and each needs what it keeps", strings.Join(first(names, 5), " and ")).Try("delete snapshots first until one of those is left; what the volume is now goes when it is taken back to another one: gnext snap switch NAME")
}

// inherit has those who go on from a snapshot that is deleted go on from its parent. In a pool of files the one who does takes
// over its layer as well, into which his own is merged.
func (c *acceptance) inherit(v *api.Volume, snap *api.Snapshot, children []*api.Snapshot, files bool) (api.SnapshotOrder, error) {
	order := api.SnapshotOrder{Snapshot: snap.ID, Volume: v.ID, Size: v.Spec.Size, Files: files, Frozen: layerOf(v, snap)}
	for _, s := range children {
		after := *s
		after.Spec.Parent = snap.Spec.Parent
		if files {
			order.Layer, after.Status.Layer = s.Status.Layer, snap.Status.Layer
		}
		if err := firstOf(c.keeps(s), c.becomes(&after)); err != nil {
			return order, err
		}
	}
	if v.Status.Snapshot != snap.ID {
		return order, nil
	}
	after := changed(v)
	after.Status.Snapshot = snap.Spec.Parent
	if files {
		order.Layer, after.Status.Layer = v.Status.Layer, layerOf(v, snap)
	}
	return order, c.becomes(after)
}

// revertRequest is a request to go back to a snapshot as an operation remembers it.
type revertRequest struct {
	targetRequest
	api.SnapshotRevert
}

// RevertSnapshot accepts making a volume again what it was when the snapshot was taken. What was written to it since the last
// snapshot is lost.
func (a *Admission) RevertSnapshot(ctx context.Context, h auth.Handle, o Options, ref string, req api.SnapshotRevert) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpSnapshotRevert, revertRequest{targetRequest{ref}, req}, func(c *acceptance) error {
		snap, v, err := a.snapshot(c, ref)
		if err != nil {
			return err
		}
		no := problem.New(problem.Conflict, "volume %s cannot go back to snapshot %s", v.Name, snap.Name)
		if err := a.ownSnapshot(c, snap, "switch", no); err != nil {
			return err
		}
		if err := firstOf(c.target(snap), ready(v), ready(snap), c.keeps(snap), c.keeps(v)); err != nil {
			return err
		}
		pool, err := store.Get[api.Pool](ctx, a.kv, h, "", v.Spec.Pool)
		if err != nil {
			return err
		}
		vm, err := a.onlyVM(c, v, no)
		if err != nil {
			return err
		}
		order := api.SnapshotOrder{Snapshot: snap.ID, Volume: v.ID, Size: snap.Status.Size, Files: pool.Spec.Files(), Frozen: layerOf(v, snap)}
		if vm != nil && vm.Status.Phase == api.PhaseRunning {
			if !req.Restart {
				return no.Because("vm %s has it, and runs", vm.Name).Try("stop it first (gnext vm poweroff %s), or have it restarted: gnext snap switch %s --restart", vm.Name, snap.Name)
			}
			order.Stop = &api.VMStop{Force: req.Force, Timeout: req.Timeout}
		}
		after, grown := changed(v), snap.Status.Size-v.Spec.Size
		after.Status.Snapshot, after.Spec.Size = snap.ID, snap.Status.Size
		order.Layer = c.op.ID
		if order.Files {
			after.Status.Layer = c.op.ID
		}
		return firstOf(c.becomes(after), c.input(order), a.resized(c, v, vm, grown))
	})
}
