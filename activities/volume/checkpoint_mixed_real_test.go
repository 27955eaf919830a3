//go:build ceph && cgo

package volume_test

import (
	"bytes"
	"context"
	"fmt"
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
	"github.com/nextstack/nextstack/activities/compute/computetest"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/rbd"
	"github.com/nextstack/nextstack/activities/volume"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// mixedBench is a guest with its root disk and vdc in a directory, and vdd in the Ceph of a sandbox.
type mixedBench struct {
	*bench
	guests computetest.Bench
	dir    *storage.Dir
	admin  func(args ...string) string // rbd, as the administrator
	g      computetest.BenchGuest
	root   steps.VolumePlan
	ceph   steps.VolumePlan // vdd; vdc is v
}

func newMixedBench(t *testing.T) *mixedBench {
	there := needCeph(t, "checkpoints of VMs with disks both in Ceph and in files")
	nodes := computetest.Sandbox(t, "a", "b")
	m := &mixedBench{bench: &bench{t: t}, dir: storage.NewDir(nil), admin: there.admin}
	nodes.Pool = steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: filepath.Join(nodes.Dir, "pool")}
	ceph := rbd.New(rbd.Config{Key: there.keys, TempDir: t.TempDir(), MemoryDir: t.TempDir(), WatchPatience: 10 * time.Second})
	pool := storage.ByType{api.PoolRBD: ceph, api.PoolDir: m.dir}
	for _, p := range []steps.PoolOnNode{nodes.Pool, there.pool} {
		_, err := pool.Prepare(t.Context(), p)
		require.NoError(t, err)
	}
	t.Cleanup(func() { require.NoError(t, ceph.Release(context.Background(), there.pool)) })
	there.known(t, nodes)
	m.guests = nodes.Bench(t)
	var suite testsuite.WorkflowTestSuite
	m.env = suite.NewTestActivityEnvironment()
	m.env.SetTestTimeout(computetest.Patience)
	host := &activities.Host{Log: slog.New(slog.DiscardHandler)}
	storage.RegisterNode(m.env, host, pool, none{}, nil)
	compute.Register(m.env, host, m.guests, pool)
	volume.Register(m.env, host, m.guests, pool)
	m.v = steps.VolumePlan{Volume: api.NewID(), Name: "data", Size: 64 * api.MiB, Pool: nodes.Pool}
	m.ceph = steps.VolumePlan{Volume: api.NewID(), Name: "more", Size: 64 * api.MiB, Pool: there.pool}
	t.Cleanup(func() { // before the pool is released, and after the guest is gone
		m.admin("snap", "purge", storage.RBDDisk(m.ceph.Volume))
		m.admin("rm", storage.RBDDisk(m.ceph.Volume))
	})
	require.NoError(t, run(m.bench, steps.MakeVolume, m.v))
	require.NoError(t, run(m.bench, steps.MakeVolume, m.ceph))
	m.g = m.guests.Boot(t, false)
	m.root = steps.VolumePlan{Volume: m.g.Plan.Disk.Volume, Name: "root", Size: m.g.Plan.Disk.Size, Pool: nodes.Pool}
	disks := m.plan().Data
	require.NoError(t, run(m.bench, steps.AttachDisk, steps.DiskChange{Plan: m.g.Plan, Disk: disks[0]}))
	with := m.g.Plan
	with.Data = disks[:1]
	require.NoError(t, run(m.bench, steps.AttachDisk, steps.DiskChange{Plan: with, Disk: disks[1]}))
	m.g.Sees(t, m.v.Volume, m.v.Size)
	m.g.Sees(t, m.ceph.Volume, m.ceph.Size)
	m.steady()
	return m
}

// plan is the VM as it is now.
func (m *mixedBench) plan() steps.VMPlan {
	p := m.g.Plan
	p.Disk.Layer = m.root.Layer
	p.Data = []steps.DataDisk{m.disk(), {Volume: m.ceph.Volume, Pool: m.ceph.Pool, Device: "vdd"}}
	return p
}

func (m *mixedBench) checkpoint() steps.CheckpointPlan {
	return steps.CheckpointPlan{Checkpoint: api.NewID(), VM: m.plan(), Disks: []steps.SnapshotPlan{
		{Snapshot: api.NewID(), Volume: m.root, Layer: api.NewID()},
		{Snapshot: api.NewID(), Volume: m.v, Layer: api.NewID()},
		{Snapshot: api.NewID(), Volume: m.ceph},
	}}
}

