package volume_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// mixed is a keeper whose VM has one disk in Ceph and the other in a pool of files.
type mixed struct {
	*keeper
	rbd steps.VolumePlan // that of the two that is in Ceph
}

// kinds does something to a VM whose root disk is in Ceph, and to one whose other disk is.
func kinds(t *testing.T, do func(t *testing.T, k *mixed)) {
	s := api.PoolSource{Hosts: []string{"10.0.0.1"}, Name: "vms", User: "libvirt"}
	ceph := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolRBD, Shared: true, Path: api.CephPath(s), Source: s}
	files := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: "/pool"}
	t.Run("root disk in Ceph", func(t *testing.T) {
		k := &mixed{keeper: newKeeperIn(t, newBenchOn(t, api.PhaseStopped, files), ceph)}
		k.rbd = k.root
		do(t, k)
	})
	t.Run("root disk in files", func(t *testing.T) {
		k := &mixed{keeper: newKeeperIn(t, newBenchOn(t, api.PhaseStopped, ceph), files)}
		k.rbd = k.v
		do(t, k)
	})
}

func isCeph(v steps.VolumePlan) bool { return v.Pool.Type == api.PoolRBD }

// keeps is the plan of a checkpoint. Disks in Ceph have no layers.
func (k *mixed) keeps() steps.CheckpointPlan {
	c := k.checkpoint()
	for i := range c.Disks {
		if isCeph(c.Disks[i].Volume) {
			c.Disks[i].Layer = ""
		}
	}
	return c
}

// taken has the VM be on the layers of a checkpoint from now on.
func (k *mixed) taken(c steps.CheckpointPlan) { k.on(c.Disks[0].Layer, c.Disks[1].Layer) }

// back is the plan of going back to a checkpoint.
func (k *mixed) back(c steps.CheckpointPlan) steps.CheckpointSwitch {
	out := steps.CheckpointSwitch{Checkpoint: c.Checkpoint, VM: k.plan()}
	for i, v := range []steps.VolumePlan{k.root, k.v} {
		out.Disks = append(out.Disks, steps.VolumeRevert{Snapshot: c.Disks[i].Snapshot, Volume: v, Frozen: c.Disks[i].Volume.Layer, Layer: api.NewID()})
	}
	return out
}

// went has the VM be on the layers of a going back from now on.
func (k *mixed) went(s steps.CheckpointSwitch) {
	after := s.After()
	k.on(after.Disk.Layer, after.Data[0].Layer)
}

// all counts what is in both pools, and the snapshots of the disk in Ceph.
func (k *mixed) all() (out []any) {
	for _, v := range []steps.VolumePlan{k.root, k.v} {
		list, err := k.pool.List(k.t.Context(), v.Pool)
		require.NoError(k.t, err)
		out = append(out, len(list))
	}
	return out
}

// wrote has the guest write to all that it has.
func (k *mixed) wrote(text, memory string) {
	require.NoError(k.t, k.pool.Write(k.root, text))
	k.write(text)
	k.guest.Remember(k.vm.VM, memory)
}

// goes checks what the guest does, and that it remembers what both of its disks show.
func (k *mixed) goes(phase api.Phase, memory, text string) {
	k.t.Helper()
	k.is(phase, memory, text)
	got, _, err := k.pool.Shows(k.root)
	require.NoError(k.t, err)
	require.Equal(k.t, text, got)
	source, err := k.pool.LocateVolume(k.root)
	require.NoError(k.t, err)
	require.Equal(k.t, source, k.guest.Disks(k.vm.VM)[0].Source)
}

func TestMixedCheckpointUndone(t *testing.T) {
	kinds(t, func(t *testing.T, k *mixed) {
		require.NoError(t, k.pool.Write(k.root, "one "))
		before, root, data := k.all(), k.root, k.v
		c := k.keeps()
		require.NoError(t, run(k.bench, steps.UndoCheckpoint, c), "it was never taken")
		k.goes(api.PhaseRunning, "n=1", "one ")
		require.Equal(t, before, k.all())
		taken, err := ask(k.bench, steps.TakeCheckpoint, c)
		require.NoError(t, err)
		require.Positive(t, taken.Pause)
		require.Positive(t, taken.Memory)
		k.taken(c)
		k.wrote("two ", "n=2")
		kept := k.pool.Describe(k.rbd.Pool)
		require.NoError(t, run(k.bench, steps.TakeCheckpoint, c))
		require.Equal(t, kept, k.pool.Describe(k.rbd.Pool), "once more changes nothing")
		k.goes(api.PhaseRunning, "n=2", "one two ")
		require.NoError(t, run(k.bench, steps.UndoCheckpoint, c))
		k.on(root.Layer, data.Layer)
		k.goes(api.PhaseRunning, "n=2", "one two ")
		require.Equal(t, before, k.all())
	})
}

