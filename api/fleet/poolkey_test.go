package fleet

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

func TestPoolKeyIsForAgentsOfThePool(t *testing.T) {
	k := newKit(t)
	a, ha := k.join("node-a")
	b, hb := k.join("node-b")
	pool := &api.Pool{Meta: api.Meta{ID: api.NewID(), Name: "ceph1"}, Spec: api.PoolSpec{Type: api.PoolRBD, Agents: []string{a}}}
	k.put(pool)
	_, err := k.fleet.PoolKey(t.Context(), ha, a, pool.ID)
	require.True(t, problem.Is(err, problem.Internal), "the key is missing: %v", err)
	sealed, err := k.vault.Seal("the key", pool.ID)
	require.NoError(t, err)
	other := &api.Pool{Meta: api.Meta{ID: api.NewID(), Name: "ceph2"}, Spec: api.PoolSpec{Type: api.PoolRBD, Agents: []string{a}}}
	k.put(other)
	_, err = k.kv.Commit(t.Context(), store.Tx{Puts: []store.Put{{Key: store.SecretKey(pool.ID), Value: sealed}, {Key: store.SecretKey(other.ID), Value: sealed}}})
	require.NoError(t, err)

	key, err := k.fleet.PoolKey(t.Context(), ha, a, pool.ID)
	require.NoError(t, err)
	require.Equal(t, "the key", key.Key)
	_, err = k.fleet.PoolKey(t.Context(), hb, a, pool.ID)
	require.True(t, problem.Is(err, problem.Forbidden))
	// To somebody who may not have it, a pool that exists looks like one that does not.
	_, there := k.fleet.PoolKey(t.Context(), hb, b, pool.ID)
	_, notThere := k.fleet.PoolKey(t.Context(), hb, b, api.NewID())
	require.True(t, problem.Is(there, problem.Forbidden))
	require.True(t, problem.Is(notThere, problem.Forbidden))
	// What was sealed for one pool does not open as another's.
	_, err = k.fleet.PoolKey(t.Context(), ha, a, other.ID)
	require.True(t, problem.Is(err, problem.Internal))
	require.NotContains(t, err.Error(), "the key")
}
