package fault

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

// TestNothingIsPutWhereAPoolIsBeingTakenAway places a VM while the node that it would go to is leaving its pool.
func TestNothingIsPutWhereAPoolIsBeingTakenAway(t *testing.T) {
	ctx := t.Context()
	base, err := Base(ctx)
	require.NoError(t, err)
	w, err := base.Clone(ctx, nil)
	require.NoError(t, err)
	_, err = w.Do(ctx, poolOn(netDir, true, "a1", "a2"))
	require.NoError(t, err)
	create := func(name string) Accept {
		return with((*admit).CreateVM, api.VMCreate{Name: name, VCPUs: 1, Memory: api.GiB, Image: "cirros", Pool: "fast"})
	}
	at := func(name, node string) {
		t.Helper()
		what, err := is(name, node, api.PhaseRunning)(ctx, w)
		require.NoError(t, err)
		require.Empty(t, what)
	}
	_, err = w.Do(ctx, create("before"))
	require.NoError(t, err)
	at("before", "a1")
	_, err = w.Do(ctx, about((*admit).DeleteVM, "before"))
	require.NoError(t, err)

	change, err := on((*admit).UpdatePool, "fast", api.PoolUpdate{RemoveAgents: []string{"a1"}})(ctx, w, w.User)
	require.NoError(t, err)
	_, err = w.Do(ctx, create("meanwhile"))
	require.NoError(t, err)
	at("meanwhile", "a2")
	change, err = w.run(ctx, change.ID, newInjector(nil))
	require.NoError(t, err)
	require.Equal(t, api.OpSucceeded, change.State)
	what, err := has("a2")(ctx, w)
	require.NoError(t, err)
	require.Empty(t, what)

	// Back it comes, and takes VMs again.
	_, err = w.Do(ctx, on((*admit).UpdatePool, "fast", api.PoolUpdate{AddAgents: []string{"a1"}}))
	require.NoError(t, err)
	_, err = w.Do(ctx, create("after"))
	require.NoError(t, err)
	at("after", "a1")
	findings, err := w.Audit(ctx)
	require.NoError(t, err)
	require.Empty(t, findings)
}

// TestAPoolWhoseServersAreAway: what needs it waits or is undone, and what is in it is not missing.
func TestAPoolWhoseServersAreAway(t *testing.T) {
	ctx := t.Context()
	base, err := Base(ctx)
	require.NoError(t, err)
	w, err := base.Clone(ctx, nil)
	require.NoError(t, err)
	create := func(name string) Accept {
		return with((*admit).CreateVM, api.VMCreate{Name: name, VCPUs: 1, Memory: api.GiB, Image: "cirros", Pool: "fast"})
	}
	clean := func() {
		t.Helper()
		findings, err := w.Audit(ctx)
		require.NoError(t, err)
		require.Empty(t, findings)
	}
	w.net.Away(true)
	op, err := w.Do(ctx, mountedPool(api.PoolGluster, "gv0"))
	require.Error(t, err)
	require.Equal(t, api.OpFailed, op.State, "a pool that cannot be mounted is not added")
	require.Equal(t, problem.Unavailable, op.Error.Kind)
	_, err = store.Find[api.Pool](ctx, w.KV, w.User, "", "fast")
	require.Equal(t, problem.NotFound, problem.KindOf(err))
	clean()

	w.net.Away(false)
	_, err = w.Do(ctx, mountedPool(api.PoolGluster, "gv0"))
	require.NoError(t, err)
	_, err = w.Do(ctx, create("there"))
	require.NoError(t, err)
	clean()

	// What has begun waits, whichever way it goes, says so, and goes on by itself when they are back.
	through := func(accept Accept) *api.Operation {
		t.Helper()
		w.net.Away(true)
		clean()
		op, err := accept(ctx, w, w.User)
		require.NoError(t, err)
		done := make(chan error, 1)
		go func() {
			_, err := w.run(ctx, op.ID, newInjector(nil))
			done <- err
		}()
		require.Eventually(t, func() bool {
			now, err := store.Get[api.Operation](ctx, w.KV, w.User, "", op.ID)
			return err == nil && now.State == api.OpStuck
		}, time.Minute, time.Millisecond)
		w.net.Away(false)
		require.NoError(t, <-done)
		op, err = store.Get[api.Operation](ctx, w.KV, w.User, "", op.ID)
		require.NoError(t, err)
		return op
	}
	require.Equal(t, api.OpFailed, through(create("late")).State, "what was half-made must be looked for")
	clean()
	vm, err := store.Find[api.VM](ctx, w.KV, w.User, project.Project, "there")
	require.NoError(t, err)
	require.Equal(t, api.PhaseRunning, vm.Status.Phase)
	require.Equal(t, api.OpSucceeded, through(about((*admit).DeleteVM, "there")).State, "a VM that is being deleted has no way back")
	require.False(t, slices.ContainsFunc(w.Nodes, func(n *Node) bool {
		files, err := n.look(ctx)
		return err != nil || slices.ContainsFunc(files.Files, func(f steps.FileFound) bool { return f.ID == vm.Status.Volumes[0] })
	}))
	clean()
}
