package computetest

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Bench is a node on which disks are changed.
type Bench struct {
	compute.Driver
	// Boot makes a guest that runs, and that writes to each disk that it gets: so that it can be seen what becomes of that. It has
	// an agent that brings its file systems to rest, if agent is true.
	Boot func(t *testing.T, agent bool) BenchGuest
	// Empty makes the first layer of a volume, and Layer one on another.
	Empty func(t *testing.T, size int64) compute.DiskSource
	Layer func(t *testing.T, below compute.DiskSource) compute.DiskSource
	// Stubborn makes a guest that lets no disk go.
	Stubborn func(t *testing.T) BenchGuest
	// Memory returns a path for the memory of a guest, and Begun waits until one is being written there, or was.
	Memory func(t *testing.T) string
	Begun  func(t *testing.T, memory string)
}

// BenchGuest is a guest of a Bench.
type BenchGuest struct {
	Plan  steps.VMPlan
	Files compute.DomainFiles
	// Sees waits until the guest sees a disk of this size under the name of a volume; 0: none.
	Sees func(t *testing.T, volume string, size int64)
	// Rate returns how many writes a second the guest does to a disk.
	Rate func(t *testing.T, device string) int
	// Steady waits until the guest has written on since now, and returns how long it had to wait for its slowest write.
	Steady func(t *testing.T, device string) time.Duration
	// Counts returns how far the guest has counted, in its memory, the writes to a disk; it is told anew each time.
	Counts func(t *testing.T, device string) int
	// Intact checks that all that the guest has written to a disk and was told to be safe is there, in a layer that nobody has open.
	Intact func(t *testing.T, device string, s compute.DiskSource)
}

// Disks is the suite that every compute.Disks passes.
func Disks(t *testing.T, b Bench) {
	t.Run("attach and detach", func(t *testing.T) { attach(t, b) })
	t.Run("of a domain that is off", func(t *testing.T) { off(t, b) })
	t.Run("held on", func(t *testing.T) { heldOn(t, b) })
	t.Run("grow", func(t *testing.T) { grow(t, b) })
	t.Run("limits bite", func(t *testing.T) { limits(t, b) })
	t.Run("snapshot and merge", func(t *testing.T) { snapshots(t, b, false) })
	t.Run("snapshot of a guest with an agent", func(t *testing.T) { snapshots(t, b, true) })
	t.Run("pull what is below", func(t *testing.T) { pulls(t, b) })
	t.Run("move to another place", func(t *testing.T) { movesDisk(t, b) })
	t.Run("root disk", func(t *testing.T) { rootLayers(t, b) })
	t.Run("rest", func(t *testing.T) { rests(t, b) })
}

func dataDisk(device string) steps.DataDisk {
	return steps.DataDisk{Volume: api.NewID(), Device: device, Pool: steps.PoolOnNode{Type: api.PoolDir, Shared: true}}
}

// give attaches a new disk to a guest.
func (b Bench) give(t *testing.T, g BenchGuest, device string) (steps.DataDisk, compute.DiskSource) {
	t.Helper()
	disk, src := dataDisk(device), b.Empty(t, 64*api.MiB)
	require.NoError(t, b.AttachDisk(t.Context(), g.Plan.VM, disk, src))
	g.Sees(t, disk.Volume, 64*api.MiB)
	return disk, src
}

