package placement_test

import (
	"cmp"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/placement"
)

// node returns a ready node of 16 cores and 64 GiB, of which 4 are reserved, changed as wanted.
func node(name string, change ...func(*placement.Node)) placement.Node {
	n := placement.Node{
		ID: "id-" + name, Name: name, Phase: api.PhaseReady, Ready: true, Arch: "x86_64", CPUModels: []string{"EPYC", "qemu64"},
		Labels: map[string]string{"zone": "a"}, Network: true, Cores: 16, Memory: 64 * api.GiB, ReservedMemory: 4 * api.GiB,
		CPURatio: 4, MemoryRatio: 1, Pools: map[string]int64{"pool": 100 * api.GiB},
	}
	for _, c := range change {
		c(&n)
	}
	return n
}

func claimed(vcpus int, memory int64) func(*placement.Node) {
	return func(n *placement.Node) { n.Claimed = api.Amount{VCPUs: vcpus, Memory: memory} }
}

func holds(group string, vms int) func(*placement.Node) {
	return func(n *placement.Node) { n.Groups = map[string]int{group: vms} }
}

func request(change ...func(*placement.Request)) placement.Request {
	r := placement.Request{VM: "web", Amount: api.Amount{VCPUs: 2, Memory: 4 * api.GiB}, Pool: "pool", Disk: 10 * api.GiB, Arch: "x86_64"}
	for _, c := range change {
		c(&r)
	}
	return r
}

func grouped(policy string, soft bool) func(*placement.Request) {
	return func(r *placement.Request) { r.Group = placement.Group{ID: "g", Policy: policy, Soft: soft} }
}

func names(d api.Decision) []string {
	var out []string
	for _, c := range d.Ranked {
		out = append(out, c.Name)
	}
	return out
}

