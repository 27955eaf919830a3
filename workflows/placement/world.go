package placement

import (
	"maps"
	"slices"

	"github.com/nextstack/nextstack/api"
)

// VM is a VM that may leave the node that it is on.
type VM struct {
	ID     string
	Name   string
	Node   string     // ID of the node that it is on
	Amount api.Amount // what that node has promised it
	// Request is what it needs of its next node. At is filled in from Node. If its disk has to be copied, Disk is all of it, and of those
	// in other pools Also tells.
	Request Request
	Copy    bool   // some of its disks are in pools that are not shared, and have to be copied
	Stays   string // why it cannot be moved now, such as being paused; empty: it can
}

// world is a copy of the nodes in which VMs move without anybody noticing.
type world struct {
	nodes []Node
	index map[string]int // by ID
}

// newWorld copies the nodes. Their maps are copied once they are written to.
func newWorld(nodes []Node) *world {
	w := &world{nodes: slices.Clone(nodes), index: make(map[string]int, len(nodes))}
	for i := range w.nodes {
		w.index[w.nodes[i].ID] = i
	}
	return w
}

func (w *world) node(id string) *Node {
	if i, ok := w.index[id]; ok {
		return &w.nodes[i]
	}
	return nil
}

// move lets the VM be on another node, as it is when the move is over.
func (w *world) move(vm *VM, to *Node) {
	req := &vm.Request
	if from := w.node(vm.Node); from != nil {
		from.Claimed.VCPUs = max(from.Claimed.VCPUs-vm.Amount.VCPUs, 0)
		from.Claimed.Memory = max(from.Claimed.Memory-vm.Amount.Memory, 0)
		from.count(req.Group.ID, -1)
	}
	to.Claimed.VCPUs += req.Amount.VCPUs
	to.Claimed.Memory += req.Amount.Memory
	to.count(req.Group.ID, 1)
	// The space that it leaves behind is not counted: it is not free before the copy has been removed.
	to.fill(req.Pool, req.Disk)
	for _, p := range req.Also {
		to.fill(p.ID, p.Space)
	}
}

// fill takes space of a pool, if it is known how much there is.
func (n *Node) fill(pool string, space int64) {
	if free, has := n.Pools[pool]; has && space > 0 && free != UnknownSpace {
		n.Pools = maps.Clone(n.Pools)
		n.Pools[pool] = free - space
	}
}

func (n *Node) count(group string, change int) {
	if group == "" {
		return
	}
	groups := maps.Clone(n.Groups)
	if groups == nil {
		groups = map[string]int{}
	}
	groups[group] = max(groups[group]+change, 0)
	n.Groups = groups
}
