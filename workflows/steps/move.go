package steps

import (
	"time"

	"github.com/nextstack/nextstack/api"
)

// MoveRequest asks for a place that a VM can move to.
type MoveRequest struct {
	VMRef
	api.VMMigrate
	// Recover: the VM's node is dead. It must be proven so, and the VM is started anew instead of moved.
	Recover bool `json:"recover,omitempty"`
}

// Move is a VM with two places: where it is and where it goes.
type Move struct {
	Source VMPlan    `json:"source"`
	Target VMPlan    `json:"target"`
	Phase  api.Phase `json:"phase"` // before the operation: running, stopped or paused
	Kind   string    `json:"kind"`  // api.MoveLive, MoveCold or MoveRestart
	Copy   bool      `json:"copy"`  // some of its disks are in pools that are not shared, and go with it
	// Volumes are those of them that are volumes of their own: data volumes, and a root disk that is made on no image. A root disk that
	// is made on one goes by Source and Target.
	Volumes  []VolumePlan `json:"volumes,omitempty"`
	Ports    []string     `json:"ports"`
	From     string       `json:"from"` // chassis of the source; empty: it has none
	To       string       `json:"to"`   // chassis of the target; empty: it has none
	Decision api.Decision `json:"decision"`
}

// MoveEnd ends a move in the store: the VM is at the target, or was never meant to go there.
type MoveEnd struct {
	VMRef
	Target string `json:"target"` // agent ID
}

// PortBinding says on which chassis ports may be bound.
type PortBinding struct {
	Ports   []string `json:"ports"`
	Chassis []string `json:"chassis"` // as PortWiring.Chassis
}

// Leaving is what the source of a move tells the target before it begins. Reads only.
type Leaving struct {
	Phase    api.Phase `json:"phase"`
	CPU      string    `json:"cpu,omitempty"`      // XML of the guest's CPU as it is now
	Blockers []string  `json:"blockers,omitempty"` // why it cannot leave while it runs: devices that cannot move...
	HostUUID string    `json:"hostUUID"`
	Accel    string    `json:"accel,omitempty"`   // kvm or tcg; a guest cannot change it while it runs
	Arch     string    `json:"arch,omitempty"`    //
	Machine  string    `json:"machine,omitempty"` // machine type, which the target's emulator must have
	OwnCPU   bool      `json:"ownCPU,omitempty"`  // it has the very processor of its node, and not a named model
}

// IncomingRequest asks the target of a live move whether it can take the guest.
type IncomingRequest struct {
	Plan    VMPlan  `json:"plan"` // as at the target
	Leaving Leaving `json:"leaving"`
	Copy    bool    `json:"copy"`
}

// FenceKey says which resource the steps on it are ordered by.
func (i IncomingRequest) FenceKey() string { return i.Plan.VM }

// Incoming is how the source reaches the target, and what the guest's domain is there.
type Incoming struct {
	URI     string `json:"uri"`     // libvirt's, for the source's libvirt to connect to
	Address string `json:"address"` // where memory and disks are sent to; empty: as libvirt finds it
	XML     string `json:"xml"`     // of the domain at the target
}

// MoveDomain is a live move as its source carries it out.
type MoveDomain struct {
	Plan         VMPlan        `json:"plan"` // as at the source
	Incoming     Incoming      `json:"incoming"`
	Copy         bool          `json:"copy"`
	Bandwidth    int64         `json:"bandwidth"`   // bytes per second; 0: no limit
	MaxDowntime  time.Duration `json:"maxDowntime"` // 0: 300 ms
	AutoConverge bool          `json:"autoConverge"`
	PostCopy     bool          `json:"postCopy"`
	Timeout      time.Duration `json:"timeout"` // until a move that does not converge is given up
}

// FenceKey says which resource the steps on it are ordered by.
func (m MoveDomain) FenceKey() string { return m.Plan.VM }

// Moved is what a live move was like. Figures are libvirt's own; all are zero if the guest had left before this attempt.
type Moved struct {
	Total      time.Duration `json:"total"`
	Downtime   time.Duration `json:"downtime"`
	Bytes      int64         `json:"bytes"`
	Iterations int           `json:"iterations"`
	PostCopy   bool          `json:"postCopy,omitempty"`
}

// DomainState is what a node has of a VM.
type DomainState struct {
	Exists bool      `json:"exists"` // a domain that has moved away, and is only still defined, does not
	Phase  api.Phase `json:"phase"`  // running, stopped or paused; stopped if it does not exist
	// Broken: it is paused and can never go on, because its memory is partly somewhere else.
	Broken bool `json:"broken,omitempty"`
}

