package fault

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
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
