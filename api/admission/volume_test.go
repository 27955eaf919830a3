package admission_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// disks is a desk with the VMs web1 and web2 on a1, a pool "net" that all nodes share, and the volumes "data" in it and "here"
// on a1.
func disks(t *testing.T) *desk {
	d := newDesk(t).cloud()
	a, h := d.Admission, d.User
	d.done(a.CreatePool(ctx, h, opts, api.PoolCreate{Name: "net", Type: api.PoolDir, Path: "/net", Shared: true}))
	for _, name := range []string{"web1", "web2"} {
		r := vmRequest(name)
		r.Pool = "net"
		d.done(a.CreateVM(ctx, h, opts, r))
		vm := find[api.VM](d, opts.Project, name)
		vm.Status.Agent, vm.Status.AgentName = d.Nodes[0].ID, d.Nodes[0].Name
		d.write(func(x *store.Draft) { x.Update(vm); x.Claim(store.NodeClaim(vm.Status.Agent, vm.ID), "{}") })
	}
	d.volume("data", "net", nil)
	d.volume("here", "vms", nil)
	return d
}

func (d *desk) write(change func(*store.Draft)) {
	d.Helper()
	draft := store.NewDraft(d.User)
	change(draft)
	_, err := draft.Commit(ctx, d.KV)
	require.NoError(d, err)
}

// volume makes a volume, on a1 if its pool is not shared.
func (d *desk) volume(name, pool string, change func(*api.VolumeCreate)) {
	d.Helper()
	req := api.VolumeCreate{Name: name, Size: api.GiB, Pool: pool}
	if change != nil {
		change(&req)
	}
	d.done(d.Admission.CreateVolume(ctx, d.User, opts, req))
	v := find[api.Volume](d, opts.Project, name)
	if p := find[api.Pool](d, "", v.Spec.Pool); !p.Spec.Shared {
		v.Status.Agent = d.Nodes[0].ID
		d.write(func(x *store.Draft) { x.Update(v) })
	}
}

func (d *desk) vol(name string) *api.Volume { return find[api.Volume](d, opts.Project, name) }
func (d *desk) snap(name string) *api.Snapshot {
	return find[api.Snapshot](d, opts.Project, name)
}

func (d *desk) takes(name, volume string) *api.Operation {
	d.Helper()
	op := d.ask(d.Admission.CreateSnapshot(ctx, d.User, opts, api.SnapshotCreate{Name: name, Volume: volume}))
	d.settle(op, api.OpSucceeded)
	return op
}

func TestAllThatIsWrongWithAVolumeIsSaidAtOnce(t *testing.T) {
	d := newDesk(t)
	none, err := d.Admission.CreateVolume(ctx, d.User, opts, api.VolumeCreate{
		Name: "Bad_", Size: 7, Image: "a", Volume: "b", Node: "x", VM: "y", QoS: api.VolumeQoS{IOPS: -1, BandwidthBurst: 5},
	})
	p := d.refuse(problem.Invalid, none, err)
	var paths []string
	for _, f := range p.Fields {
		paths = append(paths, f.Path)
	}
	require.ElementsMatch(t, []string{"name", "volume", "size", "node", "qos.iops", "qos.bandwidthBurst"}, paths)
	for _, err := range []error{
		(&api.VolumeCreate{Name: "x", Image: "a"}).Validate(), (&api.VolumeUpdate{}).Validate(), (&api.VolumeDetach{}).Validate(), (&api.SnapshotRevert{}).Validate(),
	} {
		require.NoError(t, err)
	}
	require.Error(t, (&api.SnapshotRevert{Force: true}).Validate())
	require.Error(t, (&api.VolumeResize{}).Validate())
}

