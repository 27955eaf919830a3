package computetest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/activities/compute/libvirt"
	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Nodes are two nodes of a sandbox of deploy/dev/sandbox.sh, each with a libvirtd.
type Nodes struct {
	Names [2]string
	Dir   string // with the files of the guests; both nodes see it
	// Pool is where guests of a Bench have their disks, as in a pool of files that is prepared; no path: in Dir.
	Pool steps.PoolOnNode
	// Elsewhere brings root disk and seed of a guest of a Bench from where they were made to where they belong; nil: they stay.
	Elsewhere func(t *testing.T, plan steps.VMPlan, made compute.DomainFiles) compute.DomainFiles
	dir       string // of the sandbox
	image     string
}

// Sandbox returns two nodes of the sandbox that the environment names, or skips the test.
func Sandbox(t *testing.T, a, b string) *Nodes {
	t.Helper()
	n := &Nodes{Names: [2]string{a, b}, dir: os.Getenv("NEXTSTACK_TEST_SANDBOX"), image: os.Getenv("NEXTSTACK_TEST_IMAGE")}
	if n.dir == "" || n.image == "" {
		t.Skip("SKIPPED, NOT TESTED: guests that move between two real libvirtds. Set NEXTSTACK_TEST_SANDBOX to the directory of a sandbox of " +
			"deploy/dev/sandbox.sh (net-up; for a and b: node-up, ovs, libvirtd), and NEXTSTACK_TEST_IMAGE to the image that " +
			"deploy/dev/guest.sh makes")
	}
	n.Dir = t.TempDir()
	return n
}

// Do runs a verb of sandbox.sh.
func (n *Nodes) Do(t *testing.T, verb, node string) string {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.Command(filepath.Join(filepath.Dir(here), "../../../deploy/dev/sandbox.sh"), verb, node)
	cmd.Env = append(os.Environ(), "SANDBOX_DIR="+n.dir)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "sandbox.sh %s %s: %s", verb, node, out)
	return strings.TrimSpace(string(out))
}

// Options are those of a driver of one of the nodes.
func (n *Nodes) Options(t *testing.T, i int) libvirt.Options {
	t.Helper()
	env, err := os.ReadFile(filepath.Join(n.dir, "sandbox.env"))
	require.NoError(t, err)
	num, err := os.ReadFile(filepath.Join(n.dir, n.Names[i], "num"))
	require.NoError(t, err)
	address := strings.Fields(string(env))[2] + "." + // of the data network, where libvirtd listens for other nodes
		strings.TrimSpace(string(num))
	consoles := filepath.Join(n.Dir, "consoles-"+n.Names[i])
	require.NoError(t, os.MkdirAll(consoles, 0o755))
	return libvirt.Options{
		URI:        "qemu+unix:///system?socket=" + filepath.Join(n.dir, n.Names[i], "run/libvirt/libvirt-sock"),
		ConsoleDir: consoles, Accel: os.Getenv("NEXTSTACK_TEST_ACCEL"), LiveTCG: true,
		Peer: api.Peer{Libvirt: "qemu+tcp://" + address + "/system", Address: address},
	}
}

// Rig returns the two nodes with drivers that are closed with the test. Guests run while they move, as with KVM.
func (n *Nodes) Rig(t *testing.T) Rig { return n.rig(t, true) }

// PausedRig is the same with guests that stand still while they move, as the emulated ones of users do.
func (n *Nodes) PausedRig(t *testing.T) Rig { return n.rig(t, false) }

func (n *Nodes) rig(t *testing.T, live bool) Rig {
	t.Helper()
	var d [2]*libvirt.Driver
	for i := range d {
		o := n.Options(t, i)
		o.LiveTCG = live
		d[i] = libvirt.New(o)
		t.Cleanup(d[i].Close)
	}
	return Rig{
		A: d[0], B: d[1], Running: Processes,
		Boot:   func(t *testing.T, shared, restless bool) Guest { return n.boot(t, d, shared, restless) },
		Linger: func(t *testing.T, m steps.MoveDomain) { n.linger(t, m) },
		Slow:   func(m *steps.MoveDomain) func() { m.Bandwidth = api.MiB; return func() {} },
		Disk:   func(t *testing.T) compute.DiskSource { return n.empty(t, 16*api.MiB) },
	}
}

