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

// TestNodeDeath takes nodes away in every way there is: what is HA runs elsewhere in the end, and never twice at a time. Two
// nodes go at once where that tests nothing else: most of the time is waited for leases to end.
//
// The last node takes no VMs. From there it is looked on.
func TestNodeDeath(t *testing.T) {
	d := &dying{world: &world{Stack: stack.Up(t, stack.Options{Nodes: 4, Shared: true, IPMI: true})}}
	last := d.Hosts[len(d.Hosts)-1]
	d.changeHost(t, last, &api.AgentUpdate{Cordoned: ptr(true)})
	d.tally = d.startTally(t, last)
	for _, part := range []struct {
		name string
		test func(*testing.T, *dying)
	}{
		{"FencedAndAgentKilled", testFencedAndAgentKilled},
		{"LeaseAndBackBefore", testLeaseAndBackBefore},
		{"CutOffAndBackAfter", testCutOffAndBackAfter},
		{"StuckAndControlKilled", testStuckAndControlKilled},
		{"ControlAway", testControlAway},
	} {
		ok := t.Run(part.name, func(t *testing.T) {
			begun := time.Now()
			writers := d.watch(t, d.tally.vm)
			part.test(t, d)
			d.tally.check(t, d)
			writers.never2(t)
			d.clean(t)
			t.Logf("%s took %s", part.name, time.Since(begun).Round(100*time.Millisecond))
		})
		if !ok {
			return // the rest would only tell of the same again
		}
	}
}

// dying is the cloud whose nodes die.
type dying struct {
	*world
	tally *tally
}

func ptr[T any](v T) *T { return &v }

// changeHost changes what is decided about a node.
func (d *dying) changeHost(t *testing.T, h *stack.Host, to *api.AgentUpdate) {
	t.Helper()
	op, err := client.Change(t.Context(), d.Client, "", h.Name, to, client.Write{})
	require.NoError(t, err)
	d.succeed(t, op.ID)
}

// make makes small VMs in the shared pool on one node.
func (d *dying) make(t *testing.T, on *stack.Host, names ...string) {
	t.Helper()
	var ids []string
	for _, n := range names {
		r := small(n, on)
		r.Pool = stack.Shared
		ids = append(ids, ask(t, d.world, r, ""))
	}
	d.succeed(t, ids...)
}

// makeHA makes small HA VMs on one node. They are made pinned, which HA VMs must not be, and are marked while they run.
func (d *dying) makeHA(t *testing.T, on *stack.Host, names ...string) {
	t.Helper()
	d.make(t, on, names...)
	var ids []string
	for _, n := range names {
		op, err := client.Change(t.Context(), d.Client, project, n, &api.VMUpdate{NodeID: ptr(""), HA: ptr(true)}, client.Write{})
		require.NoError(t, err)
		ids = append(ids, op.ID)
	}
	d.succeed(t, ids...)
}

// at returns the node that a VM is on, and the others that take VMs.
func (d *dying) at(t *testing.T, name string) (on *stack.Host, others []*stack.Host) {
	t.Helper()
	agent := d.vm(t, name).Status.AgentName
	for _, h := range d.Hosts[:len(d.Hosts)-1] {
		if h.Name == agent {
			on = h
		} else {
			others = append(others, h)
		}
	}
	require.NotNil(t, on, "%s is on node %s", name, agent)
	return on, others
}

// recovery waits for the recovery of a node that began after since, and returns its ID.
func (d *dying) recovery(t *testing.T, h *stack.Host, since time.Time) string {
	t.Helper()
	id := ""
	require.NoError(t, stack.Poll(within(t, time.Minute), 100*time.Millisecond, func() error {
		for op, err := range client.All[*api.Operation](t.Context(), d.Client, "", client.ListOptions{Kind: api.OpHostRecover, Target: h.Name}) {
			if err != nil {
				return err
			}
			if op.Created.After(since) {
				id = op.ID
				return nil
			}
		}
		return errNotYet
	}), "no recovery of %s has begun", h.Name)
	return id
}

