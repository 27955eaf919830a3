package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// flaky is a store whose watches end, and whose lists fail, as a test wants.
type flaky struct {
	store.KV
	cut     atomic.Pointer[context.CancelFunc]
	failing atomic.Bool
	lists   atomic.Int32
}

func (f *flaky) List(ctx context.Context, prefix string) ([]store.Entry, int64, error) {
	f.lists.Add(1)
	if f.failing.Load() {
		return nil, 0, problem.New(problem.Unavailable, "the store is away")
	}
	return f.KV.List(ctx, prefix)
}

func (f *flaky) Watch(ctx context.Context, prefix string, since int64) <-chan store.Change {
	ctx, cancel := context.WithCancel(ctx)
	f.cut.Store(&cancel)
	return f.KV.Watch(ctx, prefix, since)
}

// runCache runs a cache of what is below prefix until the test ends, and waits until it is filled.
func runCache(t testing.TB, kv store.KV, prefix string) *store.Cache {
	c := store.NewCache(kv, prefix)
	run(t, c)
	return c
}

// run runs c and returns a function that stops it.
func run(t testing.TB, c *store.Cache) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	waitFor(t, c, 1)
	return stop
}

func waitFor(t testing.TB, c *store.Cache, revision int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	require.NoError(t, c.WaitFor(ctx, revision))
}

func contents(c *store.Cache, prefix string) (out []string) {
	items, _, _ := c.List(prefix, "", 0, nil)
	for _, i := range items {
		out = append(out, strings.TrimPrefix(i.Key, prefix)+"="+string(i.Value))
	}
	return out
}

func TestCacheReadsItsWritersWrites(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		p := kv.prefix
		commit(t, kv, putTx(p+"a", "1"))
		c := runCache(t, kv, p)
		require.NoError(t, c.Err())
		require.Equal(t, []string{"a=1"}, contents(c, p))
		for n := range 50 {
			value := fmt.Sprint(n)
			r := commit(t, kv, putTx(p+"a", value, p+"b", value))
			waitFor(t, c, r)
			a, ok := c.Get(p + "a")
			require.True(t, ok)
			require.Equal(t, value, string(a.Value))
			require.Equal(t, r, a.Revision)
			require.Equal(t, []string{"a=" + value, "b=" + value}, contents(c, p))
		}
		waitFor(t, c, commit(t, kv, store.Tx{Deletes: []string{p + "a"}}))
		_, ok := c.Get(p + "a")
		require.False(t, ok)
	})
}

func TestCacheShowsWholeCommits(t *testing.T) {
	m := store.NewMemory()
	c := runCache(t, m, "")
	go func() {
		for n := range 500 {
			v := fmt.Sprint(n)
			_ = put(m, "other", v)
			_, _ = m.Commit(context.Background(), putTx("a", v, "b", v, "c", v))
		}
		_ = put(m, "end", "")
	}()
	for done := false; !done; {
		items, _, revision := c.List("", "", 0, func(i *store.Item) bool { return len(i.Key) == 1 })
		for _, i := range items {
			require.Equal(t, items[0].Value, i.Value)
			require.LessOrEqual(t, i.Revision, revision)
		}
		_, done = c.Get("end")
	}
}

func TestCacheWaitForEnds(t *testing.T) {
	m := store.NewMemory()
	c := store.NewCache(m, "")
	require.True(t, problem.Is(c.Err(), problem.Unavailable))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	require.True(t, problem.Is(c.WaitFor(ctx, 1), problem.Timeout))
	stop := run(t, c)
	stop()
	require.True(t, problem.Is(c.WaitFor(context.Background(), 100), problem.Unavailable))
	require.NoError(t, c.WaitFor(context.Background(), 1))
}

