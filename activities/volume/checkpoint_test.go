package volume_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// keeper is a bench whose VM has its root disk in the pool, too.
type keeper struct {
	*bench
	root steps.VolumePlan
}

func newKeeper(t *testing.T) *keeper { return newKeeperOn(t, newBench(t, api.PhaseStopped)) }

func newKeeperOn(t *testing.T, b *bench) *keeper { return newKeeperIn(t, b, b.v.Pool) }

// newKeeperIn is a keeper whose VM has its root disk in that pool.
func newKeeperIn(t *testing.T, b *bench, pool steps.PoolOnNode) *keeper {
	k := &keeper{bench: b}
	k.vm.Disk.Size, k.vm.Memory = api.GiB, api.GiB
	k.vm.Disk.Pool, k.vm.Disk.PoolPath, k.vm.Disk.Type, k.vm.Disk.Source, k.vm.Disk.Shared = pool.Pool, pool.Path, pool.Type, pool.Source, pool.Shared
	_, err := k.pool.Prepare(t.Context(), pool)
	require.NoError(t, err)
	k.root = steps.VolumePlan{Volume: k.vm.Disk.Volume, Name: "root", Size: api.GiB, Pool: pool}
	require.NoError(t, run(k.bench, steps.MakeVolume, k.root))
	disks := k.guest.Disks(k.vm.VM)
	disks[0].Source, err = k.pool.LocateVolume(k.root)
	require.NoError(t, err)
	k.guest.SetDisks(k.vm.VM, disks)
	_, err = k.guest.Start(t.Context(), k.vm.VM)
	require.NoError(t, err)
	k.guest.Remember(k.vm.VM, "n=1")
	return k
}

// plan is the VM as it is now.
func (k *keeper) plan() steps.VMPlan {
	p := *k.vm
	p.Disk.Layer, p.Data = k.root.Layer, []steps.DataDisk{k.disk()}
	return p
}

func (k *keeper) checkpoint() steps.CheckpointPlan {
	return steps.CheckpointPlan{Checkpoint: api.NewID(), VM: k.plan(), Disks: []steps.SnapshotPlan{
		{Snapshot: api.NewID(), Volume: k.root, Layer: api.NewID()}, {Snapshot: api.NewID(), Volume: k.v, Layer: api.NewID()},
	}}
}

// is checks what the guest does, what it remembers, and what its data disk shows.
func (k *keeper) is(phase api.Phase, memory, text string) {
	k.t.Helper()
	got, err := k.guest.State(k.t.Context(), k.vm.VM)
	require.NoError(k.t, err)
	require.Equal(k.t, phase, got)
	require.Equal(k.t, memory, k.guest.Memory(k.vm.VM))
	k.shows(text)
}

// on has the VM be on the layers of a checkpoint, or of a switch, from now on.
func (k *keeper) on(root, data string) { k.root.Layer, k.v.Layer = root, data }

func TestCheckpointUndone(t *testing.T) {
	k := newKeeper(t)
	files := k.files()
	c := k.checkpoint()
	require.NoError(t, run(k.bench, steps.UndoCheckpoint, c), "it was never taken")
	k.is(api.PhaseRunning, "n=1", "one ")
	require.NoError(t, k.pool.AddSnapshot(t.Context(), c.Disks[0]))
	require.NoError(t, run(k.bench, steps.UndoCheckpoint, c), "a part of it was done")
	require.Equal(t, files, k.files())
	taken, err := ask(k.bench, steps.TakeCheckpoint, c)
	require.NoError(t, err)
	require.Positive(t, taken.Pause)
	require.Positive(t, taken.Memory)
	require.NoError(t, run(k.bench, steps.TakeCheckpoint, c))
	require.Equal(t, files+3, k.files())
	before := k.v
	k.on(c.Disks[0].Layer, c.Disks[1].Layer)
	k.write("two ")
	k.guest.Remember(k.vm.VM, "n=2")
	require.NoError(t, run(k.bench, steps.UndoCheckpoint, c))
	k.on("", before.Layer)
	k.is(api.PhaseRunning, "n=2", "one two ")
	require.Equal(t, files, k.files())
}

