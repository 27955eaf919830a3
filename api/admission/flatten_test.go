package admission_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func TestAFlattenedVolumeSetsItsImageFree(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	none, err := a.DeleteImage(ctx, h, opts, "cirros")
	require.Contains(t, d.refuse(problem.InUse, none, err).Fix, "gnext vol flatten")
	none, err = a.FlattenVolume(ctx, h, opts, "data")
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "needs none")
	none, err = a.FlattenVolume(ctx, h, opts, "nothing")
	_ = d.refuse(problem.NotFound, none, err)

	d.volume("child", "net", func(r *api.VolumeCreate) { r.Image = "cirros" })
	d.takes("s1", "child")
	none, err = a.FlattenVolume(ctx, h, opts, "child")
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "snapshots")
	d.done(a.DeleteSnapshot(ctx, h, opts, "s1"))
	op := d.ask(a.FlattenVolume(ctx, h, opts, "child"))
	require.JSONEq(t, `{"image":"`+d.vol("child").Spec.Image+`"}`, string(op.Plan.Input))
	none, err = a.FlattenVolume(ctx, h, opts, "child")
	_ = d.refuse(problem.Locked, none, err)
	d.settle(op, api.OpFailed)
	require.NotEmpty(t, d.vol("child").Spec.Image, "undone")
	d.done(a.Retry(ctx, h, opts, op.ID))
	require.Empty(t, d.vol("child").Spec.Image)

	for _, name := range []string{"web1", "web2"} {
		none, err = a.DeleteImage(ctx, h, opts, "cirros")
		_ = d.refuse(problem.InUse, none, err)
		root := find[api.VM](d, opts.Project, name).Status.Volumes[0]
		d.done(a.FlattenVolume(ctx, h, opts, root))
		require.Empty(t, find[api.VM](d, opts.Project, name).Spec.Image)
		none, err = a.FlattenVolume(ctx, h, opts, root)
		require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "needs none")
	}
	d.clean()
	d.done(a.DeleteImage(ctx, h, opts, "cirros"))
	d.done(a.DeleteVolume(ctx, h, opts, "child", api.VolumeDelete{Now: true}))
	d.clean()
}

func TestARootDiskWithoutAnImageIsCopied(t *testing.T) {
	d := newDesk(t).cloud().shared()
	a, h := d.Admission, d.User
	vm := d.vm("web1", "a1", func(r *api.VMCreate) { r.Pool = "vms" })
	move := api.VMMigrate{CopyStorage: true}
	d.settle(d.ask(a.MigrateVM(ctx, h, opts, "web1", move)), api.OpFailed)
	d.done(a.FlattenVolume(ctx, h, opts, vm.Status.Volumes[0]))
	none, err := a.MigrateVM(ctx, h, opts, "web1", api.VMMigrate{})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Fix, "--copy-storage")
	d.settle(d.ask(a.MigrateVM(ctx, h, opts, "web1", move)), api.OpCancelled)
	d.clean()
}
