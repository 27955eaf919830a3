//go:build ceph && cgo

package volume_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/computetest"
	"github.com/nextstack/nextstack/activities/compute/libvirt"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/activities/storage/rbd"
	"github.com/nextstack/nextstack/activities/volume"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// cephBench is a guest with all its disks in the Ceph of a sandbox.
type cephBench struct {
	*bench
	nodes  *computetest.Nodes
	guests computetest.Bench
	ceph   storage.Pool
	pool   storage.ByType
	admin  func(args ...string) string // rbd, as the administrator
	g      computetest.BenchGuest
	root   steps.VolumePlan
	local  string
}

// cluster is the Ceph of a sandbox, with the pool that its user may use.
type cluster struct {
	pool  steps.PoolOnNode
	key   string
	conf  string                      // file with its configuration, for its administrator
	admin func(args ...string) string // rbd, as the administrator
}

// keys is how a driver gets the key.
func (c cluster) keys(context.Context, string) (string, error) { return c.key, nil }

// needCeph returns the cluster that the environment names, or skips the test.
func needCeph(t *testing.T, what string) cluster {
	dir := os.Getenv("NEXTSTACK_TEST_CEPH")
	if dir == "" {
		t.Skipf("SKIPPED, NOT TESTED: %s. Set NEXTSTACK_TEST_CEPH to the directory of a sandbox's Ceph, or run make test", what)
	}
	key, err := os.ReadFile(filepath.Join(dir, "client.libvirt.key"))
	require.NoError(t, err)
	file := filepath.Join(dir, "ceph.conf")
	conf, err := os.ReadFile(file)
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(conf), "v2:")
	host, _, _ := strings.Cut(rest, ":")
	source := api.PoolSource{Hosts: []string{host}, Name: "vms", User: "libvirt"}
	return cluster{
		pool: steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolRBD, Shared: true, Path: api.CephPath(source), Source: source},
		key:  strings.TrimSpace(string(key)), conf: file,
		admin: func(args ...string) string {
			out, err := exec.Command("rbd", append([]string{"-c", file, "-p", source.Name}, args...)...).Output()
			require.NoError(t, err, "rbd %v: %s", args, out)
			return string(out)
		},
	}
}

// impatient has the cluster take those for dead after 5 s who do not answer, which is half a minute otherwise.
func (c cluster) impatient(t *testing.T) {
	config := func(args ...string) {
		out, err := exec.Command("ceph", append([]string{"-c", c.conf, "config"}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	config("set", "osd", "osd_client_watch_timeout", "5")
	t.Cleanup(func() { config("rm", "osd", "osd_client_watch_timeout") })
}

// known has the hypervisors of the nodes know the key: who has it opens the pool's disks.
func (c cluster) known(t *testing.T, nodes *computetest.Nodes) {
	for i := range nodes.Names {
		d := libvirt.New(nodes.Options(t, i))
		require.NoError(t, d.SetSecret(t.Context(), c.pool.Pool, c.key))
		t.Cleanup(func() { require.NoError(t, d.DropSecret(context.Background(), c.pool.Pool)); d.Close() })
	}
}

func newCephBench(t *testing.T, what string) *cephBench {
	there := needCeph(t, what)
	nodes := computetest.Sandbox(t, "a", "b")
	nodes.Pool = there.pool
	c := &cephBench{bench: &bench{t: t}, nodes: nodes, local: t.TempDir(), admin: there.admin}
	c.ceph = rbd.New(rbd.Config{Key: there.keys, TempDir: t.TempDir(), MemoryDir: c.local, WatchPatience: 10 * time.Second})
	c.pool = storage.ByType{api.PoolRBD: c.ceph}
	_, err := c.ceph.Prepare(t.Context(), nodes.Pool)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.ceph.Release(context.Background(), nodes.Pool)) })
	there.known(t, nodes)
	nodes.Elsewhere = func(t *testing.T, plan steps.VMPlan, made compute.DomainFiles) compute.DomainFiles {
		v := steps.VolumePlan{Volume: plan.Disk.Volume, Name: "root", Size: plan.Disk.Size, Pool: nodes.Pool}
		contents, ok := c.ceph.(storage.Contents)
		require.True(t, ok)
		require.NoError(t, contents.Fill(t.Context(), v, qemuimg.File(made.Disk.File, made.Disk.Format, v.Size), nil))
		c.admin("import", made.Seed.File, storage.RBDSeed(plan.VM))
		files, err := c.pool.Locate(plan)
		require.NoError(t, err)
		return files
	}
	c.guests = nodes.Bench(t)
	var suite testsuite.WorkflowTestSuite
	c.env = suite.NewTestActivityEnvironment()
	c.env.SetTestTimeout(computetest.Patience)
	hosts := &activities.Host{Log: slog.New(slog.DiscardHandler)}
	storage.RegisterNode(c.env, hosts, c.pool, none{}, nil)
	compute.Register(c.env, hosts, c.guests, c.pool)
	volume.Register(c.env, hosts, c.guests, c.pool)
	c.v = steps.VolumePlan{Volume: api.NewID(), Name: "data", Size: 64 * api.MiB, Pool: nodes.Pool}
	t.Cleanup(func() { // before the pool is released, and after the guest is gone
		for _, v := range []steps.VolumePlan{c.v, c.root} {
			if v.Volume != "" {
				c.admin("snap", "purge", storage.RBDDisk(v.Volume))
				c.admin("rm", storage.RBDDisk(v.Volume))
			}
		}
	})
	require.NoError(t, run(c.bench, steps.MakeVolume, c.v))
	c.g = c.guests.Boot(t, false)
	c.root = steps.VolumePlan{Volume: c.g.Plan.Disk.Volume, Name: "root", Size: c.g.Plan.Disk.Size, Pool: nodes.Pool}
	require.NoError(t, run(c.bench, steps.AttachDisk, steps.DiskChange{Plan: c.g.Plan, Disk: c.disk()}))
	c.g.Sees(t, c.v.Volume, c.v.Size)
	c.g.Steady(t, "vdc")
	return c
}

