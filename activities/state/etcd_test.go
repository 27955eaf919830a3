package state_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/state"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/test/fault"
	"github.com/nextstack/nextstack/workflows/steps"
)

// realStore is an etcd of its own, as the control plane embeds it. Sync says whether it waits for the disk.
func realStore(tb testing.TB, sync bool) store.KV {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	require.NoError(tb, l.Close())
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel = tb.TempDir(), "panic"
	client := url.URL{Scheme: "http", Host: l.Addr().String()}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls = nil
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	cfg.InitialCluster = cfg.Name + "=" + cfg.AdvertisePeerUrls[0].String()
	cfg.TickMs, cfg.ElectionMs, cfg.MaxTxnOps, cfg.UnsafeNoFsync = 20, 200, store.MaxOps, !sync
	server, err := embed.StartEtcd(cfg)
	require.NoError(tb, err)
	tb.Cleanup(server.Close)
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		require.NoError(tb, err)
	case <-time.After(30 * time.Second):
		tb.Fatal("etcd did not become ready")
	}
	kv := store.NewEtcd(v3client.New(server.Server))
	tb.Cleanup(func() { _ = kv.Close() })
	return kv
}

// replace replaces all that is in one store by all that is in another.
func replace(tb testing.TB, from, to store.KV) {
	tb.Helper()
	old, _, err := to.List(ctx, store.Root)
	require.NoError(tb, err)
	for part := range slices.Chunk(old, store.MaxOps) {
		var tx store.Tx
		for _, e := range part {
			tx.Deletes = append(tx.Deletes, e.Key)
		}
		_, err := to.Commit(ctx, tx)
		require.NoError(tb, err)
	}
	entries, _, err := from.List(ctx, store.Root)
	require.NoError(tb, err)
	for part := range slices.Chunk(entries, store.MaxOps/4) {
		var tx store.Tx
		for _, e := range part {
			tx.Puts = append(tx.Puts, store.Put{Key: e.Key, Value: e.Value})
		}
		_, err := to.Commit(ctx, tx)
		require.NoError(tb, err)
	}
}

type noSealer struct{}

func (noSealer) Seal(_, aad string) ([]byte, error) { return []byte(aad), nil }

// following returns the steps over kv as the control plane has them: with a cache that follows it.
func following(tb testing.TB, kv store.KV) central { return deciding(tb, kv, api.Spread) }

// deciding is following, with a default of where VMs go.
func deciding(tb testing.TB, kv store.KV, strategy string) central {
	tb.Helper()
	cache := store.NewCache(kv, store.Root)
	running, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { cache.Run(running) })
	tb.Cleanup(func() { stop(); wg.Wait() })
	require.NoError(tb, cache.WaitFor(running, 1))
	c := central{}
	state.New(kv, admission.New(kv, noSealer{}), none{}, none{}).Follow(cache).Pack(strategy).Register(c, &activities.Host{Log: slog.New(slog.DiscardHandler)})
	return c
}

func reading(kv store.KV) central {
	c := central{}
	state.New(kv, admission.New(kv, noSealer{}), none{}, none{}).Register(c, &activities.Host{Log: slog.New(slog.DiscardHandler)})
	return c
}

// placeAll calls PlaceVM for all operations at the same moment, and returns how many VMs each node got and how many found no
// room. Any other failure fails the test.
func placeAll(t *testing.T, c central, ops []*api.Operation) (placed map[string]int, refused int) {
	t.Helper()
	errs := make([]error, len(ops))
	places := make([]steps.Placement, len(ops))
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i, op := range ops {
		wg.Go(func() {
			<-begin
			places[i], errs[i] = call(c, steps.PlaceVM, steps.Token{Operation: op.ID}, steps.VMOrder{VMRef: steps.VMRef{Project: opts.Project, VM: op.Target.ID}})
		})
	}
	close(begin)
	wg.Wait()
	placed = map[string]int{}
	for i, err := range errs {
		if err == nil {
			placed[places[i].Plan.Agent]++
			continue
		}
		require.Equal(t, problem.NoCapacity, problem.KindOf(err), "%v", err)
		refused++
	}
	return placed, refused
}