func TestWhatAVolumeIsMadeFromStaysMeanwhile(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	d.takes("s1", "data")
	for name, req := range map[string]api.VolumeCreate{
		"too small":    {Name: "x", Size: api.MiB, Snapshot: "s1"},
		"another pool": {Name: "x", Snapshot: "s1", Pool: "vms"},
	} {
		none, err := a.CreateVolume(ctx, h, opts, req)
		require.Error(t, err, name)
		require.Nil(t, none)
		if name == "too small" {
			require.Equal(t, "a volume of 1M is too small", problem.From(err).What)
			require.Contains(t, problem.From(err).Why, "1G")
		}
	}
	op := d.ask(a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "copy", Snapshot: "s1"}))
	var in api.VolumeMake
	require.NoError(t, json.Unmarshal(op.Plan.Input, &in))
	require.Equal(t, api.VolumeOrigin{Volume: d.vol("data").ID, Snapshot: d.snap("s1").ID}, *in.From, "the first layer has no name of its own")
	require.Equal(t, api.GiB, d.vol("copy").Spec.Size)
	none, err := a.DeleteSnapshot(ctx, h, opts, "s1")
	_ = d.refuse(problem.Locked, none, err)
	d.settle(op, api.OpSucceeded)
	d.done(a.DeleteSnapshot(ctx, h, opts, "s1")) // the copy does not need it

	d.done(a.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1"}))
	none, err = a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "other", Volume: "data"})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "web1")
	d.done(a.StopVM(ctx, h, opts, "web1", api.VMStop{}))
	op = d.ask(a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "other", Volume: "data"}))
	none, err = a.StartVM(ctx, h, opts, "web1")
	_ = d.refuse(problem.Locked, none, err)
	d.settle(op, api.OpFailed)
	d.clean()
}

func TestWhereAVolumeIsMadeAndAttached(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	for name, c := range map[string]struct {
		req  api.VolumeCreate
		node string
	}{
		"anywhere":  {api.VolumeCreate{Name: "v1", Size: api.GiB, Pool: "vms"}, ""},
		"on a node": {api.VolumeCreate{Name: "v2", Size: api.GiB, Pool: "vms", Node: "a2"}, d.Nodes[1].ID},
		"for a vm":  {api.VolumeCreate{Name: "v3", Size: api.GiB, Pool: "vms", VM: "web1"}, d.Nodes[0].ID},
		"shared":    {api.VolumeCreate{Name: "v4", Size: api.GiB, Pool: "net", VM: "web1"}, ""},
		"a copy":    {api.VolumeCreate{Name: "v5", Volume: "here"}, d.Nodes[0].ID},
	} {
		op := d.ask(a.CreateVolume(ctx, h, opts, c.req))
		var in api.VolumeMake
		require.NoError(t, json.Unmarshal(op.Plan.Input, &in))
		require.Equal(t, c.node, in.Node, name)
		d.settle(op, api.OpFailed)
	}
	none, err := a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "copy", Volume: "here", Node: "a2"})
	_ = d.refuse(problem.Conflict, none, err)
	none, err = a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "v6", Size: api.GiB})
	p := d.refuse(problem.Invalid, none, err)
	require.Contains(t, p.Why, "net, vms")
	require.Contains(t, p.Fix, "--pool")
	op := d.ask(a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "v6", Size: api.GiB, VM: "web1"}))
	require.Equal(t, find[api.Pool](d, "", "net").ID, d.vol("v6").Spec.Pool, "where the root disk of the VM is")
	d.settle(op, api.OpFailed)
	d.volume("ours", "net", func(r *api.VolumeCreate) { r.Shareable = true })
	none, err = a.CreateSnapshot(ctx, h, opts, api.SnapshotCreate{Name: "s1", Volume: "ours"})
	_ = d.refuse(problem.Unsupported, none, err)
	off, on := false, true
	none, err = a.UpdateVolume(ctx, h, opts, "ours", api.VolumeUpdate{Shareable: &off})
	_ = d.refuse(problem.Unsupported, none, err)
	d.done(a.UpdateVolume(ctx, h, opts, "ours", api.VolumeUpdate{Shareable: &on}))
	for _, vm := range []string{"web1", "web2"} {
		d.done(a.AttachVolume(ctx, h, opts, "ours", api.VolumeAttach{VM: vm}))
	}

	away := d.vol("here")
	away.Status.Agent = d.Nodes[1].ID
	d.write(func(x *store.Draft) { x.Update(away) })
	none, err = a.AttachVolume(ctx, h, opts, "here", api.VolumeAttach{VM: "web1"})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Fix, "gnext vm migrate web1")
	yes := true
	d.done(a.UpdateVM(ctx, h, opts, "web2", api.VMUpdate{HA: &yes}))
	away = d.vol("here")
	away.Status.Agent = d.Nodes[0].ID
	d.write(func(x *store.Draft) { x.Update(away) })
	none, err = a.AttachVolume(ctx, h, opts, "here", api.VolumeAttach{VM: "web2"})
	_ = d.refuse(problem.Conflict, none, err)
	d.done(a.AttachVolume(ctx, h, opts, "here", api.VolumeAttach{VM: "web1"}))
	none, err = a.UpdateVM(ctx, h, opts, "web1", api.VMUpdate{HA: &yes})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "volume here")
	none, err = a.MigrateVM(ctx, h, opts, "web1", api.VMMigrate{})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "volume here")
	d.clean()
}

