package admission

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// DefaultKeep is how long a volume stays in the recycle bin when nobody said.
const DefaultKeep = 7 * 24 * time.Hour

// Keep sets how long volumes stay in the recycle bin from now on. It returns a.
func (a *Admission) Keep(d time.Duration) *Admission {
	a.keep = d
	return a
}

// deleteRequest is a request to delete a volume as an operation remembers it.
type deleteRequest struct {
	targetRequest
	api.VolumeDelete
}

// DeleteVolume accepts the removal of a volume that no VM has: into the recycle bin, from which it can be restored until it
// expires, or for good.
func (a *Admission) DeleteVolume(ctx context.Context, h auth.Handle, o Options, ref string, req api.VolumeDelete) (*api.Operation, error) {
	if req.Now {
		return a.purge(ctx, h, o, ref, req, false)
	}
	return a.accept(ctx, h, o, api.OpVolumeDelete, deleteRequest{targetRequest{ref}, req}, func(c *acceptance) error {
		v, snaps, err := a.deletable(c, ref, req)
		if err != nil {
			return err
		}
		if v.Operation == "" && v.Status.Phase == api.PhaseDeleted {
			return problem.New(problem.Conflict, "volume %s is in the recycle bin already", v.Name).
				Try("bring it back (gnext vol restore %s), or delete it for good (gnext vol del %s --now)", v.Name, v.Name)
		}
		after := changed(v)
		after.Status.Deleted, after.Status.Expires = c.now, c.now.Add(a.keep)
		if err := firstOf(c.target(v), ready(v), c.holds(v, api.PhaseDeleting, api.PhaseDeleted), c.becomes(after)); err != nil {
			return err
		}
		return c.holdAll(snaps, api.PhaseDeleting, api.PhaseDeleted)
	})
}

// RestoreVolume accepts bringing a volume back from the recycle bin, and its snapshots with it.
func (a *Admission) RestoreVolume(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpVolumeRestore, targetRequest{ref}, func(c *acceptance) error {
		v, err := store.Find[api.Volume](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		if v.Operation == "" && v.Status.Phase != api.PhaseDeleted {
			return problem.New(problem.Conflict, "volume %s cannot be restored", v.Name).Because("it is %s, and not in the recycle bin", v.Status.Phase).Try("see: gnext vol list")
		}
		snaps, err := a.snapshotsOf(c, v)
		if err != nil {
			return err
		}
		after := changed(v)
		after.Status.Deleted, after.Status.Expires = time.Time{}, time.Time{}
		return firstOf(c.target(v), c.holds(v, api.PhaseDeleted, api.PhaseReady), c.becomes(after), c.holdAll(snaps, api.PhaseDeleted, api.PhaseReady))
	})
}

// purge accepts removing a volume and its snapshots for good; one that has expired, only if that is still so.
func (a *Admission) purge(ctx context.Context, h auth.Handle, o Options, ref string, req api.VolumeDelete, expired bool) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpVolumePurge, deleteRequest{targetRequest{ref}, req}, func(c *acceptance) error {
		v, snaps, err := a.deletable(c, ref, req)
		if err != nil {
			return err
		}
		binned := v.Status.Phase == api.PhaseDeleted
		if expired && v.Operation == "" && (!binned || v.Status.Expires.After(c.now)) {
			return problem.New(problem.Conflict, "volume %s has not expired", v.Name).Because("somebody has restored it").Try("see: gnext vol get %s", v.Name)
		}
		if !binned {
			err = ready(v)
		}
		removal, wrong := a.removal(c, v, snaps)
		if err := firstOf(err, wrong, c.target(v), c.input(removal), c.holds(v, api.PhaseDeleting, ""), c.holdAll(snaps, api.PhaseDeleting, "")); err != nil {
			return err
		}
		me := api.RefTo(v)
		c.releases(store.QuotaClaim(v.Project, v.ID), store.UseClaim(api.Ref{Kind: api.KindPool, ID: v.Spec.Pool}, me))
		if v.Spec.Image != "" {
			c.releases(imageClaim(v))
		}
		for _, s := range snaps {
			c.releases(store.UseClaim(me, api.RefTo(s)))
		}
		return nil
	})
}