func TestBestFirst(t *testing.T) {
	big := func(n *placement.Node) { n.Memory = 1024 * api.GiB }
	image := func(n *placement.Node) {
		n.Images = map[placement.Cached]bool{{Pool: "pool", SHA256: "abc"}: true, {Pool: "other", SHA256: "def"}: true}
	}
	pack := func(r *placement.Request) { r.Strategy = placement.Pack }
	for _, tc := range []struct {
		name  string
		nodes []placement.Node
		req   placement.Request
		want  string
	}{
		{"less memory promised", []placement.Node{node("a", claimed(2, 8*api.GiB)), node("b", claimed(2, 4*api.GiB))}, request(), "b a"},
		{"memory counts more than vCPUs", []placement.Node{node("a", claimed(0, 30*api.GiB)), node("b", claimed(32, 0))}, request(), "b a"},
		{"fewer vCPUs", []placement.Node{node("a", claimed(4, api.GiB)), node("b", claimed(2, api.GiB))}, request(), "b a"},
		{"then the name", []placement.Node{node("c"), node("a"), node("b")}, request(), "a b c"},
		{"a share, not an amount", []placement.Node{node("small", claimed(0, 4*api.GiB)), node("big", claimed(0, 8*api.GiB), big)}, request(), "big small"},
		{"after placing, not before", []placement.Node{
			node("small", func(n *placement.Node) { n.Memory = 12 * api.GiB }), node("big", claimed(0, 2*api.GiB)),
		}, request(), "big small"},
		{"ratios make a node larger", []placement.Node{
			node("a", claimed(0, 8*api.GiB)), node("b", claimed(0, 8*api.GiB), func(n *placement.Node) { n.MemoryRatio = 2 }),
		}, request(), "b a"},
		{"both used evenly", []placement.Node{node("a", claimed(0, 30*api.GiB)), node("b", claimed(24, 21*api.GiB))}, request(), "b a"},
		{"both used evenly, packed", []placement.Node{node("a", claimed(0, 30*api.GiB)), node("b", claimed(24, 20*api.GiB))}, request(pack), "b a"},
		{"emptier counts more than even", []placement.Node{node("a", claimed(16, 15*api.GiB)), node("b", claimed(0, 10*api.GiB))}, request(), "b a"},
		{"to pack is to fill", []placement.Node{node("a"), node("b", claimed(8, 16*api.GiB)), node("c", claimed(60, 55*api.GiB))}, request(pack), "c b a"},
		{"image at hand", []placement.Node{node("a"), node("b", image)}, request(func(r *placement.Request) { r.Image = "abc" }), "b a"},
		{"image in another pool", []placement.Node{node("a"), node("b", image)}, request(func(r *placement.Request) { r.Image = "def" }), "a b"},
		{"an image is not worth a crowd", []placement.Node{node("a"), node("b", image, claimed(0, 20*api.GiB))}, request(func(r *placement.Request) { r.Image = "abc" }), "a b"},
		{"soft affinity", []placement.Node{node("a"), node("b", holds("g", 1), claimed(16, 20*api.GiB)), node("c", holds("other", 5))}, request(grouped(api.Affinity, true)), "b a c"},
		{"soft affinity, the larger part", []placement.Node{node("a", holds("g", 1)), node("b", holds("g", 2))}, request(grouped(api.Affinity, true)), "b a"},
		{"soft anti-affinity", []placement.Node{node("a", holds("g", 1)), node("b", claimed(16, 20*api.GiB)), node("c", holds("g", 2))}, request(grouped(api.AntiAffinity, true)), "b a c"},
		{"soft rules do not count the VM itself", []placement.Node{node("a", holds("g", 1)), node("b")}, request(grouped(api.AntiAffinity, true), func(r *placement.Request) { r.At = "id-a" }), "a b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := placement.Place(tc.nodes, tc.req)
			require.NoError(t, err)
			require.Equal(t, tc.want, strings.Join(names(d), " "))
			require.Equal(t, d.Ranked[0].Node, d.Node)
			require.Equal(t, d.Ranked[0].Name, d.Name)
			require.Equal(t, cmp.Or(string(tc.req.Strategy), api.Spread), d.Strategy)
			require.Empty(t, d.Refused)
			for _, c := range d.Ranked {
				sum := 0.0
				for _, v := range c.Terms {
					sum += v
				}
				require.InDelta(t, c.Score, sum, 5e-4, "terms of %+v", c)
			}
		})
	}
}

func TestTermsAreWithTheVM(t *testing.T) {
	d, err := placement.Place([]placement.Node{node("a", claimed(14, 26*api.GiB))}, request())
	require.NoError(t, err)
	require.Equal(t, []api.Candidate{{Node: "id-a", Name: "a", Score: 0.3625, Terms: map[string]float64{"memory": 0.175, "vcpus": 0.1125, "balance": 0.075}}}, d.Ranked)
}