func attach(t *testing.T, b Bench) {
	g := b.Boot(t, false)
	vm := g.Plan.VM
	disk, src := b.give(t, g, "vdc")
	require.NoError(t, b.AttachDisk(t.Context(), vm, disk, src), "once more is content")
	other := dataDisk("vdc")
	require.Equal(t, problem.Conflict, problem.KindOf(b.AttachDisk(t.Context(), vm, other, b.Empty(t, api.MiB))), "the device is taken")
	elsewhere := disk
	elsewhere.Device = "vdd"
	require.Equal(t, problem.Conflict, problem.KindOf(b.AttachDisk(t.Context(), vm, elsewhere, src)), "it is there already")
	bad := dataDisk("vda")
	require.Equal(t, problem.Invalid, problem.KindOf(b.AttachDisk(t.Context(), vm, bad, src)))
	require.Equal(t, problem.NotFound, problem.KindOf(b.AttachDisk(t.Context(), api.NewID(), disk, src)))
	g.Steady(t, "vdc")

	// It is there after a start, too.
	_, err := b.Stop(t.Context(), vm, true, 0, nil)
	require.NoError(t, err)
	g.Intact(t, "vdc", src)
	_, err = b.Start(t.Context(), vm)
	require.NoError(t, err)
	g.Sees(t, disk.Volume, 64*api.MiB)
	second, _ := b.give(t, g, "vdd")
	g.Steady(t, "vdc")
	for range 2 {
		require.NoError(t, b.DetachDisk(t.Context(), vm, disk.Volume))
	}
	g.Sees(t, disk.Volume, 0)
	g.Sees(t, second.Volume, 64*api.MiB)
	g.Intact(t, "vdc", src)
	require.NoError(t, b.AttachDisk(t.Context(), vm, disk, src), "and back again")
	g.Sees(t, disk.Volume, 64*api.MiB)
	require.Equal(t, problem.NotFound, problem.KindOf(b.DetachDisk(t.Context(), api.NewID(), disk.Volume)))
}

func off(t *testing.T, b Bench) {
	g := b.Boot(t, false)
	vm := g.Plan.VM
	_, err := b.Stop(t.Context(), vm, true, 0, nil)
	require.NoError(t, err)
	disk, src := dataDisk("vdc"), b.Empty(t, 64*api.MiB)
	for range 2 {
		require.NoError(t, b.AttachDisk(t.Context(), vm, disk, src))
		require.NoError(t, b.TuneDisk(t.Context(), vm, disk.Volume, api.VolumeQoS{IOPS: 1000, Bandwidth: api.MiB}))
	}
	running, err := b.ResizeDisk(t.Context(), vm, disk.Volume, api.GiB)
	require.NoError(t, err)
	require.False(t, running)
	top := b.Layer(t, src)
	done, err := b.SwitchDisk(t.Context(), vm, disk.Volume, compute.LayerSwitch{To: top, Freeze: true})
	require.NoError(t, err)
	require.Equal(t, compute.Switched{}, done)
	running, err = b.MergeDisk(t.Context(), vm, disk.Volume, compute.Merge{Top: top, Below: src}, nil)
	require.NoError(t, err)
	require.False(t, running)
	_, err = b.Start(t.Context(), vm)
	require.NoError(t, err)
	g.Sees(t, disk.Volume, 64*api.MiB)
	g.Steady(t, "vdc")
	running, err = b.PlaceDisk(t.Context(), vm, disk.Volume, src)
	require.NoError(t, err)
	require.True(t, running, "and nothing has happened")
	_, err = b.Stop(t.Context(), vm, true, 0, nil)
	require.NoError(t, err)
	g.Intact(t, "vdc", top)
	running, err = b.PlaceDisk(t.Context(), vm, disk.Volume, src)
	require.NoError(t, err)
	require.False(t, running)
	for range 2 {
		require.NoError(t, b.DetachDisk(t.Context(), vm, disk.Volume))
	}
	_, err = b.SwitchDisk(t.Context(), vm, disk.Volume, compute.LayerSwitch{To: top, Freeze: true})
	require.Equal(t, problem.NotFound, problem.KindOf(err), "%v", err)
	_, err = b.Start(t.Context(), vm)
	require.NoError(t, err)
	g.Sees(t, disk.Volume, 0)
}

func heldOn(t *testing.T, b Bench) {
	g := b.Stubborn(t)
	disk := dataDisk("vdc")
	require.NoError(t, b.AttachDisk(t.Context(), g.Plan.VM, disk, b.Empty(t, api.MiB)))
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	err := b.DetachDisk(short, g.Plan.VM, disk.Volume)
	require.Equal(t, problem.InUse, problem.KindOf(err), "%v", err)
	ctx, stop := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, stop)
	require.Equal(t, problem.Cancelled, problem.KindOf(b.DetachDisk(ctx, g.Plan.VM, disk.Volume)))
	require.NoError(t, b.AttachDisk(t.Context(), g.Plan.VM, disk, b.Empty(t, api.MiB)), "it is still there")
	_, err = b.Stop(t.Context(), g.Plan.VM, true, 0, nil)
	require.NoError(t, err)
	require.NoError(t, b.DetachDisk(t.Context(), g.Plan.VM, disk.Volume), "a guest that is off holds nothing")
}

