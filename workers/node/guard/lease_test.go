package guard

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"pgregory.net/rapid"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/state"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/accounts"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/fleet"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

// registry takes the steps that this test calls by itself.
type registry map[string]any

func (r registry) RegisterActivityWithOptions(do any, o activity.RegisterOptions) { r[o.Name] = do }

const (
	recovery = "00000000-0000-4000-8000-000000000001"
	// rateError is how much faster or slower than the server's a node's clock may run, and reaction how long a guardian may take
	// to notice the end of a lease and to end its guests: what fleet.Margin has to cover.
	rateError = 0.01
	reaction  = 9 * time.Second
)

// world is a server and one node with their clocks, and what is on its way between them. Both parts of the server are real.
type world struct {
	t                   *rapid.T
	now                 time.Time     // as it is
	skew                time.Duration // of the server's wall clock
	kv                  *store.Memory
	cache               *store.Cache
	users               *accounts.Accounts
	fleet               *fleet.Fleet
	judge               func(context.Context, steps.Envelope[steps.Judgement]) (steps.Verdict, error)
	agent, other        string
	handle, otherHandle auth.Handle

	boot    time.Time // when the node's clock was zero
	rate    float64   // of it
	promise Promise
	alive   bool // the agent
	flying  []flight
	proven  time.Time
}

// flight is a report on its way to the server, or an answer on its way back.
type flight struct {
	at      time.Time
	sent    time.Duration // by the node's clock
	guarded bool
	answer  *api.AgentOrders
}

func (w *world) boottime() time.Duration {
	return time.Duration(float64(w.now.Sub(w.boot)) * w.rate)
}

func (w *world) wall() time.Time { return w.now.Add(w.skew) }

// begin begins a life of the server.
func (w *world) begin() {
	clock := fleet.NewClock(w.wall)
	log := slog.New(slog.DiscardHandler)
	w.fleet = fleet.New(fleet.Options{
		KV: w.kv, Cache: w.cache, Credentials: w.users, Clock: clock, Log: log,
		Recover: func(ctx context.Context, a *api.Agent) error { return w.hold(ctx, a.ID, recovery) },
	})
	reg := registry{}
	state.New(w.kv, nil, nil, nil).WithClock(clock).Register(reg, &activities.Host{Log: log})
	w.judge = reg[steps.JudgeNode.Name].(func(context.Context, steps.Envelope[steps.Judgement]) (steps.Verdict, error))
}

// hold makes an operation hold the agent, or none.
func (w *world) hold(ctx context.Context, agent, operation string) error {
	return store.Retry(ctx, func() error {
		self := auth.ControlPlane("test")
		a, err := store.Get[api.Agent](ctx, w.kv, self, "", agent)
		if err != nil {
			return err
		}
		a.Operation = operation
		d := store.NewDraft(self)
		d.Update(a)
		revision, err := d.Commit(ctx, w.kv)
		if err == nil {
			err = w.cache.WaitFor(ctx, revision)
		}
		return err
	})
}

func (w *world) delay() time.Duration {
	return time.Duration(rapid.OneOf(rapid.Int64Range(0, int64(100*time.Millisecond)), rapid.Int64Range(0, int64(40*time.Second))).Draw(w.t, "delay"))
}

func (w *world) lost() bool { return rapid.IntRange(0, 3).Draw(w.t, "lost") == 0 }

// send sends a report, twice at times.
func (w *world) send() {
	f := flight{sent: w.boottime(), guarded: w.promise.Valid(w.boottime())}
	for range rapid.IntRange(0, 2).Draw(w.t, "copies") {
		f.at = w.now.Add(w.delay())
		w.flying = append(w.flying, f)
	}
}

// deliver lets arrive what is due.
func (w *world) deliver(ctx context.Context) {
	var left []flight
	for _, f := range w.flying {
		switch {
		case f.at.After(w.now):
			left = append(left, f)
		case f.answer != nil:
			if w.alive && f.answer.Lease > 0 {
				w.promise.Renew(f.sent + time.Duration(f.answer.Lease*float64(time.Second)))
			}
		default:
			o, err := w.fleet.Report(ctx, w.handle, w.agent, api.AgentReport{Sent: w.wall(), Guarded: f.guarded})
			require.NoError(w.t, err)
			if !w.lost() {
				left = append(left, flight{at: w.now.Add(w.delay()), sent: f.sent, answer: o})
			}
		}
	}
	w.flying = left
}

