package placement

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/nextstack/nextstack/api"
)

// BalanceOptions says how far Balance goes. What is 0 is the default. Loads are shares of what may be promised on a node.
type BalanceOptions struct {
	Moves int     // at most; default 16
	Gap   float64 // nodes whose loads are closer than this are even enough; default 0.05
	Gain  float64 // a move must bring the loads of its two nodes closer by this, or it is not worth the trouble; default 0.005
	Copy  bool    // also move VMs whose disks have to be copied
}

// Proposal is one move that evens out the nodes. Those before it are taken for done.
type Proposal struct {
	VM       VM
	FromName string
	To       string // node ID
	ToName   string
	Reason   string
}

// looked is at how many nodes, from the emptiest, a target is looked for. It bounds the time that a cluster takes in which
// hardly any VM can move: each VM of ten thousand nodes would be tried on each of the others.
const looked = 256

// resource is what loads are shares of.
type resource struct {
	name string
	load func(n *Node) float64
	size func(a api.Amount, n *Node) float64 // load that the amount is on n
}

var (
	memory = resource{
		"memory",
		func(n *Node) float64 { return float64(n.Claimed.Memory) / float64(n.memoryLimit()) },
		func(a api.Amount, n *Node) float64 { return float64(a.Memory) / float64(n.memoryLimit()) },
	}
	vcpus = resource{
		"vCPUs",
		func(n *Node) float64 { return float64(n.Claimed.VCPUs) / float64(n.vcpuLimit()) },
		func(a api.Amount, n *Node) float64 { return float64(a.VCPUs) / float64(n.vcpuLimit()) },
	}
)

// Balance proposes moves from fuller nodes to emptier ones: first such that even out memory, which cannot be shared, then such
// that even out vCPUs and keep memory as it is. It takes the best move of the fullest node each time, and stops when no move
// is worth it. It is greedy: fewer moves may sometimes do as much. Only nodes that take new VMs take part; a VM never moves
// twice, a pinned one never at all, and none goes where Place would not let it go, or where the wish of its group is less
// fulfilled than before.
func Balance(nodes []Node, vms []VM, opts BalanceOptions) []Proposal {
	b := &balance{world: newWorld(nodes), opts: opts.defaults(), homes: map[*Node][]*VM{}, groups: map[string]int{}}
	for i := range b.nodes {
		n := &b.nodes[i]
		if n.Ready && !n.Cordoned && n.sane() && n.memoryLimit() > 0 && n.vcpuLimit() > 0 {
			b.members = append(b.members, member{node: n})
		}
	}
	b.settle(vms)
	b.even(memory, b.noHigherCPU)
	b.even(vcpus, b.memoryStaysEven())
	return b.moves
}

func (o BalanceOptions) defaults() BalanceOptions {
	if o.Moves <= 0 {
		o.Moves = 16
	}
	if !(o.Gap > 0) {
		o.Gap = 0.05
	}
	if !(o.Gain > 0) {
		o.Gain = 0.005
	}
	return o
}

// member is a node that takes part.
type member struct {
	node *Node
	load float64 // of the resource that is being evened out
}

type balance struct {
	*world
	opts    BalanceOptions
	members []member        // the fullest first
	homes   map[*Node][]*VM // VMs that can move, by name
	groups  map[string]int  // VMs of each group with a hard affinity, on all nodes that are not down
	moves   []Proposal
}

// settle notes which VMs of the members can move, each once.
func (b *balance) settle(vms []VM) {
	seen := map[string]bool{}
	for i := range vms {
		vm := vms[i] // a copy: what it asks for is completed here
		vm.Request.At = vm.Node
		n := b.node(vm.Node)
		if n == nil || seen[vm.ID] || vm.Stays != "" || vm.Request.NodeID != "" || vm.Copy && !b.opts.Copy || vm.Request.check() != nil ||
			vm.Amount.VCPUs < 0 || vm.Amount.Memory < 0 {
			continue
		}
		seen[vm.ID] = true
		b.homes[n] = append(b.homes[n], &vm)
		b.census(vm.Request.Group)
	}
	for _, m := range b.members {
		slices.SortFunc(b.homes[m.node], compareVMs)
	}
}

// census counts a group over all nodes, once: moves do not change the sum.
func (b *balance) census(g Group) {
	if _, done := b.groups[g.ID]; done || g.ID == "" || g.Policy != api.Affinity {
		return
	}
	count := 0
	for i := range b.nodes {
		if n := &b.nodes[i]; n.Phase != api.PhaseDown {
			count += max(n.Groups[g.ID], 0)
		}
	}
	b.groups[g.ID] = count
}

// step is a possible move.
type step struct {
	vm       *VM
	from, to *Node
	gain     float64
}

