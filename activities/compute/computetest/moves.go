package computetest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Moves is the suite that every Migrator passes.
func Moves(t *testing.T, r Rig) {
	t.Run("shared disk", func(t *testing.T) { moves(t, r, true) })
	t.Run("copied disk", func(t *testing.T) { moves(t, r, false) })
	t.Run("ended in the middle", func(t *testing.T) { ended(t, r) })
	t.Run("joined", func(t *testing.T) { joined(t, r) })
	t.Run("powered off in the middle", func(t *testing.T) { poweredOff(t, r) })
	t.Run("still defined where it was", func(t *testing.T) { lingers(t, r) })
	t.Run("guest that does not converge", func(t *testing.T) { restless(t, r) })
	t.Run("data disk", func(t *testing.T) { movesWithDisk(t, r) })
	t.Run("refusals", func(t *testing.T) { refusals(t, r) })
	t.Run("definitions", func(t *testing.T) { definitions(t, r) })
}

// PausedMoves is what of it holds for guests that stand still while they move.
func PausedMoves(t *testing.T, r Rig) {
	t.Run("shared disk", func(t *testing.T) { moves(t, r, true) })
	t.Run("copied disk", func(t *testing.T) { moves(t, r, false) })
	t.Run("ended in the middle", func(t *testing.T) { ended(t, r) })
	t.Run("joined", func(t *testing.T) { joined(t, r) })
	t.Run("powered off in the middle", func(t *testing.T) { poweredOff(t, r) })
	t.Run("guest that never rests", func(t *testing.T) { standsStill(t, r) })
}

// standsStill: a guest that stands still cannot keep a move from its end, and what would help it to that is left out.
func standsStill(t *testing.T, r Rig) {
	g := r.Boot(t, true, true)
	m := r.begin(t, g)
	m.PostCopy, m.AutoConverge, m.MaxDowntime, m.Bandwidth = true, true, 50*time.Millisecond, 32*api.MiB
	moved, err := r.A.Migrate(t.Context(), m, nil)
	require.NoError(t, err)
	t.Logf("moved: %+v", moved)
	require.False(t, moved.PostCopy)
	require.Greater(t, moved.Downtime, m.MaxDowntime, "all of it was downtime")
	r.AtTarget(t, g.Plan.VM)
}

func moves(t *testing.T, r Rig, shared bool) {
	g := r.Boot(t, shared, false)
	vm := g.Plan.VM
	require.NoError(t, r.A.MarkHA(t.Context(), vm, true))
	m := r.begin(t, g)
	m.MaxDowntime = time.Second
	moved, err := r.A.Migrate(t.Context(), m, nil)
	require.NoError(t, err)
	t.Logf("moved: %+v", moved)
	require.Positive(t, moved.Total)
	require.Positive(t, moved.Downtime)
	require.Positive(t, moved.Bytes)
	require.Positive(t, moved.Iterations)
	require.False(t, moved.PostCopy)
	r.AtTarget(t, vm)

	again, err := r.A.Migrate(t.Context(), m, nil)
	require.NoError(t, err, "a guest that has left is content")
	require.Zero(t, again)
	s, err := r.A.Settle(t.Context(), vm)
	require.NoError(t, err)
	require.Equal(t, steps.DomainState{Phase: api.PhaseStopped}, s)
	require.NoError(t, r.A.Remove(t.Context(), vm), "clearing up finds nothing, and is content")
	r.AtTarget(t, vm)

	_, err = r.B.Stop(t.Context(), vm, true, 0, nil)
	require.NoError(t, err)
	before, err := r.B.Start(t.Context(), vm)
	require.NoError(t, err, "it is defined where it is now")
	require.Equal(t, api.PhaseStopped, before)
	r.AtTarget(t, vm)
}