func grow(t *testing.T, b Bench) {
	g := b.Boot(t, false)
	disk, _ := b.give(t, g, "vdc")
	for range 2 {
		running, err := b.ResizeDisk(t.Context(), g.Plan.VM, disk.Volume, 128*api.MiB)
		require.NoError(t, err)
		require.True(t, running)
	}
	g.Sees(t, disk.Volume, 128*api.MiB)
	_, err := b.ResizeDisk(t.Context(), g.Plan.VM, disk.Volume, 64*api.MiB)
	require.Equal(t, problem.Conflict, problem.KindOf(err), "%v", err)
	_, err = b.ResizeDisk(t.Context(), g.Plan.VM, api.NewID(), api.GiB)
	require.Equal(t, problem.NotFound, problem.KindOf(err), "%v", err)
}

// snapshots: the guest writes all the time, through two snapshots and the merges of both.
func snapshots(t *testing.T, b Bench, agent bool) {
	g := b.Boot(t, agent)
	vm := g.Plan.VM
	disk, first := b.give(t, g, "vdc")
	g.Steady(t, "vdc")
	middle := b.Layer(t, first)
	done, err := b.SwitchDisk(t.Context(), vm, disk.Volume, compute.LayerSwitch{To: middle, Freeze: true})
	require.NoError(t, err)
	require.True(t, done.Running)
	require.Equal(t, agent, done.Frozen)
	require.Positive(t, done.Pause)
	t.Logf("snapshot: libvirt took %s, the guest's slowest write %s", done.Pause, g.Steady(t, "vdc"))
	done, err = b.SwitchDisk(t.Context(), vm, disk.Volume, compute.LayerSwitch{To: middle, Freeze: true})
	require.NoError(t, err)
	require.True(t, done.Running, "it is there already")
	top := b.Layer(t, middle)
	_, err = b.SwitchDisk(t.Context(), vm, disk.Volume, compute.LayerSwitch{To: top})
	require.NoError(t, err)
	g.Steady(t, "vdc")

	_, err = b.MergeDisk(t.Context(), vm, disk.Volume, compute.Merge{Top: top, Below: first}, nil)
	require.Equal(t, problem.Conflict, problem.KindOf(err), "%v", err)
	running, err := b.MergeDisk(t.Context(), vm, disk.Volume, compute.Merge{Top: b.Empty(t, api.MiB), Below: b.Empty(t, api.MiB)}, nil)
	require.NoError(t, err)
	require.False(t, running, "no guest has those")
	for range 2 {
		running, err = b.MergeDisk(t.Context(), vm, disk.Volume, compute.Merge{Top: middle, Below: first}, nil)
		require.NoError(t, err)
		require.True(t, running)
	}
	g.Steady(t, "vdc")
	retired := 0
	for range 2 {
		running, err = b.MergeDisk(t.Context(), vm, disk.Volume, compute.Merge{Top: top, Below: first, Retired: func() error { retired++; return nil }}, nil)
		require.NoError(t, err)
		require.True(t, running)
	}
	require.Equal(t, 2, retired, "it is told each time, because the time before may have been cut off")
	t.Logf("merge of what is written to: the guest's slowest write %s", g.Steady(t, "vdc"))
	phase, err := b.State(t.Context(), vm)
	require.NoError(t, err)
	require.Equal(t, api.PhaseRunning, phase)
	_, err = b.Stop(t.Context(), vm, true, 0, nil)
	require.NoError(t, err)
	g.Intact(t, "vdc", first)
	_, err = b.Start(t.Context(), vm)
	require.NoError(t, err, "it is started with what is left")
	g.Sees(t, disk.Volume, 64*api.MiB)
}

