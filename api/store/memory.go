package store

import (
	"bytes"
	"context"
	"sort"
	"strings"
	"sync"

	"github.com/tidwall/btree"

	"github.com/nextstack/nextstack/api/problem"
)

// memoryHistory is how many changes a Memory remembers for watchers before it forgets the older half.
const memoryHistory = 1 << 17

// Memory is the in-memory twin of the etcd store, for tests and simulations: the same revisions, conflicts and watches, and
// nothing survives it. Make one with NewMemory.
type Memory struct {
	mu        sync.RWMutex
	entries   btree.Map[string, Entry]
	revision  int64
	log       []Change // in order; holds every change since revision compacted
	compacted int64
	wake      chan struct{} // closed and replaced whenever watchers have something to look at
	closed    bool
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{revision: 1, wake: make(chan struct{})} }

// Get implements KV.
func (m *Memory) Get(ctx context.Context, key string) (Entry, error) {
	if err := checkKey(key); err != nil {
		return Entry{}, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.readable(ctx); err != nil {
		return Entry{}, err
	}
	e, ok := m.entries.Get(key)
	if !ok {
		return Entry{}, notFound(key)
	}
	return e, nil
}

// List implements KV.
func (m *Memory) List(ctx context.Context, prefix string) ([]Entry, int64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := m.readable(ctx); err != nil {
		return nil, 0, err
	}
	var out []Entry
	m.entries.Ascend(prefix, func(key string, e Entry) bool {
		if !strings.HasPrefix(key, prefix) {
			return false
		}
		out = append(out, e)
		return true
	})
	return out, m.revision, nil
}

func (m *Memory) readable(ctx context.Context) error {
	if err := readEnded(ctx); err != nil {
		return err
	}
	if m.closed {
		return storeClosed()
	}
	return nil
}

func storeClosed() error { return problem.New(problem.Unavailable, "the store is closed") }

// Commit implements KV.
func (m *Memory) Commit(ctx context.Context, tx Tx) (int64, error) {
	writes, err := tx.writes()
	if err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, unknownOutcome(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return 0, storeClosed()
	}
	for _, c := range tx.Conditions {
		if !c.holds(m.revisionOf(c)) {
			return 0, &Conflict{Condition: c}
		}
	}
	m.apply(writes)
	return m.revision, nil
}

// revisionOf returns the revision of the key, or of the first key of the prefix, that c is about; 0: there is none.
func (m *Memory) revisionOf(c Condition) (revision int64) {
	if !c.Prefix {
		e, _ := m.entries.Get(c.Key)
		return e.Revision
	}
	m.entries.Ascend(c.Key, func(key string, e Entry) bool {
		if strings.HasPrefix(key, c.Key) {
			revision = e.Revision
		}
		return false
	})
	return revision
}

func (m *Memory) apply(writes []write) {
	revision, before := m.revision+1, len(m.log)
	for _, w := range writes {
		if w.delete {
			if _, had := m.entries.Delete(w.key); had {
				m.log = append(m.log, Change{Entry: Entry{Key: w.key, Revision: revision}, Deleted: true, More: true})
			}
			continue
		}
		// A copy, because the caller may use its buffer again.
		e := Entry{Key: w.key, Value: bytes.Clone(w.value), Revision: revision, Created: revision}
		if old, had := m.entries.Get(w.key); had {
			e.Created = old.Created
		}
		m.entries.Set(w.key, e)
		m.log = append(m.log, Change{Entry: e, More: true})
	}
	if len(m.log) == before {
		return
	}
	m.log[len(m.log)-1].More = false
	m.revision = revision
	if len(m.log) > memoryHistory {
		m.forget(m.log[len(m.log)/2].Revision)
	}
	m.notify()
}

// Compact forgets the changes before revision: watches that still need them end.
func (m *Memory) Compact(revision int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(min(revision, m.revision))
	m.notify()
}

func (m *Memory) forget(before int64) {
	if before > m.compacted {
		m.compacted = before
		m.log = append([]Change(nil), m.log[m.after(before-1):]...)
	}
}

// after returns the index of the first change that came after revision.
func (m *Memory) after(revision int64) int {
	return sort.Search(len(m.log), func(i int) bool { return m.log[i].Revision > revision })
}

func (m *Memory) notify() {
	close(m.wake)
	m.wake = make(chan struct{})
}

// Watch implements KV.
func (m *Memory) Watch(ctx context.Context, prefix string, since int64) <-chan Change {
	out := make(chan Change)
	go func() {
		defer close(out)
		for {
			changes, seen, wake := m.changes(prefix, since)
			if wake == nil {
				return
			}
			for _, c := range changes {
				select {
				case out <- c:
				case <-ctx.Done():
					return
				}
			}
			since = seen
			select {
			case <-wake:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// changes returns what happened below prefix after revision since, the revision up to which that is all, and a channel that
// is closed when there may be more; a nil channel: no one can tell any more.
func (m *Memory) changes(prefix string, since int64) (changes []Change, seen int64, wake <-chan struct{}) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	since = max(since, 0)
	if m.closed || since+1 < m.compacted {
		return nil, 0, nil
	}
	for _, c := range m.log[m.after(since):] {
		if strings.HasPrefix(c.Key, prefix) {
			changes = append(changes, c)
		}
	}
	markCommits(changes)
	return changes, max(since, m.revision), m.wake
}

// markCommits sets More on changes, which are whole commits, some of whose changes may have been filtered out.
func markCommits(changes []Change) {
	for i := range changes {
		changes[i].More = i+1 < len(changes) && changes[i+1].Revision == changes[i].Revision
	}
}

// Close implements KV.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.closed = true
		m.notify()
	}
	return nil
}
