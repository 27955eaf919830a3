package state

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/accounts"
	"github.com/nextstack/nextstack/api/fleet"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

// hostKit is a store with one agent that an operation holds.
type hostKit struct {
	t     *testing.T
	kv    *store.Memory
	s     *State
	at    time.Time
	token steps.Token
	id    string
}

func newHostKit(t *testing.T) *hostKit {
	k := &hostKit{t: t, kv: store.NewMemory(), at: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), id: api.NewID(), token: steps.Token{Operation: api.NewID()}}
	k.s = New(k.kv, nil, nil, nil).WithClock(fleet.NewClock(func() time.Time { return k.at }))
	d := store.NewDraft(k.s.h)
	d.Create(&api.Agent{
		Meta:   api.Meta{ID: k.id, Name: "node-1", Operation: k.token.Operation, Labels: map[string]string{"rack": "1"}},
		Spec:   api.AgentSpec{CPURatio: 4},
		Status: api.AgentStatus{Phase: api.PhaseReady, Since: k.at},
	})
	_, err := d.Commit(t.Context(), k.kv)
	require.NoError(t, err)
	return k
}

func (k *hostKit) agent() *api.Agent {
	k.t.Helper()
	a, err := store.Get[api.Agent](k.t.Context(), k.kv, k.s.h, "", k.id)
	require.NoError(k.t, err)
	return a
}

func (k *hostKit) change(change func(*api.Agent, *store.Beat)) {
	k.t.Helper()
	a := k.agent()
	b, err := store.ReadBeat(k.t.Context(), k.kv, k.id)
	require.NoError(k.t, err)
	change(a, &b)
	d := store.NewDraft(k.s.h)
	d.Update(a)
	d.Beat(k.id, b)
	_, err = d.Commit(k.t.Context(), k.kv)
	require.NoError(k.t, err)
}

func (k *hostKit) judge(j steps.Judgement) steps.Verdict {
	k.t.Helper()
	j.Agent = k.id
	v, err := k.s.judgeNode(k.t.Context(), k.token, j)
	require.NoError(k.t, err)
	return v
}

// suspect makes the agent silent since its last report, which was guarded or not.
func (k *hostKit) suspect(guarded bool) {
	life := k.s.leaseClock().Life()
	k.change(func(a *api.Agent, b *store.Beat) {
		b.Observed, b.Until, b.Lease, b.Guarded, b.Life = k.at, k.at.Add(fleet.Lease), fleet.Lease, guarded, life
		k.at = k.at.Add(fleet.SilentAfter)
		a.Status.Phase, a.Status.Since = api.PhaseSuspect, k.at
	})
}

