package compute_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/computetest"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

func TestFakeMoves(t *testing.T) { computetest.Moves(t, fakes(t)) }

// fakes are two nodes in a rack. Slow moves are those of guests that are restless.
func fakes(t *testing.T) computetest.Rig {
	var rack compute.Rack
	var nodes [2]*compute.Fake
	for i := range nodes {
		nodes[i] = &compute.Fake{Inv: api.Inventory{Arch: "x86_64", Accel: "tcg", HostUUID: api.NewID(), CPUModels: []string{"qemu64"}}}
		rack.Plug(api.NewID(), nodes[i])
	}
	a, b := nodes[0], nodes[1]
	return computetest.Rig{
		A: a, B: b,
		Boot: func(t *testing.T, shared, restless bool) computetest.Guest {
			plan := steps.VMPlan{VM: api.NewID(), Name: "mover", VCPUs: 1, Memory: api.GiB, Disk: steps.DiskPlan{Shared: shared}}
			files := compute.DomainFiles{Disk: compute.QCOW2("/disk")}
			a.Restless(restless)
			require.NoError(t, a.Create(t.Context(), plan, files))
			return computetest.Guest{Plan: plan, At: files, To: files, Restless: restless}
		},
		Disk: func(*testing.T) compute.DiskSource { return compute.QCOW2("/data") },
		Slow: func(*steps.MoveDomain) func() { a.Restless(true); return func() { a.Restless(false) } },
		Linger: func(t *testing.T, m steps.MoveDomain) {
			a.Linger(true)
			defer a.Linger(false)
			_, err := a.Migrate(t.Context(), m, nil)
			require.NoError(t, err)
		},
		Running: func(t *testing.T, vm string) (n int) {
			for _, f := range nodes {
				if p, err := f.State(t.Context(), vm); err == nil && p == api.PhaseRunning {
					n++
				}
			}
			return n
		},
	}
}

func TestRealMoves(t *testing.T) {
	nodes := computetest.Sandbox(t, "a", "b")
	computetest.Moves(t, nodes.Rig(t))
}

// TestRealMovesOfEmulatedGuests: outside of tests they stand still meanwhile.
func TestRealMovesOfEmulatedGuests(t *testing.T) {
	nodes := computetest.Sandbox(t, "a", "b")
	computetest.PausedMoves(t, nodes.PausedRig(t))
}

// TestRealMovesWithLocalDisks: all that the guests have written before and meanwhile is at the target.
func TestRealMovesWithLocalDisks(t *testing.T) {
	nodes := computetest.Sandbox(t, "a", "b")
	r := nodes.PausedRig(t)
	t.Run("on an image", func(t *testing.T) { nodes.LocalMove(t, r, false) })
	t.Run("of its own", func(t *testing.T) { nodes.LocalMove(t, r, true) })
}

// TestFatesOfFakes: whatever cuts a move off, the two sides together tell where the guest is, as they do with a real hypervisor.
func TestFatesOfFakes(t *testing.T) {
	type state = steps.DomainState
	runs, paused := state{Exists: true, Phase: api.PhaseRunning}, state{Exists: true, Phase: api.PhasePaused}
	gone, halves := state{Phase: api.PhaseStopped}, state{Exists: true, Phase: api.PhasePaused, Broken: true}
	for _, c := range []struct {
		at             compute.MovePoint
		fate           compute.MoveFate
		post           bool
		source, target state
	}{
		{compute.MovePrepared, compute.MoveFails, false, runs, gone},
		{compute.MoveCopied, compute.MoveFails, false, runs, gone},
		{compute.MoveSwitched, compute.MoveFails, false, runs, gone},
		{compute.MoveArrived, compute.MoveFails, false, gone, runs},
		{compute.MovePrepared, compute.MoveSourceDies, false, runs, gone},
		{compute.MoveCopied, compute.MoveSourceDies, false, runs, gone},
		{compute.MoveSwitched, compute.MoveSourceDies, false, paused, gone},
		{compute.MoveArrived, compute.MoveSourceDies, false, paused, runs},
		{compute.MovePrepared, compute.MoveTargetDies, false, runs, gone},
		{compute.MoveSwitched, compute.MoveTargetDies, false, runs, gone},
		{compute.MoveArrived, compute.MoveTargetDies, false, paused, runs},
		{compute.MoveCopied, compute.MoveBreaks, false, runs, gone},
		{compute.MoveSwitched, compute.MoveBreaks, true, halves, halves},
		{compute.MoveArrived, compute.MoveBreaks, true, halves, halves},
	} {
		t.Run(string(c.at), func(t *testing.T) {
			r := fakes(t)
			a, b := r.A.(*compute.Fake), r.B.(*compute.Fake)
			g := r.Boot(t, true, c.post)
			a.OnMove(func(_ string, at compute.MovePoint) compute.MoveFate {
				if at == c.at {
					return c.fate
				}
				return compute.MoveGoesOn
			})
			leaving, err := a.Describe(t.Context(), g.Plan.VM)
			require.NoError(t, err)
			in, err := b.CheckIncoming(t.Context(), steps.IncomingRequest{Plan: g.Plan, Leaving: leaving}, g.To)
			require.NoError(t, err)
			_, err = a.Migrate(t.Context(), steps.MoveDomain{Plan: g.Plan, Incoming: in, PostCopy: c.post}, nil)
			require.Equal(t, c.source == gone, err == nil, "%v", err)
			source, err := a.Settle(t.Context(), g.Plan.VM)
			require.NoError(t, err)
			require.Equal(t, c.source, source)
			target, err := b.Look(t.Context(), g.Plan.VM)
			require.NoError(t, err)
			require.Equal(t, c.target, target)
			if source == halves {
				_, err := a.Migrate(t.Context(), steps.MoveDomain{Plan: g.Plan, Incoming: in}, nil)
				require.Equal(t, problem.Conflict, problem.KindOf(err))
				_, err = a.Start(t.Context(), g.Plan.VM)
				require.NoError(t, err)
				require.Equal(t, 2, a.Boots(g.Plan.VM), "it begins anew")
			}
		})
	}
}

func TestGuestsMoveOnGluster(t *testing.T) {
	nodes := computetest.Sandbox(t, "a", "b")
	nodes.OnGluster(t)
	computetest.SharedMove(t, nodes.Rig(t))
}
