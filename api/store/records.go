package store

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
)

// resource is satisfied by *T for every resource type T: it lets callers write Get[api.VM].
type resource[T any] interface {
	*T
	api.Resource
}

// Get returns the resource with this ID.
func Get[T any, P resource[T]](ctx context.Context, kv KV, h auth.Handle, project, id string) (*T, error) {
	var r T
	kind := P(&r).ResourceKind()
	if err := h.Check(auth.Read, kind, project); err != nil {
		return nil, err
	}
	e, err := kv.Get(ctx, Key(kind, project, id))
	if problem.Is(err, problem.NotFound) {
		return nil, NoSuch(kind, project, id)
	}
	if err != nil {
		return nil, err
	}
	return &r, Decode(e, P(&r))
}

// Find returns the resource with this name or ID.
func Find[T any, P resource[T]](ctx context.Context, kv KV, h auth.Handle, project, nameOrID string) (*T, error) {
	var r T
	kind := P(&r).ResourceKind()
	if err := h.Check(auth.Read, kind, project); err != nil {
		return nil, err
	}
	id, err := Resolve(ctx, kv, kind, project, nameOrID)
	if err != nil {
		return nil, err
	}
	return Get[T, P](ctx, kv, h, project, id)
}

// Resolve returns the ID of what a name or ID stands for. An ID is not looked up.
func Resolve(ctx context.Context, kv KV, kind api.Kind, project, nameOrID string) (string, error) {
	if api.IsUUID(nameOrID) {
		return nameOrID, nil
	}
	e, err := kv.Get(ctx, NameClaim(kind, project, nameOrID))
	if problem.Is(err, problem.NotFound) {
		return "", NoSuch(kind, project, nameOrID)
	}
	return string(e.Value), err
}

// List returns all resources of a kind in a project, in key order; project "*" means every project.
func List[T any, P resource[T]](ctx context.Context, kv KV, h auth.Handle, project string) ([]*T, error) {
	var zero T
	kind := P(&zero).ResourceKind()
	if err := h.Check(auth.Read, kind, project); err != nil {
		return nil, err
	}
	prefix := Prefix(kind, project)
	if project == "*" {
		prefix = KindPrefix(kind)
	}
	entries, _, err := kv.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	out := make([]*T, 0, len(entries))
	for _, e := range entries {
		var r T
		if err := Decode(e, P(&r)); err != nil {
			return nil, err
		}
		out = append(out, &r)
	}
	return out, nil
}

// NoSuch returns the problem for a resource that does not exist.
func NoSuch(kind api.Kind, project, nameOrID string) error {
	where := ""
	if !kind.ClusterWide() {
		where = " in project " + project
	}
	return problem.New(problem.NotFound, "there is no %s %q%s", kind.Singular(), nameOrID, where).Try("list the %s that exist", strings.ReplaceAll(string(kind), "-", " "))
}

// Decode reads an entry into r and sets its revision.
func Decode(e Entry, r api.Resource) error {
	if err := json.Unmarshal(e.Value, r); err != nil {
		return problem.Wrap(err, problem.Internal, "the record at %s cannot be read", e.Key)
	}
	r.GetMeta().Revision = e.Revision
	return nil
}

// Draft collects the reads and writes of one transaction. An error is kept until Commit.
//
// Claims belong to the records that they are written with, and need no authority beyond that of writing those; a draft of
// claims alone needs that of the control plane.
type Draft struct {
	h       auth.Handle
	tx      Tx
	err     error
	written bool                    // a record
	claimed bool                    // a claim, by itself
	said    map[string]func() error // what a failed condition means, by key
}

// kindClaims stands for claims where authority is checked.
const kindClaims api.Kind = "claims"

// NewDraft returns an empty transaction under the authority of h.
func NewDraft(h auth.Handle) *Draft { return &Draft{h: h, said: map[string]func() error{}} }

func (d *Draft) check(a auth.Action, r api.Resource) bool {
	if d.err == nil {
		d.err = d.h.Check(a, r.ResourceKind(), r.GetMeta().Project)
	}
	d.written = d.written || a == auth.Write
	return d.err == nil
}

// checkRead is check for a resource that must have been read before: without its revision, a change of it would be a
// blind one.
func (d *Draft) checkRead(a auth.Action, r api.Resource) bool {
	if d.check(a, r) && r.GetMeta().Revision <= 0 {
		d.err = problem.New(problem.Internal, "%s cannot be changed", api.RefTo(r)).Because("it was not read from the store before")
	}
	return d.err == nil
}

func keyOf(r api.Resource) string {
	m := r.GetMeta()
	return Key(r.ResourceKind(), m.Project, m.ID)
}

