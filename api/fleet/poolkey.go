package fleet

import (
	"context"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// PoolKey returns the key that a pool is used with. Only agents that have the pool, or are about to, may have it; to others it makes no
// difference whether the pool exists.
func (f *Fleet) PoolKey(ctx context.Context, h auth.Handle, agent, poolID string) (*api.PoolKey, error) {
	if err := owns(h, agent); err != nil {
		return nil, err
	}
	pool, err := store.Get[api.Pool](ctx, f.KV, f.self, "", poolID)
	if err != nil && !problem.Is(err, problem.NotFound) {
		return nil, err
	}
	if err != nil || !slices.Contains(pool.Spec.Agents, agent) {
		return nil, problem.New(problem.Forbidden, "pool %s is not on agent %s", poolID, agent).Try("only agents of a pool may read its key")
	}
	e, err := f.KV.Get(ctx, store.SecretKey(pool.ID))
	if problem.Is(err, problem.NotFound) {
		return nil, problem.New(problem.Internal, "the key of pool %s is gone", pool.Name).Try("restore the store from its backup")
	}
	if err != nil {
		return nil, err
	}
	key, err := f.Vault.Open(e.Value, pool.ID)
	if err != nil {
		return nil, err
	}
	return &api.PoolKey{Key: key}, nil
}
