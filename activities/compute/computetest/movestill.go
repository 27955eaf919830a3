package computetest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// movesStill: a guest that has got the copy of its disk writes nothing until it is let go on, whoever does something to it meanwhile.
func movesStill(t *testing.T, b Bench, g BenchGuest, disk steps.DataDisk) {
	t.Helper()
	vm, ctx := g.Plan.VM, t.Context()
	phase := func() api.Phase {
		t.Helper()
		p, err := b.State(ctx, vm)
		require.NoError(t, err)
		return p
	}
	pause, err := b.LetGoOn(ctx, vm)
	require.NoError(t, err)
	require.Zero(t, pause, "it is not still")
	to := b.Empty(t, 64*api.MiB)
	moved, err := b.MoveDiskStill(ctx, vm, disk.Volume, to, 0, nil)
	require.NoError(t, err)
	require.True(t, moved.Running && moved.There)
	require.Positive(t, moved.Pause)
	require.Equal(t, api.PhasePaused, phase())

	again, err := b.MoveDiskStill(ctx, vm, disk.Volume, to, 0, nil)
	require.NoError(t, err)
	require.Equal(t, compute.Moved{Running: true, There: true}, again)
	there, err := b.SettleDisk(ctx, vm, disk.Volume, to)
	require.NoError(t, err)
	require.True(t, there)
	_, err = b.Freezing(ctx, vm, true, func() error { return nil })
	require.NoError(t, err)
	_, _, err = b.Resting(ctx, vm, func() error { return nil })
	require.NoError(t, err)
	require.Equal(t, api.PhasePaused, phase())

	pause, err = b.LetGoOn(ctx, vm)
	require.NoError(t, err)
	require.Positive(t, pause)
	require.Equal(t, api.PhaseRunning, phase())
	pause, err = b.LetGoOn(ctx, vm)
	require.NoError(t, err)
	require.Zero(t, pause, "it was let go on already")
	g.Steady(t, "vdc")

	// The next copy may be one after which it goes on at once.
	back := b.Empty(t, 64*api.MiB)
	moved, err = b.MoveDisk(ctx, vm, disk.Volume, back, 0, nil)
	require.NoError(t, err)
	require.True(t, moved.Running && moved.There)
	require.Equal(t, api.PhaseRunning, phase())
	g.Steady(t, "vdc")

	// A guest that ends while it is still is started with the copy.
	last := b.Empty(t, 64*api.MiB)
	moved, err = b.MoveDiskStill(ctx, vm, disk.Volume, last, 0, nil)
	require.NoError(t, err)
	require.True(t, moved.There)
	_, err = b.Stop(ctx, vm, true, 0, nil)
	require.NoError(t, err)
	pause, err = b.LetGoOn(ctx, vm)
	require.NoError(t, err)
	require.Zero(t, pause)
	g.Intact(t, "vdc", last)
	g.Intact(t, "vdc", back)
	there, err = b.SettleDisk(ctx, vm, disk.Volume, last)
	require.NoError(t, err)
	require.True(t, there)
	_, err = b.LetGoOn(ctx, api.NewID())
	require.Equal(t, problem.NotFound, problem.KindOf(err), "%v", err)
}
