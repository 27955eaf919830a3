package libvirt

import (
	"context"
	"fmt"
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

// TestSlotsOfPCIExpress: a machine with PCI Express has ports to spare for disks, and says so when there are no more.
func TestSlotsOfPCIExpress(t *testing.T) {
	uri := os.Getenv("NEXTSTACK_TEST_LIBVIRT")
	if uri == "" {
		t.Skip("SKIPPED, NOT TESTED: disks that are plugged into PCI Express. Set NEXTSTACK_TEST_LIBVIRT to the URI of a libvirt with QEMU for x86-64")
	}
	dir := t.TempDir()
	empty := func(name string) compute.DiskSource {
		path := filepath.Join(dir, name)
		out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, "1M").CombinedOutput()
		require.NoError(t, err, "%s", out)
		return compute.QCOW2(path)
	}
	d := New(Options{URI: uri, ConsoleDir: dir})
	t.Cleanup(d.Close)
	facts, err := d.known(t.Context())
	require.NoError(t, err)
	host := facts.host
	if !host.ACPI() || host.Arch != "x86_64" {
		t.Skip("SKIPPED, NOT TESTED: disks that are plugged into PCI Express: this is no x86-64")
	}
	host.Machine = "q35"
	plan := steps.VMPlan{VM: api.NewID(), Name: "slots", VCPUs: 1, Memory: 64 * api.MiB, Disk: steps.DiskPlan{Volume: api.NewID()}}
	plan.Data = []steps.DataDisk{{Volume: api.NewID(), Device: "vdc"}}
	xml, err := domain.XML(plan, compute.DomainFiles{Disk: empty("root"), Data: []compute.DiskSource{empty("data")}}, host)
	require.NoError(t, err)
	c, err := libvirt.NewConnect(uri)
	require.NoError(t, err)
	defer c.Close() //nolint:errcheck // the domain is removed by the driver
	dom, err := c.DomainDefineXML(xml)
	require.NoError(t, err)
	defer dom.Free() //nolint:errcheck // frees memory only
	t.Cleanup(func() { require.NoError(t, d.Remove(context.Background(), plan.VM)) })
	require.NoError(t, dom.Create())
	const spare = 8
	for i := range spare + 1 {
		name := fmt.Sprintf("vd%c", 'd'+i)
		err := d.AttachDisk(t.Context(), plan.VM, steps.DataDisk{Volume: api.NewID(), Device: name}, empty(name))
		if i < spare {
			require.NoError(t, err, "disk %d", i+1)
		} else {
			require.Equal(t, problem.NoCapacity, problem.KindOf(err), "%v", err)
		}
	}
}
