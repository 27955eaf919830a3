package admission_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// change writes a record as it is after edit.
func change[T any, P interface {
	*T
	api.Resource
}](d *desk, project, name string, edit func(*T)) {
	d.Helper()
	r := find[T, P](d, project, name)
	edit(r)
	draft := store.NewDraft(d.User)
	draft.Update(P(r))
	_, err := draft.Commit(ctx, d.KV)
	require.NoError(d, err)
}

// shared adds a pool that all nodes reach.
func (d *desk) shared() *desk {
	d.Helper()
	d.done(d.Admission.CreatePool(ctx, d.User, opts, api.PoolCreate{Name: "nfs", Type: api.PoolDir, Path: "/nfs", Shared: true}))
	return d
}

// vm makes a VM that runs on a node, as if its workflow had.
func (d *desk) vm(name, node string, edit func(*api.VMCreate)) *api.VM {
	d.Helper()
	r := vmRequest(name)
	r.Pool = "nfs"
	if edit != nil {
		edit(&r)
	}
	d.done(d.Admission.CreateVM(ctx, d.User, opts, r))
	agent := find[api.Agent](d, "", node)
	change(d, opts.Project, name, func(vm *api.VM) { vm.Status.Agent, vm.Status.AgentName = agent.ID, node })
	vm := find[api.VM](d, opts.Project, name)
	d.promise(agent, vm)
	return vm
}

// promise promises a VM its part of a node.
func (d *desk) promise(agent *api.Agent, vm *api.VM) {
	d.Helper()
	value, err := admission.PromiseOf(vm).Encode()
	require.NoError(d, err)
	_, err = d.KV.Commit(ctx, store.Tx{Puts: []store.Put{{Key: store.NodeClaim(agent.ID, vm.ID), Value: []byte(value)}}})
	require.NoError(d, err)
}

func (d *desk) unpromise(agent string, vm *api.VM) {
	d.Helper()
	_, err := d.KV.Commit(ctx, store.Tx{Deletes: []string{store.NodeClaim(agent, vm.ID)}})
	require.NoError(d, err)
}

func (d *desk) phase(vm string, p api.Phase) {
	d.Helper()
	change(d, opts.Project, vm, func(vm *api.VM) { vm.Status.Phase = p })
}

func locks(op *api.Operation) map[string]api.Lock {
	out := map[string]api.Lock{}
	for _, l := range op.Plan.Locks {
		out[l.Ref.ID] = l
	}
	return out
}

func TestAMoveHoldsTheVMAndItsDisksAndGivesThemBack(t *testing.T) {
	for _, was := range []api.Phase{api.PhaseRunning, api.PhaseStopped} {
		for _, end := range []api.OperationState{api.OpSucceeded, api.OpFailed, api.OpCancelled} {
			t.Run(string(was)+" "+string(end), func(t *testing.T) {
				d := newDesk(t).cloud().shared()
				vm := d.vm("web1", "a1", nil)
				d.phase("web1", was)
				target := find[api.Agent](d, "", "a2")
				o := opts
				o.Parent = "the-drain"
				op := d.ask(d.Admission.MigrateVM(ctx, d.User, o, "web1", api.VMMigrate{To: "a2", Bandwidth: api.GiB}))
				require.Equal(t, "the-drain", op.Parent)
				require.Equal(t, vm.ID, op.Target.ID)
				var input api.VMMigrate
				require.NoError(t, json.Unmarshal(op.Plan.Input, &input))
				require.Equal(t, api.VMMigrate{To: target.ID, Bandwidth: api.GiB}, input, "the node is named by its ID from here on")

				held := find[api.VM](d, opts.Project, "web1")
				require.Equal(t, api.PhaseMigrating, held.Status.Phase)
				require.Equal(t, op.ID, held.Operation)
				require.Equal(t, api.Lock{Ref: api.RefTo(vm), Before: was, Then: was}, locks(op)[vm.ID])
				volume := vm.Status.Volumes[0]
				require.Equal(t, api.PhaseReady, locks(op)[volume].Before)
				d.clean()

				// What the steps write meanwhile is not taken back.
				change(d, opts.Project, "web1", func(vm *api.VM) { vm.Status.MovingTo = target.ID })
				change(d, opts.Project, "web1", func(vm *api.VM) { vm.Status.MovingTo, vm.Status.Agent, vm.Status.AgentName = "", target.ID, "a2" })
				d.promise(target, vm)
				d.unpromise(vm.Status.Agent, vm)
				d.settle(op, end)
				after := find[api.VM](d, opts.Project, "web1")
				require.Equal(t, was, after.Status.Phase)
				require.Equal(t, "a2", after.Status.AgentName)
				require.Empty(t, after.Status.MovingTo)
				require.Empty(t, after.Operation)
				d.clean()
			})
		}
	}
}

