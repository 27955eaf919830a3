package admission_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// away has a pool and its volumes be out of reach, as the fleet says it.
func (d *desk) away(pool, why string) {
	d.Helper()
	p := find[api.Pool](d, "", pool)
	p.SetPhase(api.PhaseUnavailable, why)
	d.write(func(x *store.Draft) { x.Update(p) })
	volumes, err := store.List[api.Volume](ctx, d.KV, d.User, opts.Project)
	require.NoError(d, err)
	for _, v := range volumes {
		if v.Spec.Pool == p.ID {
			v.SetPhase(api.PhaseUnavailable, "pool "+pool+" is unavailable: "+why)
			d.write(func(x *store.Draft) { x.Update(v) })
		}
	}
}

func TestWhatIsInAPoolThatIsAwayIsUnavailable(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	d.takes("s1", "data")
	d.away("net", "a1: its server does not answer")
	name := "other"
	for what, ask := range map[string]func() (*api.Operation, error){
		"add": func() (*api.Operation, error) {
			return a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "x", Size: api.GiB, Pool: "net"})
		},
		"copy": func() (*api.Operation, error) {
			return a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "x", Volume: "data"})
		},
		"trial": func() (*api.Operation, error) {
			return a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "x", Snapshot: "s1"})
		},
		"attach": func() (*api.Operation, error) {
			return a.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1"})
		},
		"resize": func() (*api.Operation, error) {
			return a.ResizeVolume(ctx, h, opts, "data", api.VolumeResize{Size: 2 * api.GiB})
		},
		"update": func() (*api.Operation, error) {
			return a.UpdateVolume(ctx, h, opts, "data", api.VolumeUpdate{Name: &name})
		},
		"snap": func() (*api.Operation, error) {
			return a.CreateSnapshot(ctx, h, opts, api.SnapshotCreate{Name: "s2", Volume: "data"})
		},
		"switch": func() (*api.Operation, error) { return a.RevertSnapshot(ctx, h, opts, "s1", api.SnapshotRevert{}) },
		"drop":   func() (*api.Operation, error) { return a.DeleteSnapshot(ctx, h, opts, "s1") },
		"export": func() (*api.Operation, error) { return a.ExportVolume(ctx, h, opts, "data", api.VolumeExport{}) },
		"migrate": func() (*api.Operation, error) {
			return a.MigrateVolume(ctx, h, opts, "here", api.VolumeMigrate{Pool: "net"})
		},
		"vm": func() (*api.Operation, error) {
			r := vmRequest("web3")
			r.Pool = "net"
			return a.CreateVM(ctx, h, opts, r)
		},
	} {
		op, err := ask()
		p := d.refuse(problem.Unavailable, op, err)
		require.Contains(t, p.Why, "its server does not answer", what)
		require.Contains(t, p.Fix, "gnext pool get", what)
	}
	d.away("vms", "a1: gone")
	op, err := a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "x", Size: api.GiB})
	p := d.refuse(problem.Unavailable, op, err)
	require.Contains(t, p.Why, "pool vms is unavailable: a1: gone")
}

func TestADiskOfAVMThatIsHalted(t *testing.T) {
	d := disks(t)
	vm := d.web1()
	vm.SetPhase(api.PhasePaused, "no space left")
	d.write(func(x *store.Draft) { x.Update(vm) })
	op, err := d.Admission.AttachVolume(ctx, d.User, opts, "data", api.VolumeAttach{VM: "web1"})
	p := d.refuse(problem.Conflict, op, err)
	require.Equal(t, "vm web1 is paused: no space left", p.Why)
	require.Contains(t, p.Fix, "gnext vm start web1")
	require.Contains(t, p.Fix, "gnext vm poweroff web1")

	vm = d.web1()
	vm.SetPhase(api.PhaseUnknown, "")
	d.write(func(x *store.Draft) { x.Update(vm) })
	op, err = d.Admission.AttachVolume(ctx, d.User, opts, "data", api.VolumeAttach{VM: "web1"})
	require.Contains(t, d.refuse(problem.Unavailable, op, err).Fix, "gnext host get")
}

func TestANameInTheRecycleBin(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	add := func() *problem.Problem {
		op, err := a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "data", Size: api.GiB, Pool: "net"})
		return d.refuse(problem.Conflict, op, err)
	}
	require.Equal(t, "choose another name", add().Fix)
	d.takes("s1", "data")
	d.done(a.DeleteVolume(ctx, h, opts, "data", api.VolumeDelete{Snapshots: true}))

	p := add()
	require.Equal(t, "the volume of that name is in the recycle bin", p.Why)
	require.Contains(t, p.Fix, "gnext vol restore data")
	require.Contains(t, p.Fix, "gnext vol del data --now")
	name := "data"
	op, err := a.UpdateVolume(ctx, h, opts, "here", api.VolumeUpdate{Name: &name})
	require.Contains(t, d.refuse(problem.Conflict, op, err).Why, "recycle bin")
	op, err = a.CreateSnapshot(ctx, h, opts, api.SnapshotCreate{Name: "s1", Volume: "here"})
	require.Equal(t, "the snapshot of that name is in the recycle bin with its volume data", d.refuse(problem.Conflict, op, err).Why)
}