func (c *cephBench) plan() steps.VMPlan {
	p := c.g.Plan
	p.Data = []steps.DataDisk{c.disk()}
	return p
}

func (c *cephBench) checkpoint() steps.CheckpointPlan {
	return steps.CheckpointPlan{Checkpoint: api.NewID(), VM: c.plan(), Disks: []steps.SnapshotPlan{{Snapshot: api.NewID(), Volume: c.root}, {Snapshot: api.NewID(), Volume: c.v}}}
}

func (c *cephBench) back(p steps.CheckpointPlan) steps.CheckpointSwitch {
	s, layer := steps.CheckpointSwitch{Checkpoint: p.Checkpoint, VM: c.plan()}, api.NewID()
	for _, d := range p.Disks {
		s.Disks = append(s.Disks, steps.VolumeRevert{Snapshot: d.Snapshot, Volume: d.Volume, Layer: layer})
	}
	return s
}

func (c *cephBench) save() steps.GuestSave {
	s := steps.GuestSave{Memory: api.NewID(), VM: c.plan()}
	require.NoError(c.t, run(c.bench, steps.SaveGuest, s))
	return s
}

// there counts the snapshots of the disks, the memories in the pool, and what is on the node.
func (c *cephBench) there() (out [3]int) {
	c.t.Helper()
	for _, v := range []steps.VolumePlan{c.root, c.v} {
		out[0] += strings.Count(c.admin("snap", "ls", storage.RBDDisk(v.Volume)), "snap-") + strings.Count(c.admin("snap", "ls", storage.RBDDisk(v.Volume)), "kept-")
	}
	list, err := c.ceph.List(c.t.Context(), c.nodes.Pool)
	require.NoError(c.t, err)
	for _, f := range list {
		switch f.Kind {
		case storage.KindMemory:
			out[1]++
		case storage.KindOther:
			out[2]++
		}
	}
	return out
}

// sectors says how many sectors the guest has written to its data disk with their numbers, at the moment of a snapshot or, without one, now.
// Whatever comes after those must be empty.
func (c *cephBench) sectors(snapshot string) (n int) {
	c.t.Helper()
	spec := storage.RBDDisk(c.v.Volume)
	if snapshot != "" {
		spec += "@snap-" + snapshot
	}
	raw := filepath.Join(c.t.TempDir(), "raw")
	c.admin("export", spec, raw)
	b, err := os.ReadFile(raw)
	require.NoError(c.t, err)
	for n = 1; string(b[n*512:(n+1)*512]) == fmt.Sprintf("%0512d", n); n++ {
	}
	require.Empty(c.t, strings.Trim(string(bytes.TrimRight(b[n*512:], "\x00")), "\x00"), "sector %d", n)
	return n - 1
}

