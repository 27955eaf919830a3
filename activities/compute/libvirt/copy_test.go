package libvirt

import (
	"bytes"
	"cmp"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// copyBench is a guest with a data disk that has something in it. Its firmware finds nothing to start.
type copyBench struct {
	t    *testing.T
	uri  string
	dir  string
	plan steps.VMPlan
	disk steps.DataDisk
	from compute.DiskSource
	root compute.DiskSource
	seed compute.DiskSource
}

const copied = 48 * api.MiB // of the disk have data

func newCopyBench(t *testing.T) *copyBench {
	uri := os.Getenv("NEXTSTACK_TEST_LIBVIRT")
	if uri == "" {
		t.Skip("SKIPPED, NOT TESTED: copies of disks of guests that run. Set NEXTSTACK_TEST_LIBVIRT to the URI of a libvirt with QEMU")
	}
	b := &copyBench{t: t, uri: uri, dir: t.TempDir(), disk: steps.DataDisk{Volume: api.NewID(), Device: "vdc"}}
	b.plan = steps.VMPlan{VM: api.NewID(), Name: "copy", VCPUs: 1, Memory: 64 * api.MiB, Disk: steps.DiskPlan{Volume: api.NewID()}, Data: []steps.DataDisk{b.disk}}
	root := b.empty("root")
	b.from = b.empty("from")
	b.do("qemu-io", "-f", "qcow2", "-c", "write -P 97 0 48M", b.from.File)
	t.Cleanup(func() { require.NoError(t, b.driver().Remove(context.Background(), b.plan.VM)) })
	b.seed = compute.Raw(filepath.Join(b.dir, "seed.iso"))
	require.NoError(t, os.WriteFile(b.seed.File, bytes.Repeat([]byte("seed"), 4096), 0o644))
	b.root = root
	require.NoError(t, b.driver().Create(t.Context(), b.plan, compute.DomainFiles{Disk: root, Seed: b.seed, Data: []compute.DiskSource{b.from}}))
	return b
}

func (b *copyBench) do(args ...string) {
	b.t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(b.t, err, "%v: %s", args, out)
}

func (b *copyBench) empty(name string) compute.DiskSource {
	s := compute.QCOW2(filepath.Join(b.dir, name+".qcow2"))
	b.do("qemu-img", "create", "-q", "-f", "qcow2", s.File, "64M")
	return s
}

// driver is that of an agent that has just been started.
func (b *copyBench) driver() *Driver {
	d := New(Options{URI: b.uri, ConsoleDir: b.dir})
	b.t.Cleanup(d.Close)
	return d
}

// has checks where the disk is, now and at the next start, and that the guest runs.
func (b *copyBench) has(want compute.DiskSource) {
	b.t.Helper()
	require.Equal(b.t, api.PhaseRunning, phaseOfNow(b.t, b.uri, b.plan.VM))
	require.NoError(b.t, b.driver().inScopes(b.t.Context(), b.plan.VM, "look at the disk", func(s scope) error {
		disk, err := s.disk(b.disk.Volume)
		if err != nil {
			return err
		}
		if !disk.Writes(want) || disk.Mirror.IsSet() {
			b.t.Errorf("live %v: it is %s and not %s, copied to %s", s.live, disk.Source, want, disk.Mirror)
		}
		return nil
	}))
}

func (b *copyBench) settle(to compute.DiskSource) bool {
	b.t.Helper()
	there, err := b.driver().SettleDisk(b.t.Context(), b.plan.VM, b.disk.Volume, to)
	require.NoError(b.t, err)
	return there
}

// begin has an agent begin a copy, and die.
func (b *copyBench) begin(to compute.DiskSource) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	_, err := b.driver().MoveDisk(ctx, b.plan.VM, b.disk.Volume, to, 0, func(api.Progress) { cancel() })
	require.Equal(b.t, problem.Cancelled, problem.KindOf(err), "%v", err)
}

