package storage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Fake is the pools of one node in memory. Its zero value is ready.
type Fake struct {
	Capacity int64 // bytes of each pool; 0: 100 GiB

	mu    sync.Mutex
	pools map[string]*fakePool // by path
}

type fakePool struct {
	id    string
	files map[string]fakeFile // by path
}

type fakeFile struct {
	kind, id string
	child    string // SHA-256 that it is a child of
	size     int64
}

var _ Pool = (*Fake)(nil)

// Put adds a file that nobody asked for.
func (f *Fake) Put(p steps.PoolOnNode, name, kind, id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pools[p.Path].files[filepath.Join(p.Path, name)] = fakeFile{kind: kind, id: id}
}

// Prepare implements Pool.
func (f *Fake) Prepare(_ context.Context, p steps.PoolOnNode) (api.PoolUsage, error) {
	if err := checkPool(p); err != nil {
		return api.PoolUsage{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pools == nil {
		f.pools = map[string]*fakePool{}
	}
	if old := f.pools[p.Path]; old == nil {
		f.pools[p.Path] = &fakePool{id: p.Pool, files: map[string]fakeFile{}}
	} else if old.id != p.Pool {
		return api.PoolUsage{}, problem.New(problem.Conflict, "%s is pool %s already", p.Path, old.id)
	}
	return f.usage(p), nil
}

func (f *Fake) usage(p steps.PoolOnNode) api.PoolUsage {
	u := api.PoolUsage{Pool: p.Pool, Capacity: f.Capacity}
	if u.Capacity == 0 {
		u.Capacity = 100 * api.GiB
	}
	u.Free = u.Capacity
	for _, file := range f.pools[p.Path].files {
		u.Free -= file.size
	}
	return u
}

// find is called with the lock held.
func (f *Fake) find(pool, path string) (*fakePool, error) {
	p := f.pools[path]
	switch {
	case p == nil:
		return nil, problem.New(problem.NotFound, "%s is not a pool on this node", path)
	case p.id != pool:
		return nil, problem.New(problem.Conflict, "%s is pool %s, not %s", path, p.id, pool)
	}
	return p, nil
}

// Release implements Pool.
func (f *Fake) Release(_ context.Context, p steps.PoolOnNode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(p.Pool, p.Path)
	if err != nil {
		return nil
	}
	for path, file := range pool.files {
		if file.kind == KindVolume {
			return problem.New(problem.InUse, "pool %s is not empty: %s", p.Path, path)
		}
	}
	delete(f.pools, p.Path)
	return nil
}

// MakeDisk implements Pool.
func (f *Fake) MakeDisk(ctx context.Context, plan steps.VMPlan, src Source, _ func(string)) error {
	where, err := Locate(plan)
	if err != nil {
		return err
	}
	f.mu.Lock()
	pool, err := f.find(plan.Disk.Pool, plan.Disk.PoolPath)
	var have bool
	sha, copyPath := plan.Disk.ImageSHA256, filepath.Join(plan.Disk.PoolPath, backingDir, plan.Disk.ImageSHA256)
	if err == nil {
		_, have = pool.files[copyPath]
	}
	f.mu.Unlock()
	if err != nil {
		return err
	}
	if !have {
		size, err := swallow(ctx, plan.Disk, src)
		if err != nil {
			return err
		}
		f.mu.Lock()
		free := f.usage(steps.PoolOnNode{Path: plan.Disk.PoolPath}).Free
		if size <= free {
			pool.files[copyPath] = fakeFile{kind: KindBacking, id: sha, size: size}
		}
		f.mu.Unlock()
		if size > free {
			return problem.New(problem.NoCapacity, "pool %s is full", plan.Disk.PoolPath)
		}
	}
	if _, err := src.Seed(ctx, plan.VM); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	pool.files[where.Disk] = fakeFile{kind: KindVolume, id: plan.Disk.Volume, child: sha}
	pool.files[where.Seed] = fakeFile{kind: KindSeed, id: plan.VM}
	return nil
}

// swallow reads an image to its end and checks it.
func swallow(ctx context.Context, p steps.DiskPlan, src Source) (int64, error) {
	in, _, err := src.OpenImage(ctx, p.Image)
	if err != nil {
		return 0, err
	}
	defer in.Close() //nolint:errcheck // was only read
	sum := sha256.New()
	n, err := io.Copy(sum, in)
	if err == nil && hex.EncodeToString(sum.Sum(nil)) != p.ImageSHA256 {
		err = problem.New(problem.Unavailable, "image %s came damaged", p.Image)
	}
	return n, err
}

// RemoveDisk implements Pool.
func (f *Fake) RemoveDisk(_ context.Context, plan steps.VMPlan) error {
	where, err := Locate(plan)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if pool, err := f.find(plan.Disk.Pool, plan.Disk.PoolPath); err == nil {
		delete(pool.files, where.Disk)
		delete(pool.files, where.Seed)
	}
	return nil
}

// EvictImage implements Pool.
func (f *Fake) EvictImage(_ context.Context, c steps.CachedImage) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(c.Pool, c.PoolPath)
	if err != nil {
		return nil
	}
	return pool.evict(filepath.Join(c.PoolPath, backingDir, c.SHA256), c.SHA256)
}

func (p *fakePool) evict(path, sha string) error {
	for child, file := range p.files {
		if file.child == sha {
			return problem.New(problem.InUse, "image copy %s is needed by volume file %s", sha, child)
		}
	}
	delete(p.files, path)
	return nil
}

// List implements Pool.
func (f *Fake) List(_ context.Context, p steps.PoolOnNode) ([]steps.FileFound, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(p.Pool, p.Path)
	if problem.Is(err, problem.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []steps.FileFound
	for path, file := range pool.files {
		out = append(out, steps.FileFound{Pool: p.Pool, Path: path, Kind: file.kind, ID: file.id})
	}
	slices.SortFunc(out, func(a, b steps.FileFound) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// Remove implements Pool.
func (f *Fake) Remove(_ context.Context, p steps.PoolOnNode, file steps.FileFound) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(p.Pool, p.Path)
	if err != nil || file.Pool != p.Pool {
		return problem.New(problem.Invalid, "file %s is not in pool %s", file.Path, p.Path)
	}
	if _, _, err := inside(p.Path, file.Path); err != nil {
		return err
	}
	if known := pool.files[file.Path]; known.kind == KindBacking {
		return pool.evict(file.Path, known.id)
	}
	delete(pool.files, file.Path)
	return nil
}

// Usage implements Pool.
func (f *Fake) Usage(_ context.Context, p steps.PoolOnNode) api.PoolUsage {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.find(p.Pool, p.Path); err != nil {
		return api.PoolUsage{Pool: p.Pool, Error: err.Error()}
	}
	return f.usage(p)
}
