package placement_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/placement"
)

// Groups of the worlds below, by ID.
var groups = map[string]placement.Group{
	"":        {},
	"near":    {ID: "near", Policy: api.Affinity},
	"apart":   {ID: "apart", Policy: api.AntiAffinity},
	"near?":   {ID: "near?", Policy: api.Affinity, Soft: true},
	"apart?":  {ID: "apart?", Policy: api.AntiAffinity, Soft: true},
	"apart-2": {ID: "apart-2", Policy: api.AntiAffinity},
}

var groupIDs = []string{"", "", "near", "apart", "near?", "apart?", "apart-2"}

// drawNodes makes nodes of small numbers, so that full, nearly full and overfull ones are all common; most are well, so that VMs
// do find one. In a tame world all nodes are alike but for their room, so that room and groups decide; in a wild one everything varies.
func drawNodes(t *rapid.T, most int) []placement.Node {
	count := rapid.IntRange(0, most).Draw(t, "nodes")
	if rapid.Bool().Draw(t, "tame") {
		return tameNodes(t, max(count, 2))
	}
	var nodes []placement.Node
	for i := range count {
		name := fmt.Sprintf("n%d", i)
		phase := rapid.SampledFrom([]api.Phase{
			api.PhaseReady, api.PhaseReady, api.PhaseReady, api.PhaseReady, api.PhaseReady, api.PhaseSuspect, api.PhaseDown, api.PhaseUnavailable,
		}).Draw(t, name+" phase")
		n := placement.Node{
			ID: "id-" + name, Name: name, Phase: phase, Ready: phase == api.PhaseReady,
			Cordoned:       rapid.IntRange(0, 7).Draw(t, name+" cordoned") == 7,
			Arch:           rapid.SampledFrom([]string{"x86_64", "x86_64", "x86_64", "aarch64"}).Draw(t, name+" arch"),
			CPUModels:      rapid.SampledFrom([][]string{{"EPYC", "qemu64"}, {"EPYC"}, nil}).Draw(t, name+" models"),
			Network:        rapid.IntRange(0, 5).Draw(t, name+" network") > 0,
			Cores:          rapid.IntRange(0, 12).Draw(t, name+" cores"),
			Memory:         rapid.Int64Range(0, 48).Draw(t, name+" memory"),
			ReservedMemory: rapid.Int64Range(0, 4).Draw(t, name+" reserved"),
			CPURatio:       rapid.SampledFrom([]float64{4, 4, 1, 1.5, 0.5, 0}).Draw(t, name+" cpu ratio"),
			MemoryRatio:    rapid.SampledFrom([]float64{1, 0, 1.5, 0.5}).Draw(t, name+" memory ratio"),
			Claimed:        api.Amount{VCPUs: rapid.IntRange(0, 12).Draw(t, name+" vcpus"), Memory: rapid.Int64Range(0, 24).Draw(t, name+" claimed")},
			Pools:          map[string]int64{},
			Labels:         map[string]string{},
		}
		for _, pool := range []string{"p", "q"} {
			if free := rapid.Int64Range(-2, 60).Draw(t, name+" "+pool); free > -2 {
				n.Pools[pool] = free
			}
		}
		if zone := rapid.SampledFrom([]string{"", "a", "a", "b"}).Draw(t, name+" zone"); zone != "" {
			n.Labels["zone"] = zone
		}
		if rapid.Bool().Draw(t, name+" image") {
			n.Images = map[placement.Cached]bool{{Pool: "p", SHA256: "sha"}: true}
		}
		nodes = append(nodes, n)
	}
	return nodes
}

func tameNodes(t *rapid.T, count int) []placement.Node {
	var nodes []placement.Node
	for i := range count {
		name := fmt.Sprintf("n%d", i)
		nodes = append(nodes, placement.Node{
			ID: "id-" + name, Name: name, Phase: api.PhaseReady, Ready: true, Arch: "x86_64", CPUModels: []string{"EPYC", "qemu64"}, Network: true,
			Cores: rapid.IntRange(2, 8).Draw(t, name+" cores"), CPURatio: 4, MemoryRatio: rapid.SampledFrom([]float64{1, 1.5}).Draw(t, name+" memory ratio"),
			Memory: rapid.Int64Range(8, 48).Draw(t, name+" memory"), ReservedMemory: rapid.Int64Range(0, 4).Draw(t, name+" reserved"),
			Pools: map[string]int64{"p": rapid.Int64Range(10, 60).Draw(t, name+" p"), "q": placement.UnknownSpace}, Labels: map[string]string{"zone": "a"},
		})
	}
	return nodes
}

