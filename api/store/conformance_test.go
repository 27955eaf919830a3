package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

var started atomic.Bool // the shared etcd

func TestMain(m *testing.M) {
	code := m.Run()
	if started.Load() {
		if s, err := sharedEtcd(); err == nil {
			s.stop()
		}
	}
	os.Exit(code)
}

// backend is a store under test, and how its history is compacted.
type backend struct {
	store.KV
	compact func(t *testing.T, revision int64)
	prefix  string // this test's own
}

var prefixes atomic.Int64

func freshPrefix() string { return fmt.Sprintf("/t%d/", prefixes.Add(1)) }

// conform runs test against every implementation.
func conform(t *testing.T, test func(t *testing.T, kv backend)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) {
		m := store.NewMemory()
		test(t, backend{KV: m, compact: func(_ *testing.T, revision int64) { m.Compact(revision) }, prefix: freshPrefix()})
	})
	for name, client := range map[string]func(*shared) *clientv3.Client{
		"etcd":            func(s *shared) *clientv3.Client { return s.overNetwork },
		"etcd in process": func(s *shared) *clientv3.Client { return s.inProcess },
	} {
		t.Run(name, func(t *testing.T) {
			s, err := sharedEtcd()
			require.NoError(t, err)
			kv := store.NewEtcd(client(s))
			defer kv.Close()
			test(t, backend{KV: kv, prefix: freshPrefix(), compact: func(t *testing.T, revision int64) {
				_, err := s.overNetwork.Compact(context.Background(), revision, clientv3.WithCompactPhysical())
				require.NoError(t, err)
			}})
		})
	}
}

func put(kv store.KV, key, value string) error {
	_, err := kv.Commit(context.Background(), store.Tx{Puts: []store.Put{{Key: key, Value: []byte(value)}}})
	return err
}

// commit commits what must succeed.
func commit(t *testing.T, kv store.KV, tx store.Tx) int64 {
	t.Helper()
	revision, err := kv.Commit(context.Background(), tx)
	require.NoError(t, err)
	return revision
}

func putTx(keysAndValues ...string) (tx store.Tx) {
	for i := 0; i < len(keysAndValues); i += 2 {
		tx.Puts = append(tx.Puts, store.Put{Key: keysAndValues[i], Value: []byte(keysAndValues[i+1])})
	}
	return tx
}

// next returns the next change, which must come.
func next(t *testing.T, changes <-chan store.Change) store.Change {
	t.Helper()
	select {
	case c, ok := <-changes:
		require.True(t, ok, "the watch has ended")
		return c
	case <-time.After(10 * time.Second):
		require.Fail(t, "no change came")
		return store.Change{}
	}
}

func requireClosed[T any](t *testing.T, changes <-chan T) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case _, ok := <-changes:
			if !ok {
				return
			}
		case <-deadline:
			require.Fail(t, "the channel was not closed")
		}
	}
}

func requireConflict(t *testing.T, err error, want store.Condition) {
	t.Helper()
	var c *store.Conflict
	require.ErrorAs(t, err, &c)
	require.Equal(t, want, c.Condition)
	require.True(t, problem.Is(err, problem.Conflict))
}

func TestGetAndList(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		ctx, p := context.Background(), kv.prefix
		_, err := kv.Get(ctx, p+"a")
		require.True(t, problem.Is(err, problem.NotFound), "%v", err)
		entries, before, err := kv.List(ctx, p)
		require.NoError(t, err)
		require.Empty(t, entries)
		require.Positive(t, before)

		r1 := commit(t, kv, putTx(p+"b", "1", p+"a", ""))
		require.Greater(t, r1, before)
		r2 := commit(t, kv, putTx(p+"b", "2"))
		require.Greater(t, r2, r1)
		commit(t, kv, putTx(p[:len(p)-1]+"0", "the key after the prefix"))

		e, err := kv.Get(ctx, p+"b")
		require.NoError(t, err)
		require.Equal(t, store.Entry{Key: p + "b", Value: []byte("2"), Revision: r2, Created: r1}, e)
		entries, at, err := kv.List(ctx, p)
		require.NoError(t, err)
		require.Equal(t, r2+1, at)
		require.Len(t, entries, 2)
		require.Equal(t, p+"a", entries[0].Key)
		require.Empty(t, entries[0].Value)
		require.Equal(t, e, entries[1])

		all, _, err := kv.List(ctx, "")
		require.NoError(t, err)
		require.GreaterOrEqual(t, len(all), 3)

		r4 := commit(t, kv, store.Tx{Deletes: []string{p + "b"}})
		require.Equal(t, r2+2, r4)
		_, err = kv.Get(ctx, p+"b")
		require.True(t, problem.Is(err, problem.NotFound), "%v", err)
		r5 := commit(t, kv, putTx(p+"b", "3"))
		e, err = kv.Get(ctx, p+"b")
		require.NoError(t, err)
		require.Equal(t, r5, e.Created, "it is a new one")
	})
}

