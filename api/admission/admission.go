// Package admission turns a request into an accepted operation. One transaction writes all that the acceptance decides: the
// operation, the records it makes or locks, the names, addresses and quota it claims. Either all of it happens or nothing;
// once it has happened the operation will be carried out, whatever dies. What is written here is unwritten by Settle, in the
// transaction that ends the operation.
package admission

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// Sealer encrypts secrets; store.Vault does.
type Sealer interface {
	Seal(plain, aad string) ([]byte, error)
}

// Options is what comes with a request besides its body.
type Options struct {
	Project        string
	IdempotencyKey string // "" for none
	IfMatch        int64  // revision that the target must have; 0 for any
	Parent         string // operation that asks for this one; "" for none

	retryOf string // operation that is sent again
	target  string // ID that the target must have: a name may have come to mean another one; "" for any
	hidden  string // digest of what the remembered request does not show
}

// Admission accepts requests.
type Admission struct {
	kv      store.KV
	seal    Sealer
	now     func() time.Time
	keep    time.Duration // in the recycle bin
	cursors sync.Map      // subnet ID -> *atomic.Uint32: where to look for the next free address
}

// New returns an Admission over kv; seal encrypts the secrets that requests carry.
func New(kv store.KV, seal Sealer) *Admission {
	return &Admission{kv: kv, seal: seal, now: time.Now, keep: DefaultKeep}
}

// keySpace makes operation IDs out of idempotency keys.
var keySpace = uuid.MustParse("5a6f1c1e-8f0e-4c57-9d3c-6e6578747374")

// OperationID returns the ID of the operation that a request of this user under this idempotency key becomes.
func OperationID(project, user, key string) string {
	return uuid.NewSHA1(keySpace, []byte(project+"\x00"+user+"\x00"+key)).String()
}

// acceptance is one attempt to accept one request.
type acceptance struct {
	*store.Draft
	ctx  context.Context
	kv   store.KV
	h    auth.Handle
	opts Options
	op   *api.Operation
	now  time.Time
	mine map[string]bool // addresses that this request has taken already
}

// accept runs build, which reads what it needs and drafts what it decides, and commits the draft with the operation in it.
// A lost race means that something read has changed: build runs again.
func (a *Admission) accept(ctx context.Context, h auth.Handle, o Options, kind string, request any, build func(*acceptance) error) (*api.Operation, error) {
	if err := a.project(ctx, h, o.Project); err != nil {
		return nil, err
	}
	body, err := json.Marshal(request)
	if err != nil {
		return nil, problem.Wrap(err, problem.Invalid, "the request cannot be encoded")
	}
	id, hash := api.NewID(), ""
	if o.IdempotencyKey != "" {
		id = OperationID(o.Project, h.Who().Name, o.IdempotencyKey)
		sum := sha256.Sum256(append([]byte(kind+"\x00"+o.hidden+"\x00"), body...))
		hash = hex.EncodeToString(sum[:])
	}
	var op *api.Operation
	err = store.Retry(ctx, func() error {
		if hash != "" {
			if known, err := a.known(ctx, h, id, hash, o.IdempotencyKey); known != nil || err != nil {
				op = known
				return err
			}
		}
		acc := a.attempt(ctx, h, o, kind, id)
		acc.op.Request, acc.op.RequestHash = body, hash
		err := build(acc)
		if err == nil {
			acc.Create(acc.op)
			acc.op.Revision, err = acc.Commit(ctx, a.kv)
			op = acc.op
		}
		if err == nil || hash == "" {
			return err
		}
		// The same request, sent a second time at the same moment, may be what was in the way of this one.
		known, again := a.known(ctx, h, id, hash, o.IdempotencyKey)
		if known == nil && again == nil {
			return err
		}
		op = known
		return again
	})
	if err != nil {
		return nil, err
	}
	return op, nil
}

// attempt returns an acceptance that nothing has been decided of yet.
func (a *Admission) attempt(ctx context.Context, h auth.Handle, o Options, kind, id string) *acceptance {
	c := &acceptance{Draft: store.NewDraft(h), ctx: ctx, kv: a.kv, h: h, opts: o, now: a.now().UTC(), mine: map[string]bool{}}
	c.op = &api.Operation{
		Meta: api.Meta{ID: id, Project: o.Project, Created: c.now},
		Kind: kind, State: api.OpAccepted, Requester: h.Who().Name, Plan: &api.OperationPlan{}, RetryOf: o.retryOf, Parent: o.Parent,
	}
	return c
}

// rehearse runs build as accept does, and tells what the commit would say, but writes nothing.
func (a *Admission) rehearse(ctx context.Context, h auth.Handle, o Options, kind string, build func(*acceptance) error) error {
	if err := a.project(ctx, h, o.Project); err != nil {
		return err
	}
	return store.Retry(ctx, func() error {
		c := a.attempt(ctx, h, o, kind, api.NewID())
		if err := build(c); err != nil {
			return err
		}
		c.Create(c.op)
		return c.Check(ctx, a.kv)
	})
}

