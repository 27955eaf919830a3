package volume_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// moveOf returns a move of the bench's volume, whose other pool has it already.
func moveOf(t *testing.T, b *bench, hold bool) steps.VolumeCopy {
	t.Helper()
	there := b.v
	there.Layer, there.Pool = api.NewID(), steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: "/other"}
	_, err := b.pool.Prepare(t.Context(), there.Pool)
	require.NoError(t, err)
	require.NoError(t, run(b, steps.MakeVolume, there))
	return steps.VolumeCopy{From: b.v, To: there, VM: b.vm, Hold: hold}
}

// TestAGuestGoesOnWithItsCopyWhenItIsTold, and until then both copies show the same.
func TestAGuestGoesOnWithItsCopyWhenItIsTold(t *testing.T) {
	b := newBench(t, api.PhaseRunning)
	phase := func(want api.Phase) {
		t.Helper()
		is, err := b.guest.State(t.Context(), b.vm.VM)
		require.NoError(t, err)
		require.Equal(t, want, is)
	}
	b.guest.Busy("two ", func(volume string) bool { return volume == b.v.Volume })
	move := moveOf(t, b, true)
	copied, err := ask(b, steps.CopyVolume, move)
	require.NoError(t, err)
	require.True(t, copied.Live)
	require.Zero(t, copied.Pause, "it has not ended")
	require.NoError(t, run(b, steps.CopyVolume, move))
	settled, err := ask(b, steps.SettleVolumeCopy, move)
	require.NoError(t, err)
	require.True(t, settled.Moved)
	phase(api.PhasePaused)
	for _, v := range []steps.VolumePlan{move.From, move.To} {
		shows, _, err := b.pool.Shows(v)
		require.NoError(t, err)
		require.Equal(t, "one ", shows)
	}
	b.v = move.To
	switched, err := ask(b, steps.SwitchVolume, move)
	require.NoError(t, err)
	require.Positive(t, switched.Pause)
	phase(api.PhaseRunning)
	require.NoError(t, run(b, steps.SwitchVolume, move))
	b.shows("one two ")

	for _, phase := range []api.Phase{api.PhaseStopped, ""} {
		b := newBench(t, phase)
		require.NoError(t, run(b, steps.SwitchVolume, moveOf(t, b, true)), "nobody waits for it")
	}
}

// TestAVMThatIsOffHasItsDiskAsItWas when its copy is given up, and a copy that its domain names is made all the same: it may be that of
// an earlier move, which somebody else has taken back.
func TestAVMThatIsOffHasItsDiskAsItWas(t *testing.T) {
	b := newBench(t, api.PhaseStopped)
	move := moveOf(t, b, true)
	require.NoError(t, run(b, steps.CopyVolume, move))
	settled, err := ask(b, steps.SettleVolumeCopy, move)
	require.NoError(t, err)
	require.False(t, settled.Moved)
	want, err := b.pool.LocateVolume(b.v)
	require.NoError(t, err)
	require.Equal(t, want, b.guest.Disks(b.vm.VM)[1].Source)

	require.NoError(t, run(b, steps.CopyVolume, move))
	require.NoError(t, run(b, steps.RemoveVolume, move.To))
	require.NoError(t, run(b, steps.MakeVolume, move.To))
	require.NoError(t, run(b, steps.CopyVolume, move))
	b.v = move.To
	b.shows("one ")
}

// TestADomainThatNamesWhatIsGone is started with what it should have: its node was lost when that came into another pool, or did not.
func TestADomainThatNamesWhatIsGone(t *testing.T) {
	b := newBench(t, api.PhaseStopped)
	move := moveOf(t, b, true)
	require.NoError(t, run(b, steps.CopyVolume, move))
	require.NoError(t, run(b, steps.RemoveVolume, move.To))
	plan := *b.vm
	plan.Data = []steps.DataDisk{b.disk()}
	require.NoError(t, run(b, steps.StartDomain, plan))
	want, err := b.pool.LocateVolume(b.v)
	require.NoError(t, err)
	disks := b.guest.Disks(plan.VM)
	require.Len(t, disks, 2)
	require.Equal(t, want, disks[1].Source)
	b.shows("one ")
}
