package computetest

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// still: a guest stands still while its disks are kept by somebody else.
func still(t *testing.T, b Bench) {
	s := b.subject(t)
	vm, kept := s.plan.VM, 0
	is := func(want problem.Kind, err error) {
		t.Helper()
		require.Equal(t, want, problem.KindOf(err), "%v", err)
		require.Equal(t, 2, kept)
		s.is(t, api.PhaseRunning)
		s.g.Steady(t, "vdc")
	}
	c := compute.StillCheckpoint{Memory: s.Memory(t), Volumes: []string{s.plan.Disk.Volume, s.plan.Data[0].Volume}}
	quiet := func() error {
		s.is(t, api.PhasePaused)
		require.True(t, s.whole(t, c.Memory))
		return nil
	}
	c.Keep, c.Kept = quiet, func() error { s.is(t, api.PhasePaused); kept++; return nil }
	for range 2 { // it knows nothing of the first time
		pause, err := s.TakeStill(t.Context(), vm, c, func(api.Progress) {})
		require.NoError(t, err)
		require.Positive(t, pause)
		t.Logf("the guest stood still for %s", pause)
		s.is(t, api.PhaseRunning)
		s.g.Steady(t, "vdc")
	}

	take := func(c compute.StillCheckpoint) error {
		_, err := s.TakeStill(t.Context(), vm, c, nil)
		return err
	}
	fails := c
	fails.Keep = func() error { return problem.New(problem.Unavailable, "not now") }
	is(problem.Unavailable, take(fails))
	fails.Keep = func() error { return s.EndStill(t.Context(), vm) }
	is(problem.Conflict, take(fails)) // somebody has let it go on
	fails = c
	fails.Volumes = c.Volumes[:1]
	is(problem.Conflict, take(fails)) // one of its disks would not be kept
	fails.Volumes = append([]string{api.NewID()}, c.Volumes...)
	is(problem.NotFound, take(fails))
	ctx, cancel := context.WithCancel(t.Context())
	cut := c
	cut.Keep = func() error { cancel(); return ctx.Err() }
	_, err := s.TakeStill(ctx, vm, cut, nil)
	require.Error(t, err)
	require.NoError(t, s.EndStill(t.Context(), vm))
	require.NoError(t, s.EndStill(t.Context(), api.NewID()))
	s.is(t, api.PhaseRunning)
	s.g.Steady(t, "vdc")
	require.Equal(t, 2, kept)
	_, err = s.TakeStill(t.Context(), api.NewID(), c, nil)
	require.Equal(t, problem.NotFound, problem.KindOf(err))
	s.save(t)
	require.Equal(t, problem.Conflict, problem.KindOf(take(c)), "it does not run")
}

// known: a guest whose disks do not tell is known by how its going on was called.
func known(t *testing.T, b Bench) {
	s := b.subject(t)
	vm := s.plan.VM
	require.NoError(t, s.DropRestored(t.Context(), vm, "then"), "it has not gone on from anything")
	require.NoError(t, s.DropRestored(t.Context(), api.NewID(), "then"))
	s.is(t, api.PhaseRunning)
	r := compute.Restore{Plan: s.plan, Files: s.now, As: "then"}
	require.Equal(t, problem.Conflict, problem.KindOf(s.RestoreGuest(t.Context(), r, nil)), "nor has it for who restores it")
	r.Memory = s.save(t)
	for range 2 {
		require.NoError(t, s.RestoreGuest(t.Context(), r, nil))
	}
	s.g.Steady(t, "vdc")
	other := r
	other.As = "now"
	require.Equal(t, problem.Conflict, problem.KindOf(s.RestoreGuest(t.Context(), other, nil)))
	require.NoError(t, s.DropRestored(t.Context(), vm, "now"))
	s.is(t, api.PhaseRunning)
	for range 2 {
		require.NoError(t, s.DropRestored(t.Context(), vm, "then"))
	}
	s.is(t, api.PhaseStopped)
	_, err := s.Start(t.Context(), vm)
	require.NoError(t, err)
	require.NoError(t, s.DropRestored(t.Context(), vm, "then"), "it was started anew")
	s.is(t, api.PhaseRunning)
}
