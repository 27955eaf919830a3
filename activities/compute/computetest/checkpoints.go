package computetest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Checkpoints is the suite that every compute.Checkpoints passes.
func Checkpoints(t *testing.T, b Bench) {
	t.Run("back to that very moment", func(t *testing.T) { backThen(t, b) })
	t.Run("cut off", func(t *testing.T) { cutOff(t, b) })
	t.Run("refused", func(t *testing.T) { notThen(t, b) })
	t.Run("standing still", func(t *testing.T) { still(t, b) })
	t.Run("known by a name", func(t *testing.T) { known(t, b) })
}

// subject is a guest with a data disk, as it is now.
type subject struct {
	Bench
	g    BenchGuest
	plan steps.VMPlan
	now  compute.DomainFiles
}

func (b Bench) subject(t *testing.T) *subject {
	t.Helper()
	s := &subject{Bench: b, g: b.Boot(t, false)}
	disk, src := b.give(t, s.g, "vdc")
	s.plan, s.now = s.g.Plan, s.g.Files
	s.plan.Data, s.now.Data = []steps.DataDisk{disk}, []compute.DiskSource{src}
	s.g.Steady(t, "vdc")
	return s
}

// on returns files with new layers on those of others.
func (s *subject) on(t *testing.T, f compute.DomainFiles) compute.DomainFiles {
	t.Helper()
	top := f
	top.Disk, top.Data = s.Layer(t, f.Disk), []compute.DiskSource{s.Layer(t, f.Data[0])}
	return top
}

func (s *subject) checkpoint(t *testing.T, to compute.DomainFiles) compute.Checkpoint {
	t.Helper()
	return compute.Checkpoint{Memory: s.Memory(t), Disks: compute.Restore{Plan: s.plan, Files: to}.Disks()}
}

func (s *subject) whole(t *testing.T, memory string) bool {
	t.Helper()
	yes, err := s.MemoryWhole(t.Context(), memory)
	require.NoError(t, err)
	return yes
}

func (s *subject) is(t *testing.T, want api.Phase) {
	t.Helper()
	phase, err := s.State(t.Context(), s.plan.VM)
	require.NoError(t, err)
	require.Equal(t, want, phase)
}

// save puts the guest aside, twice: that is as good as once.
func (s *subject) save(t *testing.T) (memory string) {
	t.Helper()
	memory = s.Memory(t)
	require.False(t, s.whole(t, memory))
	for range 2 {
		require.NoError(t, s.SaveGuest(t.Context(), s.plan.VM, memory, nil))
	}
	require.True(t, s.whole(t, memory))
	s.is(t, api.PhaseStopped)
	return memory
}

