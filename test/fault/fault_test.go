package fault

import (
	"context"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/steps"
)

var total struct {
	sync.Mutex
	Report
}

func TestMain(m *testing.M) {
	debug.SetGCPercent(500) // worlds are small, and there is one after the other
	code := m.Run()
	fmt.Printf("fault points: %d, leaks: %d, stuck: %d (tried some of many second faults: left out %d)\n", total.Points, total.Leaks, total.Stuck, total.Left)
	os.Exit(code)
}

// TestEveryOperationEndsDoneOrUndone disturbs every operation at every call that it makes.
func TestEveryOperationEndsDoneOrUndone(t *testing.T) {
	ctx := context.Background()
	base, err := Base(ctx)
	require.NoError(t, err)
	all := Scenarios()
	for _, d := range workflows.All() {
		require.NotEmpty(t, all[d.Name()], "operation %s has no scenario: add one to scenarios.go", d.Name())
	}
	for _, kind := range slices.Sorted(maps.Keys(all)) {
		for _, s := range all[kind] {
			t.Run(s.Name, func(t *testing.T) {
				t.Parallel()
				report, err := s.Run(ctx, base)
				require.NoError(t, err)
				add(t, report)
			})
		}
	}
}

func add(t *testing.T, report Report) {
	t.Helper()
	t.Logf("fault points: %d, leaks: %d, stuck: %d", report.Points, report.Leaks, report.Stuck)
	total.Lock()
	total.Add(report)
	total.Unlock()
	for _, d := range report.Details {
		t.Error(d)
	}
}

// TestMovesWhoseNodesDie lets each of the two nodes of a move die at each of its calls, and both at once: the move ends, one way or
// the other, and where its record says. Some moves with disks are the exception: see deaths.
func TestMovesWhoseNodesDie(t *testing.T) {
	ctx := context.Background()
	base, err := Base(ctx)
	require.NoError(t, err)
	for _, s := range Scenarios()[api.OpVMMigrate] {
		nodes := deaths(s.Name)
		if s.Any || len(nodes) == 0 {
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			report, err := s.Kill(ctx, base, nodes...)
			require.NoError(t, err)
			add(t, report)
		})
	}
}

// TestOperationsWhoseNodeDies lets the node of a VM die at each call of what is done to the VM there.
func TestOperationsWhoseNodeDies(t *testing.T) {
	ctx := context.Background()
	base, err := Base(ctx)
	require.NoError(t, err)
	all := Scenarios()
	list := []Scenario{{Name: "vm.create, shared", Accept: makeVM("web1", ha)}, {Name: "vm.delete, shared", Prepare: []Accept{makeVM("web1", nil)}, Accept: deleteVM}}
	for _, kind := range []string{api.OpVMCreate, api.OpVMDelete, api.OpVMStart, api.OpVMStop, api.OpVMReboot} {
		list = append(list, all[kind][0])
	}
	list = append(list, checkpointsShared()...) // others wait for the node
	list = append(list, checkpointsLostInCeph()...)
	list = append(list, checkpointsLostMixed()...)
	list = append(list, disksLost()...)
	list = append(list, movesLost()...)
	for _, s := range list {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			report, err := s.Kill(ctx, base, "a1")
			require.NoError(t, err)
			add(t, report)
		})
	}
}

// TestWhatADeadNodeHasOfADeletedVMIsFound when the node is back: the record is gone, and the audit tells of what is not.
func TestWhatADeadNodeHasOfADeletedVMIsFound(t *testing.T) {
	ctx := context.Background()
	base, err := Base(ctx)
	require.NoError(t, err)
	s := Scenario{Prepare: []Accept{createVM, makeVM("web2", nil)}, Plant: died("a1")}
	w, err := s.World(ctx, base)
	require.NoError(t, err)
	for _, accept := range []Accept{deleteVM, about((*admit).DeleteVM, "web2")} {
		_, err = w.Do(ctx, accept)
		require.NoError(t, err)
	}
	findings, err := w.Audit(ctx)
	require.NoError(t, err)
	require.Empty(t, findings, "the disk in the shared pool is gone already")
	w.node("a1").dead = false
	require.NoError(t, changeHost(ctx, w, "a1", func(a *api.Agent, _ *store.Beat) { a.Status.Phase, a.Status.Proof = api.PhaseReady, nil }))
	findings, err = w.Audit(ctx)
	require.NoError(t, err)
	kinds := map[string]int{}
	for _, f := range findings {
		require.True(t, f.Extra, f.Problem)
		kinds[f.Kind]++
	}
	require.Equal(t, map[string]int{"domain": 2, "volume": 1, "seed": 1}, kinds, "its reports have the domains removed before anything else; the disk waits for a repair")
	ops, err := store.List[api.Operation](ctx, w.KV, w.User, "")
	require.NoError(t, err)
	d := store.NewDraft(auth.ControlPlane("fault"))
	for _, op := range ops { // what has just ended an audit leaves alone
		op.Ended = op.Ended.Add(-time.Minute)
		d.Update(op)
	}
	_, err = d.Commit(ctx, w.KV)
	require.NoError(t, err)
	_, err = w.Do(ctx, Repair())
	require.NoError(t, err)
	findings, err = w.Audit(ctx)
	require.NoError(t, err)
	require.Empty(t, findings)
	domains, err := w.node("a1").Compute.List(ctx)
	require.NoError(t, err)
	require.Empty(t, domains)
}

// TestADrainThatIsCancelledCallsItsMovesOff shows that cancelling reaches the operations that were ordered, and that they are
// waited for.
func TestADrainThatIsCancelledCallsItsMovesOff(t *testing.T) {
	ctx := context.Background()
	base, err := Base(ctx)
	require.NoError(t, err)
	s := Scenarios()[api.OpHostDrain][0]
	b := &bench{Scenario: &s}
	require.NoError(t, b.prepare(ctx, base))
	at := slices.IndexFunc(b.clean, func(c Call) bool { return c.Activity == steps.AwaitOperations.Name })
	require.Positive(t, at)
	w, op, _, err := b.run(ctx, Point{{at, b.clean[at], Mode{Name: "cancelled before", CancelBefore: true}}})
	require.NoError(t, err)
	require.Equal(t, api.OpCancelled, op.State)
	ops, err := store.List[api.Operation](ctx, w.KV, w.User, "")
	require.NoError(t, err)
	ends := map[api.OperationState]int{}
	for _, o := range ops {
		if o.Parent != op.ID {
			continue
		}
		ends[o.State]++
		require.False(t, o.Ended.After(op.Ended), "the drain ended before the move of %s", o.Target.Name)
		vm, err := store.Get[api.VM](ctx, w.KV, w.User, o.Target.Project, o.Target.ID)
		require.NoError(t, err)
		require.Equal(t, o.State == api.OpCancelled, vm.Status.AgentName == "a1", "%s is %s", o.Target.Name, o.State)
	}
	require.Positive(t, ends[api.OpCancelled], "none heard it: %v", ends) // a guest that had arrived already does not
	wrong, err := w.Wrong(ctx)
	require.NoError(t, err)
	require.Empty(t, wrong)
}