func TestCheckpointSwitched(t *testing.T) {
	k := newKeeper(t)
	c := k.checkpoint()
	require.NoError(t, run(k.bench, steps.TakeCheckpoint, c))
	k.on(c.Disks[0].Layer, c.Disks[1].Layer)
	k.write("two ")
	k.guest.Remember(k.vm.VM, "n=2")
	files := k.files()

	save := steps.GuestSave{Memory: api.NewID(), VM: k.plan()}
	require.NoError(t, run(k.bench, steps.UndoSave, save), "it was never put aside")
	k.is(api.PhaseRunning, "n=2", "one two ")
	back := steps.CheckpointSwitch{Checkpoint: c.Checkpoint, VM: k.plan(), Disks: []steps.VolumeRevert{
		{Snapshot: c.Disks[0].Snapshot, Volume: k.root, Layer: api.NewID()}, {Snapshot: c.Disks[1].Snapshot, Volume: k.v, Layer: api.NewID()},
	}}
	require.Equal(t, problem.Conflict, problem.KindOf(run(k.bench, steps.SwitchCheckpoint, back)), "it runs")
	require.NoError(t, run(k.bench, steps.UndoSwitch, back))
	k.is(api.PhaseRunning, "n=2", "one two ")
	require.NoError(t, run(k.bench, steps.SaveGuest, save))
	k.is(api.PhaseStopped, "", "one two ")
	require.NoError(t, run(k.bench, steps.SwitchCheckpoint, back))
	now, nowRoot := k.v, k.root
	k.on(back.Disks[0].Layer, back.Disks[1].Layer)
	k.is(api.PhaseRunning, "n=1", "one ")

	// It has gone on, and ended, before anybody heard of it: it does not go on from that memory with other disks than then.
	k.write("other ")
	k.guest.PowerOff(k.vm.VM)
	require.NoError(t, run(k.bench, steps.SwitchCheckpoint, back))
	k.is(api.PhaseRunning, "n=1", "one ")

	for range 2 { // the second time after all is as it was
		require.NoError(t, run(k.bench, steps.UndoSwitch, back))
		require.NoError(t, run(k.bench, steps.UndoSave, save))
		k.on(nowRoot.Layer, now.Layer)
		k.is(api.PhaseRunning, "n=2", "one two ")
		require.Equal(t, files, k.files())
	}

	// One that has ended by itself after that is started from its disks.
	k.guest.PowerOff(k.vm.VM)
	require.NoError(t, run(k.bench, steps.UndoSave, save))
	k.is(api.PhaseRunning, "", "one two ")
	require.NoError(t, k.guest.Remove(t.Context(), k.vm.VM))
	require.NoError(t, run(k.bench, steps.UndoSave, save), "and defined again, if it is gone")
	k.is(api.PhaseRunning, "", "one two ")

	require.NoError(t, run(k.bench, steps.RemoveMemory, steps.MemoryFile{Memory: c.Checkpoint, Pool: k.v.Pool}))
	require.NoError(t, run(k.bench, steps.SaveGuest, save))
	require.Equal(t, problem.NotFound, problem.KindOf(run(k.bench, steps.SwitchCheckpoint, back)), "its memory is gone")
	require.NoError(t, run(k.bench, steps.UndoSwitch, back))
	require.NoError(t, run(k.bench, steps.UndoSave, save))
	k.is(api.PhaseRunning, "", "one two ")
}

// TestSavedButNotEnded: the guest goes on from its memory only after the file is gone.
func TestSavedButNotEnded(t *testing.T) {
	k := newKeeper(t)
	save := steps.GuestSave{Memory: api.NewID(), VM: k.plan()}
	m := steps.MemoryFile{Memory: save.Memory, Pool: k.v.Pool}
	path, err := k.pool.LocateMemory(m)
	require.NoError(t, err)
	require.NoError(t, k.pool.WriteMemory(path, "stale")) // libvirtd died after it, and the guest went on
	require.NoError(t, run(k.bench, steps.UndoSave, save))
	k.is(api.PhaseRunning, "n=1", "one ")
	_, err = k.pool.KeepMemory(t.Context(), m, nil)
	require.Equal(t, problem.NotFound, problem.KindOf(err))
}

func TestCheckpointRefused(t *testing.T) {
	k := newKeeper(t)
	c := k.checkpoint()
	files := k.files()
	refused := func(want problem.Kind, c steps.CheckpointPlan) {
		t.Helper()
		require.Equal(t, want, problem.KindOf(run(k.bench, steps.TakeCheckpoint, c)))
		c.Disks = c.Disks[:1] // undone as far as it may have come
		require.NoError(t, run(k.bench, steps.UndoCheckpoint, c))
		k.is(api.PhaseRunning, "n=1", "one ")
		require.Equal(t, files, k.files())
	}
	large := c
	large.VM.Memory = api.TiB
	large.Disks = large.Disks[:1]
	refused(problem.NoCapacity, large)
	_, err := k.guest.Stop(t.Context(), k.vm.VM, true, 0, nil)
	require.NoError(t, err)
	require.Equal(t, problem.Conflict, problem.KindOf(run(k.bench, steps.TakeCheckpoint, c)), "it does not run")
	require.NoError(t, run(k.bench, steps.UndoCheckpoint, c))
	require.Equal(t, files, k.files())
}

// TestMemoriesOfPlainPools: a driver of other pools need not be able to keep memories.
func TestMemoriesOfPlainPools(t *testing.T) {
	_, err := storage.MemoriesOf(struct{ storage.Pool }{}, api.PoolRBD)
	require.Equal(t, problem.Unsupported, problem.KindOf(err))
	_, err = storage.ByType{}.PlaceMemory(context.Background(), steps.MemoryFile{Memory: api.NewID(), Pool: steps.PoolOnNode{Type: api.PoolRBD}}, 1)
	require.Equal(t, problem.Unsupported, problem.KindOf(err))
}
