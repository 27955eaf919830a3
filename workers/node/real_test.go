package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/activities/compute/libvirt"
	"github.com/nextstack/nextstack/activities/network"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// fileSource is a server that has one image.
type fileSource struct{ path string }

func (f fileSource) Seed(_ context.Context, vm string) (api.Seed, error) {
	return api.Seed{InstanceID: vm, Hostname: "hello-web", UserData: "#!/bin/sh\necho user-data was run >/dev/console\n"}, nil
}

func (f fileSource) OpenImage(context.Context, string) (io.ReadCloser, int64, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	return file, info.Size(), err
}

// TestRealGuest takes a guest through its life on a real libvirt with Open vSwitch and OVN, by the steps of a node.
func TestRealGuest(t *testing.T) {
	env := map[string]string{}
	for _, k := range []string{"NEXTSTACK_TEST_LIBVIRT", "NEXTSTACK_TEST_OVS", "NEXTSTACK_TEST_OVN", "NEXTSTACK_TEST_IMAGE"} {
		if env[k] = os.Getenv(k); env[k] == "" {
			t.Skip("SKIPPED, NOT TESTED: a real guest. " + k + " is not set. Needed are the URI of a libvirt with QEMU, the OVSDB address of its " +
				"Open vSwitch, that of an OVN northbound database, and the image that deploy/dev/guest.sh makes; deploy/dev/sandbox.sh makes the rest " +
				"(net-up; node-up a 11; libvirtd a; ovs a; ovn-central a; ovn-chassis a)")
		}
	}
	ctx, dir, log := t.Context(), t.TempDir(), slog.New(slog.NewTextHandler(os.Stderr, nil))
	image, err := os.ReadFile(env["NEXTSTACK_TEST_IMAGE"])
	require.NoError(t, err)
	sum := sha256.Sum256(image)

	a := &agent{cfg: Config{Name: "real"}, log: log, pools: storage.NewDir(log), sw: ovs(env["NEXTSTACK_TEST_OVS"]), facts: &switchFacts{}}
	require.NoError(t, a.facts.refresh(ctx, a.sw))
	info, _ := a.facts.get()
	require.NotEmpty(t, info.ChassisID)
	driver := libvirt.New(libvirt.Options{URI: env["NEXTSTACK_TEST_LIBVIRT"], ConsoleDir: dir, Accel: os.Getenv("NEXTSTACK_TEST_ACCEL"), UserspaceDP: a.facts.userspace, Log: log})
	t.Cleanup(driver.Close)
	a.driver = driver

	var suite testsuite.WorkflowTestSuite
	worker := suite.NewTestActivityEnvironment()
	worker.SetTestTimeout(3 * time.Minute)
	host := &activities.Host{Log: log}
	compute.Register(worker, host, driver, a.pools)
	storage.RegisterNode(worker, host, a.pools, fileSource{env["NEXTSTACK_TEST_IMAGE"]}, newPeers("", "", "", log))
	activities.Implement(worker, host, steps.LookAtNode, a.look)
	seq := 0

	pool := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: filepath.Join(dir, "pool")}
	plan := steps.VMPlan{
		VM: api.NewID(), Name: "web", Project: "default", VCPUs: 1, Memory: 128 * api.MiB, Hostname: "hello-web",
		Disk: steps.DiskPlan{Volume: api.NewID(), Pool: pool.Pool, PoolPath: pool.Path, Size: 128 * api.MiB, Image: api.NewID(), ImageSHA256: hex.EncodeToString(sum[:]), ImageSize: int64(len(image))},
		NICs: []steps.NICPlan{{Port: api.NewID(), MAC: "52:54:00:12:34:56"}},
	}
	wire(t, env["NEXTSTACK_TEST_OVN"], plan, log)
	t.Cleanup(func() { require.NoError(t, driver.Remove(context.Background(), plan.VM)) })

	timed := func(what string, began time.Time) {
		t.Logf("%-12s %s", what, time.Since(began).Round(time.Millisecond))
	}
	began := time.Now()
	mustRun(t, worker, &seq, steps.PreparePool, pool)
	timed("pool", began)
	began = time.Now()
	mustRun(t, worker, &seq, steps.MakeDisk, plan)
	timed("disk+image", began)
	began = time.Now()
	mustRun(t, worker, &seq, steps.MakeDisk, plan)
	timed("disk again", began)
	began = time.Now()
	mustRun(t, worker, &seq, steps.CreateDomain, plan)
	timed("create", began)
	ready := console(t, driver, dir, plan.VM, "tiny: READY", 1)
	timed("ready", began)
	require.Contains(t, ready, "host=hello-web seed=cidata ip=10.99.0.5/24", "seed and DHCP")
	require.Contains(t, consoleText(dir, plan.VM), "user-data was run")

	began = time.Now()
	res := mustRun(t, worker, &seq, steps.RebootDomain, steps.StopVM{Plan: plan, Timeout: time.Minute})
	timed("reboot", began)
	require.Equal(t, steps.PowerResult{Before: api.PhaseRunning}, res)
	// Asked at once, while the guest boots and hears nothing: it must be asked again.
	began = time.Now()
	res = mustRun(t, worker, &seq, steps.StopDomain, steps.StopVM{Plan: plan, Timeout: time.Minute})
	timed("stop", began)
	require.Equal(t, steps.PowerResult{Before: api.PhaseRunning}, res, "the guest obeyed; nothing was forced")
	res = mustRun(t, worker, &seq, steps.StartDomain, plan)
	require.Equal(t, steps.PowerResult{Before: api.PhaseStopped}, res)

	w := mustRun(t, worker, &seq, steps.LookAtNode, steps.NodeQuestion{Pools: []steps.PoolOnNode{pool}})
	require.Contains(t, w.OVSPorts, steps.PortFound{Name: domain.TapName(plan.NICs[0].Port), Port: plan.NICs[0].Port})
	require.Len(t, w.Files, 3)

	began = time.Now()
	mustRun(t, worker, &seq, steps.RemoveDomain, plan)
	timed("remove", began)
	mustRun(t, worker, &seq, steps.RemoveDisk, plan)
	mustRun(t, worker, &seq, steps.EvictImage, steps.CachedImage{Image: plan.Disk.Image, SHA256: plan.Disk.ImageSHA256, Pool: pool.Pool, PoolPath: pool.Path})
	w = mustRun(t, worker, &seq, steps.LookAtNode, steps.NodeQuestion{Pools: []steps.PoolOnNode{pool}})
	require.Empty(t, w.Files)
	for _, p := range w.OVSPorts {
		require.NotEqual(t, plan.NICs[0].Port, p.Port)
	}
	for _, d := range w.Domains {
		require.NotEqual(t, plan.VM, d.ID)
	}
	mustRun(t, worker, &seq, steps.ReleasePool, pool)
	require.NoFileExists(t, domain.ConsoleLog(dir, plan.VM))
}

