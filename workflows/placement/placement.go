// Package placement decides which node a VM goes to, which VMs leave a node, and which moves even the nodes out. It is pure:
// it reads no clock, asks nobody, and what chance it needs is a number in the request. The same nodes and the same request
// give the same decision, whatever the order of the nodes, so that a decision can be repeated, planned and explained.
//
// A node is refused by the first filter that it does not pass (filters.go); those that are left are ranked by weighers
// (weighers.go). Drain and Balance are the same decision, made over and over on a copy of the nodes in which the VMs before
// have moved already (world.go).
package placement

import (
	"cmp"
	"math"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// How much of a decision is told. It is kept in the record of every operation that places something, and nobody reads ten
// thousand lines; the rest are counted.
const (
	rankedShown  = 8
	refusedShown = 32
)

// scoreStep is how far apart scores must be to count as different when the request has a seed. Every decision commits to the
// ledger of one node, and those that commit to the same one at the same time must decide again. If a difference of a
// thousandth counted, all decisions made at a time would go for the one best node. A step of 0.02 is about one part in
// twenty of a node's memory: too little to matter to any VM, and enough that nodes of a well-kept cluster are equals, over
// which seeds spread.
const scoreStep = 0.02

// candidate is a node that passed every filter.
type candidate struct {
	node  *Node
	score float64
	level float64 // score in steps; the score itself without a seed
	lot   uint64  // drawn by the seed; 0 without
}

func (c candidate) compare(o candidate) int {
	return cmp.Or(cmp.Compare(o.level, c.level), cmp.Compare(c.lot, o.lot), compareNodes(c.node, o.node))
}

// refused is a node and the filter that it did not pass.
type refused struct {
	node   *Node
	filter int
}

// compare puts nodes that were not asked for last: of a VM that must be on one node, that node's reason is what counts.
func (r refused) compare(o refused) int {
	return cmp.Or(cmp.Compare(asked(r.filter), asked(o.filter)), compareNodes(r.node, o.node))
}

func asked(filter int) int {
	if filters[filter].name == notAskedFor {
		return 1
	}
	return 0
}

func compareNodes(a, b *Node) int {
	return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
}

// Place ranks the nodes that can take the VM, the best first, and tells of the others why they cannot. If none can, the error
// is a no_capacity problem that says so node by node, and the decision still holds what was refused. A request that makes no
// sense is an invalid problem. IDs of nodes must differ.
func Place(nodes []Node, req Request) (api.Decision, error) {
	if err := req.check(); err != nil {
		return api.Decision{}, err
	}
	q := newQuery(nodes, req)
	best := newTop(rankedShown, candidate.compare)
	no := newTop(q.told(len(nodes)), refused.compare)
	counts := make([]int, len(filters))
	for i := range nodes {
		n := &nodes[i]
		if f := q.refusing(n); f >= 0 {
			counts[f]++
			no.offer(refused{node: n, filter: f})
			continue
		}
		best.offer(q.rate(n))
	}
	d := q.decision(best, no)
	if len(best.kept) == 0 {
		return d, q.noCapacity(d, no, counts)
	}
	return d, nil
}

// told is of how many refused nodes the decision tells.
func (q *query) told(nodes int) int {
	if q.Whole {
		return max(nodes, 1)
	}
	return refusedShown
}

// rate gives a node that passed every filter its score.
func (q *query) rate(n *Node) candidate {
	c := candidate{node: n}
	for i := range weighers {
		c.score += weighers[i].weight * weighers[i].value(n, q)
	}
	c.level = c.score
	if q.Seed != 0 && q.strategy() != Pack {
		c.level = math.Floor(c.score/scoreStep + 1e-9) // sums of fractions end up on either side of a whole number
		c.lot = draw(q.Seed, n.ID)
	}
	return c
}

func (q *query) decision(best *top[candidate], no *top[refused]) api.Decision {
	d := api.Decision{Strategy: string(q.strategy()), More: best.passed + no.passed}
	for _, c := range best.kept {
		terms := make(map[string]float64, len(weighers))
		for _, w := range weighers {
			if v := w.weight * w.value(c.node, q); v != 0 {
				terms[w.name] = shown(v)
			}
		}
		d.Ranked = append(d.Ranked, api.Candidate{Node: c.node.ID, Name: c.node.Name, Score: shown(c.score), Terms: terms})
	}
	for _, r := range no.kept {
		d.Refused = append(d.Refused, api.Refusal{Node: r.node.ID, Name: r.node.Name, Reason: filters[r.filter].why(r.node, q)})
	}
	if len(d.Ranked) > 0 {
		d.Node, d.Name = d.Ranked[0].Node, d.Ranked[0].Name
	}
	return d
}

// shown rounds what is only looked at.
func shown(score float64) float64 { return math.Round(score*1e4) / 1e4 }

// draw gives a node a number that depends on its ID and the seed alone, so that it is the same in any order of the nodes, and
// has nothing to do with the number under another seed. It is FNV-1a, stirred at the end because IDs differ in few bits.
func draw(seed uint64, id string) uint64 {
	h := seed ^ 0xcbf29ce484222325
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 0x100000001b3
	}
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// noCapacity explains a decision without a node.
func (q *query) noCapacity(d api.Decision, no *top[refused], counts []int) error {
	p := problem.New(problem.NoCapacity, "no node can take vm %q", q.VM)
	if len(d.Refused) == 0 {
		return p.Because("there are no nodes").Try("add one: run gnext agent run on it")
	}
	if q.NodeID != "" && q.pin == nil {
		return p.Because("it must be on node %s, which does not exist", q.NodeID).Try("name another node, or none")
	}
	shown := min(len(d.Refused), refusedShown)
	reasons := make([]string, 0, shown+1)
	for _, r := range d.Refused[:shown] {
		reasons = append(reasons, r.Name+": "+r.Reason)
	}
	if more := len(no.kept) + no.passed - shown; more > 0 {
		for _, r := range no.kept[:shown] {
			counts[r.filter]--
		}
		reasons = append(reasons, rest(more, counts))
	}
	return p.Because("%s", strings.Join(reasons, "; ")).Try("ask for less, delete what is not needed, or add a node")
}
