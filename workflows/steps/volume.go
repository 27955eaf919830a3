package steps

import (
	"time"

	"github.com/nextstack/nextstack/api"
)

// VolumePlan is a volume as a node makes, changes and removes it.
type VolumePlan struct {
	Volume  string     `json:"volume"`
	Name    string     `json:"name"`
	Project string     `json:"project"`
	Pool    PoolOnNode `json:"pool"`
	Agent   string     `json:"agent"` // that does the work: the one that holds it, or any of a shared pool
	Size    int64      `json:"size"`  // bytes
	// Layer is what is written to now. A volume of a file pool is a chain of files: a snapshot freezes the topmost one and puts
	// another on it. Empty: the only one, which has the volume's ID as its name.
	Layer string `json:"layer,omitempty"`
	// Shareable: several VMs may write to it at once. In a pool of files it is one raw file then, which has no snapshots.
	Shareable bool `json:"shareable,omitempty"`
	// Image or From is what a new volume is filled with; neither: it is empty.
	Image *CachedImage `json:"image,omitempty"`
	From  *VolumeFrom  `json:"from,omitempty"`
}

// FenceKey says which resource the steps on it are ordered by.
func (v VolumePlan) FenceKey() string { return v.Volume }

// VolumeFrom is another volume of the same pool whose content a new one begins with.
type VolumeFrom struct {
	Volume   string `json:"volume"`
	Layer    string `json:"layer,omitempty"`    // as VolumePlan; what it shows is copied
	Snapshot string `json:"snapshot,omitempty"` // of an RBD image, whose snapshots have names
}

// VolumeSend is a volume of which the server is to get a copy, to make an image of.
type VolumeSend struct {
	Volume VolumePlan `json:"volume"`
	Image  string     `json:"image"` // ID, and that of the upload
}

// FenceKey says which resource the steps on it are ordered by.
func (v VolumeSend) FenceKey() string { return v.Volume.Volume }

// VolumeSent is what has arrived.
type VolumeSent struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"` // bytes
}

// DataDisk is a volume that a VM has besides its root disk.
type DataDisk struct {
	Volume    string        `json:"volume"`
	Pool      PoolOnNode    `json:"pool"`
	Layer     string        `json:"layer,omitempty"` // as VolumePlan
	Device    string        `json:"device"`          // what the hypervisor calls it
	ReadOnly  bool          `json:"readOnly,omitempty"`
	Shareable bool          `json:"shareable,omitempty"` // as VolumePlan
	Image     string        `json:"image,omitempty"`     // ID of the image that its file is made on; empty: none
	QoS       api.VolumeQoS `json:"qos,omitzero"`
}

// Goes reports whether the disk goes along when its VM is moved with those of its disks that no other node reaches.
func (d DataDisk) Goes() bool {
	return !d.Pool.Shared && (d.Pool.Type == "" || d.Pool.Type == api.PoolDir)
}

// DiskChange is a change of one of the disks of a VM.
type DiskChange struct {
	Plan VMPlan   `json:"plan"` // without the disk
	Disk DataDisk `json:"disk"`
}

// FenceKey says which resource the steps on it are ordered by.
func (d DiskChange) FenceKey() string { return d.Plan.VM }

// Resize is a volume that gets bigger, perhaps while a VM has it.
type Resize struct {
	Volume VolumePlan `json:"volume"`       // with the new size
	VM     *VMPlan    `json:"vm,omitempty"` // that has it; nil: none
}

// FenceKey says which resource the steps on it are ordered by.
func (r Resize) FenceKey() string { return r.Volume.Volume }

// Flatten is a volume that is to be independent of the image that it was made of.
type Flatten struct {
	Volume VolumePlan `json:"volume"`
	VM     *VMPlan    `json:"vm,omitempty"` // that has it; nil: none
}

// FenceKey says which resource the steps on it are ordered by.
func (f Flatten) FenceKey() string { return f.Volume.Volume }

// Flattened is how far that is.
type Flattened struct {
	Alone bool `json:"alone"` // the volume needs no image
}

// SnapshotPlan is a snapshot as it is taken, undone, dropped or gone back to on a node.
type SnapshotPlan struct {
	Snapshot string     `json:"snapshot"`     // ID
	Volume   VolumePlan `json:"volume"`       // Layer is the one that is written to before
	VM       *VMPlan    `json:"vm,omitempty"` // that has the volume; nil: none
	// Layer is the file that is written to afterwards, on top of what is frozen. Not used by pools whose snapshots have names.
	Layer string `json:"layer,omitempty"`
	// Freeze asks the guest to bring its file systems to rest for the moment. A guest that cannot is content: the result tells.
	Freeze bool `json:"freeze,omitempty"`
}

// FenceKey says which resource the steps on it are ordered by.
func (s SnapshotPlan) FenceKey() string { return s.Volume.Volume }

// SnapshotDrop is a snapshot that is given up. In a pool of files the layer that it froze is merged with the one that is made
// on it, and there is only one, or the snapshot cannot be dropped.
type SnapshotDrop struct {
	Snapshot string     `json:"snapshot"`     // ID
	Volume   VolumePlan `json:"volume"`       // Layer is the one that is written to
	VM       *VMPlan    `json:"vm,omitempty"` // that has the volume; nil: none
	// Frozen is the layer that the snapshot keeps; empty: the volume's ID. It stays, and then shows what Child does.
	Frozen string `json:"frozen,omitempty"`
	// Child is the layer on top of it, which goes. If it is the one that is written to, Frozen is that afterwards. Empty: nothing
	// is made on Frozen, which goes itself.
	Child string `json:"child,omitempty"`
}

