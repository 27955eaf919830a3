package volume_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/volume"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// bench is a node of fakes with a volume, and perhaps a VM that has it.
type bench struct {
	t     *testing.T
	env   *testsuite.TestActivityEnvironment
	guest *compute.Fake
	pool  *storage.Fake
	v     steps.VolumePlan
	vm    *steps.VMPlan
	seq   int
}

type none struct{}

func (none) Seed(context.Context, string) (api.Seed, error) { return api.Seed{}, nil }
func (none) OpenImage(context.Context, string) (io.ReadCloser, int64, error) {
	return nil, 0, errors.New("there are no images")
}

// newBench: running, stopped, or without a VM (empty).
func newBench(t *testing.T, phase api.Phase) *bench {
	return newBenchOn(t, phase, steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: "/pool"})
}

// newBenchOn is newBench with another pool.
func newBenchOn(t *testing.T, phase api.Phase, pool steps.PoolOnNode) *bench {
	b := &bench{t: t, guest: &compute.Fake{}, pool: &storage.Fake{}}
	b.guest.Backing = b.pool
	var suite testsuite.WorkflowTestSuite
	b.env = suite.NewTestActivityEnvironment()
	host := &activities.Host{Log: slog.New(slog.DiscardHandler)}
	storage.RegisterNode(b.env, host, b.pool, none{}, nil)
	compute.Register(b.env, host, b.guest, b.pool)
	volume.Register(b.env, host, b.guest, b.pool)
	b.v = steps.VolumePlan{Volume: api.NewID(), Name: "data", Size: api.GiB, Pool: pool}
	_, err := b.pool.Prepare(t.Context(), b.v.Pool)
	require.NoError(t, err)
	require.NoError(t, run(b, steps.MakeVolume, b.v))
	b.write("one ")
	if phase == "" {
		return b
	}
	b.vm = &steps.VMPlan{VM: api.NewID(), Name: "web", Disk: steps.DiskPlan{
		Volume: api.NewID(), Pool: b.v.Pool.Pool, PoolPath: b.v.Pool.Path, Type: b.v.Pool.Type, Source: b.v.Pool.Source, Shared: b.v.Pool.Shared,
	}}
	require.NoError(t, run(b, steps.MakeVolume, steps.VolumePlan{Volume: b.vm.Disk.Volume, Name: "root", Size: api.GiB, Pool: pool}))
	require.NoError(t, run(b, steps.DefineDomain, *b.vm))
	require.NoError(t, run(b, steps.AttachDisk, steps.DiskChange{Plan: *b.vm, Disk: b.disk()}))
	if phase == api.PhaseRunning {
		_, err := b.guest.Start(t.Context(), b.vm.VM)
		require.NoError(t, err)
	}
	return b
}

func (b *bench) disk() steps.DataDisk {
	return steps.DataDisk{Volume: b.v.Volume, Pool: b.v.Pool, Layer: b.v.Layer, Device: "vdc"}
}

// run runs a step twice: that must be as good as once.
func run[In, Out any](b *bench, step steps.Step[In, Out], in In) error {
	b.t.Helper()
	_, err := ask(b, step, in)
	if _, again := ask(b, step, in); (again == nil) != (err == nil) {
		b.t.Fatalf("%s: once %v, twice %v", step.Name, err, again)
	}
	return err
}

func ask[In, Out any](b *bench, step steps.Step[In, Out], in In) (out Out, err error) {
	b.seq++
	v, err := b.env.ExecuteActivity(step.Name, steps.Envelope[In]{Token: steps.Token{Operation: "op", Step: step.Name, Seq: b.seq}, In: in})
	if err != nil {
		return out, steps.FromActivity(step.Name, "", err)
	}
	return out, v.Get(&out)
}

func (b *bench) write(text string) { require.NoError(b.t, b.pool.Write(b.v, text)) }

// shows checks what the volume shows, and that the VM has the layer that is written to.
func (b *bench) shows(want string) {
	b.t.Helper()
	got, _, err := b.pool.Shows(b.v)
	require.NoError(b.t, err)
	require.Equal(b.t, want, got)
	if b.vm == nil {
		return
	}
	source, err := b.pool.LocateVolume(b.v)
	require.NoError(b.t, err)
	require.Equal(b.t, source, b.guest.Disks(b.vm.VM)[1].Source)
}

func (b *bench) files() int {
	list, err := b.pool.List(b.t.Context(), b.v.Pool)
	require.NoError(b.t, err)
	return len(list)
}

