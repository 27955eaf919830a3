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

func TestANewPoolKeyIsForThoseWhoTryIt(t *testing.T) {
	k := newKit(t)
	a, ha := k.join("node-a")
	b, hb := k.join("node-b")
	pool := &api.Pool{Meta: api.Meta{ID: api.NewID(), Name: "ceph1"}, Spec: api.PoolSpec{Type: api.PoolRBD, Agents: []string{a}}}
	op := &api.Operation{Meta: api.Meta{ID: api.NewID()}, Kind: api.OpPoolUpdate, State: api.OpRunning, Target: api.RefTo(pool)}
	k.put(pool)
	k.put(op)
	sealed, err := k.vault.Seal("the new key", op.ID)
	require.NoError(t, err)
	_, err = k.kv.Commit(t.Context(), store.Tx{Puts: []store.Put{{Key: store.SecretKey(op.ID), Value: sealed}}})
	require.NoError(t, err)

	key, err := k.fleet.NewPoolKey(t.Context(), ha, a, pool.ID, op.ID)
	require.NoError(t, err)
	require.Equal(t, "the new key", key.Key)
	for name, ask := range map[string]func() (*api.PoolKey, error){
		"another's agent":   func() (*api.PoolKey, error) { return k.fleet.NewPoolKey(t.Context(), hb, a, pool.ID, op.ID) },
		"not of the pool":   func() (*api.PoolKey, error) { return k.fleet.NewPoolKey(t.Context(), hb, b, pool.ID, op.ID) },
		"another pool":      func() (*api.PoolKey, error) { return k.fleet.NewPoolKey(t.Context(), ha, a, api.NewID(), op.ID) },
		"another operation": func() (*api.PoolKey, error) { return k.fleet.NewPoolKey(t.Context(), ha, a, pool.ID, api.NewID()) },
	} {
		_, err := ask()
		require.True(t, problem.Is(err, problem.Forbidden), "%s: %v", name, err)
	}
	op, err = store.Get[api.Operation](t.Context(), k.kv, k.fleet.self, "", op.ID)
	require.NoError(t, err)
	op.State = api.OpFailed
	d := store.NewDraft(k.fleet.self)
	d.Update(op)
	_, err = d.Commit(t.Context(), k.kv)
	require.NoError(t, err)
	_, err = k.fleet.NewPoolKey(t.Context(), ha, a, pool.ID, op.ID)
	require.True(t, problem.Is(err, problem.Forbidden), "it is over")
}
