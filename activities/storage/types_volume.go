package storage

import (
	"context"
	"time"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Locate implements Pool. A VM may have disks in pools of several types.
func (b ByType) Locate(plan steps.VMPlan) (compute.DomainFiles, error) {
	d, err := b.of(plan.Disk.Type)
	if err != nil {
		return compute.DomainFiles{}, err
	}
	data := plan.Data
	plan.Data = nil
	out, err := d.Locate(plan)
	if err != nil {
		return compute.DomainFiles{}, err
	}
	for _, disk := range data {
		source, err := b.LocateVolume(steps.VolumePlan{Volume: disk.Volume, Pool: disk.Pool, Layer: disk.Layer, Shareable: disk.Shareable})
		if err != nil {
			return compute.DomainFiles{}, err
		}
		out.Data = append(out.Data, source)
	}
	return out, nil
}

// CreateVolume implements Volumes.
func (b ByType) CreateVolume(ctx context.Context, v steps.VolumePlan, src Source, tell func(api.Progress)) error {
	d, err := b.of(v.Pool.Type)
	if err != nil {
		return err
	}
	return d.CreateVolume(ctx, v, src, tell)
}

// RemoveVolume implements Volumes.
func (b ByType) RemoveVolume(ctx context.Context, v steps.VolumePlan) error {
	d, err := b.of(v.Pool.Type)
	if err != nil {
		return err
	}
	return d.RemoveVolume(ctx, v)
}

// GrowVolume implements Volumes.
func (b ByType) GrowVolume(ctx context.Context, v steps.VolumePlan) error {
	d, err := b.of(v.Pool.Type)
	if err != nil {
		return err
	}
	return d.GrowVolume(ctx, v)
}

// LocateVolume implements Volumes.
func (b ByType) LocateVolume(v steps.VolumePlan) (compute.DiskSource, error) {
	d, err := b.of(v.Pool.Type)
	if err != nil {
		return compute.DiskSource{}, err
	}
	return d.LocateVolume(v)
}

// Capabilities implements Volumes. A type that this node cannot use has none.
func (b ByType) Capabilities(p steps.PoolOnNode) Capabilities {
	d, err := b.of(p.Type)
	if err != nil {
		return Capabilities{Type: p.Type}
	}
	return d.Capabilities(p)
}

// AddSnapshot implements Snapshots.
func (b ByType) AddSnapshot(ctx context.Context, s steps.SnapshotPlan) error {
	d, err := b.of(s.Volume.Pool.Type)
	if err != nil {
		return err
	}
	return d.AddSnapshot(ctx, s)
}

// TimeSnapshot implements Timer.
func (b ByType) TimeSnapshot(ctx context.Context, s steps.SnapshotPlan) (time.Duration, error) {
	d, err := b.of(s.Volume.Pool.Type)
	if err != nil {
		return 0, err
	}
	return TimeSnapshot(ctx, d, s)
}

// UndoSnapshot implements Snapshots.
func (b ByType) UndoSnapshot(ctx context.Context, s steps.SnapshotPlan) error {
	d, err := b.of(s.Volume.Pool.Type)
	if err != nil {
		return err
	}
	return d.UndoSnapshot(ctx, s)
}

// DropSnapshot implements Snapshots.
func (b ByType) DropSnapshot(ctx context.Context, s steps.SnapshotDrop, merged bool, tell func(api.Progress)) error {
	d, err := b.of(s.Volume.Pool.Type)
	if err != nil {
		return err
	}
	return d.DropSnapshot(ctx, s, merged, tell)
}

// RetireLayer implements Snapshots.
func (b ByType) RetireLayer(v steps.VolumePlan) error {
	d, err := b.of(v.Pool.Type)
	if err != nil {
		return err
	}
	return d.RetireLayer(v)
}

// CheckRevert implements Snapshots.
func (b ByType) CheckRevert(ctx context.Context, r steps.VolumeRevert) error {
	d, err := b.of(r.Volume.Pool.Type)
	if err != nil {
		return err
	}
	return d.CheckRevert(ctx, r)
}

// RevertVolume implements Snapshots.
func (b ByType) RevertVolume(ctx context.Context, r steps.VolumeRevert) error {
	d, err := b.of(r.Volume.Pool.Type)
	if err != nil {
		return err
	}
	return d.RevertVolume(ctx, r)
}

// UndoRevert implements Snapshots.
func (b ByType) UndoRevert(ctx context.Context, r steps.VolumeRevert) error {
	d, err := b.of(r.Volume.Pool.Type)
	if err != nil {
		return err
	}
	return d.UndoRevert(ctx, r)
}

// OpenCopy implements Copies, for drivers that have copies to give.
func (b ByType) OpenCopy(ctx context.Context, c steps.CachedImage) (Disk, error) {
	d, err := b.of(c.PoolType)
	if err != nil {
		return nil, err
	}
	if from, ok := d.(Copies); ok {
		return from.OpenCopy(ctx, c)
	}
	return nil, problem.New(problem.Unsupported, "images' copies in pools of type %s are not given away", c.PoolType)
}

// OpenVolume implements Opened, for drivers whose volumes are files.
func (b ByType) OpenVolume(ctx context.Context, v steps.VolumePlan) (Disk, error) {
	d, err := b.of(v.Pool.Type)
	if err != nil {
		return nil, err
	}
	if from, ok := d.(Opened); ok {
		return from.OpenVolume(ctx, v)
	}
	return nil, problem.New(problem.Unsupported, "volumes in pools of type %s cannot be sent to the server", v.Pool.Type)
}

var (
	_ Copies = ByType(nil)
	_ Opened = ByType(nil)
)
