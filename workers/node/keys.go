package node

import (
	"context"
	"sync"

	"github.com/nextstack/nextstack/api/problem"
)

// keys fetches the keys of pools from the server, once this node is a member.
type keys struct {
	mu    sync.Mutex
	fetch func(ctx context.Context, pool, operation string) (string, error)
}

func (k *keys) set(fetch func(ctx context.Context, pool, operation string) (string, error)) {
	if k == nil { // nobody asks for any
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fetch = fetch
}

// of returns the key of a pool.
func (k *keys) of(ctx context.Context, pool string) (string, error) { return k.wanted(ctx, pool, "") }

// wanted returns the key that an operation wants a pool to have.
func (k *keys) wanted(ctx context.Context, pool, operation string) (string, error) {
	k.mu.Lock()
	fetch := k.fetch
	k.mu.Unlock()
	if fetch == nil {
		return "", problem.New(problem.Unavailable, "the key of pool %s cannot be fetched yet", pool).Because("this node is not a member")
	}
	return fetch(ctx, pool, operation)
}
