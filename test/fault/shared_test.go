package fault

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
)

// mount gives the nodes a network file system at a directory.
func mount(dir string, nodes ...*Node) *storage.Fake {
	net := &storage.Fake{}
	for _, n := range nodes {
		n.disks.Net, n.disks.NetDir = net, dir
	}
	return net
}

func sharedPool(ctx context.Context, t *testing.T) (*World, Accept) {
	w, err := NewWorld(ctx, nil)
	require.NoError(t, err)
	return w, with((*admit).CreatePool, api.PoolCreate{Name: "net", Type: api.PoolDir, Path: "/net/vms", Shared: true, Agents: []string{"a1", "a2"}})
}

func TestASharedPoolIsAddedAndDeletedOnce(t *testing.T) {
	ctx := t.Context()
	w, add := sharedPool(ctx, t)
	net := mount("/net", w.Nodes...)
	_, err := w.Do(ctx, add)
	require.NoError(t, err)
	pool, err := store.Find[api.Pool](ctx, w.KV, w.User, "", "net")
	require.NoError(t, err)
	require.True(t, pool.Spec.Shared)
	for _, n := range w.Nodes[:2] {
		require.Len(t, n.disks.pools(ctx), 1)
	}

	// Whoever lives can remove what all of them see.
	a1, err := store.Find[api.Agent](ctx, w.KV, w.User, "", "a1")
	require.NoError(t, err)
	a1.Status.Phase = api.PhaseDown
	d := store.NewDraft(w.User)
	d.Update(a1)
	_, err = d.Commit(ctx, w.KV)
	require.NoError(t, err)
	w.Nodes[0].disks.Net = &storage.Fake{} // it is not asked
	_, err = w.Do(ctx, about((*admit).DeletePool, "net"))
	require.NoError(t, err)
	require.NotEmpty(t, net.Usage(ctx, api.PoolOnNode{Pool: pool.ID, Path: "/net/vms"}).Error)
}

func TestASharedPoolThatOneNodeDoesNotSee(t *testing.T) {
	ctx := t.Context()
	w, add := sharedPool(ctx, t)
	mount("/net", w.Nodes[0])
	op, err := w.Do(ctx, add)
	require.Error(t, err)
	require.Equal(t, api.OpFailed, op.State)
	require.Equal(t, "agent a2 does not see the same files at /net/vms as agent a1", op.Error.What)
	require.Contains(t, op.Error.Fix, "--shared")
	for _, n := range w.Nodes {
		require.Empty(t, n.disks.pools(ctx), "all is undone, and a2 has made nothing")
	}
}

func TestAPoolWhoseNodesShareADirectoryUnknowingly(t *testing.T) {
	ctx := t.Context()
	w, err := NewWorld(ctx, nil)
	require.NoError(t, err)
	mount("/net", w.Nodes...)
	op, err := w.Do(ctx, with((*admit).CreatePool, api.PoolCreate{Name: "net", Type: api.PoolDir, Path: "/net/vms"}))
	require.Error(t, err)
	require.Equal(t, api.OpFailed, op.State)
	require.Contains(t, op.Error.Error(), "--shared")
	for _, n := range w.Nodes {
		require.Empty(t, n.disks.pools(ctx))
	}
}
