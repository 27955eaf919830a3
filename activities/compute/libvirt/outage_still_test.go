package libvirt

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// TestOutageOfStillGuests kills libvirtd while it writes the memory of a guest that is to stand still, while one of its disks goes over to
// another layer, and while it stands still. Its disks are only taken for kept if it has stood still all the time, and whoever comes next
// has it go on, and brings the disk back.
func TestOutageOfStillGuests(t *testing.T) {
	uri, sandbox := mortal(t, "guests that stand still under a libvirtd that is killed")
	dir := t.TempDir()
	image := func(args ...string) {
		out, err := exec.Command("qemu-img", append([]string{"create", "-q", "-f", "qcow2"}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	disk, data := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "data.qcow2")
	image(disk, "64M")
	image(data, "64M")
	over := compute.SwitchedDisk{Volume: api.NewID(), To: compute.QCOW2(filepath.Join(dir, "over.qcow2"))}
	d, ctx := New(Options{URI: uri, ConsoleDir: dir}), t.Context()
	t.Cleanup(d.Close)
	plan := steps.VMPlan{VM: api.NewID(), Name: "outage", VCPUs: 1, Memory: 256 * api.MiB, Disk: steps.DiskPlan{Volume: api.NewID()}}
	plan.Data = []steps.DataDisk{{Volume: over.Volume, Device: "vdc"}}
	t.Cleanup(func() {
		sandbox("libvirtd")
		require.NoError(t, d.Remove(context.Background(), plan.VM))
	})
	require.NoError(t, d.Create(ctx, plan, compute.DomainFiles{Disk: compute.QCOW2(disk), Data: []compute.DiskSource{compute.QCOW2(data)}}))
	is := func(want api.Phase) {
		t.Helper()
		p, err := d.State(ctx, plan.VM)
		require.NoError(t, err)
		require.Equal(t, want, p)
	}
	kept := 0
	still := func() compute.StillCheckpoint {
		return compute.StillCheckpoint{
			Memory: filepath.Join(dir, api.NewID()), Volumes: []string{plan.Disk.Volume}, Disks: []compute.SwitchedDisk{over},
			Fresh: func() error { image("-F", "qcow2", "-b", data, over.To.File); return nil },
			Keep:  func() error { is(api.PhasePaused); return nil }, Kept: func() error { is(api.PhasePaused); kept++; return nil },
		}
	}
	back := func() { // as whoever comes next does it
		t.Helper()
		require.NoError(t, d.EndStill(ctx, plan.VM))
		_, err := d.MergeDisk(ctx, plan.VM, over.Volume, compute.Merge{
			Top: over.To, Below: compute.QCOW2(data), Retired: func() error { return os.RemoveAll(over.To.File) },
		}, nil)
		require.NoError(t, err)
		is(api.PhaseRunning)
	}
	restart := func() { sandbox("kill-libvirtd"); sandbox("libvirtd") }
	for round := range 4 {
		c := still()
		ended := make(chan error, 1)
		go func() { _, err := d.TakeStill(ctx, plan.VM, c, nil); ended <- err }()
		require.Eventually(t, func() bool { _, err := os.Stat(c.Memory); return err == nil || len(ended) > 0 }, 20*time.Second, time.Millisecond)
		pause := time.NewTimer(time.Duration(round) * 40 * time.Millisecond)
		<-pause.C
		restart()
		first := <-ended // lost, or it was faster
		back()
		_, err := d.TakeStill(ctx, plan.VM, c, nil)
		require.NoError(t, err, "after %v", first)
		is(api.PhaseRunning)
		yes, err := d.MemoryWhole(ctx, c.Memory)
		require.NoError(t, err)
		require.True(t, yes)
		back()
	}
	require.GreaterOrEqual(t, kept, 4)

	c := still()
	c.Keep = func() error { restart(); return nil }
	_, err := d.TakeStill(ctx, plan.VM, c, nil)
	t.Logf("libvirtd died while it stood still: %v", err)
	is(api.PhaseRunning)
	back()

	// And so does the agent: the next one has it go on.
	c = still()
	cut, cancel := context.WithCancel(ctx)
	c.Keep = func() error { sandbox("kill-libvirtd"); cancel(); return cut.Err() }
	_, err = d.TakeStill(cut, plan.VM, c, nil)
	require.Error(t, err)
	sandbox("libvirtd")
	is(api.PhasePaused)
	require.NoError(t, d.EndStill(ctx, plan.VM))
	is(api.PhaseRunning)
	back()
}