func (b *copyBench) move(to compute.DiskSource) compute.Moved {
	b.t.Helper()
	moved, err := b.driver().MoveDisk(b.t.Context(), b.plan.VM, b.disk.Volume, to, 0, nil)
	require.NoError(b.t, err)
	return moved
}

// TestCopiesAtARate: a copy takes no less time than its rate allows.
func TestCopiesAtARate(t *testing.T) {
	b := newCopyBench(t)
	to := b.empty("to")
	const rate = 16 * api.MiB
	began := time.Now()
	moved, err := b.driver().MoveDisk(t.Context(), b.plan.VM, b.disk.Volume, to, rate, nil)
	require.NoError(t, err)
	require.True(t, moved.There)
	require.Greater(t, time.Since(began), time.Duration(copied/rate-1)*time.Second, "the first second's worth may go at once")
	b.has(to)
}

// TestCopiesThatAreCutOff: at any moment the agent may die, or the guest end. There is one good copy, and the domain is started
// with it.
func TestCopiesThatAreCutOff(t *testing.T) {
	b := newCopyBench(t)
	to := b.empty("to")
	b.begin(to)
	require.False(t, b.settle(to))
	require.False(t, b.settle(to))
	b.has(b.from)

	// Who comes next joins it. Another place is none of its business.
	b.begin(to)
	_, err := b.driver().MoveDisk(t.Context(), b.plan.VM, b.disk.Volume, b.empty("other"), 0, nil)
	require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
	moved := b.move(to)
	require.True(t, moved.Running && moved.There)
	b.has(to)
	require.True(t, b.settle(to))
	b.has(to)

	// The agent dies right after the guest has got the copy, which it is not started with yet and has not written to.
	back := b.empty("back")
	b.cutOver(back)
	require.Equal(t, api.PhasePaused, phaseOfNow(t, b.uri, b.plan.VM))
	require.True(t, b.settle(back))
	b.has(back)
	again := b.empty("again")
	b.cutOver(again)
	require.True(t, b.move(again).There)
	b.has(again)

	// The guest ends in the middle of it: nothing has happened.
	last := b.empty("last")
	b.begin(last)
	_, err = b.driver().Stop(t.Context(), b.plan.VM, true, 0, nil)
	require.NoError(t, err)
	require.Equal(t, compute.Moved{}, b.move(last))
	require.False(t, b.settle(last))
	_, err = b.driver().Start(t.Context(), b.plan.VM)
	require.NoError(t, err)
	b.has(again)
	require.True(t, b.move(last).There)

	_, err = b.driver().Stop(t.Context(), b.plan.VM, true, 0, nil)
	require.NoError(t, err)
	for _, s := range []compute.DiskSource{b.from, to, back, again, last} {
		b.do("qemu-img", "check", "-q", "-f", "qcow2", s.File)
		b.do("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", b.from.File, s.File)
	}
	info, err := os.Stat(last.File)
	require.NoError(t, err)
	require.Less(t, info.Size(), copied+8*api.MiB, "what is empty takes no space")
}

// cutOver does what MoveDisk does, up to the moment at which the guest has the copy.
func (b *copyBench) cutOver(to compute.DiskSource) {
	b.t.Helper()
	b.begin(to)
	done := make(chan struct{})
	require.Eventually(b.t, func() bool {
		_, err := b.driver().guestDisk(b.t.Context(), b.plan.VM, b.disk.Volume, "cut over", func(s scope, disk *domain.Disk) error {
			if !disk.Ready {
				return nil
			}
			if err := rest(s.dom); err != nil {
				return err
			}
			close(done)
			return s.dom.BlockJobAbort(disk.Device, libvirt.DOMAIN_BLOCK_JOB_ABORT_PIVOT)
		})
		require.NoError(b.t, err)
		select {
		case <-done:
			return true
		default:
			return false
		}
	}, time.Minute, 100*time.Millisecond)
}

