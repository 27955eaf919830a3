package placement_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/placement"
)

// node returns a ready node of 16 cores and 64 GiB, of which 4 are reserved, changed as wanted.
func node(name string, change ...func(*placement.Node)) placement.Node {
	n := placement.Node{
		ID: "id-" + name, Name: name, Ready: true, Arch: "x86_64", Cores: 16, Memory: 64 * api.GiB, ReservedMemory: 4 * api.GiB,
		CPURatio: 4, Pools: map[string]int64{"pool": 100 * api.GiB},
	}
	for _, c := range change {
		c(&n)
	}
	return n
}

func claimed(vcpus int, memory int64) func(*placement.Node) {
	return func(n *placement.Node) { n.Claimed = api.Amount{VCPUs: vcpus, Memory: memory} }
}

func request(change ...func(*placement.Request)) placement.Request {
	r := placement.Request{VM: "web", Amount: api.Amount{VCPUs: 2, Memory: 4 * api.GiB}, Pool: "pool", Disk: 10 * api.GiB, Arch: "x86_64"}
	for _, c := range change {
		c(&r)
	}
	return r
}

func TestLeastLoadedFirst(t *testing.T) {
	for _, tc := range []struct {
		name  string
		nodes []placement.Node
		want  []string
	}{
		{"less memory promised", []placement.Node{node("a", claimed(2, 8*api.GiB)), node("b", claimed(2, 4*api.GiB))}, []string{"b", "a"}},
		{"memory counts more than vCPUs", []placement.Node{node("a", claimed(2, 8*api.GiB)), node("b", claimed(40, 4*api.GiB))}, []string{"b", "a"}},
		{"then fewer vCPUs", []placement.Node{node("a", claimed(4, api.GiB)), node("b", claimed(2, api.GiB))}, []string{"b", "a"}},
		{"then the name", []placement.Node{node("c"), node("a"), node("b")}, []string{"a", "b", "c"}},
		{"a fraction, not an amount", []placement.Node{
			node("small", claimed(0, 4*api.GiB)),
			node("big", claimed(0, 8*api.GiB), func(n *placement.Node) { n.Memory = 1024 * api.GiB }),
		}, []string{"big", "small"}},
		{"after placing, not before", []placement.Node{
			node("small", func(n *placement.Node) { n.Memory = 12 * api.GiB }),
			node("big", claimed(0, 2*api.GiB)),
		}, []string{"big", "small"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := placement.Place(tc.nodes, request())
			require.NoError(t, err)
			var got []string
			for _, c := range d.Ranked {
				got = append(got, c.Name)
			}
			require.Equal(t, tc.want, got)
			require.Equal(t, d.Ranked[0].Node, d.Node)
			require.Empty(t, d.Refused)
		})
	}
}

func TestLoadsAreWithTheVM(t *testing.T) {
	d, err := placement.Place([]placement.Node{node("a", claimed(14, 26*api.GiB))}, request())
	require.NoError(t, err)
	require.Equal(t, []placement.Candidate{{Node: "id-a", Name: "a", Memory: 0.5, VCPUs: 0.25}}, d.Ranked)
}

