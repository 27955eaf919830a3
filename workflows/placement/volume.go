package placement

import (
	"cmp"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// VolumeRequest is what a volume needs of the node that keeps it.
type VolumeRequest struct {
	Volume string // its name, for messages
	Pool   string // ID
	Space  int64  // bytes that it needs at once
	NodeID string // that it must be on; empty: any
}

// PlaceVolume ranks the nodes that can keep a volume, those with the most space first, and tells of the others why they cannot.
// If none can, the error is a no_capacity problem. A node that takes no new VMs takes volumes: they do not keep it busy.
func PlaceVolume(nodes []Node, req VolumeRequest) (api.Decision, error) {
	q := newQuery(nodes, Request{VM: req.Volume, Pool: req.Pool, Disk: req.Space, NodeID: req.NodeID})
	best := newTop(rankedShown, candidate.compare)
	no := newTop(refusedShown, refused.compare)
	for i := range nodes {
		n := &nodes[i]
		if f := q.refusingVolume(n); f >= 0 {
			no.offer(refused{node: n, filter: f})
			continue
		}
		best.offer(candidate{node: n, level: float64(n.Pools[req.Pool])})
	}
	d := api.Decision{More: best.passed + no.passed}
	for _, c := range best.kept {
		d.Ranked = append(d.Ranked, api.Candidate{Node: c.node.ID, Name: c.node.Name, Score: max(0, c.level), Terms: map[string]float64{"free bytes": max(0, c.level)}})
	}
	for _, r := range no.kept {
		d.Refused = append(d.Refused, api.Refusal{Node: r.node.ID, Name: r.node.Name, Reason: filters[r.filter].why(r.node, q)})
	}
	if len(d.Ranked) > 0 {
		d.Node, d.Name = d.Ranked[0].Node, d.Ranked[0].Name
		return d, nil
	}
	p := problem.New(problem.NoCapacity, "no node can take volume %q", req.Volume).Because("there are no nodes")
	var reasons []string
	for _, r := range d.Refused {
		reasons = append(reasons, r.Name+": "+r.Reason)
	}
	if len(reasons) > 0 {
		p = p.Because("%s", strings.Join(reasons, "; "))
	}
	return d, p.Try("wait until a node of the pool is ready, or make room there")
}

// refusingVolume is refusing, by the filters that matter to a volume.
func (q *query) refusingVolume(n *Node) int {
	for i, f := range filters {
		switch f.name {
		case notAskedFor, "not ready", "without the pool", "with too little space in the pool":
			if !f.passes(n, q) {
				return i
			}
		}
	}
	return -1
}

// without is the first pool of a VM's other disks that a node does not have; empty: it has all.
func (q *query) without(n *Node) string {
	for _, p := range q.Also {
		if _, has := n.Pools[p.ID]; !has {
			return cmp.Or(p.Name, p.ID)
		}
	}
	return ""
}