// deletable finds a volume that may be deleted, and its snapshots.
func (a *Admission) deletable(c *acceptance, ref string, req api.VolumeDelete) (*api.Volume, []*api.Snapshot, error) {
	v, err := store.Find[api.Volume](c.ctx, c.kv, c.h, c.opts.Project, ref)
	if err != nil {
		return nil, nil, err
	}
	no := problem.New(problem.Conflict, "volume %s cannot be deleted", v.Name)
	vms, err := a.vmsOf(c, v)
	if err != nil {
		return nil, nil, err
	}
	snaps, err := a.snapshotsOf(c, v)
	switch {
	case err != nil:
		return nil, nil, err
	case v.Operation != "": // held by somebody, which those who want to hold it say
		return v, snaps, nil
	case v.Spec.Root:
		return nil, nil, no.Because("it is the root disk of vm %s, which it lives and dies with", vms[0].Name).Try("delete the VM: gnext vm del %s", vms[0].Name)
	case len(vms) > 0:
		no.Kind = problem.InUse
		return nil, nil, no.Because("vm %s has it", vms[0].Name).Try("detach it first: gnext vol detach %s --vm %s", v.Name, vms[0].Name)
	case v.Spec.Protected:
		return nil, nil, no.Because("it is protected against that").Try("take the protection away first: gnext vol update %s --no-protect", v.Name)
	case slices.ContainsFunc(snaps, func(s *api.Snapshot) bool { return s.Spec.Checkpoint != "" }):
		i := slices.IndexFunc(snaps, func(s *api.Snapshot) bool { return s.Spec.Checkpoint != "" })
		return nil, nil, a.ownSnapshot(c, snaps[i], "del", no)
	case len(snaps) > 0 && !req.Snapshots && v.Status.Phase != api.PhaseDeleted:
		var names []string
		for _, s := range snaps {
			names = append(names, s.Name)
		}
		return nil, nil, no.Because("it has snapshots: %s", strings.Join(first(names, 5), ", ")).Try("delete them with it (gnext vol del %s --snapshots), or before", v.Name)
	}
	return v, snaps, nil
}

// removal says what there is of a volume, each before what it stands on.
func (a *Admission) removal(c *acceptance, v *api.Volume, snaps []*api.Snapshot) (out api.VolumeRemoval, err error) {
	pool, err := store.Get[api.Pool](c.ctx, c.kv, c.h, "", v.Spec.Pool)
	if err != nil {
		return out, err
	}
	out.Layers = []string{v.Status.Layer}
	left := slices.Clone(snaps)
	for len(left) > 0 {
		i := slices.IndexFunc(left, func(s *api.Snapshot) bool {
			return !slices.ContainsFunc(left, func(o *api.Snapshot) bool { return o.Spec.Parent == s.ID })
		})
		if i < 0 {
			return out, problem.New(problem.Internal, "the snapshots of volume %s are no tree", v.Name).Try("run gnext audit")
		}
		if pool.Spec.Files() {
			out.Layers = append(out.Layers, layerOf(v, left[i]))
		} else {
			out.Snapshots = append(out.Snapshots, left[i].ID)
		}
		left = slices.Delete(left, i, i+1)
	}
	return out, nil
}

// holdAll holds snapshots that share the fate of their volume.
func (c *acceptance) holdAll(snaps []*api.Snapshot, during, then api.Phase) error {
	for _, s := range snaps {
		if err := c.holds(s, during, then); err != nil {
			return err
		}
	}
	return nil
}

// purgeAgain is how long a purge that failed is let rest before another one is asked for.
const purgeAgain = 10 * time.Minute

// PurgeExpired accepts the removal of every volume whose time in the recycle bin is over, and returns how many it has asked
// for. That one of them cannot be removed does not keep the others from it.
func (a *Admission) PurgeExpired(ctx context.Context, h auth.Handle) (asked int, err error) {
	volumes, err := store.List[api.Volume](ctx, a.kv, h, "*")
	if err != nil {
		return 0, err
	}
	now := a.now().UTC()
	var errs []error
	for _, v := range volumes {
		if v.Status.Phase != api.PhaseDeleted || v.Operation != "" || v.Status.Expires.IsZero() || v.Status.Expires.After(now) {
			continue
		}
		key := "expired/" + v.ID + "/" + now.Truncate(purgeAgain).Format(time.RFC3339)
		op, err := a.purge(ctx, h, Options{Project: v.Project, IdempotencyKey: key}, v.ID, api.VolumeDelete{Now: true, Snapshots: true}, true)
		switch {
		case err == nil && !op.State.Ended():
			asked++
		case problem.Is(err, problem.Locked), problem.Is(err, problem.Conflict), problem.Is(err, problem.NotFound):
			// somebody was faster, and the next look tells
		case err != nil:
			errs = append(errs, err)
		}
	}
	return asked, errors.Join(errs...)
}
