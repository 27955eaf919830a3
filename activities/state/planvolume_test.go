package state_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/state"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/test/fault"
)

// TestAPlanTellsHowAVolumeWouldGoToAnotherPool: from where to where, under whom, on which node; what is in the way is told
// with it, and nothing is written.
func TestAPlanTellsHowAVolumeWouldGoToAnotherPool(t *testing.T) {
	c := newCloud(t, false)
	p := state.New(c.KV, c.Admission, none{}, none{}).Planner()
	do := func(accept func(context.Context, *fault.World, auth.Handle) (*api.Operation, error)) {
		t.Helper()
		_, err := c.Do(ctx, accept)
		require.NoError(t, err)
	}
	do(func(ctx context.Context, w *fault.World, h auth.Handle) (*api.Operation, error) {
		return w.Admission.CreatePool(ctx, h, opts, api.PoolCreate{Name: "shared", Type: api.PoolDir, Path: "/net/vms", Shared: true})
	})
	do(func(ctx context.Context, w *fault.World, h auth.Handle) (*api.Operation, error) {
		return w.Admission.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "data", Size: 10 * api.GiB, Pool: "vms", VM: "web1"})
	})
	plan := func(req api.VolumeMigrate) *api.DryRun {
		t.Helper()
		_, before, err := c.KV.List(ctx, store.Root)
		require.NoError(t, err)
		out, err := p.PlanMigrateVolume(ctx, c.User, opts, "data", req)
		require.NoError(t, err)
		_, after, err := c.KV.List(ctx, store.Root)
		require.NoError(t, err)
		require.Equal(t, before, after)
		return out
	}

	out := plan(api.VolumeMigrate{Pool: "shared"})
	require.Nil(t, out.Error)
	require.Equal(t, api.OpVolumeMigrate, out.Kind)
	v := get[api.Volume](t, c.World, opts.Project, "data")
	require.Equal(t, &api.VolumeMoving{Volume: api.RefTo(v), From: "vms", To: "shared", Node: c.here.Name, Size: 10 * api.GiB}, out.Volume)
	require.Equal(t, c.here.ID, out.Decision.Node)
	require.Equal(t, c.here.Name, out.Steps[1].Where)

	// With a VM that runs, and a limit.
	do(func(ctx context.Context, w *fault.World, h auth.Handle) (*api.Operation, error) {
		return w.Admission.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1"})
	})
	out = plan(api.VolumeMigrate{Pool: "shared", Bandwidth: 100 * api.MiB})
	require.Nil(t, out.Error)
	require.Equal(t, "web1", out.Volume.VM.Name)
	require.True(t, out.Volume.Live)
	require.Equal(t, int64(103), out.Volume.Seconds, "10 GiB at 100 MiB per second")

	// Without room there, on a node that cannot, with snapshots, to where it is, to nowhere.
	change(t, c.World, c.agent(c.here), func(a *api.Agent) {
		a.Status.Inventory.Pools = append(a.Status.Inventory.Pools, api.PoolUsage{Pool: get[api.Pool](t, c.World, "", "shared").ID, Capacity: 100 * api.GiB, Free: api.GiB})
	})
	out = plan(api.VolumeMigrate{Pool: "shared"})
	require.Equal(t, problem.NoCapacity, out.Error.Kind)
	require.Equal(t, "shared", out.Volume.To)
	require.Contains(t, plan(api.VolumeMigrate{Pool: "shared", Node: c.over.Name}).Error.Why, "node "+c.over.Name+" cannot keep it")
	require.Contains(t, plan(api.VolumeMigrate{Pool: "vms"}).Error.Why, "it is there already")
	do(func(ctx context.Context, w *fault.World, h auth.Handle) (*api.Operation, error) {
		return w.Admission.CreateSnapshot(ctx, h, opts, api.SnapshotCreate{Name: "s1", Volume: "data"})
	})
	out = plan(api.VolumeMigrate{Pool: "shared"})
	require.Contains(t, out.Error.Why, "snapshots")
	require.Equal(t, "web1", out.Volume.VM.Name, "what it is about is told all the same")
	require.Equal(t, problem.NotFound, plan(api.VolumeMigrate{Pool: "nosuch"}).Error.Kind)
	_, err := p.PlanMigrateVolume(ctx, c.User, opts, "data", api.VolumeMigrate{})
	require.Equal(t, problem.Invalid, problem.KindOf(err))
}
