// Package fleet is the control plane's side of the agents: how they join, what follows from their reports, what happens when
// they fall silent, and which secrets they may have.
package fleet

import (
	"context"
	"log/slog"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// SilentAfter is how long an agent may be silent before it counts as unavailable. Agents report every few seconds.
const SilentAfter = 20 * time.Second

// Credentials is what the fleet needs of the accounts.
type Credentials interface {
	// CheckJoin returns nil if token is the join token.
	CheckJoin(token string) error
	// IssueAgent gives an agent a new credential and revokes the ones it had.
	IssueAgent(ctx context.Context, agent string) (string, error)
}

// Opener decrypts what admission sealed; store.Vault does.
type Opener interface {
	Open(sealed []byte, aad string) (string, error)
}

// Options configures a Fleet.
type Options struct {
	KV          store.KV
	Cache       *store.Cache
	Credentials Credentials
	Vault       Opener

	// What agents are told about the workflow engine.
	TemporalAddress string
	Namespace       string

	// What a new node starts with; an operator may change it later. Zero: 512 MiB and 4.
	ReservedMemory int64   // bytes
	CPURatio       float64 // vCPUs per core

	Log *slog.Logger     // nil: slog.Default
	Now func() time.Time // nil: time.Now
}

// Fleet speaks with the agents.
type Fleet struct {
	Options
	// self is what the fleet writes with: an agent's own authority ends at its agent record, and what its report means for
	// VMs and pools is decided here.
	self auth.Handle
}

// New returns a Fleet.
func New(o Options) *Fleet {
	if o.ReservedMemory == 0 {
		o.ReservedMemory = 512 * api.MiB
	}
	if o.CPURatio == 0 {
		o.CPURatio = 4
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Fleet{Options: o, self: auth.ControlPlane("fleet")}
}

// Join makes an agent a member, if it knows the join token. An agent that joins again under its name gets the same ID and a
// new credential; the old one is worthless from then on. While an agent of the name is alive nobody can join under it: two
// nodes of one name would share a task queue, and a VM's disk could be on the one and its domain on the other.
func (f *Fleet) Join(ctx context.Context, req api.AgentJoin) (*api.AgentJoined, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	if err := f.Credentials.CheckJoin(req.Token); err != nil {
		return nil, err
	}
	var id string
	err := store.Retry(ctx, func() error {
		known, err := store.Find[api.Agent](ctx, f.KV, f.self, "", req.Name)
		if err == nil {
			id = known.ID
			return f.silent(known)
		}
		if !problem.Is(err, problem.NotFound) {
			return err
		}
		now := f.Now().UTC()
		a := &api.Agent{
			Meta: api.Meta{ID: api.NewID(), Name: req.Name, Created: now},
			Spec: api.AgentSpec{ReservedMemory: f.ReservedMemory, CPURatio: f.CPURatio},
			Status: api.AgentStatus{
				Phase: api.PhaseUnavailable, Reason: "has joined and not reported yet", Observed: now,
			},
		}
		d := store.NewDraft(f.self)
		d.Create(a)
		// The name was taken in the meantime: by this agent, joining twice at once. Then it is read again.
		name := store.NameClaim(api.KindAgent, "", a.Name)
		d.Meaning(name, &store.Conflict{Condition: store.Condition{Key: name}})
		if _, err = d.Commit(ctx, f.KV); err != nil {
			return err
		}
		id = a.ID
		return nil
	})
	if err != nil {
		return nil, err
	}
	credential, err := f.Credentials.IssueAgent(ctx, id)
	if err != nil {
		return nil, err
	}
	f.Log.Info("agent joined", "agent", id, "name", req.Name)
	return &api.AgentJoined{ID: id, Credential: credential, TemporalAddress: f.TemporalAddress, Namespace: f.Namespace}, nil
}

// silent returns a problem while an agent is alive.
func (f *Fleet) silent(a *api.Agent) error {
	ago := f.Now().Sub(a.Status.Observed)
	if a.Status.Phase != api.PhaseReady || ago >= SilentAfter {
		return nil
	}
	return problem.New(problem.Unavailable, "there is an agent %s already", a.Name).Because("it reported %s ago", ago.Round(time.Second)).
		Try("give this node another --name; or if it is the same one, wait: it may join again when nothing has been heard of it for %s", SilentAfter)
}

// Sweep marks the agents that have been silent for SilentAfter as unavailable, and looks at the pools again that lose a node by
// it. One agent that cannot be written does not keep the others from it; the first error is returned.
func (f *Fleet) Sweep(ctx context.Context, now time.Time) error {
	agents, err := store.List[api.Agent](ctx, f.KV, f.self, "")
	if err != nil {
		return err
	}
	var first error
	for _, a := range agents {
		reason := "has not reported since " + a.Status.Observed.UTC().Format(time.RFC3339)
		if a.Status.Reason == reason || now.Sub(a.Status.Observed) < SilentAfter {
			continue
		}
		a.Status.Phase, a.Status.Reason = api.PhaseUnavailable, reason
		d := store.NewDraft(f.self)
		d.Update(a)
		revision, err := d.Commit(ctx, f.KV)
		if problem.Is(err, problem.Conflict) {
			continue // it has just reported, or the next sweep will see
		}
		if err == nil {
			f.Log.Warn("agent is silent", "agent", a.ID, "name", a.Name, "observed", a.Status.Observed)
			if err = f.caughtUp(ctx, revision); err == nil {
				err = f.observePools(ctx, a.ID)
			}
		}
		if err != nil && first == nil {
			first = err
		}
	}
	return first
}

// owns returns nil if h is the agent with this ID itself; nobody else may speak for it.
func owns(h auth.Handle, agent string) error {
	if who := h.Who(); who.Role != auth.Agent || who.Name != agent {
		return problem.New(problem.Forbidden, "this is for agent %s alone", agent).Try("use the credential that this agent got when it joined")
	}
	return h.Check(auth.Write, api.KindAgent, "")
}