// linger moves a guest as the driver does, but does not have libvirt forget it afterwards.
func (n *Nodes) linger(t *testing.T, m steps.MoveDomain) {
	t.Helper()
	xml := filepath.Join(t.TempDir(), "target.xml")
	require.NoError(t, os.WriteFile(xml, []byte(m.Incoming.XML), 0o600))
	run(t, "virsh", "-c", n.Options(t, 0).URI, "migrate", "--live", "--p2p", "--persistent", "--unsafe", "--xml", xml, "--persistent-xml", xml,
		m.Plan.VM, m.Incoming.URI, "tcp://"+m.Incoming.Address)
}

// restlessData makes a guest write to its memory, and as little as possible to anything else.
const restlessData = `#!/bin/sh
dd if=/dev/urandom of=/run/a bs=1M count=24 2>/dev/null
(while :; do cat /run/a >/run/b; done) &
`

// boot starts a guest on the first node and waits until it is up.
func (n *Nodes) boot(t *testing.T, d [2]*libvirt.Driver, shared, restless bool) Guest {
	t.Helper()
	vm, volume := api.NewID(), api.NewID()
	g := Guest{Restless: restless, Plan: steps.VMPlan{
		VM: vm, Name: "mover", Project: "default", VCPUs: 1, Memory: 160 * api.MiB, Disk: steps.DiskPlan{Volume: volume, Shared: shared, Image: api.NewID()},
	}}
	t.Cleanup(func() {
		for _, driver := range d {
			require.NoError(t, driver.Remove(context.Background(), vm))
		}
		require.Zero(t, Processes(t, vm))
	})
	data := "#!/bin/sh\n"
	if restless {
		data = restlessData
	}
	g.At = compute.DomainFiles{Disk: compute.QCOW2(n.disk(t, volume+"-a")), Seed: compute.Raw(n.seed(t, vm, data))}
	g.To = g.At
	if !shared {
		g.To.Disk = compute.QCOW2(n.disk(t, volume+"-b"))
	}
	require.NoError(t, d[0].Create(t.Context(), g.Plan, g.At))
	console := domain.ConsoleLog(filepath.Join(n.Dir, "consoles-"+n.Names[0]), vm)
	require.Eventually(t, func() bool {
		b, err := os.ReadFile(console)
		return err == nil && bytes.Contains(b, []byte("tiny: READY"))
	}, 90*time.Second, 100*time.Millisecond, "the guest does not come up: see %s", console)
	return g
}

func (n *Nodes) disk(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(n.in("volumes"), name+".qcow2")
	require.NoError(t, qcow2.Create(path, 128*api.MiB, n.image))
	return path
}

// in returns a directory of the pool; without a pool they all are one.
func (n *Nodes) in(dir string) string {
	if n.Pool.Path == "" || n.Elsewhere != nil {
		return n.Dir
	}
	return filepath.Join(n.Pool.Path, dir)
}

// empty makes an empty disk.
func (n *Nodes) empty(t *testing.T, size int64) compute.DiskSource {
	t.Helper()
	path := filepath.Join(n.Dir, api.NewID()+".qcow2")
	require.NoError(t, qcow2.Create(path, size, ""))
	return compute.QCOW2(path)
}

func (n *Nodes) seed(t *testing.T, vm, userData string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(n.in("seeds"), vm+".iso")
	for name, text := range map[string]string{"user-data": userData, "meta-data": "instance-id: " + vm + "\nlocal-hostname: mover\n"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	run(t, "mkfs.vfat", "-n", "CIDATA", "-C", path, "1024")
	run(t, "mcopy", "-i", path, filepath.Join(dir, "user-data"), filepath.Join(dir, "meta-data"), "::/")
	return path
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s: %s", name, out)
}

// Processes counts the QEMU processes of the VM on this machine, which is all nodes of its sandboxes. A zombie, which has no
// command line any more, is none.
func Processes(t *testing.T, vm string) (n int) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, path := range lines {
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, []byte("guest="+compute.DomainName(vm)+",")) {
			n++
		}
	}
	return n
}
