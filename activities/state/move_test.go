package state_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/test/fault"
	"github.com/nextstack/nextstack/workflows/steps"
)

// cloud is a world with the VM web1 on one node, and another node.
type cloud struct {
	*testing.T
	*fault.World
	c          central
	here, over *fault.Node // web1's node, and the other one
}

func newCloud(t *testing.T, shared bool) *cloud {
	w := base(t)
	change(t, w, get[api.Pool](t, w, "", "vms"), func(p *api.Pool) { p.Spec.Shared = shared })
	_, err := w.Do(ctx, fault.CreateVM("web1"))
	require.NoError(t, err)
	c := &cloud{T: t, World: w, c: newCentral(w), here: w.Nodes[0], over: w.Nodes[1]}
	if c.vm().Status.Agent == c.over.ID {
		c.here, c.over = c.over, c.here
	}
	return c
}

// change reads a record anew, changes it and writes it.
func change[T any, P interface {
	*T
	api.Resource
}](t *testing.T, w *fault.World, r P, how func(*T)) {
	t.Helper()
	m := r.GetMeta()
	now, err := store.Get[T, P](ctx, w.KV, w.User, m.Project, m.ID)
	require.NoError(t, err)
	how(now)
	write(t, w, func(d *store.Draft) { d.Update(P(now)) })
}

func (c *cloud) vm() *api.VM { return get[api.VM](c.T, c.World, opts.Project, "web1") }

func (c *cloud) agent(n *fault.Node) *api.Agent { return get[api.Agent](c.T, c.World, "", n.Name) }

func (c *cloud) ref() steps.VMRef { return steps.VMRef{Project: opts.Project, VM: c.vm().ID} }

// migrate accepts a move of web1 and returns the request of its first step.
func (c *cloud) migrate(req api.VMMigrate) (steps.Token, steps.MoveRequest) {
	c.Helper()
	op, err := c.Admission.MigrateVM(ctx, c.User, opts, "web1", req)
	require.NoError(c, err)
	return steps.Token{Operation: op.ID}, steps.MoveRequest{VMRef: c.ref(), VMMigrate: req}
}

func (c *cloud) claimed(n *fault.Node) int {
	l, err := store.Ledger(ctx, c.KV, store.NodePrefix(n.ID))
	require.NoError(c, err)
	return len(l.Claims)
}

func TestAMoveHoldsRoomOnBothNodesUntilItIsMade(t *testing.T) {
	c := newCloud(t, true)
	tok, req := c.migrate(api.VMMigrate{})
	m, err := call(c.c, steps.PlaceMove, tok, req)
	require.NoError(t, err)
	require.Equal(t, api.MoveLive, m.Kind)
	require.False(t, m.Copy)
	require.Equal(t, api.PhaseRunning, m.Phase)
	require.Equal(t, []string{c.here.ID, c.over.ID}, []string{m.Source.Agent, m.Target.Agent})
	require.Equal(t, []string{c.here.Name, c.over.Name}, []string{m.From, m.To}, "the chassis have the nodes' names")
	require.Len(t, m.Ports, len(c.vm().Spec.NICs))
	require.Equal(t, c.over.ID, m.Decision.Node)
	require.Contains(t, m.Decision.Refused[0].Reason, "there already")
	require.True(t, m.Target.Disk.Shared)

	again, err := call(c.c, steps.PlaceMove, tok, req)
	require.NoError(t, err)
	require.Equal(t, m.Target, again.Target)
	require.Equal(t, 1, c.claimed(c.here))
	require.Equal(t, 1, c.claimed(c.over))
	require.Equal(t, c.here.ID, c.vm().Status.Agent)
	require.Equal(t, c.over.ID, c.vm().Status.MovingTo)

	late := steps.Token{Operation: api.NewID()}
	_, err = call(c.c, steps.PlaceMove, late, req)
	require.Equal(t, problem.Stale, problem.KindOf(err))
	_, err = call(c.c, steps.SwitchVM, late, steps.MoveEnd{VMRef: req.VMRef, Target: c.over.ID})
	require.Equal(t, problem.Stale, problem.KindOf(err))
	_, err = call(c.c, steps.UnplaceMove, late, req.VMRef)
	require.NoError(t, err)
	require.Equal(t, 1, c.claimed(c.over), "a late undo gives nothing back that is somebody's")

	for range 2 {
		_, err = call(c.c, steps.UnplaceMove, tok, req.VMRef)
		require.NoError(t, err)
		require.Zero(t, c.claimed(c.over))
		require.Empty(t, c.vm().Status.MovingTo)
	}
	_, err = call(c.c, steps.SwitchVM, tok, steps.MoveEnd{VMRef: req.VMRef, Target: c.over.ID})
	require.Error(t, err, "it is not on its way any more")

	_, err = call(c.c, steps.PlaceMove, tok, req)
	require.NoError(t, err)
	for range 2 {
		_, err = call(c.c, steps.SwitchVM, tok, steps.MoveEnd{VMRef: req.VMRef, Target: c.over.ID})
		require.NoError(t, err)
		vm := c.vm()
		require.Equal(t, []string{c.over.ID, c.over.Name, ""}, []string{vm.Status.Agent, vm.Status.AgentName, vm.Status.MovingTo})
		require.Zero(t, c.claimed(c.here))
		require.Equal(t, 1, c.claimed(c.over))
		v, err := store.Get[api.Volume](ctx, c.KV, c.User, opts.Project, vm.Status.Volumes[0])
		require.NoError(t, err)
		require.Equal(t, c.over.ID, v.Status.Agent)
	}
}