func TestAnAttachmentRepeatedIsOneAndOthersAreRefused(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	attach := func(volume, vm string, readOnly bool) (*api.Operation, error) {
		return a.AttachVolume(ctx, h, opts, volume, api.VolumeAttach{VM: vm, ReadOnly: readOnly})
	}
	d.done(attach("data", "web1", false))
	d.done(attach("data", "web1", false))
	require.Equal(t, []api.Attachment{{VM: find[api.VM](d, opts.Project, "web1").ID, Device: "vdc"}}, d.vol("data").Status.Attachments)
	require.Len(t, find[api.VM](d, opts.Project, "web1").Status.Volumes, 2)
	for _, readOnly := range []bool{false, true} {
		none, err := attach("data", "web2", readOnly)
		require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "another VM")
	}
	none, err := attach("data", "web1", true)
	_ = d.refuse(problem.Conflict, none, err)
	none, err = attach(find[api.VM](d, opts.Project, "web1").Status.Volumes[0], "web2", false)
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "root disk")
	none, err = a.DetachVolume(ctx, h, opts, find[api.VM](d, opts.Project, "web1").Status.Volumes[0], api.VolumeDetach{})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "root disk")
	none, err = a.DeleteVolume(ctx, h, opts, "data", api.VolumeDelete{Now: true})
	_ = d.refuse(problem.InUse, none, err)

	d.done(a.DetachVolume(ctx, h, opts, "data", api.VolumeDetach{}))
	d.done(attach("data", "web1", true))
	d.done(attach("data", "web2", true))
	require.Len(t, d.vol("data").Status.Attachments, 2)
	none, err = a.DetachVolume(ctx, h, opts, "data", api.VolumeDetach{})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "2 VMs")
	none, err = a.ResizeVolume(ctx, h, opts, "data", api.VolumeResize{Size: 2 * api.GiB})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "2 VMs")

	d.done(a.DetachVolume(ctx, h, opts, "data", api.VolumeDetach{VM: "web1"}))
	none, err = a.ResizeVolume(ctx, h, opts, "data", api.VolumeResize{Size: 2 * api.GiB})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "read-only")
	d.done(attach("data", "web1", true))

	d.volume("more", "net", nil)
	d.done(attach("more", "web1", false))
	require.Equal(t, "vdd", d.vol("more").Status.Attachments[0].Device)
	vm := find[api.VM](d, opts.Project, "web1")
	d.done(a.DeleteVM(ctx, h, opts, "web1"))
	d.write(func(x *store.Draft) { x.Release(store.NodeClaim(vm.Status.Agent, vm.ID)) }) // as its step does
	require.Len(t, d.vol("data").Status.Attachments, 1, "volumes stay when their VM goes")
	require.Empty(t, d.vol("more").Status.Attachments)
	d.clean()
}

