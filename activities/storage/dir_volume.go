package storage

import (
	"context"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

var errNotYet = problem.New(problem.Unsupported, "pools of directories have no volumes of their own yet")

// Capabilities implements Volumes.
func (d *Dir) Capabilities(p steps.PoolOnNode) Capabilities { return dirCapabilities(p) }

// Locate implements Pool.
func (d *Dir) Locate(plan steps.VMPlan) (compute.DomainFiles, error) { return Locate(plan) }

// LocateVolume implements Volumes.
func (d *Dir) LocateVolume(v steps.VolumePlan) (compute.DiskSource, error) { return locateVolume(v) }

// CreateVolume implements Volumes.
func (d *Dir) CreateVolume(context.Context, steps.VolumePlan, Source, func(api.Progress)) error {
	return errNotYet
}

// RemoveVolume implements Volumes.
func (d *Dir) RemoveVolume(context.Context, steps.VolumePlan) error { return errNotYet }

// GrowVolume implements Volumes.
func (d *Dir) GrowVolume(context.Context, steps.VolumePlan) error { return errNotYet }

// AddSnapshot implements Snapshots.
func (d *Dir) AddSnapshot(context.Context, steps.SnapshotPlan) error { return errNotYet }

// UndoSnapshot implements Snapshots.
func (d *Dir) UndoSnapshot(context.Context, steps.SnapshotPlan) error { return errNotYet }

// DropSnapshot implements Snapshots.
func (d *Dir) DropSnapshot(context.Context, steps.SnapshotDrop, bool, func(api.Progress)) error {
	return errNotYet
}

// RetireLayer implements Snapshots.
func (d *Dir) RetireLayer(steps.VolumePlan) error { return errNotYet }

// RevertVolume implements Snapshots.
func (d *Dir) RevertVolume(context.Context, steps.VolumeRevert) error { return errNotYet }

// UndoRevert implements Snapshots.
func (d *Dir) UndoRevert(context.Context, steps.VolumeRevert) error { return errNotYet }