func TestWhatCannotBeMovedIsRefusedWithTheReason(t *testing.T) {
	for name, r := range map[string]struct {
		unshared bool
		req      api.VMMigrate
		meddle   func(c *cloud)
		kind     problem.Kind
		why      string
	}{
		"pinned": {meddle: func(c *cloud) {
			change(c.T, c.World, c.vm(), func(vm *api.VM) { vm.Spec.NodeID = c.here.ID })
		}, kind: problem.Conflict, why: "pinned to node a"},
		"no room": {meddle: func(c *cloud) {
			change(c.T, c.World, c.agent(c.over), func(a *api.Agent) { a.Status.Inventory.Memory = a.Spec.ReservedMemory })
		}, kind: problem.NoCapacity, why: "0 bytes of memory free"},
		"target named, without the pool": {meddle: func(c *cloud) {
			change(c.T, c.World, get[api.Pool](c.T, c.World, "", "vms"), func(p *api.Pool) { p.Spec.Agents = []string{c.here.ID} })
		}, kind: problem.NoCapacity, why: "does not have the pool"},
		"target away": {meddle: func(c *cloud) {
			change(c.T, c.World, c.agent(c.over), func(a *api.Agent) { a.Status.Phase, a.Status.Reason = api.PhaseSuspect, "silent" })
		}, kind: problem.Unavailable, why: "silent"},
		"target down": {meddle: func(c *cloud) {
			change(c.T, c.World, c.agent(c.over), func(a *api.Agent) { a.Status.Phase = api.PhaseDown })
		}, kind: problem.NoCapacity, why: "down"},
		"target of another architecture": {meddle: func(c *cloud) {
			change(c.T, c.World, c.agent(c.over), func(a *api.Agent) { a.Status.Inventory.Arch = "riscv64" })
		}, kind: problem.NoCapacity, why: "x86_64 needed"},
		"source away": {meddle: func(c *cloud) {
			change(c.T, c.World, c.agent(c.here), func(a *api.Agent) { a.Status.Phase = api.PhaseSuspect })
		}, kind: problem.Unavailable, why: "suspect"},
		"source down": {meddle: func(c *cloud) {
			change(c.T, c.World, c.agent(c.here), func(a *api.Agent) { a.Status.Phase = api.PhaseDown })
		}, kind: problem.Conflict, why: "is down"},
		"source without the pool": {meddle: func(c *cloud) {
			change(c.T, c.World, get[api.Pool](c.T, c.World, "", "vms"), func(p *api.Pool) { p.Spec.Agents = []string{c.over.ID} })
		}, kind: problem.Conflict, why: "does not have pool vms any more"},
		"not shared any more": {meddle: func(c *cloud) {
			change(c.T, c.World, get[api.Pool](c.T, c.World, "", "vms"), func(p *api.Pool) { p.Spec.Shared = false })
		}, kind: problem.Conflict, why: "--copy-storage"},
		"no space for the copy": {unshared: true, req: api.VMMigrate{CopyStorage: true}, meddle: func(c *cloud) {
			id := get[api.Pool](c.T, c.World, "", "vms").ID
			change(c.T, c.World, c.agent(c.over), func(a *api.Agent) { a.Status.Inventory.Pools = []api.PoolUsage{{Pool: id, Free: 1}} })
		}, kind: problem.NoCapacity, why: "1 bytes free"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCloud(t, !r.unshared)
			tok, req := c.migrate(r.req)
			r.meddle(c)
			_, err := call(c.c, steps.PlaceMove, tok, req)
			require.Equal(t, r.kind, problem.KindOf(err), "%v", err)
			require.Contains(t, err.Error(), r.why)
			require.Zero(t, c.claimed(c.over))
			require.Empty(t, c.vm().Status.MovingTo)
		})
	}
}

