//go:build ceph && cgo

package volume_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute/computetest"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// size is that of the data volume, as the cluster has it.
func (c *cephBench) size() int64 {
	c.t.Helper()
	var info struct{ Size int64 }
	require.NoError(c.t, json.Unmarshal([]byte(c.admin("info", "--format", "json", storage.RBDDisk(c.v.Volume))), &info))
	return info.Size
}

// TestRealVolumesInCeph: a volume in Ceph grows, gets other limits and is kept as a snapshot while a guest writes to it. When the guest is
// off the volume goes back to that, and forth, and back for good, and the guest goes on with it.
func TestRealVolumesInCeph(t *testing.T) {
	c := newCephBench(t, "volumes in Ceph of guests that run")
	b := c.bench
	b.vm = &c.g.Plan

	c.v.Size *= 2
	require.NoError(t, run(b, steps.ResizeVolume, steps.Resize{Volume: c.v, VM: b.vm}))
	c.g.Sees(t, c.v.Volume, c.v.Size)
	require.Equal(t, c.v.Size, c.size())
	smaller := c.v
	smaller.Size /= 2
	require.Equal(t, problem.Conflict, problem.KindOf(run(b, steps.ResizeVolume, steps.Resize{Volume: smaller, VM: b.vm})))
	c.g.Steady(t, "vdc")

	computetest.Bursts(t, c.g, "vdc", func(qos api.VolumeQoS) error {
		change := steps.DiskChange{Plan: c.g.Plan, Disk: c.disk()}
		change.Disk.QoS = qos
		return run(b, steps.TuneDisk, change)
	})

	from := c.g.Counts(t, "vdc")
	s := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: c.v, VM: b.vm}
	taken, err := ask(b, steps.TakeSnapshot, s)
	require.NoError(t, err)
	require.Positive(t, taken.Pause)
	then := c.sectors(s.Snapshot)
	require.GreaterOrEqual(t, then, from, "what the guest was told to be safe is in it")
	c.g.Steady(t, "vdc")
	late := c.g.Counts(t, "vdc")
	require.Greater(t, late, then)
	require.Equal(t, then, c.sectors(s.Snapshot), "what it keeps does not change")
	r := steps.VolumeRevert{Snapshot: s.Snapshot, Volume: c.v, VM: b.vm, Layer: api.NewID()}
	_, err = ask(b, steps.RevertVolume, r)
	require.Equal(t, problem.InUse, problem.KindOf(err), "the guest runs")
	c.g.Steady(t, "vdc")

	_, err = c.guests.Stop(t.Context(), b.vm.VM, true, 0, nil)
	require.NoError(t, err)
	now := c.sectors("")
	require.GreaterOrEqual(t, now, late)
	require.NoError(t, run(b, steps.RevertVolume, r))
	require.Equal(t, then, c.sectors(""))
	require.NoError(t, run(b, steps.UndoRevert, r))
	require.Equal(t, now, c.sectors(""), "nothing of now is lost")
	require.NoError(t, run(b, steps.RevertVolume, r))
	require.Equal(t, then, c.sectors(""))
	require.Equal(t, c.v.Size, c.size())
	_, err = c.guests.Start(t.Context(), b.vm.VM)
	require.NoError(t, err)
	c.g.Sees(t, c.v.Volume, c.v.Size)
	c.g.Steady(t, "vdc")
	before := c.v
	before.Layer = r.Layer
	require.NoError(t, run(b, steps.RemoveVolume, before), "for good, while the guest runs")
	require.NoError(t, run(b, steps.DropSnapshot, steps.SnapshotDrop{Snapshot: s.Snapshot, Volume: c.v, VM: b.vm}))
	require.Equal(t, [3]int{}, c.there())
	c.g.Steady(t, "vdc")
	require.NoError(t, run(b, steps.DetachDisk, steps.DiskChange{Plan: c.g.Plan, Disk: c.disk()}))
	c.g.Sees(t, c.v.Volume, 0)
	require.NoError(t, run(b, steps.RemoveVolume, c.v))
	c.v.Volume = "" // it is gone
}
