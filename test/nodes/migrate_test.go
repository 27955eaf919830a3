package nodes

import (
	"encoding/json"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/test/stack"
	"github.com/nextstack/nextstack/workflows/steps"
)

// TestMoves is one cloud in which VMs are moved: as they should be, with something in the way, and while something dies.
func TestMoves(t *testing.T) {
	w := &world{Stack: stack.Up(t, stack.Options{Nodes: 3, Shared: true})}
	w.allowEcho(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *world)
		live bool // guests run while they move, as they do with KVM
	}{
		{"Refused", testRefusedMoves, true},
		{"Moves", testMoves, true},
		{"Drain", testDrain, true},
		{"Balance", testBalance, true},
		// Where hundreds of slow moves are cut off, QEMU's emulator would damage some guest if they did.
		{"Kills", testKills, false},
	} {
		t.Run(part.name, func(t *testing.T) {
			begun := time.Now()
			w.live(t, part.live)
			part.test(t, w)
			w.clean(t)
			t.Logf("%s took %s", part.name, time.Since(begun).Round(100*time.Millisecond))
		})
		if t.Failed() {
			return // what follows would only say so again
		}
	}
}

// live has the guests run while they move, or stand still.
func (w *world) live(t *testing.T, live bool) {
	t.Helper()
	if w.moves != nil && *w.moves == live {
		return
	}
	w.moves = &live
	for _, h := range w.Hosts {
		h.Agent.With("--live-tcg=" + strconv.FormatBool(live))
		begun := time.Now()
		require.NoError(t, killAgent(h))
		require.NoError(t, h.AwaitReport(within(t, time.Minute), begun))
	}
}

// put makes VMs on the host that may leave it, and returns when they run.
func (w *world) put(t *testing.T, on *stack.Host, requests ...*api.VMCreate) {
	t.Helper()
	var ids []string
	for _, r := range requests {
		r.NodeID = on.Name
		ids = append(ids, ask(t, w, r, ""))
	}
	w.succeed(t, ids...)
	ids = nil
	free := ""
	for _, r := range requests {
		op, err := client.Change(t.Context(), w.Client, project, r.Name, &api.VMUpdate{NodeID: &free}, client.Write{})
		require.NoError(t, err)
		ids = append(ids, op.ID)
	}
	w.succeed(t, ids...)
}

// in is a request for a small VM with its disk in the pool.
func (w *world) in(pool, name string) *api.VMCreate {
	r := small(name, w.Hosts[0])
	r.Pool = pool
	return r
}

// system is a request for a VM with a system in it, which answers pings and echoes.
func (w *world) system(pool, name string) *api.VMCreate {
	r := w.in(pool, name)
	r.Memory, r.Image, r.SecurityGroups = 128*api.MiB, stack.Tiny, []string{stack.Web, echo}
	return r
}

// guests makes VMs with systems on the host, and returns when all of them answer.
func (w *world) guests(t *testing.T, on *stack.Host, requests ...*api.VMCreate) []*guest {
	t.Helper()
	w.put(t, on, requests...)
	var all []*guest
	for _, r := range requests {
		w.succeed(t, ask(t, w, &api.PortCreate{Name: r.Name + "-probe", Subnet: stack.Subnet}, ""))
		port, err := client.Get[*api.Port](t.Context(), w.Client, project, r.Name+"-probe")
		require.NoError(t, err)
		g := &guest{vm: w.vm(t, r.Name), port: port, from: w.Hosts[len(w.Hosts)-1]}
		w.answers(t, g)
		all = append(all, g)
	}
	return all
}

func (w *world) vm(t *testing.T, name string) *api.VM {
	t.Helper()
	vm, err := client.Get[*api.VM](t.Context(), w.Client, project, name)
	require.NoError(t, err)
	return vm
}

// answers waits until the guest answers a ping.
func (w *world) answers(t *testing.T, g *guest) {
	t.Helper()
	p, err := w.StartPings(within(t, bootTime), g.from, g.port, 22, g.vm.Status.Addresses[0])
	if err != nil {
		console, _ := w.host(w.vm(t, g.vm.Name).Status.AgentName).Console(g.vm.ID)
		t.Logf("its console: %s\n%s", console, w.DescribeNetwork(t.Context(), g.vm.Spec.NICs[0].Port, g.port.ID))
	}
	require.NoError(t, err, "%s does not answer", g.vm.Name)
	_, err = p.Stop()
	require.NoError(t, err)
}

// forget removes the guests. Their probes and the ports of these stay.
func (w *world) forget(t *testing.T, guests ...*guest) {
	t.Helper()
	var vms []string
	for _, g := range guests {
		vms = append(vms, g.vm.Name)
	}
	w.remove(t, api.KindVM, vms...)
}