// DiskOffer is how a node gives a disk to another.
type DiskOffer struct {
	Address string `json:"address"` // host:port of the source's agent
	Ticket  string `json:"ticket"`  // for this one disk and a short time; worthless once the source's agent has restarted
	Size    int64  `json:"size"`    // bytes of the file
	// Image is another ticket, for the copy of the disk's image that the node has; empty: it gives none away.
	Image string `json:"image,omitempty"`
}

// DiskPull fetches a disk that another node offers.
type DiskPull struct {
	Plan  VMPlan    `json:"plan"` // as at the target
	Offer DiskOffer `json:"offer"`
}

// FenceKey says which resource the steps on it are ordered by.
func (d DiskPull) FenceKey() string { return d.Plan.VM }

// VolumePull fetches a volume that another node offers.
type VolumePull struct {
	Volume VolumePlan `json:"volume"` // as at the target
	Offer  DiskOffer  `json:"offer"`
}

// FenceKey says which resource the steps on it are ordered by.
func (v VolumePull) FenceKey() string { return v.Volume.Volume }

// HAMark says whether a VM is to be stopped when its node's lease ends.
type HAMark struct {
	Plan VMPlan `json:"plan"`
	HA   bool   `json:"ha"`
}

// FenceKey says which resource the steps on it are ordered by.
func (h HAMark) FenceKey() string { return h.Plan.VM }

// Steps of moves.
var (
	// PlaceMove picks the target and claims its capacity; the source's claim stays until SwitchVM. Doing it twice gives the
	// same target. Undo: UnplaceMove.
	PlaceMove = Step[MoveRequest, Move]{Name: "state.place_move", Where: Local, Timeout: 10 * time.Second}
	// UnplaceMove gives the target's capacity back. It is content if there is no claim.
	UnplaceMove = Step[VMRef, Nothing]{Name: "state.unplace_move", Where: Local, Timeout: 10 * time.Second}
	// SwitchVM makes the target the VM's node and gives the source's capacity back.
	SwitchVM = Step[MoveEnd, Nothing]{Name: "state.switch_vm", Where: Local, Timeout: 10 * time.Second}
	// BindPorts says on which chassis ports may be bound. Ports that are not wired are left out.
	BindPorts = Step[PortBinding, Nothing]{Name: "network.bind_ports", Where: Local, Timeout: 15 * time.Second}

	// DescribeDomain says what a guest needs of its next node.
	DescribeDomain = Step[VMPlan, Leaving]{Name: "compute.describe", Where: Node, Timeout: 30 * time.Second}
	// CheckIncoming says whether and how a node can take a guest that runs, or why not. Reads only.
	CheckIncoming = Step[IncomingRequest, Incoming]{Name: "compute.check_incoming", Where: Node, Timeout: 30 * time.Second}
	// MigrateDomain moves the guest; when it is done, the guest is not at the source any more. Joins a move that is under way.
	// When it is cancelled or fails, the guest may be at either side: SettleDomain tells.
	MigrateDomain = Step[MoveDomain, Moved]{Name: "compute.migrate", Where: Node, Timeout: 25 * time.Hour, Interruptible: true}
	// SettleDomain ends a move that is under way, waits until it has ended, and says what the source has.
	SettleDomain = Step[VMPlan, DomainState]{Name: "compute.settle", Where: Node, Timeout: 2 * time.Minute}
	// LookAtDomain says what a node has of a VM.
	LookAtDomain = Step[VMPlan, DomainState]{Name: "compute.look", Where: Node, Timeout: 30 * time.Second}
	// DefineDomain defines the domain without starting it. Undo: RemoveDomain.
	DefineDomain = Step[VMPlan, Nothing]{Name: "compute.define", Where: Node, Timeout: 2 * time.Minute}
	// MarkHA writes into the domain whether it is to be stopped when the lease ends. Content if there is no domain.
	MarkHA = Step[HAMark, Nothing]{Name: "compute.mark_ha", Where: Node, Timeout: 30 * time.Second}

	// OfferDisk lets another node fetch the disk of a VM that does not run.
	OfferDisk = Step[VMPlan, DiskOffer]{Name: "storage.offer_disk", Where: Node, Timeout: time.Minute}
	// PullDisk fetches the image if it is not in the pool yet, and the disk from the node that offers it, and makes the seed.
	// Undo: RemoveDisk.
	PullDisk = Step[DiskPull, Nothing]{Name: "storage.pull_disk", Where: Node, Timeout: 12 * time.Hour, Interruptible: true}
	// OfferVolume lets another node fetch a volume that nobody writes to.
	OfferVolume = Step[VolumePlan, DiskOffer]{Name: "storage.offer_volume", Where: Node, Timeout: time.Minute}
	// PullVolume fetches the image if the volume is made on one that is not in the pool yet, and the volume from the node that offers it.
	// Undo: RemoveVolume.
	PullVolume = Step[VolumePull, Nothing]{Name: "storage.pull_volume", Where: Node, Timeout: 12 * time.Hour, Interruptible: true}
)