func TestVolumesCountInTheQuota(t *testing.T) {
	d := disks(t) // two VMs with a root disk of 1 GiB each, and two volumes of 1 GiB
	a, h := d.Admission, d.User
	project := find[api.Project](d, "", api.DefaultProject)
	project.Spec = api.ProjectSpec{Disk: 8 * api.GiB}
	d.write(func(x *store.Draft) { x.Update(project) })
	none, err := a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "big", Size: 5 * api.GiB, Pool: "net"})
	require.Contains(t, d.refuse(problem.Quota, none, err).What, "disk")
	none, err = a.ResizeVolume(ctx, h, opts, "data", api.VolumeResize{Size: 6 * api.GiB})
	_ = d.refuse(problem.Quota, none, err)
	op := d.ask(a.ResizeVolume(ctx, h, opts, "data", api.VolumeResize{Size: 5 * api.GiB}))
	none, err = a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "late", Size: api.MiB, Pool: "net"})
	require.Equal(t, problem.Quota, d.refuse(problem.Quota, none, err).Kind, "what is about to be used is used")
	d.settle(op, api.OpFailed)
	require.Equal(t, api.GiB, d.vol("data").Spec.Size)

	d.takes("s1", "data")
	d.done(a.ResizeVolume(ctx, h, opts, "data", api.VolumeResize{Size: 5 * api.GiB}))
	d.done(a.RevertSnapshot(ctx, h, opts, "s1", api.SnapshotRevert{}))
	require.Equal(t, api.GiB, d.vol("data").Spec.Size, "it is as large as it was")
	root := find[api.VM](d, opts.Project, "web1").Status.Volumes[0]
	d.done(a.ResizeVolume(ctx, h, opts, root, api.VolumeResize{Size: 5 * api.GiB}))
	require.Equal(t, 5*api.GiB, find[api.VM](d, opts.Project, "web1").Spec.RootDisk)
	none, err = a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "late", Size: api.MiB, Pool: "net"})
	_ = d.refuse(problem.Quota, none, err)
	d.done(a.DeleteVolume(ctx, h, opts, "here", api.VolumeDelete{Now: true}))
	d.done(a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "late", Size: api.MiB, Pool: "net"}))
	none, err = a.ResizeVolume(ctx, h, opts, "data", api.VolumeResize{Size: api.MiB})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "shrink")
	d.clean()
}

func TestTheRecycleBin(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	d.takes("s1", "data")
	yes, no, name := true, false, "renamed"
	d.done(a.UpdateVolume(ctx, h, opts, "data", api.VolumeUpdate{Protected: &yes, Name: &name}))
	none, err := a.DeleteVolume(ctx, h, opts, name, api.VolumeDelete{Snapshots: true})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "protected")
	other := "here"
	none, err = a.UpdateVolume(ctx, h, opts, name, api.VolumeUpdate{Name: &other})
	require.Contains(t, d.refuse(problem.Conflict, none, err).What, "is taken")
	d.done(a.UpdateVolume(ctx, h, opts, name, api.VolumeUpdate{Protected: &no}))
	none, err = a.DeleteVolume(ctx, h, opts, name, api.VolumeDelete{})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "s1")

	d.done(a.DeleteVolume(ctx, h, opts, name, api.VolumeDelete{Snapshots: true}))
	v := d.vol(name)
	require.Equal(t, api.PhaseDeleted, v.Status.Phase)
	require.InDelta(t, (7 * 24 * time.Hour).Seconds(), v.Status.Expires.Sub(v.Status.Deleted).Seconds(), 1)
	require.Equal(t, api.PhaseDeleted, d.snap("s1").Status.Phase)
	for what, err := range map[string]error{
		"attach":   second(a.AttachVolume(ctx, h, opts, name, api.VolumeAttach{VM: "web1"})),
		"snapshot": second(a.CreateSnapshot(ctx, h, opts, api.SnapshotCreate{Name: "s2", Volume: name})),
		"copy":     second(a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "copy", Snapshot: "s1"})),
		"revert":   second(a.RevertSnapshot(ctx, h, opts, "s1", api.SnapshotRevert{})),
		"unsnap":   second(a.DeleteSnapshot(ctx, h, opts, "s1")),
		"delete":   second(a.DeleteVolume(ctx, h, opts, name, api.VolumeDelete{Snapshots: true})),
		"resize":   second(a.ResizeVolume(ctx, h, opts, name, api.VolumeResize{Size: 2 * api.GiB})),
		"pool":     second(a.DeletePool(ctx, h, opts, "net")),
	} {
		require.Error(t, err, what)
		if what == "copy" || what == "revert" || what == "unsnap" {
			require.Contains(t, problem.From(err).Fix, "vol restore "+name, "%s: it is the volume that can be restored, not the snapshot", what)
		}
	}
	asked, err := a.PurgeExpired(ctx, h)
	require.NoError(t, err)
	require.Zero(t, asked)
	d.done(a.RestoreVolume(ctx, h, opts, name))
	require.True(t, d.vol(name).Status.Expires.IsZero())
	require.Equal(t, api.PhaseReady, d.snap("s1").Status.Phase)

	d.done(a.Keep(-time.Second).DeleteVolume(ctx, h, opts, name, api.VolumeDelete{Snapshots: true}))
	asked, err = a.PurgeExpired(ctx, h)
	require.NoError(t, err)
	require.Equal(t, 1, asked)
	op := find[api.Operation](d, "", d.vol(name).Operation)
	require.Equal(t, api.OpVolumePurge, op.Kind)
	require.Equal(t, opts.Project, op.Project)
	asked, err = a.PurgeExpired(ctx, h)
	require.NoError(t, err)
	require.Zero(t, asked, "it is under way")
	d.settle(op, api.OpSucceeded)
	_, err = store.Find[api.Volume](ctx, d.KV, d.User, opts.Project, name)
	require.True(t, problem.Is(err, problem.NotFound))
	d.clean()
}

