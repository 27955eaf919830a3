// Package fleet is the control plane's side of the agents: how they join, what follows from their reports, what happens when
// they fall silent, and which secrets they may have.
package fleet

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// What is when nobody said otherwise. How often agents report grows with their number, and suspicion and leases with it.
const (
	// SilentAfter is how long an agent may be silent before it is suspected to be dead.
	SilentAfter = 15 * time.Second
	// Lease is how long a node may run HA VMs without hearing from the server.
	Lease = 20 * time.Second
	// Margin is how long after the end of a lease, by the server's clock, the node's HA VMs are taken for stopped. It covers
	// that the node's clock may run slower than the server's (by 1 %, which is far more than clocks do: 0.2 s of a lease),
	// that its guardian looks twice a second, and that the kernel takes its time to tear down a guest with much memory.
	Margin = 10 * time.Second
	// reportEvery is how often agents report unless they are told otherwise.
	reportEvery = 5 * time.Second
	// reportsPerSecond is how many reports the server wants at most; with more agents each of them reports less often.
	reportsPerSecond = 100
)

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

	// SuspectAfter and Lease are at least that long; zero: SilentAfter and Lease.
	SuspectAfter, Lease time.Duration
	// Recover begins the recovery of an agent that is suspect, once for each silence: by the same agent and Status.Observed
	// it must be the same operation. For one that is down it begins another: by the same agent and Revision it must be the
	// same operation. Nil: nobody does.
	Recover func(ctx context.Context, agent *api.Agent) error
	// Recoverable returns the VMs, by their IDs, that a recovery of an agent that is down would start elsewhere now. Nil: what
	// was left on a dead node is not tried again.
	Recoverable func(ctx context.Context, agent string) ([]string, error)
	// Restart starts an HA VM that its node has stopped because it had no lease. Nil: nobody does.
	Restart func(ctx context.Context, vm *api.VM) error

	// What a new node starts with; an operator may change it later. Zero: 512 MiB and 4.
	ReservedMemory int64   // bytes
	CPURatio       float64 // vCPUs per core

	Log   *slog.Logger     // nil: slog.Default
	Clock *Clock           // nil: the clock of this process
	Now   func() time.Time // in place of Clock: the source of one
}

// Fleet speaks with the agents.
type Fleet struct {
	Options
	// self is what the fleet writes with: an agent's own authority ends at its agent record, and what its report means for
	// VMs and pools is decided here.
	self  auth.Handle
	index index
	watch watch

	agents atomic.Int64 // how many there were when they were last counted
	mu     sync.Mutex
	pools  map[string]poolLook // by pool
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
	switch {
	case o.Clock != nil:
	case o.Now != nil:
		o.Clock = NewClock(o.Now)
	default:
		o.Clock = ProcessClock()
	}
	if o.SuspectAfter == 0 {
		o.SuspectAfter = SilentAfter
	}
	if o.Lease == 0 {
		o.Lease = Lease
	}
	return &Fleet{Options: o, self: auth.ControlPlane("fleet"), watch: watch{begun: map[string]time.Time{}}, pools: map[string]poolLook{}}
}

// pace is how often agents should report, by their number.
func (f *Fleet) pace() time.Duration {
	agents := f.agents.Load()
	return max(reportEvery, time.Duration(agents)*time.Second/reportsPerSecond)
}

// suspectAfter is how long an agent may be silent: three reports may get lost.
func (f *Fleet) suspectAfter() time.Duration { return max(f.SuspectAfter, 3*f.pace()) }

// lease is how long a report is good for: it must be longer than suspicion, or nodes would stop their VMs before anybody
// wonders about them.
func (f *Fleet) lease() time.Duration { return max(f.Lease, 4*f.pace()) }

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
			return f.silent(ctx, known)
		}
		if !problem.Is(err, problem.NotFound) {
			return err
		}
		now := f.Clock.Now()
		a := &api.Agent{
			Meta: api.Meta{ID: api.NewID(), Name: req.Name, Created: now},
			Spec: api.AgentSpec{ReservedMemory: f.ReservedMemory, CPURatio: f.CPURatio, MemoryRatio: 1},
			Status: api.AgentStatus{
				Phase: api.PhaseUnavailable, Reason: reasonJoined, Since: now, Observed: now,
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

// reasonJoined is why an agent that has never reported takes no VMs.
const reasonJoined = "has joined and not reported yet"

// silent returns a problem while an agent is alive.
func (f *Fleet) silent(ctx context.Context, a *api.Agent) error {
	beat, err := store.ReadBeat(ctx, f.KV, a.ID)
	if err != nil {
		return err
	}
	ago, enough := f.Clock.Now().Sub(beat.Observed), f.suspectAfter()
	if ago >= enough || !a.Status.Alive() {
		return nil
	}
	return problem.New(problem.Unavailable, "there is an agent %s already", a.Name).Because("it reported %s ago", ago.Round(time.Second)).
		Try("give this node another --name; or if it is the same one, wait: it may join again when nothing has been heard of it for %s", enough)
}

// owns returns nil if h is the agent with this ID itself; nobody else may speak for it.
func owns(h auth.Handle, agent string) error {
	if who := h.Who(); who.Role != auth.Agent || who.Name != agent {
		return problem.New(problem.Forbidden, "this is for agent %s alone", agent).Try("use the credential that this agent got when it joined")
	}
	return h.Check(auth.Write, api.KindAgent, "")
}
