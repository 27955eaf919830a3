package nodes

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/test/stack"
)

// goal is how long a guest may be away whose node has died.
const goal = time.Minute

// both runs two tests side by side, and returns when both have ended.
func both(t *testing.T, a string, testA func(*testing.T), b string, testB func(*testing.T)) {
	t.Helper()
	t.Run("both", func(t *testing.T) {
		t.Run(a, func(t *testing.T) { t.Parallel(); testA(t) })
		t.Run(b, func(t *testing.T) { t.Parallel(); testB(t) })
	})
	if t.Failed() {
		t.FailNow()
	}
}

// testFencedAndAgentKilled: the node of the tally loses its power, and its fence device says that it is off. On another node
// only the agent dies: its guardian stops what is HA, and all else goes on.
func testFencedAndAgentKilled(t *testing.T, d *dying) {
	dead, others := d.at(t, d.tally.name)
	killed := others[0]
	d.changeHost(t, dead, &api.AgentUpdate{Fence: dead.Fence()})
	local := small("local", dead)
	local.HA, local.NodeID = true, ""
	_, err := client.Create(t.Context(), d.Client, project, local, client.Write{})
	require.True(t, problem.Is(err, problem.Conflict), "HA on a pool that no other node reaches: %v", err)
	local = small("local", dead)
	d.succeed(t, ask(t, d.world, local, ""))
	d.make(t, dead, "plain")
	d.make(t, killed, "orphan")
	d.makeHA(t, killed, "ward")
	d.changeHost(t, killed, &api.AgentUpdate{Cordoned: ptr(true)}) // or the tally might go there before it is suspect

	both(t, "Fenced", func(t *testing.T) {
		begun := d.powerCut(t, dead)
		took := d.tally.answers(t, d, begun)
		t.Logf("FENCE: the guest answered elsewhere %s after the power cut", took)
		require.Less(t, took, goal)
		plan := d.recovered(t, d.recovery(t, dead, begun), api.ProofFence)
		require.Equal(t, []string{"tally"}, went(plan.Moves))
		require.Equal(t, []string{"local", "plain"}, went(plan.Stays))
		d.stays(t, plan, "plain", "not marked ha")
		d.stays(t, plan, "local", "not marked ha")
		d.elsewhere(t, "tally", dead)
		d.powerOn(t, dead)
		d.becomes(t, "plain", api.PhaseStopped)
		d.becomes(t, "local", api.PhaseStopped)
	}, "AgentKilled", func(t *testing.T) {
		orphan, ward := d.process(t, "orphan"), d.vm(t, "ward")
		writers := d.watch(t, ward.ID)
		begun := time.Now()
		require.NoError(t, killed.Agent.Kill())
		faults.Add(1)
		stopped := writers.gone(t, begun)
		id := d.recovery(t, killed, begun)
		plan := d.recovered(t, id, api.ProofLease)
		require.True(t, stopped.Before(plan.Proof.At), "the proof is older than the end of the guest")
		t.Logf("the guardian had stopped its HA guest %s after the agent was killed, and %s before that was taken for proven", stopped.Sub(begun).Round(100*time.Millisecond), plan.Proof.At.Sub(stopped).Round(100*time.Millisecond))
		require.Equal(t, []string{"ward"}, went(plan.Moves))
		d.stays(t, plan, "orphan", "not marked ha")
		d.elsewhere(t, "ward", killed)
		writers.never2(t)
		d.changeHost(t, killed, &api.AgentUpdate{Cordoned: ptr(false)})
		again := time.Now()
		require.NoError(t, killed.StartAgent(""))
		require.NoError(t, killed.AwaitReport(within(t, time.Minute), again))
		d.becomes(t, "orphan", api.PhaseRunning)
		require.Equal(t, orphan, d.process(t, "orphan"), "a guest that is not HA is not the process that it was")
	})
	d.changeHost(t, dead, &api.AgentUpdate{Fence: &api.Fence{}})
	d.remove(t, api.KindVM, "plain", "local", "orphan", "ward")
}