func (a *Admission) project(ctx context.Context, h auth.Handle, name string) error {
	if name == "" {
		return nil
	}
	if !api.ValidName(name) { // an ID would do to find it, but keys are made of names
		return store.NoSuch(api.KindProject, "", name)
	}
	_, err := store.Find[api.Project](ctx, a.kv, h, "", name)
	return err
}

// known returns the operation that was accepted under the same idempotency key, if there is one.
func (a *Admission) known(ctx context.Context, h auth.Handle, id, hash, key string) (*api.Operation, error) {
	op, err := store.Get[api.Operation](ctx, a.kv, h, "", id)
	switch {
	case problem.Is(err, problem.NotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case op.RequestHash != hash:
		return nil, problem.New(problem.Mismatch, "the Idempotency-Key %q was used with another request", key).
			Because("it belongs to operation %s (%s)", op.ID, op.Kind).Try("use a new key for a new request")
	}
	return op, nil
}

// meta returns the meta of a new resource that the operation makes and holds.
func (c *acceptance) meta(project, name string, labels map[string]string) api.Meta {
	return api.Meta{ID: api.NewID(), Name: name, Project: project, Labels: labels, Created: c.now, Operation: c.op.ID}
}

// makes adds a new record; success brings it to phase then, failure removes it.
func (c *acceptance) makes(r api.Phased, then api.Phase) {
	r.SetPhase(api.PhaseCreating, "")
	c.Create(r)
	if k, m := r.ResourceKind(), r.GetMeta(); k == api.KindVolume || k == api.KindSnapshot {
		c.MeaningFound(store.NameClaim(k, m.Project, m.Name), func() error { return c.taken(k, m.Project, m.Name) })
	}
	c.op.Plan.Locks = append(c.op.Plan.Locks, api.Lock{Ref: api.RefTo(r), Then: then})
}

// holds locks an existing record and brings it to phase during; success brings it to phase then ("" removes it), failure
// back to where it was.
func (c *acceptance) holds(r api.Phased, during, then api.Phase) error {
	m := r.GetMeta()
	if m.Operation != "" {
		return problem.New(problem.Locked, "%s %s is being worked on", r.ResourceKind().Singular(), m.Name).
			Because("operation %s holds it", m.Operation).Try("wait for it (`gnext op show %s`) or cancel it", m.Operation)
	}
	c.op.Plan.Locks = append(c.op.Plan.Locks, api.Lock{Ref: api.RefTo(r), Before: r.GetPhase(), Then: then})
	m.Operation = c.op.ID
	r.SetPhase(during, "")
	c.Update(r)
	return nil
}

// keeps locks an existing record that stays in the phase it is in, whatever becomes of the operation.
func (c *acceptance) keeps(r api.Phased) error { return c.holds(r, r.GetPhase(), r.GetPhase()) }

// locks reports whether the operation holds a record already.
func (c *acceptance) locks(r api.Resource) bool {
	return slices.ContainsFunc(c.op.Plan.Locks, func(l api.Lock) bool { return l.Ref.ID == r.GetMeta().ID })
}

// becomes sets what a record that the operation holds is after success, but for its phase.
func (c *acceptance) becomes(after api.Phased) error {
	for i := range c.op.Plan.Locks {
		if l := &c.op.Plan.Locks[i]; l.Ref.ID == after.GetMeta().ID {
			return encode(&l.After, after)
		}
	}
	return problem.New(problem.Internal, "%s is to change, and is not held", api.RefTo(after))
}

// target makes r what the operation is about, and checks If-Match.
func (c *acceptance) target(r api.Resource) error {
	c.op.Target = api.RefTo(r)
	if m := r.GetMeta(); c.opts.target != "" && c.opts.target != m.ID {
		return problem.New(problem.Conflict, "operation %s cannot be retried", c.opts.retryOf).
			Because("it was about %s %s, and %q is another one now", r.ResourceKind().Singular(), c.opts.target, m.Name).Try("send the request anew if it is meant for this one")
	}
	if m := r.GetMeta(); c.opts.IfMatch != 0 && c.opts.IfMatch != m.Revision {
		return problem.New(problem.Precondition, "%s %s has changed", r.ResourceKind().Singular(), m.Name).
			Because("its revision is %d, not %d", m.Revision, c.opts.IfMatch).Try("read it again and decide anew")
	}
	return nil
}

// deletes locks the target for its removal, unless somebody needs it.
func (c *acceptance) deletes(r api.Phased) error {
	if err := c.target(r); err != nil {
		return err
	}
	users, err := store.Users(c.ctx, c.kv, r)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return problem.New(problem.InUse, "%s %s is still in use", r.ResourceKind().Singular(), r.GetMeta().Name).
			Because("it is needed by %s", strings.Join(first(c.names(r.GetMeta().Project, users), 5), ", ")).Try("%s", without(r))
	}
	c.Unused(r)
	return c.holds(r, api.PhaseDeleting, "")
}