func TestBuffersStayTheCallers(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		buffer := []byte("before")
		commit(t, kv, store.Tx{Puts: []store.Put{{Key: kv.prefix + "a", Value: buffer}}})
		copy(buffer, "AFTER!")
		e, err := kv.Get(context.Background(), kv.prefix+"a")
		require.NoError(t, err)
		require.Equal(t, "before", string(e.Value))
	})
}

func TestCommitThatChangesNothing(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		r := commit(t, kv, putTx(kv.prefix+"a", "1"))
		require.Equal(t, r, commit(t, kv, store.Tx{}))
		require.Equal(t, r, commit(t, kv, store.Tx{Deletes: []string{kv.prefix + "none"}}))
		require.Equal(t, r, commit(t, kv, store.Tx{Conditions: []store.Condition{{Key: kv.prefix + "a", Revision: r}}}))
		require.Equal(t, r+1, commit(t, kv, putTx(kv.prefix+"a", "1")), "writing the same again is a change")
	})
}

func TestConflictNamesTheCondition(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		ctx, p := context.Background(), kv.prefix
		r := commit(t, kv, putTx(p+"a", "1", p+"b/x", "1"))
		absent := store.Condition{Key: p + "none"}
		same := store.Condition{Key: p + "a", Revision: r}
		empty := store.Condition{Key: p + "c/", Prefix: true}
		for _, bad := range []store.Condition{
			{Key: p + "a"},                              // exists
			{Key: p + "a", Revision: r - 1},             // has changed
			{Key: p + "a", Revision: r + 1},             // not there yet
			{Key: p + "a", Revision: -1},                // never
			{Key: p + "none", Revision: r},              // is gone
			{Key: p + "b/", Prefix: true},               // has one below
			{Key: p + "b/x", Prefix: true},              // begins with itself
			{Key: p + "b/", Prefix: true, Revision: 17}, // the revision does not count
		} {
			_, err := kv.Commit(ctx, store.Tx{
				Conditions: []store.Condition{absent, same, empty, bad, {Key: p + "a"}},
				Puts:       putTx(p+"a", "2", p+"new", "2").Puts, Deletes: []string{p + "b/x"},
			})
			requireConflict(t, err, bad)
		}
		entries, at, err := kv.List(ctx, p)
		require.NoError(t, err)
		require.Equal(t, r, at, "nothing has happened")
		require.Len(t, entries, 2)

		commit(t, kv, store.Tx{Conditions: []store.Condition{absent, same, empty, {Key: p + "b/y", Prefix: true}}, Puts: putTx(p+"a", "2").Puts})
		_, err = kv.Commit(ctx, store.Tx{Conditions: []store.Condition{{Prefix: true}}})
		requireConflict(t, err, store.Condition{Prefix: true})
	})
}

func TestConditionsAreAboutTheStoreBefore(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		p := kv.prefix
		commit(t, kv, store.Tx{Conditions: []store.Condition{{Key: p, Prefix: true}, {Key: p + "a"}}, Puts: putTx(p+"a", "1").Puts})
		_, err := kv.Commit(context.Background(), store.Tx{Conditions: []store.Condition{{Key: p, Prefix: true}}, Deletes: []string{p + "a"}})
		requireConflict(t, err, store.Condition{Key: p, Prefix: true})
	})
}

func TestEachKeyIsWrittenOnce(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		ctx, p := context.Background(), kv.prefix
		first := commit(t, kv, putTx(p+"both", "0", p+"gone", "0"))
		tx := putTx(p+"twice", "1", p+"both", "1", p+"twice", "2")
		tx.Deletes = []string{p + "gone", p + "both", p + "gone"}
		r := commit(t, kv, tx)
		entries, _, err := kv.List(ctx, p)
		require.NoError(t, err)
		require.Equal(t, []store.Entry{
			{Key: p + "both", Value: []byte("1"), Revision: r, Created: first},
			{Key: p + "twice", Value: []byte("2"), Revision: r, Created: r},
		}, entries)
	})
}