// recovered waits for the end of a recovery that must succeed by a proof of one of these kinds, and returns what it did. Every
// restart must have succeeded.
func (d *dying) recovered(t *testing.T, id string, proofs ...string) *api.MovePlan {
	t.Helper()
	ops, err := d.Ended(within(t, patience), id)
	require.NoError(t, err)
	require.Equal(t, api.OpSucceeded, ops[id].State, stack.Describe(ops[id]))
	var plan api.MovePlan
	require.NoError(t, json.Unmarshal(ops[id].Result, &plan), string(ops[id].Result))
	require.NotNil(t, plan.Proof, string(ops[id].Result))
	require.Contains(t, proofs, plan.Proof.Kind, plan.Proof.Detail)
	for _, m := range plan.Moves {
		require.Equal(t, api.OpSucceeded, m.State, "restart of %s: %v", m.VM.Name, m.Error)
	}
	t.Logf("%s is down: %s", ops[id].Target.Name, plan.Proof.Detail)
	return &plan
}

// went returns the names of the VMs of some moves, in order.
func went(moves []api.Move) []string {
	var names []string
	for _, m := range moves {
		names = append(names, m.VM.Name)
	}
	slices.Sort(names)
	return names
}

// stays fails t unless a recovery has left a VM where it was, for this reason, and the VM says so.
func (d *dying) stays(t *testing.T, plan *api.MovePlan, name, why string) {
	t.Helper()
	i := slices.IndexFunc(plan.Stays, func(m api.Move) bool { return m.VM.Name == name })
	require.GreaterOrEqual(t, i, 0, "%s is not reported: %+v", name, plan.Stays)
	require.Contains(t, plan.Stays[i].Reason, why)
	vm := d.vm(t, name)
	require.Equal(t, api.PhaseUnknown, vm.Status.Phase, name)
	require.Contains(t, vm.Status.Reason, why)
}

// elsewhere fails t unless a VM runs, once, and not on the node.
func (d *dying) elsewhere(t *testing.T, name string, than *stack.Host) {
	t.Helper()
	on, _ := d.at(t, name)
	require.NotEqual(t, than.Name, on.Name, name)
	d.runsOn(t, name, on)
}

// powerCut takes the power of a node away, and returns when that was.
func (d *dying) powerCut(t *testing.T, h *stack.Host) time.Time {
	t.Helper()
	begun := time.Now()
	require.NoError(t, h.PowerCut(t.Context()))
	faults.Add(1)
	return begun
}

// cut cuts a node off, until the test ends at the latest, and returns when that was.
func (d *dying) cut(t *testing.T, h *stack.Host) time.Time {
	t.Helper()
	begun := time.Now()
	require.NoError(t, h.Cut(t.Context()))
	t.Cleanup(func() {
		if h.Powered() {
			_ = h.Heal(t.Context())
		}
	})
	faults.Add(1)
	return begun
}

// powerOn brings a node back, and returns when it takes VMs.
func (d *dying) powerOn(t *testing.T, h *stack.Host) {
	t.Helper()
	require.NoError(t, stack.Poll(within(t, 10*time.Second), 10*time.Millisecond, func() error {
		if h.Agent.Running() {
			return errNotYet
		}
		return nil
	}), "the agent of %s outlives its power", h.Name)
	begun := time.Now()
	require.NoError(t, h.PowerOn(t.Context()))
	require.NoError(t, h.StartAgent(""))
	require.NoError(t, h.AwaitReport(within(t, time.Minute), begun))
	t.Logf("%s takes VMs again %s after its power was back", h.Name, time.Since(begun).Round(100*time.Millisecond))
}

// becomes waits until a VM is in a phase.
func (d *dying) becomes(t *testing.T, name string, phase api.Phase) {
	t.Helper()
	require.NoError(t, stack.Poll(within(t, time.Minute), 100*time.Millisecond, func() error {
		vm, err := client.Get[*api.VM](t.Context(), d.Client, project, name)
		if err == nil && vm.Status.Phase != phase {
			err = fmt.Errorf("vm %s is %s: %s", name, vm.Status.Phase, vm.Status.Reason)
		}
		return err
	}))
}

// process returns the only process of a VM.
func (d *dying) process(t *testing.T, name string) stack.QEMU {
	t.Helper()
	q, err := d.QEMUs(d.vm(t, name).ID)
	require.NoError(t, err)
	require.Len(t, q, 1, name)
	return q[0]
}
