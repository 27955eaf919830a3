package placement_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/placement"
)

// small returns a node of 8 cores and 16 GiB with the default ratio of vCPUs: 32 vCPUs.
func small(name string, change ...func(*placement.Node)) placement.Node {
	return node(name, append([]func(*placement.Node){func(n *placement.Node) {
		n.Cores, n.Memory, n.ReservedMemory = 8, 16*api.GiB, 0
	}}, change...)...)
}

// on puts a VM of two vCPUs and 2 GiB, an eighth of a small node's memory, on a node.
func on(nodes []placement.Node, name, home string, change ...func(*placement.VM)) placement.VM {
	vm := placement.VM{ID: "id-" + name, Name: name, Node: "id-" + home, Request: placement.Request{VM: name, Amount: api.Amount{VCPUs: 2, Memory: 2 * api.GiB}, Pool: "pool"}}
	for _, c := range change {
		c(&vm)
	}
	vm.Amount = vm.Request.Amount
	put(nodes, vm.Node, vm.Request)
	return vm
}

func rule(g placement.Group) func(*placement.VM) {
	return func(vm *placement.VM) { vm.Request.Group = g }
}

func sized(vcpus int, memory int64) func(*placement.VM) {
	return func(vm *placement.VM) { vm.Request.Amount = api.Amount{VCPUs: vcpus, Memory: memory} }
}

func TestDrain(t *testing.T) {
	nodes := []placement.Node{small("a"), small("b"), small("c")}
	vms := []placement.VM{
		on(nodes, "little", "a"),
		on(nodes, "large", "a", sized(2, 10*api.GiB)),
		on(nodes, "pinned", "a", func(vm *placement.VM) { vm.Request.NodeID = "id-a" }),
		on(nodes, "paused", "a", func(vm *placement.VM) { vm.Stays = "it is paused: resume or stop it first" }),
		on(nodes, "alone", "a", rule(groups["apart"])),
		on(nodes, "other", "b", rule(groups["apart"]), sized(1, 5*api.GiB)),
		on(nodes, "another", "c", rule(groups["apart"]), sized(1, 12*api.GiB)),
	}
	before := fmt.Sprint(nodes)
	told := map[string]string{}
	var order []string
	for _, d := range placement.Drain(nodes, vms, "id-a") {
		order = append(order, d.VM.Name)
		if told[d.VM.Name] = d.Decision.Name; d.Problem != nil {
			told[d.VM.Name] = d.Problem.Error()
		}
	}
	require.Equal(t, []string{"large", "alone", "little", "paused", "pinned"}, order, "the largest first")
	require.Equal(t, "b", told["large"])
	require.Equal(t, "c", told["little"], "the large one is on b by now")
	require.Equal(t, `vm "pinned" stays where it is: it is pinned to this node`, told["pinned"])
	require.Equal(t, `vm "paused" stays where it is: it is paused: resume or stop it first`, told["paused"])
	require.Contains(t, told["alone"], `a: the VM is to leave it; b: 1 GiB of memory free, 2 GiB needed; c: has 1 VM of its vm group, which must be kept apart`)
	require.Equal(t, before, fmt.Sprint(nodes), "the nodes that were given are as they were")
	require.Empty(t, placement.Drain(nodes, vms, "id-x"))
}

// A group that must stay together stays on a node that is drained, and says so; the dead do not hold anybody.
// Each VM that leaves goes where it wishes: those that are packed to the fullest node, also once others have gone before them.
func TestDrainHonoursStrategies(t *testing.T) {
	packed := func(vm *placement.VM) { vm.Request.Strategy, vm.Request.Seed = placement.Pack, 7 }
	nodes := []placement.Node{small("a"), small("b"), small("c"), small("d")}
	vms := []placement.VM{
		on(nodes, "1-packed", "a", packed), on(nodes, "2-spread", "a"), on(nodes, "3-packed", "a", packed),
		on(nodes, "there", "c", sized(2, 5*api.GiB)), on(nodes, "full", "d", sized(2, 15*api.GiB)),
	}
	told := map[string]string{}
	for _, d := range placement.Drain(nodes, vms, "id-a") {
		require.Nil(t, d.Problem)
		told[d.VM.Name] = d.Decision.Name + " " + d.Decision.Strategy
	}
	require.Equal(t, map[string]string{"1-packed": "c pack", "2-spread": "b spread", "3-packed": "c pack"}, told)
}

