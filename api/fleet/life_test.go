package fleet

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// down declares an agent dead, as its recovery does; operation is what holds it then.
func (k *kit) down(id, operation string) {
	k.t.Helper()
	a := k.agent(id)
	a.Status.Phase, a.Status.Proof, a.Operation = api.PhaseDown, &api.Proof{Kind: api.ProofOperator}, operation
	beat, err := store.ReadBeat(k.t.Context(), k.kv, id)
	require.NoError(k.t, err)
	beat.Down = true
	d := store.NewDraft(system)
	d.Update(a)
	d.Beat(id, beat)
	rev, err := d.Commit(k.t.Context(), k.kv)
	require.NoError(k.t, err)
	require.NoError(k.t, k.cache.WaitFor(k.t.Context(), rev))
}

func (k *kit) change(id string, change func(*api.Agent)) {
	k.t.Helper()
	a := k.agent(id)
	change(a)
	k.put(a)
}

func sees(vms ...*api.VM) api.AgentReport {
	var r api.AgentReport
	for _, vm := range vms {
		r.VMs = append(r.VMs, api.VMObservation{ID: vm.ID, Phase: api.PhaseRunning})
	}
	return r
}

func TestReportsGrantLeasesAndLeaveTheRecordAlone(t *testing.T) {
	k := newKit(t)
	id, h := k.join("node-1")
	r := api.AgentReport{Guarded: true, Inventory: api.Inventory{Cores: 8, Memory: 16 * api.GiB, UsedMemory: api.GiB}}
	o := k.report(h, r)
	require.InDelta(t, Lease.Seconds(), o.Lease, 0.001)
	require.Zero(t, o.ReportEvery)
	a := k.agent(id)
	require.Equal(t, api.Lease{Until: k.at.Add(Lease), Guarded: true}, a.Status.Lease)
	require.Equal(t, api.Amount{VCPUs: 32, Memory: 16*api.GiB - 512*api.MiB}, a.Status.Free)

	k.pass(5 * time.Second)
	r.Inventory.UsedMemory += 8 * api.MiB
	k.report(h, r)
	b := k.agent(id)
	require.Equal(t, a.Revision, b.Revision, "only the beat is written")
	require.Equal(t, k.at, b.Status.Observed)
	require.Equal(t, k.at.Add(Lease), b.Status.Lease.Until)
	shown, err := store.GetCached[api.Agent](k.cache, system, "", id)
	require.NoError(t, err)
	require.Equal(t, k.at, shown.Status.Observed, "who reads the cache sees it")
	page, err := store.ListCached[api.Agent](k.cache, system, "", "", 0, nil)
	require.NoError(t, err)
	require.Equal(t, k.at, page.Items[0].Status.Observed)

	r.Inventory.UsedMemory += api.GiB
	k.report(h, r)
	require.Greater(t, k.agent(id).Revision, b.Revision, "more than a hundredth")

	// A node that has more vCPUs promised than it may have has none left, and no negative number of them.
	k.change(id, func(a *api.Agent) { a.Spec.CPURatio, a.Spec.Cordoned, a.Spec.CordonReason = 0.1, true, "new disks" })
	k.report(h, r)
	a = k.agent(id)
	require.Zero(t, a.Status.Free.VCPUs)
	require.Equal(t, api.PhaseMaintenance, a.Status.Phase)
	require.Equal(t, "new disks", a.Status.Reason)

	k.fleet.agents.Store(10_000)
	o = k.report(h, r)
	require.InDelta(t, 100, o.ReportEvery, 0.001, "so many agents report less often")
	require.Greater(t, o.Lease, o.ReportEvery*3)
}

