package compute_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/libvirt"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// subject is a driver under test. Its guests never hear a request to power off, unless quick says that they do.
type subject struct {
	compute.Driver
	files func(t *testing.T, vm string) compute.DomainFiles
}

func TestFakeConforms(t *testing.T) {
	conform(t, subject{
		&compute.Fake{Deaf: true, Inv: api.Inventory{Arch: "x86_64", Accel: "tcg", Machine: "pc", Emulator: "/q", Cores: 2, Memory: api.GiB}},
		func(*testing.T, string) compute.DomainFiles { return compute.DomainFiles{Disk: compute.QCOW2("/disk")} },
	})
}

// TestLibvirtConforms runs the suite against a real libvirt with QEMU. The guests have an empty disk, so they hear nothing.
func TestLibvirtConforms(t *testing.T) {
	uri := os.Getenv("NEXTSTACK_TEST_LIBVIRT")
	if uri == "" {
		t.Skip("SKIPPED, NOT TESTED: the real libvirt driver. Set NEXTSTACK_TEST_LIBVIRT to a libvirt URI with QEMU, as deploy/dev/sandbox.sh " +
			"makes one (net-up; node-up a 11; libvirtd a): qemu+unix:///system?socket=$SANDBOX_DIR/a/run/libvirt/libvirt-sock")
	}
	dir := t.TempDir()
	d := libvirt.New(libvirt.Options{URI: uri, ConsoleDir: dir, Accel: os.Getenv("NEXTSTACK_TEST_ACCEL")})
	t.Cleanup(d.Close)
	conform(t, subject{d, func(t *testing.T, vm string) compute.DomainFiles {
		disk := filepath.Join(dir, vm+".qcow2")
		out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", disk, "64M").CombinedOutput()
		require.NoError(t, err, "%s", out)
		return compute.DomainFiles{Disk: compute.QCOW2(disk)}
	}})
}

