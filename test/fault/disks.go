package fault

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// disks is the storage of one node, in memory: pools, and the files in them by path.
type disks struct {
	mu     sync.Mutex
	images *images
	pools  map[string]string // directory by pool ID
	files  map[string]steps.FileFound
}

func newDisks(img *images) *disks {
	return &disks{images: img, pools: map[string]string{}, files: map[string]steps.FileFound{}}
}

func (d *disks) clone(img *images) *disks {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &disks{images: img, pools: maps.Clone(d.pools), files: maps.Clone(d.files)}
}

func (d *disks) register(reg activities.Registry, host *activities.Host) {
	activities.Implement(reg, host, steps.MakeDisk, func(_ context.Context, _ steps.Token, p steps.VMPlan) (steps.Nothing, error) {
		return steps.Nothing{}, d.makeDisk(p)
	})
	activities.Implement(reg, host, steps.RemoveDisk, func(_ context.Context, _ steps.Token, p steps.VMPlan) (steps.Nothing, error) {
		d.remove(volumePath(p), seedPath(p))
		return steps.Nothing{}, nil
	})
	activities.Implement(reg, host, steps.PreparePool, func(_ context.Context, _ steps.Token, p steps.PoolOnNode) (api.PoolUsage, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.pools[p.Pool] = p.Path
		return api.PoolUsage{Pool: p.Pool, Capacity: 100 * api.GiB, Free: 50 * api.GiB}, nil
	})
	activities.Implement(reg, host, steps.ReleasePool, func(_ context.Context, _ steps.Token, p steps.PoolOnNode) (steps.Nothing, error) {
		return steps.Nothing{}, d.release(p)
	})
	activities.Implement(reg, host, steps.EvictImage, func(_ context.Context, _ steps.Token, c steps.CachedImage) (steps.Nothing, error) {
		d.remove(backingPath(c.PoolPath, c.SHA256))
		return steps.Nothing{}, nil
	})
}

func volumePath(p steps.VMPlan) string        { return p.Disk.PoolPath + "/volumes/" + p.Disk.Volume }
func seedPath(p steps.VMPlan) string          { return p.Disk.PoolPath + "/seeds/" + p.VM }
func backingPath(pool, content string) string { return pool + "/images/" + content }
func (d *disks) locate(p steps.VMPlan) (compute.DomainFiles, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.files[volumePath(p)]; !ok {
		return compute.DomainFiles{}, problem.New(problem.NotFound, "vm %s has no disk", p.Name)
	}
	return compute.DomainFiles{Disk: volumePath(p), Seed: seedPath(p)}, nil
}

// makeDisk refuses what a real node cannot do: a disk in a pool that it has not, or of an image that the server has not.
func (d *disks) makeDisk(p steps.VMPlan) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pools[p.Disk.Pool] != p.Disk.PoolPath {
		return problem.New(problem.NotFound, "directory %s is no pool", p.Disk.PoolPath)
	}
	backing := backingPath(p.Disk.PoolPath, p.Disk.ImageSHA256)
	if _, ok := d.files[backing]; !ok {
		if !d.images.has(p.Disk.Image) {
			return problem.New(problem.NotFound, "there is no file of image %s", p.Disk.Image)
		}
		d.files[backing] = steps.FileFound{Pool: p.Disk.Pool, Path: backing, Kind: "backing", ID: p.Disk.ImageSHA256}
	}
	d.files[volumePath(p)] = steps.FileFound{Pool: p.Disk.Pool, Path: volumePath(p), Kind: "volume", ID: p.Disk.Volume}
	d.files[seedPath(p)] = steps.FileFound{Pool: p.Disk.Pool, Path: seedPath(p), Kind: "seed", ID: p.VM}
	return nil
}

func (d *disks) remove(paths ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range paths {
		delete(d.files, p)
	}
}

func (d *disks) release(p steps.PoolOnNode) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for path, f := range d.files {
		if f.Pool == p.Pool && f.Kind != "backing" {
			return problem.New(problem.InUse, "%s is in pool directory %s", path, p.Path)
		}
	}
	maps.DeleteFunc(d.files, func(_ string, f steps.FileFound) bool { return f.Pool == p.Pool })
	delete(d.pools, p.Pool)
	return nil
}

func (d *disks) list() []steps.FileFound {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := []steps.FileFound{}
	for _, path := range slices.Sorted(maps.Keys(d.files)) {
		out = append(out, d.files[path])
	}
	return out
}

// images is the server's image store, in memory. It implements state.ImageView.
type images struct {
	mu     sync.Mutex
	stored map[string]bool
}

func newImages() *images { return &images{stored: map[string]bool{}} }

func (i *images) clone() *images {
	i.mu.Lock()
	defer i.mu.Unlock()
	return &images{stored: maps.Clone(i.stored)}
}

func (i *images) has(id string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.stored[id]
}

// Stored implements state.ImageView.
func (i *images) Stored(context.Context) ([]string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Sorted(maps.Keys(i.stored)), nil
}

func (i *images) register(reg activities.Registry, host *activities.Host) {
	activities.Implement(reg, host, steps.ImportImage, func(_ context.Context, _ steps.Token, in steps.ImageImport) (steps.ImageImported, error) {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.stored[in.Image] = true
		return steps.ImageImported{SHA256: in.SHA256, Size: 20 * api.MiB, VirtualSize: 1 * api.GiB}, nil
	})
	activities.Implement(reg, host, steps.RemoveImage, func(_ context.Context, _ steps.Token, in steps.ImageFile) (steps.Nothing, error) {
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.stored, in.Image)
		return steps.Nothing{}, nil
	})
}