func TestSilentNodesAreRecoveredOnceForEachSilence(t *testing.T) {
	k := newKit(t)
	a, ha := k.join("node-a")
	_, hb := k.join("node-b")
	var begun []string
	var refuse error
	k.fleet.Recover = func(_ context.Context, a *api.Agent) error {
		if refuse == nil {
			begun = append(begun, a.Name+a.Status.Observed.Format(" 15:04:05"))
		}
		return refuse
	}
	runs, held, off := k.vm(a, api.PhaseRunning), k.vm(a, api.PhaseRunning), k.vm(a, api.PhaseStopped)
	held.Operation, held.Spec.HA = api.NewID(), true
	k.put(held)
	first := sees(runs, held)
	first.VMs = append(first.VMs, api.VMObservation{ID: off.ID, Phase: api.PhaseStopped})
	k.report(ha, first)
	refuse = problem.New(problem.Locked, "a drain holds it")
	for range 4 {
		k.pass(5 * time.Second)
		k.report(hb, api.AgentReport{})
	}
	require.Equal(t, api.PhaseSuspect, k.agent(a).Status.Phase)
	require.Contains(t, k.agent(a).Status.Reason, "waits for operation")
	require.Equal(t, api.PhaseUnknown, k.read(runs).Status.Phase)
	require.Equal(t, "agent node-a has not reported since 2030-01-01T00:00:00Z", k.read(runs).Status.Reason)
	require.Equal(t, api.PhaseRunning, k.read(held).Status.Phase, "its operation says what it is")
	require.Equal(t, api.PhaseStopped, k.read(off).Status.Phase, "what was off must not seem to have run")
	refuse = nil
	for range 4 {
		k.pass(5 * time.Second)
		k.report(hb, api.AgentReport{})
	}
	require.Equal(t, []string{"node-a 00:00:00"}, begun)
	require.Equal(t, "has not reported since 2030-01-01T00:00:00Z", k.agent(a).Status.Reason)

	k.report(ha, api.AgentReport{VMs: []api.VMObservation{{ID: runs.ID, Phase: api.PhaseRunning}, {ID: off.ID, Phase: api.PhaseStopped}}})
	require.Equal(t, api.PhaseReady, k.agent(a).Status.Phase)
	require.Equal(t, api.PhaseRunning, k.read(runs).Status.Phase)
	require.Empty(t, k.read(runs).Status.Reason)
	back := k.at.Format(" 15:04:05")
	for range 5 {
		k.pass(5 * time.Second)
		k.report(hb, api.AgentReport{})
	}
	require.Equal(t, []string{"node-a 00:00:00", "node-a" + back}, begun, "another silence")
}

func TestManySilentAgentsAreTheServersTrouble(t *testing.T) {
	k := newKit(t)
	begun := 0
	k.fleet.Recover = func(context.Context, *api.Agent) error { begun++; return nil }
	var handles []auth.Handle
	var ids []string
	for i := range 5 {
		id, h := k.join(fmt.Sprintf("node-%d", i))
		k.report(h, api.AgentReport{})
		ids, handles = append(ids, id), append(handles, h)
		if i != 2 { // on which there is nothing to be started elsewhere
			vm := k.vm(id, api.PhaseRunning)
			vm.Spec.HA = true
			k.put(vm)
		}
	}
	k.down(ids[4], "") // was dead before, and counts for nothing
	for range 6 {
		k.pass(5 * time.Second)
		k.report(handles[0], api.AgentReport{})
	}
	require.Zero(t, begun)
	require.Contains(t, k.agent(ids[1]).Status.Reason, "more than half")
	k.report(handles[1], api.AgentReport{})
	k.pass(time.Second)
	require.Equal(t, 1, begun, "two of four are not more than half, and one of them has an HA VM")
	require.Contains(t, k.agent(ids[2]).Status.Reason, "no HA VM is on it")
}

func TestTheServersOwnSilenceIsNotTheNodes(t *testing.T) {
	k := newKit(t)
	id, h := k.join("node-1")
	k.report(h, api.AgentReport{})
	k.at = k.at.Add(time.Hour) // it was stopped, say
	require.NoError(t, k.fleet.Sweep(t.Context(), k.at))
	require.Equal(t, api.PhaseReady, k.agent(id).Status.Phase)
	k.pass(SilentAfter - time.Second)
	require.Equal(t, api.PhaseReady, k.agent(id).Status.Phase)
	k.pass(2 * time.Second)
	require.Equal(t, api.PhaseSuspect, k.agent(id).Status.Phase)

	k.report(h, api.AgentReport{})
	k.at = k.at.Add(time.Hour)
	next := New(k.fleet.Options) // or it is another one
	next.Options.Clock = NewClock(func() time.Time { return k.at })
	k.fleet = next
	k.pass(2*SilentAfter - time.Second)
	require.Equal(t, api.PhaseReady, k.agent(id).Status.Phase)
	k.pass(2 * time.Second)
	require.Equal(t, api.PhaseSuspect, k.agent(id).Status.Phase)
}

func TestSecondAgentOnAMachineIsRefused(t *testing.T) {
	k := newKit(t)
	a, ha := k.join("node-a")
	b, hb := k.join("node-b")
	same := api.AgentReport{Inventory: api.Inventory{HostUUID: "11111111-2222-3333-4444-555555555555"}}
	k.report(ha, same)
	k.report(hb, same)
	k.report(ha, same)
	require.Equal(t, api.PhaseReady, k.agent(a).Status.Phase)
	require.Equal(t, api.PhaseUnavailable, k.agent(b).Status.Phase)
	require.Contains(t, k.agent(b).Status.Reason, "node-a")
	for range 4 {
		k.pass(5 * time.Second)
		k.report(hb, same)
	}
	require.Equal(t, api.PhaseReady, k.agent(b).Status.Phase, "the other one is silent")
	k.report(ha, same)
	require.Equal(t, api.PhaseUnavailable, k.agent(a).Status.Phase, "now it is the one that comes late")
}