// TestMixedCheckpointCutOff: wherever an attempt was cut off before it has sealed the memory, and whatever the guest has written since, the
// next one takes all of it at one moment; or it is undone.
func TestMixedCheckpointCutOff(t *testing.T) {
	dies := problem.New(problem.Unavailable, "the agent dies here")
	for name, at := range map[string]struct{ fresh, keep, kept error }{"with the layers made": {fresh: dies}, "switched": {keep: dies}, "with all snapshots": {kept: dies}} {
		t.Run(name, func(t *testing.T) {
			kinds(t, func(t *testing.T, k *mixed) {
				require.NoError(t, k.pool.Write(k.root, "one "))
				before, root, data := k.all(), k.root, k.v
				cut := func(c steps.CheckpointPlan) {
					t.Helper()
					m := steps.MemoryFile{Memory: c.Checkpoint, Pool: c.VM.Disk.OnNode(), Seal: true}
					path, err := k.pool.PlaceMemory(t.Context(), m, 1)
					require.NoError(t, err)
					still := compute.StillCheckpoint{Memory: path, Volumes: []string{k.rbd.Volume}}
					ours := c.Disks[0]
					for _, d := range c.Disks {
						if isCeph(d.Volume) {
							continue
						}
						ours = d
						v := d.Volume
						v.Layer = d.Layer
						to, err := k.pool.LocateVolume(v)
						require.NoError(t, err)
						still.Disks = append(still.Disks, compute.SwitchedDisk{Volume: v.Volume, To: to})
					}
					still.Fresh = func() error {
						require.NoError(t, k.pool.AddSnapshot(t.Context(), ours))
						return at.fresh
					}
					still.Keep = func() error {
						if at.keep != nil {
							return at.keep
						}
						for _, d := range c.Disks {
							if isCeph(d.Volume) {
								require.NoError(t, k.pool.AddSnapshot(t.Context(), d))
							}
						}
						return nil
					}
					still.Kept = func() error { return at.kept }
					_, err = k.guest.TakeStill(t.Context(), k.vm.VM, still, nil)
					require.Equal(t, problem.Unavailable, problem.KindOf(err))
					if at.fresh == nil {
						k.taken(c)
					}
					k.wrote("two ", "n=2")
				}
				c := k.keeps()
				cut(c)
				require.NoError(t, run(k.bench, steps.UndoCheckpoint, c))
				k.on(root.Layer, data.Layer)
				k.goes(api.PhaseRunning, "n=2", "one two ")
				require.Equal(t, before, k.all())

				c = k.keeps()
				cut(c)
				require.NoError(t, run(k.bench, steps.TakeCheckpoint, c))
				k.taken(c)
				k.goes(api.PhaseRunning, "n=2", "one two two ")
				k.wrote("three ", "n=3")
				require.NoError(t, run(k.bench, steps.SaveGuest, steps.GuestSave{Memory: api.NewID(), VM: k.plan()}))
				back := k.back(c)
				require.NoError(t, run(k.bench, steps.SwitchCheckpoint, back))
				k.went(back)
				k.goes(api.PhaseRunning, "n=2", "one two two ")
			})
		})
	}
}

func TestMixedCheckpointSwitched(t *testing.T) {
	kinds(t, func(t *testing.T, k *mixed) {
		require.NoError(t, k.pool.Write(k.root, "one "))
		c := k.keeps()
		require.NoError(t, run(k.bench, steps.TakeCheckpoint, c))
		k.taken(c)
		k.wrote("two ", "n=2")
		there, root, data := k.all(), k.root, k.v
		save := steps.GuestSave{Memory: api.NewID(), VM: k.plan()}
		require.NoError(t, run(k.bench, steps.UndoSave, save), "it was never put aside")
		back := k.back(c)
		require.Equal(t, problem.Conflict, problem.KindOf(run(k.bench, steps.SwitchCheckpoint, back)), "it runs")
		require.NoError(t, run(k.bench, steps.UndoSwitch, back))
		k.goes(api.PhaseRunning, "n=2", "one two ")
		require.NoError(t, run(k.bench, steps.SaveGuest, save))
		require.NoError(t, run(k.bench, steps.SwitchCheckpoint, back))
		k.went(back)
		k.goes(api.PhaseRunning, "n=1", "one ")

		// It has gone on, and ended, before anybody heard of it: it does not go on from that memory with other disks than then.
		k.wrote("other ", "n=9")
		k.guest.PowerOff(k.vm.VM)
		require.NoError(t, run(k.bench, steps.SwitchCheckpoint, back))
		k.goes(api.PhaseRunning, "n=1", "one ")

		for range 2 { // the second time after all is as it was
			require.NoError(t, run(k.bench, steps.UndoSwitch, back))
			require.NoError(t, run(k.bench, steps.UndoSave, save))
			k.on(root.Layer, data.Layer)
			k.goes(api.PhaseRunning, "n=2", "one two ")
			require.Equal(t, there, k.all())
		}

		// And for good, after which the checkpoint is given up.
		require.NoError(t, run(k.bench, steps.SaveGuest, save))
		require.NoError(t, run(k.bench, steps.SwitchCheckpoint, back))
		for i, v := range []steps.VolumePlan{root, data} {
			if isCeph(v) {
				v.Layer = back.Disks[i].Layer
			}
			require.NoError(t, run(k.bench, steps.RemoveVolume, v))
		}
		m := steps.MemoryFile{Memory: save.Memory, Pool: k.root.Pool}
		require.NoError(t, run(k.bench, steps.RemoveMemory, m))
		k.went(back)
		k.goes(api.PhaseRunning, "n=1", "one ")
		require.Equal(t, there, k.all())
		k.wrote("three ", "n=3")
		m.Memory = c.Checkpoint
		require.NoError(t, run(k.bench, steps.RemoveMemory, m))
		vm := k.plan()
		for i, v := range []steps.VolumePlan{k.root, k.v} {
			require.NoError(t, run(k.bench, steps.DropSnapshot, steps.SnapshotDrop{Snapshot: c.Disks[i].Snapshot, Volume: v, VM: &vm, Frozen: c.Disks[i].Volume.Layer, Child: v.Layer}))
		}
		k.on("", "")
		k.goes(api.PhaseRunning, "n=3", "one three ")
		require.NotContains(t, k.pool.Describe(k.rbd.Pool)[0], "snapshots")
	})
}