// FenceKey says which resource the steps on it are ordered by.
func (s SnapshotDrop) FenceKey() string { return s.Volume.Volume }

// VolumeRevert is a volume that goes back to what a snapshot keeps.
type VolumeRevert struct {
	Snapshot string     `json:"snapshot"`         // ID
	Volume   VolumePlan `json:"volume"`           // Layer is the one that is written to before; it stays
	VM       *VMPlan    `json:"vm,omitempty"`     // that has the volume, and does not run; nil: none
	Frozen   string     `json:"frozen,omitempty"` // layer that the snapshot keeps; empty: the volume's ID
	// Layer is made on Frozen, and written to afterwards. A pool whose snapshots have names keeps under this one what the volume
	// showed before, until RemoveVolume removes it.
	Layer string `json:"layer,omitempty"`
}

// FenceKey says which resource the steps on it are ordered by.
func (v VolumeRevert) FenceKey() string { return v.Volume.Volume }

// SnapshotTaken is how a snapshot came to be.
type SnapshotTaken struct {
	Frozen bool          `json:"frozen"` // the guest's file systems were at rest
	Pause  time.Duration `json:"pause"`  // how long the guest could not write; 0: it did not run
}

// Steps on volumes, on nodes.
var (
	// MakeVolume makes the volume, empty or with what it begins with. Undo: RemoveVolume.
	MakeVolume = Step[VolumePlan, Nothing]{Name: "storage.make_volume", Where: Node, Timeout: 12 * time.Hour, Interruptible: true}
	// SendVolume sends a volume that nobody changes to the server, which keeps it as an upload. What has arrived of an earlier
	// attempt is not sent again. Undo: RemoveUpload.
	SendVolume = Step[VolumeSend, VolumeSent]{Name: "storage.send_volume", Where: Node, Timeout: 12 * time.Hour, Interruptible: true}
	// RemoveVolume removes the layer of the plan; it is content if it is not there.
	RemoveVolume = Step[VolumePlan, Nothing]{Name: "storage.remove_volume", Where: Node, Timeout: 5 * time.Minute}
	// ResizeVolume makes it bigger, and tells a guest that runs. One that is as big already is content; it never shrinks.
	ResizeVolume = Step[Resize, Nothing]{Name: "volume.resize", Where: Node, Timeout: 5 * time.Minute}
	// FlattenVolume copies what the volume shows of its image into it. One that needs no image is content. Undo: StopFlatten.
	FlattenVolume = Step[Flatten, Nothing]{Name: "volume.flatten", Where: Node, Timeout: 12 * time.Hour, Interruptible: true}
	// StopFlatten ends that where it is, which is as good as never begun, unless the volume stands alone already: the answer tells.
	StopFlatten = Step[Flatten, Flattened]{Name: "volume.stop_flatten", Where: Node, Timeout: 5 * time.Minute}
	// AttachDisk gives a VM a disk, whether it runs or not. Once more is content. Undo: DetachDisk.
	AttachDisk = Step[DiskChange, Nothing]{Name: "compute.attach_disk", Where: Node, Timeout: 2 * time.Minute}
	// DetachDisk takes the disk from the VM, and returns when the guest has let it go. It is content if the VM has no such disk.
	DetachDisk = Step[DiskChange, Nothing]{Name: "compute.detach_disk", Where: Node, Timeout: 5 * time.Minute, Interruptible: true}
	// TuneDisk sets the limits of a disk, at once and for later. It is its own undo, with what was before.
	TuneDisk = Step[DiskChange, Nothing]{Name: "compute.tune_disk", Where: Node, Timeout: time.Minute}
	// TakeSnapshot keeps the volume as it is at this moment. Undo: UndoSnapshot.
	TakeSnapshot = Step[SnapshotPlan, SnapshotTaken]{Name: "volume.take_snapshot", Where: Node, Timeout: 5 * time.Minute}
	// UndoSnapshot makes it as if the snapshot had not been taken, with all that was written since.
	UndoSnapshot = Step[SnapshotPlan, Nothing]{Name: "volume.undo_snapshot", Where: Node, Timeout: 12 * time.Hour}
	// DropSnapshot gives a snapshot up, and what only it needs. There is no way back from the middle of it.
	DropSnapshot = Step[SnapshotDrop, Nothing]{Name: "volume.drop_snapshot", Where: Node, Timeout: 12 * time.Hour}
	// CheckRevert fails (not_found) unless the pool has what the volume is to go back to. It changes nothing.
	CheckRevert = Step[VolumeRevert, Nothing]{Name: "volume.check_revert", Where: Node, Timeout: time.Minute}
	// RevertVolume has the volume go on from a snapshot. What was written since stays in the layer that was written to before,
	// until RemoveVolume removes that. Undo: UndoRevert.
	RevertVolume = Step[VolumeRevert, Nothing]{Name: "volume.revert", Where: Node, Timeout: 5 * time.Minute}
	// UndoRevert has the volume go on from where it was. It is content if it does.
	UndoRevert = Step[VolumeRevert, Nothing]{Name: "volume.undo_revert", Where: Node, Timeout: 5 * time.Minute}
)
