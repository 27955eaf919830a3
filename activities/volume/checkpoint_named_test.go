package volume_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// newCephKeeper is a keeper whose pool is one of Ceph.
func newCephKeeper(t *testing.T) *keeper {
	s := api.PoolSource{Hosts: []string{"10.0.0.1"}, Name: "vms", User: "libvirt"}
	return newKeeperOn(t, newBenchOn(t, api.PhaseStopped, steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolRBD, Shared: true, Path: api.CephPath(s), Source: s}))
}

// named are the disks of a checkpoint of a keeper in Ceph, which has no layers.
func (k *keeper) named() steps.CheckpointPlan {
	c := k.checkpoint()
	for i := range c.Disks {
		c.Disks[i].Layer = ""
	}
	return c
}

func (k *keeper) backTo(c steps.CheckpointPlan) steps.CheckpointSwitch {
	layer := api.NewID()
	return steps.CheckpointSwitch{Checkpoint: c.Checkpoint, VM: k.plan(), Disks: []steps.VolumeRevert{
		{Snapshot: c.Disks[0].Snapshot, Volume: k.root, Layer: layer}, {Snapshot: c.Disks[1].Snapshot, Volume: k.v, Layer: layer},
	}}
}

func TestNamedCheckpointUndone(t *testing.T) {
	k := newCephKeeper(t)
	files, before := k.files(), k.pool.Describe(k.v.Pool)
	c := k.named()
	require.NoError(t, run(k.bench, steps.UndoCheckpoint, c), "it was never taken")
	k.is(api.PhaseRunning, "n=1", "one ")
	taken, err := ask(k.bench, steps.TakeCheckpoint, c)
	require.NoError(t, err)
	require.Positive(t, taken.Pause)
	require.Positive(t, taken.Memory)
	k.write("two ")
	kept := k.pool.Describe(k.v.Pool)
	require.NoError(t, run(k.bench, steps.TakeCheckpoint, c))
	require.Equal(t, kept, k.pool.Describe(k.v.Pool), "once more changes nothing")
	require.Equal(t, files+1+len(c.Disks), k.files(), "the memory, and a snapshot of each disk")
	k.guest.Remember(k.vm.VM, "n=2")
	require.NoError(t, run(k.bench, steps.UndoCheckpoint, c))
	k.is(api.PhaseRunning, "n=2", "one two ")
	require.Equal(t, files, k.files())
	require.NotContains(t, k.pool.Describe(k.v.Pool)[0], "snapshots")
	require.Len(t, k.pool.Describe(k.v.Pool), len(before))
}

// TestNamedCheckpointCutOff: whatever an attempt has left that did not come to its end, the next takes all of it at one moment.
func TestNamedCheckpointCutOff(t *testing.T) {
	k := newCephKeeper(t)
	c := k.named()
	m := steps.MemoryFile{Memory: c.Checkpoint, Pool: k.v.Pool}
	path, err := k.pool.LocateMemory(m)
	require.NoError(t, err)
	_, err = k.guest.TakeStill(t.Context(), k.vm.VM, compute.StillCheckpoint{Memory: path, Volumes: []string{k.root.Volume, k.v.Volume}, Keep: func() error {
		return k.pool.AddSnapshot(t.Context(), c.Disks[1])
	}, Kept: func() error { return problem.New(problem.Unavailable, "the agent dies here") }}, nil)
	require.Equal(t, problem.Unavailable, problem.KindOf(err))
	k.is(api.PhaseRunning, "n=1", "one ")
	k.write("two ")
	k.guest.Remember(k.vm.VM, "n=2")
	require.NoError(t, run(k.bench, steps.TakeCheckpoint, c))
	k.write("three ")
	k.guest.Remember(k.vm.VM, "n=3")
	require.NoError(t, run(k.bench, steps.SaveGuest, steps.GuestSave{Memory: api.NewID(), VM: k.plan()}))
	require.NoError(t, run(k.bench, steps.SwitchCheckpoint, k.backTo(c)))
	k.is(api.PhaseRunning, "n=2", "one two ")
}

func TestNamedCheckpointSwitched(t *testing.T) {
	k := newCephKeeper(t)
	c := k.named()
	require.NoError(t, run(k.bench, steps.TakeCheckpoint, c))
	k.write("two ")
	k.guest.Remember(k.vm.VM, "n=2")
	files := k.files()

	save := steps.GuestSave{Memory: api.NewID(), VM: k.plan()}
	require.NoError(t, run(k.bench, steps.UndoSave, save), "it was never put aside")
	k.is(api.PhaseRunning, "n=2", "one two ")
	back := k.backTo(c)
	require.Equal(t, problem.Conflict, problem.KindOf(run(k.bench, steps.SwitchCheckpoint, back)), "it runs")
	require.NoError(t, run(k.bench, steps.UndoSwitch, back))
	k.is(api.PhaseRunning, "n=2", "one two ")
	require.NoError(t, run(k.bench, steps.SaveGuest, save))
	k.is(api.PhaseStopped, "", "one two ")
	require.NoError(t, run(k.bench, steps.SwitchCheckpoint, back))
	k.is(api.PhaseRunning, "n=1", "one ")

	// It has gone on, and ended, before anybody heard of it: it does not go on from that memory with other disks than then.
	k.write("other ")
	k.guest.PowerOff(k.vm.VM)
	require.NoError(t, run(k.bench, steps.SwitchCheckpoint, back))
	k.is(api.PhaseRunning, "n=1", "one ")
	require.Equal(t, problem.Conflict, problem.KindOf(run(k.bench, steps.SwitchCheckpoint, k.backTo(c))), "it is not that going back")

	for range 2 { // the second time after all is as it was
		require.NoError(t, run(k.bench, steps.UndoSwitch, back))
		require.NoError(t, run(k.bench, steps.UndoSave, save))
		k.is(api.PhaseRunning, "n=2", "one two ")
		require.Equal(t, files, k.files())
	}

	// One that has ended by itself after that is started from its disks.
	k.guest.PowerOff(k.vm.VM)
	require.NoError(t, run(k.bench, steps.UndoSave, save))
	k.is(api.PhaseRunning, "", "one two ")

	require.NoError(t, run(k.bench, steps.RemoveMemory, steps.MemoryFile{Memory: c.Checkpoint, Pool: k.v.Pool}))
	require.NoError(t, run(k.bench, steps.SaveGuest, save))
	require.Equal(t, problem.NotFound, problem.KindOf(run(k.bench, steps.SwitchCheckpoint, back)), "its memory is gone")
	require.NoError(t, run(k.bench, steps.UndoSwitch, back))
	require.NoError(t, run(k.bench, steps.UndoSave, save))
	k.is(api.PhaseRunning, "", "one two ")
}
