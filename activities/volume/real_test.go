package volume_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/computetest"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/volume"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// realBench is a bench of a real pool and a real libvirt, without a volume.
func realBench(t *testing.T) (*bench, *storage.Dir, computetest.Bench) {
	nodes := computetest.Sandbox(t, "a", "b")
	guests, pool := nodes.Bench(t), storage.NewDir(nil)
	var suite testsuite.WorkflowTestSuite
	b := &bench{t: t, env: suite.NewTestActivityEnvironment()}
	b.env.SetTestTimeout(computetest.Patience)
	host := &activities.Host{Log: slog.New(slog.DiscardHandler)}
	storage.RegisterNode(b.env, host, pool, none{}, nil)
	compute.Register(b.env, host, guests, pool)
	volume.Register(b.env, host, guests, pool)
	b.v = steps.VolumePlan{Volume: api.NewID(), Name: "data", Size: 64 * api.MiB, Pool: steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: filepath.Join(nodes.Dir, api.NewID())}}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(b.v.Pool.Path)) })
	_, err := pool.Prepare(t.Context(), b.v.Pool)
	require.NoError(t, err)
	return b, pool, guests
}

// TestRealFlatten: a volume gets all of its image while a guest writes to it, and then stands alone.
func TestRealFlatten(t *testing.T) {
	b, pool, guests := realBench(t)
	image := bytes.Repeat([]byte("image "), 8<<20/6)
	sum := sha256.Sum256(image)
	sha := hex.EncodeToString(sum[:]) // of what is in it: nobody looks at that of the file any more
	raw, backing := filepath.Join(t.TempDir(), "image"), filepath.Join(b.v.Pool.Path, "backing", sha)
	require.NoError(t, os.WriteFile(raw, image, 0o600))
	qemuImg := func(args ...string) string {
		out, err := exec.Command("qemu-img", args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	qemuImg("convert", "-f", "raw", "-O", "qcow2", raw, backing)
	qemuImg("resize", "-q", "-f", "qcow2", backing, "64M")
	b.v.Image = &steps.CachedImage{Image: api.NewID(), SHA256: sha, Pool: b.v.Pool.Pool, PoolPath: b.v.Pool.Path}
	require.NoError(t, run(b, steps.MakeVolume, b.v))
	g := guests.Boot(t, true)
	b.vm = &g.Plan
	change := steps.DiskChange{Plan: g.Plan, Disk: b.disk()}
	change.Disk.QoS.Bandwidth = 512 << 10 // so that what is copied takes its time
	require.NoError(t, run(b, steps.AttachDisk, change))
	g.Sees(t, b.v.Volume, b.v.Size)
	g.Steady(t, "vdc")

	f := steps.Flatten{Volume: b.v, VM: b.vm}
	got, err := ask(b, steps.StopFlatten, f)
	require.NoError(t, err)
	require.False(t, got.Alone)
	for range 2 {
		_, err = ask(b, steps.FlattenVolume, f)
		require.NoError(t, err)
	}
	got, err = ask(b, steps.StopFlatten, f)
	require.NoError(t, err)
	require.True(t, got.Alone)
	g.Steady(t, "vdc")
	require.NoError(t, pool.EvictImage(t.Context(), *b.v.Image))
	g.Steady(t, "vdc")
	_, err = guests.Stop(t.Context(), b.vm.VM, true, 0, nil)
	require.NoError(t, err)
	source, err := pool.LocateVolume(b.v)
	require.NoError(t, err)
	g.Intact(t, "vdc", source)
	// The guest has written to the beginning; the rest is the image's.
	out := filepath.Join(t.TempDir(), "out")
	qemuImg("convert", "-f", "qcow2", "-O", "raw", source.File, out)
	now, err := os.ReadFile(out)
	require.NoError(t, err)
	same := 0
	for at := 0; at+4096 <= len(image); at += 4096 {
		if bytes.Equal(now[at:at+4096], image[at:at+4096]) {
			same++
		}
	}
	require.Greater(t, same, len(image)/4096/2, "of %d blocks", len(image)/4096)
	_, err = guests.Start(t.Context(), b.vm.VM)
	require.NoError(t, err, "it is started with what is left")
	g.Sees(t, b.v.Volume, b.v.Size)
	require.NoError(t, run(b, steps.DetachDisk, change))
	require.NoError(t, run(b, steps.RemoveVolume, b.v))
}

// TestRealVolumes: snapshots of a volume are taken, undone, dropped and gone back to, in a real pool and with a real guest that
// writes all the time. What it was told to be safe is there at the end.
func TestRealVolumes(t *testing.T) {
	b, pool, guests := realBench(t)
	require.NoError(t, run(b, steps.MakeVolume, b.v))
	g := guests.Boot(t, true)
	b.vm = &g.Plan
	change := steps.DiskChange{Plan: g.Plan, Disk: b.disk()}
	require.NoError(t, run(b, steps.AttachDisk, change))
	g.Sees(t, b.v.Volume, b.v.Size)
	files := func() int {
		list, err := os.ReadDir(filepath.Join(b.v.Pool.Path, "volumes"))
		require.NoError(t, err)
		return len(list)
	}
	source := func(v steps.VolumePlan) compute.DiskSource {
		s, err := pool.LocateVolume(v)
		require.NoError(t, err)
		return s
	}
	take := func() steps.SnapshotPlan {
		s := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: b.v, VM: b.vm, Layer: api.NewID(), Freeze: true}
		taken, err := ask(b, steps.TakeSnapshot, s)
		require.NoError(t, err)
		require.True(t, taken.Frozen)
		t.Logf("snapshot: %s", taken.Pause)
		require.NoError(t, run(b, steps.TakeSnapshot, s))
		b.v.Layer = s.Layer
		g.Steady(t, "vdc")
		return s
	}

	s := take()
	require.NoError(t, run(b, steps.UndoSnapshot, s))
	b.v = s.Volume
	require.Equal(t, 1, files())
	g.Steady(t, "vdc")

	b.v.Size *= 2
	require.NoError(t, run(b, steps.ResizeVolume, steps.Resize{Volume: b.v, VM: b.vm}))
	g.Sees(t, b.v.Volume, b.v.Size)

	first, second, third := take(), take(), take()
	require.Equal(t, 4, files())
	require.Equal(t, problem.InUse, problem.KindOf(run(b, steps.RemoveVolume, b.v)), "the guest has it")
	require.NoError(t, run(b, steps.DropSnapshot, steps.SnapshotDrop{Volume: b.v, VM: b.vm, Frozen: second.Volume.Layer, Child: second.Layer}))
	g.Steady(t, "vdc")
	require.NoError(t, run(b, steps.DropSnapshot, steps.SnapshotDrop{Volume: b.v, VM: b.vm, Frozen: first.Volume.Layer, Child: second.Volume.Layer}))
	g.Steady(t, "vdc")
	require.Equal(t, 2, files())
	r := steps.VolumeRevert{Snapshot: third.Snapshot, Volume: b.v, VM: b.vm, Frozen: first.Volume.Layer, Layer: api.NewID()}
	require.Equal(t, problem.Conflict, problem.KindOf(run(b, steps.RevertVolume, r)), "the guest runs")
	require.NoError(t, run(b, steps.UndoRevert, r))
	g.Steady(t, "vdc")

	_, err := guests.Stop(t.Context(), b.vm.VM, true, 0, nil)
	require.NoError(t, err)
	g.Intact(t, "vdc", source(b.v))
	require.NoError(t, run(b, steps.RevertVolume, r))
	require.NoError(t, run(b, steps.UndoRevert, r))
	require.NoError(t, run(b, steps.RevertVolume, r))
	before := b.v
	b.v.Layer = r.Layer
	_, err = guests.Start(t.Context(), b.vm.VM)
	require.NoError(t, err)
	g.Sees(t, b.v.Volume, b.v.Size)
	g.Steady(t, "vdc")
	require.NoError(t, run(b, steps.RemoveVolume, before))
	require.NoError(t, run(b, steps.DropSnapshot, steps.SnapshotDrop{Volume: b.v, VM: b.vm, Frozen: r.Frozen, Child: r.Layer}))
	b.v.Layer = ""
	require.Equal(t, 1, files())
	g.Steady(t, "vdc")
	require.NoError(t, run(b, steps.DetachDisk, change))
	g.Sees(t, b.v.Volume, 0)
	require.NoError(t, run(b, steps.RemoveVolume, b.v))
	require.Zero(t, files())
}

// TestRealVolumesGoToOtherPools: a guest writes all the time while its volume goes to another pool, and back when the guest is off.
// What it was told to be safe is there at the end, and nothing is left behind.
func TestRealVolumesGoToOtherPools(t *testing.T) {
	nodes := computetest.Sandbox(t, "a", "b")
	guests, pools := nodes.Bench(t), storage.ByType{api.PoolDir: storage.NewDir(nil)}
	var suite testsuite.WorkflowTestSuite
	b := &bench{t: t, env: suite.NewTestActivityEnvironment()}
	b.env.SetTestTimeout(computetest.Patience)
	host := &activities.Host{Log: slog.New(slog.DiscardHandler)}
	storage.RegisterNode(b.env, host, pools, none{}, nil)
	compute.Register(b.env, host, guests, pools)
	volume.Register(b.env, host, guests, pools)
	at := func(name string) steps.PoolOnNode {
		p := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: filepath.Join(nodes.Dir, name)}
		_, err := pools.Prepare(t.Context(), p)
		require.NoError(t, err)
		return p
	}
	slow, fast := at("slow"), at("fast")
	b.v = steps.VolumePlan{Volume: api.NewID(), Name: "data", Size: 64 * api.MiB, Pool: slow}
	require.NoError(t, run(b, steps.MakeVolume, b.v))
	g := guests.Boot(t, true)
	b.vm = &g.Plan
	require.NoError(t, run(b, steps.AttachDisk, steps.DiskChange{Plan: g.Plan, Disk: b.disk()}))
	g.Sees(t, b.v.Volume, b.v.Size)
	g.Steady(t, "vdc")
	files := func(p steps.PoolOnNode) int {
		list, err := os.ReadDir(filepath.Join(p.Path, "volumes"))
		require.NoError(t, err)
		return len(list)
	}
	to := func(p steps.PoolOnNode) steps.VolumeCopy {
		c := steps.VolumeCopy{From: b.v, To: b.v, VM: b.vm}
		c.To.Pool, c.To.Layer = p, api.NewID()
		require.NoError(t, run(b, steps.MakeVolume, c.To))
		return c
	}
	settled := func(c steps.VolumeCopy) bool {
		out, err := ask(b, steps.SettleVolumeCopy, c)
		require.NoError(t, err)
		return out.Moved
	}

	undone := to(fast)
	require.False(t, settled(undone))
	require.NoError(t, run(b, steps.RemoveVolume, undone.To))
	require.Equal(t, []int{1, 0}, []int{files(slow), files(fast)})
	g.Steady(t, "vdc")

	live := to(fast)
	copied, err := ask(b, steps.CopyVolume, live)
	require.NoError(t, err)
	require.True(t, copied.Live)
	t.Logf("live: %s, the guest did not run for %s, and its slowest write took %s", copied.Took, copied.Pause, g.Steady(t, "vdc"))
	require.NoError(t, run(b, steps.CopyVolume, live))
	require.True(t, settled(live))
	require.Equal(t, problem.InUse, problem.KindOf(run(b, steps.RemoveVolume, live.To)), "the guest has it")
	require.NoError(t, run(b, steps.RemoveVolume, live.From))
	b.v = live.To
	require.Equal(t, []int{0, 1}, []int{files(slow), files(fast)})
	g.Steady(t, "vdc")

	_, err = guests.Stop(t.Context(), b.vm.VM, true, 0, nil)
	require.NoError(t, err)
	back := to(slow)
	require.False(t, settled(back))
	require.NoError(t, run(b, steps.CopyVolume, back))
	require.True(t, settled(back))
	require.NoError(t, run(b, steps.RemoveVolume, back.From))
	b.v = back.To
	source, err := pools.LocateVolume(b.v)
	require.NoError(t, err)
	g.Intact(t, "vdc", source)
	_, err = guests.Start(t.Context(), b.vm.VM)
	require.NoError(t, err)
	g.Sees(t, b.v.Volume, b.v.Size)
	g.Steady(t, "vdc")
	require.Equal(t, []int{1, 0}, []int{files(slow), files(fast)})
	require.NoError(t, run(b, steps.DetachDisk, steps.DiskChange{Plan: g.Plan, Disk: b.disk()}))
	require.NoError(t, run(b, steps.RemoveVolume, b.v))
}