func TestJudgeNode(t *testing.T) {
	t.Run("alive", func(t *testing.T) {
		k := newHostKit(t)
		require.Equal(t, steps.Verdict{Alive: true}, k.judge(steps.Judgement{Confirmed: "admin", Fenced: &api.Proof{Kind: api.ProofFence}}), "who reports is not dead, whoever says so")
		k.suspect(true)
		k.change(func(_ *api.Agent, b *store.Beat) { b.Observed = k.at.Add(time.Second) })
		require.True(t, k.judge(steps.Judgement{}).Alive, "it has reported since")
	})
	t.Run("the end of a guarded lease, and a margin", func(t *testing.T) {
		k := newHostKit(t)
		k.suspect(true)
		v := k.judge(steps.Judgement{})
		require.Equal(t, fleet.Lease-fleet.SilentAfter+fleet.Margin, v.Wait)
		require.False(t, v.Device)
		k.at = k.at.Add(v.Wait - time.Millisecond)
		require.Equal(t, time.Millisecond, k.judge(steps.Judgement{}).Wait)
		require.Equal(t, api.PhaseSuspect, k.agent().Status.Phase)
		k.at = k.at.Add(time.Millisecond)
		v = k.judge(steps.Judgement{})
		require.Equal(t, api.ProofLease, v.Proof.Kind)
		a := k.agent()
		require.Equal(t, api.PhaseDown, a.Status.Phase)
		require.Equal(t, v.Proof, a.Status.Proof)
		beat, err := store.ReadBeat(t.Context(), k.kv, k.id)
		require.NoError(t, err)
		require.True(t, beat.Down, "no report renews its lease")
		k.at = k.at.Add(time.Hour)
		require.Equal(t, v, k.judge(steps.Judgement{Fenced: &api.Proof{Kind: api.ProofFence}}), "asked again, it says the same")
		since := k.agent().Status.Since
		require.Equal(t, api.ProofOperator, k.judge(steps.Judgement{Confirmed: "admin"}).Proof.Kind, "somebody who has looked says more: of all VMs, HA or not")
		require.Equal(t, api.ProofOperator, k.judge(steps.Judgement{}).Proof.Kind)
		require.Equal(t, since, k.agent().Status.Since)
	})
	t.Run("a lease that nobody guarded", func(t *testing.T) {
		k := newHostKit(t)
		k.suspect(false)
		k.change(func(a *api.Agent, _ *store.Beat) { a.Spec.Fence = &api.Fence{Driver: api.FenceIPMI} })
		k.at = k.at.Add(time.Hour)
		v := k.judge(steps.Judgement{})
		require.Equal(t, steps.Verdict{Device: true, Reason: v.Reason}, v)
		require.Contains(t, v.Reason, "not guarded")
		proof := &api.Proof{Kind: api.ProofFence, Detail: "off"}
		require.Equal(t, steps.Verdict{Proof: proof}, k.judge(steps.Judgement{Fenced: proof}))
		require.Equal(t, api.PhaseDown, k.agent().Status.Phase)
	})
	t.Run("somebody has looked", func(t *testing.T) {
		k := newHostKit(t)
		k.change(func(a *api.Agent, _ *store.Beat) { a.Status.Phase = api.PhaseSuspect })
		require.Contains(t, k.judge(steps.Judgement{}).Reason, "never had a lease")
		k.change(func(a *api.Agent, _ *store.Beat) { a.Status.ConfirmedOff = "admin" })
		v := k.judge(steps.Judgement{})
		require.Equal(t, api.ProofOperator, v.Proof.Kind)
		require.Contains(t, v.Proof.Detail, "admin")
		require.Empty(t, k.agent().Status.ConfirmedOff)
	})
	t.Run("a lease of an earlier life of the server", func(t *testing.T) {
		k := newHostKit(t)
		k.suspect(true)
		k.at = k.at.Add(time.Hour) // by a wall clock that may have been set while nobody looked
		k.s.WithClock(fleet.NewClock(func() time.Time { return k.at }))
		require.Equal(t, fleet.Lease+fleet.Margin, k.judge(steps.Judgement{}).Wait)
		k.at = k.at.Add(fleet.Lease + fleet.Margin)
		require.NotNil(t, k.judge(steps.Judgement{}).Proof)
	})
	t.Run("a late attempt decides nothing", func(t *testing.T) {
		k := newHostKit(t)
		k.suspect(true)
		_, err := k.s.judgeNode(t.Context(), steps.Token{Operation: api.NewID()}, steps.Judgement{Agent: k.id, Confirmed: "admin"})
		require.Equal(t, problem.Stale, problem.KindOf(err))
		require.Equal(t, api.PhaseSuspect, k.agent().Status.Phase)
	})
}

// meddler reports for the agent right before the commit that would declare it dead.
type meddler struct {
	store.KV
	meddle func()
}

func (m *meddler) Commit(ctx context.Context, tx store.Tx) (int64, error) {
	if f := m.meddle; f != nil {
		m.meddle = nil
		f()
	}
	return m.KV.Commit(ctx, tx)
}

func TestEitherRenewedOrDead(t *testing.T) {
	k := newHostKit(t)
	k.suspect(true)
	k.at = k.at.Add(time.Hour)
	k.s.kv = &meddler{KV: k.kv, meddle: func() { k.change(func(_ *api.Agent, b *store.Beat) { b.Observed = k.at }) }}
	require.True(t, k.judge(steps.Judgement{}).Alive)
	require.Equal(t, api.PhaseSuspect, k.agent().Status.Phase)
}

func TestChangingHosts(t *testing.T) {
	k := newHostKit(t)
	late := steps.Token{Operation: api.NewID()}
	cordon := steps.AgentCordon{Agent: k.id, Cordoned: true, Reason: "new disks"}
	for _, token := range []steps.Token{late, k.token, k.token} {
		_, err := k.s.cordonAgent(t.Context(), token, cordon)
		require.NoError(t, err)
		require.Equal(t, token == k.token, k.agent().Spec.Cordoned)
	}
	require.Equal(t, api.PhaseMaintenance, k.agent().Status.Phase)
	require.Equal(t, "new disks", k.agent().Status.Reason)

	before := steps.AgentChange{Agent: k.id, Spec: api.AgentSpec{CPURatio: 4}, Labels: map[string]string{"rack": "1"}}
	after := steps.AgentChange{
		Agent: k.id, Spec: api.AgentSpec{CPURatio: 2, Fence: &api.Fence{Driver: api.FenceIPMI, Address: "10.0.0.1"}},
		Labels: map[string]string{"rack": "2"}, Secret: []byte("sealed"),
	}
	_, err := k.s.applyAgent(t.Context(), k.token, after)
	require.NoError(t, err)
	a := k.agent()
	require.Equal(t, after.Spec, a.Spec)
	require.Equal(t, after.Labels, a.Labels)
	require.Equal(t, api.PhaseReady, a.Status.Phase, "the spec says that it takes VMs again")
	e, err := k.kv.Get(t.Context(), store.SecretKey(k.id))
	require.NoError(t, err)
	require.Equal(t, "sealed", string(e.Value))
	for range 2 { // the undo
		_, err = k.s.applyAgent(t.Context(), steps.Token{Operation: k.token.Operation, Undo: true}, before)
		require.NoError(t, err)
		require.Equal(t, before.Spec, k.agent().Spec)
		_, err = k.kv.Get(t.Context(), store.SecretKey(k.id))
		require.Equal(t, problem.NotFound, problem.KindOf(err))
	}
}

