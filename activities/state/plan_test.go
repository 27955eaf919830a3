package state_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/state"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/test/fault"
	"github.com/nextstack/nextstack/workflows/steps"
)

func (c *cloud) drain(req api.HostDrain) api.MovePlan {
	c.Helper()
	plan, err := call(c.c, steps.PlanDrain, steps.Token{}, steps.DrainPlan{Agent: c.here.ID, HostDrain: req})
	require.NoError(c, err)
	return plan
}

func TestADrainSaysWhatGoesWhereAndWhatStays(t *testing.T) {
	c := newCloud(t, true)
	plan := c.drain(api.HostDrain{})
	require.Empty(t, plan.Stays)
	require.Len(t, plan.Moves, 1)
	m := plan.Moves[0]
	require.Equal(t, []string{"web1", c.here.Name, c.over.Name, api.MoveLive}, []string{m.VM.Name, m.From, m.To, m.Kind})

	for name, r := range map[string]struct {
		meddle func(c *cloud)
		req    api.HostDrain
		why    string // empty: it goes
		kind   string
	}{
		"stopped": {func(c *cloud) {
			change(c.T, c.World, c.vm(), func(vm *api.VM) { vm.Status.Phase = api.PhaseStopped })
		}, api.HostDrain{}, "", api.MoveCold},
		"paused": {func(c *cloud) {
			change(c.T, c.World, c.vm(), func(vm *api.VM) { vm.Status.Phase = api.PhasePaused })
		}, api.HostDrain{}, "paused", ""},
		"pinned": {func(c *cloud) {
			change(c.T, c.World, c.vm(), func(vm *api.VM) { vm.Spec.NodeID = c.here.ID })
		}, api.HostDrain{}, "pinned", ""},
		"other node cordoned": {func(c *cloud) {
			change(c.T, c.World, c.agent(c.over), func(a *api.Agent) { a.Spec.Cordoned, a.Spec.CordonReason = true, "new disks" })
		}, api.HostDrain{}, "new disks", ""},
		"not shared": {func(c *cloud) {
			change(c.T, c.World, get[api.Pool](c.T, c.World, "", "vms"), func(p *api.Pool) { p.Spec.Shared = false })
		}, api.HostDrain{}, "--copy-storage", ""},
		"not shared, copied": {func(c *cloud) {
			change(c.T, c.World, get[api.Pool](c.T, c.World, "", "vms"), func(p *api.Pool) { p.Spec.Shared = false })
		}, api.HostDrain{CopyStorage: true}, "", api.MoveLive},
		"cannot go live": {func(c *cloud) {
			change(c.T, c.World, c.agent(c.over), func(a *api.Agent) { a.Status.Inventory.Accel = "kvm" })
		}, api.HostDrain{}, "--cold", ""},
		"cannot go live, cold": {func(c *cloud) {
			change(c.T, c.World, c.agent(c.over), func(a *api.Agent) { a.Status.Inventory.Accel = "kvm" })
		}, api.HostDrain{Cold: true}, "", api.MoveCold},
		"being moved": {func(c *cloud) {
			tok, req := c.migrate(api.VMMigrate{})
			_, err := call(c.c, steps.PlaceMove, tok, req)
			require.NoError(c.T, err)
		}, api.HostDrain{}, "is moving it already", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCloud(t, true)
			r.meddle(c)
			plan := c.drain(r.req)
			if r.why == "" {
				require.Empty(t, plan.Stays)
				require.Len(t, plan.Moves, 1)
				require.Equal(t, r.kind, plan.Moves[0].Kind)
				return
			}
			require.Empty(t, plan.Moves)
			require.Len(t, plan.Stays, 1)
			require.Contains(t, plan.Stays[0].Reason, r.why)
		})
	}
}

