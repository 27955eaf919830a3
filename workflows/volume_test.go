package workflows_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/steps"
)

// resizeStage is a resize whose node answers as the test says, once for each time that it is asked.
func resizeStage(t *testing.T, answers ...error) *stage {
	st := newStage(t)
	fine(st, steps.LoadVolume)
	answer(st, steps.ResizeVolume, func(in steps.Resize) (steps.Nothing, error) {
		require.Equal(t, 2*api.GiB, in.Volume.Size)
		if len(answers) == 0 {
			return steps.Nothing{}, nil
		}
		err := answers[0]
		answers = answers[1:]
		return steps.Nothing{}, err
	})
	st.run(workflows.VolumeResize, steps.Op{Input: input(t, api.VolumeResize{Size: 2 * api.GiB})})
	return st
}

func TestAResizeThatMayHaveHappenedIsBroughtToItsEnd(t *testing.T) {
	full := problem.New(problem.NoCapacity, "the pool is full")
	st := resizeStage(t, full, full)
	require.Equal(t, api.OpFailed, st.outcome.State)
	require.Equal(t, problem.NoCapacity, st.outcome.Error.Kind)
	require.False(t, st.stuck, "it is not waited for space while the VM is held")

	st = resizeStage(t, problem.New(problem.Internal, "who knows"))
	require.Equal(t, api.OpSucceeded, st.outcome.State)
	st = resizeStage(t, problem.New(problem.Invalid, "it says"), problem.New(problem.Invalid, "it says again"))
	require.Equal(t, api.OpSucceeded, st.outcome.State)
	require.True(t, st.stuck, "meanwhile")
}

// TestARevertStartsTheVMWithWhatItGoesBackTo looks at the disks that the VM is started with, forward and back.
func TestARevertStartsTheVMWithWhatItGoesBackTo(t *testing.T) {
	run := func(kinds ...problem.Kind) (started []string, st *stage) {
		st = newStage(t)
		answer(st, steps.LoadVolume, func(steps.VolumeRef) (steps.VolumePlaced, error) {
			plan := steps.VMPlan{VM: "vm", Agent: "a", Data: []steps.DataDisk{{Volume: "other", Layer: "mine"}, {Volume: "v", Layer: "now", Device: "vdc"}}}
			return steps.VolumePlaced{Plan: steps.VolumePlan{Volume: "v", Layer: "now", Agent: "a"}, VMs: []steps.Placement{{Plan: plan}}}, nil
		})
		fine(st, steps.StopDomain)
		fine(st, steps.RevertVolume)
		fine(st, steps.UndoRevert)
		answer(st, steps.CheckRevert, func(r steps.VolumeRevert) (steps.Nothing, error) {
			require.Equal(t, "then", r.Frozen)
			require.NotContains(t, st.calls, steps.StopDomain.Name, "the guest runs as long as that is not known")
			return steps.Nothing{}, nil
		})
		answer(st, steps.StartDomain, func(p steps.VMPlan) (steps.PowerResult, error) {
			require.Equal(t, "mine", p.Data[0].Layer)
			started = append(started, p.Data[1].Layer)
			if len(kinds) > 0 {
				k := kinds[0]
				kinds = kinds[1:]
				return steps.PowerResult{}, problem.New(k, "it does not start")
			}
			return steps.PowerResult{}, nil
		})
		answer(st, steps.RemoveVolume, func(v steps.VolumePlan) (steps.Nothing, error) {
			require.Equal(t, "now", v.Layer)
			return steps.Nothing{}, nil
		})
		st.run(workflows.SnapshotRevert, steps.Op{Input: input(t, api.SnapshotOrder{
			Snapshot: "s", Volume: "v", Files: true, Frozen: "then", Layer: "new", Stop: &api.VMStop{},
		})})
		return started, st
	}
	started, st := run()
	require.Equal(t, api.OpSucceeded, st.outcome.State)
	require.Equal(t, []string{"new"}, started)
	started, st = run(problem.Invalid)
	require.Equal(t, api.OpFailed, st.outcome.State)
	require.Equal(t, []string{"new", "now"}, started)
	require.NotContains(t, st.calls, steps.RemoveVolume.Name, "nothing is lost")
}

// TestNoGuestIsStoppedForASnapshotThatIsLost: the node looks for it first.
func TestNoGuestIsStoppedForASnapshotThatIsLost(t *testing.T) {
	st := newStage(t)
	fine(st, steps.LoadVolume)
	answer(st, steps.CheckRevert, func(steps.VolumeRevert) (steps.Nothing, error) {
		return steps.Nothing{}, problem.New(problem.NotFound, "volume data has no snapshot s")
	})
	st.run(workflows.SnapshotRevert, steps.Op{Input: input(t, api.SnapshotOrder{Snapshot: "s", Volume: "v", Layer: "new", Stop: &api.VMStop{}})})
	require.Equal(t, api.OpFailed, st.outcome.State)
	require.Equal(t, problem.NotFound, st.outcome.Error.Kind)
	require.NotContains(t, st.calls, steps.StopDomain.Name)
}

func TestAVolumeIsPurgedFromItsTop(t *testing.T) {
	st := newStage(t)
	fine(st, steps.LoadVolume)
	fine(st, steps.DropSnapshot)
	var removed []string
	answer(st, steps.RemoveVolume, func(v steps.VolumePlan) (steps.Nothing, error) {
		removed = append(removed, v.Layer)
		return steps.Nothing{}, nil
	})
	st.run(workflows.VolumePurge, steps.Op{Input: input(t, api.VolumeRemoval{Snapshots: []string{"s"}, Layers: []string{"top", "below", ""}})})
	require.Equal(t, api.OpSucceeded, st.outcome.State)
	require.Equal(t, []string{"top", "below", ""}, removed)
}

// TestAFlattenThatHasHappenedIsBroughtToItsEnd: an undo asks the node, which alone knows.
func TestAFlattenThatHasHappenedIsBroughtToItsEnd(t *testing.T) {
	for alone, want := range map[bool]api.OperationState{true: api.OpSucceeded, false: api.OpFailed} {
		st := newStage(t)
		fine(st, steps.LoadVolume)
		answer(st, steps.FlattenVolume, func(steps.Flatten) (steps.Nothing, error) {
			return steps.Nothing{}, problem.New(problem.Invalid, "who knows")
		})
		answer(st, steps.StopFlatten, func(steps.Flatten) (steps.Flattened, error) { return steps.Flattened{Alone: alone}, nil })
		st.run(workflows.VolumeFlatten, steps.Op{Input: input(t, api.VolumeFlatten{Image: "i"})})
		require.Equal(t, want, st.outcome.State)
	}
}