// pulls: the guest writes all the time, while its disk gets all that it shows of the layer below.
func pulls(t *testing.T, b Bench) {
	g := b.Boot(t, false)
	vm := g.Plan.VM
	disk, first := b.give(t, g, "vdc")
	g.Steady(t, "vdc")
	top := b.Layer(t, first)
	_, err := b.SwitchDisk(t.Context(), vm, disk.Volume, compute.LayerSwitch{To: top})
	require.NoError(t, err)
	g.Steady(t, "vdc")
	require.NoError(t, b.StopPull(t.Context(), vm, disk.Volume), "there is none")
	for range 2 {
		running, err := b.PullDisk(t.Context(), vm, disk.Volume, func(api.Progress) {})
		require.NoError(t, err)
		require.True(t, running)
	}
	require.NoError(t, b.StopPull(t.Context(), vm, disk.Volume), "it is over")
	t.Logf("pull: the guest's slowest write %s", g.Steady(t, "vdc"))
	_, err = b.Stop(t.Context(), vm, true, 0, nil)
	require.NoError(t, err)
	_ = os.Remove(first.File) // what is real must do without
	g.Intact(t, "vdc", top)
	running, err := b.PullDisk(t.Context(), vm, disk.Volume, nil)
	require.NoError(t, err)
	require.False(t, running)
	require.NoError(t, b.StopPull(t.Context(), vm, disk.Volume))
	_, err = b.Start(t.Context(), vm)
	require.NoError(t, err)
	g.Sees(t, disk.Volume, 64*api.MiB)
	_, err = b.PullDisk(t.Context(), vm, api.NewID(), nil)
	require.Equal(t, problem.NotFound, problem.KindOf(err), "%v", err)
	_, err = b.PullDisk(t.Context(), api.NewID(), disk.Volume, nil)
	require.Equal(t, problem.NotFound, problem.KindOf(err), "%v", err)
}

func rootLayers(t *testing.T, b Bench) {
	g := b.Boot(t, false)
	vm, root := g.Plan.VM, g.Plan.Disk.Volume
	top := b.Layer(t, g.Files.Disk)
	done, err := b.SwitchDisk(t.Context(), vm, root, compute.LayerSwitch{To: top, Freeze: true})
	require.NoError(t, err)
	require.True(t, done.Running)
	_, err = b.Stop(t.Context(), vm, true, 0, nil)
	require.NoError(t, err)
	_, err = b.Start(t.Context(), vm)
	require.NoError(t, err)
	retired := false
	running, err := b.MergeDisk(t.Context(), vm, root, compute.Merge{Top: top, Below: g.Files.Disk, Retired: func() error { retired = true; return nil }}, nil)
	require.NoError(t, err)
	require.True(t, running)
	require.True(t, retired)
	_, err = b.Reboot(t.Context(), vm, true, 0, nil)
	require.NoError(t, err)
}

func rests(t *testing.T, b Bench) {
	for _, agent := range []bool{true, false} {
		g := b.Boot(t, agent)
		called := false
		_, pause, err := b.Resting(t.Context(), g.Plan.VM, func() error { called = true; return nil })
		require.NoError(t, err)
		require.True(t, called)
		require.Positive(t, pause)
		phase, err := b.State(t.Context(), g.Plan.VM)
		require.NoError(t, err)
		require.Equal(t, api.PhaseRunning, phase)
		_, _, err = b.Resting(t.Context(), g.Plan.VM, func() error { return problem.New(problem.NoCapacity, "full") })
		require.Equal(t, problem.NoCapacity, problem.KindOf(err))
		for _, freeze := range []bool{true, false} {
			done, err := b.Freezing(t.Context(), g.Plan.VM, freeze, func() error {
				phase, err = b.State(t.Context(), g.Plan.VM)
				require.NoError(t, err)
				require.Equal(t, api.PhaseRunning, phase, "it is never paused")
				return nil
			})
			require.NoError(t, err)
			require.True(t, done.Running)
			require.Positive(t, done.Pause)
			require.False(t, done.Frozen && !freeze)
		}
		_, err = b.Freezing(t.Context(), g.Plan.VM, true, func() error { return problem.New(problem.NoCapacity, "full") })
		require.Equal(t, problem.NoCapacity, problem.KindOf(err))
		phase, err = b.State(t.Context(), g.Plan.VM)
		require.NoError(t, err)
		require.Equal(t, api.PhaseRunning, phase)
		_, err = b.Stop(t.Context(), g.Plan.VM, true, 0, nil)
		require.NoError(t, err)
		rested, pause, err := b.Resting(t.Context(), g.Plan.VM, func() error { return nil })
		require.NoError(t, err)
		require.False(t, rested)
		require.Zero(t, pause)
		done, err := b.Freezing(t.Context(), g.Plan.VM, true, func() error { return nil })
		require.NoError(t, err)
		require.Equal(t, compute.Switched{}, done)
	}
	_, err := b.Freezing(t.Context(), api.NewID(), true, func() error { t.Error("called without a guest"); return nil })
	require.Equal(t, problem.NotFound, problem.KindOf(err))
	_, _, err = b.Resting(t.Context(), api.NewID(), func() error { t.Error("called without a guest"); return nil })
	require.Equal(t, problem.NotFound, problem.KindOf(err))
}

