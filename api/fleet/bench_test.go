package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/accounts"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/store"
)

// BenchmarkReport is one report of one of 1,000 agents with 10 VMs and two pools each. Bytes are what the store is made to write.
func BenchmarkReport(b *testing.B) {
	const agents, vms = 1000, 10
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	kv := &counting{KV: store.NewMemory()}
	cache := store.NewCache(kv, store.Root)
	go cache.Run(ctx)
	users := accounts.New(kv, accounts.Options{JoinToken: "join"})
	f := New(Options{KV: kv, Cache: cache, Credentials: users, Log: slog.New(slog.DiscardHandler)})
	handles, reports := make([]auth.Handle, agents), make([]api.AgentReport, agents)
	var revision int64
	for i := range agents {
		j, err := f.Join(ctx, api.AgentJoin{Name: fmt.Sprintf("node-%d", i), Token: "join"})
		require.NoError(b, err)
		handles[i], err = users.Authenticate(ctx, j.Credential)
		require.NoError(b, err)
		inv := api.Inventory{Cores: 32, Memory: 128 * api.GiB, CPUFlags: make([]string, 120), CPUModels: make([]string, 80)}
		for k := range inv.CPUFlags {
			inv.CPUFlags[k] = fmt.Sprintf("flag-%d", k)
		}
		inv.Pools = []api.PoolUsage{{Pool: api.NewID(), Capacity: api.TiB}, {Pool: api.NewID(), Capacity: api.TiB}}
		reports[i].Inventory = inv
		d := store.NewDraft(system)
		for k := range vms {
			vm := &api.VM{Meta: api.Meta{ID: api.NewID(), Name: fmt.Sprintf("vm-%d-%d", i, k), Project: "default"}}
			vm.Status = api.VMStatus{Phase: api.PhaseRunning, Agent: j.ID, Observed: time.Now()}
			d.Create(vm)
			value, err := json.Marshal(api.Amount{VCPUs: 1, Memory: api.GiB})
			require.NoError(b, err)
			d.Claim(store.NodeClaim(j.ID, vm.ID), string(value))
			reports[i].VMs = append(reports[i].VMs, api.VMObservation{ID: vm.ID, Phase: api.PhaseRunning})
		}
		revision, err = d.Commit(ctx, kv)
		require.NoError(b, err)
	}
	require.NoError(b, cache.WaitFor(ctx, revision))
	report := func(i int) {
		r := reports[i%agents]
		r.Sent = time.Now()
		r.Inventory.UsedMemory = int64(i) * 4096
		if _, err := f.Report(ctx, handles[i%agents], handles[i%agents].Who().Name, r); err != nil {
			b.Error(err)
		}
	}
	for i := range agents {
		report(i)
	}
	var next atomic.Int64
	kv.written.Store(0)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			report(int(next.Add(1)))
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reports/s")
	b.ReportMetric(float64(kv.written.Load())/float64(b.N), "storebytes/op")
}

// counting counts the bytes that are written.
type counting struct {
	store.KV
	written atomic.Int64
}

func (c *counting) Commit(ctx context.Context, tx store.Tx) (int64, error) {
	for _, p := range tx.Puts {
		c.written.Add(int64(len(p.Key) + len(p.Value)))
	}
	return c.KV.Commit(ctx, tx)
}