func TestStrays(t *testing.T) {
	k := newKit(t)
	a, ha := k.join("node-a")
	b, hb := k.join("node-b")
	k.report(ha, api.AgentReport{})
	k.report(hb, api.AgentReport{})
	elsewhere, moving, here := k.vm(b, api.PhaseRunning), k.vm(b, api.PhaseRunning), k.vm(a, api.PhaseRunning)
	coming := k.vm(b, api.PhaseRunning)
	for vm, to := range map[*api.VM]string{moving: b, coming: a} {
		vm.Operation, vm.Status.MovingTo = api.NewID(), to
		k.put(vm)
	}
	ghost := &api.VM{Meta: api.Meta{ID: api.NewID()}}
	all := sees(elsewhere, moving, here, coming, ghost)
	require.Empty(t, k.report(ha, all).Stop, "nobody has seen it at the other node: this may be the only place where it runs")
	k.at = k.at.Add(time.Second)
	elsewhere.Status.Observed = k.at
	k.put(elsewhere)
	require.Equal(t, []string{elsewhere.ID}, k.report(ha, all).Stop)
	require.Equal(t, api.PhaseReady, k.agent(a).Status.Phase)
	require.Empty(t, k.report(ha, api.AgentReport{Error: "libvirt is away", VMs: all.VMs}).Stop, "what was seen earlier counts for nothing")

	// It was dead, and its recovery is at work: what that may start elsewhere is stopped, what only waits is left.
	ha1, plain := k.vm(a, api.PhaseUnknown), k.vm(a, api.PhaseUnknown)
	ha1.Spec.HA = true
	k.put(ha1)
	k.down(a, api.NewID())
	o := k.report(ha, sees(elsewhere, moving, coming, ghost, ha1, plain))
	require.ElementsMatch(t, []string{elsewhere.ID, moving.ID, ghost.ID, ha1.ID}, o.Stop)
	require.Zero(t, o.Lease)
	require.Equal(t, api.PhaseDown, k.agent(a).Status.Phase)
	require.Contains(t, k.agent(a).Status.Reason, "is at work on it")
	require.Equal(t, api.PhaseUnknown, k.read(plain).Status.Phase)
	require.Empty(t, k.report(ha, api.AgentReport{VMs: []api.VMObservation{{ID: ha1.ID, Phase: api.PhaseStopped}}}).Stop, "it does not run")

	// The recovery is over.
	k.change(a, func(a *api.Agent) { a.Operation = "" })
	o = k.report(ha, sees(elsewhere, plain))
	require.Equal(t, []string{elsewhere.ID}, o.Stop)
	require.Zero(t, o.Lease)
	require.Equal(t, "reports again; stops 1 VMs that run elsewhere now", k.agent(a).Status.Reason)
	require.Zero(t, k.report(ha, api.AgentReport{Error: "libvirt is away"}).Lease, "nobody knows what it runs")
	require.Equal(t, api.PhaseDown, k.agent(a).Status.Phase)
	o = k.report(ha, sees(plain))
	require.Empty(t, o.Stop)
	require.NotZero(t, o.Lease)
	require.Equal(t, api.PhaseReady, k.agent(a).Status.Phase)
	require.Nil(t, k.agent(a).Status.Proof)
	require.Equal(t, api.PhaseRunning, k.read(plain).Status.Phase)
}

func TestStoppedVMsAreStartedAgain(t *testing.T) {
	k := newKit(t)
	id, h := k.join("node-1")
	var started []string
	var refuse error
	k.fleet.Restart = func(_ context.Context, vm *api.VM) error {
		started = append(started, vm.ID)
		return refuse
	}
	ha := func(agent string, change func(*api.VM)) *api.VM {
		vm := k.vm(agent, api.PhaseRunning)
		vm.Spec.HA = true
		if change != nil {
			change(vm)
		}
		k.put(vm)
		return k.read(vm)
	}
	lost, moved, back := ha(id, nil), ha(api.NewID(), nil), ha(id, nil)
	held := ha(id, func(vm *api.VM) { vm.Operation = api.NewID() })
	gone := api.NewID()
	r := api.AgentReport{
		Stopped: []string{lost.ID, moved.ID, back.ID, held.ID, gone},
		VMs:     []api.VMObservation{{ID: lost.ID, Phase: api.PhaseStopped}, {ID: back.ID, Phase: api.PhaseRunning}, {ID: held.ID, Phase: api.PhaseStopped}},
	}
	refuse = errors.New("not now")
	require.ElementsMatch(t, []string{moved.ID, back.ID, gone}, k.report(h, r).Noted)
	refuse = nil
	require.ElementsMatch(t, []string{lost.ID, moved.ID, back.ID, gone}, k.report(h, r).Noted)
	require.Equal(t, []string{lost.ID, lost.ID}, started)
	require.Equal(t, api.PhaseStopped, k.read(lost).Status.Phase)
}

