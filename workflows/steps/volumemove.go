package steps

import (
	"time"

	"github.com/nextstack/nextstack/api"
)

// VolumeMoveOrder is a volume that is to go to another pool.
type VolumeMoveOrder struct {
	VolumeRef
	api.VolumeMove
}

// VolumeCopy is a volume in the pool where it is, and the same in the one that it goes to. Both are on one node.
type VolumeCopy struct {
	From VolumePlan `json:"from"`
	To   VolumePlan `json:"to"`           // is there, with its full size, and whatever in it
	VM   *VMPlan    `json:"vm,omitempty"` // that has it; nil: none
	// Bandwidth is bytes per second at most; 0: no limit.
	Bandwidth int64 `json:"bandwidth,omitempty"`
	// Hold has a guest that has got the copy stand still until SwitchVolume: so until then the old one is good, too.
	Hold bool `json:"hold,omitempty"`
}

// FenceKey says which resource the steps on it are ordered by.
func (v VolumeCopy) FenceKey() string { return v.From.Volume }

// VolumeCopied is how a copy was made. Figures are zero if an earlier attempt has made it.
type VolumeCopied struct {
	Live  bool          `json:"live"`            // a guest that runs went on meanwhile
	Took  time.Duration `json:"took,omitempty"`  // all of it
	Pause time.Duration `json:"pause,omitempty"` // how long the guest could not run; 0: it did not, or SwitchVolume tells
}

// VolumeSwitched is how long a guest could not run that has gone on with a copy; 0: none had been left still.
type VolumeSwitched struct {
	Pause time.Duration `json:"pause,omitempty"`
}

// VolumeSettled is where a volume is after a copy that may have been broken off.
type VolumeSettled struct {
	Moved bool `json:"moved"` // its VM has it in the new pool; what is in the old one may be outdated
}

// SeedMove is a VM whose seed goes along with its root disk.
type SeedMove struct {
	From VMPlan `json:"from"`
	To   VMPlan `json:"to"` // with its root disk, and so its seed, in the other pool
}

// FenceKey says which resource the steps on it are ordered by.
func (s SeedMove) FenceKey() string { return s.From.VM }

// Steps of moves of volumes.
var (
	// PlaceVolumeMove tells of a volume as LoadVolume does, and whether the other pool has room for it. It writes nothing.
	PlaceVolumeMove = Step[VolumeMoveOrder, VolumePlaced]{Name: "state.place_volume_move", Where: Local, Timeout: 10 * time.Second}
	// MakeSeed makes the seed of a VM alone, in the pool of its root disk. Undo: RemoveSeed.
	MakeSeed = Step[VMPlan, Nothing]{Name: "storage.make_seed", Where: Node, Timeout: 5 * time.Minute}
	// RemoveSeed removes it; it is content if it is not there.
	RemoveSeed = Step[VMPlan, Nothing]{Name: "storage.remove_seed", Where: Node, Timeout: 5 * time.Minute}
	// MoveSeed has a VM use the seed in the other pool, whether it runs or not. It is its own undo, the other way round.
	MoveSeed = Step[SeedMove, Nothing]{Name: "volume.move_seed", Where: Node, Timeout: 10 * time.Minute}
	// CopyVolume fills the new volume with what the old one shows, and has the VM go on with it. A guest that runs writes on
	// meanwhile. It joins a copy that is under way. When it is cancelled or fails, either may be the one that the VM has:
	// SettleVolumeCopy tells.
	CopyVolume = Step[VolumeCopy, VolumeCopied]{Name: "volume.copy", Where: Node, Timeout: 25 * time.Hour, Interruptible: true}
	// SwitchVolume has the guest go on with the copy, which it may write to from then on. It is content if none waits for it.
	SwitchVolume = Step[VolumeCopy, VolumeSwitched]{Name: "volume.switch", Where: Node, Timeout: 2 * time.Minute}
	// SettleVolumeCopy ends a copy that is under way, and says which of the two the VM has. A guest that was left still with the copy stays
	// so.
	SettleVolumeCopy = Step[VolumeCopy, VolumeSettled]{Name: "volume.settle_copy", Where: Node, Timeout: 5 * time.Minute}
)
