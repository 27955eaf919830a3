package nodes

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
)

// testFrozenLibvirtd has the libvirtd of one node hang with steps inside it. What the others are asked for does not wait.
func testFrozenLibvirtd(t *testing.T, w *world) {
	frozen, others := w.Hosts[0], w.Hosts[1:]
	var names, hung, free []string
	create := func(name string, on *stack.Host) string {
		names = append(names, name)
		return ask(t, w, small(name, on), "")
	}
	require.NoError(t, frozen.FreezeLibvirtd(t.Context()))
	t.Cleanup(func() { _ = frozen.ThawLibvirtd(t.Context()) })
	for i := range 3 {
		hung = append(hung, create(fmt.Sprintf("hung-%d", i), frozen))
	}
	for _, id := range hung {
		require.NoError(t, stack.Poll(within(t, 20*time.Second), 20*time.Millisecond, func() error {
			op, err := w.Client.Operation(t.Context(), id)
			if err == nil && !slices.ContainsFunc(op.Steps, func(s api.StepRecord) bool { return s.Name == "start" && s.State == api.StepRunning }) {
				err = fmt.Errorf("it is not in libvirt yet: %s", stack.Describe(op))
			}
			return err
		}))
	}
	begun := time.Now()
	for i := range 4 {
		free = append(free, create(fmt.Sprintf("free-%d", i), others[i%len(others)]))
	}
	free = append(free, ask(t, w, &api.VPCCreate{Name: "free", CIDR: "10.5.0.0/16"}, ""))
	w.succeed(t, free...)
	t.Logf("%d operations elsewhere took %s", len(free), time.Since(begun).Round(100*time.Millisecond))
	for _, id := range hung {
		op, err := w.Client.Operation(t.Context(), id)
		require.NoError(t, err)
		require.False(t, op.State.Ended(), "libvirtd hangs, and yet it has ended: %s", stack.Describe(op))
		faults.Add(1)
	}
	thawed := time.Now()
	require.NoError(t, frozen.ThawLibvirtd(t.Context()))
	w.succeed(t, hung...)
	t.Logf("what hung was done %s after libvirtd went on", time.Since(thawed).Round(100*time.Millisecond))
	for i := range 3 {
		w.runsOn(t, fmt.Sprintf("hung-%d", i), frozen)
	}
	w.remove(t, api.KindVM, names...)
	w.remove(t, api.KindVPC, "free")
}

// way is how an agent goes and comes back.
type way struct {
	name    string
	version string // that the agent says it is, afterwards; empty: as before
	// again does it; release lets the steps go on that stand in the agent, if it does not find them standing when it ends.
	again func(t *testing.T, h *stack.Host, release func()) error
}

var (
	stopped = way{"stopped", "", func(_ *testing.T, h *stack.Host, release func()) error {
		if err := h.Agent.Terminate(); err != nil {
			return err
		}
		release()
		if err := h.Agent.Stop(30 * time.Second); err != nil {
			return err
		}
		return h.StartAgent("")
	}}
	upgraded = way{"upgraded", stack.OtherVersion, func(t *testing.T, h *stack.Host, _ func()) error {
		other, err := stack.OtherAgent()
		require.NoError(t, err)
		if err := h.Agent.Stop(30 * time.Second); err != nil {
			return err
		}
		return h.StartAgent(other)
	}}
	killed = way{"killed", "", func(_ *testing.T, h *stack.Host, _ func()) error {
		if err := h.Agent.Kill(); err != nil {
			return err
		}
		return h.StartAgent("")
	}}
)

