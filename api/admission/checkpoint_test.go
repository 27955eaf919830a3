package admission_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

func (d *desk) cp(name string) *api.Checkpoint {
	return find[api.Checkpoint](d, opts.Project, name)
}
func (d *desk) web1() *api.VM { return find[api.VM](d, opts.Project, "web1") }

// all returns all resources of a kind.
func all[T any, P interface {
	*T
	api.Resource
}](d *desk) []*T {
	d.Helper()
	out, err := store.List[T, P](ctx, d.KV, d.User, opts.Project)
	require.NoError(d, err)
	return out
}

func (d *desk) keeps(name string) *api.Operation {
	d.Helper()
	op := d.ask(d.Admission.CreateCheckpoint(ctx, d.User, opts, api.CheckpointCreate{Name: name, VM: "web1"}))
	d.settle(op, api.OpSucceeded)
	return op
}

func (d *desk) switches(name string) *api.Operation {
	d.Helper()
	op := d.ask(d.Admission.RevertCheckpoint(ctx, d.User, opts, name))
	d.settle(op, api.OpSucceeded)
	return op
}

// orderOf returns what the acceptance of an operation decided.
func (d *desk) orderOf(op *api.Operation) (in api.CheckpointOrder) {
	d.Helper()
	require.NoError(d, json.Unmarshal(op.Plan.Input, &in))
	return in
}

func (d *desk) hasClaim(key string) bool {
	_, err := d.KV.Get(ctx, key)
	require.True(d, err == nil || problem.Is(err, problem.NotFound))
	return err == nil
}

func TestACheckpointHasASnapshotOfEachDisk(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	d.done(a.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1"}))
	vm := d.web1()
	root := find[api.Volume](d, opts.Project, vm.Status.Volumes[0])

	// What fails leaves nothing.
	op := d.ask(a.CreateCheckpoint(ctx, h, opts, api.CheckpointCreate{Name: "c1", VM: "web1"}))
	require.True(t, d.hasClaim(store.QuotaClaim(opts.Project, d.cp("c1").ID)))
	none, err := a.StopVM(ctx, h, opts, "web1", api.VMStop{})
	_ = d.refuse(problem.Locked, none, err)
	none, err = a.CreateSnapshot(ctx, h, opts, api.SnapshotCreate{Name: "s", Volume: "data"})
	_ = d.refuse(problem.Locked, none, err)
	d.settle(op, api.OpFailed)
	require.Empty(t, all[api.Checkpoint](d), "and no snapshot either:")
	require.Empty(t, all[api.Snapshot](d))
	require.False(t, d.hasClaim(store.QuotaClaim(opts.Project, op.Target.ID)))
	require.Empty(t, d.web1().Status.Checkpoint)

	op = d.keeps("c1")
	c, in := d.cp("c1"), d.orderOf(op)
	require.Equal(t, []any{api.PhaseReady, vm.Spec.Pool, api.MiB, vm.ID, ""}, []any{c.Status.Phase, c.Status.Pool, c.Status.Memory, c.Spec.VM, c.Spec.Parent})
	require.EqualValues(t, 5, c.Status.Pause)
	require.Equal(t, []string{"vda", "vdc"}, []string{c.Status.Disks[0].Device, c.Status.Disks[1].Device})
	require.Equal(t, []string{root.ID, d.vol("data").ID}, []string{c.Status.Disks[0].Volume, c.Status.Disks[1].Volume})
	require.Equal(t, c.ID, d.web1().Status.Checkpoint)
	require.Equal(t, []string{in.Disks[0].Layer, in.Disks[1].Layer}, op.Plan.Makes, "an audit knows whose they are")
	require.NotEqual(t, in.Disks[0].Layer, in.Disks[1].Layer)
	for i, disk := range c.Status.Disks {
		s, v := find[api.Snapshot](d, opts.Project, disk.Snapshot), find[api.Volume](d, opts.Project, disk.Volume)
		require.Equal(t, []string{c.ID, v.ID, v.ID}, []string{s.Spec.Checkpoint, s.Spec.Volume, s.Status.Layer})
		require.Equal(t, []string{s.ID, in.Disks[i].Layer}, []string{v.Status.Snapshot, v.Status.Layer})
	}

	// It is one thing.
	snap := find[api.Snapshot](d, opts.Project, c.Status.Disks[1].Snapshot)
	none, err = a.DeleteSnapshot(ctx, h, opts, snap.ID)
	require.Contains(t, d.refuse(problem.Conflict, none, err).Fix, "gnext cp del c1")
	none, err = a.RevertSnapshot(ctx, h, opts, snap.ID, api.SnapshotRevert{Restart: true})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Fix, "gnext cp switch c1")
	d.done(a.DetachVolume(ctx, h, opts, "data", api.VolumeDetach{}))
	for _, how := range []api.VolumeDelete{{}, {Snapshots: true}, {Now: true, Snapshots: true}} {
		none, err = a.DeleteVolume(ctx, h, opts, "data", how)
		require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "checkpoint c1")
	}
	d.done(a.DeleteCheckpoint(ctx, h, opts, "c1"))
	require.Empty(t, all[api.Snapshot](d))
	require.Equal(t, []string{"", d.vol("data").ID}, []string{d.vol("data").Status.Snapshot, d.vol("data").LayerName()})
	require.Empty(t, d.web1().Status.Checkpoint)
	require.False(t, d.hasClaim(store.QuotaClaim(opts.Project, c.ID)))
	d.done(a.DeleteVolume(ctx, h, opts, "data", api.VolumeDelete{Now: true}))
}