// movesWithDisk: a volume in a pool that both nodes share is there already; any other must be asked to go along.
func movesWithDisk(t *testing.T, r Rig) {
	for _, shared := range []bool{true, false} { // the root disk
		g := r.Boot(t, shared, false)
		disk, src := dataDisk("vdc"), r.Disk(t)
		require.NoError(t, r.A.AttachDisk(t.Context(), g.Plan.VM, disk, src))
		g.Plan.Data, g.At.Data, g.To.Data = []steps.DataDisk{disk}, []compute.DiskSource{src}, []compute.DiskSource{src}
		m := r.begin(t, g)
		req := steps.IncomingRequest{Plan: g.Plan, Leaving: steps.Leaving{Phase: api.PhaseRunning}}
		req.Plan.Data = []steps.DataDisk{disk}
		req.Plan.Data[0].Pool.Shared = false
		_, err := r.B.CheckIncoming(t.Context(), req, g.To)
		require.Equal(t, problem.Conflict, problem.KindOf(err), "%v", err)
		require.ErrorContains(t, err, "not shared")
		req.Copy = true
		_, err = r.B.CheckIncoming(t.Context(), req, g.To)
		require.NoError(t, err)
		_, err = r.A.Migrate(t.Context(), m, nil)
		require.NoError(t, err)
		r.AtTarget(t, g.Plan.VM)
		require.NoError(t, r.B.AttachDisk(t.Context(), g.Plan.VM, disk, src), "it is there")
		other := dataDisk("vdc")
		require.Equal(t, problem.Conflict, problem.KindOf(r.B.AttachDisk(t.Context(), g.Plan.VM, other, src)))
		_, err = r.B.Stop(t.Context(), g.Plan.VM, true, 0, nil)
		require.NoError(t, err)
		require.Equal(t, problem.Conflict, problem.KindOf(r.B.AttachDisk(t.Context(), g.Plan.VM, other, src)), "for the next start, too")
	}
}

// ended: cancelled by the caller, and settled by another.
func ended(t *testing.T, r Rig) {
	g := r.Boot(t, true, false)
	vm := g.Plan.VM
	m := r.begin(t, g)
	quick := r.Slow(&m)
	defer quick()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done, news := Go(ctx, r.A, m)
	UnderWay(t, done, news)
	list, err := r.B.List(t.Context())
	require.NoError(t, err)
	require.Contains(t, list, steps.DomainFound{ID: vm, Name: compute.DomainName(vm), Phase: api.PhasePaused, Ours: true}, "it is on its way")
	cancel()
	require.Equal(t, problem.Cancelled, problem.KindOf(Over(t, done).Err))
	r.AtSource(t, vm)

	done, news = Go(t.Context(), r.A, m)
	UnderWay(t, done, news)
	s, err := r.A.Settle(t.Context(), vm)
	require.NoError(t, err)
	require.Equal(t, steps.DomainState{Exists: true, Phase: api.PhaseRunning}, s)
	require.Error(t, Over(t, done).Err)
	require.NoError(t, r.B.Remove(t.Context(), vm))
	r.AtSource(t, vm)

	// The target turns a guest away that is just arriving.
	done, news = Go(t.Context(), r.A, m)
	UnderWay(t, done, news)
	require.NoError(t, r.B.Remove(t.Context(), vm))
	if s, err = r.A.Settle(t.Context(), vm); err == nil {
		require.Equal(t, steps.DomainState{Exists: true, Phase: api.PhaseRunning}, s)
	}
	require.NoError(t, err)
	require.Error(t, Over(t, done).Err)
	r.AtSource(t, vm)

	quick()
	m = r.begin(t, g)
	_, err = r.A.Migrate(t.Context(), m, nil)
	require.NoError(t, err, "and then it can move")
	r.AtTarget(t, vm)
}

func joined(t *testing.T, r Rig) {
	g := r.Boot(t, true, false)
	m := r.begin(t, g)
	quick := r.Slow(&m)
	defer quick()
	ctx, leave := context.WithCancelCause(t.Context())
	first, news := Go(ctx, r.A, m)
	UnderWay(t, first, news)
	leave(compute.ErrLeave)
	require.Equal(t, problem.Unavailable, problem.KindOf(Over(t, first).Err), "it is to be tried again")
	second, news := Go(t.Context(), r.A, m)
	UnderWay(t, second, news)
	third, news := Go(t.Context(), r.A, m)
	UnderWay(t, third, news)
	require.Empty(t, second, "it still waits")
	_, err := r.A.Settle(t.Context(), g.Plan.VM)
	require.NoError(t, err)
	require.Error(t, Over(t, second).Err)
	require.Error(t, Over(t, third).Err)
	r.AtSource(t, g.Plan.VM)
}

