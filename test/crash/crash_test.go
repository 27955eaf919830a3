// Package crash breaks a real cloud: it kills its processes at every boundary of the steps of operations, takes its workflow
// engine away, asks for what cannot be, and looks afterwards whether every operation ended and nothing is left over.
package crash

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/test/stack"
)

// What all tests together did, for the last line.
var killPoints, leaks atomic.Int64

func TestMain(m *testing.M) {
	code := m.Run()
	stack.RemoveBinaries()
	fmt.Printf("kill points: %d, leaks: %d\n", killPoints.Load(), leaks.Load())
	os.Exit(code)
}

// TestCloud is one cloud that goes through everything in turn. After each part nothing may be left.
func TestCloud(t *testing.T) {
	w := &world{Stack: stack.Up(t, stack.Options{})}
	for _, part := range []struct {
		name string
		test func(*testing.T, *world)
	}{
		{"Requests", testRequests},
		{"SameName", testSameName},
		{"KillControl", func(t *testing.T, w *world) { testKill(t, w, killControl) }},
		{"KillAgent", func(t *testing.T, w *world) { testKill(t, w, killAgent) }},
		{"KillLibvirtd", func(t *testing.T, w *world) { testKill(t, w, killLibvirtd) }},
		{"Cancel", testCancel},
		{"RestartUnderLoad", testRestartUnderLoad},
		{"Failures", testFailures},
		{"AgentAway", testAgentAway},
		{"Boot", testBoot},
		{"Disks", testDisks},
	} {
		t.Run(part.name, func(t *testing.T) {
			begun := time.Now()
			part.test(t, w)
			w.clean(t)
			t.Logf("%s took %s", part.name, time.Since(begun).Round(100*time.Millisecond))
		})
	}
}

// world is the cloud under test, with what tests do to it again and again.
type world struct{ *stack.Stack }

// project is where everything happens.
const project = api.DefaultProject

// patience bounds how long anything may take until an operation has ended.
const patience = 2 * time.Minute

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// clean fails t if an audit finds anything, or an operation is still open.
func (w *world) clean(t *testing.T) {
	t.Helper()
	leaks.Add(int64(w.MustBeClean(t)))
	for op, err := range client.All[*api.Operation](t.Context(), w.Client, "", client.ListOptions{}) {
		require.NoError(t, err)
		if !op.State.Ended() {
			t.Errorf("an operation is still open: %s", stack.Describe(op))
		}
	}
}

// small is a request for the smallest VM, which boots nothing.
func small(name string) *api.VMCreate {
	return &api.VMCreate{Name: name, VCPUs: 1, Memory: 32 * api.MiB, Image: stack.Blank, Pool: stack.Pool, NICs: []api.NICRequest{{Subnet: stack.Subnet}}}
}

// create asks for the VMs and returns when they run.
func (w *world) create(t *testing.T, names ...string) {
	t.Helper()
	var ids []string
	for _, n := range names {
		op, err := client.Create(t.Context(), w.Client, project, small(n), client.Write{})
		require.NoError(t, err)
		ids = append(ids, op.ID)
	}
	w.succeed(t, ids...)
}

// remove deletes VMs and returns when they are gone.
func (w *world) remove(t *testing.T, names ...string) {
	t.Helper()
	w.removeAll(t, api.KindVM, names...)
}

func (w *world) removeAll(t *testing.T, kind api.Kind, names ...string) {
	t.Helper()
	var ids []string
	for _, n := range names {
		op, err := w.Client.Delete(t.Context(), kind, project, n, client.Write{})
		require.NoError(t, err)
		ids = append(ids, op.ID)
	}
	w.succeed(t, ids...)
}

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

// vms returns the names of the VMs that there are.
func (w *world) vms(t *testing.T) []string {
	t.Helper()
	var out []string
	for vm, err := range client.All[*api.VM](t.Context(), w.Client, project, client.ListOptions{}) {
		require.NoError(t, err)
		out = append(out, vm.Name)
	}
	slices.Sort(out)
	return out
}

// consistent checks that what an operation on a VM says about its end is what is.
func (w *world) consistent(t *testing.T, op *api.Operation, running map[string]bool) {
	t.Helper()
	vm, err := client.Get[*api.VM](t.Context(), w.Client, project, op.Target.ID)
	gone := problem.Is(err, problem.NotFound)
	if err != nil && !gone {
		t.Errorf("%s: %v", op.Target.Name, err)
		return
	}
	exists := op.Kind == api.OpVMCreate == (op.State == api.OpSucceeded)
	switch {
	case !op.State.Ended():
		t.Errorf("it has not ended: %s", stack.Describe(op))
	case op.State != api.OpSucceeded && op.Error == nil:
		t.Errorf("it was undone and does not say why: %s", stack.Describe(op))
	case exists && (gone || !running[op.Target.ID] || vm.Status.Phase != api.PhaseRunning || vm.Operation != ""):
		t.Errorf("its VM should run; record: %+v, libvirt says that it runs: %t; %s", vm, running[op.Target.ID], stack.Describe(op))
	case !exists && (!gone || running[op.Target.ID]):
		t.Errorf("its VM should be gone; record: %+v, libvirt says that it runs: %t; %s", vm, running[op.Target.ID], stack.Describe(op))
	}
}
