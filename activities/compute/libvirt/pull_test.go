package libvirt

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// TestPullsThatAreStopped: one that is under way is joined, and ended in the middle; the disk shows the same, and the next one makes it whole.
func TestPullsThatAreStopped(t *testing.T) {
	uri := os.Getenv("NEXTSTACK_TEST_LIBVIRT")
	if uri == "" {
		t.Skip("SKIPPED, NOT TESTED: pulls that are stopped. Set NEXTSTACK_TEST_LIBVIRT to the URI of a libvirt with QEMU")
	}
	dir := t.TempDir()
	file := func(name string) compute.DiskSource { return compute.QCOW2(filepath.Join(dir, name+".qcow2")) }
	do := func(args ...string) {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
	}
	below, top := file("below"), file("top")
	do("qemu-img", "create", "-q", "-f", "qcow2", file("root").File, "64M")
	do("qemu-img", "create", "-q", "-f", "qcow2", below.File, "64M")
	do("qemu-io", "-f", "qcow2", "-c", "write -P 97 0 48M", below.File)
	do("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below.File, top.File)

	d, ctx := New(Options{URI: uri, ConsoleDir: dir}), t.Context()
	t.Cleanup(d.Close)
	disk := steps.DataDisk{Volume: api.NewID(), Device: "vdc"}
	plan := steps.VMPlan{VM: api.NewID(), Name: "pull", VCPUs: 1, Memory: 64 * api.MiB, Disk: steps.DiskPlan{Volume: api.NewID()}, Data: []steps.DataDisk{disk}}
	t.Cleanup(func() { require.NoError(t, d.Remove(context.Background(), plan.VM)) })
	require.NoError(t, d.Create(ctx, plan, compute.DomainFiles{Disk: file("root"), Data: []compute.DiskSource{top}}))
	chain := func() []string {
		xml, err := d.LiveXML(ctx, plan.VM)
		require.NoError(t, err)
		now, err := domain.FindDisk(xml, disk.Volume)
		require.NoError(t, err)
		return now.Chain
	}

	require.NoError(t, d.with(ctx, plan.VM, "pull slowly", func(dom *libvirt.Domain) error { return dom.BlockPull(disk.Device, 1, 0) })) // MiB/s
	seen := make(chan struct{}, 1000)
	ended := make(chan error, 1)
	go func() {
		_, err := d.PullDisk(ctx, plan.VM, disk.Volume, func(api.Progress) { seen <- struct{}{} })
		ended <- err
	}()
	<-seen
	require.NoError(t, d.StopPull(ctx, plan.VM, disk.Volume))
	err := <-ended
	require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
	require.Equal(t, []string{top.File, below.File}, chain())
	do("qemu-io", "-U", "-f", "qcow2", "-r", "-c", "read -P 97 0 48M", top.File)

	// An agent that dies leaves the work to libvirt, and the next one joins it.
	require.NoError(t, d.with(ctx, plan.VM, "pull slowly", func(dom *libvirt.Domain) error { return dom.BlockPull(disk.Device, 16, 0) }))
	short, cancel := context.WithCancel(ctx)
	_, err = d.PullDisk(short, plan.VM, disk.Volume, func(api.Progress) { cancel() })
	require.Equal(t, problem.Cancelled, problem.KindOf(err), "%v", err)
	running, err := d.PullDisk(ctx, plan.VM, disk.Volume, nil)
	require.NoError(t, err)
	require.True(t, running)
	require.Equal(t, []string{top.File}, chain())
	_, err = d.Stop(ctx, plan.VM, true, 0, nil)
	require.NoError(t, err)
	require.NoError(t, os.Remove(below.File))
	do("qemu-io", "-f", "qcow2", "-r", "-c", "read -P 97 0 48M", top.File)
	do("qemu-img", "check", "-q", "-f", "qcow2", top.File)
}
