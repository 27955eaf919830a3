package admission_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

func (d *desk) moves(volume, pool string) (*api.Operation, error) {
	return d.Admission.MigrateVolume(ctx, d.User, opts, volume, api.VolumeMigrate{Pool: pool})
}

// cephPool makes a pool of Ceph on all nodes.
func (d *desk) cephPool(name string) {
	d.Helper()
	d.done(d.Admission.CreatePool(ctx, d.User, opts, api.PoolCreate{
		Name: name, Type: api.PoolRBD, Key: "AQAAAAAAAAAAABAAYSBrZXkgb2Ygbm8gdXNlcg==",
		Source: api.PoolSource{Hosts: []string{"10.0.0.1"}, Name: name, User: "vms"},
	}))
}

func TestWhatAMoveOfAVolumeChanges(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	d.volume("born", "vms", func(r *api.VolumeCreate) { r.Image, r.Size = "cirros", 2*api.GiB })
	before := d.vol("born")
	op := d.ask(d.moves("born", "net"))
	var in api.VolumeMove
	require.NoError(t, json.Unmarshal(op.Plan.Input, &in))
	require.Equal(t, []string{before.Spec.Pool, op.ID, before.Status.Agent}, []string{in.From.Pool, in.Layer, in.Agent.ID})
	none, err := a.DeleteImage(ctx, h, opts, "cirros")
	_ = d.refuse(problem.InUse, none, err)
	d.settle(op, api.OpFailed)
	require.Equal(t, before.Spec, d.vol("born").Spec)
	require.Equal(t, before.Status, d.vol("born").Status)
	d.clean()

	op = d.ask(d.moves("born", "net"))
	none, err = a.DeletePool(ctx, h, opts, "net")
	_ = d.refuse(problem.InUse, none, err)
	none, err = a.UpdatePool(ctx, h, opts, "net", api.PoolUpdate{RemoveAgents: []string{"a2"}})
	require.Contains(t, d.refuse(problem.InUse, none, err).Why, "born")
	d.settle(op, api.OpSucceeded)
	after := d.vol("born")
	require.Equal(t, []string{find[api.Pool](d, "", "net").ID, "", op.ID, ""}, []string{after.Spec.Pool, after.Spec.Image, after.Status.Layer, after.Status.Agent})
	require.Equal(t, before.ID, after.ID)
	d.clean()

	d.takes("s1", "born") // its first layer is called otherwise than itself
	require.Equal(t, op.ID, d.snap("s1").Status.Layer)
	d.done(a.DeleteSnapshot(ctx, h, opts, "s1"))
	require.Equal(t, op.ID, d.vol("born").Status.Layer)
	op = d.ask(d.moves("born", "vms"))
	d.settle(op, api.OpSucceeded)
	require.NotEmpty(t, d.vol("born").Status.Agent)
	d.cephPool("rados")
	d.done(d.moves("born", "rados"))
	require.Empty(t, d.vol("born").Status.Layer, "devices have no layers")
	d.clean()
}

