package storage

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// done is use for what has no answer but an error.
func (m *Mounts) done(ctx context.Context, p steps.PoolOnNode, do func(context.Context) error) error {
	_, err := use(ctx, m, p, func(ctx context.Context) (struct{}, error) { return struct{}{}, do(ctx) })
	return err
}

// Capabilities implements Volumes. NFS cannot take space back from the middle of a file before version 4.2.
func (m *Mounts) Capabilities(p steps.PoolOnNode) Capabilities {
	c := m.files.Capabilities(p)
	c.Type, c.Shared, c.Access = p.Type, true, "a mount with FUSE"
	if p.Type == api.PoolNFS {
		c.Access, c.Discard = "a mount of the kernel", slices.Contains(strings.Split(p.Source.Options, ","), "vers=4.2")
	}
	return c
}

// Locate implements Pool.
func (m *Mounts) Locate(plan steps.VMPlan) (compute.DomainFiles, error) { return m.files.Locate(plan) }

// LocateVolume implements Volumes.
func (m *Mounts) LocateVolume(v steps.VolumePlan) (compute.DiskSource, error) {
	return m.files.LocateVolume(v)
}

// CreateVolume implements Volumes.
func (m *Mounts) CreateVolume(ctx context.Context, v steps.VolumePlan, src Source, tell func(api.Progress)) error {
	return m.done(ctx, v.Pool, func(ctx context.Context) error {
		err := m.files.CreateVolume(ctx, v, src, tell)
		if err == nil && v.Shareable {
			if err = checkRaw(v.Pool.Path); err != nil {
				err = errors.Join(err, m.files.RemoveVolume(ctx, v))
			}
		}
		return err
	})
}

// CheckRevert implements Snapshots.
func (m *Mounts) CheckRevert(ctx context.Context, r steps.VolumeRevert) error {
	return m.done(ctx, r.Volume.Pool, func(ctx context.Context) error { return m.files.CheckRevert(ctx, r) })
}

// RemoveVolume implements Volumes.
func (m *Mounts) RemoveVolume(ctx context.Context, v steps.VolumePlan) error {
	return m.done(ctx, v.Pool, func(ctx context.Context) error { return m.unlessNone(v.Pool, m.files.RemoveVolume(ctx, v)) })
}

// GrowVolume implements Volumes.
func (m *Mounts) GrowVolume(ctx context.Context, v steps.VolumePlan) error {
	return m.done(ctx, v.Pool, func(ctx context.Context) error { return m.files.GrowVolume(ctx, v) })
}

// AddSnapshot implements Snapshots.
func (m *Mounts) AddSnapshot(ctx context.Context, s steps.SnapshotPlan) error {
	return m.done(ctx, s.Volume.Pool, func(ctx context.Context) error { return m.files.AddSnapshot(ctx, s) })
}

// UndoSnapshot implements Snapshots.
func (m *Mounts) UndoSnapshot(ctx context.Context, s steps.SnapshotPlan) error {
	return m.done(ctx, s.Volume.Pool, func(ctx context.Context) error { return m.files.UndoSnapshot(ctx, s) })
}

// DropSnapshot implements Snapshots.
func (m *Mounts) DropSnapshot(ctx context.Context, s steps.SnapshotDrop, merged bool, tell func(api.Progress)) error {
	return m.done(ctx, s.Volume.Pool, func(ctx context.Context) error { return m.files.DropSnapshot(ctx, s, merged, tell) })
}

// RetireLayer implements Snapshots. A guest waits, and its hypervisor has the layer open: the file system is there, and is not
// asked whether it is.
func (m *Mounts) RetireLayer(v steps.VolumePlan) error { return m.files.RetireLayer(v) }

// RevertVolume implements Snapshots.
func (m *Mounts) RevertVolume(ctx context.Context, r steps.VolumeRevert) error {
	return m.done(ctx, r.Volume.Pool, func(ctx context.Context) error { return m.files.RevertVolume(ctx, r) })
}

// UndoRevert implements Snapshots.
func (m *Mounts) UndoRevert(ctx context.Context, r steps.VolumeRevert) error {
	return m.done(ctx, r.Volume.Pool, func(ctx context.Context) error { return m.files.UndoRevert(ctx, r) })
}

// OpenVolume implements Opened.
func (m *Mounts) OpenVolume(ctx context.Context, v steps.VolumePlan) (Disk, error) {
	from, ok := m.files.(Opened)
	if !ok {
		return nil, problem.New(problem.Unsupported, "volumes in pools of type %s cannot be sent to the server", v.Pool.Type)
	}
	return use(ctx, m, v.Pool, func(ctx context.Context) (Disk, error) { return from.OpenVolume(ctx, v) })
}