func (m *mixedBench) back(c steps.CheckpointPlan) steps.CheckpointSwitch {
	s := steps.CheckpointSwitch{Checkpoint: c.Checkpoint, VM: m.plan()}
	for i, v := range []steps.VolumePlan{m.root, m.v, m.ceph} {
		s.Disks = append(s.Disks, steps.VolumeRevert{Snapshot: c.Disks[i].Snapshot, Volume: v, Frozen: c.Disks[i].Volume.Layer, Layer: api.NewID()})
	}
	return s
}

func (m *mixedBench) save() steps.GuestSave {
	s := steps.GuestSave{Memory: api.NewID(), VM: m.plan()}
	require.NoError(m.t, run(m.bench, steps.SaveGuest, s))
	return s
}

// there counts the files with layers and with memory, and the snapshots in Ceph.
func (m *mixedBench) there() (out [3]int) {
	m.t.Helper()
	for i, dir := range []string{"volumes", "checkpoints"} {
		list, err := os.ReadDir(filepath.Join(m.root.Pool.Path, dir))
		require.NoError(m.t, err)
		out[i] = len(list)
	}
	list := m.admin("snap", "ls", storage.RBDDisk(m.ceph.Volume))
	out[2] = strings.Count(list, "snap-") + strings.Count(list, "kept-")
	return out
}

// inCeph says how many sectors the guest has written to vdd with their numbers, at the moment of a snapshot. After those all must be empty.
func (m *mixedBench) inCeph(snapshot string) (n int) {
	m.t.Helper()
	raw := filepath.Join(m.t.TempDir(), "raw")
	m.admin("export", storage.RBDDisk(m.ceph.Volume)+"@snap-"+snapshot, raw)
	b, err := os.ReadFile(raw)
	require.NoError(m.t, err)
	for n = 1; string(b[n*512:(n+1)*512]) == fmt.Sprintf("%0512d", n); n++ {
	}
	require.Empty(m.t, bytes.TrimRight(b[n*512:], "\x00"), "sector %d", n)
	return n - 1
}

func (m *mixedBench) steady() {
	m.t.Helper()
	m.g.Steady(m.t, "vdc")
	m.g.Steady(m.t, "vdd")
}

// counts is how far the guest is with each disk.
func (m *mixedBench) counts() [2]int {
	m.t.Helper()
	return [2]int{m.g.Counts(m.t, "vdc"), m.g.Counts(m.t, "vdd")}
}

// between checks that a guest that has gone back counts from where it was, and not from where it was later.
func (m *mixedBench) between(then, late [2]int) {
	m.t.Helper()
	now := m.counts()
	m.t.Logf("the checkpoint was taken at %v, the guest had come to %v, and goes on with %v", then, late, now)
	for i := range now {
		require.GreaterOrEqual(m.t, now[i], then[i])
		require.Less(m.t, now[i], late[i])
	}
}

// cutOff is an attempt that ends when the disks in files have gone over, and the guest writes to those layers.
func (m *mixedBench) cutOff(c steps.CheckpointPlan) {
	m.t.Helper()
	still := compute.StillCheckpoint{
		Memory: filepath.Join(m.root.Pool.Path, "checkpoints", c.Checkpoint+".memory.tmp"), Volumes: []string{m.ceph.Volume},
		Keep: func() error { return problem.New(problem.Unavailable, "the agent dies here") },
	}
	for _, d := range c.Disks[:2] {
		require.NoError(m.t, m.dir.AddSnapshot(m.t.Context(), d))
		v := d.Volume
		v.Layer = d.Layer
		to, err := m.dir.LocateVolume(v)
		require.NoError(m.t, err)
		still.Disks = append(still.Disks, compute.SwitchedDisk{Volume: v.Volume, To: to})
	}
	_, err := m.guests.TakeStill(m.t.Context(), c.VM.VM, still, nil)
	require.Equal(m.t, problem.Unavailable, problem.KindOf(err), "%v", err)
	m.steady()
}

