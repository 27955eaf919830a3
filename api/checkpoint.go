package api

import (
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// Checkpoint is a VM as it was at a moment while it ran: its memory and all its disks. The checkpoints of a VM are a tree: each
// goes on from its parent. What it keeps of a disk is a snapshot of the volume, which belongs to it.
type Checkpoint struct {
	Meta
	Spec   CheckpointSpec   `json:"spec"`
	Status CheckpointStatus `json:"status"`
}

// ResourceKind implements Resource.
func (*Checkpoint) ResourceKind() Kind { return KindCheckpoint }

// CheckpointSpec says what it is a checkpoint of.
type CheckpointSpec struct {
	VM     string `json:"vm" doc:"VM ID"`
	Parent string `json:"parent,omitempty" doc:"Checkpoint ID that the VM went on from when it was taken; empty: it is the first"`
}

// CheckpointStatus says what it is like.
type CheckpointStatus struct {
	Phase  Phase            `json:"phase"`
	Reason string           `json:"reason,omitempty"`
	Pool   string           `json:"pool" doc:"Pool ID that has the file with the memory: that of the root disk"`
	Memory int64            `json:"memory,omitempty" doc:"Bytes of that file"`
	Pause  time.Duration    `json:"pause,omitempty" doc:"Nanoseconds for which the guest stood still"`
	Disks  []CheckpointDisk `json:"disks" doc:"Disks of the VM, root disk first"`
}

// CheckpointDisk is what a checkpoint keeps of a disk.
type CheckpointDisk struct {
	Volume   string `json:"volume" doc:"Volume ID"`
	Snapshot string `json:"snapshot" doc:"Snapshot ID"`
	Device   string `json:"device" doc:"What the hypervisor calls the disk"`
}

// CheckpointCreate is the request for a checkpoint.
type CheckpointCreate struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	VM     string            `json:"vm" doc:"Name or ID"`
}

// Validate checks the shape of the request.
func (r *CheckpointCreate) Validate() error {
	var v problem.Validation
	CheckName(&v, "name", r.Name)
	CheckLabels(&v, "labels", r.Labels)
	CheckRef(&v, "vm", r.VM)
	return v.Err("checkpoint " + r.Name)
}

// CheckpointOrder is what the acceptance of a change of checkpoints decided.
type CheckpointOrder struct {
	Checkpoint string          `json:"checkpoint"` // ID, and that of the file with its memory
	VM         string          `json:"vm"`
	Disks      []SnapshotOrder `json:"disks"` // root disk first, as far as they are there
	// Save is the ID of the file that keeps the memory of now while the VM is switched; empty: it does not run.
	Save string `json:"save,omitempty"`
}

// CheckpointTaken is how a checkpoint came to be.
type CheckpointTaken struct {
	Memory int64         `json:"memory"` // bytes of the file
	Pause  time.Duration `json:"pause"`  // how long the guest stood still
}

// VMRemoval is what has to be removed of a VM besides what every VM has.
type VMRemoval struct {
	VolumeRemoval          // of its root disk, if it has snapshots
	Checkpoints   []string `json:"checkpoints,omitempty"` // by ID: the files with their memory
}
