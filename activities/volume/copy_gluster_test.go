//go:build ceph && cgo

package volume_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/computetest"
	"github.com/nextstack/nextstack/activities/compute/libvirt"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/rbd"
	"github.com/nextstack/nextstack/activities/volume"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// diesEnv has an agent that makes a copy, and dies in the middle of it.
const diesEnv = "NEXTSTACK_TEST_DIES_COPYING"

// dying is what it is told.
type dying struct {
	Copy steps.VolumeCopy
	Dir  string           // of its notes
	Pool steps.PoolOnNode // in Ceph
}

// journey is a volume that goes through pools of all types, on a node.
type journey struct {
	*bench
	cluster
	ctx     context.Context // of all of it
	guests  computetest.Bench
	pools   storage.ByType
	g       computetest.BenchGuest
	pattern []byte // what is at patternAt of the volume; the guest writes before that
	dir     string // of the node
	off     bool   // the guest is
	told    int    // how many sectors the guest had written when it went off
}

const patternAt = 32 << 20

// allTypes are the drivers of a node.
func allTypes(t *testing.T, c cluster, dir string) storage.ByType {
	files := storage.NewDir(nil)
	return storage.ByType{
		api.PoolDir: files, api.PoolGluster: storage.NewMounts(files, filepath.Join(dir, "mounts"), nil),
		api.PoolRBD: rbd.New(rbd.Config{Key: c.keys, TempDir: t.TempDir()}),
	}
}

// TestRealVolumesGoToAndFromGluster: a volume goes from a directory to GlusterFS and back, and to Ceph, while its guest writes to it, and
// when that is off. Each time it is cancelled first, and then its agent dies, in the middle: the volume is where it was, and nothing is
// left of the copy. What was in it before and what the guest was told to be safe is there at the end.
func TestRealVolumesGoToAndFromGluster(t *testing.T) {
	c := needCeph(t, "volumes that go to GlusterFS and from there")
	nodes := computetest.Sandbox(t, "a", "b")
	if text := os.Getenv(diesEnv); text != "" {
		dies(t, c, nodes, text)
	}
	nodes.Gluster(t)
	if !nodes.Inside(t) {
		return
	}
	j := &journey{bench: &bench{t: t}, cluster: c, ctx: t.Context(), dir: t.TempDir(), pattern: make([]byte, 16<<20)}
	_, _ = rand.Read(j.pattern)
	c.impatient(t)
	c.known(t, nodes)
	j.guests, j.pools = nodes.Bench(t), allTypes(t, c, j.dir)
	j.register(j.ctx, nil)
	gluster := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolGluster, Source: nodes.GlusterDirectory(t, "gv0"), Shared: true}
	gluster.Path = filepath.Join(api.MountDir, gluster.Pool)
	dir := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: filepath.Join(j.dir, "pool")}
	for _, p := range []steps.PoolOnNode{dir, gluster, c.pool} {
		_, err := j.pools.Prepare(t.Context(), p)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, j.pools.Release(context.Background(), p)) })
	}

	j.v = steps.VolumePlan{Volume: api.NewID(), Name: "data", Size: 64 * api.MiB, Pool: dir}
	require.NoError(t, run(j.bench, steps.MakeVolume, j.v))
	raw := filepath.Join(j.dir, "pattern")
	require.NoError(t, os.WriteFile(raw, j.pattern, 0o600))
	source, err := j.pools.LocateVolume(j.v)
	require.NoError(t, err)
	program(t, "qemu-io", "-f", api.FormatQCOW2, "-c", fmt.Sprintf("write -s %s %d %d", raw, patternAt, len(j.pattern)), source.File)
	j.g = j.guests.Boot(t, true)
	j.vm = &j.g.Plan
	change := steps.DiskChange{Plan: j.g.Plan, Disk: j.disk()}
	change.Disk.QoS.IOPS = 60 // or it would come to the pattern, on a machine that is fast
	require.NoError(t, run(j.bench, steps.AttachDisk, change))
	j.g.Sees(t, j.v.Volume, j.v.Size)
	j.g.Steady(t, "vdc")
	for _, j.off = range []bool{false, true} {
		if j.off {
			j.told = j.g.Counts(t, "vdc")
			_, err := j.guests.Stop(t.Context(), j.vm.VM, true, 0, nil)
			require.NoError(t, err)
		}
		for _, to := range []steps.PoolOnNode{gluster, dir, gluster, c.pool} {
			if !t.Run(fmt.Sprintf("%s to %s, off %t", j.v.Pool.Type, to.Type, j.off), func(t *testing.T) {
				j.t = t
				j.cut(to, j.cancelled)
				j.cut(to, j.killed)
				j.goes(to)
			}) {
				return
			}
		}
		j.t = t
		j.goes(dir) // where it began
	}
	_, err = j.guests.Start(t.Context(), j.vm.VM)
	require.NoError(t, err)
	j.g.Sees(t, j.v.Volume, j.v.Size)
	j.g.Steady(t, "vdc")
	require.NoError(t, run(j.bench, steps.DetachDisk, steps.DiskChange{Plan: j.g.Plan, Disk: j.disk()}))
	require.NoError(t, run(j.bench, steps.RemoveVolume, j.v))
}