func poweredOff(t *testing.T, r Rig) {
	g := r.Boot(t, true, false)
	m := r.begin(t, g)
	quick := r.Slow(&m)
	defer quick()
	done, news := Go(t.Context(), r.A, m)
	UnderWay(t, done, news)
	_, err := r.A.Stop(t.Context(), g.Plan.VM, true, 0, nil)
	require.NoError(t, err)
	if problem.KindOf(Over(t, done).Err) != problem.Conflict {
		_, err = r.A.Migrate(t.Context(), m, nil)
		require.Equal(t, problem.Conflict, problem.KindOf(err))
	}
	s, err := r.A.Settle(t.Context(), g.Plan.VM)
	require.NoError(t, err)
	require.Equal(t, steps.DomainState{Exists: true, Phase: api.PhaseStopped}, s)
	s, err = r.B.Look(t.Context(), g.Plan.VM)
	require.NoError(t, err)
	require.Equal(t, steps.DomainState{Phase: api.PhaseStopped}, s)
}

// lingers: that a domain is still there does not mean that there is a guest to go back to.
func lingers(t *testing.T, r Rig) {
	g := r.Boot(t, true, false)
	vm := g.Plan.VM
	m := r.begin(t, g)
	r.Linger(t, m)
	listed := func() bool {
		list, err := r.A.List(t.Context())
		require.NoError(t, err)
		return slices.Contains(list, steps.DomainFound{ID: vm, Name: compute.DomainName(vm), Phase: api.PhaseStopped, Ours: true})
	}
	require.True(t, listed(), "it is defined")
	r.AtTarget(t, vm)
	moved, err := r.A.Migrate(t.Context(), m, nil)
	require.NoError(t, err)
	require.Zero(t, moved, "it has left")
	_, err = r.B.Stop(t.Context(), vm, true, 0, nil)
	require.NoError(t, err)
	for _, look := range []func(context.Context, string) (steps.DomainState, error){r.A.Settle, r.A.Look} {
		s, err := look(t.Context(), vm)
		require.NoError(t, err)
		require.Equal(t, steps.DomainState{Phase: api.PhaseStopped}, s, "whatever has become of it where it is now")
	}
	require.NoError(t, r.A.Remove(t.Context(), vm))
	require.False(t, listed())
}

func restless(t *testing.T, r Rig) {
	g := r.Boot(t, true, true)
	vm := g.Plan.VM
	m := r.begin(t, g)
	m.Timeout, m.MaxDowntime, m.Bandwidth = 5*time.Second, 50*time.Millisecond, 32*api.MiB
	_, err := r.A.Migrate(t.Context(), m, nil)
	require.Equal(t, problem.Conflict, problem.KindOf(err), "%v", err)
	require.False(t, problem.TraitsOf(problem.KindOf(err)).Retry)
	require.ErrorContains(t, err, "--auto-converge")
	t.Log(err)
	r.AtSource(t, vm)

	m.PostCopy, m.Timeout = true, time.Minute
	moved, err := r.A.Migrate(t.Context(), m, nil)
	require.NoError(t, err)
	t.Logf("post-copy: %+v", moved)
	require.True(t, moved.PostCopy)
	r.AtTarget(t, vm)

	g = r.Boot(t, true, true)
	m = r.begin(t, g)
	m.AutoConverge, m.MaxDowntime, m.Timeout, m.Bandwidth = true, time.Second, 3*time.Minute, 32*api.MiB
	moved, err = r.A.Migrate(t.Context(), m, nil)
	require.NoError(t, err)
	t.Logf("auto-converge: %+v", moved)
	r.AtTarget(t, g.Plan.VM)
}

