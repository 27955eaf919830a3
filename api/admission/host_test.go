package admission_test

import (
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

var nowhere = admission.Options{}

// silence lets a node be as it is when nothing is heard of it.
func (d *desk) silence(agent string, p api.Phase) {
	d.Helper()
	change(d, "", agent, func(a *api.Agent) { a.Status.Phase = p })
}

func decoded[T any](d *desk, raw json.RawMessage) T {
	d.Helper()
	var v T
	require.NoError(d, json.Unmarshal(raw, &v))
	return v
}

func TestWhatIsDecidedAboutANode(t *testing.T) {
	d := newDesk(t)
	agent := find[api.Agent](d, "", "a1")
	ratio, memory, labels, yes, why := 2.5, api.GiB, map[string]string{"rack": "a"}, true, "new disks"
	op := d.ask(d.Admission.UpdateHost(ctx, d.User, nowhere, "a1", api.AgentUpdate{
		CPURatio: &ratio, ReservedMemory: &memory, Labels: &labels, Cordoned: &yes, CordonReason: &why,
	}))
	after, before := decoded[api.AgentChange](d, op.Plan.Input), decoded[api.AgentChange](d, op.Plan.Before)
	require.Equal(t, api.AgentChange{Agent: agent.ID, Spec: agent.Spec}, before)
	want := agent.Spec
	want.CPURatio, want.ReservedMemory, want.Cordoned, want.CordonReason = 2.5, api.GiB, true, why
	require.Equal(t, api.AgentChange{Agent: agent.ID, Spec: want, Labels: labels}, after)
	held := find[api.Agent](d, "", "a1")
	require.Equal(t, op.ID, held.Operation)
	require.Equal(t, agent.Spec, held.Spec, "the step writes it, not the acceptance")
	require.Equal(t, api.PhaseReady, held.Status.Phase)
	none, err := d.Admission.UpdateHost(ctx, d.User, nowhere, "a1", api.AgentUpdate{CPURatio: &ratio})
	_ = d.refuse(problem.Locked, none, err)
	d.settle(op, api.OpSucceeded)
	require.Empty(t, find[api.Agent](d, "", "a1").Operation)

	change(d, "", "a1", func(a *api.Agent) { a.Spec = want })
	no := false
	op = d.ask(d.Admission.UpdateHost(ctx, d.User, nowhere, "a1", api.AgentUpdate{Cordoned: &no}))
	require.Empty(t, decoded[api.AgentChange](d, op.Plan.Input).Spec.CordonReason, "it was that of the cordon")
	d.settle(op, api.OpFailed)
	change(d, "", "a1", func(a *api.Agent) { a.Spec.Cordoned, a.Spec.CordonReason = false, "" })
	none, err = d.Admission.UpdateHost(ctx, d.User, nowhere, "a1", api.AgentUpdate{CordonReason: &why})
	_ = d.refuse(problem.Invalid, none, err)
	d.clean()
}

func TestTheFencePasswordIsSealedAndGoesToOneDeviceOnly(t *testing.T) {
	d := newDesk(t)
	change(d, "", "a1", func(a *api.Agent) { a.Spec.Fence = nil }) // it begins without one
	agent := find[api.Agent](d, "", "a1")
	_, err := d.KV.Commit(ctx, store.Tx{Deletes: []string{store.SecretKey(agent.ID)}})
	require.NoError(t, err)
	const secret = "open-sesame"
	device := api.Fence{Driver: api.FenceIPMI, Address: "10.0.0.21", User: "boss"}
	set := func(f api.Fence) (*api.Operation, error) {
		return d.Admission.UpdateHost(ctx, d.User, nowhere, "a1", api.AgentUpdate{Fence: &f})
	}
	none, err := set(device)
	require.Contains(t, d.refuse(problem.Invalid, none, err).What, "password")
	with := device
	with.Password = secret
	op := d.ask(set(with))
	after := decoded[api.AgentChange](d, op.Plan.Input)
	require.Equal(t, &device, after.Spec.Fence)
	require.NotEmpty(t, after.Secret)
	require.Nil(t, decoded[api.AgentChange](d, op.Plan.Before).Secret)
	require.Contains(t, string(op.Request), "hidden")
	entries, _, err := d.KV.List(ctx, store.Root)
	require.NoError(t, err)
	for _, e := range entries {
		require.False(t, strings.Contains(string(e.Value), secret), e.Key)
	}
	d.settle(op, api.OpFailed)
	none, err = d.Admission.Retry(ctx, d.User, nowhere, op.ID)
	_ = d.refuse(problem.Unsupported, none, err)

	// As its step would.
	change(d, "", "a1", func(a *api.Agent) { a.Spec.Fence = &device })
	_, err = d.KV.Commit(ctx, store.Tx{Puts: []store.Put{{Key: store.SecretKey(agent.ID), Value: after.Secret}}})
	require.NoError(t, err)
	d.done(set(device)) // the same device keeps its password
	other := device
	other.Address = "10.0.0.66"
	none, err = set(other)
	_ = d.refuse(problem.Invalid, none, err)
	other.Password = "another"
	op = d.ask(set(other))
	require.Equal(t, after.Secret, decoded[api.AgentChange](d, op.Plan.Before).Secret, "an undo brings the old one back")
	d.settle(op, api.OpFailed)
	op = d.ask(set(api.Fence{}))
	require.Nil(t, decoded[api.AgentChange](d, op.Plan.Input).Spec.Fence)
	d.settle(op, api.OpFailed)

	o := admission.Options{IdempotencyKey: "k"}
	first := d.ask(d.Admission.UpdateHost(ctx, d.User, o, "a1", api.AgentUpdate{Fence: &other}))
	again, err := d.Admission.UpdateHost(ctx, d.User, o, "a1", api.AgentUpdate{Fence: &other})
	require.NoError(t, err)
	require.Equal(t, first.ID, again.ID)
	other.Password = "yet another"
	none, err = d.Admission.UpdateHost(ctx, d.User, o, "a1", api.AgentUpdate{Fence: &other})
	_ = d.refuse(problem.Mismatch, none, err)
}

func TestADrainRemembersWhetherTheNodeWasCordoned(t *testing.T) {
	d := newDesk(t)
	change(d, "", "a1", func(a *api.Agent) { a.Spec.Cordoned, a.Spec.CordonReason = true, "before" })
	agent := find[api.Agent](d, "", "a1")
	o := admission.Options{IfMatch: agent.Revision - 1}
	none, err := d.Admission.DrainHost(ctx, d.User, o, "a1", api.HostDrain{})
	_ = d.refuse(problem.Precondition, none, err)
	req := api.HostDrain{Parallel: 4, CopyStorage: true, Reason: "new memory"}
	op := d.ask(d.Admission.DrainHost(ctx, d.User, nowhere, "a1", req))
	require.Equal(t, req, decoded[api.HostDrain](d, op.Plan.Input))
	require.JSONEq(t, `{"cordoned":true,"reason":"before"}`, string(op.Plan.Before))
	require.Equal(t, agent.ID, op.Target.ID)
	none, err = d.Admission.DrainHost(ctx, d.User, nowhere, "a1", req)
	_ = d.refuse(problem.Locked, none, err)
	d.settle(op, api.OpCancelled)
	again := d.ask(d.Admission.Retry(ctx, d.User, nowhere, op.ID))
	require.JSONEq(t, string(op.Plan.Input), string(again.Plan.Input))
	d.settle(again, api.OpSucceeded)
	for _, p := range []api.Phase{api.PhaseSuspect, api.PhaseDown} {
		d.silence("a1", p)
		none, err = d.Admission.DrainHost(ctx, d.User, nowhere, "a1", req)
		_ = d.refuse(problem.Conflict, none, err)
	}
	balance := d.ask(d.Admission.BalanceHosts(ctx, d.User, nowhere, api.HostBalance{Moves: 3}))
	require.Equal(t, api.HostBalance{Moves: 3}, decoded[api.HostBalance](d, balance.Plan.Input))
	require.Empty(t, balance.Target.ID)
	d.settle(balance, api.OpSucceeded)
	d.clean()
}

func TestARecoveryIsForTheSilentAndCanBeConfirmed(t *testing.T) {
	d := newDesk(t)
	a := d.Admission
	recoverHost := func(by string) (*api.Operation, error) { return a.RecoverHost(ctx, d.User, nowhere, "a1", by) }
	for _, p := range []api.Phase{api.PhaseReady, api.PhaseMaintenance, api.PhaseUnavailable} {
		d.silence("a1", p)
		op, err := recoverHost("")
		_ = d.refuse(problem.Conflict, op, err)
		op, err = recoverHost("admin")
		_ = d.refuse(problem.Conflict, op, err)
	}
	d.silence("a1", api.PhaseSuspect)
	op := d.ask(recoverHost("admin"))
	require.JSONEq(t, `"admin"`, string(op.Plan.Input))
	d.settle(op, api.OpSucceeded)
	again, err := a.Retry(ctx, d.User, nowhere, op.ID)
	require.Nil(t, again)
	require.Error(t, err, "it has succeeded")

	op = d.ask(recoverHost(""))
	require.Empty(t, op.Plan.Input)
	require.Empty(t, find[api.Agent](d, "", "a1").Status.ConfirmedOff)
	second, err := recoverHost("")
	_ = d.refuse(problem.Locked, second, err)
	told, err := recoverHost("admin")
	require.NoError(t, err)
	require.Equal(t, op.ID, told.ID, "the one that runs is told")
	require.Equal(t, "admin", find[api.Agent](d, "", "a1").Status.ConfirmedOff)
	require.Equal(t, op.ID, find[api.Agent](d, "", "a1").Operation)
	d.settle(op, api.OpSucceeded)
	require.Empty(t, find[api.Agent](d, "", "a1").Status.ConfirmedOff, "it counts for this recovery alone")

	// What has been decided already is not decided again by the recovery that runs: should that be worth it, it takes another.
	for kind, tells := range map[string]bool{api.ProofFence: true, api.ProofLease: false} {
		op = d.ask(recoverHost(""))
		agent := find[api.Agent](d, "", "a1")
		agent.Status.Phase, agent.Status.Proof = api.PhaseDown, &api.Proof{Kind: kind}
		draft := store.NewDraft(d.User)
		draft.Update(agent)
		_, err = draft.Commit(ctx, d.KV)
		require.NoError(t, err)
		told, err = recoverHost("admin")
		if tells {
			require.NoError(t, err)
			require.Equal(t, op.ID, told.ID)
		} else {
			_ = d.refuse(problem.Locked, told, err)
		}
		require.Empty(t, find[api.Agent](d, "", "a1").Status.ConfirmedOff)
		d.settle(op, api.OpSucceeded)
	}
	d.clean()
}

// TestARecoveryDoesNotWaitForADrain: the drain may wait for moves that wait for the recovery.
func TestARecoveryDoesNotWaitForADrain(t *testing.T) {
	d := newDesk(t)
	drain := d.ask(d.Admission.DrainHost(ctx, d.User, nowhere, "a1", api.HostDrain{}))
	d.silence("a1", api.PhaseSuspect)
	rec := d.ask(d.Admission.RecoverHost(ctx, d.User, nowhere, "a1", ""))
	require.Equal(t, rec.ID, find[api.Agent](d, "", "a1").Operation)
	d.settle(drain, api.OpSucceeded)
	require.Equal(t, rec.ID, find[api.Agent](d, "", "a1").Operation, "the drain has nothing to open")
	d.settle(rec, api.OpSucceeded)
	require.Empty(t, find[api.Agent](d, "", "a1").Operation)

	d.silence("a1", api.PhaseReady)
	ratio := 2.0
	update := d.ask(d.Admission.UpdateHost(ctx, d.User, nowhere, "a1", api.AgentUpdate{CPURatio: &ratio}))
	d.silence("a1", api.PhaseSuspect)
	none, err := d.Admission.RecoverHost(ctx, d.User, nowhere, "a1", "")
	_ = d.refuse(problem.Locked, none, err)
	d.settle(update, api.OpSucceeded)
	d.clean()
}

func TestAConfirmationAndARecoveryAtTheSameMoment(t *testing.T) {
	for range 20 {
		d := newDesk(t)
		d.silence("a1", api.PhaseSuspect)
		ops := race(2, func(i int) *api.Operation {
			op, err := d.Admission.RecoverHost(ctx, d.User, nowhere, "a1", []string{"", "admin"}[i])
			if i == 1 {
				require.NoError(t, err, "whoever has looked is heard")
			}
			return op
		})
		holder := find[api.Agent](d, "", "a1").Operation
		require.Equal(t, holder, ops[1].ID)
		rec := find[api.Operation](d, "", holder)
		confirmed := string(rec.Plan.Input) == `"admin"` || find[api.Agent](d, "", "a1").Status.ConfirmedOff == "admin"
		require.True(t, confirmed)
	}
}

func TestANodeIsForgottenOnlyIfNothingIsOnIt(t *testing.T) {
	d := newDesk(t).cloud().shared()
	a := d.Admission
	vm := d.vm("web1", "a2", nil)
	forget := func(ref string) (*api.Operation, error) { return a.DeleteHost(ctx, d.User, nowhere, ref) }
	op, err := forget("a2")
	require.Contains(t, d.refuse(problem.Conflict, op, err).Fix, "stop its agent")
	d.silence("a2", api.PhaseDown)
	op, err = forget("a2")
	p := d.refuse(problem.InUse, op, err)
	require.Contains(t, p.Why, "vm web1")
	require.Contains(t, p.Why, "pool nfs")
	d.done(a.DeleteVM(ctx, d.User, opts, "web1"))
	d.unpromise(vm.Status.Agent, vm)
	d.done(a.DeletePool(ctx, d.User, opts, "nfs"))
	d.done(a.DeletePool(ctx, d.User, opts, "vms"))

	agent := find[api.Agent](d, "", "a2")
	claim := store.NodeClaim(agent.ID, api.NewID())
	_, err = d.KV.Commit(ctx, store.Tx{Puts: []store.Put{{Key: claim, Value: []byte(`{"vcpus":1,"memory":1}`)}}})
	require.NoError(t, err)
	op, err = forget("a2")
	_ = d.refuse(problem.InUse, op, err)
	_, err = d.KV.Commit(ctx, store.Tx{
		Deletes: []string{claim},
		Puts:    []store.Put{{Key: store.SecretKey(agent.ID), Value: []byte("sealed")}, {Key: store.LedgerKey(store.NodePrefix(agent.ID)), Value: []byte("1")}},
	})
	require.NoError(t, err)
	d.settle(d.ask(forget("a2")), api.OpFailed)
	require.Equal(t, api.PhaseDown, find[api.Agent](d, "", "a2").Status.Phase)
	d.done(forget("a2"))
	missing[api.Agent](d, "", "a2")
	entries, _, err := d.KV.List(ctx, store.Root)
	require.NoError(t, err)
	for _, e := range entries {
		if !strings.HasPrefix(e.Key, store.KindPrefix(api.KindOperation)) {
			require.NotContains(t, e.Key, agent.ID)
		}
	}
}

// TestANodeThatReportsCanBeHeld lets a node report all the time, as nodes do, while operations take it and let it go.
func TestANodeThatReportsCanBeHeld(t *testing.T) {
	d := newDesk(t)
	var end atomic.Bool
	reports := make(chan int)
	go func() {
		n := 0
		for ; !end.Load(); n++ {
			err := store.Retry(ctx, func() error {
				agent, err := store.Find[api.Agent](ctx, d.KV, d.User, "", "a1")
				if err != nil {
					return err
				}
				agent.Status.Observed = time.Now()
				draft := store.NewDraft(d.User)
				draft.Update(agent)
				_, err = draft.Commit(ctx, d.KV)
				return err
			})
			if err != nil {
				t.Errorf("%v", err)
			}
			<-time.After(time.Millisecond) // a thousand times as often as nodes do; who never pauses could starve others
		}
		reports <- n
	}()
	ratio := 2.0
	for range 50 {
		op := d.done(d.Admission.UpdateHost(ctx, d.User, nowhere, "a1", api.AgentUpdate{CPURatio: &ratio}))
		require.NotEqual(t, op.ID, find[api.Agent](d, "", "a1").Operation)
	}
	end.Store(true)
	t.Logf("%d reports meanwhile", <-reports)
}