func TestAVolumeGoesWhereItsVMReachesIt(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	d.done(a.CreatePool(ctx, h, opts, api.PoolCreate{Name: "far", Type: api.PoolDir, Path: "/far", Agents: []string{"a2"}}))
	refused := func(volume, pool string, kind problem.Kind, why string) {
		t.Helper()
		none, err := d.moves(volume, pool)
		require.Contains(t, d.refuse(kind, none, err).Error(), why)
	}
	refused("data", "net", problem.Conflict, "it is there already")
	refused("data", "nowhere", problem.NotFound, "nowhere")
	refused("nothing", "net", problem.NotFound, "nothing")
	refused("here", "far", problem.Conflict, "the node that it is on does not have both pools")
	op := d.ask(d.moves("data", "far"))
	d.settle(op, api.OpSucceeded)
	require.Equal(t, find[api.Agent](d, "", "a2").ID, d.vol("data").Status.Agent)
	d.done(d.moves("data", "net"))

	d.done(a.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1"}))
	refused("data", "far", problem.Conflict, "node a1 of vm web1")
	d.takes("s1", "data")
	refused("data", "vms", problem.Conflict, "1 snapshots")
	d.done(a.DeleteSnapshot(ctx, h, opts, "s1"))
	yes := true
	d.done(a.UpdateVM(ctx, h, opts, "web1", api.VMUpdate{HA: &yes}))
	refused("data", "vms", problem.Conflict, "restarted elsewhere")
	no := false
	d.done(a.UpdateVM(ctx, h, opts, "web1", api.VMUpdate{HA: &no}))
	op = d.ask(d.moves("data", "vms"))
	none, err := a.StopVM(ctx, h, opts, "web1", api.VMStop{})
	_ = d.refuse(problem.Locked, none, err)
	d.settle(op, api.OpSucceeded)
	require.Equal(t, d.Nodes[0].ID, d.vol("data").Status.Agent)

	d.volume("ours", "net", func(r *api.VolumeCreate) { r.Shareable = true })
	d.done(a.AttachVolume(ctx, h, opts, "ours", api.VolumeAttach{VM: "web1"}))
	refused("ours", "vms", problem.Conflict, "a hypervisor does not copy those")
	d.done(a.AttachVolume(ctx, h, opts, "ours", api.VolumeAttach{VM: "web2"}))
	refused("ours", "vms", problem.Conflict, "2 VMs have it")
	d.done(a.DeleteVolume(ctx, h, opts, "here", api.VolumeDelete{}))
	refused("here", "net", problem.Conflict, "recycle bin")
	d.clean()
}

func TestTheNodeWithTheMostSpaceKeepsAVolume(t *testing.T) {
	d := disks(t)
	vms := find[api.Pool](d, "", "vms").ID
	for i, name := range []string{"a1", "a2", "a3"} {
		ag := find[api.Agent](d, "", name)
		ag.Status.Inventory.Pools = []api.PoolUsage{{Pool: vms, Capacity: api.TiB, Free: int64(i) * api.GiB}}
		d.write(func(x *store.Draft) { x.Update(ag) })
	}
	op := d.ask(d.moves("data", "vms"))
	d.settle(op, api.OpFailed)
	var in api.VolumeMove
	require.NoError(t, json.Unmarshal(op.Plan.Input, &in))
	require.Equal(t, "a3", in.Agent.Name)
	op = d.ask(d.Admission.MigrateVolume(ctx, d.User, opts, "data", api.VolumeMigrate{Pool: "vms", Node: "a1", Bandwidth: 5 * api.MiB}))
	require.NoError(t, json.Unmarshal(op.Plan.Input, &in))
	require.EqualValues(t, 5*api.MiB, in.Bandwidth)
	d.settle(op, api.OpSucceeded)
	require.Equal(t, find[api.Agent](d, "", "a1").ID, d.vol("data").Status.Agent)
	none, err := d.Admission.MigrateVolume(ctx, d.User, opts, "data", api.VolumeMigrate{Pool: "net", Node: "nobody"})
	_ = d.refuse(problem.NotFound, none, err)
	none, err = d.Admission.MigrateVolume(ctx, d.User, opts, "data", api.VolumeMigrate{})
	_ = d.refuse(problem.Invalid, none, err)
	none, err = d.Admission.MigrateVolume(ctx, d.User, opts, "data", api.VolumeMigrate{Pool: "net", Bandwidth: 1})
	_ = d.refuse(problem.Invalid, none, err)
	d.clean()
}

func TestWhatIsExportedStaysMeanwhile(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	export := func(volume string, e api.VolumeExport) (*api.Operation, error) {
		return a.ExportVolume(ctx, h, opts, volume, e)
	}
	d.done(a.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1"}))
	none, err := export("data", api.VolumeExport{})
	p := d.refuse(problem.Conflict, none, err)
	require.Contains(t, p.Why, "vm web1 has it, and is running")
	require.Contains(t, p.Fix, "gnext snap add")
	d.takes("s1", "data")
	op := d.ask(export("data", api.VolumeExport{Format: api.FormatRaw, Snapshot: "s1"}))
	var in api.VolumeExportWork
	require.NoError(t, json.Unmarshal(op.Plan.Input, &in))
	require.Equal(t, []string{api.FormatRaw, op.ID, d.vol("data").ID, d.snap("s1").ID}, []string{in.Format, in.Image, in.From.Volume, in.From.Snapshot})
	require.Equal(t, api.RefTo(d.vol("data")), op.Target)
	none, err = a.DeleteSnapshot(ctx, h, opts, "s1")
	_ = d.refuse(problem.Locked, none, err)
	d.settle(op, api.OpFailed)
	none, err = export("here", api.VolumeExport{Snapshot: "s1"})
	require.Contains(t, d.refuse(problem.Invalid, none, err).Why, "is of volume data")
	none, err = export("here", api.VolumeExport{Format: "pdf"})
	_ = d.refuse(problem.Invalid, none, err)
	op = d.ask(export("here", api.VolumeExport{}))
	require.NoError(t, json.Unmarshal(op.Plan.Input, &in))
	require.Equal(t, []string{api.FormatQCOW2, d.Nodes[0].ID}, []string{in.Format, in.Agent.ID})
	none, err = a.AttachVolume(ctx, h, opts, "here", api.VolumeAttach{VM: "web1"})
	_ = d.refuse(problem.Locked, none, err)
	d.settle(op, api.OpSucceeded)
	d.done(a.AttachVolume(ctx, h, opts, "here", api.VolumeAttach{VM: "web1"}))

	d.cephPool("rados")
	d.volume("block", "rados", nil)
	d.done(export("block", api.VolumeExport{}))
	d.settle(d.ask(a.CreateImage(ctx, h, opts, api.ImageCreate{Name: "shot", Volume: "block"})), api.OpCancelled)
	d.clean()
}

func TestARootDiskTakesItsVMAlong(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	vm := func() *api.VM { return find[api.VM](d, opts.Project, "web1") }
	root := vm().Status.Volumes[0]
	before := vm()
	op := d.ask(d.moves(root, "vms"))
	none, err := a.StopVM(ctx, h, opts, "web1", api.VMStop{})
	_ = d.refuse(problem.Locked, none, err)
	d.settle(op, api.OpFailed)
	require.Equal(t, before.Spec, vm().Spec)
	d.done(d.moves(root, "vms"))
	require.Equal(t, []string{find[api.Pool](d, "", "vms").ID, ""}, []string{vm().Spec.Pool, vm().Spec.Image})
	d.settle(d.ask(a.MigrateVM(ctx, h, opts, "web1", api.VMMigrate{CopyStorage: true})), api.OpCancelled)
	d.done(d.moves(root, "net"))
	d.settle(d.ask(a.MigrateVM(ctx, h, opts, "web1", api.VMMigrate{})), api.OpCancelled)
	d.clean()
}
