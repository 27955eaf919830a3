package store

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/btree"

	"github.com/nextstack/nextstack/api/problem"
)

const (
	cacheWaitMin = 50 * time.Millisecond
	cacheWaitMax = 5 * time.Second
)

// Cache holds a copy of all entries below a prefix and follows their changes, so that many can read and listen without
// asking the store. What it says is true of some revision, lately the last; who has just written waits for that revision
// with WaitFor. Readers never wait for one another or for the changes that come in.
type Cache struct {
	kv     KV
	prefix string
	seen   atomic.Pointer[snapshot]

	mu   sync.Mutex
	tree *btree.Map[string, *Item] // only Run touches it; snapshots are its copies
	ring ring
	wake chan struct{} // closed and replaced with every snapshot
	lag  error         // why the copy may be behind
	over bool          // Run has returned
}

// snapshot is the state at one revision. It never changes; its tree shares with later ones what stayed the same.
type snapshot struct {
	tree     *btree.Map[string, *Item]
	revision int64
}

// Item is an entry in the cache. It is shared by all readers and must not be changed.
type Item struct {
	Entry
	memo atomic.Pointer[any] // the decoded resource, once somebody wanted it
}

// Decoded returns the resource stored in i. It is decoded once and shared by all readers: who wants to change it makes a copy.
func Decoded[T any, P resource[T]](i *Item) (*T, error) {
	if memo := i.memo.Load(); memo != nil {
		if r, ok := (*memo).(*T); ok {
			return r, nil
		}
	}
	var r T
	if err := Decode(i.Entry, P(&r)); err != nil {
		return nil, err
	}
	memo := any(&r)
	i.memo.Store(&memo)
	return &r, nil
}

// NewCache returns a cache of what is below prefix in kv. It is empty, at revision 0, until Run has listed it.
func NewCache(kv KV, prefix string) *Cache {
	c := &Cache{
		kv: kv, prefix: prefix, tree: new(btree.Map[string, *Item]), wake: make(chan struct{}),
		lag: problem.New(problem.Unavailable, "the cache has not been filled yet").Try("try again in a moment"),
	}
	c.seen.Store(&snapshot{tree: c.tree.Copy()})
	return c
}

// Run fills the cache and follows the store until ctx is done, however often the store goes away. Call it once. When it
// returns, all subscriptions end.
func (c *Cache) Run(ctx context.Context) {
	defer c.stop()
	wait := cacheWaitMin
	for {
		entries, revision, err := c.kv.List(ctx, c.prefix)
		if err == nil {
			c.replace(entries, revision)
			if c.follow(ctx, revision) {
				wait = cacheWaitMin
			}
			err = problem.New(problem.Unavailable, "the changes of the store could not be followed").Try("try again in a moment")
		}
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		c.lag = err
		c.mu.Unlock()
		if !sleep(ctx, wait) {
			return
		}
		wait = min(2*wait, cacheWaitMax)
	}
}

func (c *Cache) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	c.lag = problem.New(problem.Unavailable, "the cache is closed")
	c.notify()
}

// follow applies changes as long as they come, and reports whether any did.
func (c *Cache) follow(ctx context.Context, since int64) (moved bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var commit []Change
	for change := range c.kv.Watch(ctx, c.prefix, since) {
		commit = append(commit, change)
		if change.More {
			continue
		}
		c.apply(commit)
		commit, moved = nil, true
	}
	return moved
}

// apply makes the state after one commit visible: readers see all of it or nothing.
func (c *Cache) apply(commit []Change) {
	for _, change := range commit {
		if change.Deleted {
			c.tree.Delete(change.Key)
		} else {
			c.tree.Set(change.Key, &Item{Entry: change.Entry})
		}
	}
	c.publish(commit, commit[len(commit)-1].Revision)
}

// replace makes the result of a list visible. Subscribers get the difference to what they know: of several changes of a
// key the last one, which is all that anybody who follows the state needs.
func (c *Cache) replace(entries []Entry, revision int64) {
	old := c.seen.Load()
	tree := new(btree.Map[string, *Item])
	var changes []Change
	for _, e := range entries {
		item, had := old.tree.Get(e.Key)
		if !had || item.Revision != e.Revision || item.Created != e.Created {
			item = &Item{Entry: e}
			changes = append(changes, Change{Entry: e})
		}
		tree.Load(e.Key, item)
	}
	old.tree.Scan(func(key string, _ *Item) bool {
		if _, still := tree.Get(key); !still {
			changes = append(changes, Change{Entry: Entry{Key: key, Revision: revision}, Deleted: true})
		}
		return true
	})
	c.tree = tree
	if old.revision == 0 || revision < old.revision {
		// The first list, or another store than before (one that was restored from a backup): nothing leads here from
		// what subscribers know.
		c.mu.Lock()
		c.ring.reset(revision)
		c.mu.Unlock()
		changes = nil
	}
	sortChanges(changes)
	markCommits(changes)
	c.publish(changes, revision)
}

func (c *Cache) publish(changes []Change, revision int64) {
	snap := &snapshot{tree: c.tree.Copy(), revision: revision}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, change := range changes {
		c.ring.add(change)
	}
	c.lag = nil
	c.seen.Store(snap)
	c.notify()
}

func (c *Cache) notify() {
	close(c.wake)
	c.wake = make(chan struct{})
}

// Err tells why the cache may be behind the store: nil while it follows, an unavailable problem while it does not.
func (c *Cache) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lag
}

// Revision returns the revision that the cache shows, 0 before it was filled.
func (c *Cache) Revision() int64 { return c.seen.Load().revision }

// WaitFor waits until the cache shows revision, which must be that of a commit below its prefix or of a list: so a writer
// reads its own writes. WaitFor(ctx, 1) waits until the cache is filled. It fails only when ctx ends, or Run has.
func (c *Cache) WaitFor(ctx context.Context, revision int64) error {
	for c.Revision() < revision {
		c.mu.Lock()
		wake, over := c.wake, c.over
		c.mu.Unlock()
		if c.Revision() >= revision {
			return nil
		}
		if over {
			return c.Err()
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return problem.Wrap(ctx.Err(), problem.Timeout, "the cache did not come to revision %d, it is at %d", revision, c.Revision())
		}
	}
	return nil
}

// Get returns the item at key.
func (c *Cache) Get(key string) (*Item, bool) { return c.seen.Load().tree.Get(key) }

// List returns up to limit items whose keys begin with prefix and come after the key after (empty: from the first), in key
// order, and that keep wants (nil: all); limit 0 means no limit. More tells whether there are others behind them, and
// revision which state of the store it is.
func (c *Cache) List(prefix, after string, limit int, keep func(*Item) bool) (items []*Item, more bool, revision int64) {
	snap := c.seen.Load()
	if limit > 0 {
		items = make([]*Item, 0, min(limit, 1000, snap.tree.Len()))
	}
	snap.tree.Ascend(max(prefix, after), func(key string, item *Item) bool {
		switch {
		case !strings.HasPrefix(key, prefix):
			return false
		case after != "" && key <= after, keep != nil && !keep(item):
			return true
		case limit > 0 && len(items) == limit:
			more = true
			return false
		}
		items = append(items, item)
		return true
	})
	return items, more, snap.revision
}
