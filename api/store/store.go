// Package store keeps resources at rest. Below is a small key-value interface with two implementations, etcd and an
// in-memory twin, that pass one conformance suite; above it are typed records, which nobody can reach without an
// authorised handle from api/auth.
package store

import (
	"context"

	"github.com/nextstack/nextstack/api/problem"
)

// KV is a key-value store with revisions, transactions and watches. Revisions count the changes of the whole store: every
// commit has one of its own, higher than all before.
type KV interface {
	// Get returns the entry at key, or a not_found problem.
	Get(ctx context.Context, key string) (Entry, error)
	// List returns the entries whose keys begin with prefix, in key order, and the revision they were read at.
	List(ctx context.Context, prefix string) (entries []Entry, revision int64, err error)
	// Commit carries out all of tx or, if one of its conditions does not hold, nothing; then it returns a *Conflict.
	Commit(ctx context.Context, tx Tx) (revision int64, err error)
	// Watch sends every change below prefix that came after revision since, in order, until ctx is done or the store can
	// no longer tell (the events are compacted): then the channel is closed, and the caller lists again.
	Watch(ctx context.Context, prefix string, since int64) <-chan Change
	// Close frees what the store holds. It does not close clients that were given to it.
	Close() error
}

// Entry is a key and what is stored there.
type Entry struct {
	Key      string
	Value    []byte
	Revision int64 // of the commit that last wrote it
	Created  int64 // revision of the commit that made it
}

// Change is one write, as a watcher sees it.
type Change struct {
	Entry
	Deleted bool // then Value is empty
}

// Tx is a set of conditions and writes.
type Tx struct {
	Conditions []Condition
	Puts       []Put
	Deletes    []string
}

// Put writes a value.
type Put struct {
	Key   string
	Value []byte
}

// Condition must hold for a transaction to happen.
type Condition struct {
	Key      string
	Prefix   bool  // true: no key may begin with Key, whatever Revision says
	Revision int64 // the key's revision must be this; 0: the key must not exist
}

// Conflict says which condition of a transaction did not hold.
type Conflict struct {
	Condition Condition
}

// Error implements error.
func (c *Conflict) Error() string {
	switch {
	case c.Condition.Prefix:
		return "there are keys below " + c.Condition.Key
	case c.Condition.Revision == 0:
		return c.Condition.Key + " exists already"
	default:
		return c.Condition.Key + " has changed"
	}
}

// As makes a Conflict a problem of kind conflict for those who do not care which key it was.
func (c *Conflict) As(target any) bool {
	p, ok := target.(**problem.Problem)
	if ok {
		*p = problem.New(problem.Conflict, "somebody else was faster").Because("%s", c.Error()).Try("read it again and repeat")
	}
	return ok
}