// movesDisk: the guest writes all the time, and goes on where its disk is copied to. It has a disk that is made on another, which
// the copy is not.
func movesDisk(t *testing.T, b Bench) {
	g := b.Boot(t, true)
	vm := g.Plan.VM
	disk, first := b.give(t, g, "vdc")
	g.Steady(t, "vdc")
	top := b.Layer(t, first)
	_, err := b.SwitchDisk(t.Context(), vm, disk.Volume, compute.LayerSwitch{To: top})
	require.NoError(t, err)
	to := b.Empty(t, 64*api.MiB)
	there, err := b.SettleDisk(t.Context(), vm, disk.Volume, to)
	require.NoError(t, err)
	require.False(t, there, "nothing was begun")
	told := false
	moved, err := b.MoveDisk(t.Context(), vm, disk.Volume, to, 0, func(api.Progress) { told = true })
	require.NoError(t, err)
	require.True(t, told)
	require.True(t, moved.Running && moved.There)
	require.Positive(t, moved.Pause)
	t.Logf("moved: libvirt took %s for the guest to go on, the guest's slowest write %s", moved.Pause, g.Steady(t, "vdc"))
	again, err := b.MoveDisk(t.Context(), vm, disk.Volume, to, 0, nil)
	require.NoError(t, err)
	require.Equal(t, compute.Moved{Running: true, There: true}, again)
	there, err = b.SettleDisk(t.Context(), vm, disk.Volume, to)
	require.NoError(t, err)
	require.True(t, there)
	phase, err := b.State(t.Context(), vm)
	require.NoError(t, err)
	require.Equal(t, api.PhaseRunning, phase)
	g.Steady(t, "vdc")

	_, err = b.Stop(t.Context(), vm, true, 0, nil)
	require.NoError(t, err)
	g.Intact(t, "vdc", to)
	again, err = b.MoveDisk(t.Context(), vm, disk.Volume, to, 0, nil)
	require.NoError(t, err)
	require.Equal(t, compute.Moved{There: true}, again, "it is started with it")
	there, err = b.SettleDisk(t.Context(), vm, disk.Volume, to)
	require.NoError(t, err)
	require.True(t, there)
	again, err = b.MoveDisk(t.Context(), vm, disk.Volume, top, 0, nil)
	require.NoError(t, err)
	require.Equal(t, compute.Moved{}, again)
	_, err = b.Start(t.Context(), vm)
	require.NoError(t, err)
	g.Sees(t, disk.Volume, 64*api.MiB)
	g.Steady(t, "vdc")
	movesStill(t, b, g, disk)

	_, err = b.MoveDisk(t.Context(), api.NewID(), disk.Volume, to, 0, nil)
	require.Equal(t, problem.NotFound, problem.KindOf(err), "%v", err)
	_, err = b.SettleDisk(t.Context(), vm, api.NewID(), to)
	require.Equal(t, problem.NotFound, problem.KindOf(err), "%v", err)
}