func drawRequest(t *rapid.T, nodes []placement.Node) placement.Request {
	if rapid.Bool().Draw(t, "plain") {
		return placement.Request{
			VM: "vm", Pool: "p", Disk: rapid.Int64Range(0, 10).Draw(t, "disk"), Group: groups[rapid.SampledFrom(groupIDs).Draw(t, "group")],
			Amount: api.Amount{VCPUs: rapid.IntRange(1, 6).Draw(t, "want vcpus"), Memory: rapid.Int64Range(1, 8).Draw(t, "want memory")},
		}
	}
	r := placement.Request{
		VM:       "vm",
		Amount:   api.Amount{VCPUs: rapid.IntRange(1, 4).Draw(t, "want vcpus"), Memory: rapid.Int64Range(1, 8).Draw(t, "want memory")},
		Pool:     rapid.SampledFrom([]string{"", "p", "q"}).Draw(t, "pool"),
		Disk:     rapid.Int64Range(0, 10).Draw(t, "disk"),
		Arch:     rapid.SampledFrom([]string{"", "", "x86_64", "aarch64"}).Draw(t, "arch"),
		CPUModel: rapid.SampledFrom([]string{"", "", "", "EPYC", "qemu64"}).Draw(t, "model"),
		Network:  rapid.Bool().Draw(t, "network"),
		Group:    groups[rapid.SampledFrom(groupIDs).Draw(t, "group")],
		Image:    rapid.SampledFrom([]string{"", "sha"}).Draw(t, "image"),
		Strategy: rapid.SampledFrom([]placement.Strategy{"", placement.Spread, placement.Pack}).Draw(t, "strategy"),
		Seed:     rapid.SampledFrom([]uint64{0, 1, 2, 99}).Draw(t, "seed"),
	}
	if zone := rapid.SampledFrom([]string{"", "", "a", "b"}).Draw(t, "want zone"); zone != "" {
		r.NodeLabels = map[string]string{"zone": zone}
	}
	if len(nodes) == 0 {
		return r
	}
	some := rapid.IntRange(-8, len(nodes)).Draw(t, "pin")
	if some >= 0 && some < len(nodes) {
		r.NodeID = nodes[some].ID
	} else if some == len(nodes) {
		r.NodeID = "id-nobody"
	}
	if not := rapid.IntRange(-4, len(nodes)-1).Draw(t, "exclude"); not >= 0 {
		r.Exclude = map[string]string{nodes[not].ID: "not there"}
	}
	return r
}

func drawCrowd(t *rapid.T, nodes []placement.Node) {
	for i := range nodes {
		nodes[i].Groups = map[string]int{}
		for id := range eachGroup() {
			if n := rapid.IntRange(-3, 3).Draw(t, nodes[i].Name+" "+id); n > 0 {
				nodes[i].Groups[id] = n
			}
		}
	}
}

// eachGroup yields each group ID once, in order.
func eachGroup() func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for _, id := range slices.Compact(slices.Sorted(slices.Values(groupIDs))) {
			if id != "" && !yield(id) {
				return
			}
		}
	}
}

// within reports whether the claims of n keep the ratios; it shares no code with the package.
func within(n placement.Node, more api.Amount) bool {
	ratio := n.MemoryRatio
	if ratio == 0 {
		ratio = 1
	}
	return float64(n.Claimed.Memory+more.Memory) <= float64(n.Memory-n.ReservedMemory)*ratio &&
		float64(n.Claimed.VCPUs+more.VCPUs) <= float64(n.Cores)*n.CPURatio
}