// register makes the node with its steps anew. Their context is ctx; at, which may be nil, hears of copies that are under way.
func (j *journey) register(ctx context.Context, at func(api.Progress)) {
	var suite testsuite.WorkflowTestSuite
	j.env = suite.NewTestActivityEnvironment()
	j.env.SetTestTimeout(computetest.Patience)
	j.env.SetWorkerOptions(worker.Options{BackgroundActivityContext: ctx})
	host := &activities.Host{Log: slog.New(slog.DiscardHandler)}
	storage.RegisterNode(j.env, host, j.pools, none{}, nil)
	compute.Register(j.env, host, j.guests, j.pools)
	volume.Register(j.env, host, watchedGuests{j.guests, at}, watchedPools{j.pools, at})
}

// watchedGuests and watchedPools tell of copies that are under way.
type watchedGuests struct {
	volume.Guests
	at func(api.Progress)
}

type watchedPools struct {
	storage.ByType
	at func(api.Progress)
}

func telling(at, tell func(api.Progress)) func(api.Progress) {
	return func(p api.Progress) {
		if at != nil && p.Done > 0 && p.Done < p.Total {
			at(p)
		}
		if tell != nil {
			tell(p)
		}
	}
}

func (w watchedGuests) MoveDisk(ctx context.Context, vm, volume string, to compute.DiskSource, rate int64, tell func(api.Progress)) (compute.Moved, error) {
	return w.Guests.MoveDisk(ctx, vm, volume, to, rate, telling(w.at, tell))
}

func (w watchedPools) CopyVolume(ctx context.Context, from, to steps.VolumePlan, rate int64, tell func(api.Progress)) error {
	return w.ByType.CopyVolume(ctx, from, to, rate, telling(w.at, tell))
}

// begun makes what a copy is made to.
func (j *journey) begun(to steps.PoolOnNode) steps.VolumeCopy {
	c := steps.VolumeCopy{From: j.v, To: j.v, VM: j.vm}
	c.To.Pool, c.To.Layer = to, ""
	if to.Type != api.PoolRBD { // whose devices have one name
		c.To.Layer = api.NewID()
	}
	require.NoError(j.t, run(j.bench, steps.MakeVolume, c.To))
	return c
}

// cut has the copy to another pool end in the middle. The volume is where it was, and only there.
func (j *journey) cut(to steps.PoolOnNode, by func(steps.VolumeCopy)) {
	j.t.Helper()
	c := j.begun(to)
	c.Bandwidth = 4 * api.MiB
	by(c)
	settled, err := ask(j.bench, steps.SettleVolumeCopy, c)
	require.NoError(j.t, err)
	require.False(j.t, settled.Moved)
	require.NoError(j.t, run(j.bench, steps.RemoveVolume, c.To))
	j.only(to)
}

