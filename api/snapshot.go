package api

import (
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// Snapshot is a volume as it was at a moment. The snapshots of a volume are a tree: each goes on from its parent.
type Snapshot struct {
	Meta
	Spec   SnapshotSpec   `json:"spec"`
	Status SnapshotStatus `json:"status"`
}

// ResourceKind implements Resource.
func (*Snapshot) ResourceKind() Kind { return KindSnapshot }

// SnapshotSpec says what it is a snapshot of.
type SnapshotSpec struct {
	Volume string `json:"volume" doc:"Volume ID"`
	Parent string `json:"parent,omitempty" doc:"Snapshot ID that the volume went on from when it was taken; empty: it is the first"`
	// Checkpoint has it live and die with the checkpoint.
	Checkpoint string `json:"checkpoint,omitempty" doc:"Checkpoint ID that it belongs to; empty: it is one of its own"`
}

// SnapshotStatus says what it is like.
type SnapshotStatus struct {
	Phase  Phase  `json:"phase"`
	Reason string `json:"reason,omitempty"`
	// Layer is what it froze. Empty: the pool keeps snapshots under names, which are their IDs.
	Layer  string        `json:"layer,omitempty" doc:"Name of the file that it keeps, in a pool of files"`
	Size   int64         `json:"size" doc:"Bytes of the volume when it was taken"`
	Frozen bool          `json:"frozen,omitempty" doc:"The guest's file systems were at rest"`
	Pause  time.Duration `json:"pause,omitempty" doc:"Nanoseconds for which the guest could not write; 0: it did not run"`
}

// SnapshotCreate is the request for a snapshot.
type SnapshotCreate struct {
	Name     string            `json:"name"`
	Labels   map[string]string `json:"labels,omitempty"`
	Volume   string            `json:"volume" doc:"Name or ID"`
	NoFreeze bool              `json:"noFreeze,omitempty" doc:"Do not ask the guest to bring its file systems to rest for the moment"`
}

// Validate checks the shape of the request.
func (r *SnapshotCreate) Validate() error {
	var v problem.Validation
	CheckName(&v, "name", r.Name)
	CheckLabels(&v, "labels", r.Labels)
	CheckRef(&v, "volume", r.Volume)
	return v.Err("snapshot " + r.Name)
}

// SnapshotRevert asks for a volume to become again what it was.
type SnapshotRevert struct {
	Restart bool `json:"restart,omitempty" doc:"Stop the VM that has it, and start it again"`
	Force   bool `json:"force,omitempty" doc:"Cut the power instead of asking the guest to power off"`
	Timeout int  `json:"timeout,omitempty" doc:"Seconds to wait for the guest before the power is cut; default 60, at most 3600"`
}

// Validate checks the shape of the request.
func (r *SnapshotRevert) Validate() error {
	var v problem.Validation
	v.Check(r.Timeout >= 0 && r.Timeout <= 3600, "timeout", r.Timeout, "must be 0 to 3600 seconds")
	v.Check(r.Restart || !r.Force && r.Timeout == 0, "restart", r.Restart, "force and timeout are for a VM that is restarted")
	return v.Err("revert request")
}

// SnapshotOrder is what the acceptance of a change of snapshots decided.
type SnapshotOrder struct {
	Snapshot string `json:"snapshot"`
	Volume   string `json:"volume"`
	Size     int64  `json:"size"`  // of the volume, afterwards
	Files    bool   `json:"files"` // the pool keeps volumes in files; the layers that follow are of such pools
	// Frozen is the file that the snapshot keeps; empty: the volume's first.
	Frozen string `json:"frozen,omitempty"`
	// Layer is the file that is made on top of Frozen and written to afterwards; of a snapshot that goes, the one that stands on
	// Frozen and is merged into it; empty: nothing stands there.
	Layer  string  `json:"layer,omitempty"`
	Freeze bool    `json:"freeze,omitempty"`
	Stop   *VMStop `json:"stop,omitempty"` // how the VM is stopped for a revert, and started again; nil: it does not run
}

// SnapshotTaken is how a snapshot came to be.
type SnapshotTaken struct {
	Frozen bool          `json:"frozen"` // the guest's file systems were at rest
	Pause  time.Duration `json:"pause"`  // how long the guest could not write; 0: it did not run
}