func refusals(t *testing.T, r Rig) {
	g := r.Boot(t, true, false)
	leaving, err := r.A.Describe(t.Context(), g.Plan.VM)
	require.NoError(t, err)
	require.Equal(t, api.PhaseRunning, leaving.Phase)
	require.Empty(t, leaving.Blockers)
	for what, c := range map[string]struct {
		breakIt func(*steps.IncomingRequest)
		kind    problem.Kind
		says    string
	}{
		"the same machine": {func(q *steps.IncomingRequest) { q.Leaving.HostUUID = hostUUID(t, r.B, g.Plan.VM) }, problem.Conflict, "same host UUID"},
		"a device":         {func(q *steps.IncomingRequest) { q.Leaving.Blockers = []string{"it has a card"} }, problem.Conflict, "it has a card"},
		"not running":      {func(q *steps.IncomingRequest) { q.Leaving.Phase = api.PhaseStopped }, problem.Conflict, "does not run"},
		"accelerator":      {func(q *steps.IncomingRequest) { q.Leaving.Accel = "xen" }, problem.Unsupported, "xen"},
		"architecture":     {func(q *steps.IncomingRequest) { q.Leaving.Arch = "s390" }, problem.Unsupported, "s390"},
		"its own CPU":      {func(q *steps.IncomingRequest) { q.Leaving.OwnCPU = true }, problem.Unsupported, "processor"},
		"CPU model":        {func(q *steps.IncomingRequest) { q.Plan.CPUModel = "Abacus" }, problem.Unsupported, "Abacus"},
	} {
		req := steps.IncomingRequest{Plan: g.Plan, Leaving: leaving}
		c.breakIt(&req)
		_, err := r.B.CheckIncoming(t.Context(), req, g.To)
		require.Equal(t, c.kind, problem.KindOf(err), "%s: %v", what, err)
		require.ErrorContains(t, err, c.says, what)
	}

	require.NoError(t, r.B.Define(t.Context(), g.Plan, g.To))
	m := r.begin(t, g) // one that is only defined is in nobody's way
	other := g.Plan
	other.VM = api.NewID()
	_, err = r.B.CheckIncoming(t.Context(), steps.IncomingRequest{Plan: other, Leaving: leaving}, g.To)
	require.NoError(t, err)
	_, err = r.A.CheckIncoming(t.Context(), steps.IncomingRequest{Plan: g.Plan, Leaving: steps.Leaving{Phase: api.PhaseRunning}}, g.At)
	require.Equal(t, problem.Conflict, problem.KindOf(err), "%v", err)
	require.ErrorContains(t, err, "here already")
	require.NoError(t, r.B.Remove(t.Context(), g.Plan.VM))

	m.Incoming.URI = "qemu+tcp://127.0.0.1:9/system"
	_, err = r.A.Migrate(t.Context(), m, nil)
	require.Error(t, err, "nobody is there")
	r.AtSource(t, g.Plan.VM)
}

// hostUUID asks a driver for its own by way of a domain.
func hostUUID(t *testing.T, d compute.Driver, vm string) string {
	t.Helper()
	plan := steps.VMPlan{VM: api.NewID(), Name: "uuid", Project: "default", VCPUs: 1, Memory: 64 * api.MiB, Disk: steps.DiskPlan{Volume: vm}}
	require.NoError(t, d.Define(t.Context(), plan, compute.DomainFiles{Disk: compute.QCOW2("/nonexistent")}))
	defer func() { require.NoError(t, d.Remove(t.Context(), plan.VM)) }()
	l, err := d.Describe(t.Context(), plan.VM)
	require.NoError(t, err)
	require.Equal(t, api.PhaseStopped, l.Phase)
	require.NotEmpty(t, l.HostUUID)
	return l.HostUUID
}

func definitions(t *testing.T, r Rig) {
	plan := steps.VMPlan{VM: api.NewID(), Name: "defined", Project: "default", VCPUs: 1, Memory: 64 * api.MiB, Disk: steps.DiskPlan{Volume: api.NewID()}}
	files := compute.DomainFiles{Disk: compute.QCOW2("/nonexistent")}
	t.Cleanup(func() { require.NoError(t, r.A.Remove(context.Background(), plan.VM)) })
	s, err := r.A.Look(t.Context(), plan.VM)
	require.NoError(t, err)
	require.Equal(t, steps.DomainState{Phase: api.PhaseStopped}, s)
	s, err = r.A.Settle(t.Context(), plan.VM)
	require.NoError(t, err)
	require.Equal(t, steps.DomainState{Phase: api.PhaseStopped}, s)
	require.NoError(t, r.A.MarkHA(t.Context(), plan.VM, true), "content if there is none")
	for range 2 {
		require.NoError(t, r.A.Define(t.Context(), plan, files))
		s, err = r.A.Look(t.Context(), plan.VM)
		require.NoError(t, err)
		require.Equal(t, steps.DomainState{Exists: true, Phase: api.PhaseStopped}, s)
	}
	for _, ha := range []bool{true, true, false} {
		require.NoError(t, r.A.MarkHA(t.Context(), plan.VM, ha))
	}
	_, err = r.A.Migrate(t.Context(), steps.MoveDomain{Plan: plan}, nil)
	require.Equal(t, problem.Conflict, problem.KindOf(err), "%v", err)
	require.ErrorContains(t, err, "powered off meanwhile")
	require.NoError(t, r.A.Remove(t.Context(), plan.VM))
	bad := plan
	bad.CPUModel = "Abacus"
	require.Equal(t, problem.Unsupported, problem.KindOf(r.A.Define(t.Context(), bad, files)))
}
