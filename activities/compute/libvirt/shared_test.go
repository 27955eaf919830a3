package libvirt

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// TestDisksOfSeveralVMs: a raw volume may be written by several, a qcow2 one read by several, and anything else is refused by
// QEMU's locks.
func TestDisksOfSeveralVMs(t *testing.T) {
	uri := os.Getenv("NEXTSTACK_TEST_LIBVIRT")
	if uri == "" {
		t.Skip("SKIPPED, NOT TESTED: disks that several VMs have. Set NEXTSTACK_TEST_LIBVIRT to the URI of a libvirt with QEMU")
	}
	dir := t.TempDir()
	empty := func(name, format string) compute.DiskSource {
		path := filepath.Join(dir, name)
		out, err := exec.Command("qemu-img", "create", "-q", "-f", format, path, "16M").CombinedOutput()
		require.NoError(t, err, "%s", out)
		return compute.DiskSource{Format: format, File: path}
	}
	d := New(Options{URI: uri, ConsoleDir: dir})
	t.Cleanup(d.Close)
	var vms []string
	for range 2 {
		plan := steps.VMPlan{VM: api.NewID(), Name: "share", VCPUs: 1, Memory: 64 * api.MiB, Disk: steps.DiskPlan{Volume: api.NewID()}}
		t.Cleanup(func() { require.NoError(t, d.Remove(context.Background(), plan.VM)) })
		require.NoError(t, d.Create(t.Context(), plan, compute.DomainFiles{Disk: empty(plan.VM, api.FormatQCOW2)}))
		vms = append(vms, plan.VM)
	}
	raw, read, own := empty("raw", api.FormatRaw), empty("read", api.FormatQCOW2), empty("own", api.FormatQCOW2)
	both := steps.DataDisk{Volume: api.NewID(), Device: "vdc", Shareable: true}
	reading := steps.DataDisk{Volume: api.NewID(), Device: "vdd", ReadOnly: true}
	one := steps.DataDisk{Volume: api.NewID(), Device: "vde"}
	for _, vm := range vms {
		require.NoError(t, d.AttachDisk(t.Context(), vm, both, raw))
		require.NoError(t, d.AttachDisk(t.Context(), vm, reading, read))
	}
	require.NoError(t, d.AttachDisk(t.Context(), vms[0], one, own))
	err := d.AttachDisk(t.Context(), vms[1], one, own)
	require.Equal(t, problem.InUse, problem.KindOf(err), "%v", err)
	one.Shareable = true
	require.Equal(t, problem.Unsupported, problem.KindOf(d.AttachDisk(t.Context(), vms[1], one, own)))
}
