package steps

import (
	"time"

	"github.com/nextstack/nextstack/api"
)

// VolumeRef names a volume, and the VM that an operation on it is about: others that have it are not its business.
type VolumeRef struct {
	Project string `json:"project"`
	Volume  string `json:"volume"`
	VM      string `json:"vm,omitempty"` // empty: all that have it
}

// VolumeOrder is a volume that is to be made.
type VolumeOrder struct {
	VolumeRef
	api.VolumeMake
}

// VolumePlaced is a volume that has its place: what a node needs to know of it, and of the VMs that have it.
type VolumePlaced struct {
	Plan VolumePlan  `json:"plan"`
	Disk DataDisk    `json:"disk"`          // of VMs that have it; what it is called, each VM says
	VMs  []Placement `json:"vms,omitempty"` // that have it, or the one that was named
	Node string      `json:"node"`          // name of the plan's agent, for people
	// Decision is why it is there; nil if it was not decided now.
	Decision *api.Decision `json:"decision,omitempty"`
}

// Steps on the records of volumes.
var (
	// PlaceVolume picks the node that keeps a volume, or that makes it if the pool is shared, and writes down where it is. Doing
	// it twice gives the same node.
	PlaceVolume = Step[VolumeOrder, VolumePlaced]{Name: "state.place_volume", Where: Local, Timeout: 10 * time.Second}
	// UnplaceVolume writes that it is nowhere.
	UnplaceVolume = Step[VolumeRef, Nothing]{Name: "state.unplace_volume", Where: Local, Timeout: 10 * time.Second}
	// LoadVolume tells what a volume looks like that has its place.
	LoadVolume = Step[VolumeRef, VolumePlaced]{Name: "state.load_volume", Where: Local, Timeout: 10 * time.Second}
)
