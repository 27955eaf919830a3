package placement

import (
	"math"

	"github.com/nextstack/nextstack/api"
)

// weigher is one thing that makes a node that passed every filter better or worse, from 0 to 1.
type weigher struct {
	name   string // in api.Candidate.Terms, with weight times value
	weight float64
	value  func(n *Node, q *query) float64
}

// weighers have weights that add up to 1. Memory counts more than vCPUs, because it cannot be shared. That both are used
// evenly counts less than either of them, or a fuller node could be taken for an emptier one. The wish of a group outweighs
// an ordinary difference in load, but does not crowd VMs on a node that is nearly full. A cached image only saves one
// download, after which the other node has it too.
var weighers = []weigher{
	{"memory", 0.35, weighMemory},
	{"vcpus", 0.15, weighVCPUs},
	{"balance", 0.1, weighBalance},
	{"image", 0.05, weighImage},
	{"group", 0.35, weighGroup},
}

// weighMemory is the share of memory that is still free once the VM is there: after, not before, so that a large VM prefers a
// large node. The limit is not 0, or the node would not have passed.
func weighMemory(n *Node, q *query) float64 { return q.prefer(q.memoryLeft(n)) }

func weighVCPUs(n *Node, q *query) float64 { return q.prefer(q.vcpusLeft(n)) }

func (q *query) memoryLeft(n *Node) float64 {
	return float64(n.memoryFree()-q.Amount.Memory) / float64(n.memoryLimit())
}

func (q *query) vcpusLeft(n *Node) float64 {
	return float64(n.vcpusFree()-q.Amount.VCPUs) / float64(n.vcpuLimit())
}

// prefer turns a free share into its worth: to pack is to prefer what is used.
func (q *query) prefer(free float64) float64 {
	if q.Strategy == Pack {
		return 1 - free
	}
	return free
}

// weighBalance is whether memory and vCPUs of a node run out together: memory that is left where no vCPU is serves nobody.
// It is the same for both strategies.
func weighBalance(n *Node, q *query) float64 { return 1 - math.Abs(q.memoryLeft(n)-q.vcpusLeft(n)) }

func weighImage(n *Node, q *query) float64 {
	if q.Image != "" && n.Images[Cached{Pool: q.Pool, SHA256: q.Image}] {
		return 1
	}
	return 0
}

// weighGroup is about soft rules: mostly whether any VM of the group is there, then how large a crowd, compared with the
// largest.
func weighGroup(n *Node, q *query) float64 {
	if q.Group.ID == "" || !q.Group.Soft || q.crowd == 0 {
		return 0
	}
	together := 0.0
	if others := q.others(n); others > 0 {
		together = 0.75 + 0.25*float64(others)/float64(q.crowd)
	}
	if q.Group.Policy == api.AntiAffinity {
		return 1 - together
	}
	return together
}