// TestRealCheckpointsInCeph: a guest counts in its memory, and writes each number to its disk. It is kept while it runs, goes back to that
// very moment, with the number and the disk that it had then, and from there to now, when that is undone.
func TestRealCheckpointsInCeph(t *testing.T) {
	c := newCephBench(t, "checkpoints in Ceph")
	b := c.bench

	// Taken back, it goes on as it was.
	undone := c.checkpoint()
	require.NoError(t, run(b, steps.UndoCheckpoint, undone), "it was never taken")
	require.NoError(t, run(b, steps.TakeCheckpoint, undone))
	require.Equal(t, [3]int{2, 1, 0}, c.there())
	c.g.Steady(t, "vdc")
	require.NoError(t, run(b, steps.UndoCheckpoint, undone))
	require.Equal(t, [3]int{}, c.there())
	c.g.Steady(t, "vdc")

	from := c.g.Counts(t, "vdc")
	p := c.checkpoint()
	taken, err := ask(b, steps.TakeCheckpoint, p)
	require.NoError(t, err)
	require.Positive(t, taken.Pause)
	require.Positive(t, taken.Memory)
	t.Logf("checkpoint: %d bytes of memory, the guest stood still for %s", taken.Memory, taken.Pause)
	then := c.sectors(p.Disks[1].Snapshot)
	require.NoError(t, run(b, steps.TakeCheckpoint, p))
	require.Equal(t, then, c.sectors(p.Disks[1].Snapshot), "once more changes nothing")
	require.GreaterOrEqual(t, then, from)
	c.g.Steady(t, "vdc")

	// Put aside, and on again.
	late := c.g.Counts(t, "vdc")
	require.Greater(t, late, then)
	require.NoError(t, run(b, steps.UndoSave, steps.GuestSave{Memory: api.NewID(), VM: c.plan()}), "it was never put aside")
	require.NoError(t, run(b, steps.UndoSave, c.save()))
	require.Equal(t, [3]int{2, 1, 0}, c.there())
	require.GreaterOrEqual(t, c.g.Counts(t, "vdc"), late)

	// Back to then, and from there to now again: nothing of now is lost.
	late = c.g.Counts(t, "vdc")
	aside, r := c.save(), c.back(p)
	require.Equal(t, [3]int{2, 1, 1}, c.there())
	now := c.sectors("")
	require.NoError(t, run(b, steps.SwitchCheckpoint, r))
	require.Less(t, c.g.Counts(t, "vdc"), late)
	require.NoError(t, run(b, steps.UndoSwitch, r))
	require.Equal(t, now, c.sectors(""))
	require.NoError(t, run(b, steps.UndoSave, aside))
	require.NoError(t, run(b, steps.UndoSwitch, r), "a lost workflow goes back once more")
	require.NoError(t, run(b, steps.UndoSave, aside))
	require.Equal(t, [3]int{2, 1, 0}, c.there())
	count := c.g.Counts(t, "vdc")
	require.GreaterOrEqual(t, count, now)

	// Back to then. The guest ends before anybody has heard of it: it does not go on from that memory with other disks than then.
	aside, r = c.save(), c.back(p)
	require.NoError(t, run(b, steps.SwitchCheckpoint, r))
	c.g.Steady(t, "vdc")
	_, err = c.guests.Stop(t.Context(), c.g.Plan.VM, true, 0, nil)
	require.NoError(t, err)
	require.Greater(t, c.sectors(""), then)
	require.NoError(t, run(b, steps.SwitchCheckpoint, r))
	first := c.g.Counts(t, "vdc")
	t.Logf("the checkpoint was taken at %d, the guest had come to %d, and goes on with %d", then, count, first)
	require.GreaterOrEqual(t, first, then)
	require.Less(t, first, count)
	for _, d := range r.Disks { // for good
		d.Volume.Layer = d.Layer
		require.NoError(t, run(b, steps.RemoveVolume, d.Volume))
	}
	require.NoError(t, run(b, steps.RemoveMemory, steps.MemoryFile{Memory: aside.Memory, Pool: c.nodes.Pool}))
	require.Equal(t, [3]int{2, 1, 0}, c.there())
	require.Equal(t, then, c.sectors(p.Disks[1].Snapshot), "what the checkpoint keeps does not change")
	c.g.Steady(t, "vdc")
	_, err = c.guests.Stop(t.Context(), c.g.Plan.VM, true, 0, nil)
	require.NoError(t, err)
	require.Less(t, c.sectors(""), count, "what was written after the checkpoint is gone")

	// It goes on from then on another node.
	there := libvirt.New(c.nodes.Options(t, 1))
	t.Cleanup(there.Close)
	require.NoError(t, c.guests.Remove(t.Context(), c.g.Plan.VM))
	other := &bench{t: t}
	var suite testsuite.WorkflowTestSuite
	other.env = suite.NewTestActivityEnvironment()
	other.env.SetTestTimeout(computetest.Patience)
	volume.Register(other.env, &activities.Host{Log: slog.New(slog.DiscardHandler)}, there, c.pool)
	r = c.back(p)
	require.NoError(t, run(other, steps.SwitchCheckpoint, r))
	phase, err := there.State(t.Context(), c.g.Plan.VM)
	require.NoError(t, err)
	require.Equal(t, api.PhaseRunning, phase)
	require.NoError(t, run(other, steps.UndoSwitch, r))
	phase, err = there.State(t.Context(), c.g.Plan.VM)
	require.NoError(t, err)
	require.Equal(t, api.PhaseStopped, phase)
	require.NoError(t, there.Remove(t.Context(), c.g.Plan.VM))

	// It is given up.
	plan := c.plan()
	require.NoError(t, run(b, steps.RemoveMemory, steps.MemoryFile{Memory: p.Checkpoint, Pool: c.nodes.Pool}))
	for _, d := range p.Disks {
		require.NoError(t, run(b, steps.DropSnapshot, steps.SnapshotDrop{Snapshot: d.Snapshot, Volume: d.Volume, VM: &plan}))
	}
	require.Equal(t, [3]int{}, c.there())
	require.Equal(t, problem.NotFound, problem.KindOf(run(b, steps.SwitchCheckpoint, r)), "its memory is gone")
}