// testLeaseAndBackBefore: the node of the tally loses its power, and only the end of its lease proves it. Another one is cut
// off, and is back before its lease proves anything.
func testLeaseAndBackBefore(t *testing.T, d *dying) {
	dead, others := d.at(t, d.tally.name)
	early := others[0]
	d.make(t, early, "orphan")
	d.makeHA(t, early, "ward")
	d.changeHost(t, early, &api.AgentUpdate{Cordoned: ptr(true)}) // the tally is to be timed, and not on a node that is just back
	both(t, "Lease", func(t *testing.T) {
		begun := d.powerCut(t, dead)
		took := d.tally.answers(t, d, begun)
		t.Logf("LEASE: the guest answered elsewhere %s after the power cut", took)
		require.Less(t, took, goal)
		plan := d.recovered(t, d.recovery(t, dead, begun), api.ProofLease)
		require.Equal(t, []string{"tally"}, went(plan.Moves))
		d.elsewhere(t, "tally", dead)
		d.powerOn(t, dead)
	}, "BackBefore", func(t *testing.T) {
		orphan, writers := d.process(t, "orphan"), d.watch(t, d.vm(t, "ward").ID)
		begun := d.cut(t, early)
		id := d.recovery(t, early, begun)
		back := time.Now()
		require.NoError(t, early.Heal(t.Context()))
		ops, err := d.Ended(within(t, patience), id)
		require.NoError(t, err)
		require.Equal(t, api.OpSucceeded, ops[id].State, stack.Describe(ops[id]))
		require.NotContains(t, string(ops[id].Result), api.ProofLease)
		require.NotContains(t, string(ops[id].Result), "ward")
		d.changeHost(t, early, &api.AgentUpdate{Cordoned: ptr(false)})
		require.NoError(t, early.AwaitReport(within(t, time.Minute), back))
		// Its guardian may have stopped it, if it was not heard in time; then it is started there again.
		d.becomes(t, "ward", api.PhaseRunning)
		d.becomes(t, "orphan", api.PhaseRunning)
		d.runsOn(t, "ward", early)
		writers.never2(t)
		require.Equal(t, orphan, d.process(t, "orphan"), "a guest that is not HA is not the process that it was")
	})
	d.remove(t, api.KindVM, "orphan", "ward")
}

// testCutOffAndBackAfter: the node of the tally is cut off and lives. Its guest counts until the guardian stops it, and only
// then it is started elsewhere. Another node is cut off, too, and is back when it is proven dead and its recovery is at work.
func testCutOffAndBackAfter(t *testing.T, d *dying) {
	alive, others := d.at(t, d.tally.name)
	late := others[0]
	d.make(t, late, "orphan")
	d.makeHA(t, late, "ward")
	both(t, "CutOff", func(t *testing.T) {
		writers := d.watch(t, d.tally.vm)
		begun := d.cut(t, alive)
		life := d.tally.counts(t, d, 0)
		a, err := alive.Record(t.Context())
		require.NoError(t, err)
		require.Less(t, a.Status.Observed.Sub(begun), time.Second, "nobody hears it, and yet it has reported")
		t.Logf("cut off from the control plane, it counts on in its life %d", life)
		stopped := writers.gone(t, begun)
		plan := d.recovered(t, d.recovery(t, alive, begun), api.ProofLease)
		require.True(t, stopped.Before(plan.Proof.At), "the proof is older than the end of the guest")
		t.Logf("the guardian had stopped it %s after the node was cut off, and %s before that was taken for proven", stopped.Sub(begun).Round(100*time.Millisecond), plan.Proof.At.Sub(stopped).Round(100*time.Millisecond))
		d.elsewhere(t, "tally", alive)
		d.tally.counts(t, d, life)
		writers.never2(t)
		domains, err := alive.Domains(t.Context())
		require.NoError(t, err)
		require.Contains(t, domains, d.tally.vm, "nobody has told it yet")
		back := time.Now()
		require.NoError(t, alive.Heal(t.Context()))
		require.NoError(t, alive.AwaitReport(within(t, time.Minute), back))
		domains, err = alive.Domains(t.Context())
		require.NoError(t, err)
		require.NotContains(t, domains, d.tally.vm, "it takes VMs, and still has one that is elsewhere")
	}, "BackAfter", func(t *testing.T) {
		ward, orphan := d.vm(t, "ward"), d.process(t, "orphan")
		writers := d.watch(t, ward.ID)
		begun := d.cut(t, late)
		id := d.recovery(t, late, begun)
		p := stack.Point{Kind: api.OpHostRecover, Step: "restart", At: stack.Before, Operation: id}
		require.NoError(t, d.Faults.Arm(p))
		require.NoError(t, d.Faults.Await(within(t, time.Minute), p))
		require.NoError(t, late.Heal(t.Context()))
		require.NoError(t, stack.Poll(within(t, time.Minute), 50*time.Millisecond, func() error {
			a, err := late.Record(t.Context())
			if err != nil {
				return err
			}
			require.Equal(t, api.PhaseDown, a.Status.Phase, "it is at work to be recovered, and is admitted")
			if !strings.Contains(a.Status.Reason, "reports again") {
				return fmt.Errorf("it is %s: %s", a.Status.Phase, a.Status.Reason)
			}
			return nil
		}))
		require.True(t, d.Faults.Held(p), "%s was not held long enough", p)
		require.NoError(t, d.Faults.Release(p))
		plan := d.recovered(t, id, api.ProofLease)
		require.Equal(t, []string{"ward"}, went(plan.Moves))
		require.NoError(t, late.AwaitReport(within(t, time.Minute), begun))
		domains, err := late.Domains(t.Context())
		require.NoError(t, err)
		require.NotContains(t, domains, ward.ID, "it takes VMs, and still has one that is elsewhere")
		d.elsewhere(t, "ward", late)
		writers.never2(t)
		d.becomes(t, "orphan", api.PhaseRunning)
		require.Equal(t, orphan, d.process(t, "orphan"), "a guest that is not HA is not the process that it was")
	})
	d.remove(t, api.KindVM, "orphan", "ward")
}