func TestACopyIsColdOrLiveAsTheVMIs(t *testing.T) {
	c := newCloud(t, false)
	tok, req := c.migrate(api.VMMigrate{CopyStorage: true, Cold: true})
	m, err := call(c.c, steps.PlaceMove, tok, req)
	require.NoError(t, err)
	require.Equal(t, api.MoveCold, m.Kind)
	require.True(t, m.Copy)
	require.False(t, m.Target.Disk.Shared)
}

// dead makes web1's node proven to be down.
func (c *cloud) dead() {
	change(c.T, c.World, c.agent(c.here), func(a *api.Agent) {
		a.Status.Phase, a.Status.Proof = api.PhaseDown, &api.Proof{Kind: api.ProofOperator, Detail: "test"}
	})
}

func (c *cloud) ha() {
	change(c.T, c.World, c.vm(), func(vm *api.VM) { vm.Spec.HA = true })
}

func TestNothingIsRestartedElsewhereWithoutAProof(t *testing.T) {
	for name, r := range map[string]struct {
		meddle func(c *cloud)
		why    string // empty: it is restarted
	}{
		"proven":     {func(c *cloud) { c.ha(); c.dead() }, ""},
		"not proven": {func(c *cloud) { c.ha(); c.dead(); c.undoProof() }, "nothing proves"},
		"suspect": {func(c *cloud) {
			c.ha()
			change(c.T, c.World, c.agent(c.here), func(a *api.Agent) { a.Status.Phase = api.PhaseSuspect })
		}, "nothing proves"},
		"not ha": {func(c *cloud) { c.dead() }, "not marked ha"},
		"not shared": {func(c *cloud) {
			c.ha()
			c.dead()
			change(c.T, c.World, get[api.Pool](c.T, c.World, "", "vms"), func(p *api.Pool) { p.Spec.Shared = false })
		}, "not shared"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCloud(t, true)
			change(t, c.World, c.vm(), func(vm *api.VM) { vm.Status.Phase = api.PhaseUnknown })
			r.meddle(c)
			op, err := c.Admission.RecoverVM(ctx, c.User, opts, "web1")
			require.NoError(t, err)
			m, err := call(c.c, steps.PlaceMove, steps.Token{Operation: op.ID}, steps.MoveRequest{VMRef: c.ref(), Recover: true})
			if r.why == "" {
				require.NoError(t, err)
				require.Equal(t, api.MoveRestart, m.Kind)
				require.Equal(t, c.over.ID, m.Target.Agent)
				require.Equal(t, api.PhaseRunning, m.Phase)
				require.True(t, m.Target.HA)
				return
			}
			require.Equal(t, problem.Conflict, problem.KindOf(err), "%v", err)
			require.Contains(t, err.Error(), r.why)
			require.Zero(t, c.claimed(c.over))
		})
	}
}

func (c *cloud) undoProof() {
	change(c.T, c.World, c.agent(c.here), func(a *api.Agent) { a.Status.Proof = nil })
}
