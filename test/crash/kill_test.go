package crash

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
	"github.com/nextstack/nextstack/workflows"
)

// victim is a process that is killed and comes back.
type victim struct {
	name string
	kill func(ctx context.Context, w *world) error // kill -9, and start it again
}

var (
	killControl = victim{"nextstack", func(ctx context.Context, w *world) error {
		if err := w.Control.Kill(); err != nil {
			return err
		}
		if err := w.Control.Start(); err != nil {
			return err
		}
		return w.AwaitControl(ctx)
	}}
	killAgent = victim{"agent", func(_ context.Context, w *world) error {
		if err := w.Agent.Kill(); err != nil {
			return err
		}
		return w.Agent.Start() // when it is back is for the operations to find out
	}}
	killLibvirtd = victim{"libvirtd", func(ctx context.Context, w *world) error {
		if err := w.KillLibvirtd(ctx); err != nil {
			return err
		}
		return w.StartLibvirtd(ctx)
	}}
)

// trial is one operation that is to be caught at one boundary.
type trial struct {
	point  stack.Point
	vm     string
	key    string // Idempotency-Key
	onNode bool   // the step runs on the node, where it may stand as long as it likes
	late   bool   // other steps come before it, that take a moment
}

// trials returns one for every boundary of vm.create and vm.delete: of the start of the workflow, of every step in its table,
// and of its settling.
func trials(round string) []trial {
	var out []trial
	for _, d := range []interface {
		Name() string
		Plan() []api.StepRecord
	}{workflows.VMCreate, workflows.VMDelete} {
		add := func(step string, onNode, late bool) {
			for _, at := range []string{stack.Before, stack.After} {
				prefix := map[string]string{api.OpVMCreate: "new", api.OpVMDelete: "old"}[d.Name()]
				vm := prefix + "-" + step + "-" + at
				key := round + " " + vm
				out = append(out, trial{
					vm: vm, key: key, onNode: onNode, late: late,
					point: stack.Point{Kind: d.Name(), Step: step, At: at, Operation: admission.OperationID(project, "admin", key)},
				})
			}
		}
		add("accept", false, false)
		node := false
		for _, s := range d.Plan() {
			if s.Name == "snapshots" { // calls nobody: these VMs have none
				continue
			}
			node = node || s.Where != "control"
			add(s.Name, s.Where != "control", node)
		}
		add("settle", false, true)
	}
	return out
}

// testKill has one operation stand at every boundary there is, kills the victim once, and looks what became of them all.
func testKill(t *testing.T, w *world, v victim) {
	open := trials(v.name)
	total := len(open)
	// Central steps have ten seconds. On a slow machine some have gone on by the time that all the others stand: they count
	// for nothing and get another go.
	for attempt := 1; len(open) > 0; attempt++ {
		require.LessOrEqual(t, attempt, 4, "these are never held long enough: %v", open)
		open = killAll(t, w, v, open)
	}
	t.Logf("%s was killed at %d boundaries", v.name, total)
}