// testStuckAndControlKilled: a node dies whose fence device is dead, too, and whose lease nobody guards, so that its recovery
// is stuck until somebody says that it is off. Meanwhile the node of the tally is cut off, and is powered off by its device;
// the control plane is killed when that has happened and it has not noted it, and again while the tally is being started.
func testStuckAndControlKilled(t *testing.T, d *dying) {
	fenced, others := d.at(t, d.tally.name)
	stuck := others[0]
	d.changeHost(t, fenced, &api.AgentUpdate{Fence: fenced.Fence()})
	d.changeHost(t, stuck, &api.AgentUpdate{Fence: stuck.Fence()})
	require.NoError(t, stuck.Agent.Stop(30*time.Second))
	require.NoError(t, stuck.EndGuardian(t.Context()))
	stuck.Agent.With("--guard=false")
	begun := time.Now()
	require.NoError(t, stuck.StartAgent(""))
	require.NoError(t, stuck.AwaitReport(within(t, time.Minute), begun))
	d.makeHA(t, stuck, "ward")
	require.NoError(t, stuck.KillIPMI(t.Context()))

	begun = d.powerCut(t, stuck)
	id := d.recovery(t, stuck, begun)
	require.NoError(t, stack.Poll(within(t, time.Minute), 100*time.Millisecond, func() error {
		op, err := d.Client.Operation(t.Context(), id)
		if err == nil && op.State != api.OpStuck {
			err = fmt.Errorf("it is not stuck: %s", stack.Describe(op))
		}
		return err
	}))
	op, err := d.Client.Operation(t.Context(), id)
	require.NoError(t, err)
	t.Logf("stuck after %s: %v", time.Since(begun).Round(100*time.Millisecond), op.Error)
	require.Contains(t, op.Error.Error(), "not guarded")
	require.Contains(t, op.Error.Error(), "fence device")
	d.becomes(t, "ward", api.PhaseUnknown)
	left, err := d.QEMUs(d.vm(t, "ward").ID)
	require.NoError(t, err)
	require.Empty(t, left, "nothing proves that its node is off, and yet it was started")

	same, err := d.Client.RecoverHost(t.Context(), stuck.Name, api.HostRecover{ConfirmOff: true}, client.Write{})
	require.NoError(t, err)
	require.Equal(t, id, same.ID, "that it is off is for the recovery that waits for it")
	confirmed := time.Now()
	plan := d.recovered(t, id, api.ProofOperator)
	t.Logf("it had ended %s after somebody said that the node is off", time.Since(confirmed).Round(100*time.Millisecond))
	require.Contains(t, plan.Proof.Detail, "admin")
	require.Equal(t, []string{"ward"}, went(plan.Moves))
	d.elsewhere(t, "ward", stuck)

	cut := d.cut(t, fenced)
	// The step judges the node, then asks the device, then judges again. It is to stand behind the device.
	before := stack.Point{Kind: api.OpHostRecover, Step: "fence", At: stack.Before}
	after := stack.Point{Kind: api.OpHostRecover, Step: "fence", At: stack.After}
	start := stack.Point{Kind: api.OpVMRecover, Step: "start", At: stack.Before}
	at := func(p stack.Point) {
		t.Helper()
		require.NoError(t, d.Faults.Await(within(t, time.Minute), p))
		require.True(t, d.Faults.Held(p), "%s was not held long enough", p)
	}
	require.NoError(t, d.Faults.Arm(after))
	require.NoError(t, d.Faults.Arm(start))
	at(after)
	require.True(t, fenced.Powered())
	require.NoError(t, d.Faults.Arm(before))
	require.NoError(t, d.Faults.Release(after))
	at(before)
	require.NoError(t, d.Faults.Arm(after))
	require.NoError(t, d.Faults.Release(before))
	at(after)
	require.False(t, fenced.Powered(), "its device was asked, and it has power")
	restart := func(p stack.Point) {
		t.Helper()
		require.NoError(t, d.Control.Kill())
		faults.Add(1)
		require.NoError(t, d.StartControl(within(t, time.Minute)))
		require.NoError(t, d.Faults.Release(p))
	}
	restart(after)
	at(start)
	restart(start)
	// What the device said is lost with the control plane that had asked it; by then the lease may prove it sooner.
	plan = d.recovered(t, d.recovery(t, fenced, cut), api.ProofFence, api.ProofLease)
	require.Contains(t, went(plan.Moves), "tally") // and the ward, if it had come here
	t.Logf("the guest answered elsewhere %s after its node was cut off; the control plane was killed twice meanwhile", d.tally.answers(t, d, cut))
	d.elsewhere(t, "tally", fenced)

	stuck.Agent.With()
	require.NoError(t, stuck.StartIPMI(t.Context()))
	d.powerOn(t, stuck)
	d.powerOn(t, fenced)
	d.changeHost(t, fenced, &api.AgentUpdate{Fence: &api.Fence{}})
	d.changeHost(t, stuck, &api.AgentUpdate{Fence: &api.Fence{}})
	d.remove(t, api.KindVM, "ward")
}