func TestCheckpointsAreATree(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	d.keeps("c1")
	d.keeps("c2")
	require.Equal(t, d.cp("c1").ID, d.cp("c2").Spec.Parent)
	op := d.ask(a.RevertCheckpoint(ctx, h, opts, "c1"))
	require.Equal(t, op.ID, d.orderOf(op).Save, "what it is now is kept meanwhile")
	d.settle(op, api.OpFailed)
	require.Equal(t, d.cp("c2").ID, d.web1().Status.Checkpoint)
	root := func() *api.Volume { return find[api.Volume](d, opts.Project, d.web1().Status.Volumes[0]) }
	top := root().Status.Layer
	in := d.orderOf(d.switches("c1"))
	require.Equal(t, []string{"", in.Disks[0].Layer}, []string{in.Disks[0].Frozen, root().Status.Layer})
	require.NotEqual(t, top, root().Status.Layer)
	require.Equal(t, d.cp("c1").ID, d.web1().Status.Checkpoint)
	d.keeps("c3")
	require.Equal(t, d.cp("c1").ID, d.cp("c3").Spec.Parent)
	none, err := a.DeleteCheckpoint(ctx, h, opts, "c1")
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "go on from it")
	d.done(a.DeleteCheckpoint(ctx, h, opts, "c3"))
	require.Equal(t, d.cp("c1").ID, d.web1().Status.Checkpoint, "it goes on from the one before")

	// A VM that is off has none taken, and runs after it has gone back.
	d.done(a.StopVM(ctx, h, opts, "web1", api.VMStop{}))
	none, err = a.CreateCheckpoint(ctx, h, opts, api.CheckpointCreate{Name: "c4", VM: "web1"})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Fix, "gnext snap add")
	op = d.switches("c2")
	require.Empty(t, d.orderOf(op).Save)
	require.Equal(t, api.PhaseRunning, d.web1().Status.Phase)
	d.done(a.DeleteCheckpoint(ctx, h, opts, "c1"))
	require.Empty(t, d.cp("c2").Spec.Parent)
}