// Each filter's words, and how close a node may come.
func TestRefusals(t *testing.T) {
	change := func(f func(*placement.Node)) []placement.Node { return []placement.Node{node("a", f)} }
	ask := func(f func(*placement.Request)) placement.Request { return request(f) }
	plain := []placement.Node{node("a")}
	for _, tc := range []struct {
		name  string
		nodes []placement.Node // what becomes of the first is looked at
		req   placement.Request
		want  string // empty: not refused
	}{
		{"fits", plain, request(), ""},
		{"asked for", plain, ask(func(r *placement.Request) { r.NodeID = "id-a" }), ""},
		{"another is asked for", []placement.Node{node("a"), node("b")}, ask(func(r *placement.Request) { r.NodeID = "id-b" }), "it must be on node b"},
		{"a volume is there", []placement.Node{node("a"), node("b")}, ask(func(r *placement.Request) { r.NodeID, r.Tie = "id-b", "data" }), "volume data is on node b, in a pool that is not shared"},
		{"nobody is asked for", plain, ask(func(r *placement.Request) { r.NodeID = "id-x" }), "it must be on node id-x, which does not exist"},
		{"excluded", plain, ask(func(r *placement.Request) { r.Exclude = map[string]string{"id-a": "it is there already"} }), "it is there already"},
		{"excluded, no reason", plain, ask(func(r *placement.Request) { r.Exclude = map[string]string{"id-a": ""} }), "excluded"},
		{"another excluded", plain, ask(func(r *placement.Request) { r.Exclude = map[string]string{"id-b": "it is there already"} }), ""},
		{"not ready", change(func(n *placement.Node) { n.Ready, n.Reason = false, "libvirt is away" }), request(), "not ready: libvirt is away"},
		{"not ready, no reason", change(func(n *placement.Node) { n.Ready = false }), request(), "not ready"},
		{"suspect", change(func(n *placement.Node) { n.Ready, n.Phase, n.Reason = false, api.PhaseSuspect, "silent for 20s" }), request(), "suspect: silent for 20s"},
		{"cordoned", change(func(n *placement.Node) { n.Cordoned, n.CordonReason = true, "new disks" }), request(), "cordoned: new disks"},
		{"cordoned, no reason", change(func(n *placement.Node) { n.Cordoned = true }), request(), "cordoned"},
		{"down and cordoned", change(func(n *placement.Node) { n.Ready, n.Phase, n.Cordoned = false, api.PhaseDown, true }), request(), "down"},
		{"negative claim", change(claimed(0, -api.GiB)), request(), "its inventory makes no sense: a quantity is negative"},
		{"other arch", change(func(n *placement.Node) { n.Arch = "aarch64" }), request(), "is aarch64, x86_64 needed"},
		{"unknown arch", change(func(n *placement.Node) { n.Arch = "" }), request(), "its architecture is not known, x86_64 needed"},
		{"any arch", change(func(n *placement.Node) { n.Arch = "aarch64" }), ask(func(r *placement.Request) { r.Arch = "" }), ""},
		{"CPU model", plain, ask(func(r *placement.Request) { r.CPUModel = "EPYC" }), ""},
		{"other CPU model", plain, ask(func(r *placement.Request) { r.CPUModel = "Skylake-Server" }), "cannot give guests the CPU model Skylake-Server"},
		{"unknown CPU models", change(func(n *placement.Node) { n.CPUModels = nil }), ask(func(r *placement.Request) { r.CPUModel = "EPYC" }), "has told of no CPU models, EPYC needed"},
		{"label", plain, ask(func(r *placement.Request) { r.NodeLabels = map[string]string{"zone": "a"} }), ""},
		{"other label", plain, ask(func(r *placement.Request) { r.NodeLabels = map[string]string{"zone": "b"} }), `label zone is "a", "b" needed`},
		{"no label", plain, ask(func(r *placement.Request) { r.NodeLabels = map[string]string{"zone": "a", "disk": "fast"} }), `has no label disk, "fast" needed`},
		{"empty label is not the same as none", plain, ask(func(r *placement.Request) { r.NodeLabels = map[string]string{"disk": ""} }), `has no label disk, "" needed`},
		{"no pool", change(func(n *placement.Node) { n.Pools = nil }), request(), "does not have the pool"},
		{"any pool", change(func(n *placement.Node) { n.Pools = nil }), ask(func(r *placement.Request) { r.Pool = "" }), ""},
		{"pool exactly full", change(func(n *placement.Node) { n.Pools["pool"] = 10 * api.GiB }), request(), ""},
		{"pool one byte short", change(func(n *placement.Node) { n.Pools["pool"] = 10*api.GiB - 1 }), request(), "the pool has 9.99 GiB free, 10 GiB needed"},
		{"pool not reported yet", change(func(n *placement.Node) { n.Pools["pool"] = placement.UnknownSpace }), request(), ""},
		{"pool overfull", change(func(n *placement.Node) { n.Pools["pool"] = -5 }), request(), "the pool has 0 bytes free, 10 GiB needed"},
		{"network", plain, ask(func(r *placement.Request) { r.Network = true }), ""},
		{"no network", change(func(n *placement.Node) { n.Network = false }), ask(func(r *placement.Request) { r.Network = true }), "its switch is not part of the network"},
		{"no network needed", change(func(n *placement.Node) { n.Network = false }), request(), ""},
		{"memory exactly full", change(claimed(0, 56*api.GiB)), request(), ""},
		{"memory half there", change(claimed(0, 58*api.GiB)), request(), "2 GiB of memory free, 4 GiB needed"},
		{"memory one byte short", change(claimed(0, 56*api.GiB+1)), request(), "3.99 GiB of memory free, 4 GiB needed"},
		{"memory needed is rounded up", change(claimed(0, 56*api.GiB)), ask(func(r *placement.Request) { r.Amount.Memory = 4*api.GiB + 1 }), "4 GiB of memory free, 4.01 GiB needed"},
		{"reserve above memory", change(func(n *placement.Node) { n.ReservedMemory = 65 * api.GiB }), request(), "0 bytes of memory free, 4 GiB needed"},
		{"memory ratio", change(func(n *placement.Node) { n.MemoryRatio, n.Claimed.Memory = 1.5, 86*api.GiB }), request(), ""},
		{"memory ratio used up", change(func(n *placement.Node) { n.MemoryRatio, n.Claimed.Memory = 1.5, 87*api.GiB }), request(), "3 GiB of memory free, 4 GiB needed"},
		{"memory ratio below 1", change(func(n *placement.Node) { n.MemoryRatio = 0.05 }), request(), "3 GiB of memory free, 4 GiB needed"},
		{"no memory ratio is 1", change(func(n *placement.Node) { n.MemoryRatio, n.Claimed.Memory = 0, 56*api.GiB }), request(), ""},
		{"memory ratio is no number", change(func(n *placement.Node) { n.MemoryRatio = math.NaN() }), request(), "0 bytes of memory free, 4 GiB needed"},
		{"memory ratio is negative", change(func(n *placement.Node) { n.MemoryRatio = -1 }), request(), "0 bytes of memory free, 4 GiB needed"},
		{"memory ratio is endless", change(func(n *placement.Node) { n.MemoryRatio = math.Inf(1) }), request(), ""},
		{"huge request", plain, ask(func(r *placement.Request) { r.Amount.Memory, r.Disk = math.MaxInt64, 0 }), "60 GiB of memory free, 8589934592 GiB needed"},
		{"vCPUs exactly full", change(claimed(62, 0)), request(), ""},
		{"vCPUs one short", change(claimed(63, 0)), request(), "1 vCPU free, 2 needed"},
		{"vCPUs over", change(claimed(99, 0)), request(), "0 vCPUs free, 2 needed"},
		{"part of a vCPU does not count", change(func(n *placement.Node) { n.Cores, n.CPURatio = 1, 1.9 }), request(), "1 vCPU free, 2 needed"},
		{"CPU ratio is no number", change(func(n *placement.Node) { n.CPURatio = math.NaN() }), request(), "0 vCPUs free, 2 needed"},
		{"CPU ratio is endless", change(func(n *placement.Node) { n.CPURatio = math.Inf(1) }), request(), ""},
		{"kept apart", change(holds("g", 2)), request(grouped(api.AntiAffinity, false)), "has 2 VMs of its vm group, which must be kept apart"},
		{"kept apart from others", change(holds("other", 2)), request(grouped(api.AntiAffinity, false)), ""},
		{"kept apart from itself", change(holds("g", 1)), request(grouped(api.AntiAffinity, false), func(r *placement.Request) { r.At = "id-a" }), ""},
		{"kept apart, softly", change(holds("g", 2)), request(grouped(api.AntiAffinity, true)), ""},
		{"first of those together", plain, request(grouped(api.Affinity, false)), ""},
		{"together", []placement.Node{node("a", holds("g", 1)), node("b")}, request(grouped(api.Affinity, false)), ""},
		{"together elsewhere", []placement.Node{node("a"), node("c", holds("g", 1)), node("b", holds("g", 1))}, request(grouped(api.Affinity, false)), "its vm group must stay together, and is on node b"},
		{"together with itself", []placement.Node{node("a"), node("b", holds("g", 1))}, request(grouped(api.Affinity, false), func(r *placement.Request) { r.At = "id-b" }), ""},
		{"together with the dead", []placement.Node{
			node("a"), node("b", holds("g", 2), func(n *placement.Node) { n.Ready, n.Phase = false, api.PhaseDown }),
		}, request(grouped(api.Affinity, false)), ""},
		{"together with those that may be dead", []placement.Node{
			node("a"), node("b", holds("g", 2), func(n *placement.Node) { n.Ready, n.Phase = false, api.PhaseSuspect }),
		}, request(grouped(api.Affinity, false)), "its vm group must stay together, and is on node b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := placement.Place(tc.nodes, tc.req)
			if tc.want == "" {
				require.NoError(t, err)
				require.Contains(t, names(d), "a")
				return
			}
			require.Contains(t, d.Refused, api.Refusal{Node: "id-a", Name: "a", Reason: tc.want})
			if d.Node == "" {
				require.True(t, problem.Is(err, problem.NoCapacity), "%v", err)
				require.Contains(t, err.Error(), strings.TrimPrefix(tc.want, "it must be on node id-x"))
			}
		})
	}
}

