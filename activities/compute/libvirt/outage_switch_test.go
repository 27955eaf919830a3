package libvirt

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
)

// killRig is a missedRig whose libvirtd can be killed.
type killRig struct {
	*missedRig
	sandbox func(verb string) string
	status  string // what libvirt reads back of the guest
}

func newKillRig(t *testing.T) *killRig {
	_, sandbox := mortal(t, "a libvirtd that is killed while a guest goes over to another layer")
	r := &killRig{missedRig: newMissedRig(t), sandbox: sandbox}
	t.Cleanup(func() { sandbox("libvirtd") })
	r.status = filepath.Join(os.Getenv("SANDBOX_DIR"), os.Getenv("NEXTSTACK_TEST_SANDBOX_NODE"), "run/libvirt/qemu", compute.DomainName(r.plan.VM)+".xml")
	return r
}

// forgetful does something that libvirtd does not remember when it has been killed afterwards: for its successor it is as if it had
// died when QEMU had done its part, and nothing of that was written down yet.
func (r *killRig) forgetful(do func() error) {
	r.Helper()
	before, err := os.ReadFile(r.status)
	require.NoError(r, err)
	require.NoError(r, do())
	r.sandbox("kill-libvirtd")
	require.NoError(r, os.WriteFile(r.status, before, 0o600))
	r.sandbox("libvirtd")
}

// TestKilledInSwitch kills libvirtd in the moment in which a guest goes over to a new layer. The switch is made again, undone, or left
// as it is while the VM is stopped: nothing that the guest has written is lost.
func TestKilledInSwitch(t *testing.T) {
	r := newKillRig(t)
	ctx, last := t.Context(), 1
	for _, then := range []string{"again", "undo", "stop", "again", "stop and undo"} {
		to := r.layer(r.old.File)
		l := compute.LayerSwitch{To: to, Fresh: r.fresh(to)}
		m := compute.Merge{Top: to, Below: r.old, Retired: func() error {
			if _, err := os.Stat(to.File); err != nil {
				return nil
			}
			r.run("qemu-img", "info", to.File) // which fails if somebody has it open
			return os.Rename(to.File, to.File+".part")
		}}
		r.forgetful(func() error { _, err := r.d.SwitchDisk(ctx, r.plan.VM, r.disk.Volume, l); return err })
		require.Equal(t, to.File, r.files()[0])
		require.Equal(t, r.old.File, r.believed().Chain[0], "libvirt has forgotten it")
		last++
		r.write(last)
		switch then {
		case "again":
			_, err := r.d.SwitchDisk(ctx, r.plan.VM, r.disk.Volume, l)
			require.NoError(t, err)
			r.old = to
		case "undo":
			running, err := r.d.MergeDisk(ctx, r.plan.VM, r.disk.Volume, m, nil)
			require.NoError(t, err)
			require.True(t, running)
		case "stop":
			r.stop()
			r.holds(to, last)
			done, err := r.d.SwitchDisk(ctx, r.plan.VM, r.disk.Volume, l)
			require.NoError(t, err)
			require.False(t, done.Running)
			_, err = r.d.Start(ctx, r.plan.VM)
			require.NoError(t, err)
			r.old = to
		case "stop and undo":
			r.restart()
			running, err := r.d.MergeDisk(ctx, r.plan.VM, r.disk.Volume, m, nil)
			require.NoError(t, err)
			require.True(t, running)
		}
		r.agree(r.believed().Chain...)
		require.Equal(t, r.old.File, r.believed().Chain[0], then)
		last++
		r.write(last)
	}
	r.stop()
	r.holds(r.old, last)
}

// TestKilledInSwitches kills libvirtd at any moment of a switch.
func TestKilledInSwitches(t *testing.T) {
	r := newKillRig(t)
	ctx, missed, last := t.Context(), 0, 1
	for round := range 12 {
		to := r.layer(r.old.File)
		l := compute.LayerSwitch{To: to, Fresh: r.fresh(to)}
		over := make(chan error, 1)
		go func() { _, err := r.d.SwitchDisk(ctx, r.plan.VM, r.disk.Volume, l); over <- err }()
		pause := time.NewTimer(time.Duration(round) * 3 * time.Millisecond)
		<-pause.C
		r.sandbox("kill-libvirtd")
		r.sandbox("libvirtd")
		first := <-over // lost, or it was faster
		if r.files()[0] != r.believed().Chain[0] {
			missed++
		}
		last++
		r.write(last)
		_, err := r.d.SwitchDisk(ctx, r.plan.VM, r.disk.Volume, l)
		require.NoError(t, err, "after %v", first)
		r.old = to
		r.agree(r.believed().Chain...)
		last++
		r.write(last)
	}
	t.Logf("libvirtd died %d times in the moment of the switch", missed)
	r.stop()
	r.holds(r.old, last)
}

// TestKilledInCheckpoint kills libvirtd in the moment in which a guest, whose memory is written, goes over to new layers.
func TestKilledInCheckpoint(t *testing.T) {
	r := newKillRig(t)
	ctx := t.Context()
	root := r.layer(rootOf(r).File)
	to := r.layer(r.old.File)
	c := compute.Checkpoint{Memory: filepath.Join(r.dir, "memory"), Disks: []compute.SwitchedDisk{{Volume: r.plan.Disk.Volume, To: root}, {Volume: r.disk.Volume, To: to}}}
	below := rootOf(r)
	c.Fresh = func() error { r.make(root, below.File); return r.fresh(to)() }
	r.forgetful(func() error { _, err := r.d.TakeCheckpoint(ctx, r.plan.VM, c, nil); return err })
	require.Equal(t, to.File, r.files()[0])
	require.Equal(t, r.old.File, r.believed().Chain[0], "libvirt has forgotten it")
	r.write(2)
	require.NoError(t, r.d.EndCheckpoint(ctx, r.plan.VM, c.Disks), "it touches nothing that is in use")
	_, err := r.d.TakeCheckpoint(ctx, r.plan.VM, c, nil)
	require.NoError(t, err)
	whole, err := r.d.MemoryWhole(ctx, c.Memory)
	require.NoError(t, err)
	require.True(t, whole)
	r.agree(r.believed().Chain...)
	require.Equal(t, to.File, r.believed().Chain[0])
	require.Equal(t, root.File, rootOf(r).File)
	r.write(3)
	r.stop()
	r.holds(r.old, 2)
	r.holds(to, 3)
	p, err := r.d.State(ctx, r.plan.VM)
	require.NoError(t, err)
	require.Equal(t, api.PhaseStopped, p)
}

// rootOf returns what libvirt takes the root disk to be.
func rootOf(r *killRig) compute.DiskSource {
	r.Helper()
	got := make(chan compute.DiskSource, 1)
	require.NoError(r, r.d.inScopes(r.Context(), r.plan.VM, "look", func(s scope) error {
		disk, err := s.disk(r.plan.Disk.Volume)
		if err == nil && s.live {
			got <- disk.Source
		}
		return err
	}))
	return <-got
}
