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
	return f.sealedKey(ctx, pool.ID, "the key of pool "+pool.Name)
}

// NewPoolKey returns the key that an operation wants to give a pool, for the agents that try it out.
func (f *Fleet) NewPoolKey(ctx context.Context, h auth.Handle, agent, poolID, operation string) (*api.PoolKey, error) {
	if err := owns(h, agent); err != nil {
		return nil, err
	}
	forbidden := problem.New(problem.Forbidden, "operation %s has no key for agent %s", operation, agent).Try("only agents of the pool that it changes may read it, while it runs")
	op, err := store.Get[api.Operation](ctx, f.KV, f.self, "", operation)
	if err != nil && !problem.Is(err, problem.NotFound) {
		return nil, err
	}
	if err != nil || op.Kind != api.OpPoolUpdate || op.Target.ID != poolID || op.State.Ended() {
		return nil, forbidden
	}
	pool, err := store.Get[api.Pool](ctx, f.KV, f.self, "", poolID)
	if err != nil && !problem.Is(err, problem.NotFound) {
		return nil, err
	}
	if err != nil || !slices.Contains(pool.Spec.Agents, agent) {
		return nil, forbidden
	}
	return f.sealedKey(ctx, operation, "the new key of pool "+pool.Name)
}

func (f *Fleet) sealedKey(ctx context.Context, id, what string) (*api.PoolKey, error) {
	e, err := f.KV.Get(ctx, store.SecretKey(id))
	if problem.Is(err, problem.NotFound) {
		return nil, problem.New(problem.Internal, "%s is gone", what).Try("restore the store from its backup")
	}
	if err != nil {
		return nil, err
	}
	key, err := f.Vault.Open(e.Value, id)
	if err != nil {
		return nil, err
	}
	return &api.PoolKey{Key: key}, nil
}