// Create adds a new resource and claims its name, if it has one.
func (d *Draft) Create(r api.Resource) {
	m := r.GetMeta()
	if !d.check(auth.Write, r) {
		return
	}
	d.put(keyOf(r), r, 0)
	if m.Name == "" {
		return
	}
	name := NameClaim(r.ResourceKind(), m.Project, m.Name)
	d.Claim(name, m.ID)
	d.Meaning(name, problem.New(problem.Conflict, "the name %q is taken", m.Name).Because("there is %s of that name already", r.ResourceKind().One()).Try("choose another name"))
}

// Update writes a resource that was read before; it fails if somebody else has changed it since.
func (d *Draft) Update(r api.Resource) {
	if d.checkRead(auth.Write, r) {
		d.put(keyOf(r), r, r.GetMeta().Revision)
	}
}

// Delete removes a resource that was read before, and frees its name; it fails if somebody else has changed it since.
func (d *Draft) Delete(r api.Resource) {
	m := r.GetMeta()
	if !d.checkRead(auth.Write, r) {
		return
	}
	d.tx.Conditions = append(d.tx.Conditions, Condition{Key: keyOf(r), Revision: m.Revision})
	d.tx.Deletes = append(d.tx.Deletes, keyOf(r))
	if m.Name != "" {
		d.tx.Deletes = append(d.tx.Deletes, NameClaim(r.ResourceKind(), m.Project, m.Name))
	}
}

// Unchanged makes the transaction fail if somebody has changed r since it was read.
func (d *Draft) Unchanged(r api.Resource) {
	if d.checkRead(auth.Read, r) {
		d.tx.Conditions = append(d.tx.Conditions, Condition{Key: keyOf(r), Revision: r.GetMeta().Revision})
	}
}

// Claim writes a claim that must not exist yet.
func (d *Draft) Claim(key, value string) {
	d.claimed = true
	d.tx.Conditions = append(d.tx.Conditions, Condition{Key: key})
	d.tx.Puts = append(d.tx.Puts, Put{Key: key, Value: []byte(value)})
}

// Put writes a claim whether it exists or not.
func (d *Draft) Put(key, value string) {
	d.claimed = true
	d.tx.Puts = append(d.tx.Puts, Put{Key: key, Value: []byte(value)})
}

// Release removes a claim, if it exists.
func (d *Draft) Release(key string) {
	d.claimed = true
	d.tx.Deletes = append(d.tx.Deletes, key)
}

// Touch makes the transaction fail if the ledger of a set of claims has moved past revision, and moves it. Ledger gives the
// revision.
func (d *Draft) Touch(prefix string, revision int64) {
	d.claimed = true
	key := LedgerKey(prefix)
	d.tx.Conditions = append(d.tx.Conditions, Condition{Key: key, Revision: revision})
	d.tx.Puts = append(d.tx.Puts, Put{Key: key, Value: []byte("1")})
}

// Unused makes the transaction fail while somebody needs r.
func (d *Draft) Unused(r api.Resource) {
	prefix := UsePrefix(api.RefTo(r))
	d.tx.Conditions = append(d.tx.Conditions, Condition{Key: prefix, Prefix: true})
	d.Meaning(prefix, problem.New(problem.InUse, "%s %s is still in use", r.ResourceKind().Singular(), r.GetMeta().Name))
}

// None makes the transaction fail with meaning while there is anything below prefix.
func (d *Draft) None(prefix string, meaning error) {
	d.tx.Conditions = append(d.tx.Conditions, Condition{Key: prefix, Prefix: true})
	d.Meaning(prefix, meaning)
}

// Meaning says what it means to a user when the condition on key does not hold.
func (d *Draft) Meaning(key string, err error) { d.MeaningFound(key, func() error { return err }) }

// MeaningFound is Meaning for what has to be found out, once it is known that the condition does not hold.
func (d *Draft) MeaningFound(key string, find func() error) { d.said[key] = find }

// Commit carries the draft out. A condition that does not hold gives its Meaning, or else a *Conflict.
func (d *Draft) Commit(ctx context.Context, kv KV) (revision int64, err error) {
	if err := d.allowed(); err != nil {
		return 0, err
	}
	revision, err = kv.Commit(ctx, d.tx)
	return revision, d.meant(err)
}

// Check tells what Commit would say now, and writes nothing. The conditions are looked at one after the other, so the answer
// is a good guess: others may be writing.
func (d *Draft) Check(ctx context.Context, kv KV) error {
	if err := d.allowed(); err != nil {
		return err
	}
	for _, c := range d.tx.Conditions {
		if err := check(ctx, kv, c); err != nil {
			return d.meant(err)
		}
	}
	return nil
}