func TestRefusals(t *testing.T) {
	for _, tc := range []struct {
		name string
		node placement.Node
		req  placement.Request
		want string // empty: not refused
	}{
		{"fits", node("a"), request(), ""},
		{"not ready", node("a", func(n *placement.Node) { n.Ready, n.Reason = false, "silent for 30s" }), request(), "not ready: silent for 30s"},
		{"not ready, no reason", node("a", func(n *placement.Node) { n.Ready = false }), request(), "not ready"},
		{"other arch", node("a", func(n *placement.Node) { n.Arch = "aarch64" }), request(), "is aarch64, not x86_64"},
		{"any arch", node("a", func(n *placement.Node) { n.Arch = "aarch64" }), request(func(r *placement.Request) { r.Arch = "" }), ""},
		{"no pool", node("a", func(n *placement.Node) { n.Pools = nil }), request(), "does not have the pool"},
		{"any pool", node("a", func(n *placement.Node) { n.Pools = nil }), request(func(r *placement.Request) { r.Pool = "" }), ""},
		{"pool exactly full", node("a", func(n *placement.Node) { n.Pools["pool"] = 10 * api.GiB }), request(), ""},
		{"pool one byte short", node("a", func(n *placement.Node) { n.Pools["pool"] = 10*api.GiB - 1 }), request(), "the pool has 10737418239 bytes free, 10 GiB needed"},
		{"pool not reported yet", node("a", func(n *placement.Node) { n.Pools["pool"] = placement.UnknownSpace }), request(), ""},
		{"memory exactly full", node("a", claimed(0, 56*api.GiB)), request(), ""},
		{"memory one byte short", node("a", claimed(0, 56*api.GiB+1)), request(), "4294967295 bytes of memory free, 4 GiB needed"},
		{"reserve above memory", node("a", func(n *placement.Node) { n.ReservedMemory = 65 * api.GiB }), request(), "0 bytes of memory free, 4 GiB needed"},
		{"vCPUs exactly full", node("a", claimed(62, 0)), request(), ""},
		{"vCPUs one short", node("a", claimed(63, 0)), request(), "1 vCPUs free, 2 needed"},
		{"fraction of a vCPU does not count", node("a", func(n *placement.Node) { n.Cores, n.CPURatio = 1, 1.9 }), request(), "1 vCPUs free, 2 needed"},
		{"ratio is no number", node("a", func(n *placement.Node) { n.CPURatio = math.NaN() }), request(), "0 vCPUs free, 2 needed"},
		{"ratio is endless", node("a", func(n *placement.Node) { n.CPURatio = math.Inf(1) }), request(), ""},
		{"negative claim", node("a", claimed(0, -api.GiB)), request(), "its inventory makes no sense: a quantity is negative"},
		{"huge request", node("a"), request(func(r *placement.Request) { r.Amount.Memory, r.Disk = math.MaxInt64, 0 }), "60 GiB of memory free, 9223372036854775807 bytes needed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := placement.Place([]placement.Node{tc.node}, tc.req)
			if tc.want == "" {
				require.NoError(t, err)
				require.Equal(t, "id-a", d.Node)
				return
			}
			require.True(t, problem.Is(err, problem.NoCapacity), "%v", err)
			require.Equal(t, []placement.Refusal{{Node: "id-a", Name: "a", Reason: tc.want}}, d.Refused)
			require.Contains(t, err.Error(), "a: "+tc.want)
			require.Empty(t, d.Node)
		})
	}
}

func TestNoCapacityTellsOfEveryNode(t *testing.T) {
	nodes := []placement.Node{node("b", claimed(63, 0)), node("a", func(n *placement.Node) { n.Ready = false })}
	_, err := placement.Place(nodes, request())
	require.EqualError(t, err, `no node can take vm "web": a: not ready; b: 1 vCPUs free, 2 needed (ask for less, delete what is not needed, or add a node)`)

	_, err = placement.Place(nil, request())
	require.True(t, problem.Is(err, problem.NoCapacity))
	require.Contains(t, err.Error(), "there are no nodes")

	var many []placement.Node
	for i := range 1000 {
		many = append(many, node(fmt.Sprintf("n%04d", i), claimed(64, 0)))
	}
	d, err := placement.Place(many, request())
	require.Contains(t, err.Error(), "n0031: ")
	require.NotContains(t, err.Error(), "n0032: ")
	require.Contains(t, err.Error(), "and 968 more nodes")
	require.Len(t, d.Refused, 1000)
}

func TestInvalidRequests(t *testing.T) {
	for _, change := range []func(*placement.Request){
		func(r *placement.Request) { r.Amount.VCPUs = 0 },
		func(r *placement.Request) { r.Amount.Memory = -1 },
		func(r *placement.Request) { r.Disk = -1 },
	} {
		_, err := placement.Place([]placement.Node{node("a")}, request(change))
		require.True(t, problem.Is(err, problem.Invalid), "%v", err)
	}
}

// The numbers are small so that full, nearly full and overfull nodes are all common.
func drawNodes(t *rapid.T) []placement.Node {
	return rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) placement.Node {
		name := rapid.StringMatching(`[a-f]{1,3}`).Draw(t, "name")
		n := placement.Node{
			ID: "id-" + name, Name: name,
			Ready:          rapid.IntRange(0, 4).Draw(t, "ready") > 0,
			Arch:           rapid.SampledFrom([]string{"x86_64", "x86_64", "aarch64"}).Draw(t, "arch"),
			Cores:          rapid.IntRange(0, 8).Draw(t, "cores"),
			Memory:         rapid.Int64Range(0, 32).Draw(t, "memory"),
			ReservedMemory: rapid.Int64Range(0, 4).Draw(t, "reserved"),
			CPURatio:       rapid.SampledFrom([]float64{0, 0.5, 1, 1.5, 4}).Draw(t, "ratio"),
			Claimed:        api.Amount{VCPUs: rapid.IntRange(0, 16).Draw(t, "vcpus"), Memory: rapid.Int64Range(0, 32).Draw(t, "claimed")},
			Pools:          map[string]int64{},
		}
		for _, pool := range []string{"p", "q"} {
			if free := rapid.Int64Range(-2, 20).Draw(t, pool); free > -2 {
				n.Pools[pool] = free
			}
		}
		return n
	}), 0, 8, func(n placement.Node) string { return n.Name }).Draw(t, "nodes")
}