// even proposes moves until the loads of r are even enough, or nothing helps. A move must also be allowed by what is given.
func (b *balance) even(r resource, allowed func(step) bool) {
	tried := map[*Node]bool{} // nodes of which no VM could go; the others only get fuller meanwhile
	for len(b.moves) < b.opts.Moves {
		b.order(r)
		s := b.next(r, allowed, tried)
		if s.vm == nil {
			return
		}
		b.propose(r, s)
	}
}

// order sorts the members by their loads as they are now.
func (b *balance) order(r resource) {
	for i := range b.members {
		b.members[i].load = r.load(b.members[i].node)
	}
	slices.SortFunc(b.members, func(x, y member) int { return cmp.Or(cmp.Compare(y.load, x.load), compareNodes(x.node, y.node)) })
}

// next finds the best move away from the fullest node from which there is one.
func (b *balance) next(r resource, allowed func(step) bool, tried map[*Node]bool) (best step) {
	for _, from := range b.members {
		if from.load-b.members[len(b.members)-1].load < b.opts.Gap {
			return best
		}
		if tried[from.node] {
			continue
		}
		for _, vm := range b.homes[from.node] {
			if s := b.target(r, vm, from, allowed); s.vm != nil && (best.vm == nil || s.gain > best.gain) {
				best = s
			}
		}
		if best.vm != nil {
			return best
		}
		tried[from.node] = true
	}
	return best
}

// target finds the emptiest node to which it is worth moving the VM.
func (b *balance) target(r resource, vm *VM, from member, allowed func(step) bool) step {
	q := b.query(vm, from.node)
	left := from.load - r.size(vm.Amount, from.node)
	for i, k := len(b.members)-1, 0; i >= 0 && k < looked; i, k = i-1, k+1 {
		to := b.members[i]
		gap := from.load - to.load
		if gap < b.opts.Gap || left < to.load { // the others are fuller still
			break
		}
		grown := to.load + r.size(vm.Request.Amount, to.node)
		s := step{vm: vm, from: from.node, to: to.node, gain: gap - math.Abs(left-grown)}
		if grown <= from.load && s.gain >= b.opts.Gain && allowed(s) && q.refusing(to.node) < 0 && q.asMuchWished(s.from, s.to) {
			return s
		}
	}
	return step{}
}

// query is newQuery without looking at every node again.
func (b *balance) query(vm *VM, from *Node) *query {
	q := bareQuery(&vm.Request)
	if b.groups[q.Group.ID]-min(from.Groups[q.Group.ID], 1) > 0 {
		q.anchor = from.Name // whichever it is: nobody is told
	}
	return q
}

// asMuchWished reports whether a soft rule is kept at least as well on the other node.
func (q *query) asMuchWished(from, to *Node) bool {
	switch here, there := q.others(from), q.others(to); {
	case q.Group.ID == "" || !q.Group.Soft:
		return true
	case q.Group.Policy == api.AntiAffinity:
		return there <= here
	default:
		return there >= here
	}
}

// propose makes the move in the world.
func (b *balance) propose(r resource, s step) {
	high, low := r.load(s.from), r.load(s.to)
	b.homes[s.from] = slices.DeleteFunc(b.homes[s.from], func(vm *VM) bool { return vm == s.vm })
	b.move(s.vm, s.to)
	b.moves = append(b.moves, Proposal{
		VM: *s.vm, FromName: s.from.Name, To: s.to.ID, ToName: s.to.Name,
		Reason: fmt.Sprintf("%s promised on %s goes from %s to %s, on %s from %s to %s", r.name,
			s.from.Name, percent(high), percent(r.load(s.from)), s.to.Name, percent(low), percent(r.load(s.to))),
	})
}

// noHigherCPU lets memory be evened out as long as neither node has more of its vCPUs promised than the fuller one had.
func (b *balance) noHigherCPU(s step) bool {
	return vcpus.load(s.to)+vcpus.size(s.vm.Request.Amount, s.to) <= max(vcpus.load(s.from), vcpus.load(s.to))
}

// memoryStaysEven lets vCPUs be evened out as long as the loads of memory stay within the bounds that they have now, or as
// close to each other as is even enough.
func (b *balance) memoryStaysEven() func(step) bool {
	low, high := math.Inf(1), math.Inf(-1)
	for _, m := range b.members {
		low, high = min(low, memory.load(m.node)), max(high, memory.load(m.node))
	}
	if room := b.opts.Gap - (high - low); room > 0 {
		low, high = low-room/2, high+room/2
	}
	return func(s step) bool {
		return memory.load(s.from)-memory.size(s.vm.Amount, s.from) >= low && memory.load(s.to)+memory.size(s.vm.Request.Amount, s.to) <= high
	}
}