func TestAVMWhoseRootDiskIsProtectedIsNotDeleted(t *testing.T) {
	d := disks(t)
	vm := find[api.VM](d, opts.Project, "web1")
	root, yes, no := vm.Status.Volumes[0], true, false
	d.done(d.Admission.UpdateVolume(ctx, d.User, opts, root, api.VolumeUpdate{Protected: &yes}))
	none, err := d.Admission.DeleteVM(ctx, d.User, opts, "web1")
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "protected")
	none, err = d.Admission.DeleteVMWith(ctx, d.User, opts, "web1", api.VMDelete{Snapshots: true})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Fix, "--no-protect")
	d.done(d.Admission.UpdateVolume(ctx, d.User, opts, root, api.VolumeUpdate{Protected: &no}))
	d.done(d.Admission.DeleteVM(ctx, d.User, opts, "web1"))
}

func TestSnapshotsAreATree(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	base := d.vol("data").ID
	one, two := d.takes("s1", "data"), d.takes("s2", "data")
	require.Equal(t, []string{base, one.ID, two.ID}, []string{d.snap("s1").Status.Layer, d.snap("s2").Status.Layer, d.vol("data").Status.Layer})
	require.Equal(t, d.snap("s1").ID, d.snap("s2").Spec.Parent)
	back := d.ask(a.RevertSnapshot(ctx, h, opts, "s1", api.SnapshotRevert{}))
	d.settle(back, api.OpSucceeded)
	require.Equal(t, d.snap("s1").ID, d.vol("data").Status.Snapshot)
	require.Equal(t, back.ID, d.vol("data").Status.Layer)
	none, err := a.DeleteSnapshot(ctx, h, opts, "s1")
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "snapshot s2 and volume data as it is now")

	order := func(op *api.Operation) (o api.SnapshotOrder) {
		require.NoError(t, json.Unmarshal(op.Plan.Input, &o))
		return o
	}
	leaf := d.ask(a.DeleteSnapshot(ctx, h, opts, "s2"))
	require.Equal(t, []string{one.ID, ""}, []string{order(leaf).Frozen, order(leaf).Layer}, "nothing stands on it")
	d.settle(leaf, api.OpSucceeded)
	three := d.takes("s3", "data")
	middle := d.ask(a.DeleteSnapshot(ctx, h, opts, "s1"))
	require.Equal(t, []string{"", back.ID}, []string{order(middle).Frozen, order(middle).Layer})
	d.settle(middle, api.OpSucceeded)
	require.Equal(t, []string{base, ""}, []string{d.snap("s3").Status.Layer, d.snap("s3").Spec.Parent}, "the child takes over what is left")
	require.Equal(t, three.ID, d.vol("data").Status.Layer)
	d.done(a.DeleteSnapshot(ctx, h, opts, "s3"))
	require.Equal(t, api.VolumeStatus{Phase: api.PhaseReady}, d.vol("data").Status, "as if there had never been one")

	for i := range api.MaxSnapshots {
		d.takes(fmt.Sprint("n", i), "data")
	}
	none, err = a.CreateSnapshot(ctx, h, opts, api.SnapshotCreate{Name: "late", Volume: "data"})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "32")

	root := find[api.VM](d, opts.Project, "web1").Status.Volumes[0]
	d.takes("r1", root)
	none, err = a.RevertSnapshot(ctx, h, opts, "r1", api.SnapshotRevert{})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Fix, "--restart")
	none, err = a.DeleteVM(ctx, h, opts, "web1")
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "snapshots")
	d.takes("r2", root)
	vm := find[api.VM](d, opts.Project, "web1")
	op := d.ask(a.DeleteVMWith(ctx, h, opts, "web1", api.VMDelete{Snapshots: true}))
	var gone api.VolumeRemoval
	require.NoError(t, json.Unmarshal(op.Plan.Input, &gone))
	require.Equal(t, []string{d.vol(root).Status.Layer, d.snap("r2").Status.Layer, ""}, gone.Layers, "each before what it stands on")
	d.settle(op, api.OpSucceeded)
	d.write(func(x *store.Draft) { x.Release(store.NodeClaim(vm.Status.Agent, vm.ID)) }) // as its step does
	d.clean()
}