// killAll returns the trials whose operations had gone on before the kill.
func killAll(t *testing.T, w *world, v victim, all []trial) (missed []trial) {
	var deleted []string
	for _, c := range all {
		if c.point.Kind == api.OpVMDelete {
			deleted = append(deleted, c.vm)
		}
	}
	w.create(t, deleted...)

	var points []stack.Point
	// Those that may stand for long first, then those that take a moment to get where they stand.
	for _, group := range []func(trial) bool{
		func(c trial) bool { return c.onNode },
		func(c trial) bool { return !c.onNode && c.late },
		func(c trial) bool { return !c.onNode && !c.late },
	} {
		var wg sync.WaitGroup
		var these []stack.Point
		for _, c := range all {
			if !group(c) {
				continue
			}
			these = append(these, c.point)
			require.NoError(t, w.Faults.Arm(c.point))
			wg.Go(func() { w.ask(t, c) })
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
		require.NoError(t, w.Faults.Await(within(t, 30*time.Second), these...))
		points = append(points, these...)
	}

	for _, c := range all {
		if !w.Faults.Held(c.point) {
			missed = append(missed, c)
		}
	}
	require.NoError(t, v.kill(within(t, time.Minute), w))
	killPoints.Add(int64(len(all) - len(missed)))
	for _, p := range points {
		require.NoError(t, w.Faults.Release(p))
	}
	begun := time.Now()

	var ids []string
	for _, c := range all {
		ids = append(ids, c.point.Operation)
	}
	ops, err := w.Ended(within(t, patience), ids...)
	require.NoError(t, err)
	t.Logf("%d of %d operations stood when %s was killed; they ended %s later", len(all)-len(missed), len(all), v.name, time.Since(begun).Round(100*time.Millisecond))
	running, _, err := w.Running(t.Context())
	require.NoError(t, err)
	states := map[api.OperationState]int{}
	var left []string
	for _, c := range all {
		op := ops[c.point.Operation]
		states[op.State]++
		w.consistent(t, op, running)
		if op.State != api.OpSucceeded {
			t.Logf("%s: %s", c.point, stack.Describe(op))
		}
		again := w.ask(t, c)
		if again != nil && again.ID != op.ID {
			t.Errorf("%s: the same request under the same key became another operation: %s, then %s", c.point, op.ID, again.ID)
		}
	}
	t.Logf("they ended %v", states)
	left = w.vms(t)
	w.remove(t, left...)
	// The next round must not be told of these operations under their keys.
	for i := range missed {
		missed[i].key += " again"
		missed[i].point.Operation = admission.OperationID(project, "admin", missed[i].key)
	}
	w.clean(t)
	return missed
}

// ask sends the request of a trial.
func (w *world) ask(t *testing.T, c trial) (op *api.Operation) {
	var err error
	if c.point.Kind == api.OpVMCreate {
		op, err = client.Create(t.Context(), w.Client, project, small(c.vm), client.Write{Key: c.key})
	} else {
		op, err = w.Client.Delete(t.Context(), api.KindVM, project, c.vm, client.Write{Key: c.key})
	}
	if err != nil {
		t.Errorf("%s: %v", c.point, err)
		return nil
	}
	return op
}

// testCancel cancels a VM's creation while it stands at each boundary.
func testCancel(t *testing.T, w *world) {
	var held []trial
	for _, c := range trials("cancel") {
		if c.point.Kind == api.OpVMCreate && c.point.Step != "accept" && c.point.Step != "settle" {
			held = append(held, c)
			require.NoError(t, w.Faults.Arm(c.point))
			w.ask(t, c)
		}
	}
	for _, c := range held {
		require.NoError(t, w.Faults.Await(within(t, time.Minute), c.point))
		_, err := w.Client.Cancel(t.Context(), c.point.Operation, client.Write{})
		require.NoError(t, err, "%s", c.point)
	}
	for _, c := range held {
		require.NoError(t, w.Faults.Release(c.point))
	}
	for _, c := range held {
		ops, err := w.Ended(within(t, patience), c.point.Operation)
		require.NoError(t, err)
		op := ops[c.point.Operation]
		if op.State != api.OpCancelled {
			t.Errorf("cancelled at %s: %s", c.point, stack.Describe(op))
		}
	}
	if left := w.vms(t); len(left) > 0 {
		t.Errorf("left over: %v", left)
		w.remove(t, left...)
	}
	if _, domains, err := w.Running(t.Context()); err != nil || domains > 0 {
		t.Errorf("libvirt still has %d domains (%v)", domains, err)
	}
}

// testRestartUnderLoad kills the control plane while it works on more than twenty operations. They use every name once more
// that an operation was killed with.
func testRestartUnderLoad(t *testing.T, w *world) {
	var ids, names []string
	for i, c := range trials("load") {
		op, err := client.Create(t.Context(), w.Client, project, small(c.vm), client.Write{})
		require.NoError(t, err)
		ids, names = append(ids, op.ID), append(names, c.vm)
		if i == 9 {
			require.NoError(t, killControl.kill(within(t, time.Minute), w))
		}
	}
	require.NoError(t, killControl.kill(within(t, time.Minute), w))
	open := 0
	for _, id := range ids {
		op, err := w.Client.Operation(t.Context(), id)
		require.NoError(t, err)
		if !op.State.Ended() {
			open++
		}
	}
	t.Logf("%d of %d operations had not ended after the restart", open, len(ids))
	w.succeed(t, ids...)
	running, all, err := w.Running(t.Context())
	require.NoError(t, err)
	require.Len(t, running, len(ids))
	require.Equal(t, len(ids), all)
	w.remove(t, names...)
}