// TestWhatWasLeftOnADeadNodeIsTriedAgain: when it could be started elsewhere, and not more often than that makes sense.
func TestWhatWasLeftOnADeadNodeIsTriedAgain(t *testing.T) {
	k := newKit(t)
	a, ha := k.join("node-a")
	_, hb := k.join("node-b")
	k.report(ha, api.AgentReport{})
	left := k.vm(a, api.PhaseRunning)
	left.Spec.HA = true
	held := k.vm(a, api.PhaseRunning)
	held.Spec.HA, held.Operation = true, api.NewID()
	k.put(left)
	k.put(held)
	k.vm(a, api.PhaseUnknown) // not HA: waits for its node
	asked, begun := 0, []time.Time{}
	var room []string
	var refuse error
	setUp := func(f *Fleet) {
		f.Recoverable = func(_ context.Context, agent string) ([]string, error) {
			require.Equal(t, a, agent)
			asked++
			return room, nil
		}
		f.Recover = func(_ context.Context, agent *api.Agent) error {
			if agent.Status.Phase == api.PhaseDown && refuse == nil {
				require.Equal(t, k.agent(a).Revision, agent.Revision)
				begun = append(begun, k.at)
			}
			return refuse
		}
	}
	setUp(k.fleet)
	pass := func(d time.Duration) (asks, begins int) {
		asks, begins = asked, len(begun)
		for range d / (5 * time.Second) {
			k.pass(5 * time.Second)
			k.report(hb, api.AgentReport{})
		}
		return asked - asks, len(begun) - begins
	}
	pass(20 * time.Second)
	k.down(a, api.NewID())
	asks, _ := pass(time.Minute)
	require.Zero(t, asks, "its recovery is at work")
	k.change(a, func(a *api.Agent) { a.Operation = "" })
	asks, begins := pass(10 * time.Minute)
	require.InDelta(t, 10, asks, 2, "there is no room, so it is only asked")
	require.Zero(t, begins)

	room, refuse = []string{left.ID}, problem.New(problem.Locked, "a recovery has just begun")
	_, begins = pass(2 * time.Minute)
	require.Zero(t, begins)
	refuse = nil
	_, begins = pass(2 * time.Minute)
	require.NotZero(t, begins)
	pass(6 * time.Hour) // it goes wrong each time
	require.InDelta(t, 17, len(begun), 2)
	for i := 1; i < len(begun); i++ {
		pause := begun[i].Sub(begun[i-1])
		require.GreaterOrEqual(t, pause, askEvery)
		require.LessOrEqual(t, pause, triedAtMost+askEvery)
	}

	// Another one comes free: it does not wait for the first.
	free := k.read(held)
	free.Operation = ""
	k.put(free)
	room = []string{held.ID, left.ID}
	_, begins = pass(time.Minute)
	require.Equal(t, 1, begins)
	require.Equal(t, api.PhaseUnknown, k.read(held).Status.Phase)

	// A server that has just begun waits as with all that it begins, and then tries again.
	next := k.fleet.Options
	next.Clock, begun = NewClock(func() time.Time { return k.at }), nil
	k.fleet = New(next)
	_, begins = pass(25 * time.Second)
	require.Zero(t, begins)
	_, begins = pass(time.Minute)
	require.Equal(t, 1, begins)

	// It reports again, and is not ready yet: that is no time to begin anything.
	k.change(a, func(a *api.Agent) { a.Operation = api.NewID() })
	k.report(ha, api.AgentReport{})
	require.Equal(t, api.PhaseDown, k.agent(a).Status.Phase)
	k.change(a, func(a *api.Agent) { a.Operation = "" })
	for range 60 {
		k.pass(5 * time.Second)
		k.report(hb, api.AgentReport{})
		k.report(ha, api.AgentReport{Error: "libvirt is away"})
	}
	require.Len(t, begun, 1)
}
