package storage

import (
	"context"
	"errors"
	"maps"
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
	// Net is a network file system that is mounted at NetDir: pools below that are those of Net, which other nodes may have,
	// too. Nil: there is none. What agents mount themselves (api.MountDir) is of Net as well, and so are pools of Ceph.
	Net    *Fake
	NetDir string
	// InUse reports whether the root disk of a VM is in use on this node; nil: none is.
	InUse func(vm string) bool
	// VolumeInUse reports whether a guest of this node may write to a volume; nil: none may.
	VolumeInUse func(volume string) bool

	mu    sync.Mutex
	pools map[string]*fakePool // by path
	bars  map[string]error     // likewise
	away  bool
}

// Bar says that nothing can be made a pool at a path, as if it were no directory, or the address of nobody. What is a pool there
// already cannot be released either.
func (f *Fake) Bar(path string, err error) {
	f = f.on(path)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bars == nil {
		f.bars = map[string]error{}
	}
	f.bars[path] = err
}

// Away says whether the servers of what agents mount are away. Of a network file system only.
func (f *Fake) Away(away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = away
}

// lost is called with the lock held.
func (f *Fake) lost(path string) error {
	if f.away && strings.HasPrefix(path, api.MountDir+"/") {
		return problem.New(problem.Unavailable, "pool %s is away", path)
	}
	return nil
}

type fakePool struct {
	id    string
	agent string              // that made it
	files map[string]fakeFile // by path
}

type fakeFile struct {
	kind, id string
	child    string // SHA-256 that it is a child of
	size     int64
	below    string              // path of the layer that a volume's layer is made on
	virtual  int64               // bytes that a guest sees of a volume
	snaps    map[string]fakeSnap // of a volume, by name; never changed, only replaced
	data     []byte              // of a volume
	sealed   bool                // of a memory in a pool of Ceph
}

// on returns who has the directory: this node itself, or what is mounted there.
func (f *Fake) on(path string) *Fake {
	if f.Net != nil && (strings.HasPrefix(path, f.NetDir+"/") || strings.HasPrefix(path, api.MountDir+"/") || strings.HasPrefix(path, "/ceph/")) {
		return f.Net
	}
	return f
}

var _ Pool = (*Fake)(nil)

// Put adds a file that nobody asked for.
func (f *Fake) Put(p steps.PoolOnNode, name, kind, id string) {
	f = f.on(p.Path)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pools[p.Path].files[filepath.Join(p.Path, name)] = fakeFile{kind: kind, id: id}
}

// Take takes a file away behind everybody's back, whatever needs it.
func (f *Fake) Take(p steps.PoolOnNode, path string) {
	f = f.on(p.Path)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pools[p.Path].files, path)
}

// Clone returns pools of their own with the same things in them. What is mounted is the same file system as before.
func (f *Fake) Clone() *Fake {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &Fake{Capacity: f.Capacity, Net: f.Net, NetDir: f.NetDir, InUse: f.InUse, VolumeInUse: f.VolumeInUse, away: f.away, bars: maps.Clone(f.bars), pools: map[string]*fakePool{}}
	for path, p := range f.pools {
		out.pools[path] = &fakePool{id: p.id, agent: p.agent, files: maps.Clone(p.files)} // contents are never changed, only replaced
	}
	return out
}

// Prepare implements Pool.
func (f *Fake) Prepare(_ context.Context, p steps.PoolOnNode) (api.PoolUsage, error) {
	check := checkPool
	if p.Type == api.PoolRBD {
		check = CheckRBDPool
	}
	if err := check(p); err != nil {
		return api.PoolUsage{}, err
	}
	f = f.on(p.Path)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := errors.Join(f.lost(p.Path), f.bars[p.Path]); err != nil {
		return api.PoolUsage{}, err
	}
	switch old := f.pools[p.Path]; {
	case p.Join && (old == nil || old.id != p.Pool):
		return api.PoolUsage{}, notJoined(p, "it is not this pool here")
	case old == nil:
		if f.pools == nil {
			f.pools = map[string]*fakePool{}
		}
		f.pools[p.Path] = &fakePool{id: p.Pool, agent: p.Agent, files: map[string]fakeFile{}}
	case old.id != p.Pool:
		return api.PoolUsage{}, problem.New(problem.Conflict, "%s is pool %s already", p.Path, old.id)
	case !p.Shared && old.agent != "" && p.Agent != "" && old.agent != p.Agent:
		return api.PoolUsage{}, problem.New(problem.Conflict, "two agents of the pool see the same files in %s", p.Path).Try("add the pool with --shared")
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
		if file.kind == KindBacking {
			u.Images = append(u.Images, file.id)
		}
	}
	slices.Sort(u.Images)
	u.Images = u.Images[:min(len(u.Images), api.MaxPoolImages)]
	return u
}

// find is called with the lock held.
func (f *Fake) find(pool, path string) (*fakePool, error) {
	p := f.pools[path]
	if err := f.lost(path); err != nil {
		return nil, err
	}
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
	f = f.on(p.Path)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pools[p.Path] == nil {
		return nil
	}
	pool, err := f.find(p.Pool, p.Path)
	if problem.Is(err, problem.Unavailable) {
		return err
	}
	if err != nil {
		return nil
	}
	if err := f.bars[p.Path]; err != nil {
		return err
	}
	for path, file := range pool.files {
		if file.kind == KindVolume || file.kind == KindMemory {
			return problem.New(problem.InUse, "pool %s is not empty: %s", p.Path, path)
		}
	}
	delete(f.pools, p.Path)
	return nil
}

// EvictImage implements Pool.
func (f *Fake) EvictImage(_ context.Context, c steps.CachedImage) error {
	f = f.on(c.PoolPath)
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(c.Pool, c.PoolPath)
	if problem.Is(err, problem.Unavailable) {
		return err
	}
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
	f = f.on(p.Path)
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(p.Pool, p.Path)
	if err != nil {
		return nil, err
	}
	var out []steps.FileFound
	for path, file := range pool.files {
		found := steps.FileFound{Pool: p.Pool, Path: path, Kind: file.kind, ID: file.id}
		if file.kind == KindVolume {
			found.On = file.child
		}
		out = append(out, found)
		for name := range file.snaps {
			kind, id := ClassifyRBDSnap(name)
			out = append(out, steps.FileFound{Pool: p.Pool, Path: path + "@" + name, Kind: kind, ID: id, Of: file.id})
		}
	}
	slices.SortFunc(out, func(a, b steps.FileFound) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// Remove implements Pool.
func (f *Fake) Remove(_ context.Context, p steps.PoolOnNode, file steps.FileFound) error {
	f = f.on(p.Path)
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(p.Pool, p.Path)
	if problem.Is(err, problem.Unavailable) {
		return err
	}
	if err != nil || file.Pool != p.Pool {
		return problem.New(problem.Invalid, "file %s is not in pool %s", file.Path, p.Path)
	}
	if _, _, err := inside(p.Path, file.Path); err != nil {
		return err
	}
	if device, name, isSnap := strings.Cut(file.Path, "@"); isSnap {
		return pool.dropSnap(device, name)
	}
	if known := pool.files[file.Path]; known.kind == KindBacking {
		return pool.evict(file.Path, known.id)
	}
	delete(pool.files, file.Path)
	return nil
}

// Usage implements Pool.
func (f *Fake) Usage(_ context.Context, p steps.PoolOnNode) api.PoolUsage {
	f = f.on(p.Path)
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.find(p.Pool, p.Path); err != nil {
		return api.PoolUsage{Pool: p.Pool, Error: err.Error()}
	}
	return f.usage(p)
}
