package placement_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/placement"
)

// crowd returns nodes of which about one in seven is full.
func crowd(count int) []placement.Node {
	rng := rand.New(rand.NewPCG(1, 2))
	nodes := make([]placement.Node, count)
	for i := range nodes {
		nodes[i] = node(fmt.Sprintf("n%05d", i), claimed(rng.IntN(70), rng.Int64N(60)*api.GiB))
	}
	return nodes
}

func BenchmarkPlace(b *testing.B) {
	asks := []struct {
		name string
		req  placement.Request
	}{
		{"plain", request()},
		{"packed", request(func(r *placement.Request) { r.Strategy, r.Seed = placement.Pack, 7 })},
		{"all rules", request(grouped(api.AntiAffinity, false), func(r *placement.Request) {
			r.CPUModel, r.NodeLabels, r.Network, r.Image, r.Seed = "EPYC", map[string]string{"zone": "a"}, true, "abc", 7
		})},
		{"no room", request(func(r *placement.Request) { r.Amount.Memory = 61 * api.GiB })},
	}
	for _, count := range []int{100, 1_000, 10_000} {
		nodes := crowd(count)
		for _, a := range asks {
			b.Run(fmt.Sprintf("nodes=%d/%s", count, a.name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := placement.Place(nodes, a.req); (err != nil) != (a.name == "no room") {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
			})
		}
	}
}

// BenchmarkBalance is the worst case beside the usual one: nearly all VMs are looked at, and none can go.
func BenchmarkBalance(b *testing.B) {
	for _, stuck := range []bool{false, true} {
		b.Run(fmt.Sprintf("nodes=10000/stuck=%t", stuck), func(b *testing.B) {
			nodes := crowd(10_000)
			var vms []placement.VM
			for i, n := range nodes {
				for k := range 8 {
					r := request()
					if stuck {
						r.NodeLabels = map[string]string{"zone": "nowhere"}
					}
					name := fmt.Sprintf("vm%d-%d", i, k)
					vms = append(vms, placement.VM{ID: name, Name: name, Node: n.ID, Amount: api.Amount{VCPUs: 1, Memory: n.Claimed.Memory / 8}, Request: r})
				}
			}
			for b.Loop() {
				if moves := placement.Balance(nodes, vms, placement.BalanceOptions{Moves: 256}); len(moves) == 0 != stuck {
					b.Fatal(len(moves))
				}
			}
		})
	}
}