// check returns a *Conflict if a condition does not hold.
func check(ctx context.Context, kv KV, c Condition) error {
	if c.Prefix {
		found, _, err := kv.List(ctx, c.Key)
		if err == nil && len(found) > 0 {
			err = &Conflict{Condition: c}
		}
		return err
	}
	e, err := kv.Get(ctx, c.Key)
	if err != nil && !problem.Is(err, problem.NotFound) {
		return err
	}
	if !c.holds(e.Revision) { // a key that is not there is at revision 0
		return &Conflict{Condition: c}
	}
	return nil
}

func (d *Draft) allowed() error {
	if d.err == nil && d.claimed && !d.written {
		d.err = d.h.Check(auth.Write, kindClaims, "")
	}
	return d.err
}

// meant returns the Meaning of a lost condition, if it has one.
func (d *Draft) meant(err error) error {
	var c *Conflict
	if errors.As(err, &c) {
		if meaning := d.said[c.Condition.Key]; meaning != nil {
			return meaning()
		}
	}
	return err
}

func (d *Draft) put(key string, r api.Resource, revision int64) {
	value, err := json.Marshal(r)
	if err != nil {
		d.err = problem.Wrap(err, problem.Internal, "%s cannot be written", api.RefTo(r))
		return
	}
	d.tx.Conditions = append(d.tx.Conditions, Condition{Key: key, Revision: revision})
	d.tx.Puts = append(d.tx.Puts, Put{Key: key, Value: value})
}

// How Retry tries: with pauses of chance that grow from the first to the longest, so that many who want the same thing do not
// run into one another again and again.
const (
	raceTries    = 100
	firstPause   = 500 * time.Microsecond
	longestPause = 50 * time.Millisecond
)

// Retry repeats change, which reads, drafts and commits, as long as it loses races and ctx is not done. What it loses to is
// progress, so the bound is there for bugs only.
func Retry(ctx context.Context, change func() error) error {
	longest := firstPause
	for range raceTries {
		err := change()
		var c *Conflict
		if !errors.As(err, &c) {
			return err
		}
		t := time.NewTimer(rand.N(longest))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
		if ctx.Err() != nil {
			return problem.Wrap(ctx.Err(), problem.Timeout, "gave up after losing a race")
		}
		longest = min(2*longest, longestPause)
	}
	return problem.New(problem.Unavailable, "the store is too busy").Try("try again")
}

// Users returns who needs r, in words, for an in_use problem.
func Users(ctx context.Context, kv KV, r api.Resource) ([]string, error) {
	prefix := UsePrefix(api.RefTo(r))
	entries, _, err := kv.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		kind, id, _ := strings.Cut(strings.TrimPrefix(e.Key, prefix), "/")
		out = append(out, api.Kind(kind).Singular()+" "+id)
	}
	slices.Sort(out)
	return out, nil
}

// UserIDs returns the IDs of the resources of a kind that need r, in order.
func UserIDs(ctx context.Context, kv KV, r api.Resource, kind api.Kind) ([]string, error) {
	prefix := UsePrefix(api.RefTo(r)) + string(kind) + "/"
	entries, _, err := kv.List(ctx, prefix)
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		out = append(out, strings.TrimPrefix(e.Key, prefix))
	}
	return out, err
}

// Claims is a set of claims and the revision of its ledger, which Draft.Touch compares.
type Claims struct {
	Claims   []Entry
	Revision int64 // 0: the ledger was never touched
}

// Ledger returns the claims below prefix. The ledger is read first: a claim that comes between the two reads makes Touch
// fail, never succeed wrongly.
func Ledger(ctx context.Context, kv KV, prefix string) (Claims, error) {
	var out Claims
	var err error
	if out.Revision, err = LedgerRevision(ctx, kv, prefix); err != nil {
		return out, err
	}
	out.Claims, _, err = kv.List(ctx, prefix)
	return out, err
}

// LedgerRevision returns the revision of the ledger of the claims below prefix, for those who know the claims by other means;
// 0: it was never touched. It must be asked before them.
func LedgerRevision(ctx context.Context, kv KV, prefix string) (int64, error) {
	e, err := kv.Get(ctx, LedgerKey(prefix))
	if problem.Is(err, problem.NotFound) {
		return 0, nil
	}
	return e.Revision, err
}

// Load reads the record that ref points to into r.
func Load(ctx context.Context, kv KV, h auth.Handle, ref api.Ref, r api.Resource) error {
	if err := h.Check(auth.Read, ref.Kind, ref.Project); err != nil {
		return err
	}
	e, err := kv.Get(ctx, Key(ref.Kind, ref.Project, ref.ID))
	if problem.Is(err, problem.NotFound) {
		return NoSuch(ref.Kind, ref.Project, ref.ID)
	}
	if err != nil {
		return err
	}
	return Decode(e, r)
}