func TestDrainOfThoseTogether(t *testing.T) {
	nodes := []placement.Node{small("a"), small("b"), small("c")}
	vms := []placement.VM{on(nodes, "one", "a", rule(groups["near"])), on(nodes, "two", "a", rule(groups["near"]))}
	for _, d := range placement.Drain(nodes, vms, "id-a") {
		require.True(t, problem.Is(d.Problem, problem.NoCapacity))
		require.Contains(t, d.Problem.Error(), "b: its vm group must stay together, and is on node a")
	}
	nodes[0].Phase, nodes[0].Ready = api.PhaseDown, false
	var to []string
	for _, d := range placement.Drain(nodes, vms, "id-a") {
		require.Nil(t, d.Problem)
		to = append(to, d.Decision.Name)
	}
	require.Equal(t, []string{"b", "b"}, to, "together again")
}

func moves(proposals []placement.Proposal) string {
	var out []string
	for _, p := range proposals {
		out = append(out, fmt.Sprintf("%s:%s>%s", p.VM.Name, p.FromName, p.ToName))
	}
	return strings.Join(out, " ")
}

func TestBalance(t *testing.T) {
	type world struct {
		nodes []placement.Node
		vms   []placement.VM
	}
	// three returns three nodes with four VMs on the first, changed as wanted.
	three := func(change ...func(*placement.VM)) world {
		w := world{nodes: []placement.Node{small("a"), small("b"), small("c")}}
		for i := range 4 {
			w.vms = append(w.vms, on(w.nodes, fmt.Sprintf("vm%d", i), "a", change...))
		}
		return w
	}
	for _, tc := range []struct {
		name string
		make func() world
		opts placement.BalanceOptions
		want string
	}{
		{"evens out", func() world { return three() }, placement.BalanceOptions{}, "vm0:a>c vm1:a>b"},
		{"so many and no more", func() world { return three() }, placement.BalanceOptions{Moves: 1}, "vm0:a>c"},
		{"close enough", func() world { return three() }, placement.BalanceOptions{Gap: 0.6}, ""},
		{"not worth the trouble", func() world { return three() }, placement.BalanceOptions{Gain: 0.3}, ""},
		{"even already", func() world {
			w := world{nodes: []placement.Node{small("a"), small("b")}}
			w.vms = []placement.VM{on(w.nodes, "x", "a"), on(w.nodes, "y", "b")}
			return w
		}, placement.BalanceOptions{}, ""},
		{"one VM would only change places", func() world {
			w := world{nodes: []placement.Node{small("a"), small("b")}}
			w.vms = []placement.VM{on(w.nodes, "x", "a", sized(2, 12*api.GiB))}
			return w
		}, placement.BalanceOptions{}, ""},
		{"the VM that helps most", func() world {
			w := world{nodes: []placement.Node{small("a"), small("b")}}
			w.vms = []placement.VM{on(w.nodes, "x", "a"), on(w.nodes, "y", "a", sized(2, 6*api.GiB)), on(w.nodes, "z", "a", sized(2, 4*api.GiB))}
			return w
		}, placement.BalanceOptions{}, "y:a>b"},
		{"shares, not amounts", func() world {
			w := world{nodes: []placement.Node{small("a"), small("big", func(n *placement.Node) { n.Memory *= 8 })}}
			for i := range 3 {
				w.vms = append(w.vms, on(w.nodes, fmt.Sprintf("vm%d", i), "a"))
			}
			return w
		}, placement.BalanceOptions{}, "vm0:a>big vm1:a>big"},
		{"vCPUs when memory is even", func() world {
			w := world{nodes: []placement.Node{small("a"), small("b", claimed(0, 320*api.MiB))}}
			for i := range 4 {
				w.vms = append(w.vms, on(w.nodes, fmt.Sprintf("vm%d", i), "a", sized(4, 100*api.MiB)))
			}
			return w
		}, placement.BalanceOptions{}, "vm0:a>b vm1:a>b"},
		{"memory is not given up for vCPUs", func() world {
			w := world{nodes: []placement.Node{small("a"), small("b", claimed(0, 8*api.GiB))}}
			for i := range 4 {
				w.vms = append(w.vms, on(w.nodes, fmt.Sprintf("vm%d", i), "a", sized(4, 2*api.GiB)))
			}
			return w
		}, placement.BalanceOptions{}, ""},
		{"vCPUs are not given up for memory", func() world {
			w := three(sized(8, 2*api.GiB))
			w.nodes[1].Claimed.VCPUs, w.nodes[2].Claimed.VCPUs, w.nodes[0].Claimed.VCPUs = 20, 32, 25
			return w
		}, placement.BalanceOptions{}, ""},
		{"pinned", func() world { return three(func(vm *placement.VM) { vm.Request.NodeID = "id-a" }) }, placement.BalanceOptions{}, ""},
		{"paused", func() world { return three(func(vm *placement.VM) { vm.Stays = "it is paused" }) }, placement.BalanceOptions{}, ""},
		{"not shared", func() world { return three(func(vm *placement.VM) { vm.Copy = true }) }, placement.BalanceOptions{}, ""},
		{"copied", func() world { return three(func(vm *placement.VM) { vm.Copy = true }) }, placement.BalanceOptions{Copy: true}, "vm0:a>c vm1:a>b"},
		{"no space for a copy", func() world {
			w := three(func(vm *placement.VM) { vm.Copy = true })
			for i := range w.vms {
				w.vms[i].Request.Disk = 60 * api.GiB
			}
			w.nodes[1].Pools["pool"] = 10 * api.GiB
			return w
		}, placement.BalanceOptions{Copy: true}, "vm0:a>c"}, // a second one would find 40 GiB
		{"cordoned nodes take no part", func() world {
			w := three()
			w.nodes[1].Cordoned = true
			return w
		}, placement.BalanceOptions{}, "vm0:a>c vm1:a>c"},
		{"nor do those that are not ready", func() world {
			w := three()
			w.nodes[0].Ready = false
			return w
		}, placement.BalanceOptions{}, ""},
		{"pool not reached", func() world {
			w := three()
			delete(w.nodes[1].Pools, "pool")
			return w
		}, placement.BalanceOptions{}, "vm0:a>c vm1:a>c"},
		{"labels", func() world {
			w := three(func(vm *placement.VM) { vm.Request.NodeLabels = map[string]string{"zone": "a"} })
			w.nodes[2].Labels = nil
			return w
		}, placement.BalanceOptions{}, "vm0:a>b vm1:a>b"},
		{"those together stay together", func() world { return three(rule(groups["near"])) }, placement.BalanceOptions{}, ""},
		{"softly as well", func() world { return three(rule(groups["near?"])) }, placement.BalanceOptions{}, ""},
		{"strays come together", func() world {
			w := world{nodes: []placement.Node{small("a"), small("b"), small("c")}}
			w.vms = []placement.VM{
				on(w.nodes, "x", "a", rule(groups["near"])), on(w.nodes, "fixed", "a", sized(2, 6*api.GiB), func(vm *placement.VM) { vm.Request.NodeID = "id-a" }),
				on(w.nodes, "y", "c", rule(groups["near"])),
			}
			return w
		}, placement.BalanceOptions{}, "x:a>c"},
		{"those apart stay apart", func() world {
			w := three(rule(groups["apart?"]))
			on(w.nodes, "x", "b", rule(groups["apart"]), sized(1, api.MiB))
			w.vms[0].Request.Group, w.vms[1].Request.Group = groups["apart"], groups["apart"]
			return w
		}, placement.BalanceOptions{}, "vm0:a>c vm2:a>b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := tc.make()
			got := placement.Balance(w.nodes, w.vms, tc.opts)
			require.Equal(t, tc.want, moves(got))
		})
	}
	w := three()
	require.Equal(t, "memory promised on a goes from 50.0% to 37.5%, on c from 0.0% to 12.5%", placement.Balance(w.nodes, w.vms, placement.BalanceOptions{})[0].Reason)
}