// move asks for a move and returns the operation's ID.
func (w *world) move(t *testing.T, name string, to *stack.Host, how api.VMMigrate, key string) string {
	t.Helper()
	if to != nil {
		how.To = to.Name
	}
	op, err := w.Client.MigrateVM(t.Context(), project, name, how, client.Write{Key: key})
	require.NoError(t, err)
	return op.ID
}

// figures returns what the operation tells of its live move.
func (w *world) figures(t *testing.T, id string) steps.Moved {
	t.Helper()
	op, err := w.Client.Operation(t.Context(), id)
	require.NoError(t, err)
	var m steps.Moved
	for _, s := range op.Steps {
		if s.Name == "move" {
			require.NoError(t, json.Unmarshal(s.Detail, &m), "%s", s.Detail)
		}
	}
	return m
}

// testRefusedMoves asks for moves that cannot be. Each is refused before anything has happened, and says why.
func testRefusedMoves(t *testing.T, w *world) {
	a, b := w.Hosts[0], w.Hosts[1]
	w.put(t, a, w.in(stack.Shared, "near"), w.in(stack.Pool, "alone"))
	pinned := w.in(stack.Shared, "pinned")
	w.succeed(t, ask(t, w, pinned, ""))
	for _, c := range []struct {
		vm   string
		how  api.VMMigrate
		kind problem.Kind
		says string
	}{
		{"near", api.VMMigrate{To: a.Name}, problem.Conflict, "on " + a.Name + " already"},
		{"near", api.VMMigrate{To: "nowhere"}, problem.NotFound, "nowhere"},
		{"pinned", api.VMMigrate{To: b.Name}, problem.Conflict, "pinned to node " + a.Name},
		{"alone", api.VMMigrate{To: b.Name}, problem.Conflict, "not shared"},
	} {
		_, err := w.Client.MigrateVM(t.Context(), project, c.vm, c.how, client.Write{})
		require.True(t, problem.Is(err, c.kind), "%+v: %v", c, err)
		require.Contains(t, err.Error(), c.says)
	}

	// Whether there is room is for the operation to find out. It ends with its first step.
	room := func(reserved int64) {
		op, err := client.Change(t.Context(), w.Client, "", b.Name, &api.AgentUpdate{ReservedMemory: &reserved}, client.Write{})
		require.NoError(t, err)
		w.succeed(t, op.ID)
	}
	agent, err := b.Record(t.Context())
	require.NoError(t, err)
	was := agent.Spec.ReservedMemory
	room(agent.Status.Inventory.Memory)
	qemus, err := w.QEMUs(w.vm(t, "near").ID)
	require.NoError(t, err)
	plan, err := w.Client.PlanMigrate(t.Context(), project, "near", api.VMMigrate{To: b.Name})
	require.NoError(t, err)
	require.True(t, problem.Is(plan.Error, problem.NoCapacity), "%v", plan.Error)
	ops, err := w.Ended(within(t, patience), w.move(t, "near", b, api.VMMigrate{}, "no room"))
	require.NoError(t, err)
	op := ops[operation("no room")]
	require.Equal(t, api.OpFailed, op.State)
	require.True(t, problem.Is(op.Error, problem.NoCapacity), "%v", op.Error)
	require.Contains(t, op.Error.Error(), "memory", "the reason of the one node that was asked for")
	require.Equal(t, api.StepPending, op.Steps[1].State, "%s", stack.Describe(op))
	now, err := w.QEMUs(w.vm(t, "near").ID)
	require.NoError(t, err)
	require.Equal(t, qemus, now)
	w.runsOn(t, "near", a)
	room(was)
	w.remove(t, api.KindVM, "near", "alone", "pinned")
}