func TestLimitsOfATransaction(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		ctx, p := context.Background(), kv.prefix
		var full store.Tx
		for n := range store.MaxOps {
			key := fmt.Sprintf("%s%d", p, n)
			full.Conditions = append(full.Conditions, store.Condition{Key: key})
			full.Puts = append(full.Puts, store.Put{Key: key})
		}
		commit(t, kv, full)
		_, err := kv.Commit(ctx, full)
		requireConflict(t, err, full.Conditions[0])
		full.Conditions = nil
		full.Deletes = []string{p + "more"}
		_, err = kv.Commit(ctx, full)
		require.True(t, problem.Is(err, problem.TooLarge), "%v", err)

		_, err = kv.Commit(ctx, putTx(p+"big", strings.Repeat("x", store.MaxBytes)))
		require.True(t, problem.Is(err, problem.TooLarge), "%v", err)
		commit(t, kv, putTx(p+"big", strings.Repeat("x", store.MaxBytes-1024)))
	})
}

func TestEmptyKeys(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		ctx := context.Background()
		_, err := kv.Get(ctx, "")
		require.True(t, problem.Is(err, problem.Invalid), "%v", err)
		for _, tx := range []store.Tx{putTx("", "1"), {Deletes: []string{""}}, {Conditions: []store.Condition{{}}}} {
			_, err := kv.Commit(ctx, tx)
			require.True(t, problem.Is(err, problem.Invalid), "%v", err)
		}
	})
}

func TestContextEnded(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		p := kv.prefix
		for kind, end := range map[problem.Kind]func(context.Context) (context.Context, context.CancelFunc){
			problem.Cancelled: func(ctx context.Context) (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancel(ctx)
				cancel()
				return ctx, cancel
			},
			problem.Timeout: func(ctx context.Context) (context.Context, context.CancelFunc) {
				return context.WithDeadline(ctx, time.Unix(1, 0))
			},
		} {
			ctx, cancel := end(context.Background())
			defer cancel()
			_, err := kv.Get(ctx, p+"a")
			require.True(t, problem.Is(err, kind), "%v", err)
			require.True(t, errors.Is(err, ctx.Err()))
			_, _, err = kv.List(ctx, p)
			require.True(t, problem.Is(err, kind), "%v", err)
			_, err = kv.Commit(ctx, putTx(p+"a", "1"))
			require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
			requireClosed(t, kv.Watch(ctx, p, 0))
		}
		entries, _, err := kv.List(context.Background(), p)
		require.NoError(t, err)
		require.Empty(t, entries)
	})
}

func TestWatch(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		p := kv.prefix
		r1 := commit(t, kv, putTx(p+"old", "1"))
		changes := kv.Watch(ctx, p, r1)
		// Keys given out of order come in order, as one commit; what is not below the prefix does not come.
		tx := putTx(p+"c", "1", p+"a", "1", "/other", "1", "/zzz", "1")
		tx.Deletes = []string{p + "old", p + "none", p + "b"}
		r2 := commit(t, kv, tx)
		r3 := commit(t, kv, putTx(p+"a", "2"))
		commit(t, kv, putTx("/other", "2"))
		r5 := commit(t, kv, store.Tx{Deletes: []string{p + "a"}})
		want := []store.Change{
			{Entry: store.Entry{Key: p + "a", Value: []byte("1"), Revision: r2, Created: r2}, More: true},
			{Entry: store.Entry{Key: p + "c", Value: []byte("1"), Revision: r2, Created: r2}, More: true},
			{Entry: store.Entry{Key: p + "old", Revision: r2}, Deleted: true},
			{Entry: store.Entry{Key: p + "a", Value: []byte("2"), Revision: r3, Created: r2}},
			{Entry: store.Entry{Key: p + "a", Revision: r5}, Deleted: true},
		}
		for _, w := range want {
			require.Equal(t, w, next(t, changes))
		}
		// From the middle, and from the past as well as from now.
		again := kv.Watch(ctx, p, r2)
		require.Equal(t, want[3], next(t, again))
		require.Equal(t, want[4], next(t, again))
		r6 := commit(t, kv, putTx(p+"z", "1"))
		require.Equal(t, r6, next(t, changes).Revision)
		require.Equal(t, r6, next(t, again).Revision)

		cancel()
		requireClosed(t, changes)
		requireClosed(t, again)
	})
}

func TestWatchFromTheBeginning(t *testing.T) {
	for _, since := range []int64{0, -5} {
		m := store.NewMemory() // an etcd of its own would be needed: others have compacted the shared one
		require.NoError(t, put(m, "a", "1"))
		ctx, cancel := context.WithCancel(context.Background())
		changes := m.Watch(ctx, "", since)
		require.Equal(t, int64(2), next(t, changes).Revision)
		cancel()
		requireClosed(t, changes)
	}
}