// ledger sums up what is promised in a store.
func ledger(t *testing.T, kv store.KV) (vms int, amount api.Amount) {
	t.Helper()
	entries, _, err := kv.List(ctx, store.NodesRoot)
	require.NoError(t, err)
	for _, e := range entries {
		var a api.Amount
		require.NoError(t, json.Unmarshal(e.Value, &a))
		vms, amount.VCPUs, amount.Memory = vms+1, amount.VCPUs+a.VCPUs, amount.Memory+a.Memory
	}
	return vms, amount
}

// TestSixtyFourForFortyPlaces: 64 creates at once on nodes with room for 40. Exactly 40 get a place.
func TestSixtyFourForFortyPlaces(t *testing.T) {
	w := base(t)
	room(t, w, 20)
	var ops []*api.Operation
	for i := range 64 {
		ops = append(ops, accept(t, w, fmt.Sprint("vm", i)))
	}
	kv := realStore(t, false)
	for round := range 20 {
		replace(t, w.KV, kv)
		c := following(t, kv)
		if round%10 == 9 {
			c = reading(kv)
		}
		placed, refused := placeAll(t, c, ops)
		require.Equal(t, map[string]int{w.Nodes[0].ID: 20, w.Nodes[1].ID: 20}, placed, "round %d", round)
		require.Equal(t, 24, refused)
		vms, amount := ledger(t, kv)
		require.Equal(t, 40, vms)
		require.Equal(t, api.Amount{VCPUs: 40, Memory: 40 * api.GiB}, amount)
	}
}

// TestManyThatArePackedAtOnce: all of them want the same node, and get it as long as it has room; then the next one.
func TestManyThatArePackedAtOnce(t *testing.T) {
	w := base(t)
	room(t, w, 40)
	var ops []*api.Operation
	for i := range 64 {
		ops = append(ops, accept(t, w, fmt.Sprint("vm", i)))
	}
	kv := realStore(t, false)
	replace(t, w.KV, kv)
	placed, refused := placeAll(t, deciding(t, kv, api.Pack), ops)
	require.Equal(t, map[string]int{w.Nodes[0].ID: 40, w.Nodes[1].ID: 24}, placed)
	require.Zero(t, refused)
}

// grow adds nodes like the ones that there are.
func grow(tb testing.TB, w *fault.World, nodes int) {
	tb.Helper()
	template, err := store.Get[api.Agent](ctx, w.KV, w.User, "", w.Nodes[0].ID)
	require.NoError(tb, err)
	pool, err := store.Find[api.Pool](ctx, w.KV, w.User, "", "vms")
	require.NoError(tb, err)
	d := store.NewDraft(auth.ControlPlane("test"))
	for i := range nodes {
		a := *template
		a.Meta = api.Meta{ID: api.NewID(), Name: fmt.Sprint("b", i)}
		d.Create(&a)
		pool.Spec.Agents = append(pool.Spec.Agents, a.ID)
		if i%200 == 199 || i == nodes-1 {
			_, err = d.Commit(ctx, w.KV)
			require.NoError(tb, err)
			d = store.NewDraft(auth.ControlPlane("test"))
		}
	}
	d.Update(pool)
	_, err = d.Commit(ctx, w.KV)
	require.NoError(tb, err)
}

