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

// keptFor is how long what a pool needs is kept after its last use, though nobody has named the pool yet: it may be on its way to become
// one of this node.
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
	return key, checkKey(key, p)
}

func checkKey(key string, p steps.PoolOnNode) error {
	if !api.IsCephKey(key) {
		return problem.New(problem.Invalid, "the key of pool %s is not one of Ceph", p.Pool).Try("see: ceph auth print-key client.%s", p.Source.User)
	}
	return nil
}

// CheckSource implements storage.Checker. It uses a connection of its own, so that nobody else is served by it.
func (d *Driver) CheckSource(ctx context.Context, p steps.PoolOnNode, secret string) error {
	if err := storage.CheckRBDPool(p); err != nil {
		return err
	}
	key, err := d.keyOf(ctx, p, secret)
	if err != nil {
		return err
	}
	done := make(chan error, 1) // librados waits for nobody's context
	go func() { done <- d.tryAt(ctx, p, key) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return late(ctx, p, "try it in another way")
	}
}

func (d *Driver) keyOf(ctx context.Context, p steps.PoolOnNode, secret string) (string, error) {
	if secret == "" {
		return d.key(ctx, p)
	}
	if d.cfg.NewKey == nil {
		return "", problem.New(problem.Unsupported, "this agent fetches no other keys")
	}
	key, err := d.cfg.NewKey(ctx, p.Pool, secret)
	if err != nil {
		return "", problem.Wrap(err, problem.Unavailable, "the new key of pool %s cannot be fetched", p.Pool)
	}
	return key, checkKey(key, p)
}

func (d *Driver) tryAt(ctx context.Context, p steps.PoolOnNode, key string) error {
	c, err := d.open(p, key)
	if err != nil {
		return err
	}
	defer func() { c.io.Destroy(); c.conn.Shutdown() }()
	p.Join = true // it must be there already, and be the same
	if err := d.claim(ctx, c, p); err != nil {
		return explain(err, p, "see which pool it is")
	}
	return explain(tryOut(ctx, c.io, p), p, "try it out")
}

// Keep implements storage.Keeper: of pools that are not this node's any more, connections end and the hypervisor forgets the keys.
func (d *Driver) Keep(ctx context.Context, pools []steps.PoolOnNode) error {
	named := func(pool string) bool {
		return slices.ContainsFunc(pools, func(p steps.PoolOnNode) bool { return p.Pool == pool })
	}
	stays := func(pool string) bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return named(pool) || !d.named[pool] && time.Since(d.used[pool]) < keptFor
	}
	d.mu.Lock()
	for _, p := range pools {
		d.named[p.Pool] = true
	}
	var known, gone []string
	for pool := range d.clusters {
		known = append(known, pool)
	}
	for pool := range d.noted {
		if d.named[pool] && !named(pool) { // of a pool of many nodes one takes away what is in it
			gone = append(gone, pool)
		}
	}
	d.mu.Unlock()
	for _, pool := range known {
		if !stays(pool) {
			d.forget(pool)
		}
	}
	for _, pool := range gone {
		if err := d.unnote(pool); err != nil {
			return err
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
		case named(pool):
		case stays(pool):
			waits = true
		default:
			errs = append(errs, d.cfg.Secrets.DropSecret(ctx, pool))
		}
	}
	errs = append(errs, d.renew(ctx, pools, secrets))
	if err := errors.Join(errs...); err != nil || waits {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.kept = ids(pools)
	return nil
}

// renew has the hypervisor know the keys that the pools have now, of those of which it knows one: another may have come.
func (d *Driver) renew(ctx context.Context, pools []steps.PoolOnNode, known []string) error {
	var errs []error
	for _, p := range pools {
		if p.Type != api.PoolRBD || !slices.Contains(known, p.Pool) {
			continue
		}
		key, err := d.key(ctx, p)
		if err == nil {
			err = d.cfg.Secrets.SetSecret(ctx, p.Pool, key)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// settled reports whether nothing has changed since the hypervisor's keys were last seen to be right: a look at them with every report
// would be one too many.
func (d *Driver) settled(pools []steps.PoolOnNode) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.kept != nil && slices.Equal(d.kept, ids(pools))
}

// ids says what the hypervisor's keys depend on.
func ids(pools []steps.PoolOnNode) []string {
	out := []string{}
	for _, p := range pools {
		out = append(out, p.Pool+" "+connection(p))
	}
	slices.Sort(out)
	return out
}
