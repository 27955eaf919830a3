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
	top := s.goesOver(t)
	s.save(t)
	require.Equal(t, problem.Conflict, problem.KindOf(take(c)), "it does not run")
	s.g.Intact(t, "vdc", top)
}

// goesOver: one of the disks has layers, and is written to another one from that moment on.
func (s *subject) goesOver(t *testing.T) (top compute.DiskSource) {
	t.Helper()
	vm, data, below := s.plan.VM, s.plan.Data[0].Volume, s.now.Data[0]
	made, merged, then := 0, 0, 0
	c := compute.StillCheckpoint{
		Memory: s.Memory(t), Volumes: []string{s.plan.Disk.Volume}, Disks: []compute.SwitchedDisk{{Volume: data, To: s.Layer(t, below)}},
		Fresh: func() error { made++; return nil },
		Keep: func() error {
			s.is(t, api.PhasePaused)
			require.Equal(t, 1, made)
			return problem.New(problem.Unavailable, "not now")
		},
		Kept: func() error { s.is(t, api.PhasePaused); return nil },
	}
	take := func() error {
		_, err := s.TakeStill(t.Context(), vm, c, nil)
		s.is(t, api.PhaseRunning)
		return err
	}
	refused := func(want problem.Kind) {
		t.Helper()
		err := take()
		require.Equal(t, want, problem.KindOf(err), "%v", err)
	}
	refused(problem.Unavailable)
	s.g.Steady(t, "vdc")
	refused(problem.Conflict) // the disk has gone over, and was not brought back
	back := compute.Merge{Top: c.Disks[0].To, Below: below, Retired: func() error { merged++; return nil }}
	for range 2 {
		running, err := s.MergeDisk(t.Context(), vm, data, back, nil)
		require.NoError(t, err)
		require.True(t, running)
	}
	require.Positive(t, merged)

	c.Disks[0].To = s.Layer(t, below)
	c.Keep = func() error { then++; return nil }
	fails := c
	fails.Fresh = func() error { return problem.New(problem.Unavailable, "no room") }
	_, err := s.TakeStill(t.Context(), vm, fails, nil)
	require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
	s.is(t, api.PhaseRunning)
	require.NoError(t, take())
	require.Equal(t, 1, then)
	require.True(t, s.whole(t, c.Memory))
	s.g.Steady(t, "vdc")
	s.now.Data = []compute.DiskSource{c.Disks[0].To}
	return c.Disks[0].To
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
