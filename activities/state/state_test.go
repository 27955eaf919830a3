package state_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/state"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/test/fault"
	"github.com/nextstack/nextstack/workflows/steps"
)

var (
	ctx  = context.Background()
	opts = admission.Options{Project: api.DefaultProject}
)

// central holds the steps on the store by name.
type central map[string]any

func (c central) RegisterActivityWithOptions(a any, o activity.RegisterOptions) { c[o.Name] = a }

func newCentral(w *fault.World) central {
	c := central{}
	state.New(w.KV, w.Admission, none{}, none{}).Register(c, &activities.Host{Log: slog.New(slog.DiscardHandler)})
	return c
}

// none is a network and an image store with nothing in them.
type none struct{}

func (none) Rows(context.Context) ([]state.Row, error) { return nil, nil }
func (none) Stored(context.Context) ([]string, error)  { return nil, nil }
func (none) Remove(context.Context, string) error      { return nil }

func call[In, Out any](c central, step steps.Step[In, Out], t steps.Token, in In) (Out, error) {
	out, err := c[step.Name].(func(context.Context, steps.Envelope[In]) (Out, error))(ctx, steps.Envelope[In]{Token: t, In: in})
	return out, steps.FromActivity(step.Name, "", err)
}

// base is a world of two nodes that are alike and share nothing, so that what is chosen and refused can be told in a line.
func base(t *testing.T) *fault.World {
	w, err := fault.Base(ctx)
	require.NoError(t, err)
	_, err = w.Do(ctx, func(ctx context.Context, w *fault.World, h auth.Handle) (*api.Operation, error) {
		return w.Admission.DeletePool(ctx, h, admission.Options{}, "shared")
	})
	require.NoError(t, err)
	d := store.NewDraft(w.User)
	for _, node := range w.Nodes[:2] {
		a := get[api.Agent](t, w, "", node.Name)
		a.Status.Inventory.Cores, a.Status.Inventory.Memory, a.Spec.Fence = 8, 32*api.GiB, nil
		d.Update(a)
		d.Release(store.SecretKey(a.ID))
	}
	pool := get[api.Pool](t, w, "", "vms")
	for _, node := range w.Nodes[2:] {
		pool.Spec.Agents = slices.DeleteFunc(pool.Spec.Agents, func(id string) bool { return id == node.ID })
		d.Release(store.PoolPathClaim(node.ID, pool.Spec.Path))
		d.Delete(get[api.Agent](t, w, "", node.Name))
	}
	d.Update(pool)
	_, err = d.Commit(ctx, w.KV)
	require.NoError(t, err)
	w.Nodes = w.Nodes[:2]
	return w
}

func accept(t *testing.T, w *fault.World, name string) *api.Operation {
	t.Helper()
	op, err := w.Admission.CreateVM(ctx, w.User, opts, api.VMCreate{Name: name, VCPUs: 1, Memory: api.GiB, Image: "cirros", Pool: "vms", NICs: []api.NICRequest{{Subnet: "front"}}})
	require.NoError(t, err)
	return op
}

// room gives each node the memory for n VMs of 1 GiB.
func room(t *testing.T, w *fault.World, n int64) {
	for _, node := range w.Nodes {
		a, err := store.Get[api.Agent](ctx, w.KV, w.User, "", node.ID)
		require.NoError(t, err)
		a.Status.Inventory.Memory = n*api.GiB + a.Spec.ReservedMemory
		a.Status.Inventory.Cores = 64
		d := store.NewDraft(w.User)
		d.Update(a)
		_, err = d.Commit(ctx, w.KV)
		require.NoError(t, err)
	}
}

func promised(t *testing.T, w *fault.World) (vms int, amount api.Amount) {
	for _, node := range w.Nodes {
		ledger, err := store.Ledger(ctx, w.KV, store.NodePrefix(node.ID))
		require.NoError(t, err)
		for _, c := range ledger.Claims {
			var a api.Amount
			require.NoError(t, json.Unmarshal(c.Value, &a))
			vms, amount.VCPUs, amount.Memory = vms+1, amount.VCPUs+a.VCPUs, amount.Memory+a.Memory
		}
	}
	return vms, amount
}