func TestVolumeOperationsThatFailedCanBeRetried(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	d.takes("s1", "data")
	d.volume("used", "net", nil)
	d.volume("old", "net", nil)
	d.done(a.AttachVolume(ctx, h, opts, "used", api.VolumeAttach{VM: "web2"}))
	d.done(a.DeleteVolume(ctx, h, opts, "old", api.VolumeDelete{}))
	labels := map[string]string{"a": "b"}
	for kind, send := range map[string]func() (*api.Operation, error){
		api.OpVolumeCreate: func() (*api.Operation, error) {
			return a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "new", Size: api.GiB, Pool: "net"})
		},
		api.OpVolumeUpdate: func() (*api.Operation, error) {
			return a.UpdateVolume(ctx, h, opts, "data", api.VolumeUpdate{Labels: &labels})
		},
		api.OpVolumeAttach: func() (*api.Operation, error) {
			return a.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1", ReadOnly: true})
		},
		api.OpVolumeDetach: func() (*api.Operation, error) {
			return a.DetachVolume(ctx, h, opts, "used", api.VolumeDetach{VM: "web2"})
		},
		api.OpVolumeResize: func() (*api.Operation, error) {
			return a.ResizeVolume(ctx, h, opts, "data", api.VolumeResize{Size: 2 * api.GiB})
		},
		api.OpVolumeExport: func() (*api.Operation, error) {
			return a.ExportVolume(ctx, h, opts, "data", api.VolumeExport{Format: api.FormatVMDK, Snapshot: "s1"})
		},
		api.OpVolumeMigrate: func() (*api.Operation, error) {
			return a.MigrateVolume(ctx, h, opts, "used", api.VolumeMigrate{Pool: "vms"})
		},
		api.OpVolumeDelete: func() (*api.Operation, error) {
			return a.DeleteVolume(ctx, h, opts, "data", api.VolumeDelete{Snapshots: true})
		},
		api.OpVolumeRestore: func() (*api.Operation, error) { return a.RestoreVolume(ctx, h, opts, "old") },
		api.OpVolumePurge: func() (*api.Operation, error) {
			return a.DeleteVolume(ctx, h, opts, "old", api.VolumeDelete{Now: true})
		},
		api.OpSnapshotCreate: func() (*api.Operation, error) {
			return a.CreateSnapshot(ctx, h, opts, api.SnapshotCreate{Name: "s2", Volume: "data", NoFreeze: true})
		},
		api.OpSnapshotDelete: func() (*api.Operation, error) { return a.DeleteSnapshot(ctx, h, opts, "s1") },
		api.OpSnapshotRevert: func() (*api.Operation, error) {
			return a.RevertSnapshot(ctx, h, opts, "s1", api.SnapshotRevert{Restart: true, Timeout: 7})
		},
		api.OpVMDelete: func() (*api.Operation, error) {
			return a.DeleteVMWith(ctx, h, opts, "web2", api.VMDelete{Snapshots: true})
		},
	} {
		op := d.ask(send())
		d.settle(op, api.OpFailed)
		again := d.ask(a.Retry(ctx, h, opts, op.ID))
		require.Equal(t, []any{kind, op.ID, string(op.Request)}, []any{again.Kind, again.RetryOf, string(again.Request)})
		require.NotEqual(t, op.ID, again.ID)
		d.settle(again, api.OpCancelled)
	}
	d.clean()
}