func TestWhatCannotMoveIsToldSoAtOnce(t *testing.T) {
	d := newDesk(t).cloud().shared()
	a := d.Admission
	d.vm("web1", "a1", nil)
	d.vm("local", "a1", func(r *api.VMCreate) { r.Pool = "vms" })
	d.vm("pinned", "a1", func(r *api.VMCreate) { r.NodeID = "a1" })
	move := func(ref string, req api.VMMigrate) *problem.Problem {
		op, err := a.MigrateVM(ctx, d.User, opts, ref, req)
		require.Nil(t, op)
		require.Error(t, err)
		require.NotEmpty(t, problem.From(err).Fix, "%v", err)
		return problem.From(err)
	}
	require.Contains(t, move("local", api.VMMigrate{}).Fix, "--copy-storage")
	require.Contains(t, move("pinned", api.VMMigrate{}).Fix, "--no-node")
	require.Contains(t, move("web1", api.VMMigrate{To: "a1"}).What, "already")
	require.Equal(t, problem.NotFound, move("web1", api.VMMigrate{To: "none"}).Kind)
	require.Equal(t, problem.NotFound, move("none", api.VMMigrate{}).Kind)
	require.Equal(t, problem.Invalid, move("web1", api.VMMigrate{Bandwidth: 1}).Kind)
	for phase, fix := range map[api.Phase]string{api.PhasePaused: "resume or stop", api.PhaseUnknown: "recovery", api.PhaseError: "gnext vm get"} {
		d.phase("web1", phase)
		p := move("web1", api.VMMigrate{})
		require.Equal(t, problem.Conflict, p.Kind)
		require.Contains(t, p.Fix, fix)
	}
	d.phase("web1", api.PhaseRunning)
	d.ask(a.MigrateVM(ctx, d.User, opts, "local", api.VMMigrate{CopyStorage: true}))
	require.Equal(t, problem.Locked, move("local", api.VMMigrate{CopyStorage: true}).Kind)
	d.clean()
}

func TestOnlyAVMThatNobodyKnowsOfIsRecovered(t *testing.T) {
	d := newDesk(t).cloud().shared()
	d.vm("web1", "a1", nil)
	none, err := d.Admission.RecoverVM(ctx, d.User, opts, "web1")
	_ = d.refuse(problem.Conflict, none, err)
	for _, end := range []api.OperationState{api.OpFailed, api.OpSucceeded} {
		d.phase("web1", api.PhaseUnknown)
		op := d.ask(d.Admission.RecoverVM(ctx, d.User, opts, "web1"))
		require.Equal(t, api.PhaseMigrating, find[api.VM](d, opts.Project, "web1").Status.Phase)
		d.settle(op, end)
		vm := find[api.VM](d, opts.Project, "web1")
		if end == api.OpSucceeded {
			require.Equal(t, api.PhaseRunning, vm.Status.Phase)
			require.Empty(t, vm.Status.Reason)
			continue
		}
		require.Equal(t, api.PhaseUnknown, vm.Status.Phase)
		require.Contains(t, vm.Status.Reason, "it was not to be")
	}
	d.clean()
}

func TestAVMIsUpdatedInPlace(t *testing.T) {
	d := newDesk(t).cloud().shared()
	a := d.Admission
	vm := d.vm("web1", "a1", func(r *api.VMCreate) { r.Labels = map[string]string{"old": "1"} })
	yes, no, node, none, pack := true, false, "a1", "", "pack"
	labels, where := map[string]string{"tier": "front"}, map[string]string{"rack": "a"}
	for _, phase := range []api.Phase{api.PhaseRunning, api.PhaseStopped, api.PhasePaused} {
		d.phase("web1", phase)
		op := d.ask(a.UpdateVM(ctx, d.User, opts, "web1", api.VMUpdate{HA: &yes, Labels: &labels, NodeLabels: &where, Group: &pack}))
		require.JSONEq(t, "true", string(op.Plan.Input))
		require.JSONEq(t, "false", string(op.Plan.Before))
		held := find[api.VM](d, opts.Project, "web1")
		require.Equal(t, phase, held.Status.Phase)
		require.False(t, held.Spec.HA, "nothing has changed before the node knows")
		d.clean()
		change(d, opts.Project, "web1", func(vm *api.VM) { vm.Status.Addresses = []string{"10.0.1.200"} })
		d.settle(op, api.OpSucceeded)
		after := find[api.VM](d, opts.Project, "web1")
		require.True(t, after.Spec.HA)
		require.Equal(t, labels, after.Labels)
		require.Equal(t, where, after.Spec.NodeLabels)
		require.Equal(t, find[api.VMGroup](d, opts.Project, "pack").ID, after.Spec.Group)
		require.Equal(t, phase, after.Status.Phase)
		require.Equal(t, []string{"10.0.1.200"}, after.Status.Addresses, "what it is was not the update's to say")
		require.Equal(t, vm.Spec.Image, after.Spec.Image)
		d.clean()
		gone, err := a.DeleteGroup(ctx, d.User, opts, "pack")
		_ = d.refuse(problem.InUse, gone, err)
		d.settle(d.ask(a.UpdateVM(ctx, d.User, opts, "web1", api.VMUpdate{HA: &no, Group: &none})), api.OpFailed)
		d.clean()
		d.done(a.UpdateVM(ctx, d.User, opts, "web1", api.VMUpdate{HA: &no, Group: &none}))
		d.clean()
	}
	d.done(a.DeleteGroup(ctx, d.User, opts, "pack"))

	for _, strategy := range []string{api.Pack, api.Spread, ""} {
		d.done(a.UpdateVM(ctx, d.User, opts, "web1", api.VMUpdate{Placement: &strategy}))
		require.Equal(t, strategy, find[api.VM](d, opts.Project, "web1").Spec.Placement)
	}
	heap := "heap"
	bad, err := a.UpdateVM(ctx, d.User, opts, "web1", api.VMUpdate{Placement: &heap})
	require.Equal(t, "placement", d.refuse(problem.Invalid, bad, err).Fields[0].Path)

	elsewhere := "a2"
	op, err := a.UpdateVM(ctx, d.User, opts, "web1", api.VMUpdate{NodeID: &elsewhere})
	require.Contains(t, d.refuse(problem.Conflict, op, err).Fix, "migrate")
	d.done(a.UpdateVM(ctx, d.User, opts, "web1", api.VMUpdate{NodeID: &node}))
	require.Equal(t, vm.Status.Agent, find[api.VM](d, opts.Project, "web1").Spec.NodeID)
	op, err = a.UpdateVM(ctx, d.User, opts, "web1", api.VMUpdate{HA: &yes})
	_ = d.refuse(problem.Conflict, op, err)
	d.done(a.UpdateVM(ctx, d.User, opts, "web1", api.VMUpdate{HA: &yes, NodeID: &none}))
	d.phase("web1", api.PhaseUnknown)
	op, err = a.UpdateVM(ctx, d.User, opts, "web1", api.VMUpdate{HA: &no})
	_ = d.refuse(problem.Conflict, op, err)
}

