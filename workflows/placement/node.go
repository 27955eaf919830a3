package placement

import (
	"math"

	"github.com/nextstack/nextstack/api"
)

// UnknownSpace stands in Node.Pools for a pool that the node has but has not reported on yet: any disk fits.
const UnknownSpace int64 = -1

// Cached names an image's copy in a pool of a node.
type Cached struct {
	Pool   string // ID
	SHA256 string
}

// Node is what placement knows of a node.
type Node struct {
	ID   string
	Name string

	Phase        api.Phase // of the agent, for messages; a node that is down runs nothing that holds a group together
	Ready        bool      // it can run VMs now, whether or not it takes new ones
	Reason       string    // why it is not ready
	Cordoned     bool      // takes no new VMs
	CordonReason string

	Arch      string
	CPUModels []string // that it can give to guests
	Labels    map[string]string
	Network   bool // its switch is part of the network, so that VMs on it can have ports

	Cores          int
	Memory         int64      // bytes, all of it
	ReservedMemory int64      // bytes kept for the host itself
	CPURatio       float64    // vCPUs that may be promised per core; 0: none
	MemoryRatio    float64    // bytes that may be promised per byte that is not reserved; 0: 1
	Claimed        api.Amount // promised to VMs, those on their way to it included

	Pools  map[string]int64 // pool ID -> free bytes, or UnknownSpace
	Images map[Cached]bool  // image copies that it has; nil: not known
	Groups map[string]int   // VM group ID -> how many of its VMs are there or on their way
}

// Limit returns how much may be promised on n. A ratio that is not a number, or is negative, allows nothing.
func (n *Node) Limit() api.Amount { return api.Amount{VCPUs: n.vcpuLimit(), Memory: n.memoryLimit()} }

func (n *Node) vcpuLimit() int {
	limit := math.Floor(float64(n.Cores) * n.CPURatio)
	if !(limit >= 1) { // what is not a number is not at least 1 either
		return 0
	}
	return int(min(limit, math.MaxInt32))
}

func (n *Node) memoryLimit() int64 {
	if n.Memory < 0 || n.ReservedMemory < 0 {
		return 0
	}
	free := n.Memory - n.ReservedMemory
	switch limit := math.Floor(float64(free) * n.MemoryRatio); {
	case free <= 0:
		return 0
	case n.MemoryRatio == 0 || n.MemoryRatio == 1:
		return free // to the byte: a float64 has not enough digits for all int64
	case !(limit >= 1):
		return 0
	case limit >= math.MaxInt64: // as a float64 it is the next higher power of two
		return math.MaxInt64
	default:
		return int64(limit)
	}
}

// vcpusFree and memoryFree return what can still be promised. They are negative if more was promised than may be, as after an
// operator has lowered a ratio. They are differences of what is not negative, and cannot overflow.
func (n *Node) vcpusFree() int { return n.vcpuLimit() - n.Claimed.VCPUs }

func (n *Node) memoryFree() int64 { return n.memoryLimit() - n.Claimed.Memory }

// sane reports whether the quantities of n can be reckoned with.
func (n *Node) sane() bool {
	return n.Cores >= 0 && n.Memory >= 0 && n.ReservedMemory >= 0 && n.Claimed.VCPUs >= 0 && n.Claimed.Memory >= 0
}