// A node that fails in several ways is refused by what stands first.
func TestOrderOfReasons(t *testing.T) {
	n := node("a", holds("g", 1), claimed(99, 99*api.GiB), func(n *placement.Node) {
		n.Ready, n.Cordoned, n.Arch, n.CPUModels, n.Labels, n.Network, n.Pools = false, true, "riscv64", nil, nil, false, nil
	})
	r := request(grouped(api.AntiAffinity, false), func(r *placement.Request) {
		r.NodeID, r.Exclude = "id-b", map[string]string{"id-a": "excluded here"}
		r.CPUModel, r.NodeLabels, r.Network = "EPYC", map[string]string{"zone": "a"}, true
	})
	for _, mend := range []struct {
		want string
		mend func()
	}{
		{"must be on node", func() { r.NodeID = "" }},
		{"excluded here", func() { r.Exclude = nil }},
		{"not ready", func() { n.Ready = true }},
		{"cordoned", func() { n.Cordoned = false }},
		{"riscv64", func() { n.Arch = "x86_64" }},
		{"CPU models", func() { n.CPUModels = []string{"EPYC"} }},
		{"label zone", func() { n.Labels = map[string]string{"zone": "a"} }},
		{"have the pool", func() { n.Pools = map[string]int64{"pool": 0} }},
		{"the pool has", func() { n.Pools["pool"] = 100 * api.GiB }},
		{"switch", func() { n.Network = true }},
		{"of memory", func() { n.Claimed.Memory = 0 }},
		{"vCPUs", func() { n.Claimed.VCPUs = 0 }},
		{"vm group", func() { n.Groups = nil }},
	} {
		d, err := placement.Place([]placement.Node{n}, r)
		require.Error(t, err)
		require.Contains(t, d.Refused[0].Reason, mend.want)
		mend.mend()
	}
	_, err := placement.Place([]placement.Node{n}, r)
	require.NoError(t, err)
}