// testMoves moves two guests in every way there is, one with its disk and one without. While they run they answer on the
// connection that they had before.
func testMoves(t *testing.T, w *world) {
	a, b := w.Hosts[0], w.Hosts[1]
	gs := w.guests(t, a, w.system(stack.Shared, "walks"), w.system(stack.Pool, "carries"))
	var talks []*talk
	for _, g := range gs {
		talks = append(talks, w.talk(t, g))
	}
	all := func(to *stack.Host, how api.VMMigrate) (ids []string) {
		for _, g := range gs {
			how.CopyStorage = g.vm.Name == "carries"
			ids = append(ids, w.move(t, g.vm.Name, to, how, ""))
		}
		w.succeed(t, ids...)
		return ids
	}
	power := func(ask func(name string) (*api.Operation, error)) {
		var ids []string
		for _, g := range gs {
			op, err := ask(g.vm.Name)
			require.NoError(t, err)
			ids = append(ids, op.ID)
		}
		w.succeed(t, ids...)
	}
	run := func(at *stack.Host) {
		for _, g := range gs {
			w.runsOn(t, g.vm.Name, at)
			w.answers(t, g)
		}
		w.clean(t)
	}

	for _, to := range []*stack.Host{b, a} {
		var pings []*stack.Pings
		for _, g := range gs {
			pings = append(pings, g.ping(t, w))
		}
		ids := all(to, api.VMMigrate{})
		for i, g := range gs {
			talks[i].goesOn(t, "after the move to "+to.Name)
			answered, err := pings[i].Stop()
			require.NoError(t, err)
			m := w.figures(t, ids[i])
			t.Logf("%s went to %s in %s, downtime %s, %d KiB, %s", g.vm.Name, to.Name, m.Total, m.Downtime, m.Bytes/1024, answered)
			require.Less(t, answered.Gap, silence)
			require.Positive(t, m.Downtime)
			require.Positive(t, m.Bytes)
		}
		run(to)
	}
	w.cancelled(t, gs, b)
	for _, k := range talks {
		k.goesOn(t, "after a move that was cancelled")
		k.end(t)
	}

	// Cold: it is stopped there and boots here, on the same disk.
	all(b, api.VMMigrate{Cold: true})
	run(b)
	power(func(n string) (*api.Operation, error) {
		return w.Client.StopVM(t.Context(), project, n, api.VMStop{Force: true}, client.Write{})
	})
	all(a, api.VMMigrate{})
	for _, g := range gs {
		vm := w.vm(t, g.vm.Name)
		require.Equal(t, api.PhaseStopped, vm.Status.Phase)
		require.Equal(t, a.Name, vm.Status.AgentName)
	}
	w.clean(t)
	power(func(n string) (*api.Operation, error) {
		return w.Client.StartVM(t.Context(), project, n, client.Write{})
	})
	run(a)
	w.forget(t, gs...)
}

// cancelled begins a slow move of each guest, sees that it gets on, and cancels it. The guests must not notice.
func (w *world) cancelled(t *testing.T, gs []*guest, to *stack.Host) {
	t.Helper()
	before := map[string]*api.VM{}
	qemus := map[string][]stack.QEMU{}
	var ids []string
	for _, g := range gs {
		before[g.vm.ID] = w.vm(t, g.vm.Name)
		q, err := w.QEMUs(g.vm.ID)
		require.NoError(t, err)
		qemus[g.vm.ID] = q
		ids = append(ids, w.move(t, g.vm.Name, to, api.VMMigrate{CopyStorage: true, Bandwidth: 2 * api.MiB}, ""))
	}
	for _, id := range ids {
		p := w.underWay(t, id, 0)
		require.Equal(t, "move", p.Step)
		require.NotEmpty(t, p.Text)
		require.Positive(t, p.Total)
		require.Positive(t, p.Migrate.Remaining)
		later := w.underWay(t, id, p.Done)
		t.Logf("it said %q, and then %q", p.Text, later.Text)
	}
	begun := time.Now()
	for _, id := range ids {
		_, err := w.Client.Cancel(t.Context(), id, client.Write{})
		require.NoError(t, err)
	}
	ops, err := w.Ended(within(t, patience), ids...)
	require.NoError(t, err)
	t.Logf("they were cancelled %s after that was asked for", time.Since(begun).Round(time.Millisecond))
	for _, op := range ops {
		require.Equal(t, api.OpCancelled, op.State, "%s", stack.Describe(op))
	}
	for _, g := range gs {
		now, err := w.QEMUs(g.vm.ID)
		require.NoError(t, err)
		require.Equal(t, qemus[g.vm.ID], now, "it is not the process that it was")
		after := w.vm(t, g.vm.Name)
		require.Equal(t, before[g.vm.ID].Status.AgentName, after.Status.AgentName)
		require.Empty(t, after.Status.MovingTo)
		w.answers(t, g)
	}
	w.clean(t)
}

// underWay waits until the operation tells of a live move that has sent more than so many bytes.
func (w *world) underWay(t *testing.T, id string, sent int64) *api.Progress {
	t.Helper()
	var p *api.Progress
	require.NoError(t, stack.Poll(within(t, time.Minute), 50*time.Millisecond, func() error {
		op, err := w.Client.Operation(t.Context(), id)
		if err != nil {
			return err
		}
		if p = op.Progress; p == nil || p.Migrate == nil || p.Done <= sent {
			return fmt.Errorf("it tells %+v: %s", p, stack.Describe(op))
		}
		return nil
	}))
	return p
}