// allowed says by the plain rules whether VMs of r's kind may be on n; it shares no code with the package.
func allowed(n placement.Node, r placement.Request) bool {
	if r.NodeID != "" && n.ID != r.NodeID || !n.Ready || n.Cordoned || r.Network && !n.Network {
		return false
	}
	if _, out := r.Exclude[n.ID]; out {
		return false
	}
	if r.Arch != "" && r.Arch != n.Arch || r.CPUModel != "" && !slices.Contains(n.CPUModels, r.CPUModel) {
		return false
	}
	for k, v := range r.NodeLabels {
		if got, ok := n.Labels[k]; !ok || got != v {
			return false
		}
	}
	free, has := n.Pools[r.Pool]
	return r.Pool == "" || has && (free == placement.UnknownSpace || r.Disk <= free)
}

// feasible is the oracle: every rule, by brute force.
func feasible(nodes []placement.Node, n placement.Node, r placement.Request) bool {
	if !allowed(n, r) || !within(n, r.Amount) {
		return false
	}
	count := func(n placement.Node) int {
		c := n.Groups[r.Group.ID]
		if n.ID == r.At && c > 0 {
			c--
		}
		return c
	}
	switch {
	case r.Group.ID == "" || r.Group.Soft:
		return true
	case r.Group.Policy == api.AntiAffinity:
		return count(n) == 0
	default:
		return count(n) > 0 || !slices.ContainsFunc(nodes, func(o placement.Node) bool { return o.Phase != api.PhaseDown && count(o) > 0 })
	}
}

func TestPlacesIfAndOnlyIfItFits(t *testing.T) {
	placed, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 8)
		drawCrowd(t, nodes)
		req := drawRequest(t, nodes)
		if len(nodes) > 0 && rapid.Bool().Draw(t, "moves") {
			req.At = rapid.SampledFrom(nodes).Draw(t, "at").ID
		}
		d, err := placement.Place(nodes, req)
		var want, got, no []string
		for _, n := range nodes {
			if feasible(nodes, n, req) {
				want = append(want, n.ID)
			}
		}
		for _, c := range d.Ranked {
			got = append(got, c.Node)
			require.True(t, c.Score >= 0 && c.Score <= 1, "score of %+v", c)
		}
		for _, r := range d.Refused {
			no = append(no, r.Node)
			require.NotEmpty(t, r.Reason)
		}
		require.ElementsMatch(t, want, got)
		require.Len(t, append(no, got...), len(nodes), "every node is either ranked or refused")
		require.Zero(t, d.More)
		if len(want) == 0 {
			refused++
			require.True(t, problem.Is(err, problem.NoCapacity), "%v", err)
			require.Empty(t, d.Node)
		} else {
			placed++
			require.NoError(t, err)
			require.Equal(t, got[0], d.Node)
		}
	})
	require.NotZero(t, placed)
	require.NotZero(t, refused)
}

// put does what the caller of Place does with a decision.
func put(nodes []placement.Node, id string, r placement.Request) *placement.Node {
	n := &nodes[slices.IndexFunc(nodes, func(n placement.Node) bool { return n.ID == id })]
	n.Claimed.VCPUs += r.Amount.VCPUs
	n.Claimed.Memory += r.Amount.Memory
	if free := n.Pools[r.Pool]; r.Pool != "" && free != placement.UnknownSpace {
		n.Pools[r.Pool] = free - r.Disk
	}
	if r.Group.ID != "" {
		if n.Groups == nil {
			n.Groups = map[string]int{}
		}
		n.Groups[r.Group.ID]++
	}
	return n
}

// spread returns on how many nodes VMs of the group are, and the most of them on one.
func spread(nodes []placement.Node, group string) (on, most int) {
	for _, n := range nodes {
		if c := n.Groups[group]; c > 0 {
			on, most = on+1, max(most, c)
		}
	}
	return on, most
}

func requireRules(t *rapid.T, nodes []placement.Node) {
	for id := range eachGroup() {
		on, most := spread(nodes, id)
		switch g := groups[id]; {
		case g.Soft:
		case g.Policy == api.Affinity:
			require.LessOrEqual(t, on, 1, "group %s is on several nodes", id)
		default:
			require.LessOrEqual(t, most, 1, "group %s has several VMs on one node", id)
		}
	}
}