func backThen(t *testing.T, b Bench) {
	s := b.subject(t)
	vm, then := s.plan.VM, s.now
	top := s.on(t, then)
	c := s.checkpoint(t, top)
	from := s.g.Counts(t, "vdc")
	pause, err := s.TakeCheckpoint(t.Context(), vm, c, func(api.Progress) {})
	require.NoError(t, err)
	require.Positive(t, pause)
	t.Logf("the guest stood still for %s", pause)
	s.now = top
	pause, err = s.TakeCheckpoint(t.Context(), vm, c, nil)
	require.NoError(t, err, "once more is content")
	require.Zero(t, pause)
	require.True(t, s.whole(t, c.Memory))
	s.is(t, api.PhaseRunning)
	s.g.Steady(t, "vdc")

	// Put aside, it goes on as if nothing had been.
	before := s.g.Counts(t, "vdc")
	require.Greater(t, before, from)
	used := 0
	r := compute.Restore{Plan: s.plan, Files: s.now, Memory: s.save(t), Used: func() error { used++; return nil }}
	for range 2 {
		require.NoError(t, s.RestoreGuest(t.Context(), r, nil))
	}
	require.Equal(t, 1, used)
	s.is(t, api.PhaseRunning)
	s.g.Steady(t, "vdc")
	late := s.g.Counts(t, "vdc")
	require.Greater(t, late, before)

	// And back: it counts on from then, neither from the beginning nor from where it was.
	s.save(t)
	back := compute.Restore{Plan: s.plan, Memory: c.Memory}
	fresh := 0
	back.Files = s.on(t, then)
	back.Fresh = func() error { fresh++; return nil }
	for range 2 {
		require.NoError(t, s.RestoreGuest(t.Context(), back, func(api.Progress) {}))
	}
	require.Equal(t, 1, fresh)
	require.NoError(t, s.DropGuest(t.Context(), vm, r.Disks()), "it is on others")
	require.NoError(t, s.DropGuest(t.Context(), api.NewID(), r.Disks()))
	first := s.g.Counts(t, "vdc")
	t.Logf("the guest counted %d before the checkpoint, %d before it went back, and %d after", from, late, first)
	require.GreaterOrEqual(t, first, from)
	require.Less(t, first, late)
	s.g.Steady(t, "vdc")
	s.is(t, api.PhaseRunning)
	for range 2 {
		require.NoError(t, s.DropGuest(t.Context(), vm, back.Disks()))
	}
	s.is(t, api.PhaseStopped)
	s.g.Intact(t, "vdc", back.Files.Data[0])

	// What it was started with then, it is started with.
	_, err = s.Start(t.Context(), vm)
	require.NoError(t, err)
	s.g.Sees(t, s.plan.Data[0].Volume, 64*api.MiB)
	s.g.Steady(t, "vdc")
	s.save(t)
	require.NoError(t, s.Remove(t.Context(), vm))
	back.Files = s.on(t, then)
	require.NoError(t, s.RestoreGuest(t.Context(), back, nil), "a domain that is gone is made again")
	again := s.g.Counts(t, "vdc")
	require.GreaterOrEqual(t, again, from)
	require.Less(t, again, late)
}

// cutOff: who has begun it is gone, and whoever comes next ends it or has it done.
func cutOff(t *testing.T, b Bench) {
	s := b.subject(t)
	vm := s.plan.VM
	top := s.on(t, s.now)
	c := s.checkpoint(t, top)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() {
		_, err := s.TakeCheckpoint(ctx, vm, c, nil)
		over <- err
	}()
	s.Begun(t, c.Memory)
	cancel()
	t.Logf("cut off: %v", <-over) // whatever came of it
	require.NoError(t, s.EndCheckpoint(t.Context(), vm, c.Disks))
	require.NoError(t, s.EndCheckpoint(t.Context(), api.NewID(), c.Disks))
	s.is(t, api.PhaseRunning)
	s.g.Steady(t, "vdc")
	_, err := s.TakeCheckpoint(t.Context(), vm, c, nil)
	require.NoError(t, err)
	require.True(t, s.whole(t, c.Memory))
	s.g.Steady(t, "vdc")
}

func notThen(t *testing.T, b Bench) {
	s := b.subject(t)
	vm := s.plan.VM
	top := s.on(t, s.now)
	c := s.checkpoint(t, top)
	is := func(want problem.Kind, err error) {
		t.Helper()
		require.Equal(t, want, problem.KindOf(err), "%v", err)
	}
	r := compute.Restore{Plan: s.plan, Files: top, Memory: s.Memory(t)}
	is(problem.Conflict, s.RestoreGuest(t.Context(), r, nil)) // it runs, on others
	s.g.Steady(t, "vdc")
	aside := s.save(t)
	_, err := s.TakeCheckpoint(t.Context(), vm, c, nil)
	is(problem.Conflict, err) // it does not run
	_, err = s.TakeCheckpoint(t.Context(), api.NewID(), c, nil)
	is(problem.NotFound, err)
	require.Error(t, s.RestoreGuest(t.Context(), r, nil), "there is no such memory")
	s.is(t, api.PhaseStopped)
	fails := compute.Restore{Plan: s.plan, Files: s.now, Memory: aside, Used: func() error { return problem.New(problem.Unavailable, "not now") }}
	is(problem.Unavailable, s.RestoreGuest(t.Context(), fails, nil))
	s.is(t, api.PhasePaused)
	fails.Used = nil
	require.NoError(t, s.RestoreGuest(t.Context(), fails, nil))
	s.is(t, api.PhaseRunning)
	s.g.Steady(t, "vdc")
}

// begun waits until something is true of a hypervisor that is at work.
func begun(t *testing.T, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, Patience, time.Millisecond)
}