// With equal nodes and small VMs that may go anywhere, balance leaves little to do.
func TestBalanceGetsThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []placement.Node
		for i := range rapid.IntRange(2, 12).Draw(t, "nodes") {
			nodes = append(nodes, small(fmt.Sprintf("n%d", i)))
		}
		var vms []placement.VM
		for i := range nodes {
			for k := range rapid.IntRange(0, 16).Draw(t, "vms") {
				vms = append(vms, on(nodes, fmt.Sprintf("vm%d-%d", i, k), nodes[i].Name, sized(1, api.GiB)))
			}
		}
		for _, p := range placement.Balance(nodes, vms, placement.BalanceOptions{Moves: 1000}) {
			leave(nodes, p.VM)
			put(nodes, p.To, p.VM.Request)
		}
		low, high := memoryBounds(nodes)
		require.LessOrEqual(t, high-low, 1.0/16+1e-9, "one VM more or less")
	})
}

// leave is the opposite of put: the VM has left its node.
func leave(nodes []placement.Node, vm placement.VM) {
	n := &nodes[slices.IndexFunc(nodes, func(n placement.Node) bool { return n.ID == vm.Node })]
	n.Claimed.VCPUs -= vm.Amount.VCPUs
	n.Claimed.Memory -= vm.Amount.Memory
	if g := vm.Request.Group.ID; g != "" {
		n.Groups[g]--
	}
}

