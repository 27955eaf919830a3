package compute

import (
	"context"
	"maps"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// SetSecret implements Secrets.
func (f *Fake) SetSecret(_ context.Context, pool, key string) error {
	if !api.IsUUID(pool) {
		return problem.New(problem.Invalid, "%q is not the ID of a pool", pool)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return problem.New(problem.Unavailable, "the hypervisor is away")
	}
	if f.secrets == nil {
		f.secrets = map[string]string{}
	}
	f.secrets[pool] = key
	return nil
}

// DropSecret implements Secrets.
func (f *Fake) DropSecret(_ context.Context, pool string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return problem.New(problem.Unavailable, "the hypervisor is away")
	}
	delete(f.secrets, pool)
	return nil
}

// ListSecrets implements Secrets.
func (f *Fake) ListSecrets(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, problem.New(problem.Unavailable, "the hypervisor is away")
	}
	return slices.Sorted(maps.Keys(f.secrets)), nil
}