func mustRun[In, Out any](t *testing.T, env *testsuite.TestActivityEnvironment, seq *int, s steps.Step[In, Out], in In) (out Out) {
	t.Helper()
	*seq++
	v, err := env.ExecuteActivity(s.Name, steps.Envelope[In]{Token: steps.Token{Operation: "op", Step: s.Name, Epoch: 1, Seq: *seq}, In: in})
	require.NoError(t, steps.FromActivity(s.Name, "real", err))
	require.NoError(t, v.Get(&out))
	return out
}

// wire makes the network of the guest, with DHCP.
func wire(t *testing.T, northbound string, plan steps.VMPlan, log *slog.Logger) {
	ctx := context.Background()
	ovn := network.NewOVN(northbound, log)
	vpc, subnet, port := api.NewID(), api.NewID(), plan.NICs[0].Port
	t.Cleanup(func() {
		require.NoError(t, ovn.UnwirePorts(ctx, []string{port}))
		require.NoError(t, ovn.UnwireSubnet(ctx, subnet))
		require.NoError(t, ovn.UnwireVPC(ctx, vpc))
	})
	require.NoError(t, ovn.WireVPC(ctx, steps.VPCWiring{VPC: vpc, Name: "v", Project: "default", CIDR: "10.99.0.0/16"}))
	require.NoError(t, ovn.WireSubnet(ctx, steps.SubnetWiring{Subnet: subnet, Name: "s", Project: "default", VPC: vpc, CIDR: "10.99.0.0/24", Gateway: "10.99.0.1"}))
	require.NoError(t, ovn.WirePorts(ctx, []steps.PortWiring{{Port: port, Project: "default", Subnet: subnet, MAC: plan.NICs[0].MAC, Address: "10.99.0.5", Hostname: plan.Hostname, VM: plan.VM}}))
}

func consoleText(dir, vm string) string {
	b, _ := os.ReadFile(domain.ConsoleLog(dir, vm))
	return string(b)
}

// console waits until the console has shown text n times, and returns the line of the last one.
func console(t *testing.T, d compute.Driver, dir, vm, text string, n int) string {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for time.Now().Before(deadline) {
		if s := consoleText(dir, vm); strings.Count(s, text) >= n {
			line := s[strings.LastIndex(s, text):]
			line, _, _ = strings.Cut(line, "\n")
			return line
		}
		if p, err := d.State(t.Context(), vm); err != nil || p != api.PhaseRunning {
			t.Fatalf("the guest is %q (%v) before it says %q:\n%s", p, err, text, consoleText(dir, vm))
		}
		pause(t.Context(), 50*time.Millisecond)
	}
	t.Fatalf("the guest does not say %q:\n%s", text, bytes.TrimSpace([]byte(consoleText(dir, vm))))
	return ""
}