func takesPart(n placement.Node) bool {
	l := n.Limit()
	return n.Ready && !n.Cordoned && l.Memory > 0 && l.VCPUs > 0
}

func memoryBounds(nodes []placement.Node) (low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, n := range nodes {
		if takesPart(n) {
			load := float64(n.Claimed.Memory) / float64(n.Limit().Memory)
			low, high = min(low, load), max(high, load)
		}
	}
	return low, high
}

// unevenness is how far the loads are from the mean, each counted by the size of its node. The mean is the same whatever moves.
func unevenness(nodes []placement.Node, of func(api.Amount) float64) float64 {
	claimed, limit, sum := 0.0, 0.0, 0.0
	for _, n := range nodes {
		if takesPart(n) {
			claimed, limit = claimed+of(n.Claimed), limit+of(n.Limit())
		}
	}
	for _, n := range nodes {
		if takesPart(n) {
			sum += of(n.Limit()) * math.Pow(of(n.Claimed)/of(n.Limit())-claimed/limit, 2)
		}
	}
	return sum
}

// drawCloud fills nodes by placements, and then adds some: so most VMs are where the rules have them, and it is uneven.
func drawCloud(t *rapid.T) ([]placement.Node, []placement.VM) {
	nodes := drawNodes(t, 8)
	for i := range nodes {
		nodes[i].Claimed = api.Amount{}
	}
	filled := nodes[:rapid.IntRange(min(1, len(nodes)), len(nodes)).Draw(t, "filled")]
	var vms []placement.VM
	for i := range rapid.IntRange(5, 40).Draw(t, "vms") {
		req := drawRequest(t, filled)
		d, err := placement.Place(filled, req)
		if err != nil {
			continue
		}
		put(nodes, d.Node, req)
		name := fmt.Sprintf("vm%d", i)
		req.VM = name
		vms = append(vms, placement.VM{
			ID: "id-" + name, Name: name, Node: d.Node, Amount: req.Amount, Request: req,
			Copy: rapid.IntRange(0, 4).Draw(t, "copy") == 0, Stays: rapid.SampledFrom([]string{"", "", "", "", "it is paused"}).Draw(t, "stays"),
		})
	}
	return nodes, vms
}

