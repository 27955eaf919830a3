//go:build ceph && cgo

package rbd

import (
	"context"
	"errors"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// addSnap takes a snapshot; one that is there is content. A guest that has the device open goes on: its librbd brings what is on its
// way to an end, and takes the snapshot.
func addSnap(io *rados.IOContext, name, snap string) error {
	img, err := rbd.OpenImage(io, name, rbd.NoSnapshot)
	if err != nil {
		return err
	}
	return errors.Join(snapOn(img, snap), img.Close())
}

func snapOn(img *rbd.Image, snap string) error {
	if _, err := img.CreateSnapshot(snap); code(err) != unix.EEXIST {
		return err
	}
	return nil
}

// dropSnap removes a snapshot; none is fine.
func dropSnap(io *rados.IOContext, name, snap string) error {
	img, err := rbd.OpenImage(io, name, rbd.NoSnapshot)
	if code(err) == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(snapOff(img, snap), img.Close())
}

// snapOff removes a snapshot that is not protected, to its end; none is fine.
func snapOff(img *rbd.Image, snap string) error {
	if err := img.GetSnapshot(snap).Remove(); err != nil && code(err) != unix.ENOENT {
		return err
	}
	all, err := half(img)
	for id, name := range all {
		if err == nil && name == snap {
			err = img.RemoveSnapByID(id)
		}
		if code(err) == unix.ENOENT { // somebody else does the same
			err = nil
		}
	}
	return err
}

// half returns the snapshots that somebody has begun to remove and has died, by the names that they had. They have no such name any
// more, and hold the device and the space: librbd takes the name of a snapshot away first.
func half(img *rbd.Image) (map[uint64]string, error) {
	all, err := img.GetSnapshotNames()
	if err != nil {
		return nil, err
	}
	out := map[uint64]string{}
	for _, s := range all {
		in, err := img.GetSnapNamespaceType(s.Id)
		if err == nil && in == rbd.SnapNamespaceTypeTrash {
			out[s.Id], err = img.GetSnapTrashNamespace(s.Id)
		}
		if err != nil && code(err) != unix.ENOENT {
			return nil, err
		}
	}
	return out, nil
}

// has reports whether a device has a snapshot.
func has(img *rbd.Image, snap string) (bool, error) {
	all, err := img.GetSnapshotNames()
	for _, s := range all {
		if s.Name == snap {
			return true, err
		}
	}
	return false, err
}

func checkSnap(id string) error {
	if !api.IsUUID(id) {
		return problem.New(problem.Invalid, "%q is not the ID of a snapshot", id)
	}
	return nil
}

// AddSnapshot implements storage.Snapshots.
func (d *Driver) AddSnapshot(ctx context.Context, s steps.SnapshotPlan) error {
	_, err := d.TimeSnapshot(ctx, s)
	return err
}

// TimeSnapshot implements storage.Timer. That the device is opened and closed here a guest does not notice: what it writes waits within
// librbd's call alone.
func (d *Driver) TimeSnapshot(ctx context.Context, s steps.SnapshotPlan) (time.Duration, error) {
	if err := checkSnap(s.Snapshot); err != nil {
		return 0, err
	}
	took := make(chan time.Duration, 1)
	err := d.onVolume(ctx, s.Volume, "take a snapshot", func(_ context.Context, _ *rados.IOContext, img *rbd.Image) error {
		began := time.Now()
		err := snapOn(img, snapPrefix+s.Snapshot)
		took <- time.Since(began)
		return err
	})
	if err != nil {
		return 0, err
	}
	return <-took, nil
}

// UndoSnapshot implements storage.Snapshots. What was written since was written to the volume itself.
func (d *Driver) UndoSnapshot(ctx context.Context, s steps.SnapshotPlan) error {
	return d.dropNamed(ctx, s.Volume, s.Snapshot)
}

// DropSnapshot implements storage.Snapshots.
func (d *Driver) DropSnapshot(ctx context.Context, s steps.SnapshotDrop, _ bool, _ func(api.Progress)) error {
	return d.dropNamed(ctx, s.Volume, s.Snapshot)
}

func (d *Driver) dropNamed(ctx context.Context, v steps.VolumePlan, snapshot string) error {
	if err := errors.Join(storage.CheckRBDVolume(v), checkSnap(snapshot)); err != nil {
		return problem.From(err)
	}
	name := storage.RBDDisk(v.Volume)
	err := d.onPool(ctx, v.Pool, name, "drop a snapshot of volume "+v.Volume, func(_ context.Context, io *rados.IOContext) error {
		return dropSnap(io, name, snapPrefix+snapshot)
	})
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// RetireLayer implements storage.Snapshots: there are no layers here.
func (d *Driver) RetireLayer(steps.VolumePlan) error { return nil }

// RevertVolume implements storage.Snapshots. What the volume shows before is kept, as a snapshot that is called by the plan's layer.
func (d *Driver) RevertVolume(ctx context.Context, r steps.VolumeRevert) error {
	if err := errors.Join(checkSnap(r.Snapshot), checkSnap(r.Layer)); err != nil {
		return problem.From(err)
	}
	return d.onVolume(ctx, r.Volume, "go back to a snapshot", func(ctx context.Context, io *rados.IOContext, img *rbd.Image) error {
		snap, kept := snapPrefix+r.Snapshot, keptPrefix+r.Layer
		there, err := has(img, snap)
		if err == nil && !there {
			err = noSnap(r)
		}
		if err == nil {
			err = d.alone(ctx, io, r.Volume, img)
		}
		if err == nil {
			err = snapOn(img, kept)
		}
		if err != nil {
			return err
		}
		return img.GetSnapshot(snap).Rollback()
	})
}

// CheckRevert implements storage.Snapshots.
func (d *Driver) CheckRevert(ctx context.Context, r steps.VolumeRevert) error {
	if err := errors.Join(storage.CheckRBDVolume(r.Volume), checkSnap(r.Snapshot)); err != nil {
		return problem.From(err)
	}
	name := storage.RBDDisk(r.Volume.Volume)
	return d.onPool(ctx, r.Volume.Pool, "", "look for a snapshot of volume "+r.Volume.Volume, func(_ context.Context, io *rados.IOContext) error {
		img, err := rbd.OpenImageReadOnly(io, name, rbd.NoSnapshot)
		if err != nil {
			return missing(err, r.Volume.Volume)
		}
		there, err := has(img, snapPrefix+r.Snapshot)
		if err == nil && !there {
			err = noSnap(r)
		}
		return errors.Join(err, img.Close())
	})
}

func noSnap(r steps.VolumeRevert) error {
	return problem.New(problem.NotFound, "volume %s has no snapshot %s", r.Volume.Name, r.Snapshot)
}

// UndoRevert implements storage.Snapshots.
func (d *Driver) UndoRevert(ctx context.Context, r steps.VolumeRevert) error {
	if err := checkSnap(r.Layer); err != nil {
		return err
	}
	err := d.onVolume(ctx, r.Volume, "undo going back to a snapshot", func(ctx context.Context, io *rados.IOContext, img *rbd.Image) error {
		kept := keptPrefix + r.Layer
		there, err := has(img, kept)
		if err != nil || !there {
			return err
		}
		if err := d.alone(ctx, io, r.Volume, img); err != nil {
			return err
		}
		s := img.GetSnapshot(kept)
		if err := s.Rollback(); err != nil {
			return err
		}
		return s.Remove()
	})
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// alone waits until nobody else has the device open. Whoever died with it open is let go of after a while.
func (d *Driver) alone(ctx context.Context, io *rados.IOContext, v steps.VolumePlan, img *rbd.Image) error {
	end := time.Now().Add(d.cfg.WatchPatience)
	for {
		w, err := img.ListWatchers()
		if err != nil {
			return err
		}
		if len(w) <= 1 { // ourselves
			return nil
		}
		if time.Now().After(end) {
			return problem.New(problem.InUse, "volume %s is in use", v.Name).Because("%s", openBy(io, storage.RBDDisk(v.Volume))).Try("stop the vm that has it")
		}
		select {
		case <-time.After(min(time.Second, d.cfg.WatchPatience/4+time.Millisecond)):
		case <-ctx.Done():
			return late(ctx, v.Pool, "go back to a snapshot")
		}
	}
}