func TestSequencesNeverOvercommitNorBreakRules(t *testing.T) {
	placed := 0
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 8)
		for range rapid.IntRange(1, 40).Draw(t, "vms") {
			req := drawRequest(t, nodes)
			d, err := placement.Place(nodes, req)
			if err != nil {
				require.True(t, problem.Is(err, problem.NoCapacity), "%v", err)
				continue
			}
			placed++
			n := put(nodes, d.Node, req)
			require.True(t, within(*n, api.Amount{}), "%+v is overcommitted", n)
			require.GreaterOrEqual(t, n.Pools[req.Pool], placement.UnknownSpace)
			requireRules(t, nodes)
		}
	})
	require.NotZero(t, placed)
}

func TestOrderOfNodesDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 60) // more than are told of
		req := drawRequest(t, nodes)
		first, err1 := placement.Place(nodes, req)
		second, err2 := placement.Place(rapid.Permutation(nodes).Draw(t, "shuffled"), req)
		require.Equal(t, first, second)
		require.Equal(t, problem.From(err1), problem.From(err2))
	})
}

// A seed chooses among equals; it never takes a node that is worse by more than a step.
func TestSeedCostsLittle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 20)
		req := drawRequest(t, nodes)
		req.Seed = 0
		best, err := placement.Place(nodes, req)
		if err != nil {
			return
		}
		req.Seed = rapid.Uint64Min(1).Draw(t, "another seed")
		chosen, err := placement.Place(nodes, req)
		require.NoError(t, err)
		require.InDelta(t, best.Ranked[0].Score, chosen.Ranked[0].Score, 0.02+2e-4)
	})
}

// alike makes nodes of one size on which something is promised, or nothing.
func alike(t *rapid.T) []placement.Node {
	nodes := make([]placement.Node, rapid.IntRange(2, 6).Draw(t, "nodes"))
	for i := range nodes {
		n := node(fmt.Sprintf("n%d", i))
		n.Cores, n.CPURatio, n.Memory, n.ReservedMemory = 4, 4, 16, 0
		if rapid.Bool().Draw(t, n.Name+" used") {
			n.Claimed = api.Amount{VCPUs: rapid.IntRange(1, 16).Draw(t, n.Name+" vcpus"), Memory: rapid.Int64Range(1, 16).Draw(t, n.Name+" memory")}
		}
		nodes[i] = n
	}
	return nodes
}

// To pack is to begin a node when nothing else is left, to spread is to begin one as long as there is one. Seeds change
// neither: VMs that are packed at the same time must not be spread over empty nodes because those are all alike.
func TestPackingBeginsNoNodeWithoutNeedAndSpreadingDoes(t *testing.T) {
	begun, filled := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		nodes := alike(t)
		strategy := rapid.SampledFrom([]placement.Strategy{"", placement.Spread, placement.Pack}).Draw(t, "strategy")
		for i := range rapid.IntRange(1, 40).Draw(t, "vms") {
			req := placement.Request{VM: "vm", Strategy: strategy, Seed: rapid.Uint64().Draw(t, "seed"), Amount: api.Amount{
				VCPUs: rapid.IntRange(1, 4).Draw(t, "want vcpus"), Memory: rapid.Int64Range(1, 4).Draw(t, "want memory"),
			}}
			var used, empty []string // with room
			for _, n := range nodes {
				switch {
				case !within(n, req.Amount):
				case n.Claimed == api.Amount{}:
					empty = append(empty, n.ID)
				default:
					used = append(used, n.ID)
				}
			}
			d, err := placement.Place(nodes, req)
			switch {
			case len(used)+len(empty) == 0:
				require.True(t, problem.Is(err, problem.NoCapacity), "%v", err)
				continue
			case strategy == placement.Pack && len(used) > 0:
				require.Contains(t, used, d.Node, "vm %d", i)
				filled++
			case strategy == placement.Pack:
				require.Equal(t, empty[0], d.Node, "all who pack begin the same node")
			case len(empty) > 0 && req.Seed == 0:
				require.Contains(t, empty, d.Node, "vm %d", i)
				begun++
			}
			require.NoError(t, err)
			put(nodes, d.Node, req)
		}
	})
	require.NotZero(t, begun)
	require.NotZero(t, filled)
}

