package store

import (
	"cmp"
	"context"
	"slices"
	"sort"
	"strings"

	"github.com/nextstack/nextstack/api/problem"
)

const (
	// ringSize is how many recent changes a cache keeps: how far a subscriber may fall behind or be away.
	ringSize = 4096
	// batchSize is about how many changes a subscriber gets at once.
	batchSize = 256
)

// Subscription is one listener's stream of changes.
type Subscription struct {
	changes chan []Change
	err     error // set before changes is closed
}

// Changes returns the channel on which changes come, in order, whole commits at a time. It is closed when the subscription
// has ended; then Err tells why. The changes are shared with others and must not be changed.
func (s *Subscription) Changes() <-chan []Change { return s.changes }

// Err tells why Changes was closed: nil if the subscriber's context ended, a precondition problem if the subscriber is too
// far behind, and must list again, and an unavailable problem if the cache is closing. Before, it must not be called.
func (s *Subscription) Err() error { return s.err }

// Subscribe sends the changes after revision since (0: from now on) until ctx is done. A subscriber that is slow gets what
// it missed as long as the cache remembers it, and holds up nobody; after that, its subscription ends.
func (c *Cache) Subscribe(ctx context.Context, since int64) *Subscription {
	s := &Subscription{changes: make(chan []Change)}
	at := cursor{since: max(since, 0)}
	c.mu.Lock()
	if at.since == 0 {
		at.since = c.Revision()
	}
	err := c.ring.seek(&at) // now, for "from now on" to mean now
	c.mu.Unlock()
	go func() {
		defer close(s.changes)
		if s.err = err; err == nil {
			s.err = c.serve(ctx, &at, s.changes)
		}
	}()
	return s
}

// serve sends to out what the ring has and gets from at on.
func (c *Cache) serve(ctx context.Context, at *cursor, out chan<- []Change) error {
	for {
		c.mu.Lock()
		wake := c.wake
		batch, err := c.ring.read(at)
		if c.over {
			err = c.lag
		}
		c.mu.Unlock()
		if err != nil {
			return err
		}
		if len(batch) > 0 {
			select {
			case out <- batch:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// Changed returns the changes after revision since, up to the revision that is returned with them. It is for those who look now
// and then; who wants to be told subscribes. If the changes are no longer kept it is a precondition problem: list, and go on
// from the revision of the list.
func (c *Cache) Changed(since int64) (changes []Change, revision int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	revision = c.Revision()
	if since <= 0 || since > revision {
		return nil, 0, behind("revision %d is not one of this store", since)
	}
	for at := (cursor{since: since}); ; {
		batch, err := c.ring.read(&at)
		if err != nil || len(batch) == 0 {
			return changes, revision, err
		}
		changes = append(changes, batch...)
	}
}

// Since returns the changes after revision since, in order, and the revision to which they lead, for those who fold them into
// something of their own when they are asked rather than all the time. It fails with a precondition problem if the cache does
// not remember that far, and with an unavailable one while the cache may be behind the store.
func (c *Cache) Since(since int64) (changes []Change, revision int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	revision = c.Revision()
	switch {
	case c.lag != nil:
		return nil, revision, c.lag
	case since <= 0 || since > revision: // another store than before, or nothing known yet
		return nil, revision, behind("revision %d is not one that leads to revision %d", since, revision)
	}
	for at := (cursor{since: since}); ; {
		batch, err := c.ring.read(&at)
		if err != nil || len(batch) == 0 {
			return changes, revision, err
		}
		changes = append(changes, batch...)
	}
}

// ring holds the latest changes. Positions count all changes that ever were in it.
type ring struct {
	buf    []Change
	head   int   // position after the last change
	floor  int64 // changes up to this revision may be missing
	filled int   // how often it began anew; 0: it never did, and nothing can be read
}

// cursor is where a reader of the ring is.
type cursor struct {
	since  int64 // revision from which it starts
	next   int   // position it reads next
	filled int   // of the ring when it started; 0: it has not started
}

// reset empties the ring; what comes next are the changes after revision.
func (r *ring) reset(revision int64) {
	if r.buf == nil {
		r.buf = make([]Change, 0, ringSize)
	}
	r.buf, r.head, r.floor = r.buf[:0], 0, revision
	r.filled++
}

func (r *ring) add(change Change) {
	if len(r.buf) < cap(r.buf) {
		r.buf = append(r.buf, change)
	} else {
		slot := &r.buf[r.head%len(r.buf)]
		r.floor, *slot = slot.Revision, change
	}
	r.head++
}

// first returns the position of the oldest change that is still there.
func (r *ring) first() int { return r.head - len(r.buf) }

func (r *ring) at(position int) Change { return r.buf[position%len(r.buf)] }

// seek moves c to where it starts, if it has not started and the ring has.
func (r *ring) seek(c *cursor) error {
	if r.filled == 0 || c.filled != 0 {
		return nil
	}
	if c.since == 0 { // it was there before anything else was
		c.since = r.floor
	}
	if c.since < r.floor {
		return behind("the changes after revision %d are no longer kept", c.since)
	}
	c.filled = r.filled
	c.next = r.first() + sort.Search(len(r.buf), func(i int) bool { return r.at(r.first()+i).Revision > c.since })
	return nil
}

// read returns what is next for the reader at c, in whole commits, and moves c behind it. It returns nothing if there is
// nothing new, and a problem if the reader has missed something.
func (r *ring) read(c *cursor) ([]Change, error) {
	if err := r.seek(c); err != nil || c.filled == 0 {
		return nil, err
	}
	if c.filled != r.filled {
		return nil, behind("the store was replaced by another state of it")
	}
	if c.next < r.first() {
		return nil, behind("the subscriber was too slow")
	}
	for c.next < r.head && r.at(c.next).Revision <= c.since {
		c.next++ // it knows more than this cache did when it came
	}
	end := min(c.next+batchSize, r.head)
	for end < r.head && r.at(end-1).More {
		end++
	}
	if c.next == end {
		return nil, nil
	}
	batch := make([]Change, 0, end-c.next)
	for ; c.next < end; c.next++ {
		batch = append(batch, r.at(c.next))
	}
	return batch, nil
}

func behind(why string, args ...any) error {
	return problem.New(problem.Precondition, "the changes cannot be told from there").Because(why, args...).
		Try("list again and follow the changes from the revision of the list")
}

// sortChanges puts changes into the order of their revisions, and of their keys within one.
func sortChanges(changes []Change) {
	slices.SortFunc(changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), strings.Compare(a.Key, b.Key))
	})
}