func TestBalanceKeepsEveryRule(t *testing.T) {
	moved := 0
	rapid.Check(t, func(t *rapid.T) {
		nodes, vms := drawCloud(t)
		opts := placement.BalanceOptions{
			Moves: rapid.IntRange(1, 20).Draw(t, "moves"), Gap: rapid.SampledFrom([]float64{0, 0.01, 0.2}).Draw(t, "gap"),
			Gain: rapid.SampledFrom([]float64{0, 0.1}).Draw(t, "gain"), Copy: rapid.Bool().Draw(t, "copies"),
		}
		proposals := placement.Balance(nodes, vms, opts)
		require.LessOrEqual(t, len(proposals), opts.Moves)
		require.Equal(t, proposals, placement.Balance(rapid.Permutation(nodes).Draw(t, "nodes again"), rapid.Permutation(vms).Draw(t, "vms again"), opts))
		low, high := memoryBounds(nodes)
		before := high - low
		seen := map[string]bool{}
		for _, p := range proposals {
			moved++
			vm := p.VM
			require.False(t, seen[vm.ID], "%s moves twice", vm.Name)
			seen[vm.ID] = true
			require.Empty(t, vm.Request.NodeID)
			require.Empty(t, vm.Stays)
			require.False(t, vm.Copy && !opts.Copy)
			require.NotEqual(t, vm.Node, p.To)
			require.NotEmpty(t, p.Reason)
			req := vm.Request
			req.At = vm.Node
			target := nodes[slices.IndexFunc(nodes, func(n placement.Node) bool { return n.ID == p.To })]
			require.True(t, feasible(nodes, target, req), "%s may not go to %s", vm.Name, p.ToName)
			memory := unevenness(nodes, func(a api.Amount) float64 { return float64(a.Memory) })
			vcpus := unevenness(nodes, func(a api.Amount) float64 { return float64(a.VCPUs) })
			leave(nodes, vm)
			after := put(nodes, p.To, req)
			require.True(t, within(*after, api.Amount{}))
			requireRules(t, nodes)
			require.True(t, unevenness(nodes, func(a api.Amount) float64 { return float64(a.Memory) }) < memory ||
				unevenness(nodes, func(a api.Amount) float64 { return float64(a.VCPUs) }) < vcpus, "%s does not help", p.Reason)
		}
		low, high = memoryBounds(nodes)
		if len(proposals) > 0 {
			gap := opts.Gap
			if gap == 0 {
				gap = 0.05
			}
			require.LessOrEqual(t, high-low, max(before, gap)+1e-9, "memory is less even than before")
		}
	})
	require.NotZero(t, moved)
}

func TestDrainKeepsEveryRuleAndFindsEveryPlace(t *testing.T) {
	moved, stayed := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		nodes, vms := drawCloud(t)
		if len(vms) == 0 {
			return
		}
		from := rapid.SampledFrom(vms).Draw(t, "from").Node
		departures := placement.Drain(nodes, vms, from)
		require.Equal(t, departures, placement.Drain(rapid.Permutation(nodes).Draw(t, "nodes again"), rapid.Permutation(vms).Draw(t, "vms again"), from))
		told := 0
		for _, vm := range vms {
			if vm.Node == from {
				told++
			}
		}
		require.Len(t, departures, told)
		for _, d := range departures {
			req := d.VM.Request
			req.At = from
			could := func(n placement.Node) bool { return n.ID != from && feasible(nodes, n, req) }
			if d.Problem != nil {
				stayed++
				require.False(t, d.VM.Stays == "" && slices.ContainsFunc(nodes, could), "%s could go, but: %s", d.VM.Name, d.Problem)
				continue
			}
			moved++
			require.Empty(t, d.VM.Stays)
			target := nodes[slices.IndexFunc(nodes, func(n placement.Node) bool { return n.ID == d.Decision.Node })]
			require.True(t, could(target), "%s may not go to %s", d.VM.Name, target.Name)
			leave(nodes, d.VM)
			require.True(t, within(*put(nodes, target.ID, req), api.Amount{}))
			requireRules(t, nodes)
		}
	})
	require.NotZero(t, moved)
	require.NotZero(t, stayed)
}
