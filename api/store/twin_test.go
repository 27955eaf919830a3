package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/nextstack/nextstack/api/store"
)

// side is one of the two stores that are compared, whose prefixes and revisions are taken off what they say.
type side struct {
	kv      store.KV
	prefix  string
	base    int64 // revision at the start
	changes <-chan store.Change
}

func (s *side) entry(e store.Entry) store.Entry {
	e.Key = strings.TrimPrefix(e.Key, s.prefix)
	e.Revision -= s.base
	if e.Created != 0 {
		e.Created -= s.base
	}
	return e
}

// outcome is all that can be seen of a transaction.
type outcome struct {
	revision int64
	conflict string
}

func (s *side) commit(t *rapid.T, tx store.Tx) outcome {
	mine := store.Tx{}
	for _, c := range tx.Conditions {
		c.Key = s.prefix + c.Key
		if c.Revision != 0 {
			c.Revision += s.base
		}
		mine.Conditions = append(mine.Conditions, c)
	}
	for _, p := range tx.Puts {
		mine.Puts = append(mine.Puts, store.Put{Key: s.prefix + p.Key, Value: p.Value})
	}
	for _, d := range tx.Deletes {
		mine.Deletes = append(mine.Deletes, s.prefix+d)
	}
	revision, err := s.kv.Commit(context.Background(), mine)
	if err == nil {
		return outcome{revision: revision - s.base}
	}
	var c *store.Conflict
	if !errors.As(err, &c) {
		t.Fatalf("commit: %v", err)
	}
	c.Condition.Key = strings.TrimPrefix(c.Condition.Key, s.prefix)
	if c.Condition.Revision != 0 {
		c.Condition.Revision -= s.base
	}
	return outcome{conflict: fmt.Sprintf("%+v", c.Condition)}
}

func (s *side) list(t *rapid.T) (out []store.Entry, revision int64) {
	entries, revision, err := s.kv.List(context.Background(), s.prefix)
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	for _, e := range entries {
		got, err := s.kv.Get(context.Background(), e.Key)
		if err != nil || !sameEntry(got, e) {
			t.Fatalf("get %s: %+v, %v; list says %+v", e.Key, got, err, e)
		}
		out = append(out, s.entry(e))
	}
	return out, revision - s.base
}

func (s *side) next(t *rapid.T) store.Change {
	select {
	case c, ok := <-s.changes:
		if !ok {
			t.Fatalf("the watch has ended")
		}
		c.Entry = s.entry(c.Entry)
		return c
	case <-time.After(10 * time.Second):
		t.Fatalf("a change is missing")
		return store.Change{}
	}
}

func drawTx(t *rapid.T, revision int64) store.Tx {
	key := rapid.SampledFrom([]string{"a", "a/", "a/b", "a/c", "b", "b/\x00", "b/\xff", "c"})
	return store.Tx{
		Conditions: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) store.Condition {
			return store.Condition{
				Key:      key.Draw(t, "key"),
				Prefix:   rapid.IntRange(0, 3).Draw(t, "prefix") == 0,
				Revision: rapid.OneOf(rapid.Just[int64](0), rapid.Int64Range(max(0, revision-4), revision+1)).Draw(t, "revision"),
			}
		}), 0, 3).Draw(t, "conditions"),
		Puts: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) store.Put {
			return store.Put{Key: key.Draw(t, "key"), Value: []byte(rapid.StringN(0, 3, -1).Draw(t, "value"))}
		}), 0, 4).Draw(t, "puts"),
		Deletes: rapid.SliceOfN(key, 0, 3).Draw(t, "deletes"),
	}
}

// TestMemoryIsTheTwinOfEtcd does the same random transactions on both and compares all that can be seen of them: outcome,
// contents, and what watchers are told, both those that were there and those that come later.
func TestMemoryIsTheTwinOfEtcd(t *testing.T) {
	s, err := sharedEtcd()
	require.NoError(t, err)
	etcd := store.NewEtcd(s.overNetwork)
	store.SetPage(etcd, 2)
	rapid.Check(t, func(t *rapid.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		sides := []*side{{kv: etcd, prefix: freshPrefix()}, {kv: store.NewMemory(), prefix: freshPrefix()}}
		for _, s := range sides {
			_, revision, err := s.kv.List(ctx, s.prefix)
			if err != nil {
				t.Fatal(err)
			}
			s.base = revision
			s.changes = s.kv.Watch(ctx, s.prefix, revision)
		}
		var history []store.Change
		for range rapid.IntRange(1, 20).Draw(t, "transactions") {
			_, revision := sides[0].list(t)
			tx := drawTx(t, revision)
			a, b := sides[0].commit(t, tx), sides[1].commit(t, tx)
			if a != b {
				t.Fatalf("%+v: etcd says %+v, memory %+v", tx, a, b)
			}
			contentsA, atA := sides[0].list(t)
			contentsB, atB := sides[1].list(t)
			if atA != atB || len(contentsA) != len(contentsB) {
				t.Fatalf("after %+v: etcd has %+v at %d, memory %+v at %d", tx, contentsA, atA, contentsB, atB)
			}
			for i := range contentsA {
				if !sameEntry(contentsA[i], contentsB[i]) {
					t.Fatalf("after %+v: etcd has %+v, memory %+v", tx, contentsA[i], contentsB[i])
				}
			}
			if atA == revision {
				continue
			}
			for more := true; more; {
				x, y := sides[0].next(t), sides[1].next(t)
				if !sameEntry(x.Entry, y.Entry) || x.Deleted != y.Deleted || x.More != y.More || x.Revision != atA {
					t.Fatalf("after %+v: etcd tells %+v, memory %+v", tx, x, y)
				}
				history, more = append(history, x), x.More
			}
		}
		since := rapid.IntRange(0, len(history)).Draw(t, "since")
		for _, s := range sides {
			revision := int64(0)
			if since > 0 {
				revision = history[since-1].Revision
			}
			s.changes = s.kv.Watch(ctx, s.prefix, s.base+revision)
			for _, want := range history {
				if want.Revision <= revision {
					continue
				}
				got := s.next(t)
				if !sameEntry(got.Entry, want.Entry) || got.Deleted != want.Deleted || got.More != want.More {
					t.Fatalf("a later watch tells %+v, not %+v", got, want)
				}
			}
		}
	})
}