func TestNoCapacityExplainsItself(t *testing.T) {
	nodes := []placement.Node{node("b", claimed(63, 0)), node("a", func(n *placement.Node) { n.Ready = false })}
	_, err := placement.Place(nodes, request())
	require.EqualError(t, err, `no node can take vm "web": a: not ready; b: 1 vCPU free, 2 needed (ask for less, delete what is not needed, or add a node)`)

	_, err = placement.Place(nil, request())
	require.True(t, problem.Is(err, problem.NoCapacity))
	require.Contains(t, err.Error(), "there are no nodes")
}

func TestLongListsAreCut(t *testing.T) {
	var full, free []placement.Node
	for i := range 1000 {
		n := node(fmt.Sprintf("n%04d", i), claimed(64, 0))
		n.Ready = i%10 != 9
		full, free = append(full, n), append(free, node(n.Name))
	}
	d, err := placement.Place(full, request())
	require.Contains(t, err.Error(), "n0031: ")
	require.NotContains(t, err.Error(), "n0032: ")
	require.Contains(t, err.Error(), "; and 968 more nodes: 97 not ready, 871 with too few vCPUs (")
	require.Len(t, d.Refused, 32)
	require.Equal(t, 968, d.More)

	// Who plans wants to know it all, and the problem is no longer for that.
	short := err
	d, err = placement.Place(full, request(func(r *placement.Request) { r.Whole = true }))
	require.EqualError(t, err, short.Error())
	require.Len(t, d.Refused, 1000)
	require.Equal(t, "not ready", d.Refused[999].Reason)
	require.Zero(t, d.More)

	d, err = placement.Place(append(free, full...), request())
	require.NoError(t, err)
	require.Len(t, d.Ranked, 8)
	require.Len(t, d.Refused, 32)
	require.Equal(t, 2000-8-32, d.More)

	// Of a VM that must be on one node, that one's reason is told.
	d, err = placement.Place(full, request(func(r *placement.Request) { r.NodeID = "id-n0500" }))
	require.Contains(t, err.Error(), `no node can take vm "web": n0500: 0 vCPUs free, 2 needed; n0000: it must be on node n0500`)
	require.Equal(t, "n0500", d.Refused[0].Name)
}

