package nodes

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
)

// testDrain empties a node of all but what cannot leave it: first in vain, because it is cancelled, then for good, and again.
func testDrain(t *testing.T, w *world) {
	host := w.Hosts[1]
	w.put(t, host, w.in(stack.Shared, "goes-1"), w.in(stack.Shared, "goes-2"))
	pinned := small("stays", host)
	pinned.Pool = stack.Shared
	w.succeed(t, ask(t, w, pinned, ""))
	names := []string{"goes-1", "goes-2", "stays"}

	dry, err := w.Client.PlanDrain(t.Context(), host.Name, api.HostDrain{})
	require.NoError(t, err)
	require.Nil(t, dry.Error)
	isDrain(t, dry.Plan, 2)

	// A move stands until it hears that the drain was cancelled.
	point := stack.Point{Kind: api.OpVMMigrate, Step: "move", At: stack.Before}
	id := w.drain(t, host, api.HostDrain{Parallel: 1, Reason: "new fans"}, point)
	require.True(t, w.Faults.Held(point))
	_, err = w.Client.Cancel(t.Context(), id, client.Write{})
	require.NoError(t, err)
	require.NoError(t, stack.Poll(within(t, 30*time.Second), 20*time.Millisecond, func() error {
		if !w.Faults.Expired(point) {
			return errNotYet
		}
		return nil
	}), "its move was not cancelled")
	require.NoError(t, w.Faults.Release(point))
	ops, err := w.Ended(within(t, patience), id)
	require.NoError(t, err)
	require.Equal(t, api.OpCancelled, ops[id].State, "%s", stack.Describe(ops[id]))
	for child, err := range client.All[*api.Operation](t.Context(), w.Client, "", client.ListOptions{}) {
		require.NoError(t, err)
		if child.Parent == id {
			require.Equal(t, api.OpCancelled, child.State, "%s", stack.Describe(child))
		}
	}
	agent, err := host.Record(t.Context())
	require.NoError(t, err)
	require.False(t, agent.Spec.Cordoned, "%s", agent.Spec.CordonReason)
	for _, n := range names {
		w.runsOn(t, n, host)
	}
	w.clean(t)

	id = w.drain(t, host, api.HostDrain{Reason: "new fans"})
	w.succeed(t, id)
	plan := w.planOf(t, id)
	isDrain(t, plan, 2)
	for _, m := range plan.Moves {
		require.Equal(t, api.OpSucceeded, m.State, "%+v", m)
		child, err := w.Client.Operation(t.Context(), m.Operation)
		require.NoError(t, err)
		require.Equal(t, id, child.Parent)
	}
	agent, err = host.Record(t.Context())
	require.NoError(t, err)
	require.Equal(t, api.PhaseMaintenance, agent.Status.Phase)
	require.Equal(t, "new fans", agent.Spec.CordonReason)
	w.runsOn(t, "stays", host)
	for _, n := range names[:2] {
		vm := w.vm(t, n)
		require.NotEqual(t, host.Name, vm.Status.AgentName, n)
		w.runsOn(t, n, w.host(vm.Status.AgentName))
	}

	id = w.drain(t, host, api.HostDrain{Reason: "new fans"})
	w.succeed(t, id)
	isDrain(t, w.planOf(t, id), 0)

	open, none := false, ""
	op, err := client.Change(t.Context(), w.Client, "", host.Name, &api.AgentUpdate{Cordoned: &open, CordonReason: &none}, client.Write{})
	require.NoError(t, err)
	w.succeed(t, op.ID)
	require.NoError(t, stack.Poll(within(t, 10*time.Second), 50*time.Millisecond, func() error {
		agent, err := host.Record(t.Context())
		if err == nil && agent.Status.Phase != api.PhaseReady {
			err = fmt.Errorf("the node is %s", agent.Status.Phase)
		}
		return err
	}))
	w.remove(t, api.KindVM, names...)
}

// drain asks for it, and returns when an operation stands at each of the points.
func (w *world) drain(t *testing.T, h *stack.Host, how api.HostDrain, points ...stack.Point) string {
	t.Helper()
	for _, p := range points {
		require.NoError(t, w.Faults.Arm(p))
	}
	op, err := w.Client.DrainHost(t.Context(), h.Name, how, client.Write{})
	require.NoError(t, err)
	require.NoError(t, w.Faults.Await(within(t, time.Minute), points...))
	return op.ID
}

// planOf returns what became of the moves of a drain or a balance.
func (w *world) planOf(t *testing.T, id string) *api.MovePlan {
	t.Helper()
	op, err := w.Client.Operation(t.Context(), id)
	require.NoError(t, err)
	var plan api.MovePlan
	require.NoError(t, json.Unmarshal(op.Result, &plan), "%s", op.Result)
	return &plan
}

// isDrain fails t unless so many VMs go, and the pinned one stays for that reason.
func isDrain(t *testing.T, plan *api.MovePlan, leave int) {
	t.Helper()
	require.Len(t, plan.Moves, leave, "%+v", plan)
	require.Len(t, plan.Stays, 1, "%+v", plan)
	require.Equal(t, "stays", plan.Stays[0].VM.Name)
	require.Contains(t, plan.Stays[0].Reason, "pinned")
}

func (w *world) host(name string) *stack.Host {
	i := slices.IndexFunc(w.Hosts, func(h *stack.Host) bool { return h.Name == name })
	return w.Hosts[i]
}

// testBalance has one node carry everything, until that is evened out.
func testBalance(t *testing.T, w *world) {
	full := w.Hosts[2]
	agent, err := full.Record(t.Context())
	require.NoError(t, err)
	var heavy []*api.VMCreate
	var names []string
	for i := range 4 {
		r := w.in(stack.Shared, fmt.Sprintf("heavy-%d", i))
		r.Memory = agent.Status.Inventory.Memory / 20 / api.MiB * api.MiB
		heavy, names = append(heavy, r), append(names, r.Name)
	}
	w.put(t, full, heavy...)
	dry, err := w.Client.PlanBalance(t.Context(), api.HostBalance{})
	require.NoError(t, err)
	require.NotEmpty(t, dry.Plan.Moves)
	for _, n := range names {
		w.runsOn(t, n, full)
	}
	op, err := w.Client.BalanceHosts(t.Context(), api.HostBalance{}, client.Write{})
	require.NoError(t, err)
	w.succeed(t, op.ID)
	plan := w.planOf(t, op.ID)
	require.Len(t, plan.Moves, len(dry.Plan.Moves), "%+v; it proposed %+v", plan, dry.Plan)
	for _, m := range plan.Moves {
		require.Equal(t, api.OpSucceeded, m.State, "%+v", m)
		require.Equal(t, full.Name, m.From)
		w.runsOn(t, m.VM.Name, w.host(m.To))
		t.Logf("%s went to %s: %s", m.VM.Name, m.To, m.Reason)
	}
	dry, err = w.Client.PlanBalance(t.Context(), api.HostBalance{})
	require.NoError(t, err)
	require.Empty(t, dry.Plan.Moves, "there is nothing left to even out")
	w.remove(t, api.KindVM, names...)
}
