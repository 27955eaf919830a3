package storage

import (
	"context"
	"time"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Volumes is what the driver of a pool does for volumes. All methods may be called again after any interruption; a pool that
// is not prepared on this node is not_found, one that is full no_capacity, and one whose servers are away unavailable.
type Volumes interface {
	// CreateVolume makes a volume: empty, as an image's child, or as a copy of another. One that was made already by the same
	// plan is content; another one of its name is a conflict. Tell may be nil.
	CreateVolume(ctx context.Context, v steps.VolumePlan, src Source, tell func(api.Progress)) error
	// RemoveVolume removes the layer of the plan, and what was half-made of it. It is content if it is not there, and refuses
	// (in_use) what something else is made on.
	RemoveVolume(ctx context.Context, v steps.VolumePlan) error
	// GrowVolume gives a volume that no guest has open the plan's size. It never shrinks one: a conflict.
	GrowVolume(ctx context.Context, v steps.VolumePlan) error
	// LocateVolume says how a hypervisor of this node opens a volume.
	LocateVolume(v steps.VolumePlan) (compute.DiskSource, error)
	// Capabilities says what can be done with the volumes of a pool.
	Capabilities(p steps.PoolOnNode) Capabilities
}

// Snapshots is what the driver of a pool does for snapshots of volumes.
//
// In a pool of files a volume is a chain of layers. What is said of guests below is for those: a layer that a guest has open is
// merged by its hypervisor (compute.Disks), and the driver does the rest.
type Snapshots interface {
	// AddSnapshot keeps the volume as it is now. In a pool of files it makes the layer of the plan on top of the volume, which
	// is all if no guest has the volume open; one that has must be brought to write there.
	AddSnapshot(ctx context.Context, s steps.SnapshotPlan) error
	// UndoSnapshot takes it back, for a volume that no guest has open: what was written since is kept. Content if there is none.
	UndoSnapshot(ctx context.Context, s steps.SnapshotPlan) error
	// DropSnapshot gives a snapshot up. In a pool of files it merges Child into Frozen and removes Child, or removes Frozen if it
	// has no child; it refuses (in_use) while something else is made on Frozen. Merged says that a guest's hypervisor has merged
	// them already. It can be called again after any interruption, and is content if it was done. Tell may be nil.
	DropSnapshot(ctx context.Context, s steps.SnapshotDrop, merged bool, tell func(api.Progress)) error
	// RetireLayer has the layer of a plan be taken for gone from this moment on: it was merged into the one below. It takes but
	// a moment, because a guest waits. Pools of files only.
	RetireLayer(v steps.VolumePlan) error
	// CheckRevert fails (not_found) unless there is what RevertVolume goes back to, whether somebody has the volume open or not.
	CheckRevert(ctx context.Context, r steps.VolumeRevert) error
	// RevertVolume makes the new layer on the snapshot's, in a pool of files, or has the volume be as its snapshot. No guest may
	// have it open.
	RevertVolume(ctx context.Context, r steps.VolumeRevert) error
	// UndoRevert takes it back. It is content if there is nothing to take back.
	UndoRevert(ctx context.Context, r steps.VolumeRevert) error
}

// Timer is for pools in which a guest has to wait for less than a snapshot takes.
type Timer interface {
	// TimeSnapshot is AddSnapshot, and tells for how long at most nobody could write to the volume; 0: it does not know.
	TimeSnapshot(ctx context.Context, s steps.SnapshotPlan) (time.Duration, error)
}

// TimeSnapshot takes a snapshot in any pool, and tells what that knows of the time.
func TimeSnapshot(ctx context.Context, pool Snapshots, s steps.SnapshotPlan) (time.Duration, error) {
	if t, ok := pool.(Timer); ok {
		return t.TimeSnapshot(ctx, s)
	}
	return 0, pool.AddSnapshot(ctx, s)
}

// Capabilities is what a driver can do, for people, for placement and for those who accept requests. docs/storage.md has a table of
// it, made from the tags "doc".
type Capabilities struct {
	Type         string // api.PoolDir...
	Access       string `doc:"What nodes and hypervisors reach volumes by"`
	Shared       bool   `doc:"All nodes of the pool see the same volumes: VMs move and are restarted without a copy of their disks"` // a directory may or may not
	Files        bool   `doc:"Volumes are chains of files: each snapshot adds one, which reads may have to look into"`
	Clone        bool   `doc:"A new volume from an image copies no data"`
	Flatten      bool   `doc:"A volume can be made independent of its image, while a guest runs with it"`
	Thin         bool   `doc:"Volumes take only the space that was written, snapshots that of what was overwritten"`
	Discard      bool   `doc:"Space that guests have freed (discard) is given back"`
	GrowOnline   bool   `doc:"Volumes grow while guests have them open"`
	MultiWriter  bool   `doc:"Several guests may write to a volume at once (shareable)"`
	SharedSnaps  bool   `doc:"Snapshots of shareable volumes"`
	LiveSnapshot bool   `doc:"Snapshots while a guest writes, without its memory"`
	Checkpoint   bool   `doc:"Checkpoints: a VM is kept with its memory while it runs, and goes back to that moment"`
	DropAnywhere bool   `doc:"Snapshots can be deleted where their tree branches, and without copying anything"`
	Capture      bool   `doc:"An image can be made of a volume or snapshot"`
	Checksum     bool   `doc:"The storage itself keeps checksums, and notices data that has changed by itself"` // file systems of others may, which we do not know
}
