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

// TestOutageOfCheckpoints kills libvirtd in the middle of taking a checkpoint, putting a guest aside and having it go on. Whoever comes
// next has it done, and the guest is never lost.
func TestOutageOfCheckpoints(t *testing.T) {
	uri, sandbox := mortal(t, "checkpoints of a libvirtd that is killed")
	dir := t.TempDir()
	layer := func(below string) compute.DiskSource {
		s := compute.QCOW2(filepath.Join(dir, api.NewID()+".qcow2"))
		args := []string{"create", "-q", "-f", "qcow2"}
		if below != "" {
			args = append(args, "-F", "qcow2", "-b", below)
		}
		args = append(args, s.File)
		if below == "" {
			args = append(args, "64M")
		}
		out, err := exec.Command("qemu-img", args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return s
	}
	d, ctx := New(Options{URI: uri, ConsoleDir: dir}), t.Context()
	t.Cleanup(d.Close)
	plan := steps.VMPlan{VM: api.NewID(), Name: "outage", VCPUs: 1, Memory: 256 * api.MiB, Disk: steps.DiskPlan{Volume: api.NewID()}}
	t.Cleanup(func() {
		sandbox("libvirtd")
		require.NoError(t, d.Remove(context.Background(), plan.VM))
	})
	top := layer("")
	require.NoError(t, d.Create(ctx, plan, compute.DomainFiles{Disk: top}))
	is := func(want api.Phase) {
		t.Helper()
		p, err := d.State(ctx, plan.VM)
		require.NoError(t, err)
		require.Equal(t, want, p)
	}
	whole := func(memory string) bool {
		t.Helper()
		yes, err := d.MemoryWhole(ctx, memory)
		require.NoError(t, err)
		return yes
	}
	// killed does something while libvirtd is killed, a moment after it has begun to write or read the memory, and then once more.
	killed := func(after time.Duration, begun func() bool, do func() error) error {
		t.Helper()
		over := make(chan error, 1)
		go func() { over <- do() }()
		require.Eventually(t, func() bool { return begun() || len(over) > 0 }, 20*time.Second, time.Millisecond)
		pause := time.NewTimer(after)
		<-pause.C
		sandbox("kill-libvirtd")
		sandbox("libvirtd")
		first := <-over // lost, or it was faster
		err := do()
		if err != nil {
			t.Logf("after: %v", first)
		}
		return err
	}
	for round := range 4 {
		delay := time.Duration(round%4) * 40 * time.Millisecond
		exists := func(path string) func() bool {
			return func() bool { _, err := os.Stat(path); return err == nil }
		}
		to, below := layer(top.File), top
		c := compute.Checkpoint{Memory: filepath.Join(dir, api.NewID()), Disks: []compute.SwitchedDisk{{Volume: plan.Disk.Volume, To: to}}, Fresh: func() error {
			out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below.File, to.File).CombinedOutput()
			require.NoError(t, err, "%s", out)
			return err
		}}
		err := killed(delay, exists(c.Memory), func() error { _, err := d.TakeCheckpoint(ctx, plan.VM, c, nil); return err })
		require.NoError(t, err, "even if it died in the very moment of the switch: see TestKilledInCheckpoint")
		top = c.Disks[0].To
		require.True(t, whole(c.Memory))
		is(api.PhaseRunning)

		aside := filepath.Join(dir, api.NewID())
		require.NoError(t, killed(delay, exists(aside), func() error { return d.SaveGuest(ctx, plan.VM, aside, nil) }))
		require.True(t, whole(aside))
		is(api.PhaseStopped)

		used := 0
		r := compute.Restore{Plan: plan, Files: compute.DomainFiles{Disk: top}, Memory: aside, Used: func() error { used++; return nil }}
		require.NoError(t, killed(delay, func() bool { p, err := d.State(ctx, plan.VM); return err == nil && p != api.PhaseStopped }, func() error { return d.RestoreGuest(ctx, r, nil) }))
		require.Positive(t, used)
		is(api.PhaseRunning)
		require.NoError(t, d.EndCheckpoint(ctx, plan.VM, c.Disks))
		is(api.PhaseRunning)
	}
}
