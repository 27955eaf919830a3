//go:build ceph && cgo

package rbd

import (
	"context"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

var errNotYet = problem.New(problem.Unsupported, "pools of Ceph have no volumes of their own yet")

// removeDevice removes a disk or a seed.
func (d *Driver) removeDevice(ctx context.Context, io *rados.IOContext, p steps.PoolOnNode, name string) error {
	err := d.removeUnused(ctx, io, p, name)
	if code(err) == unix.ENOTEMPTY {
		return problem.New(problem.InUse, "%s of Ceph pool %s has snapshots", name, p.Source.Name).Try("delete them first")
	}
	return err
}

// CreateVolume implements storage.Volumes.
func (d *Driver) CreateVolume(context.Context, steps.VolumePlan, storage.Source, func(api.Progress)) error {
	return errNotYet
}

// RemoveVolume implements storage.Volumes.
func (d *Driver) RemoveVolume(context.Context, steps.VolumePlan) error { return errNotYet }

// GrowVolume implements storage.Volumes.
func (d *Driver) GrowVolume(context.Context, steps.VolumePlan) error { return errNotYet }

// AddSnapshot implements storage.Snapshots.
func (d *Driver) AddSnapshot(context.Context, steps.SnapshotPlan) error { return errNotYet }

// UndoSnapshot implements storage.Snapshots.
func (d *Driver) UndoSnapshot(context.Context, steps.SnapshotPlan) error { return errNotYet }

// DropSnapshot implements storage.Snapshots.
func (d *Driver) DropSnapshot(context.Context, steps.SnapshotDrop, bool, func(api.Progress)) error {
	return errNotYet
}

// RetireLayer implements storage.Snapshots.
func (d *Driver) RetireLayer(steps.VolumePlan) error { return errNotYet }

// RevertVolume implements storage.Snapshots.
func (d *Driver) RevertVolume(context.Context, steps.VolumeRevert) error { return errNotYet }

// UndoRevert implements storage.Snapshots.
func (d *Driver) UndoRevert(context.Context, steps.VolumeRevert) error { return errNotYet }

var _ = rbd.NoSnapshot