func TestInvalidRequests(t *testing.T) {
	for _, change := range []func(*placement.Request){
		func(r *placement.Request) { r.Amount.VCPUs = 0 },
		func(r *placement.Request) { r.Amount.Memory = -1 },
		func(r *placement.Request) { r.Disk = -1 },
		func(r *placement.Request) { r.Strategy = "chaos" },
		func(r *placement.Request) { r.Group = placement.Group{ID: "g", Policy: "friends"} },
	} {
		_, err := placement.Place([]placement.Node{node("a")}, request(change))
		require.True(t, problem.Is(err, problem.Invalid), "%v", err)
		require.NotEmpty(t, problem.From(err).Fix)
	}
}

// Decisions that are made at the same time must not all go for the same node.
func TestSeedsSpread(t *testing.T) {
	var nodes []placement.Node
	for i := range 100 {
		nodes = append(nodes, node(fmt.Sprintf("n%03d", i), claimed(0, int64(i)*api.MiB))) // no two alike, and none much better
	}
	nodes = append(nodes, node("crowded", claimed(30, 30*api.GiB)))
	chosen := map[string]int{}
	for seed := range uint64(1000) {
		r := request(func(r *placement.Request) { r.Seed = seed + 1 })
		d, err := placement.Place(nodes, r)
		require.NoError(t, err)
		again, err := placement.Place(nodes, r)
		require.NoError(t, err)
		require.Equal(t, d, again)
		chosen[d.Name]++
	}
	require.NotContains(t, chosen, "crowded")
	require.Greater(t, len(chosen), 90)
	for name, times := range chosen {
		require.Less(t, times, 40, name)
	}
	d, err := placement.Place(nodes, request())
	require.NoError(t, err)
	require.Equal(t, "n000", d.Name, "without a seed the best to the last digit")
}

func TestLimits(t *testing.T) {
	n := node("a", func(n *placement.Node) { n.MemoryRatio, n.CPURatio = 1.5, 2.5 })
	require.Equal(t, api.Amount{VCPUs: 40, Memory: 90 * api.GiB}, n.Limit())
	n = placement.Node{Memory: math.MaxInt64, Cores: math.MaxInt, CPURatio: 64, MemoryRatio: 1}
	require.Equal(t, api.Amount{VCPUs: math.MaxInt32, Memory: math.MaxInt64}, n.Limit())
	n.MemoryRatio = 4
	require.EqualValues(t, math.MaxInt64, n.Limit().Memory)
	n = placement.Node{Memory: math.MinInt64, ReservedMemory: math.MaxInt64, Cores: -1, CPURatio: -1, MemoryRatio: 1}
	require.Zero(t, n.Limit().Memory)
}