// TestRealMixedCheckpoints: a guest counts in its memory, once for a disk in a directory and once for one in Ceph, and writes each number to
// that disk. It is kept while it runs, goes back to that very moment with both, and from there to now, when that is undone.
func TestRealMixedCheckpoints(t *testing.T) {
	m := newMixedBench(t)
	b := m.bench

	// Cut off and taken back, it goes on as it was.
	c := m.checkpoint()
	require.NoError(t, run(b, steps.UndoCheckpoint, c), "it was never taken")
	m.cutOff(c)
	require.Equal(t, [3]int{4, 1, 0}, m.there())
	require.NoError(t, run(b, steps.UndoCheckpoint, c))
	require.Equal(t, [3]int{2, 0, 0}, m.there())
	m.steady()

	// Cut off once more, and then taken after all.
	c = m.checkpoint()
	m.cutOff(c)
	from := m.counts()
	taken, err := ask(b, steps.TakeCheckpoint, c)
	require.NoError(t, err)
	require.Positive(t, taken.Pause)
	require.Positive(t, taken.Memory)
	t.Logf("checkpoint: %d bytes of memory, the guest stood still for %s", taken.Memory, taken.Pause)
	require.NoError(t, run(b, steps.TakeCheckpoint, c), "once more changes nothing")
	require.Equal(t, [3]int{4, 1, 1}, m.there())
	was := m.v
	m.root.Layer, m.v.Layer = c.Disks[0].Layer, c.Disks[1].Layer
	then := [2]int{sectors(t, m.dir, was), m.inCeph(c.Disks[2].Snapshot)}
	for i := range then {
		require.GreaterOrEqual(t, then[i], from[i])
	}
	m.steady()

	// Back to then, and from there to now again: nothing of now is lost.
	late := m.counts()
	aside, r := m.save(), m.back(c)
	require.NoError(t, run(b, steps.SwitchCheckpoint, r))
	m.between(then, late)
	require.NoError(t, run(b, steps.UndoSwitch, r))
	require.NoError(t, run(b, steps.UndoSave, aside))
	require.NoError(t, run(b, steps.UndoSwitch, r), "a lost workflow goes back once more")
	require.NoError(t, run(b, steps.UndoSave, aside))
	require.Equal(t, [3]int{4, 1, 1}, m.there())
	now := m.counts()
	for i := range now {
		require.GreaterOrEqual(t, now[i], late[i])
	}

	// Back to then, for good.
	aside, r = m.save(), m.back(c)
	require.NoError(t, run(b, steps.SwitchCheckpoint, r))
	for i, v := range []steps.VolumePlan{m.root, m.v, m.ceph} {
		if i == 2 {
			v.Layer = r.Disks[i].Layer
		}
		require.NoError(t, run(b, steps.RemoveVolume, v))
	}
	require.NoError(t, run(b, steps.RemoveMemory, steps.MemoryFile{Memory: aside.Memory, Pool: m.root.Pool}))
	m.root.Layer, m.v.Layer = r.Disks[0].Layer, r.Disks[1].Layer
	m.between(then, now)
	require.Equal(t, [3]int{4, 1, 1}, m.there())
	require.Equal(t, then, [2]int{sectors(t, m.dir, was), m.inCeph(c.Disks[2].Snapshot)}, "what the checkpoint keeps does not change")

	// It is given up while its guest runs.
	p := m.plan()
	require.NoError(t, run(b, steps.RemoveMemory, steps.MemoryFile{Memory: c.Checkpoint, Pool: m.root.Pool}))
	for i, v := range []steps.VolumePlan{m.root, m.v, m.ceph} {
		require.NoError(t, run(b, steps.DropSnapshot, steps.SnapshotDrop{Snapshot: c.Disks[i].Snapshot, Volume: v, VM: &p, Frozen: c.Disks[i].Volume.Layer, Child: v.Layer}))
	}
	require.Equal(t, [3]int{2, 0, 0}, m.there())
	m.root.Layer, m.v.Layer = "", ""
	m.steady()
	_, err = m.guests.Stop(t.Context(), m.g.Plan.VM, true, 0, nil)
	require.NoError(t, err)
	m.g.Intact(t, "vdc", compute.QCOW2(filepath.Join(m.v.Pool.Path, "volumes", m.v.Volume+".qcow2")))
}
