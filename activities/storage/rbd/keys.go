//go:build ceph && cgo

package rbd

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/ceph/go-ceph/rados"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

var (
	_ storage.Readier = (*Driver)(nil)
	_ storage.Keeper  = (*Driver)(nil)
)

// keptFor is how long what a pool needs is kept after its last use, though nobody names the pool: it may be on its way to become one.
const keptFor = 2 * time.Minute

// Ready implements storage.Readier: the cluster answers, and the hypervisor knows the key. A guest that is started may have been
// defined long ago, and the key be another one since; so it is asked for each time.
func (d *Driver) Ready(ctx context.Context, p steps.PoolOnNode) error {
	if err := d.onPool(ctx, p, "", "look whether it is there", func(context.Context, *rados.IOContext) error { return nil }); err != nil {
		return err
	}
	if d.cfg.Secrets == nil {
		return nil
	}
	key, err := d.key(ctx, p)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.used[p.Pool], d.kept = time.Now(), nil
	d.mu.Unlock()
	return problem.Wrap(d.cfg.Secrets.SetSecret(ctx, p.Pool, key), problem.Unavailable, "the hypervisor does not take the key of pool %s", p.Pool)
}

// key fetches the key of a pool. It is never told of in an error.
func (d *Driver) key(ctx context.Context, p steps.PoolOnNode) (string, error) {
	key, err := d.cfg.Key(ctx, p.Pool)
	if err != nil {
		return "", problem.Wrap(err, problem.Unavailable, "the key of pool %s cannot be fetched", p.Pool)
	}
	if !api.IsCephKey(key) {
		return "", problem.New(problem.Invalid, "the key of pool %s is not one of Ceph", p.Pool).Try("see: ceph auth print-key client.%s", p.Source.User)
	}
	return key, nil
}

// Keep implements storage.Keeper: of pools that are not this node's any more, connections end and the hypervisor forgets the keys.
func (d *Driver) Keep(ctx context.Context, pools []steps.PoolOnNode) error {
	stays := func(pool string) bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return slices.ContainsFunc(pools, func(p steps.PoolOnNode) bool { return p.Pool == pool }) || time.Since(d.used[pool]) < keptFor
	}
	d.mu.Lock()
	var known []string
	for pool := range d.clusters {
		known = append(known, pool)
	}
	d.mu.Unlock()
	for _, pool := range known {
		if !stays(pool) {
			d.forget(pool)
		}
	}
	if d.cfg.Secrets == nil || d.settled(pools) {
		return nil
	}
	secrets, err := d.cfg.Secrets.ListSecrets(ctx)
	if err != nil {
		return err
	}
	var errs []error
	waits := false
	for _, pool := range secrets {
		switch {
		case !slices.ContainsFunc(pools, func(p steps.PoolOnNode) bool { return p.Pool == pool }) && stays(pool):
			waits = true
		case !stays(pool):
			errs = append(errs, d.cfg.Secrets.DropSecret(ctx, pool))
		}
	}
	if err := errors.Join(errs...); err != nil || waits {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.kept = ids(pools)
	return nil
}

// settled reports whether nothing has changed since the hypervisor's keys were last seen to be right: a look at them with every report
// would be one too many.
func (d *Driver) settled(pools []steps.PoolOnNode) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.kept != nil && slices.Equal(d.kept, ids(pools))
}

func ids(pools []steps.PoolOnNode) []string {
	out := []string{}
	for _, p := range pools {
		out = append(out, p.Pool)
	}
	slices.Sort(out)
	return out
}