func TestAVMGoesBackWithTheVolumesThatItHad(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	d.volume("more", "net", nil)
	d.done(a.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1"}))
	d.keeps("c1")
	refused := func(why, fix string) {
		t.Helper()
		none, err := a.RevertCheckpoint(ctx, h, opts, "c1")
		p := d.refuse(problem.Conflict, none, err)
		require.Contains(t, p.Why, why)
		require.Contains(t, p.Fix, fix)
	}
	d.done(a.AttachVolume(ctx, h, opts, "more", api.VolumeAttach{VM: "web1"}))
	refused("did not have volume more", "gnext vol detach more --vm web1")
	d.done(a.DetachVolume(ctx, h, opts, "data", api.VolumeDetach{}))
	refused("it had volume data then", "gnext vol attach data --vm web1")
	d.done(a.DetachVolume(ctx, h, opts, "more", api.VolumeDetach{}))
	d.done(a.AttachVolume(ctx, h, opts, "more", api.VolumeAttach{VM: "web1"})) // as vdc
	d.done(a.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1"}))
	d.done(a.DetachVolume(ctx, h, opts, "more", api.VolumeDetach{}))
	refused("as vdc then", "so that it is vdc")
	d.done(a.DetachVolume(ctx, h, opts, "data", api.VolumeDetach{}))
	d.done(a.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1", ReadOnly: true}))
	refused("read-only", "so that it is vdc")
	d.done(a.DetachVolume(ctx, h, opts, "data", api.VolumeDetach{}))
	d.done(a.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1"}))

	// Sizes go back, too, and what counts in the quota.
	d.done(a.ResizeVolume(ctx, h, opts, "data", api.VolumeResize{Size: 3 * api.GiB}))
	vm := d.web1()
	was := vm.Spec.RootDisk
	d.done(a.ResizeVolume(ctx, h, opts, vm.Status.Volumes[0], api.VolumeResize{Size: was + api.GiB}))
	quota := func(id string) string {
		e, err := d.KV.Get(ctx, store.QuotaClaim(opts.Project, id))
		require.NoError(t, err)
		return string(e.Value)
	}
	large := quota(vm.ID)
	d.switches("c1")
	require.Equal(t, []int64{api.GiB, was}, []int64{d.vol("data").Spec.Size, d.web1().Spec.RootDisk})
	require.NotEqual(t, large, quota(vm.ID))
	require.Contains(t, quota(d.vol("data").ID), `"disk":1073741824`)
	d.switches("c1")
}

func TestWhatCannotBeInACheckpoint(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	refused := func(kind problem.Kind, why string) {
		t.Helper()
		none, err := a.CreateCheckpoint(ctx, h, opts, api.CheckpointCreate{Name: "c1", VM: "web1"})
		p := d.refuse(kind, none, err)
		require.Contains(t, p.Why, why)
		require.NotEmpty(t, p.Fix)
	}
	d.volume("ours", "net", func(r *api.VolumeCreate) { r.Shareable = true })
	for volume, c := range map[string]struct {
		how  api.VolumeAttach
		kind problem.Kind
		why  string
	}{
		"ours": {api.VolumeAttach{VM: "web1"}, problem.Unsupported, "several VMs may write to volume ours"},
		"data": {api.VolumeAttach{VM: "web1", ReadOnly: true}, problem.Conflict, "volume data read-only"},
	} {
		d.done(a.AttachVolume(ctx, h, opts, volume, c.how))
		refused(c.kind, c.why)
		d.done(a.DetachVolume(ctx, h, opts, volume, api.VolumeDetach{}))
	}
	ceph := func(yes bool) {
		pool := find[api.Pool](d, "", "net")
		pool.Spec.Type = api.PoolDir
		if yes {
			pool.Spec.Type = api.PoolRBD
		}
		d.write(func(x *store.Draft) { x.Update(pool) })
	}
	ceph(true)
	d.done(a.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1", ReadOnly: true}))
	refused(problem.Conflict, "volume data read-only")
	d.done(a.DetachVolume(ctx, h, opts, "data", api.VolumeDetach{}))
	ceph(false)

	// Its memory counts.
	used := int64(0)
	claims, _, err := d.KV.List(ctx, store.QuotaPrefix(opts.Project))
	require.NoError(t, err)
	for _, e := range claims {
		used += decoded[struct{ Disk int64 }](d, e.Value).Disk
	}
	limit := func(disk int64) {
		change(d, "", opts.Project, func(p *api.Project) { p.Spec = api.ProjectSpec{Disk: disk} })
	}
	memory := d.web1().Spec.Memory
	limit(used + memory - 1)
	none, err := a.CreateCheckpoint(ctx, h, opts, api.CheckpointCreate{Name: "c1", VM: "web1"})
	_ = d.refuse(problem.Quota, none, err)
	limit(used + memory)
	d.keeps("c1")
}

func TestAVMIsDeletedWithItsCheckpoints(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	d.done(a.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1"}))
	d.keeps("c1")
	d.keeps("c2")
	kept := d.cp("c1").Status.Disks[1].Snapshot
	none, err := a.DeleteVM(ctx, h, opts, "web1")
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "it has checkpoints: c1, c2")
	ids := []string{d.cp("c1").ID, d.cp("c2").ID}
	op := d.ask(a.DeleteVMWith(ctx, h, opts, "web1", api.VMDelete{Snapshots: true}))
	in := decoded[api.VMRemoval](d, op.Plan.Input)
	require.ElementsMatch(t, ids, in.Checkpoints)
	require.Len(t, in.Layers, 3)
	d.settle(op, api.OpSucceeded)
	require.Empty(t, all[api.Checkpoint](d))
	snaps := all[api.Snapshot](d)
	require.Len(t, snaps, 2, "of the volume that stays")
	for _, s := range snaps {
		require.Empty(t, s.Spec.Checkpoint)
		require.Equal(t, d.vol("data").ID, s.Spec.Volume)
	}
	d.done(a.RevertSnapshot(ctx, h, opts, kept, api.SnapshotRevert{}))
	d.done(a.DeleteVolume(ctx, h, opts, "data", api.VolumeDelete{Now: true, Snapshots: true}))
}

func TestCheckpointOperationsThatFailedCanBeRetried(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	again := func(op *api.Operation) {
		t.Helper()
		d.settle(op, api.OpFailed)
		d.done(a.Retry(ctx, h, opts, op.ID))
	}
	again(d.ask(a.CreateCheckpoint(ctx, h, opts, api.CheckpointCreate{Name: "c1", VM: "web1"})))
	again(d.ask(a.RevertCheckpoint(ctx, h, opts, "c1")))
	again(d.ask(a.DeleteCheckpoint(ctx, h, opts, "c1")))
	require.Empty(t, all[api.Checkpoint](d))
}

// TestCheckpointsInCephHaveNoLayers: snapshots have names there, and may be deleted where their tree branches.
func TestCheckpointsInCephHaveNoLayers(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	d.done(a.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1"}))
	pool := find[api.Pool](d, "", "net")
	pool.Spec.Type = api.PoolRBD
	d.write(func(x *store.Draft) { x.Update(pool) })

	op := d.keeps("c1")
	require.Empty(t, op.Plan.Makes)
	for i, o := range d.orderOf(op).Disks {
		require.Equal(t, []any{false, "", ""}, []any{o.Files, o.Layer, o.Frozen}, "disk %d", i)
	}
	require.True(t, d.hasClaim(store.QuotaClaim(opts.Project, d.cp("c1").ID)), "its memory counts")
	for _, disk := range d.cp("c1").Status.Disks {
		s, v := find[api.Snapshot](d, opts.Project, disk.Snapshot), find[api.Volume](d, opts.Project, disk.Volume)
		require.Equal(t, []string{d.cp("c1").ID, ""}, []string{s.Spec.Checkpoint, s.Status.Layer})
		require.Equal(t, []string{s.ID, ""}, []string{v.Status.Snapshot, v.Status.Layer})
	}
	size := d.vol("data").Spec.Size
	d.done(a.ResizeVolume(ctx, h, opts, "data", api.VolumeResize{Size: 2 * size}))
	d.keeps("c2")
	op = d.switches("c1")
	for _, o := range d.orderOf(op).Disks {
		require.Equal(t, []any{false, op.ID, ""}, []any{o.Files, o.Layer, o.Frozen}, "what it was is kept under the name of the operation")
	}
	require.Equal(t, []any{"", size}, []any{d.vol("data").Status.Layer, d.vol("data").Spec.Size})
	d.keeps("c3")
	d.done(a.DeleteCheckpoint(ctx, h, opts, "c1"))
	require.Empty(t, d.cp("c2").Spec.Parent)
	require.Empty(t, d.cp("c3").Spec.Parent)
	op = d.ask(a.DeleteVMWith(ctx, h, opts, "web1", api.VMDelete{Snapshots: true}))
	in := decoded[api.VMRemoval](d, op.Plan.Input)
	require.Len(t, in.Checkpoints, 2)
	require.Equal(t, []any{[]string{""}, 2}, []any{in.Layers, len(in.Snapshots)})
}

// TestACheckpointHasDisksInCephAndInFiles: each is kept as those of its pool are.
func TestACheckpointHasDisksInCephAndInFiles(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	d.done(a.AttachVolume(ctx, h, opts, "here", api.VolumeAttach{VM: "web1"}))
	pool := find[api.Pool](d, "", "net")
	pool.Spec.Type = api.PoolRBD
	d.write(func(x *store.Draft) { x.Update(pool) })

	op := d.keeps("c1")
	in := d.orderOf(op).Disks
	require.Equal(t, []any{false, "", ""}, []any{in[0].Files, in[0].Layer, in[0].Frozen})
	require.True(t, in[1].Files)
	require.Equal(t, []string{in[1].Layer}, op.Plan.Makes)
	require.Equal(t, pool.ID, d.cp("c1").Status.Pool, "its memory is where the root disk is")
	require.Equal(t, in[1].Layer, d.vol("here").Status.Layer)

	op = d.switches("c1")
	in = d.orderOf(op).Disks
	require.Equal(t, []any{false, op.ID}, []any{in[0].Files, in[0].Layer})
	require.Equal(t, []any{true, ""}, []any{in[1].Files, in[1].Frozen}, "the layer that the checkpoint has frozen is the first one")
	require.Equal(t, []string{in[1].Layer}, op.Plan.Makes)

	// Where it branches it can be deleted in Ceph, but not in a pool of files.
	d.keeps("c2")
	d.switches("c1")
	d.keeps("c3")
	none, err := a.DeleteCheckpoint(ctx, h, opts, "c1")
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "go on from it")
	d.done(a.DeleteCheckpoint(ctx, h, opts, "c3"))
	d.switches("c2")
	d.done(a.DeleteCheckpoint(ctx, h, opts, "c1"))
}