func drawRequest(t *rapid.T) placement.Request {
	return placement.Request{
		VM:     "vm",
		Amount: api.Amount{VCPUs: rapid.IntRange(1, 8).Draw(t, "want vcpus"), Memory: rapid.Int64Range(1, 16).Draw(t, "want memory")},
		Pool:   rapid.SampledFrom([]string{"", "p", "q"}).Draw(t, "pool"),
		Disk:   rapid.Int64Range(0, 20).Draw(t, "disk"),
		Arch:   rapid.SampledFrom([]string{"", "x86_64", "aarch64"}).Draw(t, "arch"),
	}
}

// fits says by the plain rules whether n can take the VM; it shares no code with Place.
func fits(n placement.Node, r placement.Request) bool {
	free, has := n.Pools[r.Pool]
	return n.Ready &&
		(r.Arch == "" || n.Arch == r.Arch) &&
		(r.Pool == "" || has && (free == placement.UnknownSpace || r.Disk <= free)) &&
		n.Claimed.Memory+r.Amount.Memory <= n.Memory-n.ReservedMemory &&
		float64(n.Claimed.VCPUs+r.Amount.VCPUs) <= float64(n.Cores)*n.CPURatio
}

func TestPlacesIfAndOnlyIfItFits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, req := drawNodes(t), drawRequest(t)
		d, err := placement.Place(nodes, req)
		var want, got []string
		for _, n := range nodes {
			if fits(n, req) {
				want = append(want, n.ID)
			}
		}
		for _, c := range d.Ranked {
			got = append(got, c.Node)
			if c.Memory > 1 || c.VCPUs > 1 || c.Memory <= 0 || c.VCPUs <= 0 {
				t.Fatalf("load of %+v", c)
			}
		}
		require.ElementsMatch(t, want, got)
		require.Len(t, d.Refused, len(nodes)-len(got))
		if len(want) == 0 {
			require.True(t, problem.Is(err, problem.NoCapacity), "%v", err)
		} else {
			require.NoError(t, err)
			require.Equal(t, got[0], d.Node)
		}
	})
}

func TestNeverOvercommits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t)
		for range rapid.IntRange(1, 30).Draw(t, "vms") {
			req := drawRequest(t)
			d, err := placement.Place(nodes, req)
			if err != nil {
				continue
			}
			n := &nodes[slices.IndexFunc(nodes, func(n placement.Node) bool { return n.ID == d.Node })]
			n.Claimed.VCPUs += req.Amount.VCPUs
			n.Claimed.Memory += req.Amount.Memory
			if free := n.Pools[req.Pool]; req.Pool != "" && free != placement.UnknownSpace {
				n.Pools[req.Pool] = free - req.Disk
				require.GreaterOrEqual(t, n.Pools[req.Pool], int64(0))
			}
			require.LessOrEqual(t, n.Claimed.Memory, n.Memory-n.ReservedMemory)
			require.LessOrEqual(t, float64(n.Claimed.VCPUs), float64(n.Cores)*n.CPURatio)
		}
	})
}

func TestOrderOfNodesDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes, req := drawNodes(t), drawRequest(t)
		first, err1 := placement.Place(nodes, req)
		second, err2 := placement.Place(rapid.Permutation(nodes).Draw(t, "shuffled"), req)
		require.Equal(t, first, second)
		require.Equal(t, problem.From(err1), problem.From(err2))
	})
}

func BenchmarkPlace(b *testing.B) {
	for _, count := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			nodes := make([]placement.Node, count)
			for i := range nodes {
				nodes[i] = node(fmt.Sprintf("n%05d", i), claimed(rng.IntN(70), rng.Int64N(60)*api.GiB))
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := placement.Place(nodes, request()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
