package admission_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// TestAVMGetsVolumesThatExist: they are held meanwhile, say who has them when it is made, and are as they were when it is not.
func TestAVMGetsVolumesThatExist(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	r := vmRequest("db")
	r.Pool = "vms"
	r.Volumes = []api.VMVolume{{Size: api.GiB}}
	r.Attach = []api.VMAttach{{Volume: "here"}, {Volume: d.vol("data").ID, ReadOnly: true}}
	before := d.vol("here")
	op := d.ask(a.CreateVM(ctx, h, opts, r))
	vm := find[api.VM](d, opts.Project, "db")
	require.Equal(t, []string{d.vol("here").ID, d.vol("data").ID}, vm.Status.Volumes[2:])
	require.Equal(t, api.PhaseReady, d.vol("here").Status.Phase)
	require.Empty(t, d.vol("here").Status.Attachments, "not yet")
	none, err := a.AttachVolume(ctx, h, opts, "here", api.VolumeAttach{VM: "web1"})
	_ = d.refuse(problem.Locked, none, err)
	none, err = a.DeleteVolume(ctx, h, opts, "data", api.VolumeDelete{})
	_ = d.refuse(problem.Locked, none, err)

	d.settle(op, api.OpFailed)
	after := d.vol("here")
	before.Revision, after.Revision = 0, 0
	require.Equal(t, before, after)
	d.clean()

	d.done(a.CreateVM(ctx, h, opts, r))
	vm = find[api.VM](d, opts.Project, "db")
	require.Equal(t, []api.Attachment{{VM: vm.ID, Device: "vdd"}}, d.vol("here").Status.Attachments)
	require.Equal(t, []api.Attachment{{VM: vm.ID, Device: "vde", ReadOnly: true}}, d.vol("data").Status.Attachments)
	require.Empty(t, d.vol("here").Operation)
	d.clean()

	// One more can be lent, but not given to write.
	r.Name, r.Volumes, r.Attach = "more", nil, []api.VMAttach{{Volume: "data"}}
	none, err = a.CreateVM(ctx, h, opts, r)
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "another VM has it")
	r.Attach[0].ReadOnly = true
	d.done(a.CreateVM(ctx, h, opts, r))
	require.Equal(t, "vdc", d.vol("data").Status.Attachments[1].Device)

	// Those who had them go, and they stay.
	d.done(a.DeleteVM(ctx, h, opts, "db"))
	d.done(a.DeleteVM(ctx, h, opts, "more"))
	require.Equal(t, api.PhaseReady, d.vol("here").Status.Phase)
	require.Empty(t, d.vol("data").Status.Attachments)
	d.clean()
}

// TestVolumesThatANewVMCannotGet are refused for the reasons that an attachment is, and nothing is left of the VM.
func TestVolumesThatANewVMCannotGet(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	d.volume("gone", "net", nil)
	d.done(a.DeleteVolume(ctx, h, opts, "gone", api.VolumeDelete{}))
	d.volume("there", "vms", nil)
	there := d.vol("there")
	require.Equal(t, d.Nodes[0].ID, there.Status.Agent)
	there.Status.Agent = d.Nodes[1].ID
	d.write(func(x *store.Draft) { x.Update(there) })
	d.volume("busy", "net", nil)
	held := d.ask(a.AttachVolume(ctx, h, opts, "busy", api.VolumeAttach{VM: "web1"}))
	web1 := find[api.VM](d, opts.Project, "web1")

	for name, tc := range map[string]struct {
		change func(*api.VMCreate)
		kind   problem.Kind
		why    string
		attach []string
	}{
		"unknown":                 {kind: problem.NotFound, attach: []string{"nosuch"}},
		"in the recycle bin":      {kind: problem.Conflict, why: "recycle bin", attach: []string{"gone"}},
		"a root disk":             {kind: problem.Conflict, why: "root disk", attach: []string{web1.Status.Volumes[0]}},
		"held":                    {kind: problem.Locked, why: held.ID, attach: []string{"busy"}},
		"twice":                   {kind: problem.Conflict, why: "named twice", attach: []string{"data", d.vol("data").ID}},
		"on two nodes":            {kind: problem.Conflict, why: "on another node than volume here", attach: []string{"here", "there"}},
		"not where it is pinned":  {kind: problem.Conflict, why: "pinned to", attach: []string{"there"}, change: func(r *api.VMCreate) { r.NodeID = d.Nodes[0].ID }},
		"of one node, for HA":     {kind: problem.Conflict, why: "not shared", attach: []string{"here"}, change: func(r *api.VMCreate) { r.HA = true }},
		"a reference of no shape": {kind: problem.Invalid, attach: []string{"No_Name"}},
	} {
		r := vmRequest("db")
		r.Pool = "net"
		for _, v := range tc.attach {
			r.Attach = append(r.Attach, api.VMAttach{Volume: v})
		}
		if tc.change != nil {
			tc.change(&r)
		}
		none, err := a.CreateVM(ctx, h, opts, r)
		p := d.refuse(tc.kind, none, err)
		require.Contains(t, p.Why, tc.why, name)
		require.True(t, p.Fix != "" || tc.kind == problem.NotFound || len(p.Fields) > 0, name)
	}
	r := vmRequest("db")
	r.Attach = make([]api.VMAttach, api.MaxVolumes)
	r.Volumes = []api.VMVolume{{Size: api.GiB}}
	none, err := a.CreateVM(ctx, h, opts, r)
	require.Equal(t, "volumes", d.refuse(problem.Invalid, none, err).Fields[0].Path)
	d.settle(held, api.OpSucceeded)
	d.clean()
}

