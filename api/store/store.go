// Package store keeps resources at rest. Below is a small key-value interface with two implementations, etcd and an
// in-memory twin, that pass one conformance suite; above it are typed records, which nobody can reach without an
// authorised handle from api/auth.
package store

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api/problem"
)

// KV is a key-value store with revisions, transactions and watches. Revisions count the changes of the whole store: every
// commit that changes something has one of its own, higher than all before; an empty store is at revision 1.
//
// Errors are problems: invalid for an empty key, not_found, too_large for a transaction above the limits, timeout or
// cancelled for a read whose context ended, unavailable when the store cannot be reached.
type KV interface {
	// Get returns the entry at key as it is after every commit that has returned, or a not_found problem.
	Get(ctx context.Context, key string) (Entry, error)
	// List returns the entries whose keys begin with prefix, in key order, and the revision at which all of them were read.
	List(ctx context.Context, prefix string) (entries []Entry, revision int64, err error)
	// Commit carries out all of tx or, if one of its conditions does not hold, nothing; then it returns a *Conflict with
	// the first condition that did not hold. A commit that changes nothing returns the revision the store is at.
	//
	// An unavailable problem means that nobody knows whether it happened: the caller reads, or repeats a transaction whose
	// conditions make it harmless to do twice.
	Commit(ctx context.Context, tx Tx) (revision int64, err error)
	// Watch sends every change below prefix that came after revision since, in order, until ctx is done, the store is
	// closed or it can no longer tell (the events are compacted): then the channel is closed, and the caller lists again.
	Watch(ctx context.Context, prefix string, since int64) <-chan Change
	// Close ends all watches and frees what the store holds. It does not close clients that were given to it.
	Close() error
}

// Entry is a key and what is stored there. Its value may be shared with others and must not be changed.
type Entry struct {
	Key      string
	Value    []byte
	Revision int64 // of the commit that last wrote it
	Created  int64 // revision of the commit that made it
}

// Change is one write, as a watcher sees it. The changes of one commit come in key order.
type Change struct {
	Entry
	Deleted bool // then Value is empty, and Revision is that of the commit that deleted it
	More    bool // the next change is of the same commit
}

// Limits of a transaction. An etcd that is used for NextStack must allow MaxOps operations (--max-txn-ops; its default is
// 128) and MaxBytes in a request (its default of 1.5 MiB does).
const (
	MaxOps   = 1024    // conditions, and keys written
	MaxBytes = 1 << 20 // all keys and values together
)

// Tx is a set of conditions and writes. Conditions are about the store as it was before. Each key is written once: of
// several puts the last one counts, and a put counts more than a delete.
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

// holds tells whether c holds where the key, or the first key of the prefix, has this revision; 0: there is none.
func (c Condition) holds(revision int64) bool {
	if c.Prefix {
		return revision == 0
	}
	return revision == c.Revision
}

// write is what a transaction does to one key.
type write struct {
	key    string
	value  []byte
	delete bool
}

// writes checks tx and returns what it does to each key, in key order.
func (tx Tx) writes() ([]write, error) {
	byKey := make(map[string]write, len(tx.Puts)+len(tx.Deletes))
	for _, key := range tx.Deletes {
		byKey[key] = write{key: key, delete: true}
	}
	for _, p := range tx.Puts {
		byKey[p.Key] = write{key: p.Key, value: p.Value}
	}
	out := slices.SortedFunc(maps.Values(byKey), func(a, b write) int { return strings.Compare(a.key, b.key) })
	size := 0
	for _, w := range out {
		if err := checkKey(w.key); err != nil {
			return nil, err
		}
		size += len(w.key) + len(w.value)
	}
	for _, c := range tx.Conditions {
		if err := checkKey(c.Key); err != nil && !c.Prefix {
			return nil, err
		}
		size += len(c.Key)
	}
	if n := max(len(tx.Conditions), len(out)); n > MaxOps {
		return nil, tooLarge("it has %d conditions or writes, and %d are allowed", n, MaxOps)
	}
	if size > MaxBytes {
		return nil, tooLarge("it is %d bytes, and %d are allowed", size, MaxBytes)
	}
	return out, nil
}

func tooLarge(why string, args ...any) error {
	return problem.New(problem.TooLarge, "the change is too large for one transaction").Because(why, args...).Try("change less at a time")
}

func checkKey(key string) error {
	if key == "" {
		return problem.New(problem.Invalid, "a key of the store cannot be empty").Try("report this as a bug")
	}
	return nil
}

func notFound(key string) error { return problem.New(problem.NotFound, "there is nothing at %s", key) }

// readEnded returns the problem of a read whose context is done, or nil.
func readEnded(ctx context.Context) error {
	switch err := ctx.Err(); {
	case errors.Is(err, context.DeadlineExceeded):
		return problem.Wrap(err, problem.Timeout, "the store took too long")
	default:
		return problem.Wrap(err, problem.Cancelled, "reading the store was given up")
	}
}

// unknownOutcome returns the problem of a commit of which nobody knows whether it happened.
func unknownOutcome(err error) error {
	return problem.Wrap(err, problem.Unavailable, "the store did not say whether the change was made")
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