// snap takes a snapshot, after which the volume is written to another layer, and returns the plan of it.
func (b *bench) snap() steps.SnapshotPlan {
	b.t.Helper()
	s := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: b.v, VM: b.vm, Layer: api.NewID(), Freeze: true}
	taken, err := ask(b, steps.TakeSnapshot, s)
	require.NoError(b.t, err)
	if b.vm != nil {
		phase, err := b.guest.State(b.t.Context(), b.vm.VM)
		require.NoError(b.t, err)
		require.Equal(b.t, phase == api.PhaseRunning, taken.Frozen)
		require.Equal(b.t, phase == api.PhaseRunning, taken.Pause > 0)
	}
	_, err = ask(b, steps.TakeSnapshot, s)
	require.NoError(b.t, err)
	b.v.Layer = s.Layer
	return s
}

func phases(t *testing.T, do func(t *testing.T, b *bench)) {
	for _, phase := range []api.Phase{api.PhaseRunning, api.PhaseStopped, ""} {
		t.Run("vm "+string(phase), func(t *testing.T) { do(t, newBench(t, phase)) })
	}
}

func TestSnapshotUndone(t *testing.T) {
	phases(t, func(t *testing.T, b *bench) {
		s := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: b.v, VM: b.vm, Layer: api.NewID()}
		require.NoError(t, run(b, steps.UndoSnapshot, s), "it was never taken")
		b.shows("one ")
		require.NoError(t, b.pool.AddSnapshot(t.Context(), s))
		require.NoError(t, run(b, steps.UndoSnapshot, s), "half of it was done")
		b.shows("one ")
		files := b.files()
		s = b.snap()
		b.write("two ")
		b.shows("one two ")
		require.NoError(t, run(b, steps.UndoSnapshot, s))
		b.v = s.Volume
		b.shows("one two ")
		require.Equal(t, files, b.files())
	})
}

func TestSnapshotsDropped(t *testing.T) {
	phases(t, func(t *testing.T, b *bench) {
		files := b.files()
		first := b.snap()
		b.write("two ")
		second := b.snap()
		b.write("three ")
		third := b.snap()
		b.write("four ")
		// In the middle, then the oldest, then the newest, which is under the one that is written to.
		require.NoError(t, run(b, steps.DropSnapshot, steps.SnapshotDrop{Volume: b.v, VM: b.vm, Frozen: second.Volume.Layer, Child: second.Layer}))
		b.shows("one two three four ")
		require.Equal(t, files+2, b.files())
		require.NoError(t, run(b, steps.DropSnapshot, steps.SnapshotDrop{Volume: b.v, VM: b.vm, Frozen: first.Volume.Layer, Child: second.Volume.Layer}))
		b.shows("one two three four ")
		require.NoError(t, run(b, steps.DropSnapshot, steps.SnapshotDrop{Volume: b.v, VM: b.vm, Frozen: first.Volume.Layer, Child: third.Layer}))
		b.v = first.Volume
		b.shows("one two three four ")
		require.Equal(t, files, b.files())
	})
}

func TestRevert(t *testing.T) {
	phases(t, func(t *testing.T, b *bench) {
		s := b.snap()
		b.write("two ")
		r := steps.VolumeRevert{Snapshot: s.Snapshot, Volume: b.v, VM: b.vm, Frozen: s.Volume.Layer, Layer: api.NewID()}
		require.NoError(t, run(b, steps.UndoRevert, r), "it was never done")
		b.shows("one two ")
		files := b.files()
		err := run(b, steps.RevertVolume, r)
		if running := b.vm != nil && b.guest.Boots(b.vm.VM) > 0; running {
			require.Equal(t, problem.Conflict, problem.KindOf(err), "%v", err)
			require.NoError(t, run(b, steps.UndoRevert, r))
			b.shows("one two ")
			require.Equal(t, files, b.files())
			return
		}
		require.NoError(t, err)
		before := b.v
		b.v.Layer = r.Layer
		b.shows("one ")
		b.write("three ")
		b.v = before
		require.NoError(t, run(b, steps.UndoRevert, r))
		b.shows("one two ")

		require.NoError(t, run(b, steps.RevertVolume, r))
		b.v.Layer = r.Layer
		b.write("four ")
		drop := steps.SnapshotDrop{Volume: b.v, VM: b.vm, Frozen: s.Volume.Layer, Child: r.Layer}
		require.Equal(t, problem.InUse, problem.KindOf(run(b, steps.DropSnapshot, drop)), "the layer before is made on it, too")
		require.NoError(t, run(b, steps.RemoveVolume, before))
		b.shows("one four ")
		require.NoError(t, run(b, steps.DropSnapshot, drop))
		b.v.Layer = ""
		b.shows("one four ")
	})
}

