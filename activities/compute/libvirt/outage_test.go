package libvirt

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// mortal returns the URI of a libvirtd that tests may kill and freeze, and what does that: it returns what sandbox.sh printed. What is
// not tested without one is named.
func mortal(t *testing.T, what string) (uri string, sandbox func(verb string) string) {
	t.Helper()
	node, uri := os.Getenv("NEXTSTACK_TEST_SANDBOX_NODE"), os.Getenv("NEXTSTACK_TEST_LIBVIRT")
	if node == "" || uri == "" || os.Getenv("SANDBOX_DIR") == "" {
		t.Skipf("SKIPPED, NOT TESTED: %s. Set NEXTSTACK_TEST_SANDBOX_NODE to a node of deploy/dev/sandbox.sh, "+
			"SANDBOX_DIR to its directory and NEXTSTACK_TEST_LIBVIRT to the URI of its libvirt", what)
	}
	return uri, func(verb string) string {
		t.Helper()
		var said strings.Builder
		cmd := exec.Command("../../../deploy/dev/sandbox.sh", verb, node)
		cmd.Stderr = &said
		out, err := cmd.Output()
		require.NoError(t, err, "sandbox.sh %s %s: %s%s", verb, node, out, said.String())
		return strings.TrimSpace(string(out))
	}
}

// TestOutage takes libvirtd away under a running guest: killed, and frozen.
func TestOutage(t *testing.T) {
	uri, sandbox := mortal(t, "a libvirtd that is killed and frozen")
	dir := t.TempDir()
	d := New(Options{URI: uri, ConsoleDir: dir})
	t.Cleanup(d.Close)
	disk := filepath.Join(dir, "disk")
	out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", disk, "64M").CombinedOutput()
	require.NoError(t, err, "%s", out)
	plan := steps.VMPlan{VM: api.NewID(), Name: "outage", VCPUs: 1, Memory: 64 * api.MiB, Disk: steps.DiskPlan{Volume: api.NewID()}}
	ctx := t.Context()
	t.Cleanup(func() {
		sandbox("libvirtd")
		require.NoError(t, d.Remove(context.Background(), plan.VM))
	})
	require.NoError(t, d.Create(ctx, plan, compute.DomainFiles{Disk: compute.QCOW2(disk)}))
	events := d.Events(ctx)

	sandbox("kill-libvirtd")
	_, err = d.State(ctx, plan.VM)
	require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
	require.Eventually(t, func() bool {
		select {
		case e := <-events:
			return e.VM == "" // look at all
		default:
			return false
		}
	}, 10*time.Second, 10*time.Millisecond)
	_, err = d.List(ctx)
	require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)

	// A stop that was under way goes on when libvirtd is back.
	stopped, underWay, once := make(chan error, 1), make(chan struct{}), sync.Once{}
	sandbox("libvirtd")
	p, err := d.State(ctx, plan.VM)
	require.NoError(t, err, "the driver connects again by itself")
	require.Equal(t, api.PhaseRunning, p, "the guest did not notice")
	go func() {
		_, err := d.Stop(ctx, plan.VM, false, 10*time.Second, func(string) { once.Do(func() { close(underWay) }) })
		stopped <- err
	}()
	<-underWay
	sandbox("kill-libvirtd")
	sandbox("libvirtd")
	require.NoError(t, <-stopped)
	p, err = d.State(ctx, plan.VM)
	require.NoError(t, err)
	require.Equal(t, api.PhaseStopped, p)
	require.NoError(t, d.Create(ctx, plan, compute.DomainFiles{Disk: compute.QCOW2(disk)}))

	pid, err := strconv.Atoi(sandbox("libvirtd-pid"))
	require.NoError(t, err)
	require.NoError(t, unix.Kill(pid, unix.SIGSTOP))
	thaw := func() { _ = unix.Kill(pid, unix.SIGCONT) }
	t.Cleanup(thaw)
	for range 3 {
		short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		began := time.Now()
		_, err = d.List(short)
		cancel()
		require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
		require.Less(t, time.Since(began), 2*time.Second, "no call may hang")
		short, cancel = context.WithTimeout(ctx, 500*time.Millisecond)
		_, err = d.State(short, plan.VM)
		cancel()
		require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
	}
	thaw()
	require.Eventually(t, func() bool {
		p, err := d.State(ctx, plan.VM)
		return err == nil && p == api.PhaseRunning
	}, 30*time.Second, 100*time.Millisecond)
	require.Eventually(t, func() bool { return d.link.abandoned.Load()+d.linkFor(plan.VM).abandoned.Load() == 0 }, 10*time.Second, 100*time.Millisecond)
}

func TestTrimConsoles(t *testing.T) {
	dir := t.TempDir()
	d := New(Options{URI: "none:///", ConsoleDir: dir})
	vm := api.NewID()
	path := filepath.Join(dir, vm+".log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.Write(append(make([]byte, maxConsole), []byte("the end")...))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "other.log"), make([]byte, 2*maxConsole), 0o600))
	require.NoError(t, d.TrimConsoles())
	_, err = f.WriteString("new") // as QEMU goes on
	require.NoError(t, err)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "new", string(b))
	old, err := os.ReadFile(path + ".old")
	require.NoError(t, err)
	require.Len(t, old, int(maxConsole)/2)
	require.True(t, strings.HasSuffix(string(old), "the end"))
	info, err := os.Stat(filepath.Join(dir, "other.log"))
	require.NoError(t, err)
	require.EqualValues(t, 2*maxConsole, info.Size(), "not ours")
	d.removeConsole(vm)
	require.NoFileExists(t, path)
	require.NoFileExists(t, path+".old")
}