func TestForgetAgent(t *testing.T) {
	k := newHostKit(t)
	users := accounts.New(k.kv, accounts.Options{})
	credential, err := users.IssueAgent(t.Context(), k.id)
	require.NoError(t, err)
	other, err := users.IssueAgent(t.Context(), api.NewID())
	require.NoError(t, err)
	k.change(func(*api.Agent, *store.Beat) {})
	status, err := k.s.lookAtAgent(t.Context(), k.token, steps.NodeRef{Agent: k.id})
	require.NoError(t, err)
	require.Equal(t, api.PhaseReady, status.Phase)
	for range 2 {
		_, err = k.s.forgetAgent(t.Context(), k.token, steps.NodeRef{Agent: k.id})
		require.NoError(t, err)
	}
	_, err = users.Authenticate(t.Context(), credential)
	require.Equal(t, problem.Unauthenticated, problem.KindOf(err))
	_, err = users.Authenticate(t.Context(), other)
	require.NoError(t, err)
	for _, key := range []string{store.Key(api.KindAgent, "", k.id), store.NameClaim(api.KindAgent, "", "node-1"), store.BeatKey(k.id)} {
		_, err = k.kv.Get(t.Context(), key)
		require.Equal(t, problem.NotFound, problem.KindOf(err), key)
	}
}

// TestACancelledDrainTakesItsCordonBackFromARecovery: the recovery has taken the node from the drain, and knows nothing of the cordon.
func TestACancelledDrainTakesItsCordonBackFromARecovery(t *testing.T) {
	drain := api.NewID()
	for name, c := range map[string]struct {
		holder  string // kind of the operation that holds the node; empty: none does
		reason  string // why it is cordoned
		state   api.OperationState
		cordons bool // it stays cordoned
	}{
		"a recovery":              {api.OpHostRecover, "new disks", api.OpUndoing, false},
		"nobody any more":         {"", "new disks", api.OpUndoing, false},
		"another drain":           {api.OpHostDrain, "new disks", api.OpUndoing, true},
		"somebody else's cordon":  {api.OpHostRecover, "smells of smoke", api.OpUndoing, true},
		"an attempt that is late": {api.OpHostRecover, "new disks", api.OpCancelled, true},
	} {
		t.Run(name, func(t *testing.T) {
			k := newHostKit(t)
			d := store.NewDraft(k.s.h)
			for id, op := range map[string]api.Operation{drain: {Kind: api.OpHostDrain, State: c.state}, k.token.Operation: {Kind: c.holder, State: api.OpRunning}} {
				op.ID = id
				d.Create(&op)
			}
			_, err := d.Commit(t.Context(), k.kv)
			require.NoError(t, err)
			k.change(func(a *api.Agent, _ *store.Beat) {
				a.Spec.Cordoned, a.Spec.CordonReason, a.Status.Phase = true, c.reason, api.PhaseDown
				if c.holder == "" {
					a.Operation = ""
				}
			})
			undo := steps.Token{Operation: drain, Undo: true}
			for range 2 {
				_, err = k.s.cordonAgent(t.Context(), undo, steps.AgentCordon{Agent: k.id, InPlaceOf: "new disks"})
				require.NoError(t, err)
				require.Equal(t, c.cordons, k.agent().Spec.Cordoned)
				require.Equal(t, api.PhaseDown, k.agent().Status.Phase)
			}
		})
	}
	k := newHostKit(t)
	_, err := k.s.cordonAgent(t.Context(), steps.Token{Operation: k.token.Operation, Undo: true}, steps.AgentCordon{Agent: k.id, Cordoned: true, Reason: "as before", InPlaceOf: "new disks"})
	require.NoError(t, err)
	require.Equal(t, "as before", k.agent().Spec.CordonReason, "what it holds it changes")
}