// TestACopyThatFails: the other place has no room.
func TestACopyThatFails(t *testing.T) {
	sandbox := os.Getenv("NEXTSTACK_TEST_SANDBOX")
	if sandbox == "" {
		t.Skip("SKIPPED, NOT TESTED: a copy to what is full. Set NEXTSTACK_TEST_SANDBOX to the directory of a sandbox, or run make test")
	}
	t.Setenv("SANDBOX_DIR", sandbox)
	b := newCopyBench(t)
	small := filepath.Join(b.dir, "small")
	require.NoError(t, os.Mkdir(small, 0o755))
	inside := func(args ...string) { // as libvirt sees files
		b.do(append([]string{"../../../deploy/dev/sandbox.sh", "exec", cmp.Or(os.Getenv("NEXTSTACK_TEST_SANDBOX_NODE"), "a")}, args...)...)
	}
	inside("mount", "-t", "tmpfs", "-o", "size=8M,mode=755", "none", small)
	defer inside("umount", "-l", small)
	to := compute.QCOW2(filepath.Join(small, "to.qcow2"))
	inside("qemu-img", "create", "-q", "-f", "qcow2", to.File, "64M")
	_, err := b.driver().MoveDisk(t.Context(), b.plan.VM, b.disk.Volume, to, 0, nil)
	require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
	require.ErrorContains(t, err, "broken off")
	require.False(t, b.settle(to))
	b.has(b.from)
}

// TestDisksGoToCephAndBack copies the disk of a guest that runs into a real cluster, and out of it.
func TestDisksGoToCephAndBack(t *testing.T) {
	ceph := os.Getenv("NEXTSTACK_TEST_CEPH")
	if ceph == "" {
		t.Skip("SKIPPED, NOT TESTED: copies to Ceph while a guest runs. Set NEXTSTACK_TEST_CEPH to the directory of a sandbox's Ceph, or run make test")
	}
	b := newCopyBench(t)
	conf, err := os.ReadFile(filepath.Join(ceph, "ceph.conf"))
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(conf), "v2:")
	host, _, _ := strings.Cut(rest, ":")
	key, err := os.ReadFile(filepath.Join(ceph, "client.libvirt.key"))
	require.NoError(t, err)
	pool, image := api.NewID(), "copy-"+api.NewID()
	require.NoError(t, b.driver().SetSecret(t.Context(), pool, strings.TrimSpace(string(key))))
	defer func() { require.NoError(t, b.driver().DropSecret(context.Background(), pool)) }()
	admin := []string{"rbd", "-c", filepath.Join(ceph, "ceph.conf"), "--no-progress"}
	b.do(append(admin, "create", "vms/"+image, "--size", "64M")...)
	defer b.do(append(admin, "rm", "vms/"+image)...)
	to := compute.DiskSource{Format: api.FormatRaw, RBD: &compute.RBDImage{Monitors: []string{net.JoinHostPort(host, "6789")}, Pool: "vms", Image: image, User: "libvirt", Secret: pool}}

	b.begin(to)
	require.False(t, b.settle(to))
	b.has(b.from)
	moved := b.move(to)
	require.True(t, moved.There)
	t.Logf("to Ceph: the guest did not run for %s", moved.Pause)
	b.has(to)
	require.True(t, b.settle(to))
	back := b.empty("back")
	b.cutOver(back)
	require.True(t, b.settle(back))
	b.has(back)
	_, err = b.driver().Stop(t.Context(), b.plan.VM, true, 0, nil)
	require.NoError(t, err)
	raw := filepath.Join(b.dir, "raw")
	b.do(append(admin, "export", "vms/"+image, raw)...)
	b.do("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", raw, b.from.File)
	b.do("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", back.File, b.from.File)

	gone := to
	gone.RBD = &compute.RBDImage{Monitors: to.RBD.Monitors, Pool: "vms", Image: image + "-gone", User: "libvirt", Secret: pool}
	_, err = b.driver().PlaceDisk(t.Context(), b.plan.VM, b.disk.Volume, gone)
	require.NoError(t, err)
	_, err = b.driver().Start(t.Context(), b.plan.VM)
	require.Equal(t, problem.NotFound, problem.KindOf(err), "%v", err)
}