func TestCachePages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.SliceOfDistinct(rapid.StringMatching(`[ab/]{1,4}`), rapid.ID[string]).Draw(t, "keys")
		m := store.NewMemory()
		for _, k := range keys {
			if err := put(m, k, k); err != nil {
				t.Fatal(err)
			}
		}
		c := store.NewCache(m, "")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go c.Run(ctx)
		if err := c.WaitFor(ctx, 1); err != nil {
			t.Fatal(err)
		}
		prefix := rapid.SampledFrom([]string{"", "a", "a/", "b"}).Draw(t, "prefix")
		limit := rapid.IntRange(0, 3).Draw(t, "limit")
		suffix := rapid.SampledFrom([]string{"", "a", "/"}).Draw(t, "suffix")
		after := rapid.StringMatching(`[ab/]{0,3}`).Draw(t, "after")
		var want, got []string
		for _, k := range slices.Sorted(slices.Values(keys)) {
			if strings.HasPrefix(k, prefix) && k > after && strings.HasSuffix(k, suffix) {
				want = append(want, k)
			}
		}
		for at, more := after, true; more; {
			var items []*store.Item
			items, more, _ = c.List(prefix, at, limit, func(i *store.Item) bool { return strings.HasSuffix(i.Key, suffix) })
			if more && len(items) != limit {
				t.Fatalf("a page of %d of %d, and more to come", len(items), limit)
			}
			for _, i := range items {
				got = append(got, i.Key)
				at = i.Key
			}
		}
		require.Equal(t, want, got)
	})
}

// TestCacheListsAgain cuts the watch and changes things meanwhile: the cache comes back with what is, and its subscribers
// get what makes their state the same.
func TestCacheListsAgain(t *testing.T) {
	m := store.NewMemory()
	kv := &flaky{KV: m}
	commit(t, m, putTx("stays", "1", "changes", "1", "goes", "1", "returns", "1"))
	c := runCache(t, kv, "")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	sub := c.Subscribe(ctx, 0)
	before, _ := c.Get("stays")

	kv.failing.Store(true)
	(*kv.cut.Load())()
	require.Eventually(t, func() bool { return c.Err() != nil }, 10*time.Second, time.Millisecond)
	lists := kv.lists.Load()
	r1 := commit(t, m, putTx("changes", "2", "comes", "2"))
	commit(t, m, store.Tx{Deletes: []string{"goes", "returns"}})
	r3 := commit(t, m, putTx("returns", "3"))
	m.Compact(r3)
	require.Eventually(t, func() bool { return kv.lists.Load() > lists+1 }, 10*time.Second, time.Millisecond, "it keeps trying")
	require.Equal(t, []string{"changes=1", "goes=1", "returns=1", "stays=1"}, contents(c, ""), "old is better than none")
	kv.failing.Store(false)
	waitFor(t, c, r3)
	require.NoError(t, c.Err())
	require.Equal(t, []string{"changes=2", "comes=2", "returns=3", "stays=1"}, contents(c, ""))
	after, _ := c.Get("stays")
	require.Same(t, before, after, "what has not changed stays decoded")

	var told []string
	for len(told) < 4 {
		for _, ch := range nextBatch(t, sub) {
			told = append(told, fmt.Sprintf("%d %s=%s %v %v", ch.Revision, ch.Key, ch.Value, ch.Deleted, ch.More))
		}
	}
	require.Equal(t, []string{
		fmt.Sprintf("%d changes=2 false true", r1), fmt.Sprintf("%d comes=2 false false", r1),
		fmt.Sprintf("%d goes= true true", r3), fmt.Sprintf("%d returns=3 false false", r3),
	}, told)

	r4 := commit(t, m, putTx("stays", "4"))
	require.Equal(t, r4, nextBatch(t, sub)[0].Revision)
	waitFor(t, c, r4)
	require.Equal(t, []string{"changes=2", "comes=2", "returns=3", "stays=4"}, contents(c, ""))
}

func nextBatch(t *testing.T, s *store.Subscription) []store.Change {
	t.Helper()
	select {
	case batch, ok := <-s.Changes():
		require.True(t, ok, "the subscription has ended")
		require.NotEmpty(t, batch)
		return batch
	case <-time.After(10 * time.Second):
		require.Fail(t, "no change came")
		return nil
	}
}

