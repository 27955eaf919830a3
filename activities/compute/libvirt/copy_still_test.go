package libvirt

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// TestAGuestThatStandsStillWithItsCopy goes on when it is told to, and not before, whichever agent comes meanwhile. If it is to go on with
// what it had, it does.
func TestAGuestThatStandsStillWithItsCopy(t *testing.T) {
	b := newCopyBench(t)
	phase := func() api.Phase { return phaseOfNow(t, b.uri, b.plan.VM) }
	to := b.empty("to")
	for range 2 {
		moved, err := b.driver().MoveDiskStill(t.Context(), b.plan.VM, b.disk.Volume, to, 0, nil)
		require.NoError(t, err)
		require.True(t, moved.There)
	}
	require.True(t, b.settle(to))
	moved := b.move(to)
	require.True(t, moved.There)
	require.Equal(t, api.PhasePaused, phase())
	pause, err := b.driver().LetGoOn(t.Context(), b.plan.VM)
	require.NoError(t, err)
	require.Positive(t, pause)
	b.has(to)

	// Its agent dies when it is to stand still, and the copy is given up.
	back := b.empty("back")
	b.begin(back)
	require.NoError(t, b.driver().inScopes(t.Context(), b.plan.VM, "hold", func(s scope) error {
		if !s.live {
			return nil
		}
		return hold(s.dom)
	}))
	require.Equal(t, api.PhasePaused, phase())
	require.False(t, b.settle(back))
	b.has(to)
}

// TestOutageOfAGuestThatStandsStill: the libvirtd that comes after one that was killed knows that the guest is not to go on.
func TestOutageOfAGuestThatStandsStill(t *testing.T) {
	_, sandbox := mortal(t, "a libvirtd that is killed while a guest stands still with its copy")
	b := newCopyBench(t)
	t.Cleanup(func() { sandbox("libvirtd") })
	to := b.empty("to")
	moved, err := b.driver().MoveDiskStill(t.Context(), b.plan.VM, b.disk.Volume, to, 0, nil)
	require.NoError(t, err)
	require.True(t, moved.There)
	sandbox("kill-libvirtd")
	sandbox("libvirtd")
	require.True(t, b.settle(to))
	require.Equal(t, api.PhasePaused, phaseOfNow(t, b.uri, b.plan.VM))
	pause, err := b.driver().LetGoOn(t.Context(), b.plan.VM)
	require.NoError(t, err)
	require.Positive(t, pause)
	b.has(to)
}

// TestADomainWhoseDiskIsGone says so, when it is to be started: so that it is defined anew with those that it should have.
func TestADomainWhoseDiskIsGone(t *testing.T) {
	b := newCopyBench(t)
	d, ctx, vm := b.driver(), t.Context(), b.plan.VM
	_, err := d.Stop(ctx, vm, true, 0, nil)
	require.NoError(t, err)
	require.NoError(t, os.Rename(b.from.File, b.from.File+".gone"))
	_, err = d.Start(ctx, vm)
	require.Equal(t, problem.NotFound, problem.KindOf(err), "%v", err)
	require.ErrorContains(t, err, "is not there")
	files := compute.DomainFiles{Disk: b.root, Seed: b.seed, Data: []compute.DiskSource{compute.QCOW2(b.from.File + ".gone")}}
	require.NoError(t, d.Create(ctx, b.plan, files))
	b.has(files.Data[0])
}