// TestOutageOfCopies: libvirtd is killed under copies. QEMU goes on with them, and libvirt finds them again.
func TestOutageOfCopies(t *testing.T) {
	_, sandbox := mortal(t, "copies whose libvirtd is killed")
	b := newCopyBench(t)
	t.Cleanup(func() { sandbox("libvirtd") })
	again := func() {
		t.Helper()
		sandbox("kill-libvirtd")
		_, err := b.driver().SettleDisk(t.Context(), b.plan.VM, b.disk.Volume, b.from)
		require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
		sandbox("libvirtd")
	}
	to := b.empty("to")
	b.begin(to)
	again()
	require.False(t, b.settle(to))
	b.has(b.from)
	b.begin(to)
	again()
	require.True(t, b.move(to).There)
	b.has(to)
	back := b.empty("back")
	b.cutOver(back)
	again()
	require.True(t, b.settle(back))
	b.has(back)
	_, err := b.driver().Stop(t.Context(), b.plan.VM, true, 0, nil)
	require.NoError(t, err)
	for _, s := range []compute.DiskSource{to, back} {
		b.do("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", b.from.File, s.File)
	}
}

// TestARootDiskGoesWithItsSeed, which nobody may write to, and back again when the guest is off.
func TestARootDiskGoesWithItsSeed(t *testing.T) {
	b := newCopyBench(t)
	d, ctx, vm := b.driver(), t.Context(), b.plan.VM
	seed := compute.Raw(filepath.Join(b.dir, "other.iso"))
	want, err := os.ReadFile(b.seed.File)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(seed.File, want, 0o644))
	for range 2 {
		moved, err := d.MoveDisk(ctx, vm, compute.SeedDisk, seed, 0, nil)
		require.NoError(t, err)
		require.True(t, moved.Running && moved.There)
	}
	root := b.empty("other")
	moved, err := d.MoveDisk(ctx, vm, b.plan.Disk.Volume, root, 0, nil)
	require.NoError(t, err)
	require.True(t, moved.There)
	xml, err := d.LiveXML(ctx, vm)
	require.NoError(t, err)
	require.NotContains(t, xml, b.seed.File)
	require.NotContains(t, xml, b.root.File)
	disk, err := domain.FindDisk(xml, compute.SeedDisk)
	require.NoError(t, err)
	require.NotNil(t, disk.XML.ReadOnly, "nobody may write to it")
	require.NoError(t, os.Remove(b.seed.File))
	require.NoError(t, os.Remove(b.root.File))

	_, err = d.Reboot(ctx, vm, true, 0, nil)
	require.NoError(t, err)
	_, err = d.Stop(ctx, vm, true, 0, nil)
	require.NoError(t, err)
	_, err = d.Start(ctx, vm)
	require.NoError(t, err, "it is started with both")
	_, err = d.Stop(ctx, vm, true, 0, nil)
	require.NoError(t, err)
	got, err := os.ReadFile(seed.File)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.NoError(t, os.WriteFile(b.seed.File, want, 0o644))
	back, err := d.MoveDisk(ctx, vm, compute.SeedDisk, b.seed, 0, nil)
	require.NoError(t, err)
	require.Equal(t, compute.Moved{}, back)
	running, err := d.PlaceDisk(ctx, vm, compute.SeedDisk, b.seed)
	require.NoError(t, err)
	require.False(t, running)
	_, err = d.Start(ctx, vm)
	require.NoError(t, err)
	there, err := d.SettleDisk(ctx, vm, compute.SeedDisk, b.seed)
	require.NoError(t, err)
	require.True(t, there)
}
