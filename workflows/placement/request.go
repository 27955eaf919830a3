package placement

import (
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Strategy says which of the nodes with room is the better one.
type Strategy string

// The strategies.
const (
	Spread Strategy = api.Spread // the emptiest, which is the default: neighbours disturb each other
	Pack   Strategy = api.Pack   // the fullest, which keeps others free for VMs that need a whole node
)

// Group is a VM group as its next VM sees it. How many of its VMs are where is in Node.Groups.
type Group struct {
	ID     string // empty: none
	Policy string // api.Affinity or api.AntiAffinity
	Soft   bool   // a wish rather than a rule
}

// Pool names a pool.
type Pool struct {
	ID, Name string
	Space    int64 // bytes that the disks in it need at once; of those that are there already: 0
}

// Request is what a VM needs of its node.
type Request struct {
	VM     string // its name, for messages
	Amount api.Amount
	Pool   string // ID of the pool of its disk; empty: any node has it
	Disk   int64  // bytes that the disk needs in the pool at once; of a shared pool that has the disk already: 0
	Also   []Pool // of its other disks, each once

	Arch       string            // empty: any
	CPUModel   string            // empty: any
	NodeID     string            // node that it must be on; empty: any
	Tie        string            // name of the volume that keeps it on NodeID; empty: somebody has asked for that node
	NodeLabels map[string]string // labels that its node must have
	Network    bool              // it has ports
	Group      Group
	Exclude    map[string]string // node ID -> why it may not go there

	// At is the node that the VM is on now, if it moves: Node.Groups counts it there, and it need not be kept apart from, or
	// stay together with, itself.
	At string

	Image    string   // SHA256 of its image, to prefer nodes that have it; empty: none
	Strategy Strategy // empty: Spread

	// Seed chooses between nodes that are about equally good, so that decisions made at the same time go to different ones.
	// The same seed makes the same choice. 0: the best to the last digit, and of equals the first by name. When VMs are
	// packed it counts for nothing: all are to go to the same node.
	Seed uint64

	// Whole lets the decision tell of every node that is refused, not of the first few only.
	Whole bool
}

// strategy returns the strategy, which is never empty.
func (r *Request) strategy() Strategy {
	if r.Strategy == "" {
		return Spread
	}
	return r.Strategy
}

// check returns why the request makes no sense, as an invalid problem, or nil.
func (r *Request) check() error {
	p := problem.New(problem.Invalid, "vm %q cannot be placed", r.VM)
	switch {
	case r.Amount.VCPUs < 1 || r.Amount.Memory < 1 || r.Disk < 0 || slices.ContainsFunc(r.Also, func(p Pool) bool { return p.Space < 0 }):
		return p.Because("it asks for %d vCPUs, %d bytes of memory and %d bytes of disk", r.Amount.VCPUs, r.Amount.Memory, r.Disk).
			Try("ask for at least one vCPU and some memory")
	case r.Strategy != "" && r.Strategy != Spread && r.Strategy != Pack:
		return p.Because("there is no strategy %q", r.Strategy).Try("say %s or %s", Spread, Pack)
	case r.Group.ID != "" && r.Group.Policy != api.Affinity && r.Group.Policy != api.AntiAffinity:
		return p.Because("its group has the policy %q", r.Group.Policy).Try("use a group with %s or %s", api.Affinity, api.AntiAffinity)
	}
	return nil
}

// query is a request, and what must be known of all nodes to judge one.
type query struct {
	*Request
	labels []label // of NodeLabels, by key
	pin    *Node   // that was asked for; nil: there is no such node
	anchor string  // name of the first node that holds the group's other VMs; empty: none does
	crowd  int     // the most VMs of the group, itself not counted, on one node
}

type label struct{ key, value string }

// newQuery looks at the nodes only if there is something to look for.
func newQuery(nodes []Node, req Request) *query {
	q := bareQuery(&req)
	if req.NodeID == "" && req.Group.ID == "" {
		return q
	}
	var anchor *Node
	for i := range nodes {
		n := &nodes[i]
		if n.ID == req.NodeID {
			q.pin = n
		}
		others := q.others(n)
		if others > 0 && n.Phase != api.PhaseDown && (anchor == nil || compareNodes(n, anchor) < 0) {
			anchor, q.anchor = n, n.Name
		}
		q.crowd = max(q.crowd, others)
	}
	return q
}

func bareQuery(req *Request) *query {
	q := &query{Request: req}
	//workflowcheck:ignore sorted below
	for k, v := range req.NodeLabels {
		q.labels = append(q.labels, label{k, v})
	}
	slices.SortFunc(q.labels, func(a, b label) int { return strings.Compare(a.key, b.key) })
	return q
}

// others returns how many VMs of the VM's group n has, itself not counted.
func (q *query) others(n *Node) int {
	if q.Group.ID == "" {
		return 0
	}
	count := n.Groups[q.Group.ID]
	if n.ID == q.At {
		count--
	}
	return max(count, 0)
}
