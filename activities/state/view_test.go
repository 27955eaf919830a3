package state

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/placement"
)

// byAgent makes worlds comparable, in which nodes may stand in any order.
func byAgent(w *world) (nodes map[string]placement.Node, ledgers map[string]int64) {
	nodes, ledgers = map[string]placement.Node{}, map[string]int64{}
	for id := range w.index {
		n, revision := w.node(id)
		c := *n
		if len(c.Groups) == 0 {
			c.Groups = nil
		}
		nodes[id], ledgers[id] = c, revision
	}
	return nodes, ledgers
}

// TestTheViewIsWhatAFullReadGives changes the store at random and compares, now and then, what the view has become with what
// the store says.
func TestTheViewIsWhatAFullReadGives(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		ctx, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer stop()
		kv := store.NewMemory()
		defer func() { require.NoError(t, kv.Close()) }()
		cache := store.NewCache(kv, store.Root)
		wg.Go(func() { cache.Run(ctx) })
		s := New(kv, nil, nil, nil).Follow(cache)
		var revision int64
		commit := func(tx store.Tx) {
			var err error
			revision, err = kv.Commit(ctx, tx)
			require.NoError(r, err)
		}
		put := func(key string, v any) {
			value, err := json.Marshal(v)
			require.NoError(r, err)
			commit(store.Tx{Puts: []store.Put{{Key: key, Value: value}}})
		}
		agent := rapid.SampledFrom([]string{"a", "b", "c"})
		pool := rapid.SampledFrom([]string{"p", "q"})
		vm := rapid.SampledFrom([]string{"v1", "v2", "v3", "v4"})
		phase := rapid.SampledFrom([]api.Phase{api.PhaseReady, api.PhaseMaintenance, api.PhaseDown, api.PhaseUnavailable})
		compare := func() {
			require.NoError(r, cache.WaitFor(ctx, revision))
			got, err := s.view.world()
			require.NoError(r, err)
			want, err := s.readWorld(ctx)
			require.NoError(r, err)
			gotNodes, gotLedgers := byAgent(got)
			wantNodes, wantLedgers := byAgent(want)
			require.Equal(r, wantNodes, gotNodes)
			require.Equal(r, wantLedgers, gotLedgers)
			require.Len(r, got.nodes, len(got.index))
		}
		put("/elsewhere", 1)
		commit(store.Tx{Puts: []store.Put{{Key: store.Key(api.KindVM, "x", "y"), Value: []byte("{}")}}})
		r.Repeat(map[string]func(*rapid.T){
			"agent": func(r *rapid.T) {
				a := api.Agent{Meta: api.Meta{ID: agent.Draw(r, "agent"), Name: "n"}}
				a.Status.Phase = phase.Draw(r, "phase")
				a.Status.Inventory.Cores = rapid.IntRange(0, 4).Draw(r, "cores")
				if rapid.Bool().Draw(r, "reported") {
					a.Status.Inventory.Pools = []api.PoolUsage{{Pool: pool.Draw(r, "pool"), Free: 7, Images: []string{"sum"}}, {Pool: pool.Draw(r, "pool"), Error: "away"}}
				}
				put(store.Key(api.KindAgent, "", a.ID), a)
			},
			"forget agent": func(r *rapid.T) {
				commit(store.Tx{Deletes: []string{store.Key(api.KindAgent, "", agent.Draw(r, "agent"))}})
			},
			"pool": func(r *rapid.T) {
				p := api.Pool{Meta: api.Meta{ID: pool.Draw(r, "pool")}, Status: api.PoolStatus{Phase: phase.Draw(r, "phase")}}
				p.Spec.Agents = rapid.SliceOfDistinct(agent, func(s string) string { return s }).Draw(r, "agents")
				p.Status.Leaving = rapid.SliceOfDistinct(agent, func(s string) string { return s }).Draw(r, "leaving")
				put(store.Key(api.KindPool, "", p.ID), p)
			},
			"forget pool": func(r *rapid.T) {
				commit(store.Tx{Deletes: []string{store.Key(api.KindPool, "", pool.Draw(r, "pool"))}})
			},
			"promise": func(r *rapid.T) {
				a := agent.Draw(r, "agent")
				value := fmt.Sprintf(`{"vcpus":%d,"memory":%d}`, rapid.IntRange(1, 4).Draw(r, "vcpus"), rapid.IntRange(1, 4).Draw(r, "memory"))
				if rapid.Bool().Draw(r, "grouped") {
					value = value[:len(value)-1] + `,"group":"g"}`
				}
				commit(store.Tx{Puts: []store.Put{
					{Key: store.NodeClaim(a, vm.Draw(r, "vm")), Value: []byte(value)},
					{Key: store.LedgerKey(store.NodePrefix(a)), Value: []byte("1")},
				}})
			},
			"give back": func(r *rapid.T) {
				a := agent.Draw(r, "agent")
				tx := store.Tx{Deletes: []string{store.NodeClaim(a, vm.Draw(r, "vm"))}}
				if rapid.Bool().Draw(r, "touched") {
					tx.Puts = []store.Put{{Key: store.LedgerKey(store.NodePrefix(a)), Value: []byte("1")}}
				}
				commit(tx)
			},
			"forget ledger": func(r *rapid.T) {
				commit(store.Tx{Deletes: []string{store.LedgerKey(store.NodePrefix(agent.Draw(r, "agent")))}})
			},
			"fall behind": func(*rapid.T) { s.view.at = 0 },
			"": func(r *rapid.T) {
				if rapid.IntRange(0, 3).Draw(r, "look") == 0 {
					compare()
				}
			},
		})
		compare()
	})
}

// TestAViewThatDoesNotFollowIsNotAsked: then the store is.
func TestAViewThatDoesNotFollowIsNotAsked(t *testing.T) {
	kv := store.NewMemory()
	s := New(kv, nil, nil, nil).Follow(store.NewCache(kv, store.Root)) // which nobody runs
	a := `{"id":"a","name":"a","status":{"phase":"ready"}}`
	_, err := kv.Commit(context.Background(), store.Tx{Puts: []store.Put{{Key: store.Key(api.KindAgent, "", "a"), Value: []byte(a)}}})
	require.NoError(t, err)
	w, err := s.world(context.Background())
	require.NoError(t, err)
	require.Len(t, w.nodes, 1)
}