func TestParallelPlacementsFillTheNodesExactly(t *testing.T) {
	w := base(t)
	room(t, w, 20)
	c := newCentral(w)
	const n = 64
	var ops [n]*api.Operation
	for i := range n {
		ops[i] = accept(t, w, fmt.Sprint("vm", i))
	}
	var places [n]steps.Placement
	var errs [n]error
	var wg sync.WaitGroup
	for i, op := range ops {
		wg.Go(func() {
			places[i], errs[i] = call(c, steps.PlaceVM, steps.Token{Operation: op.ID}, steps.VMOrder{VMRef: steps.VMRef{Project: opts.Project, VM: op.Target.ID}})
		})
	}
	wg.Wait()
	placed := map[string]int{}
	for i, err := range errs {
		if err == nil {
			placed[places[i].Plan.Agent]++
			continue
		}
		require.Equal(t, problem.NoCapacity, problem.KindOf(err), "%v", err)
	}
	require.Equal(t, map[string]int{w.Nodes[0].ID: 20, w.Nodes[1].ID: 20}, placed)
	vms, amount := promised(t, w)
	require.Equal(t, 40, vms)
	require.Equal(t, api.Amount{VCPUs: 40, Memory: 40 * api.GiB}, amount)

	// Twice is once, in either direction; and what was given back can be promised again.
	for i, op := range ops {
		ref, tok := steps.VMRef{Project: opts.Project, VM: op.Target.ID}, steps.Token{Operation: op.ID}
		if errs[i] != nil {
			continue
		}
		again, err := call(c, steps.PlaceVM, tok, steps.VMOrder{VMRef: ref})
		require.NoError(t, err)
		require.NotNil(t, places[i].Decision)
		require.Equal(t, places[i].Plan.Agent, places[i].Decision.Node)
		places[i].Decision = nil // it is told by the attempt that makes it
		require.Equal(t, places[i], again)
		for range 2 {
			_, err = call(c, steps.UnplaceVM, tok, ref)
			require.NoError(t, err)
		}
		vms, _ := promised(t, w)
		require.Equal(t, 39, vms)
		_, err = call(c, steps.PlaceVM, tok, steps.VMOrder{VMRef: ref})
		require.NoError(t, err)
	}
	vms, _ = promised(t, w)
	require.Equal(t, 40, vms)
}

func TestStepsOfAnOperationThatNoLongerHoldsTheVM(t *testing.T) {
	w := base(t)
	c := newCentral(w)
	op := accept(t, w, "vm")
	ref := steps.VMRef{Project: opts.Project, VM: op.Target.ID}
	late := steps.Token{Operation: api.NewID()}
	_, err := call(c, steps.PlaceVM, late, steps.VMOrder{VMRef: ref})
	require.Equal(t, problem.Stale, problem.KindOf(err))
	_, err = call(c, steps.LoadVM, late, ref)
	require.Equal(t, problem.Stale, problem.KindOf(err))
	_, err = call(c, steps.PlaceVM, steps.Token{Operation: op.ID}, steps.VMOrder{VMRef: ref})
	require.NoError(t, err)
	_, err = call(c, steps.UnplaceVM, late, ref)
	require.NoError(t, err)
	vms, _ := promised(t, w)
	require.Equal(t, 1, vms, "a late undo must not give away what is used")
}

func TestANodeThatIsAwayIsWorthWaitingFor(t *testing.T) {
	w := base(t)
	for _, node := range w.Nodes {
		a, err := store.Get[api.Agent](ctx, w.KV, w.User, "", node.ID)
		require.NoError(t, err)
		a.Status.Phase, a.Status.Reason = api.PhaseUnavailable, "has not reported"
		d := store.NewDraft(w.User)
		d.Update(a)
		_, err = d.Commit(ctx, w.KV)
		require.NoError(t, err)
	}
	op := accept(t, w, "vm")
	_, err := call(newCentral(w), steps.PlaceVM, steps.Token{Operation: op.ID}, steps.VMOrder{VMRef: steps.VMRef{Project: opts.Project, VM: op.Target.ID}})
	require.Equal(t, problem.Unavailable, problem.KindOf(err), "it may come back")
	require.Contains(t, err.Error(), "has not reported")
}

func TestAJournalOfAnEndedOperationIsNotWritten(t *testing.T) {
	w := base(t)
	c := newCentral(w)
	op := accept(t, w, "vm")
	journal := steps.Journal{Operation: op.ID, State: api.OpRunning, Steps: []api.StepRecord{{Name: "place", State: api.StepRunning, Attempts: 1}}, Checkpoint: []byte(`{}`)}
	_, err := call(c, steps.SaveJournal, steps.Token{}, journal)
	require.NoError(t, err)
	now, err := store.Get[api.Operation](ctx, w.KV, w.User, "", op.ID)
	require.NoError(t, err)
	require.Equal(t, api.OpRunning, now.State)
	require.False(t, now.Started.IsZero())
	require.False(t, now.Steps[0].Started.IsZero())

	out := steps.Outcome{Journal: journal}
	out.State, out.Steps = api.OpFailed, []api.StepRecord{{Name: "place", State: api.StepUndone, Attempts: 1}}
	_, err = call(c, steps.Settle, steps.Token{}, out)
	require.NoError(t, err)
	_, err = call(c, steps.SaveJournal, steps.Token{}, journal)
	require.NoError(t, err)
	now, err = store.Get[api.Operation](ctx, w.KV, w.User, "", op.ID)
	require.NoError(t, err)
	require.Equal(t, api.OpFailed, now.State)
	require.Empty(t, now.Checkpoint)
	require.False(t, now.Steps[0].Ended.Before(now.Steps[0].Started))
}

func TestALateJournalTakesNothingBack(t *testing.T) {
	w := base(t)
	c := newCentral(w)
	op := accept(t, w, "vm")
	write := func(number int, state api.StepState) {
		j := steps.Journal{Operation: op.ID, Number: number, State: api.OpRunning, Steps: []api.StepRecord{{Name: "place", State: state}}}
		_, err := call(c, steps.SaveJournal, steps.Token{}, j)
		require.NoError(t, err)
	}
	write(2, api.StepDone)
	write(1, api.StepRunning) // was sent first, and comes last
	now, err := store.Get[api.Operation](ctx, w.KV, w.User, "", op.ID)
	require.NoError(t, err)
	require.Equal(t, api.StepDone, now.Steps[0].State)
}