func TestSubscribersAllGetEverything(t *testing.T) {
	m := store.NewMemory()
	c := runCache(t, m, "")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	start := c.Revision()
	const commits, subscribers = 1000, 20
	var subs []*store.Subscription
	for range subscribers {
		subs = append(subs, c.Subscribe(ctx, start))
	}
	go func() {
		for n := range commits {
			_, _ = m.Commit(ctx, putTx("a", fmt.Sprint(n), "b", fmt.Sprint(n)))
		}
	}()
	parallel(subscribers, func(i int) {
		for n := 0; n < 2*commits; {
			batch := <-subs[i].Changes()
			if len(batch) == 0 {
				t.Errorf("subscriber %d: %v", i, subs[i].Err())
				return
			}
			if len(batch) > store.BatchSize+1 || batch[len(batch)-1].More {
				t.Errorf("subscriber %d: a batch of %d changes that ends inside a commit: %v", i, len(batch), batch[len(batch)-1].More)
			}
			for _, ch := range batch {
				if ch.Key != []string{"a", "b"}[n%2] || string(ch.Value) != fmt.Sprint(n/2) {
					t.Errorf("subscriber %d: change %d is %s=%s", i, n, ch.Key, ch.Value)
					return
				}
				n++
			}
		}
	})
	cancel()
	for _, s := range subs {
		requireClosed(t, s.Changes())
		require.NoError(t, s.Err())
	}
}

func TestSubscribeFromARevision(t *testing.T) {
	m := store.NewMemory()
	commit(t, m, putTx("a", "before"))
	c := store.NewCache(m, "")
	store.SetRing(c, 8)
	ctx := context.Background()
	early := c.Subscribe(ctx, 1) // before the cache is filled
	fromNow := c.Subscribe(ctx, 0)
	stop := run(t, c)
	first := c.Revision()
	requireClosed(t, early.Changes())
	require.True(t, problem.Is(early.Err(), problem.Precondition), "%v", early.Err())

	var last int64
	for n := range 5 {
		last = commit(t, m, putTx("a", fmt.Sprint(n)))
	}
	waitFor(t, c, last)
	require.Equal(t, first+1, nextBatch(t, fromNow)[0].Revision)
	require.Equal(t, last-1, nextBatch(t, c.Subscribe(ctx, last-2))[0].Revision)
	require.Equal(t, first+1, nextBatch(t, c.Subscribe(ctx, first))[0].Revision)

	idle := c.Subscribe(ctx, last)
	ahead := c.Subscribe(ctx, last+1) // of this cache: it has listed elsewhere
	r := commit(t, m, putTx("a", "x"))
	require.Equal(t, r, nextBatch(t, idle)[0].Revision)
	r2 := commit(t, m, putTx("a", "y"))
	require.Equal(t, r2, nextBatch(t, ahead)[0].Revision)

	for n := range 9 {
		last = commit(t, m, putTx("a", fmt.Sprint(n)))
	}
	waitFor(t, c, last)
	tooOld := c.Subscribe(ctx, r2-1)
	requireClosed(t, tooOld.Changes())
	require.True(t, problem.Is(tooOld.Err(), problem.Precondition), "%v", tooOld.Err())

	alive := c.Subscribe(ctx, 0)
	stop()
	requireClosed(t, alive.Changes())
	require.True(t, problem.Is(alive.Err(), problem.Unavailable), "%v", alive.Err())
}

func TestBatchesEndWithACommit(t *testing.T) {
	m := store.NewMemory()
	c := runCache(t, m, "")
	start := c.Revision()
	var last int64
	for range store.BatchSize {
		last = commit(t, m, putTx("a", "", "b", "", "c", ""))
	}
	waitFor(t, c, last)
	sub := c.Subscribe(context.Background(), start)
	for told := 0; told < 3*store.BatchSize; {
		batch := nextBatch(t, sub)
		require.Zero(t, len(batch)%3)
		require.LessOrEqual(t, len(batch), store.BatchSize+2)
		require.False(t, batch[len(batch)-1].More)
		told += len(batch)
	}
}