// testAgent has an operation stand at every boundary of a step on the node of the witness, then the agent goes and comes back.
func testAgent(t *testing.T, w *world, by way) {
	host := w.Hosts[1]
	if by.version != "" {
		_, err := stack.OtherAgent() // built before operations wait for it
		require.NoError(t, err)
	}
	var points []stack.Point
	var ids, kept []string
	arm := func(kind, step, at, key string) {
		p := stack.Point{Kind: kind, Step: step, At: at, Operation: operation(key)}
		require.NoError(t, w.Faults.Arm(p))
		points, ids = append(points, p), append(ids, p.Operation)
	}
	name := func(step, at string) string { return by.name + "-" + step + "-" + at }
	var old []string
	for _, at := range []string{stack.Before, stack.After} {
		old = append(old, ask(t, w, small(name("stop", at), host), ""))
	}
	w.succeed(t, old...)
	for _, at := range []string{stack.Before, stack.After} {
		for _, step := range []string{"disk", "start"} {
			n := name(step, at)
			arm(api.OpVMCreate, step, at, n)
			ask(t, w, small(n, host), n)
			kept = append(kept, n)
		}
		n := name("stop", at)
		arm(api.OpVMDelete, "stop", at, n)
		_, err := w.Client.Delete(t.Context(), api.KindVM, project, n, client.Write{Key: n})
		require.NoError(t, err)
	}
	require.NoError(t, w.Faults.Await(within(t, time.Minute), points...))
	for _, p := range points {
		require.True(t, w.Faults.Held(p), "%s was not held long enough", p)
		faults.Add(1)
	}
	begun := time.Now()
	release := func() {
		for _, p := range points {
			require.NoError(t, w.Faults.Release(p))
		}
	}
	require.NoError(t, by.again(t, host, release))
	release()
	w.succeed(t, ids...)
	t.Logf("the agent was %s with %d operations in it; they were done %s later", by.name, len(ids), time.Since(begun).Round(100*time.Millisecond))
	for _, n := range kept {
		w.runsOn(t, n, host)
	}
	if by.version != "" {
		require.NoError(t, host.AwaitReport(within(t, time.Minute), begun))
		a, err := host.Record(t.Context())
		require.NoError(t, err)
		require.Equal(t, by.version, a.Status.Inventory.Versions["agent"])
	}
	w.remove(t, api.KindVM, kept...)
}

// testRestartedControl restarts the control plane, in order and by kill -9, while twenty operations run on all nodes.
func testRestartedControl(t *testing.T, w *world) {
	const each = 10
	name := func(i int) string { return fmt.Sprintf("load-%02d", i) }
	on := func(i int) *stack.Host { return w.Hosts[i%len(w.Hosts)] }
	var old []string
	for i := range each {
		old = append(old, ask(t, w, small(name(i), on(i)), ""))
	}
	w.succeed(t, old...)
	var points []stack.Point
	var ids []string
	for i := range 2 * each {
		key := "restart " + name(i)
		p := stack.Point{Kind: api.OpVMDelete, Step: "stop", At: stack.Before, Operation: operation(key)}
		if i >= each {
			p.Kind, p.Step = api.OpVMCreate, "disk"
		}
		require.NoError(t, w.Faults.Arm(p))
		points, ids = append(points, p), append(ids, p.Operation)
		if i >= each {
			ask(t, w, small(name(i), on(i)), key)
			continue
		}
		_, err := w.Client.Delete(t.Context(), api.KindVM, project, name(i), client.Write{Key: key})
		require.NoError(t, err)
	}
	require.NoError(t, w.Faults.Await(within(t, time.Minute), points...))
	for _, p := range points {
		require.True(t, w.Faults.Held(p), "%s was not held long enough", p)
		faults.Add(1)
	}
	require.NoError(t, w.Control.Stop(30*time.Second))
	require.NoError(t, w.StartControl(within(t, time.Minute)))
	begun := time.Now()
	for _, p := range points {
		require.NoError(t, w.Faults.Release(p))
	}
	require.NoError(t, w.Control.Kill()) // now that they go on
	require.NoError(t, w.StartControl(within(t, time.Minute)))
	w.succeed(t, ids...)
	t.Logf("%d operations had ended %s after they went on", len(ids), time.Since(begun).Round(100*time.Millisecond))
	var kept []string
	for i := each; i < 2*each; i++ {
		w.runsOn(t, name(i), on(i))
		kept = append(kept, name(i))
	}
	w.remove(t, api.KindVM, kept...)
}