func TestADrainTellsOfWhatIsOnItsWayToTheNode(t *testing.T) {
	c := newCloud(t, true)
	tok, req := c.migrate(api.VMMigrate{})
	_, err := call(c.c, steps.PlaceMove, tok, req)
	require.NoError(t, err)
	c.here, c.over = c.over, c.here
	plan := c.drain(api.HostDrain{})
	require.Len(t, plan.Stays, 1)
	require.Contains(t, plan.Stays[0].Reason, "drain it again")
}

func TestARecoveryWritesDownWhatBecameOfTheVMs(t *testing.T) {
	for name, r := range map[string]struct {
		meddle func(c *cloud)
		moves  int
		phase  api.Phase
		why    string
	}{
		"ha":     {func(c *cloud) { c.ha(); c.dead() }, 1, api.PhaseUnknown, "is down"},
		"not ha": {func(c *cloud) { c.dead() }, 0, api.PhaseUnknown, "not marked ha"},
		"stopped": {func(c *cloud) {
			c.ha()
			c.dead()
			change(c.T, c.World, c.vm(), func(vm *api.VM) { vm.Status.Phase = api.PhaseStopped })
		}, 0, api.PhaseStopped, ""},
		"no room": {func(c *cloud) {
			c.ha()
			c.dead()
			change(c.T, c.World, c.agent(c.over), func(a *api.Agent) { a.Status.Inventory.Cores = 0 })
		}, 0, api.PhaseUnknown, "vCPUs free"},
		"held": {func(c *cloud) {
			c.ha()
			c.dead()
			_, err := c.Admission.RebootVM(ctx, c.User, opts, "web1", api.VMStop{})
			require.NoError(c.T, err)
		}, 0, api.PhaseRunning, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCloud(t, true)
			r.meddle(c)
			var first api.MovePlan
			rev := c.vm().Revision
			ids, err := state.New(c.KV, c.Admission, none{}, none{}).Planner().Recoverable(ctx, c.here.ID)
			require.NoError(t, err)
			require.Len(t, ids, r.moves)
			require.Equal(t, rev, c.vm().Revision, "it is only asked")
			for i := range 2 {
				plan, err := call(c.c, steps.PlanRecovery, steps.Token{}, steps.NodeRef{Agent: c.here.ID})
				require.NoError(t, err)
				require.Len(t, plan.Moves, r.moves)
				require.Len(t, plan.Stays, 1-r.moves)
				require.Equal(t, r.phase, c.vm().Status.Phase)
				require.Contains(t, c.vm().Status.Reason, r.why)
				if i == 0 {
					first = plan
				}
				require.Equal(t, first, plan)
			}
			if r.moves == 1 {
				require.Equal(t, api.MoveRestart, first.Moves[0].Kind)
				id, err := call(c.c, steps.OrderMove, steps.Token{}, steps.MoveOrder{Parent: "parent", Move: first.Moves[0]})
				require.NoError(t, err)
				op, err := store.Get[api.Operation](ctx, c.KV, c.User, "", id)
				require.NoError(t, err)
				require.Equal(t, api.OpVMRecover, op.Kind)
			}
		})
	}
	c := newCloud(t, true)
	c.ha()
	plan, err := call(c.c, steps.PlanRecovery, steps.Token{}, steps.NodeRef{Agent: c.here.ID})
	require.NoError(t, err)
	require.Empty(t, plan.Moves, "the node is alive")
	ids, err := state.New(c.KV, c.Admission, none{}, none{}).Planner().Recoverable(ctx, c.here.ID)
	require.NoError(t, err)
	require.Empty(t, ids)
	require.Equal(t, api.PhaseRunning, c.vm().Status.Phase)
}