func TestFlatten(t *testing.T) {
	phases(t, func(t *testing.T, b *bench) {
		f := steps.Flatten{Volume: b.v, VM: b.vm}
		got, err := ask(b, steps.StopFlatten, f)
		require.NoError(t, err)
		require.True(t, got.Alone, "it was made of nothing")
		require.NoError(t, run(b, steps.FlattenVolume, f))
		s := b.snap()
		f.Volume = b.v
		require.Equal(t, problem.Conflict, problem.KindOf(run(b, steps.FlattenVolume, f)), "it is a chain")
		b.write("two ")
		b.shows("one two ")
		require.NoError(t, run(b, steps.UndoSnapshot, s))
		f.Volume.Volume = api.NewID()
		require.Equal(t, problem.NotFound, problem.KindOf(run(b, steps.FlattenVolume, f)))
		require.Equal(t, problem.NotFound, problem.KindOf(run(b, steps.StopFlatten, f)))
	})
}

func TestResizeAndDisks(t *testing.T) {
	phases(t, func(t *testing.T, b *bench) {
		b.v.Size *= 2
		require.NoError(t, run(b, steps.ResizeVolume, steps.Resize{Volume: b.v, VM: b.vm}))
		_, size, err := b.pool.Shows(b.v)
		require.NoError(t, err)
		require.Equal(t, b.v.Size, size)
		small := b.v
		small.Size /= 2
		require.Equal(t, problem.Conflict, problem.KindOf(run(b, steps.ResizeVolume, steps.Resize{Volume: small, VM: b.vm})))
		if b.vm == nil {
			return
		}
		change := steps.DiskChange{Plan: *b.vm, Disk: b.disk()}
		change.Disk.QoS.IOPS = 100
		require.NoError(t, run(b, steps.TuneDisk, change))
		require.EqualValues(t, 100, b.guest.Disks(b.vm.VM)[1].QoS.IOPS)
		require.NoError(t, run(b, steps.DetachDisk, change))
		require.Len(t, b.guest.Disks(b.vm.VM), 1)
		require.NoError(t, b.guest.Remove(t.Context(), b.vm.VM))
		require.NoError(t, run(b, steps.DetachDisk, change), "what is not defined has no disk")
		require.NoError(t, run(b, steps.AttachDisk, change))
		require.Len(t, b.guest.Disks(b.vm.VM), 2, "it is defined again, with the disk")
	})
}

// TestAVolumeGoesToAnotherPool: once it is there it stays there, whoever asks again, and until then it is where it was.
func TestAVolumeGoesToAnotherPool(t *testing.T) {
	phases(t, func(t *testing.T, b *bench) {
		there := b.v
		there.Layer, there.Pool = api.NewID(), steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: "/other"}
		_, err := b.pool.Prepare(t.Context(), there.Pool)
		require.NoError(t, err)
		move := steps.VolumeCopy{From: b.v, To: there, VM: b.vm}
		settled, err := ask(b, steps.SettleVolumeCopy, move)
		require.NoError(t, err)
		require.False(t, settled.Moved)
		require.NoError(t, run(b, steps.MakeVolume, there))
		settled, err = ask(b, steps.SettleVolumeCopy, move)
		require.NoError(t, err)
		require.False(t, settled.Moved)
		b.shows("one ")
		copied, err := ask(b, steps.CopyVolume, move)
		require.NoError(t, err)
		running := b.vm != nil && b.guest.Boots(b.vm.VM) > 0
		require.Equal(t, running, copied.Live)
		require.Equal(t, running, copied.Pause > 0)
		require.Positive(t, copied.Took)
		b.v = there
		b.shows("one ")
		if b.vm != nil {
			b.write("two ")
		}
		_, err = ask(b, steps.CopyVolume, move)
		require.NoError(t, err)
		settled, err = ask(b, steps.SettleVolumeCopy, move)
		require.NoError(t, err)
		require.Equal(t, b.vm != nil, settled.Moved)
		require.NoError(t, run(b, steps.RemoveVolume, move.From))
		if b.vm != nil {
			b.shows("one two ")
		} else {
			b.shows("one ")
		}
	})
}