// TestAVolumeIsMadeInAVM: both are held meanwhile; if it is not made, the VM is as before.
func TestAVolumeIsMadeInAVM(t *testing.T) {
	d := disks(t)
	a, h := d.Admission, d.User
	d.done(a.AttachVolume(ctx, h, opts, "data", api.VolumeAttach{VM: "web1"}))
	req := api.VolumeCreate{Name: "logs", Size: api.GiB, Pool: "net", VM: "web1", Attach: true}
	before := find[api.VM](d, opts.Project, "web1")
	op := d.ask(a.CreateVolume(ctx, h, opts, req))
	none, err := a.StopVM(ctx, h, opts, "web1", api.VMStop{})
	_ = d.refuse(problem.Locked, none, err)
	d.settle(op, api.OpFailed)
	after := find[api.VM](d, opts.Project, "web1")
	require.Equal(t, before.Status.Volumes, after.Status.Volumes)
	require.Equal(t, before.Status.Phase, after.Status.Phase)
	d.clean()

	d.done(a.CreateVolume(ctx, h, opts, req))
	vm, v := find[api.VM](d, opts.Project, "web1"), d.vol("logs")
	require.Equal(t, []api.Attachment{{VM: vm.ID, Device: "vdd"}}, v.Status.Attachments)
	require.Equal(t, v.ID, vm.Status.Volumes[2])
	require.Equal(t, api.PhaseRunning, vm.Status.Phase)
	d.clean()

	// A copy of what the same VM has, which must not run.
	copied := api.VolumeCreate{Name: "twin", Volume: "logs", VM: "web1", Attach: true}
	none, err = a.CreateVolume(ctx, h, opts, copied)
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "vm web1 has it")
	d.done(a.StopVM(ctx, h, opts, "web1", api.VMStop{}))
	d.done(a.CreateVolume(ctx, h, opts, copied))
	require.Equal(t, "vde", d.vol("twin").Status.Attachments[0].Device)
	require.Equal(t, api.PhaseStopped, find[api.VM](d, opts.Project, "web1").Status.Phase)
	d.clean()

	// What cannot be.
	none, err = a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "x", Size: api.GiB, Pool: "net", Attach: true})
	require.Equal(t, "attach", d.refuse(problem.Invalid, none, err).Fields[0].Path)
	paused := find[api.VM](d, opts.Project, "web2")
	paused.Status.Phase, paused.Spec.HA = api.PhasePaused, true
	d.write(func(x *store.Draft) { x.Update(paused) })
	none, err = a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "x", Size: api.GiB, Pool: "net", VM: "web2", Attach: true})
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "is paused")
	paused.Status.Phase, paused.Revision = api.PhaseRunning, find[api.VM](d, opts.Project, "web2").Revision
	d.write(func(x *store.Draft) { x.Update(paused) })
	none, err = a.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "x", Size: api.GiB, Pool: "vms", VM: "web2", Attach: true})
	p := d.refuse(problem.Conflict, none, err)
	require.Contains(t, p.Why, "pool vms is not shared")
	require.Contains(t, p.Fix, "--no-ha")
	d.clean()
}