func TestAMoveOrderedTwiceIsOneAndIsWaitedFor(t *testing.T) {
	c := newCloud(t, true)
	move := api.Move{VM: api.RefTo(c.vm()), Kind: api.MoveLive}
	var ids [2]string
	for i := range ids {
		var err error
		ids[i], err = call(c.c, steps.OrderMove, steps.Token{}, steps.MoveOrder{Parent: "parent", Move: move})
		require.NoError(t, err)
	}
	require.Equal(t, ids[0], ids[1])
	op, err := store.Get[api.Operation](ctx, c.KV, c.User, "", ids[0])
	require.NoError(t, err)
	require.Equal(t, []string{api.OpVMMigrate, "parent"}, []string{op.Kind, op.Parent})

	move.Operation = op.ID
	gone := api.NewID()
	type answer struct {
		ends []steps.OperationEnd
		err  error
	}
	waiting := make(chan answer)
	go func() {
		ends, err := call(c.c, steps.AwaitOperations, steps.Token{}, steps.Watched{Operations: []string{op.ID}, Moves: []api.Move{move}})
		waiting <- answer{ends, err}
	}()
	select {
	case a := <-waiting:
		t.Fatalf("nothing has ended: %+v", a)
	case <-time.After(100 * time.Millisecond):
	}
	require.NoError(t, c.Admission.Settle(ctx, c.User, admission.Outcome{Operation: op.ID, State: api.OpFailed, Error: problem.New(problem.Timeout, "too slow")}))
	a := <-waiting
	require.NoError(t, a.err)
	require.Equal(t, api.OpFailed, a.ends[0].State)
	require.Equal(t, "too slow", a.ends[0].Error.What)

	ends, err := call(c.c, steps.AwaitOperations, steps.Token{}, steps.Watched{Operations: []string{gone, op.ID}})
	require.NoError(t, err)
	require.Equal(t, []api.OperationState{api.OpFailed, api.OpFailed}, []api.OperationState{ends[0].State, ends[1].State})
}