func TestSlowSubscriberIsToldAndHoldsUpNobody(t *testing.T) {
	m := store.NewMemory()
	c := runCache(t, m, "")
	slow := c.Subscribe(context.Background(), 0)
	var last int64
	for n := range 2 * store.RingSize {
		last = commit(t, m, putTx("a", fmt.Sprint(n)))
	}
	waitFor(t, c, last)
	requireClosed(t, slow.Changes())
	require.True(t, problem.Is(slow.Err(), problem.Precondition), "%v", slow.Err())
}

// TestCacheOfAnotherStore is what a restored backup looks like: revisions go backwards.
func TestCacheOfAnotherStore(t *testing.T) {
	old, restored := store.NewMemory(), store.NewMemory()
	for n := range 10 {
		require.NoError(t, put(old, "a", fmt.Sprint(n)))
	}
	require.NoError(t, put(restored, "b", "1"))
	kv := &swapped{}
	kv.now.Store(old)
	c := runCache(t, kv, "")
	sub := c.Subscribe(context.Background(), 0)
	kv.now.Store(restored)
	require.NoError(t, old.Close())
	requireClosed(t, sub.Changes())
	require.True(t, problem.Is(sub.Err(), problem.Precondition), "%v", sub.Err())
	require.Equal(t, []string{"b=1"}, contents(c, ""))
	require.Equal(t, int64(2), c.Revision())

	sub = c.Subscribe(context.Background(), 2)
	r := commit(t, restored, putTx("b", "2"))
	require.Equal(t, r, nextBatch(t, sub)[0].Revision)
}

// swapped is a store that becomes another one.
type swapped struct {
	store.KV
	now atomic.Pointer[store.Memory]
}

func (s *swapped) List(ctx context.Context, prefix string) ([]store.Entry, int64, error) {
	return s.now.Load().List(ctx, prefix)
}

func (s *swapped) Watch(ctx context.Context, prefix string, since int64) <-chan store.Change {
	return s.now.Load().Watch(ctx, prefix, since)
}

// vms fills a store with VMs and returns their project's prefix.
func vms(tb testing.TB, kv store.KV, count int) {
	tb.Helper()
	var tx store.Tx
	for n := range count {
		vm := &api.VM{
			Meta: api.Meta{
				ID: fmt.Sprintf("00000000-0000-4000-8000-%012d", n), Name: fmt.Sprintf("vm-%05d", n), Project: "default",
				Labels: map[string]string{"tier": []string{"web", "db"}[n%2], "rack": fmt.Sprint(n % 100)},
			},
			Spec: api.VMSpec{
				VCPUs: 2, Memory: 4 * api.GiB, Image: api.NewID(), Pool: api.NewID(), Hostname: fmt.Sprintf("vm-%05d", n),
				NICs: []api.NIC{{Port: api.NewID(), Subnet: api.NewID()}}, SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me@host"},
			},
			Status: api.VMStatus{Phase: api.PhaseRunning, Agent: api.NewID(), AgentName: "node-1", Addresses: []string{"10.1.0.5"}, Volumes: []string{api.NewID()}},
		}
		value, err := json.Marshal(vm)
		require.NoError(tb, err)
		tx.Puts = append(tx.Puts, store.Put{Key: store.Key(api.KindVM, "default", vm.ID), Value: value})
		if len(tx.Puts) == 500 || n == count-1 {
			_, err := kv.Commit(context.Background(), tx)
			require.NoError(tb, err)
			tx.Puts = nil
		}
	}
}