func TestHANeedsADiskThatOthersReach(t *testing.T) {
	d := newDesk(t).cloud().shared()
	local := vmRequest("local")
	local.Pool, local.HA = "vms", true
	op, err := d.Admission.CreateVM(ctx, d.User, opts, local)
	require.Contains(t, d.refuse(problem.Conflict, op, err).Why, "pool vms")
	d.vm("web1", "a1", func(r *api.VMCreate) { r.Pool = "vms" })
	yes := true
	op, err = d.Admission.UpdateVM(ctx, d.User, opts, "web1", api.VMUpdate{HA: &yes})
	_ = d.refuse(problem.Conflict, op, err)
	vm := d.vm("web2", "a1", func(r *api.VMCreate) {
		r.HA, r.Placing = true, api.Placing{NodeLabels: map[string]string{"rack": "a"}, Group: "pack", Arch: "x86_64", CPUModel: "EPYC"}
	})
	require.True(t, vm.Spec.HA)
	want := api.Placing{NodeLabels: map[string]string{"rack": "a"}, Group: find[api.VMGroup](d, opts.Project, "pack").ID, Arch: "x86_64", CPUModel: "EPYC"}
	require.Equal(t, want, vm.Spec.Placing)
	d.clean()
}

func TestAPreviewSaysWhatTheRequestWouldAndWritesNothing(t *testing.T) {
	d := newDesk(t).cloud().shared()
	d.vm("web1", "a1", nil)
	all := func() []store.Entry {
		entries, _, err := d.KV.List(ctx, store.Root)
		require.NoError(t, err)
		return entries
	}
	before := all()
	r := vmRequest("web2")
	r.Pool, r.NodeID = "nfs", "a2"
	vm, err := d.Admission.Preview(ctx, d.User, opts, r)
	require.NoError(t, err)
	require.Equal(t, "web2", vm.Name)
	require.Equal(t, find[api.Agent](d, "", "a2").ID, vm.Spec.NodeID)
	require.Equal(t, api.GiB, vm.Spec.RootDisk)
	r.Name = "web1"
	_, err = d.Admission.Preview(ctx, d.User, opts, r)
	require.Contains(t, err.Error(), "taken")
	r.Image = "none"
	_, err = d.Admission.Preview(ctx, d.User, opts, r)
	require.True(t, problem.Is(err, problem.NotFound), "%v", err)
	_, err = d.Admission.Preview(ctx, d.User, admission.Options{Project: "none"}, r)
	require.True(t, problem.Is(err, problem.NotFound), "%v", err)

	vm, req, err := d.Admission.PreviewMigrate(ctx, d.User, opts, "web1", api.VMMigrate{To: "a2"})
	require.NoError(t, err)
	require.Equal(t, api.PhaseRunning, vm.Status.Phase)
	require.Equal(t, find[api.Agent](d, "", "a2").ID, req.To)
	_, _, err = d.Admission.PreviewMigrate(ctx, d.User, opts, "web1", api.VMMigrate{To: "a1"})
	require.True(t, problem.Is(err, problem.Conflict), "%v", err)
	require.Equal(t, before, all())
}