func TestWatchOfCompactedHistoryEnds(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		p := kv.prefix
		r1 := commit(t, kv, putTx(p+"a", "1"))
		live := kv.Watch(ctx, p, r1-1)
		require.Equal(t, r1, next(t, live).Revision)
		commit(t, kv, putTx(p+"a", "2"))
		r3 := commit(t, kv, putTx(p+"a", "3"))
		require.Equal(t, r1+1, next(t, live).Revision)
		require.Equal(t, r3, next(t, live).Revision)
		kv.compact(t, r3)
		requireClosed(t, kv.Watch(ctx, p, r1))

		entries, revision, err := kv.List(ctx, p)
		require.NoError(t, err)
		require.Len(t, entries, 1)
		fresh := kv.Watch(ctx, p, revision)
		r4 := commit(t, kv, putTx(p+"a", "4"))
		require.Equal(t, r4, next(t, fresh).Revision)
		require.Equal(t, r4, next(t, live).Revision, "who is up to date needs no history")
	})
}

func TestSlowWatcherMissesNothing(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		r := commit(t, kv, putTx(kv.prefix+"a", "0"))
		changes := kv.Watch(ctx, kv.prefix, r)
		for n := range 2000 {
			require.NoError(t, put(kv, kv.prefix+"a", strconv.Itoa(n)))
		}
		for n := range 2000 {
			require.Equal(t, strconv.Itoa(n), string(next(t, changes).Value))
		}
	})
}

func TestClose(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		ctx := context.Background()
		r := commit(t, kv, putTx(kv.prefix+"a", "1"))
		changes := kv.Watch(ctx, kv.prefix, r-1)
		require.Equal(t, r, next(t, changes).Revision)
		require.NoError(t, kv.Close())
		require.NoError(t, kv.Close())
		requireClosed(t, changes)
		requireClosed(t, kv.Watch(ctx, kv.prefix, r))
		_, err := kv.Get(ctx, kv.prefix+"a")
		require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
		_, _, err = kv.List(ctx, kv.prefix)
		require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
		_, err = kv.Commit(ctx, putTx(kv.prefix+"a", "2"))
		require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
	})
}

func TestOneOfManyCreatorsWins(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		for round := range 50 {
			key := kv.prefix + strconv.Itoa(round)
			var winners, losers atomic.Int32
			var winner atomic.Value
			parallel(50, func(n int) {
				_, err := kv.Commit(context.Background(), store.Tx{
					Conditions: []store.Condition{{Key: key}}, Puts: []store.Put{{Key: key, Value: []byte(strconv.Itoa(n))}},
				})
				var c *store.Conflict
				switch {
				case err == nil:
					winners.Add(1)
					winner.Store(strconv.Itoa(n))
				case errors.As(err, &c) && c.Condition.Key == key:
					losers.Add(1)
				default:
					t.Error(err)
				}
			})
			require.Equal(t, int32(1), winners.Load())
			require.Equal(t, int32(49), losers.Load())
			e, err := kv.Get(context.Background(), key)
			require.NoError(t, err)
			require.Equal(t, winner.Load(), string(e.Value))
		}
	})
}

func TestCounterLosesNothing(t *testing.T) {
	conform(t, func(t *testing.T, kv backend) {
		ctx, key := context.Background(), kv.prefix+"counter"
		commit(t, kv, putTx(key, "0"))
		parallel(20, func(int) {
			for added := 0; added < 10; {
				e, err := kv.Get(ctx, key)
				if err != nil {
					t.Error(err)
					return
				}
				n, _ := strconv.Atoi(string(e.Value))
				_, err = kv.Commit(ctx, store.Tx{
					Conditions: []store.Condition{{Key: key, Revision: e.Revision}}, Puts: putTx(key, strconv.Itoa(n+1)).Puts,
				})
				if err == nil {
					added++
				} else if !problem.Is(err, problem.Conflict) {
					t.Error(err)
					return
				}
			}
		})
		e, err := kv.Get(ctx, key)
		require.NoError(t, err)
		require.Equal(t, "200", string(e.Value))
	})
}

// parallel runs n copies of f at once and waits for them.
func parallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	wg.Wait()
}

func sameEntry(a, b store.Entry) bool {
	return a.Key == b.Key && bytes.Equal(a.Value, b.Value) && a.Revision == b.Revision && a.Created == b.Created
}