func TestListCached(t *testing.T) {
	m := store.NewMemory()
	vms(t, m, 250)
	c := runCache(t, m, store.Root)
	h := auth.ControlPlane("test")
	isDB := func(vm *api.VM) bool { return vm.Labels["tier"] == "db" }
	for _, project := range []string{"default", "*"} {
		var names []string
		for after, pages := "", 0; ; pages++ {
			page, err := store.ListCached(c, h, project, after, 50, isDB)
			require.NoError(t, err)
			for _, vm := range page.Items {
				names = append(names, vm.Name)
				require.Positive(t, vm.Revision)
			}
			if after = page.Next; after == "" {
				require.Equal(t, 2, pages)
				break
			}
		}
		require.Len(t, names, 125)
		require.True(t, slices.IsSorted(names))
		require.Equal(t, "vm-00001", names[0])
	}
	a, err := store.GetCached[api.VM](c, h, "default", "00000000-0000-4000-8000-000000000007")
	require.NoError(t, err)
	b, err := store.GetCached[api.VM](c, h, "default", "00000000-0000-4000-8000-000000000007")
	require.NoError(t, err)
	require.Same(t, a, b, "decoded once")
	_, err = store.GetCached[api.VM](c, h, "other", "00000000-0000-4000-8000-000000000007")
	require.True(t, problem.Is(err, problem.NotFound), "%v", err)

	require.NoError(t, put(m, store.Key(api.KindVM, "default", "zz"), "{"))
	waitFor(t, c, 3)
	_, err = store.ListCached[api.VM](c, h, "default", "", 0, nil)
	require.True(t, problem.Is(err, problem.Internal), "%v", err)
}

func TestFindCached(t *testing.T) {
	m := store.NewMemory()
	h := auth.ControlPlane("test")
	vm := newVM("web")
	d := store.NewDraft(h)
	d.Create(vm)
	r, err := d.Commit(context.Background(), m)
	require.NoError(t, err)
	c := runCache(t, m, store.Root)
	waitFor(t, c, r)
	for _, ref := range []string{"web", vm.ID} {
		got, err := store.FindCached[api.VM](c, h, "default", ref)
		require.NoError(t, err)
		require.Equal(t, vm.ID, got.ID)
	}
	for _, ref := range []string{"db", api.NewID()} {
		_, err := store.FindCached[api.VM](c, h, "default", ref)
		require.True(t, problem.Is(err, problem.NotFound), "%v", err)
	}
}

func BenchmarkCache(b *testing.B) {
	m := store.NewMemory()
	vms(b, m, 10_000)
	c := runCache(b, m, store.Root)
	h := auth.ControlPlane("bench")
	prefix := store.Prefix(api.KindVM, "default")
	middle := prefix + "00000000-0000-4000-8000-000000005000"
	b.Run("page of 100 of 10000", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if items, more, _ := c.List(prefix, middle, 100, nil); len(items) != 100 || !more {
				b.Fatal(len(items), more)
			}
		}
	})
	b.Run("page of 100 of 10000, decoded each time", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			items, _, _ := c.List(prefix, middle, 100, nil)
			for _, i := range items {
				var vm api.VM
				if err := store.Decode(i.Entry, &vm); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("page of 100 of 10000, decoded once", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if page, err := store.ListCached[api.VM](c, h, "default", middle[len(prefix):], 100, nil); err != nil || len(page.Items) != 100 {
				b.Fatal(err)
			}
		}
	})
	b.Run("label filter over 10000", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if page, err := store.ListCached(c, h, "default", "", 0, func(vm *api.VM) bool { return vm.Labels["rack"] == "42" }); err != nil || len(page.Items) != 100 {
				b.Fatal(err, len(page.Items))
			}
		}
	})
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := c.Get(middle); !ok {
				b.Fatal("gone")
			}
		}
	})
	b.Run("one change, write to read", func(b *testing.B) {
		b.ReportAllocs()
		ctx := context.Background()
		for b.Loop() {
			r, err := m.Commit(ctx, putTx(middle, "{}"))
			if err != nil {
				b.Fatal(err)
			}
			if err := c.WaitFor(ctx, r); err != nil {
				b.Fatal(err)
			}
		}
	})
}