// TestAnySequenceOfSnapshotsIsATree takes, gives up and goes back to snapshots at random, some of it in vain, and looks whether
// the records are a tree with a layer for each of its nodes and one for the volume.
func TestAnySequenceOfSnapshotsIsATree(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := newDesk(t).cloud()
		d.done(d.Admission.CreatePool(ctx, d.User, opts, api.PoolCreate{Name: "net", Type: api.PoolDir, Path: "/net", Shared: true}))
		d.volume("data", "net", nil)
		a, h := d.Admission, d.User
		name := rapid.SampledFrom([]string{"s1", "s2", "s3", "s4", "s5"})
		end := func(op *api.Operation, err error) {
			switch {
			case err == nil:
				d.settle(op, rapid.SampledFrom([]api.OperationState{api.OpSucceeded, api.OpSucceeded, api.OpSucceeded, api.OpFailed}).Draw(rt, "end"))
			case problem.Is(err, problem.Internal):
				rt.Fatalf("%v", err)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"": func(rt *rapid.T) {
				v := d.vol("data")
				snaps, err := store.List[api.Snapshot](ctx, d.KV, d.User, opts.Project)
				if err != nil {
					rt.Fatal(err)
				}
				layers, byID, used := map[string]bool{v.LayerName(): true}, map[string]*api.Snapshot{}, map[string]bool{v.Status.Snapshot: true}
				for _, s := range snaps {
					layers[s.Status.Layer], byID[s.ID], used[s.Spec.Parent] = true, s, true
				}
				roots := 0
				for _, s := range snaps {
					if s.Spec.Parent == "" {
						roots++
					} else if byID[s.Spec.Parent] == nil {
						rt.Fatalf("%s has no parent", s.Name)
					}
				}
				switch {
				case len(layers) != len(snaps)+1:
					rt.Fatalf("%d snapshots have %d layers", len(snaps), len(layers))
				case !layers[v.ID]:
					rt.Fatalf("the first layer is nobody's")
				case v.Status.Snapshot != "" && byID[v.Status.Snapshot] == nil, v.Status.Snapshot == "" && len(snaps) > 0, roots > 1:
					rt.Fatalf("it is no tree: %d roots, and the volume goes on from %q", roots, v.Status.Snapshot)
				}
				d.clean()
			},
			"take": func(rt *rapid.T) {
				end(a.CreateSnapshot(ctx, h, opts, api.SnapshotCreate{Name: name.Draw(rt, "name"), Volume: "data"}))
			},
			"give up": func(rt *rapid.T) { end(a.DeleteSnapshot(ctx, h, opts, name.Draw(rt, "name"))) },
			"go back": func(rt *rapid.T) {
				end(a.RevertSnapshot(ctx, h, opts, name.Draw(rt, "name"), api.SnapshotRevert{}))
			},
		})
	})
}