// The more is promised on one node, the better it is for who packs, and the worse for who spreads, whatever the balance.
func TestMoreOnANodeIsWorthMoreToWhoPacksAndLessToWhoSpreads(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		less := node("less", claimed(rapid.IntRange(0, 30).Draw(t, "vcpus"), rapid.Int64Range(0, 28).Draw(t, "memory")*api.GiB))
		more := node("more", claimed(less.Claimed.VCPUs+rapid.IntRange(0, 30).Draw(t, "more vcpus"), less.Claimed.Memory+rapid.Int64Range(0, 28).Draw(t, "more memory")*api.GiB))
		if less.Claimed == more.Claimed {
			return
		}
		for strategy, want := range map[placement.Strategy]string{placement.Spread: "less", placement.Pack: "more"} {
			d, err := placement.Place([]placement.Node{less, more}, request(func(r *placement.Request) { r.Strategy = strategy }))
			require.NoError(t, err)
			require.Equal(t, want, d.Name, "to %s, of %+v and %+v", strategy, less.Claimed, more.Claimed)
		}
	})
}

// Whatever a broken agent reports or a broken record holds: no panic, and no VM on what makes no sense.
func TestNonsense(t *testing.T) {
	numbers := rapid.OneOf(rapid.Int64(), rapid.SampledFrom([]int64{0, -1, 1, math.MinInt64, math.MaxInt64}))
	ratios := rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{0, 1, -1, math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64}))
	words := rapid.SampledFrom([]string{"", "a", "b", "\x00", "né"})
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) placement.Node {
			return placement.Node{
				ID: words.Draw(t, "id"), Name: words.Draw(t, "name"), Phase: api.Phase(words.Draw(t, "phase")), Ready: rapid.Bool().Draw(t, "ready"),
				Cores: int(numbers.Draw(t, "cores")), Memory: numbers.Draw(t, "memory"), ReservedMemory: numbers.Draw(t, "reserved"),
				CPURatio: ratios.Draw(t, "cpu ratio"), MemoryRatio: ratios.Draw(t, "memory ratio"), Network: true,
				Claimed: api.Amount{VCPUs: int(numbers.Draw(t, "vcpus")), Memory: numbers.Draw(t, "claimed")},
				Pools:   rapid.MapOf(words, numbers).Draw(t, "pools"), Groups: rapid.MapOf(words, rapid.Int()).Draw(t, "groups"),
			}
		}), 0, 6).Draw(t, "nodes")
		vms := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) placement.VM {
			return placement.VM{
				ID: words.Draw(t, "id"), Name: words.Draw(t, "name"), Node: words.Draw(t, "node"),
				Amount: api.Amount{VCPUs: int(numbers.Draw(t, "had vcpus")), Memory: numbers.Draw(t, "had memory")},
				Request: placement.Request{
					Amount: api.Amount{VCPUs: int(numbers.Draw(t, "want vcpus")), Memory: numbers.Draw(t, "want memory")},
					Pool:   words.Draw(t, "pool"), Disk: numbers.Draw(t, "disk"), NodeID: words.Draw(t, "pin"), Seed: rapid.Uint64().Draw(t, "seed"),
					Group: placement.Group{ID: words.Draw(t, "group"), Policy: rapid.SampledFrom([]string{api.Affinity, api.AntiAffinity, "x"}).Draw(t, "policy")},
				},
			}
		}), 0, 6).Draw(t, "vms")
		for _, vm := range vms {
			d, err := placement.Place(nodes, vm.Request)
			if err != nil {
				require.Contains(t, []problem.Kind{problem.Invalid, problem.NoCapacity}, problem.KindOf(err))
				continue
			}
			require.True(t, slices.ContainsFunc(nodes, func(n placement.Node) bool {
				return n.ID == d.Node && n.Ready && n.Cores > 0 && n.Memory > 0 && n.ReservedMemory >= 0 && n.Claimed.VCPUs >= 0 && n.Claimed.Memory >= 0
			}), "%+v", d)
			for _, c := range d.Ranked {
				require.False(t, math.IsNaN(c.Score) || math.IsInf(c.Score, 0), "JSON cannot hold %v", c.Score)
			}
			placement.Drain(nodes, vms, vm.Node)
		}
		for _, p := range placement.Balance(nodes, vms, placement.BalanceOptions{Gap: ratios.Draw(t, "gap"), Gain: ratios.Draw(t, "gain")}) {
			require.NotEqual(t, p.VM.Node, p.To)
		}
	})
}
