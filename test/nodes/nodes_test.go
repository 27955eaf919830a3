// Package nodes runs a real cloud of three nodes and breaks one of them: libvirtd hangs, an agent is stopped, replaced or killed,
// the control plane is restarted under load. It looks whether the others go on, and whether all comes to its end.
package nodes

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
)

// What all tests together did, for the last line: operations that were under way when something broke, and what was left over.
var faults, leaks atomic.Int64

func TestMain(m *testing.M) {
	code := m.Run()
	stack.RemoveBinaries()
	fmt.Printf("node faults: %d, leaks: %d\n", faults.Load(), leaks.Load())
	os.Exit(code)
}

// TestNodes is one cloud that goes through everything in turn. After each part nothing may be left, and a guest that answered
// pings all the while must be the same process as before.
func TestNodes(t *testing.T) {
	w := &world{Stack: stack.Up(t, stack.Options{Nodes: 3, Shared: true, IPMI: true})}
	witness := w.boot(t, "witness", w.Hosts[1])
	for _, part := range []struct {
		name string
		test func(*testing.T, *world)
	}{
		{"FrozenLibvirtd", testFrozenLibvirtd},
		{"StoppedAgent", func(t *testing.T, w *world) { testAgent(t, w, stopped) }},
		{"UpgradedAgent", func(t *testing.T, w *world) { testAgent(t, w, upgraded) }},
		{"KilledAgent", func(t *testing.T, w *world) { testAgent(t, w, killed) }},
		{"RestartedControl", testRestartedControl},
		{"CutOff", testCutOff},
		{"PowerCut", testPowerCut},
	} {
		t.Run(part.name, func(t *testing.T) {
			begun := time.Now()
			pings := witness.ping(t, w)
			part.test(t, w)
			witness.same(t, w, pings)
			w.clean(t)
			t.Logf("%s took %s", part.name, time.Since(begun).Round(100*time.Millisecond))
		})
	}
}

// world is the cloud under test.
type world struct {
	*stack.Stack
	moves *bool // what live said last; nil: nothing
}

// project is where everything happens.
const project = api.DefaultProject

// patience bounds how long anything may take until an operation has ended.
const patience = 2 * time.Minute

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// small is a request for the smallest VM, which boots nothing, on one node.
func small(name string, on *stack.Host) *api.VMCreate {
	return &api.VMCreate{
		Name: name, VCPUs: 1, Memory: 32 * api.MiB, Image: stack.Blank, Pool: stack.Pool,
		NICs: []api.NICRequest{{Subnet: stack.Subnet}}, Placing: api.Placing{NodeID: on.Name},
	}
}

// ask sends a request to create something and returns the ID of the operation.
func ask[B client.Creation](t *testing.T, w *world, body B, key string) string {
	t.Helper()
	op, err := client.Create(t.Context(), w.Client, project, body, client.Write{Key: key})
	require.NoError(t, err)
	return op.ID
}

// operation is the ID that the operation of the request with this key has, known before it is sent.
func operation(key string) string { return admission.OperationID(project, "admin", key) }

// succeed waits until the operations have ended, and all must have succeeded.
func (w *world) succeed(t *testing.T, ids ...string) {
	t.Helper()
	ops, err := w.Ended(within(t, patience), ids...)
	require.NoError(t, err)
	for _, op := range ops {
		if op.State != api.OpSucceeded {
			t.Errorf("it did not succeed: %s", stack.Describe(op))
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// remove deletes things and returns when they are gone.
func (w *world) remove(t *testing.T, kind api.Kind, names ...string) {
	t.Helper()
	var ids []string
	for _, n := range names {
		op, err := w.Client.Delete(t.Context(), kind, project, n, client.Write{})
		require.NoError(t, err)
		ids = append(ids, op.ID)
	}
	w.succeed(t, ids...)
}

// runsOn fails t unless the VM runs, as one process, on the host.
func (w *world) runsOn(t *testing.T, name string, h *stack.Host) {
	t.Helper()
	vm, err := client.Get[*api.VM](t.Context(), w.Client, project, name)
	require.NoError(t, err)
	require.Equal(t, api.PhaseRunning, vm.Status.Phase, "%s: %s", name, vm.Status.Reason)
	require.Equal(t, h.Name, vm.Status.AgentName, name)
	q, err := w.QEMUs(vm.ID)
	require.NoError(t, err)
	require.Len(t, q, 1, name)
	require.Equal(t, h.Name, q[0].Host, name)
}

// clean fails t if anything is left over, as the audit sees it and as each node itself shows it, or an operation is open.
func (w *world) clean(t *testing.T) {
	t.Helper()
	for op, err := range client.All[*api.Operation](t.Context(), w.Client, "", client.ListOptions{}) {
		require.NoError(t, err)
		if !op.State.Ended() {
			t.Errorf("an operation is still open: %s", stack.Describe(op))
		}
	}
	leaks.Add(int64(w.MustBeClean(t)))
}
