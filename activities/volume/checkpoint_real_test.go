package volume_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/computetest"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/activities/volume"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// sectors says how many sectors of a layer the guest has written with their numbers, from the first on. Whatever comes after those
// must be empty.
func sectors(t *testing.T, pool storage.Volumes, v steps.VolumePlan) (n int) {
	t.Helper()
	s, err := pool.LocateVolume(v)
	require.NoError(t, err)
	raw := filepath.Join(t.TempDir(), "raw")
	require.NoError(t, qemuimg.ConvertTo(t.Context(), s.File, s.Format, raw, api.FormatRaw, 128*api.MiB, nil))
	b, err := os.ReadFile(raw)
	require.NoError(t, err)
	for n = 1; string(b[n*512:(n+1)*512]) == fmt.Sprintf("%0512d", n); n++ {
	}
	require.Empty(t, strings.Trim(string(bytes.TrimRight(b[n*512:], "\x00")), "\x00"), "sector %d", n)
	return n - 1
}

// TestRealCheckpoints: a guest counts in its memory, and writes each number to its disk. It is kept while it runs, goes back to that
// very moment, with the number and the disk that it had then, and from there to now, when that is undone.
func TestRealCheckpoints(t *testing.T) {
	nodes := computetest.Sandbox(t, "a", "b")
	guests, pool := nodes.Bench(t), storage.NewDir(nil)
	var suite testsuite.WorkflowTestSuite
	b := &bench{t: t, env: suite.NewTestActivityEnvironment()}
	b.env.SetTestTimeout(computetest.Patience)
	host := &activities.Host{Log: slog.New(slog.DiscardHandler)}
	storage.RegisterNode(b.env, host, pool, none{}, nil)
	compute.Register(b.env, host, guests, pool)
	volume.Register(b.env, host, guests, pool)
	nodes.Pool = steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: filepath.Join(nodes.Dir, "pool")}
	b.v = steps.VolumePlan{Volume: api.NewID(), Name: "data", Size: 64 * api.MiB, Pool: nodes.Pool}
	_, err := pool.Prepare(t.Context(), nodes.Pool)
	require.NoError(t, err)
	require.NoError(t, run(b, steps.MakeVolume, b.v))
	g := guests.Boot(t, false)
	require.NoError(t, run(b, steps.AttachDisk, steps.DiskChange{Plan: g.Plan, Disk: b.disk()}))
	g.Sees(t, b.v.Volume, b.v.Size)
	files := func(dir string) int {
		list, err := os.ReadDir(filepath.Join(nodes.Pool.Path, dir))
		require.NoError(t, err)
		return len(list)
	}
	root := steps.VolumePlan{Volume: g.Plan.Disk.Volume, Name: "root", Size: g.Plan.Disk.Size, Pool: nodes.Pool}
	vm := func() steps.VMPlan { // as it is now
		p := g.Plan
		p.Disk.Layer, p.Data = root.Layer, []steps.DataDisk{b.disk()}
		return p
	}
	plan := func() steps.CheckpointPlan {
		return steps.CheckpointPlan{Checkpoint: api.NewID(), VM: vm(), Disks: []steps.SnapshotPlan{
			{Snapshot: api.NewID(), Volume: root, Layer: api.NewID()}, {Snapshot: api.NewID(), Volume: b.v, Layer: api.NewID()},
		}}
	}
	save := func() steps.GuestSave {
		s := steps.GuestSave{Memory: api.NewID(), VM: vm()}
		require.NoError(t, run(b, steps.SaveGuest, s))
		return s
	}
	g.Steady(t, "vdc")

	// Taken back, it goes on as it was, with all that it has written since.
	undone := plan()
	require.NoError(t, run(b, steps.UndoCheckpoint, undone), "it was never taken")
	require.NoError(t, run(b, steps.TakeCheckpoint, undone))
	require.Equal(t, []int{4, 1}, []int{files("volumes"), files("checkpoints")})
	g.Steady(t, "vdc")
	require.NoError(t, run(b, steps.UndoCheckpoint, undone))
	require.Equal(t, []int{2, 0}, []int{files("volumes"), files("checkpoints")})
	g.Steady(t, "vdc")

	from := g.Counts(t, "vdc")
	c := plan()
	taken, err := ask(b, steps.TakeCheckpoint, c)
	require.NoError(t, err)
	require.Positive(t, taken.Pause)
	require.Positive(t, taken.Memory)
	t.Logf("checkpoint: %d bytes of memory, the guest stood still for %s", taken.Memory, taken.Pause)
	require.NoError(t, run(b, steps.TakeCheckpoint, c))
	was, wasRoot := b.v, root
	root.Layer, b.v.Layer = c.Disks[0].Layer, c.Disks[1].Layer
	then := sectors(t, pool, was)
	require.GreaterOrEqual(t, then, from)
	g.Steady(t, "vdc")

	// Put aside, and on again.
	late := g.Counts(t, "vdc")
	require.Greater(t, late, then)
	require.NoError(t, run(b, steps.UndoSave, steps.GuestSave{Memory: api.NewID(), VM: vm()}), "it was never put aside")
	require.NoError(t, run(b, steps.UndoSave, save()))
	require.Equal(t, 1, files("checkpoints"))
	require.GreaterOrEqual(t, g.Counts(t, "vdc"), late)

	// Back to then, and from there to now again: nothing of now is lost.
	back := func() steps.CheckpointSwitch {
		return steps.CheckpointSwitch{Checkpoint: c.Checkpoint, VM: vm(), Disks: []steps.VolumeRevert{
			{Snapshot: c.Disks[0].Snapshot, Volume: root, Frozen: wasRoot.Layer, Layer: api.NewID()},
			{Snapshot: c.Disks[1].Snapshot, Volume: b.v, Frozen: was.Layer, Layer: api.NewID()},
		}}
	}
	late = g.Counts(t, "vdc")
	aside, r := save(), back()
	require.NoError(t, run(b, steps.SwitchCheckpoint, r))
	require.Less(t, g.Counts(t, "vdc"), late)
	require.NoError(t, run(b, steps.UndoSwitch, r))
	require.NoError(t, run(b, steps.UndoSave, aside))
	require.NoError(t, run(b, steps.UndoSwitch, r), "a lost workflow goes back once more")
	require.NoError(t, run(b, steps.UndoSave, aside))
	require.Equal(t, []int{4, 1}, []int{files("volumes"), files("checkpoints")})
	now := g.Counts(t, "vdc")
	require.GreaterOrEqual(t, now, late)

	// Back to then, for good.
	aside, r = save(), back()
	require.NoError(t, run(b, steps.SwitchCheckpoint, r))
	oldRoot, old := root, b.v
	root.Layer, b.v.Layer = r.Disks[0].Layer, r.Disks[1].Layer
	first := g.Counts(t, "vdc")
	t.Logf("the checkpoint was taken at %d, the guest had come to %d, and goes on with %d", then, now, first)
	require.GreaterOrEqual(t, first, then)
	require.Less(t, first, now)
	require.NoError(t, run(b, steps.RemoveVolume, oldRoot))
	require.NoError(t, run(b, steps.RemoveVolume, old))
	require.NoError(t, run(b, steps.RemoveMemory, steps.MemoryFile{Memory: aside.Memory, Pool: nodes.Pool}))
	require.Equal(t, []int{4, 1}, []int{files("volumes"), files("checkpoints")})
	require.Equal(t, then, sectors(t, pool, was), "what the checkpoint keeps does not change")
	g.Steady(t, "vdc")
	_, err = guests.Stop(t.Context(), g.Plan.VM, true, 0, nil)
	require.NoError(t, err)
	g.Intact(t, "vdc", compute.QCOW2(filepath.Join(nodes.Pool.Path, "volumes", b.v.Layer+".qcow2")))
	require.Less(t, sectors(t, pool, b.v), now, "what was written after the checkpoint is gone")

	// It is given up while its guest runs.
	_, err = guests.Start(t.Context(), g.Plan.VM)
	require.NoError(t, err)
	g.Steady(t, "vdc")
	p := vm()
	require.NoError(t, run(b, steps.RemoveMemory, steps.MemoryFile{Memory: c.Checkpoint, Pool: nodes.Pool}))
	require.NoError(t, run(b, steps.DropSnapshot, steps.SnapshotDrop{Volume: root, VM: &p, Frozen: wasRoot.Layer, Child: root.Layer}))
	require.NoError(t, run(b, steps.DropSnapshot, steps.SnapshotDrop{Volume: b.v, VM: &p, Frozen: was.Layer, Child: b.v.Layer}))
	require.Equal(t, []int{2, 0}, []int{files("volumes"), files("checkpoints")})
	g.Steady(t, "vdc")
}