// without says what to do so that something is not needed any more.
func without(r api.Resource) string {
	if r.ResourceKind() == api.KindImage {
		return "make those independent of it (gnext vol flatten VOLUME), or delete them"
	}
	return "delete those first"
}

// names says of users what they are called, as far as that can be found out; a root volume is its VM's. Users are few: they are
// told of, and not more than some. Of a pool they are in all projects.
func (c *acceptance) names(project string, users []string) []string {
	out := slices.Clone(users)
	few := out[:min(len(out), 5)]
	volumes := map[string]*api.Volume{}
	if project == "" {
		all, err := store.List[api.Volume](c.ctx, c.kv, c.h, "*")
		if err != nil {
			return out
		}
		for _, v := range all {
			volumes[v.ID] = v
		}
	}
	for i, user := range few {
		at := strings.LastIndexByte(user, ' ')
		if user[:at] != api.KindVolume.Singular() {
			continue
		}
		v := volumes[user[at+1:]]
		if project != "" {
			v, _ = store.Get[api.Volume](c.ctx, c.kv, c.h, project, user[at+1:])
		}
		if v == nil {
			continue
		}
		few[i] = "volume " + v.Name + " (" + v.ID + ")"
		if vm, err := store.Get[api.VM](c.ctx, c.kv, c.h, v.Project, v.Spec.VM); err == nil && v.Spec.VM != "" {
			few[i] += " of vm " + vm.Name
		}
		if project == "" {
			few[i] += " in project " + v.Project
		}
	}
	return out
}

// claims takes a claim that the new records of this operation keep until they are deleted.
func (c *acceptance) claims(key, value string) {
	c.Claim(key, value)
	c.op.Plan.ReleaseIfUndone = append(c.op.Plan.ReleaseIfUndone, key)
}

// reclaims gives a claim that is there another value, and its old one back if the operation fails.
func (c *acceptance) reclaims(key, was, value string) {
	c.Put(key, value)
	c.op.Plan.PutIfUndone = append(c.op.Plan.PutIfUndone, api.Claim{Key: key, Value: was})
}

// releases gives claims back when the operation succeeds.
func (c *acceptance) releases(keys ...string) {
	c.op.Plan.ReleaseIfDone = append(c.op.Plan.ReleaseIfDone, keys...)
}

// needs makes user depend on used: used must exist, be whole and not be changing, and cannot be deleted from here on.
func (c *acceptance) needs(user api.Ref, used api.Phased) error {
	if err := c.usable(used); err != nil {
		return err
	}
	c.claims(store.UseClaim(api.RefTo(used), user), "")
	return nil
}

// usable checks that a record is whole, and that it still is when the draft is committed.
func (c *acceptance) usable(used api.Phased) error {
	m := used.GetMeta()
	if p := used.GetPhase(); p != api.PhaseReady {
		if pool, is := used.(*api.Pool); is && p == api.PhaseUnavailable {
			return poolAway(pool)
		}
		no := problem.New(problem.Conflict, "%s %s is not ready", used.ResourceKind().Singular(), m.Name)
		return no.Because("it is %s", p).Try("wait until it is ready")
	}
	c.Unchanged(used)
	return nil
}

// input sets what the workflow is told to bring about, and before what it goes back to.
func (c *acceptance) input(v any) error  { return encode(&c.op.Plan.Input, v) }
func (c *acceptance) before(v any) error { return encode(&c.op.Plan.Before, v) }

// after sets the record that the target becomes when an update succeeds.
func (c *acceptance) after(r api.Resource) error { return encode(&c.op.Plan.After, r) }

func encode(to *json.RawMessage, v any) error {
	b, err := json.Marshal(v)
	*to = b
	return problem.Wrap(err, problem.Internal, "the plan of an operation cannot be encoded")
}

func first(s []string, n int) []string {
	if len(s) > n {
		return append(slices.Clone(s[:n]), "...")
	}
	return s
}

// Bootstrap makes what every installation has from the start: the default project.
func (a *Admission) Bootstrap(ctx context.Context) error {
	h := auth.ControlPlane("bootstrap")
	_, err := store.Find[api.Project](ctx, a.kv, h, "", api.DefaultProject)
	if !problem.Is(err, problem.NotFound) {
		return err
	}
	d := store.NewDraft(h)
	d.Create(&api.Project{Meta: api.Meta{ID: api.NewID(), Name: api.DefaultProject, Created: a.now().UTC()}})
	if _, err = d.Commit(ctx, a.kv); problem.Is(err, problem.Conflict) {
		return nil // another server was faster
	}
	return err
}
