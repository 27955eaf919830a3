package state

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// catchUp is how long a view may take to show what the store has, before the store is asked itself.
const catchUp = 2 * time.Second

// view is a roster that follows a cache of the store. It is brought up to date when it is asked: nothing runs meanwhile, and
// many changes between two questions cost no more than they have to.
//
// The cache shows whole commits, and a claim is written in one commit with its ledger: so the claims that a world was summed
// up from are all that there were at the revision of the ledger that comes with them, and a commit on that revision is safe.
type view struct {
	cache *store.Cache

	mu     sync.Mutex
	at     int64 // revision up to which the roster is
	roster *roster
}

// world returns what the cache shows. It fails if the cache does not follow the store.
func (v *view) world() (*world, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	changes, revision, err := v.cache.Since(v.at)
	switch {
	case problem.Is(err, problem.Precondition):
		err = v.load()
	case err == nil:
		if err = v.apply(changes); err == nil {
			v.at = revision
		}
	}
	if err != nil {
		v.at = 0 // half a change may have been taken in
		return nil, err
	}
	return v.roster.world(), nil
}

// agentsRoot and poolsRoot are the prefixes of the records that make nodes.
var (
	agentsRoot = store.KindPrefix(api.KindAgent)
	poolsRoot  = store.KindPrefix(api.KindPool)
)

// load builds the roster anew, from one state of the cache.
func (v *view) load() error {
	r := newRoster()
	var items []*store.Item
	var revision int64
	// Each list is of a state of its own. The first one counts: what came after it is applied once more, and twice is once.
	for i, prefix := range []string{ledgersRoot, poolsRoot, agentsRoot, store.NodesRoot} {
		found, _, at := v.cache.List(prefix, "", 0, nil)
		if i == 0 {
			revision = at
		}
		items = append(items, found...)
	}
	v.roster = r
	for _, item := range items {
		if err := v.take(store.Change{Entry: item.Entry}, item); err != nil {
			return err
		}
	}
	v.at = revision
	changes, revision, err := v.cache.Since(revision)
	if err != nil {
		return problem.Wrap(err, problem.Unavailable, "the nodes cannot be followed")
	}
	if err := v.apply(changes); err != nil {
		return err
	}
	v.at = revision
	return nil
}

func (v *view) apply(changes []store.Change) error {
	for _, c := range changes {
		var item *store.Item
		if !c.Deleted && (strings.HasPrefix(c.Key, agentsRoot) || strings.HasPrefix(c.Key, poolsRoot)) {
			var there bool
			if item, there = v.cache.Get(c.Key); !there {
				c.Deleted = true // by a later change
			}
		}
		if err := v.take(c, item); err != nil {
			return err
		}
	}
	return nil
}

// take takes in one change; item is its record, decoded once for all who want it.
func (v *view) take(c store.Change, item *store.Item) error {
	if ours, err := v.roster.promise(c.Entry, c.Deleted); ours || err != nil {
		return err
	}
	id := c.Key[strings.LastIndexByte(c.Key, '/')+1:]
	switch {
	case strings.HasPrefix(c.Key, agentsRoot) && c.Deleted:
		v.roster.dropAgent(id)
	case strings.HasPrefix(c.Key, agentsRoot):
		a, err := store.Decoded[api.Agent](item)
		if err != nil {
			return err
		}
		v.roster.setAgent(a)
	case strings.HasPrefix(c.Key, poolsRoot) && c.Deleted:
		v.roster.setPool(id, nil)
	case strings.HasPrefix(c.Key, poolsRoot):
		p, err := store.Decoded[api.Pool](item)
		if err != nil {
			return err
		}
		v.roster.setPool(id, p)
	}
	return nil
}

// world returns what placement decides on: from the view, or, if that cannot follow the store, from the store.
func (s *State) world(ctx context.Context) (*world, error) {
	if s.view != nil {
		if w, err := s.view.world(); err == nil {
			return w, nil
		}
	}
	return s.readWorld(ctx)
}

// readWorld reads it all. The ledgers are read first: a claim that comes between the reads makes the commit fail, never succeed
// wrongly.
func (s *State) readWorld(ctx context.Context) (*world, error) {
	r := newRoster()
	for _, prefix := range []string{ledgersRoot, store.NodesRoot} {
		entries, _, err := s.kv.List(ctx, prefix)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if _, err := r.promise(e, false); err != nil {
				return nil, err
			}
		}
	}
	pools, err := store.List[api.Pool](ctx, s.kv, s.h, "")
	if err != nil {
		return nil, err
	}
	for _, p := range pools {
		r.setPool(p.ID, p)
	}
	agents, err := store.List[api.Agent](ctx, s.kv, s.h, "")
	if err != nil {
		return nil, err
	}
	for _, a := range agents {
		r.setAgent(a)
	}
	return r.world(), nil
}

// retry is store.Retry for what is decided on a view: a lost race means that the view is behind, so it waits for it to show
// what the race was lost to, and does not lose it again to the same.
func (s *State) retry(ctx context.Context, change func() error) error {
	return store.Retry(ctx, func() error {
		err := change()
		var lost *store.Conflict
		if s.view != nil && errors.As(err, &lost) && !lost.Condition.Prefix {
			s.await(ctx, lost.Condition.Key)
		}
		return err
	})
}

// await waits until the view shows what the store has at key now. A view that does not is left alone after a while: the next
// attempt then loses the race again, or reads the store.
func (s *State) await(ctx context.Context, key string) {
	ctx, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	if e, err := s.kv.Get(ctx, key); err == nil {
		_ = s.view.cache.WaitFor(ctx, e.Revision)
	}
}