func TestADryRunSaysWhatWouldBeDoneAndWritesNothing(t *testing.T) {
	c := newCloud(t, true)
	p := state.New(c.KV, c.Admission, none{}, none{}).Planner()
	create := api.VMCreate{Name: "web2", VCPUs: 1, Memory: api.GiB, Image: "cirros", Pool: "vms", NICs: []api.NICRequest{{Subnet: "front"}}}
	_, before, err := c.KV.List(ctx, store.Root)
	require.NoError(t, err)

	out, err := p.PlanVMCreate(ctx, c.User, opts, create)
	require.NoError(t, err)
	require.Nil(t, out.Error)
	require.Equal(t, api.OpVMCreate, out.Kind)
	require.Equal(t, c.over.ID, out.Decision.Node, "it is the emptier one")
	require.Equal(t, []string{"control", "control", c.over.Name, c.over.Name}, []string{out.Steps[0].Where, out.Steps[1].Where, out.Steps[2].Where, out.Steps[3].Where})

	large := create
	large.Memory = api.TiB / 2
	out, err = p.PlanVMCreate(ctx, c.User, opts, large)
	require.NoError(t, err)
	require.Equal(t, problem.NoCapacity, out.Error.Kind)
	require.Len(t, out.Decision.Refused, 2)

	// Its volumes count: a node must have their pools.
	with := create
	with.Volumes = []api.VMVolume{{Size: api.GiB}, {Size: api.GiB, Pool: "vms"}}
	out, err = p.PlanVMCreate(ctx, c.User, opts, with)
	require.NoError(t, err)
	require.Nil(t, out.Error)
	_, now, err := c.KV.List(ctx, store.Root)
	require.NoError(t, err)
	require.Equal(t, before, now)
	_, err = c.Do(ctx, func(ctx context.Context, w *fault.World, h auth.Handle) (*api.Operation, error) {
		return w.Admission.CreatePool(ctx, h, opts, api.PoolCreate{Name: "rare", Type: api.PoolDir, Path: "/rare", Agents: []string{c.here.Name}})
	})
	require.NoError(t, err)
	_, before, err = c.KV.List(ctx, store.Root)
	require.NoError(t, err)
	with.Volumes[1].Pool = "rare"
	out, err = p.PlanVMCreate(ctx, c.User, opts, with)
	require.NoError(t, err)
	require.Nil(t, out.Error)
	require.Equal(t, c.here.ID, out.Decision.Node)
	with.Volumes[1].Pool = "none"
	out, err = p.PlanVMCreate(ctx, c.User, opts, with)
	require.NoError(t, err)
	require.Equal(t, problem.NotFound, out.Error.Kind)

	taken := create
	taken.Name = "web1"
	out, err = p.PlanVMCreate(ctx, c.User, opts, taken)
	require.NoError(t, err)
	require.Equal(t, problem.Conflict, out.Error.Kind)

	_, err = p.PlanVMCreate(ctx, c.User, opts, api.VMCreate{})
	require.Equal(t, problem.Invalid, problem.KindOf(err))

	out, err = p.PlanMigrate(ctx, c.User, opts, "web1", api.VMMigrate{})
	require.NoError(t, err)
	require.Nil(t, out.Error)
	require.Equal(t, []string{c.here.Name, c.over.Name, api.MoveLive}, []string{out.Plan.Moves[0].From, out.Plan.Moves[0].To, out.Plan.Moves[0].Kind})
	out, err = p.PlanMigrate(ctx, c.User, opts, "web1", api.VMMigrate{To: c.here.Name})
	require.NoError(t, err)
	require.Equal(t, problem.Conflict, out.Error.Kind)

	out, err = p.PlanDrain(ctx, c.User, opts, c.here.Name, api.HostDrain{})
	require.NoError(t, err)
	require.Nil(t, out.Error)
	require.Len(t, out.Plan.Moves, 1)
	require.NotEmpty(t, out.Steps)
	out, err = p.PlanDrain(ctx, c.User, opts, "nobody", api.HostDrain{})
	require.NoError(t, err)
	require.Equal(t, problem.NotFound, out.Error.Kind)

	out, err = p.PlanBalance(ctx, c.User, opts, api.HostBalance{})
	require.NoError(t, err)
	require.NotNil(t, out.Plan)

	_, after, err := c.KV.List(ctx, store.Root)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// strategist returns the steps and the planner of a control plane with a default of its own for where VMs go.
func (c *cloud) strategist(strategy string) (central, *state.Planner) {
	s := state.New(c.KV, c.Admission, none{}, none{}).Pack(strategy)
	steer := central{}
	s.Register(steer, &activities.Host{Log: slog.New(slog.DiscardHandler)})
	return steer, s.Planner()
}

// another is a VM as large as web1, without an address of its own.
func another(name string) fault.Accept {
	return func(ctx context.Context, w *fault.World, h auth.Handle) (*api.Operation, error) {
		web1, err := store.Find[api.VM](ctx, w.KV, h, opts.Project, "web1")
		if err != nil {
			return nil, err
		}
		return w.Admission.CreateVM(ctx, h, opts, api.VMCreate{Name: name, VCPUs: web1.Spec.VCPUs, Memory: web1.Spec.Memory, Image: "cirros", Pool: "vms"})
	}
}

// third adds an empty node like the others.
func (c *cloud) third() *api.Agent {
	c.Helper()
	a := *c.agent(c.over)
	a.Meta = api.Meta{ID: api.NewID(), Name: "a9"}
	write(c.T, c.World, func(d *store.Draft) { d.Create(&a) })
	change(c.T, c.World, get[api.Pool](c.T, c.World, "", "vms"), func(p *api.Pool) { p.Spec.Agents = append(p.Spec.Agents, a.ID) })
	return &a
}

// TestTheWishOfAVMCountsBeforeTheServersDefault: web1 is on a node, the other one is empty.
func TestTheWishOfAVMCountsBeforeTheServersDefault(t *testing.T) {
	for _, r := range []struct{ server, wish, want string }{
		{"", "", api.Spread},
		{api.Spread, "", api.Spread},
		{api.Pack, "", api.Pack},
		{api.Pack, api.Spread, api.Spread},
		{api.Spread, api.Pack, api.Pack},
	} {
		t.Run(r.server+" "+r.wish, func(t *testing.T) {
			c := newCloud(t, true)
			steer, planner := c.strategist(r.server)
			where := c.over.ID
			if r.want == api.Pack {
				where = c.here.ID
			}
			req := api.VMCreate{Name: "web2", VCPUs: 1, Memory: api.GiB, Image: "cirros", Pool: "vms"}
			req.Placement = r.wish
			dry, err := planner.PlanVMCreate(ctx, c.User, opts, req)
			require.NoError(t, err)
			require.Equal(t, []string{where, r.want}, []string{dry.Decision.Node, dry.Decision.Strategy})

			op, err := c.Admission.CreateVM(ctx, c.User, opts, req)
			require.NoError(t, err)
			out, err := call(steer, steps.PlaceVM, steps.Token{Operation: op.ID}, steps.VMOrder{VMRef: steps.VMRef{Project: opts.Project, VM: op.Target.ID}})
			require.NoError(t, err)
			require.Equal(t, []string{where, r.want}, []string{out.Decision.Node, out.Decision.Strategy})
			require.Equal(t, r.wish, get[api.VM](t, c.World, opts.Project, "web2").Spec.Placement, "what the server does is not what was wished")
		})
	}
}

// TestMovesHonourTheWishOfAVM: web1 leaves its node; another VM makes one of the two others the fuller one.
func TestMovesHonourTheWishOfAVM(t *testing.T) {
	for _, wish := range []string{"", api.Pack} {
		newCloud := func(t *testing.T) (c *cloud, want string) {
			c = newCloud(t, true)
			_, err := c.Do(ctx, another("web2"))
			require.NoError(t, err)
			require.Equal(t, c.over.ID, get[api.VM](t, c.World, opts.Project, "web2").Status.Agent)
			want = c.third().Name
			if wish == api.Pack {
				want = c.over.Name
			}
			change(t, c.World, c.vm(), func(vm *api.VM) { vm.Spec.Placement = wish })
			return c, want
		}
		t.Run("migrate "+wish, func(t *testing.T) {
			c, want := newCloud(t)
			dry, err := state.New(c.KV, c.Admission, none{}, none{}).Planner().PlanMigrate(ctx, c.User, opts, "web1", api.VMMigrate{})
			require.NoError(t, err)
			require.Equal(t, want, dry.Decision.Name)
			tok, req := c.migrate(api.VMMigrate{})
			m, err := call(c.c, steps.PlaceMove, tok, req)
			require.NoError(t, err)
			require.Equal(t, want, m.Target.AgentName)
			require.NotEmpty(t, m.Decision.Strategy)
		})
		t.Run("drain "+wish, func(t *testing.T) {
			c, want := newCloud(t)
			plan := c.drain(api.HostDrain{})
			require.Len(t, plan.Moves, 1)
			require.Equal(t, want, plan.Moves[0].To)
		})
		t.Run("recovery "+wish, func(t *testing.T) {
			c, want := newCloud(t)
			c.ha()
			c.dead()
			plan, err := call(c.c, steps.PlanRecovery, steps.Token{}, steps.NodeRef{Agent: c.here.ID})
			require.NoError(t, err)
			require.Len(t, plan.Moves, 1)
			require.Equal(t, want, plan.Moves[0].To)
		})
	}
}

// TestADryRunTellsOfEveryNode: a plan is kept nowhere, so it need not be short.
func TestADryRunTellsOfEveryNode(t *testing.T) {
	c := newCloud(t, true)
	grow(t, c.World, 100)
	req := api.VMCreate{Name: "web2", VCPUs: 1, Memory: api.TiB / 2, Image: "cirros", Pool: "vms"}
	_, p := c.strategist(api.Spread)
	out, err := p.PlanVMCreate(ctx, c.User, opts, req)
	require.NoError(t, err)
	require.Len(t, out.Decision.Refused, 102)
	require.Zero(t, out.Decision.More)
	require.Contains(t, out.Error.Why, "and 70 more nodes: 70 with too little memory")
}

func TestABalanceLeavesVMsAloneThatWishToBePacked(t *testing.T) {
	c := newCloud(t, true)
	for _, n := range c.Nodes {
		change(t, c.World, c.agent(n), func(a *api.Agent) { a.Status.Inventory.Memory = a.Spec.ReservedMemory + 4*c.vm().Spec.Memory })
	}
	change(t, c.World, c.agent(c.over), func(a *api.Agent) { a.Spec.Cordoned = true })
	_, err := c.Do(ctx, another("web2"))
	require.NoError(t, err)
	change(t, c.World, c.agent(c.over), func(a *api.Agent) { a.Spec.Cordoned = false })
	packs, _ := c.strategist(api.Pack)
	change(t, c.World, c.vm(), func(vm *api.VM) { vm.Spec.Placement = api.Pack })
	plan, err := call(packs, steps.PlanBalance, steps.Token{}, api.HostBalance{})
	require.NoError(t, err)
	require.Len(t, plan.Moves, 1)
	require.Equal(t, "web2", plan.Moves[0].VM.Name, "that the server packs is no reason: somebody asked for this balance")
	change(t, c.World, get[api.VM](t, c.World, opts.Project, "web2"), func(vm *api.VM) { vm.Spec.Placement = api.Pack })
	plan, err = call(packs, steps.PlanBalance, steps.Token{}, api.HostBalance{})
	require.NoError(t, err)
	require.Empty(t, plan.Moves)
}

func TestABalanceEvensOut(t *testing.T) {
	c := newCloud(t, true)
	change(t, c.World, c.agent(c.over), func(a *api.Agent) { a.Spec.Cordoned = true })
	for _, name := range []string{"web2", "web3", "web4"} {
		_, err := c.Do(ctx, func(ctx context.Context, w *fault.World, h auth.Handle) (*api.Operation, error) {
			return w.Admission.CreateVM(ctx, h, opts, api.VMCreate{Name: name, VCPUs: 2, Memory: api.GiB, Image: "cirros", Pool: "vms"})
		})
		require.NoError(t, err)
	}
	change(t, c.World, c.agent(c.over), func(a *api.Agent) { a.Spec.Cordoned = false })
	for _, n := range c.Nodes {
		change(t, c.World, c.agent(n), func(a *api.Agent) { a.Status.Inventory.Memory = a.Spec.ReservedMemory + 8*c.vm().Spec.Memory })
	}
	plan, err := call(c.c, steps.PlanBalance, steps.Token{}, api.HostBalance{})
	require.NoError(t, err)
	require.Len(t, plan.Moves, 2)
	for _, m := range plan.Moves {
		require.Equal(t, []string{c.here.Name, c.over.Name}, []string{m.From, m.To})
		require.NotEmpty(t, m.Reason)
	}
	plan, err = call(c.c, steps.PlanBalance, steps.Token{}, api.HostBalance{Moves: 1})
	require.NoError(t, err)
	require.Len(t, plan.Moves, 1)
}

// TestACordonSpoilsDecisions: who has decided for a node before it was cordoned does not get there afterwards.
func TestACordonSpoilsDecisions(t *testing.T) {
	c := newCloud(t, true)
	before, err := store.Ledger(ctx, c.KV, store.NodePrefix(c.over.ID))
	require.NoError(t, err)
	op, err := c.Admission.DrainHost(ctx, c.User, admission.Options{}, c.over.Name, api.HostDrain{})
	require.NoError(t, err)
	steer := central{}
	state.New(c.KV, c.Admission, none{}, none{}).Register(steer, &activities.Host{Log: slog.New(slog.DiscardHandler)})
	_, err = call(steer, steps.CordonAgent, steps.Token{Operation: op.ID}, steps.AgentCordon{Agent: c.over.ID, Cordoned: true})
	require.NoError(t, err)
	after, err := store.Ledger(ctx, c.KV, store.NodePrefix(c.over.ID))
	require.NoError(t, err)
	require.Greater(t, after.Revision, before.Revision)
}
