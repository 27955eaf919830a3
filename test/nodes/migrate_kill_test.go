package nodes

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
)

// The ways to move a VM that are disturbed.
const (
	walking  = "walking"  // live, its disk stays
	carrying = "carrying" // live, its disk goes along
	stored   = "stored"   // stopped, its disk goes along
	leaping  = "leaping"  // stopped, moved and started again, its disk goes along
)

// stand is a VM whose move is to stand at one boundary of its steps, or to be in the midst of sending its memory, when
// something dies.
type stand struct {
	vm    string
	way   string
	step  string
	at    string // empty: it does not stand, it is in the midst of the step
	guest *guest // if there is a system in it
	early bool   // whoever has the step may hold it for long
}

func (s *stand) key(round string) string { return round + " " + s.vm }

func (s *stand) point(round string) stack.Point {
	return stack.Point{Kind: api.OpVMMigrate, Step: s.step, At: s.at, Operation: operation(s.key(round))}
}

// how is the request for its move.
func (s *stand) how() api.VMMigrate {
	how := api.VMMigrate{CopyStorage: s.way != walking, Cold: s.way == leaping}
	if s.at == "" {
		how.Bandwidth = 4 * api.MiB
	}
	return how
}

// stands returns one for every boundary: each step as a move has it that does something in it.
func stands() []*stand {
	var all []*stand
	for _, c := range []struct {
		way, where string
		steps      []string
	}{
		{walking, "node", []string{"check", "move", "clean"}},
		{walking, "control", []string{"accept", "place", "bind", "switch", "rebind", "settle"}},
		{carrying, "node", []string{"disk", "move", "clean"}},
		{stored, "node", []string{"disk", "move", "clean"}},
		{leaping, "node", []string{"stop"}},
	} {
		for _, step := range c.steps {
			for _, at := range []string{stack.Before, stack.After} {
				all = append(all, &stand{vm: c.way + "-" + step + "-" + at, way: c.way, step: step, at: at, early: c.where == "node"})
			}
		}
	}
	for _, way := range []string{walking, carrying} {
		all = append(all, &stand{vm: way + "-midway", way: way, step: "move"})
	}
	return all
}

// death is what dies, and comes back.
type death struct {
	name string
	die  func(ctx context.Context, w *world, from, to *stack.Host) error
}

func killAgent(h *stack.Host) error {
	if err := h.Agent.Kill(); err != nil {
		return err
	}
	return h.StartAgent("")
}

func killLibvirtd(ctx context.Context, h *stack.Host) error {
	if err := h.KillLibvirtd(ctx); err != nil {
		return err
	}
	return h.StartLibvirtd(ctx)
}

var deaths = []death{
	{"nextstack", func(ctx context.Context, w *world, _, _ *stack.Host) error {
		if err := w.Control.Kill(); err != nil {
			return err
		}
		return w.StartControl(ctx)
	}},
	{"the source's agent", func(_ context.Context, _ *world, from, _ *stack.Host) error { return killAgent(from) }},
	{"the target's agent", func(_ context.Context, _ *world, _, to *stack.Host) error { return killAgent(to) }},
	{"the source's libvirtd", func(ctx context.Context, _ *world, from, _ *stack.Host) error { return killLibvirtd(ctx, from) }},
	{"the target's libvirtd", func(ctx context.Context, _ *world, _, to *stack.Host) error { return killLibvirtd(ctx, to) }},
}

// testKills has a move stand at every boundary, and two be in the midst of it, then something dies, for everything that may.
// Afterwards every move has ended, done or undone, every guest runs once, where its record says, and those that were not
// stopped for their move still have the connections that they had.
func testKills(t *testing.T, w *world) {
	all := stands()
	from, to := w.Hosts[0], w.Hosts[1]
	talks := w.inhabit(t, all, from)
	for _, d := range deaths {
		t.Run(d.name, func(t *testing.T) {
			begun := time.Now()
			open := all
			// Central steps have ten seconds. On a slow machine some have gone on by the time that all the others stand: they
			// count for nothing and get another go.
			for attempt := 1; len(open) > 0; attempt++ {
				require.LessOrEqual(t, attempt, 3, "these are never held long enough: %v", open)
				open = w.kill(t, fmt.Sprintf("%s %d", d.name, attempt), d, open, from, to)
				w.whole(t, all)
				for name, k := range talks {
					k.goesOn(t, "of "+name)
				}
				w.clean(t)
				w.gather(t, all, open, from, to)
			}
			t.Logf("%s was killed at %d places, in %s", d.name, len(all), time.Since(begun).Round(100*time.Millisecond))
		})
		if t.Failed() {
			return
		}
		from, to = to, from
	}
	for _, k := range talks {
		k.end(t)
	}
	var names []string
	for _, s := range all {
		names = append(names, s.vm)
	}
	w.remove(t, api.KindVM, names...)
}

