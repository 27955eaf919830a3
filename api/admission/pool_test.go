package admission_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// pool makes a pool on the first node.
func (d *desk) pool(shared bool, agents ...string) *desk {
	d.Helper()
	d.done(d.Admission.CreatePool(ctx, d.User, nowhere, api.PoolCreate{Name: "p", Type: api.PoolDir, Path: "/p", Shared: shared, Agents: agents}))
	return d
}

func (d *desk) update(u api.PoolUpdate) (*api.Operation, error) {
	return d.Admission.UpdatePool(ctx, d.User, nowhere, "p", u)
}

// on returns the names of the nodes that have the pool.
func (d *desk) on() (names []string) {
	d.Helper()
	for _, id := range find[api.Pool](d, "", "p").Spec.Agents {
		a, err := store.Get[api.Agent](ctx, d.KV, d.User, "", id)
		require.NoError(d, err)
		names = append(names, a.Name)
	}
	return names
}

func names(agents []api.AgentRef) (out []string) {
	for _, a := range agents {
		out = append(out, a.Name)
	}
	return out
}

func TestNodesComeIntoAPoolAndLeaveIt(t *testing.T) {
	d := newDesk(t).pool(false, "a1", "a2")
	before, labels := claims(d), map[string]string{"disks": "nvme"}
	want := api.PoolUpdate{AddAgents: []string{"a3", "a1"}, RemoveAgents: []string{"a2"}, Labels: &labels}
	for _, end := range []api.OperationState{api.OpFailed, api.OpCancelled} {
		op := d.ask(d.update(want))
		d.clean()
		change := decoded[api.PoolChange](d, op.Plan.Input)
		require.Equal(t, []string{"a3"}, names(change.Add), "a1 has it")
		require.Equal(t, []string{"a2"}, names(change.Remove))
		p := find[api.Pool](d, "", "p")
		require.True(t, p.Takes(find[api.Agent](d, "", "a1").ID))
		require.False(t, p.Takes(find[api.Agent](d, "", "a2").ID), "nothing new goes where it is being taken away")
		require.False(t, p.Takes(find[api.Agent](d, "", "a3").ID), "nor where it is not yet")
		require.Equal(t, api.PhaseReady, p.Status.Phase)
		none, err := d.update(api.PoolUpdate{AddAgents: []string{"a3"}})
		_ = d.refuse(problem.Locked, none, err)
		d.settle(op, end)
		require.Equal(t, []string{"a1", "a2"}, d.on())
		require.Empty(t, find[api.Pool](d, "", "p").Status.Leaving)
		require.Equal(t, before, claims(d))
		d.clean()
	}

	op := d.ask(d.update(want))
	change(d, "", "p", func(p *api.Pool) { p.Status.Capacity, p.Status.Free = 7, 5 }) // as a report would
	d.settle(op, api.OpSucceeded)
	p := find[api.Pool](d, "", "p")
	require.Equal(t, []string{"a1", "a3"}, d.on())
	require.Equal(t, labels, p.Labels)
	require.Equal(t, api.PoolStatus{Phase: api.PhaseReady, Capacity: 7, Free: 5}, p.Status, "it is not the update's to say")
	d.clean()

	// Once more is harmless, and a pool elsewhere may have the directory that is free now.
	d.done(d.update(want))
	require.Equal(t, []string{"a1", "a3"}, d.on())
	other := api.PoolCreate{Name: "q", Type: api.PoolDir, Path: "/p", Agents: []string{"a2"}}
	d.done(d.Admission.CreatePool(ctx, d.User, nowhere, other))
	none, err := d.update(api.PoolUpdate{AddAgents: []string{"a2"}})
	require.Contains(t, d.refuse(problem.Conflict, none, err).What, "another pool")
	d.clean()
}

func TestWhatPoolUpdatesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(d *desk)
		update  api.PoolUpdate
		kind    problem.Kind
		says    string
	}{
		"the last node":      {nil, api.PoolUpdate{RemoveAgents: []string{"a1", "a2"}}, problem.InUse, "needs a node"},
		"no such node":       {nil, api.PoolUpdate{AddAgents: []string{"a9"}}, problem.NotFound, "a9"},
		"no such leaver":     {nil, api.PoolUpdate{RemoveAgents: []string{"a9"}}, problem.NotFound, "a9"},
		"both at once":       {nil, api.PoolUpdate{AddAgents: []string{"a3"}, RemoveAgents: []string{"a3"}}, problem.Invalid, "added as well"},
		"bad label":          {nil, api.PoolUpdate{Labels: &map[string]string{"": "x"}}, problem.Invalid, "labels"},
		"a silent newcomer":  {func(d *desk) { d.silence("a3", api.PhaseSuspect) }, api.PoolUpdate{AddAgents: []string{"a3"}}, problem.Unavailable, "suspect"},
		"a silent leaver":    {func(d *desk) { d.silence("a2", api.PhaseSuspect) }, api.PoolUpdate{RemoveAgents: []string{"a2"}}, problem.Unavailable, "suspect"},
		"down without proof": {func(d *desk) { d.silence("a2", api.PhaseDown) }, api.PoolUpdate{RemoveAgents: []string{"a2"}}, problem.Unavailable, "nothing proves"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t).pool(false, "a1", "a2")
			if c.prepare != nil {
				c.prepare(d)
			}
			before := claims(d)
			op, err := d.update(c.update)
			p := d.refuse(c.kind, op, err)
			require.Contains(t, problem.Marshal(p), c.says)
			require.NotEmpty(t, p.Fix)
			require.Equal(t, before, claims(d))
			require.Empty(t, find[api.Pool](d, "", "p").Status.Leaving)
		})
	}
	d := newDesk(t).pool(false, "a1")
	id := find[api.Agent](d, "", "a3").ID
	op, err := d.update(api.PoolUpdate{AddAgents: []string{"a3"}, RemoveAgents: []string{id}})
	require.Contains(t, d.refuse(problem.Invalid, op, err).Why, "added as well", "by name and by ID")
}

// TestANodeKeepsAPoolThatSomethingIsIn also is about those that are on their way.
func TestANodeKeepsAPoolThatSomethingIsIn(t *testing.T) {
	for _, shared := range []bool{false, true} {
		d := newDesk(t).cloud().pool(shared)
		d.vm("web1", "a1", func(r *api.VMCreate) { r.Pool = "p" })
		change(d, opts.Project, "web1", func(vm *api.VM) { vm.Status.MovingTo = find[api.Agent](d, "", "a2").ID })
		for _, node := range []string{"a1", "a2"} {
			op, err := d.update(api.PoolUpdate{RemoveAgents: []string{node}})
			p := d.refuse(problem.InUse, op, err)
			require.Contains(t, p.Why, "vm web1 of project default")
			require.Contains(t, p.Fix, "gnext host drain "+node)
		}
		change(d, opts.Project, "web1", func(vm *api.VM) { vm.Status.MovingTo = "" })
		d.done(d.update(api.PoolUpdate{RemoveAgents: []string{"a2"}}))
		d.silence("a1", api.PhaseDown)
		op, err := d.update(api.PoolUpdate{RemoveAgents: []string{"a1"}})
		require.NotContains(t, d.refuse(problem.InUse, op, err).Fix, "drain", "nothing can be moved away from it")
	}
	d := newDesk(t).cloud().pool(false)
	vm := d.vm("web1", "a1", func(r *api.VMCreate) { r.Pool = "p" })
	volume, err := store.Get[api.Volume](ctx, d.KV, d.User, opts.Project, vm.Status.Volumes[0])
	require.NoError(t, err)
	change(d, opts.Project, volume.Name, func(v *api.Volume) { v.Spec.VM, v.Status.Agent = "", find[api.Agent](d, "", "a3").ID })
	op, err := d.update(api.PoolUpdate{RemoveAgents: []string{"a3"}})
	require.Contains(t, d.refuse(problem.InUse, op, err).Why, "volume "+volume.Name)
}

// TestANodeKeepsAPoolThatAVolumeOfAVMIsComingTo: its record is still at the node that the VM leaves.
func TestANodeKeepsAPoolThatAVolumeOfAVMIsComingTo(t *testing.T) {
	d := newDesk(t).cloud().pool(false)
	d.vm("web1", "a1", func(r *api.VMCreate) { r.Pool = "vms" })
	d.volume("data", "p", nil)
	d.done(d.Admission.AttachVolume(ctx, d.User, opts, "data", api.VolumeAttach{VM: "web1"}))
	change(d, opts.Project, "web1", func(vm *api.VM) { vm.Status.MovingTo = find[api.Agent](d, "", "a2").ID })
	for _, node := range []string{"a1", "a2"} {
		op, err := d.update(api.PoolUpdate{RemoveAgents: []string{node}})
		require.Contains(t, d.refuse(problem.InUse, op, err).Why, "volume data of project default")
	}
	change(d, opts.Project, "web1", func(vm *api.VM) { vm.Status.MovingTo = "" })
	d.done(d.update(api.PoolUpdate{RemoveAgents: []string{"a2"}}))
}

