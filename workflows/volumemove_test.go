package workflows_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/steps"
)

// TestOneOfTwoCopiesStays: after a copy that went wrong, that which the VM has is left, and the other one removed; so are their seeds.
func TestOneOfTwoCopiesStays(t *testing.T) {
	run := func(copied, moved bool) (*stage, []string) {
		st := newStage(t)
		var removed []string
		answer(st, steps.PlaceVolumeMove, func(steps.VolumeMoveOrder) (steps.VolumePlaced, error) {
			vm := steps.VMPlan{VM: "vm", Agent: "a", Disk: steps.DiskPlan{Volume: "v", Pool: "old", Image: "i"}}
			return steps.VolumePlaced{Plan: steps.VolumePlan{Volume: "v", Agent: "a", Pool: steps.PoolOnNode{Pool: "old"}, Image: &steps.CachedImage{}}, VMs: []steps.Placement{{Plan: vm}}}, nil
		})
		answer(st, steps.MakeVolume, func(v steps.VolumePlan) (steps.Nothing, error) {
			require.Equal(t, "new", v.Pool.Pool)
			require.Equal(t, "layer", v.Layer)
			require.Nil(t, v.Image, "it is made on nothing")
			return steps.Nothing{}, nil
		})
		fine(st, steps.MakeSeed)
		var seeds []string
		answer(st, steps.MoveSeed, func(m steps.SeedMove) (steps.Nothing, error) {
			require.Equal(t, "v", m.To.Disk.Volume)
			seeds = append(seeds, m.To.Disk.Pool)
			return steps.Nothing{}, nil
		})
		answer(st, steps.CopyVolume, func(c steps.VolumeCopy) (steps.VolumeCopied, error) {
			require.Equal(t, []string{"old", "new"}, []string{c.From.Pool.Pool, c.To.Pool.Pool})
			if copied {
				return steps.VolumeCopied{Live: true}, nil
			}
			return steps.VolumeCopied{}, problem.New(problem.Internal, "who knows")
		})
		answer(st, steps.SettleVolumeCopy, func(steps.VolumeCopy) (steps.VolumeSettled, error) { return steps.VolumeSettled{Moved: moved}, nil })
		answer(st, steps.RemoveVolume, func(v steps.VolumePlan) (steps.Nothing, error) {
			removed = append(removed, v.Pool.Pool)
			return steps.Nothing{}, nil
		})
		answer(st, steps.RemoveSeed, func(p steps.VMPlan) (steps.Nothing, error) {
			removed = append(removed, "seed "+p.Disk.Pool)
			return steps.Nothing{}, nil
		})
		st.run(workflows.VolumeMigrate, steps.Op{
			Target: api.Ref{Kind: api.KindVolume, ID: "v"},
			Input:  input(t, api.VolumeMove{From: api.PoolOnNode{Pool: "old"}, To: api.PoolOnNode{Pool: "new"}, Layer: "layer", Agent: api.AgentRef{ID: "a"}}),
		})
		require.Equal(t, "new", seeds[0])
		require.Equal(t, !copied && !moved, seeds[len(seeds)-1] == "old")
		return st, removed
	}
	st, removed := run(true, false)
	require.Equal(t, api.OpSucceeded, st.outcome.State)
	require.Equal(t, []string{"old", "seed old"}, removed)
	st, removed = run(false, true)
	require.Equal(t, api.OpSucceeded, st.outcome.State, "the guest has gone on with the copy")
	require.Equal(t, []string{"old", "seed old"}, removed)
	st, removed = run(false, false)
	require.Equal(t, api.OpFailed, st.outcome.State)
	require.Equal(t, []string{"new", "seed new"}, removed)
}
