package state

import (
	"context"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

// compareWorlds reads the store after the nodes were looked at: what was made since has a record by now, and what was
// removed since is named by the operation that did it.
func (s *State) compareWorlds(ctx context.Context, t steps.Token, w steps.Worlds) (out api.AuditReport, err error) {
	rows, err := s.network.Rows(ctx)
	if err != nil {
		return out, problem.Wrap(err, problem.Unavailable, "the network cannot be asked")
	}
	stored, err := s.images.Stored(ctx)
	if err != nil {
		return out, err
	}
	b, err := s.books(ctx, t.Operation)
	if err != nil {
		return out, err
	}
	c := &comparison{books: b, home: map[string]bool{}, told: map[string]bool{}, layers: b.layers(), seenIn: map[string]bool{}, notRead: map[string]bool{}, report: api.AuditReport{Findings: []api.Finding{}, Checked: map[string]int{}, Skipped: w.Skipped}}
	for _, n := range w.Nodes {
		for _, d := range n.Domains {
			if vm := b.vms[d.ID]; vm != nil && vm.Status.Agent == n.Agent {
				c.home[d.ID] = true
			}
		}
	}
	for _, n := range w.Nodes {
		c.domains(n)
		c.files(n)
		c.ovsPorts(n)
		c.keys(n)
	}
	c.sharedVolumes(w.Nodes)
	c.watched(w.Nodes)
	c.network(rows)
	c.imageFiles(stored)
	c.claims()
	c.locks()
	c.checkpointed()
	return c.report, nil
}

// books is what the store says.
type books struct {
	vms      map[string]*api.VM
	volumes  map[string]*api.Volume
	snaps    map[string]*api.Snapshot
	ports    map[string]*api.Port
	subnets  map[string]*api.Subnet
	vpcs     map[string]*api.VPC
	groups   map[string]*api.SecurityGroup
	images   map[string]*api.Image
	pools    map[string]*api.Pool
	agents   map[string]*api.Agent
	projects map[string]*api.Project // by name
	ops      map[string]*api.Operation
	claims   []store.Entry
	secrets  []store.Entry

	since  time.Time       // what ended after it may have been at work while the audit looked
	moving map[string]bool // IDs that an operation holds, or has held since the audit began
	active bool            // some operation has not ended
	all    map[string]api.Resource

	checkpoints map[string]*api.Checkpoint
}

// books reads the claims first and the operations last. Whatever is accepted or settled in between has changed records and
// claims together, and is then among the operations that explain the difference. The other way round, the claims of a VM that
// is accepted meanwhile would look like nobody's.
func (s *State) books(ctx context.Context, audit string) (*books, error) {
	b := &books{moving: map[string]bool{}, all: map[string]api.Resource{}}
	me, err := store.Get[api.Operation](ctx, s.kv, s.h, "", audit)
	if err != nil {
		return nil, err
	}
	b.since = me.Created.Add(-time.Second)
	for _, read := range []func() error{
		func() (err error) { b.claims, _, err = s.kv.List(ctx, store.ClaimsRoot); return },
		func() (err error) { b.secrets, _, err = s.kv.List(ctx, store.SecretKey("")); return },
		func() (err error) { b.vms, err = load[api.VM](ctx, s, b); return },
		func() (err error) { b.volumes, err = load[api.Volume](ctx, s, b); return },
		func() (err error) { b.snaps, err = load[api.Snapshot](ctx, s, b); return },
		func() (err error) { b.checkpoints, err = load[api.Checkpoint](ctx, s, b); return },
		func() (err error) { b.ports, err = load[api.Port](ctx, s, b); return },
		func() (err error) { b.subnets, err = load[api.Subnet](ctx, s, b); return },
		func() (err error) { b.vpcs, err = load[api.VPC](ctx, s, b); return },
		func() (err error) { b.groups, err = load[api.SecurityGroup](ctx, s, b); return },
		func() (err error) { b.images, err = load[api.Image](ctx, s, b); return },
		func() (err error) { b.pools, err = load[api.Pool](ctx, s, b); return },
		func() (err error) { b.agents, err = load[api.Agent](ctx, s, b); return },
		func() (err error) { b.projects, err = load[api.Project](ctx, s, b); return },
		func() (err error) { _, err = load[api.VMGroup](ctx, s, b); return }, // for their names
		func() (err error) { _, err = load[api.User](ctx, s, b); return },    // likewise
		func() (err error) { b.ops, err = load[api.Operation](ctx, s, b); return },
	} {
		if err := read(); err != nil {
			return nil, err
		}
	}
	for _, op := range b.ops {
		if op.ID != me.ID && (!op.State.Ended() || op.Ended.After(b.since)) {
			b.active = b.active || !op.State.Ended()
			b.moving[op.ID] = true // layers that an operation makes are called as it is
			for _, name := range op.Plan.Makes {
				b.moving[name] = true
			}
			for _, l := range op.Plan.Locks {
				b.moving[l.Ref.ID] = true
			}
		}
	}
	return b, nil
}

func load[T any, P interface {
	*T
	api.Resource
}](ctx context.Context, s *State, b *books) (map[string]*T, error) {
	list, err := store.List[T, P](ctx, s.kv, s.h, "*")
	out := make(map[string]*T, len(list))
	for _, r := range list {
		id := P(r).GetMeta().ID
		out[id], b.all[id] = r, P(r)
	}
	return out, err
}

// repairStore removes claims and image files that nobody owns, and opens locks that nobody holds. A claim that was written
// since the audit was accepted is not the one that was found, and stays.
func (s *State) repairStore(ctx context.Context, t steps.Token, findings []api.Finding) ([]api.Finding, error) {
	for i, f := range findings {
		if !f.Extra {
			continue
		}
		var err error
		done := true
		switch {
		case f.Side == sideImages:
			err = s.images.Remove(ctx, f.ID)
		case f.Side == sideStore && f.Kind == kindClaim:
			done, err = s.dropClaim(ctx, t, f.ID)
		case f.Side == sideStore && f.Kind == kindLock:
			err = s.openLock(ctx, f)
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		findings[i].Repaired = done
	}
	return findings, nil
}

// dropClaim reports whether the claim is gone.
func (s *State) dropClaim(ctx context.Context, t steps.Token, key string) (bool, error) {
	if !strings.HasPrefix(key, store.ClaimsRoot) && !strings.HasPrefix(key, store.SecretKey("")) {
		return false, problem.New(problem.Internal, "%s is no claim", key)
	}
	e, err := s.kv.Get(ctx, key)
	if problem.Is(err, problem.NotFound) {
		return true, nil
	}
	if err != nil || e.Revision > t.Epoch {
		return false, err
	}
	_, err = s.kv.Commit(ctx, store.Tx{Conditions: []store.Condition{{Key: key, Revision: e.Revision}}, Deletes: []string{key}})
	return err == nil, err
}

func (s *State) openLock(ctx context.Context, f api.Finding) error {
	kind, project, _ := strings.Cut(f.Path, "/")
	return store.Retry(ctx, func() error {
		r := api.New(api.Kind(kind)) // a fresh one for each try: decoding leaves what the record has no more
		if r == nil {
			return problem.New(problem.Internal, "a %s cannot be locked", kind)
		}
		err := store.Load(ctx, s.kv, s.h, api.Ref{Kind: api.Kind(kind), Project: project, ID: f.ID}, r)
		if problem.Is(err, problem.NotFound) {
			return nil
		}
		if err != nil || r.GetMeta().Operation == "" {
			return err
		}
		op, err := store.Get[api.Operation](ctx, s.kv, auth.ControlPlane("audit"), "", r.GetMeta().Operation)
		if err != nil && !problem.Is(err, problem.NotFound) {
			return err // who cannot be asked may well hold it
		}
		if err == nil && !op.State.Ended() {
			return nil // somebody holds it after all
		}
		d := store.NewDraft(s.h)
		r.GetMeta().Operation = ""
		d.Update(r)
		_, err = d.Commit(ctx, s.kv)
		return err
	})
}