// look sweeps, and judges the node if it is being recovered.
func (w *world) look(ctx context.Context) {
	_, err := w.fleet.Report(ctx, w.otherHandle, w.other, api.AgentReport{Sent: w.wall()})
	require.NoError(w.t, err)
	require.NoError(w.t, w.fleet.Sweep(ctx, w.wall()))
	a, err := store.Get[api.Agent](ctx, w.kv, auth.ControlPlane("test"), "", w.agent)
	require.NoError(w.t, err)
	if a.Operation == "" || !w.proven.IsZero() {
		return
	}
	v, err := w.judge(ctx, steps.Envelope[steps.Judgement]{Token: steps.Token{Operation: recovery}, In: steps.Judgement{Agent: w.agent}})
	require.NoError(w.t, err)
	switch {
	case v.Alive:
		require.NoError(w.t, w.hold(ctx, w.agent, ""))
	case v.Proof != nil:
		require.Equal(w.t, api.ProofLease, v.Proof.Kind)
		w.proven = w.now
		over := w.boottime() - w.promise.Until
		require.GreaterOrEqual(w.t, time.Duration(float64(over)/w.rate), reaction, "its VMs may be started elsewhere, and the node may not have stopped them yet")
	default:
		require.NotEmpty(w.t, v.Reason)
	}
}

// Never may a VM be started elsewhere while its node may still run it: whatever is delayed, lost or sent twice, whoever dies,
// however the clocks differ, and whatever the server's wall clock says after it was started anew.
func TestNoProofWhileTheNodeMayRunItsVMs(t *testing.T) {
	proofs := 0
	passes := []time.Duration{50 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second}
	events := append(make([]string, 60), "dies", "dies", "is started", "server is started") // mostly nothing happens
	rapid.Check(t, func(rt *rapid.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := &world{t: rt, now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), kv: store.NewMemory(), alive: true}
		w.cache = store.NewCache(w.kv, store.Root)
		ended := make(chan struct{})
		go func() { defer close(ended); w.cache.Run(ctx) }()
		defer func() { cancel(); <-ended }()
		require.NoError(rt, w.cache.WaitFor(ctx, 1))
		w.users = accounts.New(w.kv, accounts.Options{JoinToken: "join"})
		w.begin()
		w.join(ctx)
		w.boot = w.now.Add(-time.Duration(rapid.Int64Range(0, int64(1000*time.Hour)).Draw(rt, "uptime")))
		w.rate = rapid.Float64Range(1-rateError, 1+rateError).Draw(rt, "rate")
		for range rapid.IntRange(60, 200).Draw(rt, "steps") {
			w.now = w.now.Add(rapid.SampledFrom(passes).Draw(rt, "pass"))
			switch rapid.SampledFrom(events).Draw(rt, "event") {
			case "dies":
				w.alive = false
			case "is started":
				w.alive = true
			case "server is started":
				w.skew = time.Duration(rapid.Int64Range(-int64(time.Hour), int64(time.Hour)).Draw(rt, "skew"))
				w.begin()
			}
			if w.alive && rapid.IntRange(0, 3).Draw(rt, "reports") > 0 {
				w.send()
			}
			w.deliver(ctx)
			w.look(ctx)
			if !w.proven.IsZero() {
				require.False(rt, w.promise.Valid(w.boottime()), "a lease after the proof")
			}
		}
		if !w.proven.IsZero() {
			proofs++
		}
	})
	require.Positive(t, proofs, "a test in which nothing is ever proven shows nothing")
	t.Logf("%d proofs", proofs)
}

// join makes two members. The second is there to be heard of all the time: a node that is alone is more than half of all.
func (w *world) join(ctx context.Context) {
	for _, name := range []string{"node", "other"} {
		j, err := w.fleet.Join(ctx, api.AgentJoin{Name: name, Token: "join"})
		require.NoError(w.t, err)
		h, err := w.users.Authenticate(ctx, j.Credential)
		require.NoError(w.t, err)
		w.agent, w.handle, w.other, w.otherHandle = w.other, w.otherHandle, j.ID, h
	}
	d := store.NewDraft(auth.ControlPlane("test")) // with something on it that may be started elsewhere
	d.Create(&api.VM{
		Meta: api.Meta{ID: api.NewID(), Name: "precious", Project: api.DefaultProject}, Spec: api.VMSpec{HA: true},
		Status: api.VMStatus{Phase: api.PhaseRunning, Agent: w.agent},
	})
	revision, err := d.Commit(ctx, w.kv)
	require.NoError(w.t, err)
	require.NoError(w.t, w.cache.WaitFor(ctx, revision))
}