func TestADeadNodeIsTakenOutOfItsPoolsUnaskedAndForgotten(t *testing.T) {
	d := newDesk(t).pool(false, "a1", "a2").shared()
	d.silence("a2", api.PhaseDown)
	change(d, "", "a2", func(a *api.Agent) { a.Status.Proof = &api.Proof{Kind: api.ProofFence} })
	op, err := d.Admission.DeleteHost(ctx, d.User, nowhere, "a2")
	require.Contains(t, d.refuse(problem.InUse, op, err).Fix, "--remove-agent a2")

	op = d.done(d.update(api.PoolUpdate{RemoveAgents: []string{"a2"}}))
	require.Empty(t, decoded[api.PoolChange](d, op.Plan.Input).Remove)
	op = d.done(d.Admission.UpdatePool(ctx, d.User, nowhere, "nfs", api.PoolUpdate{RemoveAgents: []string{"a2", "a3"}}))
	require.Empty(t, decoded[api.PoolChange](d, op.Plan.Input).Remove, "what is shared stays where it is")
	d.done(d.Admission.DeleteHost(ctx, d.User, nowhere, "a2"))
	d.clean()
}

// TestADecisionForALeavingNodeFails is about a placement that was thought out before the update, and is written after it.
func TestADecisionForALeavingNodeFails(t *testing.T) {
	d := newDesk(t).pool(true, "a1", "a2")
	node := store.NodePrefix(find[api.Agent](d, "", "a2").ID)
	ledger, err := store.Ledger(ctx, d.KV, node)
	require.NoError(t, err)
	d.ask(d.update(api.PoolUpdate{RemoveAgents: []string{"a2"}}))
	draft := store.NewDraft(d.User)
	draft.Touch(node, ledger.Revision)
	_, err = draft.Commit(ctx, d.KV)
	require.True(t, problem.Is(err, problem.Conflict), "%v", err)
}

func TestAFailedPoolUpdateCanBeRetried(t *testing.T) {
	d := newDesk(t).pool(false, "a1")
	op := d.ask(d.update(api.PoolUpdate{AddAgents: []string{"a2"}}))
	d.settle(op, api.OpFailed)
	d.done(d.Admission.Retry(ctx, d.User, nowhere, op.ID))
	require.Equal(t, []string{"a1", "a2"}, d.on())
}

func TestPoolsThatAgentsMount(t *testing.T) {
	d := newDesk(t)
	source := api.PoolSource{Hosts: []string{"10.0.0.21"}, Name: "gv0"}
	op := d.ask(d.Admission.CreatePool(ctx, d.User, nowhere, api.PoolCreate{Name: "p", Type: api.PoolGluster, Source: source, Agents: []string{"a1", "a2"}}))
	work := decoded[api.PoolWork](d, op.Plan.Input)
	p := find[api.Pool](d, "", "p")
	require.Equal(t, api.MountDir+"/"+p.ID, p.Spec.Path)
	require.True(t, p.Spec.Shared, "whoever mounts it sees the same")
	require.Equal(t, api.PoolOnNode{Pool: p.ID, Name: p.Name, Type: api.PoolGluster, Path: p.Spec.Path, Shared: true, Source: source}, work.Pool)
	d.settle(op, api.OpSucceeded)
	change := decoded[api.PoolChange](d, d.done(d.update(api.PoolUpdate{AddAgents: []string{"a3"}})).Plan.Input)
	require.Equal(t, source, change.Pool.Source, "who joins must know what to mount")
	d.clean()
	d.done(d.Admission.DeletePool(ctx, d.User, nowhere, "p"))
	d.clean()
}

func TestWhatIsInTheWayOfAPoolIsNamed(t *testing.T) {
	d := newDesk(t).cloud()
	d.vm("web1", "a1", func(r *api.VMCreate) { r.Pool = "vms" })
	d.volume("data", "vms", nil)
	none, err := d.Admission.DeletePool(ctx, d.User, nowhere, "vms")
	why := d.refuse(problem.InUse, none, err).Why
	require.Contains(t, why, "volume data (")
	require.Contains(t, why, " of vm web1 in project "+opts.Project)
	change(d, "", "vms", func(p *api.Pool) { p.SetPhase(api.PhaseUnavailable, "node a1: it is not mounted") })
	none, err = d.Admission.CreateVolume(ctx, d.User, opts, api.VolumeCreate{Name: "more", Pool: "vms", Size: api.GiB})
	p := d.refuse(problem.Unavailable, none, err)
	require.Equal(t, "it is unavailable: node a1: it is not mounted", p.Why)
	require.Contains(t, p.Fix, "see: gnext pool get vms")
}