// testControlAway: the control plane is away for longer than leases last. All HA guests stop, all others go on, and when it is
// back the HA guests are started where they were.
func testControlAway(t *testing.T, d *dying) {
	home, others := d.at(t, d.tally.name)
	other := others[0]
	d.make(t, other, "orphan")
	d.makeHA(t, other, "ward")
	orphan, ward := d.process(t, "orphan"), d.vm(t, "ward")
	writers, wards := d.watch(t, d.tally.vm), d.watch(t, ward.ID)
	begun := time.Now()
	require.NoError(t, d.Control.Kill())
	faults.Add(1)
	for _, w := range []*watch{writers, wards} {
		t.Logf("HA guest stopped %s after the control plane was killed", w.gone(t, begun).Sub(begun).Round(100*time.Millisecond))
	}
	back := time.Now()
	require.NoError(t, d.StartControl(within(t, time.Minute)))
	// By itself, and however its phase was shown meanwhile.
	for _, vm := range []string{d.tally.vm, ward.ID} {
		require.NoError(t, stack.Poll(within(t, time.Minute), 50*time.Millisecond, func() error {
			q, err := d.QEMUs(vm)
			if err == nil && len(q) == 0 {
				err = errNotYet
			}
			return err
		}), "it is not started again")
	}
	t.Logf("they were started again %s after the control plane was started", time.Since(back).Round(100*time.Millisecond))
	d.becomes(t, "tally", api.PhaseRunning)
	d.becomes(t, "ward", api.PhaseRunning)
	d.runsOn(t, "tally", home)
	d.runsOn(t, "ward", other)
	d.becomes(t, "orphan", api.PhaseRunning)
	require.Equal(t, orphan, d.process(t, "orphan"), "a guest that is not HA is not the process that it was")
	d.tally.answers(t, d, back)
	writers.never2(t)
	wards.never2(t)
	d.remove(t, api.KindVM, "orphan", "ward")
}
