package steps

import (
	"time"

	"github.com/nextstack/nextstack/api"
)

// CheckpointTaken is how a checkpoint came to be.
type CheckpointTaken = api.CheckpointTaken

// CheckpointPlan is a checkpoint of a VM as it is taken, or taken back, on its node.
type CheckpointPlan struct {
	Checkpoint string         `json:"checkpoint"` // ID, and that of the file with the memory
	VM         VMPlan         `json:"vm"`         // as it is before
	Disks      []SnapshotPlan `json:"disks"`      // of the VM, which they do not name
}

// FenceKey says which resource the steps on it are ordered by.
func (c CheckpointPlan) FenceKey() string { return c.VM.VM }

// GuestSave is a guest that is put aside: its memory goes into a file, and it does not run.
type GuestSave struct {
	Memory string `json:"memory"` // ID of the file, in the pool of the root disk
	VM     VMPlan `json:"vm"`
}

// FenceKey says which resource the steps on it are ordered by.
func (g GuestSave) FenceKey() string { return g.VM.VM }

// CheckpointSwitch is a VM that goes back to the moment of a checkpoint.
type CheckpointSwitch struct {
	Checkpoint string         `json:"checkpoint"` // ID, and that of the file with the memory
	VM         VMPlan         `json:"vm"`         // as it is before: it does not run
	Disks      []VolumeRevert `json:"disks"`      // of the VM, which they do not name
}

// FenceKey says which resource the steps on it are ordered by.
func (c CheckpointSwitch) FenceKey() string { return c.VM.VM }

// After is the VM as it is with its disks gone back. Disks in Ceph have no layers.
func (c CheckpointSwitch) After() VMPlan {
	vm := c.VM
	for _, d := range c.Disks {
		layer := d.Layer
		if d.Volume.Pool.Type == api.PoolRBD {
			layer = ""
		}
		vm = vm.On(d.Volume.Volume, layer, d.Volume.Size)
	}
	return vm
}

// MemoryFile is a file of a pool that keeps the memory of a guest.
type MemoryFile struct {
	Memory string     `json:"memory"` // ID
	Pool   PoolOnNode `json:"pool"`
	// Aside says that it is only for the node that writes it, which soon reads or removes it. Whoever removes it need not say so.
	Aside bool `json:"aside,omitempty"`
	// Seal says that it counts only once it is sealed. In pools that are none of files that is so of all that are not put aside. Whoever
	// reads or removes it need not say so.
	Seal bool `json:"seal,omitempty"`
}

// FenceKey says which resource the steps on it are ordered by.
func (m MemoryFile) FenceKey() string { return m.Memory }

// Steps on checkpoints, on nodes.
var (
	// TakeCheckpoint keeps the guest as it is at a moment: its memory goes into a file, and its disks are written to other layers
	// from that moment on, or have snapshots of that moment. The guest goes on. Once more is content. Undo: UndoCheckpoint.
	TakeCheckpoint = Step[CheckpointPlan, CheckpointTaken]{Name: "volume.take_checkpoint", Where: Node, Timeout: 4 * time.Hour, Interruptible: true}
	// UndoCheckpoint makes it as if the checkpoint had not been taken, while the guest goes on, with all that was written since.
	UndoCheckpoint = Step[CheckpointPlan, Nothing]{Name: "volume.undo_checkpoint", Where: Node, Timeout: 12 * time.Hour}
	// SaveGuest puts a guest aside. One that does not run is content. Undo: UndoSave.
	SaveGuest = Step[GuestSave, Nothing]{Name: "volume.save_guest", Where: Node, Timeout: 4 * time.Hour}
	// UndoSave has the guest go on from where it was put aside, and removes the file. A guest that was never put aside goes on as
	// well, and one that is off without a file to go on from is started.
	UndoSave = Step[GuestSave, Nothing]{Name: "volume.undo_save_guest", Where: Node, Timeout: 4 * time.Hour}
	// SwitchCheckpoint has the guest go on from the moment of a checkpoint. What its disks showed before stays in the layers that
	// were written to before, until RemoveVolume removes those. Undo: UndoSwitch.
	SwitchCheckpoint = Step[CheckpointSwitch, Nothing]{Name: "volume.switch_checkpoint", Where: Node, Timeout: 4 * time.Hour}
	// UndoSwitch ends the guest, and has its disks show what they did before.
	UndoSwitch = Step[CheckpointSwitch, Nothing]{Name: "volume.undo_switch_checkpoint", Where: Node, Timeout: 30 * time.Minute}
	// RemoveMemory removes a file with the memory of a guest. It is content if there is none.
	RemoveMemory = Step[MemoryFile, Nothing]{Name: "storage.remove_memory", Where: Node, Timeout: 5 * time.Minute}
)
