package steps

import (
	"slices"
	"time"

	"github.com/nextstack/nextstack/api"
)

// FenceKey says which resource the steps on it are ordered by.
func (p VMPlan) FenceKey() string { return p.VM }

// On is the VM as it is when one of its volumes, in a pool of files, is written to another layer. Size is that of the volume then, in
// bytes.
func (p VMPlan) On(volume, layer string, size int64) VMPlan {
	if p.Disk.Volume == volume {
		p.Disk.Layer, p.Disk.Size = layer, size
		return p
	}
	p.Data = slices.Clone(p.Data)
	for i := range p.Data {
		if p.Data[i].Volume == volume {
			p.Data[i].Layer = layer
		}
	}
	return p
}

// StopVM is how to stop or reboot.
type StopVM struct {
	Plan    VMPlan        `json:"plan"`
	Force   bool          `json:"force"`
	Timeout time.Duration `json:"timeout"` // how long the guest may take before the power is cut
}

// FenceKey says which resource the steps on it are ordered by.
func (s StopVM) FenceKey() string { return s.Plan.VM }

// PowerResult says what a power step found, so that its undo can go back to it.
type PowerResult struct {
	Before api.Phase `json:"before"` // running, stopped or paused
	Forced bool      `json:"forced,omitempty"`
}

type (
	// PoolOnNode is a pool's directory on a node, as requests are accepted with it.
	PoolOnNode = api.PoolOnNode
	// CachedImage is an image's copy in a pool, as requests are accepted with it.
	CachedImage = api.CachedImage
	// AgentRef is an agent, as requests are accepted with it.
	AgentRef = api.AgentRef
)

// ImageOffer asks a node for its copy of an image. Who asks first does not matter, so it has no fence key.
type ImageOffer struct {
	Copy CachedImage `json:"copy"`
}

// ImageAt is a node that has a copy of an image.
type ImageAt struct {
	Agent string      `json:"agent"` // ID
	Copy  CachedImage `json:"copy"`
}

// DiskMade is what it took to make a disk.
type DiskMade struct {
	Fetched int64         `json:"fetched"`        // bytes of the image that came from elsewhere; 0: the pool had a copy
	Peer    string        `json:"peer,omitempty"` // host:port of the node that they came from; empty: the server
	Took    time.Duration `json:"took"`
}

// NodeQuestion asks a node what it has.
type NodeQuestion struct {
	Pools []PoolOnNode `json:"pools"`
}

// NodeWorld is what one node really has.
type NodeWorld struct {
	Agent     string        `json:"agent"`
	AgentName string        `json:"agentName"`
	Domains   []DomainFound `json:"domains"`
	Files     []FileFound   `json:"files"`
	OVSPorts  []PortFound   `json:"ovsPorts"`
	Secrets   []string      `json:"secrets,omitempty"` // IDs of pools whose key the hypervisor knows
	Unread    []PoolUnread  `json:"unread,omitempty"`  // pools that could not be listed: what is in them is not known
}

// PoolUnread is a pool that a node cannot read now.
type PoolUnread struct {
	Pool string `json:"pool"`
	Why  string `json:"why"`
}

// DomainFound is a libvirt domain.
type DomainFound struct {
	ID    string    `json:"id"`
	Name  string    `json:"name"`
	Phase api.Phase `json:"phase"`
	Ours  bool      `json:"ours"` // carries our metadata
	// Reason says why the hypervisor has it in this phase, where that is worth telling.
	Reason string `json:"reason,omitempty"`
}

// FileFound is a file in a pool.
type FileFound struct {
	Pool string `json:"pool"`
	Path string `json:"path"`
	Kind string `json:"kind"` // volume, seed, backing, memory, other
	ID   string `json:"id"`   // volume ID, VM ID, SHA-256 or checkpoint ID, as the kind says
}

// PortFound is an interface on the integration bridge that is bound to a logical port.
type PortFound struct {
	Name string `json:"name"`
	Port string `json:"port"` // iface-id
}

// NodeRepair tells a node what to remove.
type NodeRepair struct {
	Domains  []string     `json:"domains"`           // IDs
	Files    []FileFound  `json:"files"`             // inside pools of Pools only
	OVSPorts []string     `json:"ovsPorts"`          // interface names
	Secrets  []string     `json:"secrets,omitempty"` // as in NodeWorld
	Pools    []PoolOnNode `json:"pools"`
}

// Steps on nodes.
var (
	// MakeDisk fetches the image into the pool if it is not there, and makes the root disk and the seed. Undo: RemoveDisk.
	MakeDisk = Step[VMPlan, DiskMade]{Name: "storage.make_disk", Where: Node, Timeout: 30 * time.Minute, Interruptible: true}
	// OfferImage lets another node fetch an image's copy.
	OfferImage = Step[ImageOffer, DiskOffer]{Name: "storage.offer_image", Where: Node, Timeout: 30 * time.Second}
	// RemoveDisk removes the root disk and the seed; it is content if they are not there.
	RemoveDisk = Step[VMPlan, Nothing]{Name: "storage.remove_disk", Where: Node, Timeout: time.Minute}
	// PreparePool makes the directory usable as a pool and checks that it really is.
	PreparePool = Step[PoolOnNode, api.PoolUsage]{Name: "storage.prepare_pool", Where: Node, Timeout: time.Minute}
	// CheckPool makes sure that the node reaches the pool at the source of the plan, and that it is the same pool there. It changes nothing.
	CheckPool = Step[api.PoolCheck, Nothing]{Name: "storage.check_pool", Where: Node, Timeout: time.Minute}
	// ReleasePool removes what PreparePool made; it refuses while a volume is in it.
	ReleasePool = Step[PoolOnNode, Nothing]{Name: "storage.release_pool", Where: Node, Timeout: time.Minute}
	// EvictImage removes an image's copy from a pool.
	EvictImage = Step[CachedImage, Nothing]{Name: "storage.evict_image", Where: Node, Timeout: time.Minute}

	// CreateDomain defines the domain and starts it. Undo: RemoveDomain.
	CreateDomain = Step[VMPlan, Nothing]{Name: "compute.create", Where: Node, Timeout: 2 * time.Minute}
	// RemoveDomain cuts its power and undefines it; it is content if it is not there.
	RemoveDomain = Step[VMPlan, Nothing]{Name: "compute.remove", Where: Node, Timeout: 2 * time.Minute}
	// StartDomain powers on, defining the domain again if it is gone.
	StartDomain = Step[VMPlan, PowerResult]{Name: "compute.start", Where: Node, Timeout: 2 * time.Minute}
	// StopDomain asks the guest to power off, and cuts the power when it does not.
	StopDomain = Step[StopVM, PowerResult]{Name: "compute.stop", Where: Node, Timeout: 65 * time.Minute, Interruptible: true}
	// RebootDomain restarts the guest, and resets it when it does not.
	RebootDomain = Step[StopVM, PowerResult]{Name: "compute.reboot", Where: Node, Timeout: 65 * time.Minute, Interruptible: true}

	// LookAtNode lists what is on a node.
	LookAtNode = Step[NodeQuestion, NodeWorld]{Name: "node.look", Where: Node, Timeout: time.Minute}
	// RepairNode removes what an audit found to be nobody's.
	RepairNode = Step[NodeRepair, Nothing]{Name: "node.repair", Where: Node, Timeout: 5 * time.Minute}
)
