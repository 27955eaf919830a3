package storage

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// ByType leaves each pool to the driver of its type.
type ByType map[string]Pool

var (
	_ Pool    = ByType(nil)
	_ Readier = ByType(nil)
	_ Keeper  = ByType(nil)
)

// of returns the driver of a type; plans that were made before there were types name none.
func (b ByType) of(poolType string) (Pool, error) {
	if poolType == "" {
		poolType = api.PoolDir
	}
	if d := b[poolType]; d != nil {
		return d, nil
	}
	no := problem.New(problem.Unsupported, "this node cannot use pools of type %q", poolType)
	if poolType == api.PoolRBD {
		return nil, no.Because("its agent was built without Ceph").Try("install librbd there, and a gnext that was built where librbd-dev is (make build), and restart the agent")
	}
	return nil, no.Try("see whether its agent is as new as the server: gnext host get")
}

// Prepare implements Pool.
func (b ByType) Prepare(ctx context.Context, p steps.PoolOnNode) (api.PoolUsage, error) {
	d, err := b.of(p.Type)
	if err != nil {
		return api.PoolUsage{}, err
	}
	return d.Prepare(ctx, p)
}

// Release implements Pool.
func (b ByType) Release(ctx context.Context, p steps.PoolOnNode) error {
	d, err := b.of(p.Type)
	if err != nil {
		return err
	}
	return d.Release(ctx, p)
}

// MakeDisk implements Pool.
func (b ByType) MakeDisk(ctx context.Context, plan steps.VMPlan, src Source, progress func(string)) error {
	d, err := b.of(plan.Disk.Type)
	if err != nil {
		return err
	}
	return d.MakeDisk(ctx, plan, src, progress)
}

// RemoveDisk implements Pool.
func (b ByType) RemoveDisk(ctx context.Context, plan steps.VMPlan) error {
	d, err := b.of(plan.Disk.Type)
	if err != nil {
		return err
	}
	return d.RemoveDisk(ctx, plan)
}

// OpenDisk implements Pool.
func (b ByType) OpenDisk(ctx context.Context, plan steps.VMPlan) (Disk, error) {
	d, err := b.of(plan.Disk.Type)
	if err != nil {
		return nil, err
	}
	return d.OpenDisk(ctx, plan)
}

// ReceiveDisk implements Pool.
func (b ByType) ReceiveDisk(ctx context.Context, plan steps.VMPlan, src Source, fetch func(context.Context) (io.ReadCloser, error), tell func(api.Progress)) error {
	d, err := b.of(plan.Disk.Type)
	if err != nil {
		return err
	}
	return d.ReceiveDisk(ctx, plan, src, fetch, tell)
}

// EvictImage implements Pool.
func (b ByType) EvictImage(ctx context.Context, c steps.CachedImage) error {
	d, err := b.of(c.PoolType)
	if err != nil {
		return err
	}
	return d.EvictImage(ctx, c)
}

// List implements Pool.
func (b ByType) List(ctx context.Context, p steps.PoolOnNode) ([]steps.FileFound, error) {
	d, err := b.of(p.Type)
	if err != nil {
		return nil, err
	}
	return d.List(ctx, p)
}

// Remove implements Pool.
func (b ByType) Remove(ctx context.Context, p steps.PoolOnNode, f steps.FileFound) error {
	d, err := b.of(p.Type)
	if err != nil {
		return err
	}
	return d.Remove(ctx, p, f)
}

// Usage implements Pool.
func (b ByType) Usage(ctx context.Context, p steps.PoolOnNode) api.PoolUsage {
	d, err := b.of(p.Type)
	if err != nil {
		return api.PoolUsage{Pool: p.Pool, Error: err.Error()}
	}
	return d.Usage(ctx, p)
}

// Ready implements Readier.
func (b ByType) Ready(ctx context.Context, p steps.PoolOnNode) error {
	d, err := b.of(p.Type)
	if err != nil {
		return err
	}
	if r, ok := d.(Readier); ok {
		return r.Ready(ctx, p)
	}
	return nil
}

// CheckSource implements Checker.
func (b ByType) CheckSource(ctx context.Context, p steps.PoolOnNode, secret string) error {
	d, err := b.of(p.Type)
	if err != nil {
		return err
	}
	c, ok := d.(Checker)
	if !ok {
		return problem.New(problem.Unsupported, "how pools of type %s are reached cannot be changed", p.Type)
	}
	return c.CheckSource(ctx, p, secret)
}

// Keep implements Keeper. A driver of several types is asked once, with the pools of all of them.
func (b ByType) Keep(ctx context.Context, pools []steps.PoolOnNode) error {
	var errs []error
	var asked []Keeper
	for _, kind := range slices.Sorted(maps.Keys(b)) {
		if k, ok := b[kind].(Keeper); ok && !slices.Contains(asked, k) {
			asked = append(asked, k)
			errs = append(errs, k.Keep(ctx, pools))
		}
	}
	return errors.Join(errs...)
}
