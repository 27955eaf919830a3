package storage

import (
	"context"
	"errors"
	"os"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Seeds is what the driver of a pool does for the seed of a VM whose root disk comes from another pool: MakeDisk and RemoveDisk do
// it for all others.
type Seeds interface {
	// MakeSeed makes the seed in the pool of the VM's root disk. It is made anew each time, unless somebody uses it.
	MakeSeed(ctx context.Context, plan steps.VMPlan, src Source) error
	// RemoveSeed removes it. It is content if it is not there.
	RemoveSeed(ctx context.Context, plan steps.VMPlan) error
}

var (
	_ Seeds = ByType(nil)
	_ Seeds = (*Dir)(nil)
	_ Seeds = (*Mounts)(nil)
	_ Seeds = (*Fake)(nil)
)

func seedsOf(p any, poolType string) (Seeds, error) {
	if s, ok := p.(Seeds); ok {
		return s, nil
	}
	return nil, problem.New(problem.Unsupported, "root disks do not go to pools of type %s, nor come from them", poolType).Because("its driver keeps no seeds").Try("see what pools can do in docs/storage.md")
}

// seeds returns the driver of the pool of a VM's root disk.
func (b ByType) seeds(plan steps.VMPlan) (Seeds, error) {
	d, err := b.of(plan.Disk.Type)
	if err != nil {
		return nil, err
	}
	return seedsOf(d, plan.Disk.Type)
}

// MakeSeed implements Seeds.
func (b ByType) MakeSeed(ctx context.Context, plan steps.VMPlan, src Source) error {
	s, err := b.seeds(plan)
	if err != nil {
		return err
	}
	return s.MakeSeed(ctx, plan, src)
}

// RemoveSeed implements Seeds.
func (b ByType) RemoveSeed(ctx context.Context, plan steps.VMPlan) error {
	s, err := b.seeds(plan)
	if err != nil {
		return err
	}
	return s.RemoveSeed(ctx, plan)
}

// MakeSeed implements Seeds.
func (d *Dir) MakeSeed(ctx context.Context, plan steps.VMPlan, src Source) error {
	if err := checkPlan(plan); err != nil {
		return err
	}
	root, err := d.open(plan.Disk.Pool, plan.Disk.PoolPath)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	return full(writeSeed(ctx, root, plan, src), plan.Disk.OnNode(), 1<<20)
}

// RemoveSeed implements Seeds.
func (d *Dir) RemoveSeed(_ context.Context, plan steps.VMPlan) error {
	if err := checkPlan(plan); err != nil {
		return err
	}
	root, err := d.open(plan.Disk.Pool, plan.Disk.PoolPath)
	if err != nil {
		return d.awayOrGone(err, plan.Disk.PoolPath)
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	return removeSeed(root, plan.VM)
}

func removeSeed(root *os.Root, vm string) error {
	iso := seedsDir + "/" + vm + seedExt
	err := errors.Join(removeFile(root, iso), removeFile(root, iso+tempExt), root.RemoveAll(seedsDir+"/"+vm+workExt))
	return problem.Wrap(err, problem.Internal, "the seed of vm %s cannot be removed", vm)
}

// MakeSeed implements Seeds.
func (m *Mounts) MakeSeed(ctx context.Context, plan steps.VMPlan, src Source) error {
	s, err := seedsOf(m.files, plan.Disk.Type)
	if err != nil {
		return err
	}
	return m.done(ctx, plan.Disk.OnNode(), func(ctx context.Context) error { return s.MakeSeed(ctx, plan, src) })
}

// RemoveSeed implements Seeds.
func (m *Mounts) RemoveSeed(ctx context.Context, plan steps.VMPlan) error {
	s, err := seedsOf(m.files, plan.Disk.Type)
	if err != nil {
		return err
	}
	return m.done(ctx, plan.Disk.OnNode(), func(ctx context.Context) error {
		return m.unlessNone(plan.Disk.OnNode(), s.RemoveSeed(ctx, plan))
	})
}

// MakeSeed implements Seeds.
func (f *Fake) MakeSeed(ctx context.Context, plan steps.VMPlan, src Source) error {
	where, err := fakeLocate(plan)
	if err != nil {
		return err
	}
	if _, err := src.Seed(ctx, plan.VM); err != nil {
		return err
	}
	f = f.on(plan.Disk.PoolPath)
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(plan.Disk.Pool, plan.Disk.PoolPath)
	if err == nil {
		pool.files[where.Seed.File] = fakeFile{kind: KindSeed, id: plan.VM}
	}
	return err
}

// RemoveSeed implements Seeds.
func (f *Fake) RemoveSeed(_ context.Context, plan steps.VMPlan) error {
	where, err := fakeLocate(plan)
	if err != nil {
		return err
	}
	f = f.on(plan.Disk.PoolPath)
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(plan.Disk.Pool, plan.Disk.PoolPath)
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	if err == nil {
		delete(pool.files, where.Seed.File)
	}
	return err
}
