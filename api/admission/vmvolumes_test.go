package admission_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// TestAVMIsMadeWithVolumes: they come with it, go with it when it is not made after all, and stay when it is deleted.
func TestAVMIsMadeWithVolumes(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	r := vmRequest("db")
	r.Pool = "vms"
	r.Volumes = []api.VMVolume{{Size: api.GiB}, {Name: "wal", Size: 2 * api.GiB, Pool: "net"}}
	op := d.ask(a.CreateVM(ctx, h, opts, r))
	vm := find[api.VM](d, opts.Project, "db")
	require.Len(t, vm.Status.Volumes, 3)
	first, wal := find[api.Volume](d, opts.Project, vm.Status.Volumes[1]), d.vol("wal")
	require.Regexp(t, `^db-vdc-[0-9a-f]{8}$`, first.Name)
	require.Equal(t, vm.Status.Volumes[2], wal.ID)
	require.Equal(t, []api.Attachment{{VM: vm.ID, Device: "vdc"}}, first.Status.Attachments)
	require.Equal(t, []api.Attachment{{VM: vm.ID, Device: "vdd"}}, wal.Status.Attachments)
	require.Equal(t, vm.Spec.Pool, first.Spec.Pool, "that of the root disk")
	require.Equal(t, find[api.Pool](d, "", "net").ID, wal.Spec.Pool)
	require.Equal(t, []api.Phase{api.PhaseCreating, api.PhaseCreating}, []api.Phase{first.Status.Phase, wal.Status.Phase})
	require.True(t, d.hasClaim(store.QuotaClaim(opts.Project, wal.ID)))

	d.settle(op, api.OpFailed)
	require.False(t, d.hasClaim(store.QuotaClaim(opts.Project, wal.ID)))
	_, err := store.Find[api.Volume](ctx, d.KV, h, opts.Project, "wal")
	require.Equal(t, problem.NotFound, problem.KindOf(err), "%v", err)

	d.done(a.CreateVM(ctx, h, opts, r))
	require.Equal(t, api.PhaseReady, d.vol("wal").Status.Phase)
	none, err := a.DeleteVolume(ctx, h, opts, "wal", api.VolumeDelete{})
	_ = d.refuse(problem.InUse, none, err)
	d.done(a.DeleteVM(ctx, h, opts, "db"))
	require.Equal(t, api.PhaseReady, d.vol("wal").Status.Phase)
	require.Empty(t, d.vol("wal").Status.Attachments)

	// What cannot be.
	r.Name = "other"
	none, err = a.CreateVM(ctx, h, opts, r)
	require.Contains(t, d.refuse(problem.Conflict, none, err).What, "wal", "the name is taken")
	r.HA, r.Pool, r.Volumes[1] = true, "net", api.VMVolume{Size: api.GiB, Pool: "vms"}
	none, err = a.CreateVM(ctx, h, opts, r)
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "pool vms, which is not shared")
	r.Volumes[1].Pool = "none"
	none, err = a.CreateVM(ctx, h, opts, r)
	_ = d.refuse(problem.NotFound, none, err)
	r.Volumes = []api.VMVolume{{Name: "Bad_", Size: 7, Pool: "_"}}
	none, err = a.CreateVM(ctx, h, opts, r)
	var paths []string
	for _, f := range d.refuse(problem.Invalid, none, err).Fields {
		paths = append(paths, f.Path)
	}
	require.Equal(t, []string{"volumes[0].name", "volumes[0].size", "volumes[0].pool"}, paths)
	r.Volumes = make([]api.VMVolume, api.MaxVolumes+1)
	none, err = a.CreateVM(ctx, h, opts, r)
	require.Equal(t, "volumes", d.refuse(problem.Invalid, none, err).Fields[0].Path)
}

// TestVolumesOfAVMCountTogetherInTheQuota: no volume alone would be too much.
func TestVolumesOfAVMCountTogetherInTheQuota(t *testing.T) {
	d := disks(t)
	project := find[api.Project](d, "", api.DefaultProject)
	project.Spec.Disk = 100 * api.GiB
	d.write(func(x *store.Draft) { x.Update(project) })
	r := vmRequest("db")
	r.Pool = "net"
	for range 3 {
		r.Volumes = append(r.Volumes, api.VMVolume{Size: 40 * api.GiB})
	}
	none, err := d.Admission.CreateVM(ctx, d.User, opts, r)
	require.Contains(t, d.refuse(problem.Quota, none, err).What, "disk")
	r.Volumes = r.Volumes[:2]
	d.ask(d.Admission.CreateVM(ctx, d.User, opts, r))
	none, err = d.Admission.CreateVolume(ctx, d.User, opts, api.VolumeCreate{Name: "more", Size: 40 * api.GiB, Pool: "net"})
	_ = d.refuse(problem.Quota, none, err)
}