// TestHardGroupsUnderParallelCreates: what must be kept apart is, and what must stay together does, however many decide at once.
func TestHardGroupsUnderParallelCreates(t *testing.T) {
	w := base(t)
	grow(t, w, 6)
	const nodes = 8
	apart, together := &api.VMGroup{Meta: api.Meta{ID: api.NewID(), Name: "apart", Project: opts.Project}}, &api.VMGroup{Meta: api.Meta{ID: api.NewID(), Name: "together", Project: opts.Project}}
	apart.Spec.Policy, together.Spec.Policy = api.AntiAffinity, api.Affinity
	apart.Status.Phase, together.Status.Phase = api.PhaseReady, api.PhaseReady
	write(t, w, func(d *store.Draft) { d.Create(apart); d.Create(together) })
	member := func(name, group string) *api.Operation {
		op, err := w.Admission.CreateVM(ctx, w.User, opts, api.VMCreate{Name: name, VCPUs: 1, Memory: api.GiB, Image: "cirros", Pool: "vms", Placing: api.Placing{Group: group}})
		require.NoError(t, err)
		return op
	}
	var kept, crowd []*api.Operation
	for i := range nodes + 5 {
		kept = append(kept, member(fmt.Sprint("apart", i), "apart"))
		crowd = append(crowd, member(fmt.Sprint("together", i), "together"))
	}
	kv := realStore(t, false)
	for round := range 10 {
		replace(t, w.KV, kv)
		c := following(t, kv)
		if round%5 == 4 {
			c = reading(kv)
		}
		placed, refused := placeAll(t, c, kept)
		require.Len(t, placed, nodes, "round %d", round)
		require.Equal(t, 5, refused)
		for _, n := range placed {
			require.Equal(t, 1, n)
		}
		placed, refused = placeAll(t, c, crowd)
		require.Len(t, placed, 1, "round %d: they must be on one node", round)
		require.Zero(t, refused)
	}
}

// BenchmarkPlace measures whole decisions, as operations ask for them: with the VM read, and all written down. Ten thousand VMs
// are there already.
func BenchmarkPlace(b *testing.B) {
	for _, sync := range []bool{true, false} {
		for _, nodes := range []int{100, 1000} {
			b.Run(fmt.Sprintf("nodes=%d/sync=%v", nodes, sync), func(b *testing.B) { benchmarkPlace(b, nodes, sync) })
		}
	}
}

func benchmarkPlace(b *testing.B, nodes int, sync bool) {
	w, err := fault.Base(ctx)
	require.NoError(b, err)
	grow(b, w, nodes-2)
	kv := realStore(b, sync)
	agents, err := store.List[api.Agent](ctx, w.KV, w.User, "")
	require.NoError(b, err)
	pool, err := store.Find[api.Pool](ctx, w.KV, w.User, "", "vms")
	require.NoError(b, err)
	image, err := store.Find[api.Image](ctx, w.KV, w.User, opts.Project, "cirros")
	require.NoError(b, err)
	sys := auth.ControlPlane("bench")
	d := store.NewDraft(sys)
	commit := func(kv store.KV) {
		_, err := d.Commit(ctx, kv)
		require.NoError(b, err)
		d = store.NewDraft(sys)
	}
	for i, a := range agents {
		a.Status.Inventory.Memory, a.Status.Inventory.Cores = api.TiB, 512
		d.Update(a)
		for range 10_000 / nodes {
			d.Claim(store.NodeClaim(a.ID, api.NewID()), `{"vcpus":1,"memory":1073741824}`)
		}
		d.Touch(store.NodePrefix(a.ID), 0)
		if i%5 == 4 {
			commit(w.KV)
		}
	}
	commit(w.KV)
	replace(b, w.KV, kv)
	op := api.NewID()
	vms := make([]string, b.N)
	for i := range vms {
		v := &api.Volume{Meta: api.Meta{ID: api.NewID(), Project: opts.Project, Operation: op}, Spec: api.VolumeSpec{Pool: pool.ID, Root: true}}
		vm := &api.VM{Meta: api.Meta{ID: api.NewID(), Project: opts.Project, Operation: op}, Status: api.VMStatus{Volumes: []string{v.ID}}}
		vm.Spec = api.VMSpec{VCPUs: 1, Memory: api.GiB, Image: image.ID, Pool: pool.ID, RootDisk: api.GiB}
		vms[i] = vm.ID
		d.Create(v)
		d.Create(vm)
		if i%100 == 99 {
			commit(kv)
		}
	}
	commit(kv)
	c := following(b, kv)
	var next atomic.Int64
	b.SetParallelism(16)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := next.Add(1) - 1
			if _, err := call(c, steps.PlaceVM, steps.Token{Operation: op}, steps.VMOrder{VMRef: steps.VMRef{Project: opts.Project, VM: vms[i]}}); err != nil {
				b.Error(err)
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
}