func conform(t *testing.T, s subject) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	newVM := func(t *testing.T) (steps.VMPlan, compute.DomainFiles) {
		vm := api.NewID()
		t.Cleanup(func() { require.NoError(t, s.Remove(context.Background(), vm)) })
		return steps.VMPlan{VM: vm, Name: "conform", Project: "default", VCPUs: 1, Memory: 64 * api.MiB, Disk: steps.DiskPlan{Volume: api.NewID()}}, s.files(t, vm)
	}
	t.Run("secrets", func(t *testing.T) { conformSecrets(ctx, t, s) })

	find := func(t *testing.T, vm string) *steps.DomainFound {
		list, err := s.List(ctx)
		require.NoError(t, err)
		for _, d := range list {
			if d.ID == vm {
				return &d
			}
		}
		return nil
	}
	phase := func(t *testing.T, vm string) api.Phase {
		p, err := s.State(ctx, vm)
		require.NoError(t, err)
		return p
	}

	t.Run("inventory is complete", func(t *testing.T) {
		inv, err := s.Inventory(ctx)
		require.NoError(t, err)
		require.NotEmpty(t, inv.Arch)
		require.NotEmpty(t, inv.Machine)
		require.NotEmpty(t, inv.Emulator)
		require.Contains(t, []string{"kvm", "tcg"}, inv.Accel)
		require.Positive(t, inv.Cores)
		require.Positive(t, inv.Memory)
	})

	t.Run("create is idempotent and remove is thorough", func(t *testing.T) {
		plan, files := newVM(t)
		require.Nil(t, find(t, plan.VM))
		require.NoError(t, s.Create(ctx, plan, files))
		require.Equal(t, api.PhaseRunning, phase(t, plan.VM))
		require.NoError(t, s.Create(ctx, plan, files))
		got := find(t, plan.VM)
		require.NotNil(t, got)
		require.Equal(t, steps.DomainFound{ID: plan.VM, Name: compute.DomainName(plan.VM), Phase: api.PhaseRunning, Ours: true}, *got)
		require.NoError(t, s.Remove(ctx, plan.VM))
		require.NoError(t, s.Remove(ctx, plan.VM))
		require.Nil(t, find(t, plan.VM))
		_, err := s.State(ctx, plan.VM)
		require.Equal(t, problem.NotFound, problem.KindOf(err))
	})

	t.Run("a domain that is defined but off is completed", func(t *testing.T) {
		plan, files := newVM(t)
		require.NoError(t, s.Create(ctx, plan, files))
		_, err := s.Stop(ctx, plan.VM, true, 0, nil)
		require.NoError(t, err)
		require.Equal(t, api.PhaseStopped, find(t, plan.VM).Phase)
		require.NoError(t, s.Create(ctx, plan, files))
		require.Equal(t, api.PhaseRunning, phase(t, plan.VM))
	})

	t.Run("power tells what was before", func(t *testing.T) {
		plan, files := newVM(t)
		_, err := s.Start(ctx, plan.VM)
		require.Equal(t, problem.NotFound, problem.KindOf(err))
		require.NoError(t, s.Create(ctx, plan, files))
		res, err := s.Stop(ctx, plan.VM, true, time.Minute, nil)
		require.NoError(t, err)
		require.Equal(t, steps.PowerResult{Before: api.PhaseRunning, Forced: true}, res)
		res, err = s.Stop(ctx, plan.VM, true, time.Minute, nil)
		require.NoError(t, err)
		require.Equal(t, steps.PowerResult{Before: api.PhaseStopped}, res)
		_, err = s.Reboot(ctx, plan.VM, true, time.Minute, nil)
		require.Equal(t, problem.Conflict, problem.KindOf(err))
		before, err := s.Start(ctx, plan.VM)
		require.NoError(t, err)
		require.Equal(t, api.PhaseStopped, before)
		before, err = s.Start(ctx, plan.VM)
		require.NoError(t, err)
		require.Equal(t, api.PhaseRunning, before)
		res, err = s.Reboot(ctx, plan.VM, true, time.Minute, nil)
		require.NoError(t, err)
		require.Equal(t, steps.PowerResult{Before: api.PhaseRunning, Forced: true}, res)
		require.Equal(t, api.PhaseRunning, phase(t, plan.VM))
	})

	t.Run("a guest that does not listen is forced, in time", func(t *testing.T) {
		plan, files := newVM(t)
		require.NoError(t, s.Create(ctx, plan, files))
		began := time.Now()
		res, err := s.Reboot(ctx, plan.VM, false, 500*time.Millisecond, nil)
		require.NoError(t, err)
		require.True(t, res.Forced)
		require.Equal(t, api.PhaseRunning, phase(t, plan.VM))
		res, err = s.Stop(ctx, plan.VM, false, 500*time.Millisecond, nil)
		require.NoError(t, err)
		require.Equal(t, steps.PowerResult{Before: api.PhaseRunning, Forced: true}, res)
		require.Greater(t, time.Since(began), time.Second)
		require.Equal(t, api.PhaseStopped, phase(t, plan.VM))
	})

	t.Run("waiting for a guest ends with the context", func(t *testing.T) {
		plan, files := newVM(t)
		require.NoError(t, s.Create(ctx, plan, files))
		short, cancel := context.WithCancel(ctx)
		time.AfterFunc(300*time.Millisecond, cancel)
		_, err := s.Stop(short, plan.VM, false, time.Hour, nil)
		require.Equal(t, problem.Cancelled, problem.KindOf(err))
		require.Equal(t, api.PhaseRunning, phase(t, plan.VM))
	})

	t.Run("events tell of every change", func(t *testing.T) {
		plan, files := newVM(t)
		ectx, cancel := context.WithCancel(ctx)
		events := s.Events(ectx)
		expect := func(what string) {
			t.Helper()
			for {
				select {
				case e := <-events:
					if e.VM == plan.VM {
						return
					}
				case <-time.After(10 * time.Second):
					t.Fatalf("no event after %s", what)
				}
			}
		}
		require.NoError(t, s.Create(ctx, plan, files))
		expect("create")
		_, err := s.Stop(ctx, plan.VM, true, 0, nil)
		require.NoError(t, err)
		expect("stop")
		cancel()
		for range events { //nolint:revive // drained until it is closed
		}
	})

	t.Run("nonsense is refused", func(t *testing.T) {
		plan, files := newVM(t)
		bad := plan
		bad.VM = "../../etc"
		require.Equal(t, problem.Invalid, problem.KindOf(s.Create(ctx, bad, files)))
		require.Error(t, s.Create(ctx, plan, compute.DomainFiles{}))
	})
}

// conformSecrets: nobody gets the key back, so that it is only seen that there is one.
func conformSecrets(ctx context.Context, t *testing.T, s compute.Secrets) {
	pool := api.NewID()
	require.NoError(t, s.DropSecret(ctx, pool))
	for _, key := range []string{"AQAAAAAAAAAAABAAYSBrZXkgb2Ygbm8gdXNlcg==", "AQAAAAAAAAAAABAAYSBrZXkgb2Ygbm8gdXNlcg==", "AQAAAAAAAAAAABAAYW5vdGhlciBvbmUgb2YgMg=="} {
		require.NoError(t, s.SetSecret(ctx, pool, key))
		list, err := s.ListSecrets(ctx)
		require.NoError(t, err)
		require.Contains(t, list, pool)
	}
	for range 2 {
		require.NoError(t, s.DropSecret(ctx, pool))
	}
	list, err := s.ListSecrets(ctx)
	require.NoError(t, err)
	require.NotContains(t, list, pool)
	require.Equal(t, problem.Invalid, problem.KindOf(s.SetSecret(ctx, "x", "AQAAAAAAAAAAABAAYSBrZXkgb2Ygbm8gdXNlcg==")))
}