// inhabit makes all the VMs on the host, and talks to those that have a system and are never stopped.
func (w *world) inhabit(t *testing.T, all []*stand, on *stack.Host) map[string]*talk {
	t.Helper()
	var plain, systems []*api.VMCreate
	var inhabited []*stand
	for _, s := range all {
		pool := stack.Pool
		if s.way == walking {
			pool = stack.Shared
		}
		if s.way == leaping || s.at == "" {
			systems, inhabited = append(systems, w.system(pool, s.vm)), append(inhabited, s)
		} else {
			plain = append(plain, w.in(pool, s.vm))
		}
	}
	guests := w.guests(t, on, systems...)
	talks := map[string]*talk{}
	for i, s := range inhabited {
		s.guest = guests[i]
		if s.way != leaping {
			talks[s.vm] = w.talk(t, s.guest)
		}
	}
	w.put(t, on, plain...)
	var ids []string
	for _, s := range all {
		if s.way == stored {
			op, err := w.Client.StopVM(t.Context(), project, s.vm, api.VMStop{Force: true}, client.Write{})
			require.NoError(t, err)
			ids = append(ids, op.ID)
		}
	}
	w.succeed(t, ids...)
	return talks
}

// kill has all moves stand where they should, and lets something die. It returns those that were not held long enough.
func (w *world) kill(t *testing.T, round string, d death, all []*stand, from, to *stack.Host) (missed []*stand) {
	t.Helper()
	var ids []string
	var points []stack.Point
	// Those that may stand for long first, then those that take a moment to get where they stand, and last those that begin.
	for _, group := range []func(*stand) bool{
		func(s *stand) bool { return s.early },
		func(s *stand) bool { return s.at == "" },
		func(s *stand) bool { return !s.early && s.at != "" && s.step != "accept" && s.step != "place" },
		func(s *stand) bool { return !s.early && (s.step == "accept" || s.step == "place") },
	} {
		var wg sync.WaitGroup
		var these []stack.Point
		for _, s := range all {
			if !group(s) {
				continue
			}
			if s.at != "" {
				these = append(these, s.point(round))
				require.NoError(t, w.Faults.Arm(s.point(round)))
			}
			how := s.how()
			how.To = to.Name
			wg.Go(func() {
				if _, err := w.Client.MigrateVM(t.Context(), project, s.vm, how, client.Write{Key: s.key(round)}); err != nil {
					t.Errorf("%s: %v", s.vm, err)
				}
			})
			ids = append(ids, operation(s.key(round)))
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
		require.NoError(t, w.Faults.Await(within(t, time.Minute), these...))
		points = append(points, these...)
		for _, s := range all {
			if group(s) && s.at == "" {
				w.underWay(t, operation(s.key(round)), 0)
			}
		}
	}
	for _, s := range all {
		if s.at != "" && !w.Faults.Held(s.point(round)) {
			missed = append(missed, s)
		}
	}
	require.NoError(t, d.die(within(t, time.Minute), w, from, to))
	faults.Add(int64(len(all) - len(missed)))
	for _, p := range points {
		require.NoError(t, w.Faults.Release(p))
	}
	begun := time.Now()
	ops, err := w.Ended(within(t, patience), ids...)
	require.NoError(t, err)
	states := map[api.OperationState]int{}
	for _, s := range all {
		op := ops[operation(s.key(round))]
		states[op.State]++
		if op.State != api.OpSucceeded {
			require.NotNil(t, op.Error, "it was undone and does not say why: %s", stack.Describe(op))
			t.Logf("%s: %s", s.vm, stack.Describe(op))
		}
		where := map[bool]string{true: to.Name, false: from.Name}[op.State == api.OpSucceeded]
		if vm := w.vm(t, s.vm); vm.Status.AgentName != where {
			t.Errorf("it is on %s: %s", vm.Status.AgentName, stack.Describe(op))
		}
	}
	t.Logf("%d of %d moves stood when %s was killed; %s later they had ended %v", len(all)-len(missed), len(all), d.name, time.Since(begun).Round(100*time.Millisecond), states)
	return missed
}

// whole fails t unless each VM runs once, where its record says, and answers if there is somebody in it; what was stopped is.
func (w *world) whole(t *testing.T, all []*stand) {
	t.Helper()
	for _, s := range all {
		vm := w.vm(t, s.vm)
		if vm.Operation != "" || vm.Status.MovingTo != "" {
			t.Errorf("%s is still on its way: %+v", s.vm, vm)
		}
		if s.way == stored {
			require.Equal(t, api.PhaseStopped, vm.Status.Phase, "%s: %s", s.vm, vm.Status.Reason)
			continue
		}
		w.runsOn(t, s.vm, w.host(vm.Status.AgentName))
		if s.guest != nil {
			w.answers(t, s.guest)
		}
	}
}

// gather moves the VMs to where the next round needs them: those of open back, or where they are, at from; when none are open
// any more, all to the other side. What was undone must be possible now.
func (w *world) gather(t *testing.T, all, open []*stand, from, to *stack.Host) {
	t.Helper()
	var ids []string
	for _, s := range all {
		at := w.vm(t, s.vm).Status.AgentName
		want := to
		if slices.Contains(open, s) {
			want = from
		}
		if at != want.Name {
			how := s.how()
			how.Bandwidth = 0
			ids = append(ids, w.move(t, s.vm, want, how, ""))
		}
	}
	w.succeed(t, ids...)
}