// cancelled makes a copy, and cancels it in the middle.
func (j *journey) cancelled(c steps.VolumeCopy) {
	ctx, cancel := context.WithCancel(j.ctx)
	defer cancel()
	j.register(ctx, func(api.Progress) { cancel() })
	_, err := ask(j.bench, steps.CopyVolume, c)
	require.Error(j.t, err)
	require.Error(j.t, ctx.Err(), "it was over before: %v", err)
	j.register(j.ctx, nil)
}

// killed has another agent make a copy, and die in the middle.
func (j *journey) killed(c steps.VolumeCopy) {
	text, err := json.Marshal(dying{c, j.dir, j.cluster.pool})
	require.NoError(j.t, err)
	cmd := exec.Command(os.Args[0], "-test.run", "^TestRealVolumesGoToAndFromGluster$", "-test.v")
	cmd.Env = append(os.Environ(), diesEnv+"="+string(text))
	out, err := cmd.CombinedOutput()
	require.ErrorContains(j.t, err, "killed", "%s", out)
}

// dies is such an agent.
func dies(t *testing.T, c cluster, nodes *computetest.Nodes, text string) {
	var d dying
	require.NoError(t, json.Unmarshal([]byte(text), &d))
	c.pool = d.Pool
	driver := libvirt.New(nodes.Options(t, 0))
	defer driver.Close()
	j := &journey{bench: &bench{t: t}, cluster: c, guests: computetest.Bench{Driver: driver}, pools: allTypes(t, c, d.Dir)}
	j.register(t.Context(), func(api.Progress) {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	})
	_, err := ask(j.bench, steps.CopyVolume, d.Copy)
	t.Fatalf("it has not died: %v", err)
}

// goes has the volume go to another pool.
func (j *journey) goes(to steps.PoolOnNode) {
	j.t.Helper()
	from, c := j.v.Pool, j.begun(to)
	copied, err := ask(j.bench, steps.CopyVolume, c)
	require.NoError(j.t, err)
	require.Equal(j.t, !j.off, copied.Live)
	settled, err := ask(j.bench, steps.SettleVolumeCopy, c)
	require.NoError(j.t, err)
	require.True(j.t, settled.Moved)
	require.NoError(j.t, run(j.bench, steps.RemoveVolume, c.From))
	j.v = c.To
	j.only(from)
}

// only checks that the volume is in its pool, and nothing of it in another one.
func (j *journey) only(other steps.PoolOnNode) {
	j.t.Helper()
	for pool, want := range map[*steps.PoolOnNode]int{&j.v.Pool: 1, &other: 0} {
		list, err := j.pools.List(j.t.Context(), *pool)
		require.NoError(j.t, err)
		found := 0
		for _, f := range list {
			if f.Kind != storage.KindSeed && f.Kind != storage.KindBacking {
				found++
			}
		}
		require.Equal(j.t, want, found, "%s: %+v", pool.Type, list)
	}
	if !j.off {
		j.g.Steady(j.t, "vdc")
	}
	raw := filepath.Join(j.t.TempDir(), "raw")
	if j.v.Pool.Type == api.PoolRBD {
		j.admin("export", storage.RBDDisk(j.v.Volume), raw)
	} else {
		source, err := j.pools.LocateVolume(j.v)
		require.NoError(j.t, err)
		program(j.t, "qemu-img", "convert", "-U", "-f", source.Format, "-O", api.FormatRaw, source.File, raw)
	}
	b, err := os.ReadFile(raw)
	require.NoError(j.t, err)
	require.EqualValues(j.t, j.v.Size, len(b))
	require.True(j.t, bytes.Equal(j.pattern, b[patternAt:patternAt+len(j.pattern)]), "what was in it has changed")
	if j.off {
		for i := 1; i <= j.told; i++ {
			require.Equal(j.t, fmt.Sprintf("%0512d", i), string(b[i*512:(i+1)*512]), "sector %d of %d", i, j.told)
		}
	}
}

// program runs a program.
func program(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
}
