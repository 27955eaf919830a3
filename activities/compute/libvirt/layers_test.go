package libvirt

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// TestMergesThatAreCutOff: an agent that dies in the middle of a merge leaves the work to libvirt, and the guest at rest at most
// until the next one comes.
func TestMergesThatAreCutOff(t *testing.T) {
	uri := os.Getenv("NEXTSTACK_TEST_LIBVIRT")
	if uri == "" {
		t.Skip("SKIPPED, NOT TESTED: merges that are cut off. Set NEXTSTACK_TEST_LIBVIRT to the URI of a libvirt with QEMU")
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
	do("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below.File, top.File)
	do("qemu-io", "-f", "qcow2", "-c", "write -P 97 0 48M", top.File)

	driver := func() *Driver {
		d := New(Options{URI: uri, ConsoleDir: dir})
		t.Cleanup(d.Close)
		return d
	}
	d, ctx := driver(), t.Context()
	disk := steps.DataDisk{Volume: api.NewID(), Device: "vdc"}
	plan := steps.VMPlan{VM: api.NewID(), Name: "merge", VCPUs: 1, Memory: 64 * api.MiB, Disk: steps.DiskPlan{Volume: api.NewID()}, Data: []steps.DataDisk{disk}}
	t.Cleanup(func() { require.NoError(t, driver().Remove(context.Background(), plan.VM)) })
	require.NoError(t, d.Create(ctx, plan, compute.DomainFiles{Disk: file("root"), Data: []compute.DiskSource{top}}))
	phase := func() api.Phase {
		p, err := d.State(ctx, plan.VM)
		require.NoError(t, err)
		return p
	}

	// The process ends as soon as it knows that the merge is under way.
	short, cancel := context.WithCancel(ctx)
	running, err := d.MergeDisk(short, plan.VM, disk.Volume, compute.Merge{Top: top, Below: below}, func(api.Progress) { cancel() })
	require.Equal(t, problem.Cancelled, problem.KindOf(err), "%v", err)
	require.True(t, running)
	require.Equal(t, api.PhaseRunning, phase())

	// The next one joins it, and ends when the lower layer is written to and the upper one is not yet known to be old.
	d = driver()
	m := compute.Merge{Top: top, Below: below, Retired: func() error {
		require.Equal(t, api.PhasePaused, phaseOfNow(t, uri, plan.VM), "nothing may be written now")
		return errors.New("the end")
	}}
	_, err = d.MergeDisk(ctx, plan.VM, disk.Volume, m, nil)
	require.ErrorContains(t, err, "the end")
	require.Equal(t, api.PhasePaused, phase())

	// The third finds it so.
	d = driver()
	retired := false
	m.Retired = func() error { retired = true; return nil }
	running, err = d.MergeDisk(ctx, plan.VM, disk.Volume, m, nil)
	require.NoError(t, err)
	require.True(t, running)
	require.True(t, retired)
	require.Equal(t, api.PhaseRunning, phase())
	xml, err := d.LiveXML(ctx, plan.VM)
	require.NoError(t, err)
	now, err := domain.FindDisk(xml, disk.Volume)
	require.NoError(t, err)
	require.Equal(t, []string{below.File}, now.Chain)
	require.NotContains(t, xml, "rest/1", "the mark is gone")

	// One that was paused by somebody else stays so, and a merge of its disk changes nothing of that.
	do("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below.File, file("next").File, "64M")
	_, err = d.SwitchDisk(ctx, plan.VM, disk.Volume, compute.LayerSwitch{To: file("next")})
	require.NoError(t, err)
	require.NoError(t, d.with(ctx, plan.VM, "pause", (*libvirt.Domain).Suspend))
	_, err = d.MergeDisk(ctx, plan.VM, disk.Volume, compute.Merge{Top: file("next"), Below: below}, nil)
	require.NoError(t, err)
	require.Equal(t, api.PhasePaused, phase())

	_, err = d.Stop(ctx, plan.VM, true, 0, nil)
	require.NoError(t, err)
	do("qemu-io", "-f", "qcow2", "-r", "-c", "read -P 97 0 48M", below.File)
	do("qemu-img", "check", "-q", "-f", "qcow2", below.File)
	_, err = d.Start(ctx, plan.VM)
	require.NoError(t, err)
	xml, err = d.LiveXML(ctx, plan.VM)
	require.NoError(t, err)
	now, err = domain.FindDisk(xml, disk.Volume)
	require.NoError(t, err)
	require.Equal(t, []string{below.File}, now.Chain, "it is started with what is left")
}

// phaseOfNow asks past everybody who works on the VM.
func phaseOfNow(t *testing.T, uri, vm string) api.Phase {
	t.Helper()
	c, err := libvirt.NewConnect(uri)
	require.NoError(t, err)
	defer c.Close() //nolint:errcheck // was only read
	dom, err := c.LookupDomainByUUIDString(vm)
	require.NoError(t, err)
	defer dom.Free() //nolint:errcheck // frees memory only
	s, _, err := dom.GetState()
	require.NoError(t, err)
	return phaseOf(s)
}

// TestRestIsEndedByWhoeverComesNext: an agent that died while a guest was at rest does not leave it so.
func TestRestIsEndedByWhoeverComesNext(t *testing.T) {
	uri := os.Getenv("NEXTSTACK_TEST_LIBVIRT")
	if uri == "" {
		t.Skip("SKIPPED, NOT TESTED: guests at rest whose agent has died. Set NEXTSTACK_TEST_LIBVIRT to the URI of a libvirt with QEMU")
	}
	dir := t.TempDir()
	out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(dir, "root.qcow2"), "64M").CombinedOutput()
	require.NoError(t, err, "%s", out)
	d := New(Options{URI: uri, ConsoleDir: dir})
	t.Cleanup(d.Close)
	plan := steps.VMPlan{VM: api.NewID(), Name: "rest", VCPUs: 1, Memory: 64 * api.MiB, Disk: steps.DiskPlan{Volume: api.NewID()}}
	t.Cleanup(func() { require.NoError(t, d.Remove(context.Background(), plan.VM)) })
	require.NoError(t, d.Create(t.Context(), plan, compute.DomainFiles{Disk: compute.QCOW2(filepath.Join(dir, "root.qcow2"))}))
	for range 2 {
		require.NoError(t, d.with(t.Context(), plan.VM, "rest", rest))
	}
	phase, err := d.State(t.Context(), plan.VM)
	require.NoError(t, err)
	require.Equal(t, api.PhasePaused, phase)
	rested, pause, err := d.Resting(t.Context(), plan.VM, func() error { return nil })
	require.NoError(t, err)
	require.False(t, rested, "it has no agent")
	require.Positive(t, pause)
	require.Less(t, pause, 30*time.Second)
	phase, err = d.State(t.Context(), plan.VM)
	require.NoError(t, err)
	require.Equal(t, api.PhaseRunning, phase)
}
