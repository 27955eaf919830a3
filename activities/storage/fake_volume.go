package storage

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// A fake layer holds what was written to it, one text after the other; what a volume shows is that of all its layers.

// Capabilities implements Volumes.
func (f *Fake) Capabilities(p steps.PoolOnNode) Capabilities {
	if named(p) {
		return RBDCapabilities()
	}
	return dirCapabilities(p)
}

// Locate implements Pool.
func (f *Fake) Locate(plan steps.VMPlan) (compute.DomainFiles, error) {
	data := plan.Data
	plan.Data = nil
	locate := Locate
	if plan.Disk.Type == api.PoolRBD {
		locate = LocateRBD
	}
	out, err := locate(plan)
	for i := 0; i < len(data) && err == nil; i++ { // which may be in pools of other types
		var source compute.DiskSource
		d := data[i]
		source, err = f.LocateVolume(steps.VolumePlan{Volume: d.Volume, Pool: d.Pool, Layer: d.Layer, Shareable: d.Shareable})
		out.Data = append(out.Data, source)
	}
	return out, err
}

// LocateVolume implements Volumes.
func (f *Fake) LocateVolume(v steps.VolumePlan) (compute.DiskSource, error) {
	if named(v.Pool) {
		return LocateRBDVolume(v)
	}
	return locateVolume(v)
}

// Write does what a guest does that writes to a volume.
func (f *Fake) Write(v steps.VolumePlan, text string) error {
	return f.onLayer(v, func(pool *fakePool, path string) error {
		file := pool.files[path]
		file.data = append(slices.Clone(file.data), text...)
		pool.files[path] = file
		return nil
	})
}

// Shows returns what a volume shows, and how large it is.
func (f *Fake) Shows(v steps.VolumePlan) (content string, size int64, err error) {
	err = f.onLayer(v, func(pool *fakePool, path string) error {
		content, size = pool.shows(path), pool.files[path].virtual
		return nil
	})
	return content, size, err
}

// Describe says in a line each what the volumes of a pool are.
func (f *Fake) Describe(p steps.PoolOnNode) (out []string) {
	f = f.on(p.Path)
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(p.Pool, p.Path)
	if err != nil {
		return nil
	}
	for _, path := range slices.Sorted(maps.Keys(pool.files)) {
		if file := pool.files[path]; file.kind == KindMemory {
			out = append(out, fmt.Sprintf("%s keeps the memory %q", path, file.data))
		}
		if file := pool.files[path]; file.kind == KindVolume {
			line := fmt.Sprintf("%s has %d bytes, is made on %q and shows %q", path, file.virtual, filepath.Base(file.below)+file.child, pool.shows(path))
			if n := len(file.snaps); n > 0 {
				line += fmt.Sprintf(", and keeps %d snapshots", n)
			}
			out = append(out, line)
		}
	}
	return out
}

// shows returns what a layer shows: what is in those below, and then what is in it.
func (p *fakePool) shows(path string) string {
	file := p.files[path]
	if file.below == "" {
		return string(file.data)
	}
	return p.shows(file.below) + string(file.data)
}

// madeOn returns the layers that are made on one.
func (p *fakePool) madeOn(path string) (out []string) {
	for _, child := range slices.Sorted(maps.Keys(p.files)) {
		if p.files[child].below == path {
			out = append(out, child)
		}
	}
	return out
}

// merge brings a layer into the one below; what is made on it is made on that from now on.
func (p *fakePool) merge(top, below string) {
	t, b := p.files[top], p.files[below]
	b.data, b.virtual = append(slices.Clone(b.data), t.data...), max(b.virtual, t.virtual)
	p.files[below] = b
	t.data = nil // it still shows the same
	p.files[top] = t
	for _, child := range p.madeOn(top) {
		c := p.files[child]
		c.below = below
		p.files[child] = c
	}
}

// onPool calls do with the lock held.
func (f *Fake) onPool(v steps.VolumePlan, do func(f *Fake, pool *fakePool) error) error {
	check := checkVolume
	if named(v.Pool) {
		check = CheckRBDVolume
	}
	if err := check(v); err != nil {
		return err
	}
	f = f.on(v.Pool.Path)
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(v.Pool.Pool, v.Pool.Path)
	if err != nil {
		return err
	}
	return do(f, pool)
}

// onLayer calls do with the lock held, if there is the layer of the plan.
func (f *Fake) onLayer(v steps.VolumePlan, do func(pool *fakePool, path string) error) error {
	return f.onPool(v, func(_ *Fake, pool *fakePool) error {
		if _, there := pool.files[layerPath(v)]; !there {
			return noLayer(v)
		}
		return do(pool, layerPath(v))
	})
}

// CreateVolume implements Volumes.
func (f *Fake) CreateVolume(ctx context.Context, v steps.VolumePlan, src Source, tell func(api.Progress)) error {
	check := checkNew
	if named(v.Pool) {
		check, v.Layer = CheckNewRBDVolume, ""
	}
	if err := check(v); err != nil {
		return err
	}
	if v.Image != nil {
		if err := f.on(v.Pool.Path).fetch(ctx, v.Pool, imagePlan(v).Disk, src); err != nil {
			return err
		}
	}
	if tell != nil {
		tell(api.Progress{Text: "making the volume", Done: v.Size, Total: v.Size})
	}
	return f.onPool(v, func(_ *Fake, pool *fakePool) error {
		made := fakeFile{kind: KindVolume, id: layer(v), virtual: v.Size}
		if v.Image != nil && !v.Shareable {
			made.child = v.Image.SHA256
		}
		if old, there := pool.files[layerPath(v)]; there && (old.virtual != v.Size || old.child != made.child || old.below != "") {
			return otherVolume(v, old.virtual, old.child)
		} else if there {
			return nil
		}
		switch {
		case v.Image != nil:
			made.data = []byte("image " + v.Image.SHA256 + ": ")
		case v.From != nil:
			from := steps.VolumePlan{Volume: v.From.Volume, Pool: v.Pool, Layer: v.From.Layer}
			source, there := pool.files[layerPath(from)]
			if !there {
				from.Shareable = true
				source, there = pool.files[layerPath(from)]
			}
			if !there {
				return noLayer(from)
			}
			snapshot := v.From.Snapshot
			if !named(v.Pool) {
				snapshot = "" // its layer says it all
			}
			was, there := source.content(snapshot)
			if !there {
				return problem.New(problem.NotFound, "volume %s has no snapshot %s", v.From.Volume, v.From.Snapshot)
			}
			if was.virtual > v.Size {
				return tooSmall(v, was.virtual)
			}
			if made.data = was.data; source.below != "" {
				made.data = []byte(pool.shows(layerPath(from)))
			}
		}
		pool.files[layerPath(v)] = made
		return nil
	})
}

// RemoveVolume implements Volumes.
func (f *Fake) RemoveVolume(_ context.Context, v steps.VolumePlan) error {
	if named(v.Pool) {
		return f.removeNamed(v)
	}
	err := f.onPool(v, func(_ *Fake, pool *fakePool) error {
		if children := pool.madeOn(layerPath(v)); len(children) > 0 {
			return stillNeeded(v, filepath.Base(children[0]))
		}
		delete(pool.files, layerPath(v))
		return nil
	})
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// GrowVolume implements Volumes.
func (f *Fake) GrowVolume(_ context.Context, v steps.VolumePlan) error {
	v = unlayered(v)
	return f.onLayer(v, func(pool *fakePool, path string) error { return pool.grow(path, v.Size) })
}

func (p *fakePool) grow(path string, size int64) error {
	file := p.files[path]
	if file.virtual > size {
		return shrinking(file.virtual, size)
	}
	file.virtual = size
	p.files[path] = file
	return nil
}

// put makes a layer on another, unless it is there.
func (p *fakePool) put(v steps.VolumePlan, below string) error {
	path := layerPath(v)
	b, there := p.files[below]
	if !there {
		return problem.New(problem.NotFound, "there is no layer %s", below)
	}
	if old, there := p.files[path]; there {
		if old.below != below {
			return otherVolume(v, old.virtual, old.below)
		}
		return nil
	}
	if b.virtual > v.Size {
		return tooSmall(v, b.virtual)
	}
	p.files[path] = fakeFile{kind: KindVolume, id: layer(v), below: below, virtual: v.Size}
	return nil
}

// AddSnapshot implements Snapshots.
func (f *Fake) AddSnapshot(_ context.Context, s steps.SnapshotPlan) error {
	if named(s.Volume.Pool) {
		return f.addNamed(s)
	}
	top, err := newLayer(s.Volume, s.Layer)
	if err != nil {
		return err
	}
	return f.onLayer(s.Volume, func(pool *fakePool, path string) error { return pool.put(top, path) })
}

// UndoSnapshot implements Snapshots.
func (f *Fake) UndoSnapshot(ctx context.Context, s steps.SnapshotPlan) error {
	if named(s.Volume.Pool) {
		return f.dropNamed(s.Volume, fakeTaken+s.Snapshot)
	}
	return f.DropSnapshot(ctx, undoing(s), false, nil)
}

// DropSnapshot implements Snapshots.
func (f *Fake) DropSnapshot(_ context.Context, s steps.SnapshotDrop, merged bool, _ func(api.Progress)) error {
	if named(s.Volume.Pool) {
		return f.dropNamed(s.Volume, fakeTaken+s.Snapshot)
	}
	frozen := at(s.Volume, s.Frozen)
	if s.Child == "" {
		return f.RemoveVolume(context.Background(), frozen)
	}
	if _, err := newLayer(s.Volume, s.Child); err != nil {
		return err
	}
	return f.onLayer(frozen, func(pool *fakePool, below string) error {
		top := layerPath(at(s.Volume, s.Child))
		file, there := pool.files[top]
		switch {
		case !there:
			return nil
		case file.below != below:
			return otherVolume(at(s.Volume, s.Child), file.virtual, file.below)
		}
		if others := slices.DeleteFunc(pool.madeOn(below), func(p string) bool { return p == top }); len(others) > 0 && len(file.data) > 0 && !merged {
			return stillNeeded(frozen, filepath.Base(others[0]))
		}
		pool.merge(top, below)
		delete(pool.files, top)
		return nil
	})
}

// RetireLayer implements Snapshots.
func (f *Fake) RetireLayer(v steps.VolumePlan) error {
	if named(v.Pool) {
		return nil
	}
	return f.onPool(v, func(_ *Fake, pool *fakePool) error {
		delete(pool.files, layerPath(v))
		return nil
	})
}

// RevertVolume implements Snapshots.
func (f *Fake) RevertVolume(_ context.Context, r steps.VolumeRevert) error {
	if named(r.Volume.Pool) {
		return f.revertNamed(r)
	}
	top, err := newLayer(r.Volume, r.Layer)
	if err != nil {
		return err
	}
	return f.onLayer(at(r.Volume, r.Frozen), func(pool *fakePool, path string) error { return pool.put(top, path) })
}

// UndoRevert implements Snapshots.
func (f *Fake) UndoRevert(ctx context.Context, r steps.VolumeRevert) error {
	if named(r.Volume.Pool) {
		return f.undoRevertNamed(r)
	}
	top, err := newLayer(r.Volume, r.Layer)
	if err != nil {
		return err
	}
	return f.RemoveVolume(ctx, top)
}

// holding returns the pool that has a file, with the lock held until leave is called.
func (f *Fake) holding(path string) (pool *fakePool, leave func(), err error) {
	f = f.on(path)
	f.mu.Lock()
	for dir, p := range f.pools {
		if _, there := p.files[path]; there && strings.HasPrefix(path, dir+"/") {
			return p, f.mu.Unlock, nil
		}
	}
	f.mu.Unlock()
	return nil, nil, problem.New(problem.NotFound, "there is no file %s", path)
}

// Chain implements compute.FakeBacking.
func (f *Fake) Chain(s compute.DiskSource) (out []compute.DiskSource, err error) {
	if s.RBD != nil {
		return []compute.DiskSource{s}, nil
	}
	pool, leave, err := f.holding(s.File)
	if err != nil {
		return nil, err
	}
	defer leave()
	for path := s.File; path != ""; path = pool.files[path].below {
		out = append(out, compute.QCOW2(path))
	}
	return out, nil
}

// MergeLayers implements compute.FakeBacking.
func (f *Fake) MergeLayers(top, below compute.DiskSource) error {
	pool, leave, err := f.holding(top.File)
	if err != nil {
		return err
	}
	defer leave()
	pool.merge(top.File, below.File)
	return nil
}

// WriteLayer implements compute.FakeBacking.
func (f *Fake) WriteLayer(s compute.DiskSource, text string) error {
	path := f.fileOf(s)
	pool, leave, err := f.holding(path)
	if err != nil {
		return err
	}
	defer leave()
	file := pool.files[path]
	file.data = append(slices.Clone(file.data), text...)
	pool.files[path] = file
	return nil
}

// GrowLayer implements compute.FakeBacking.
func (f *Fake) GrowLayer(s compute.DiskSource, size int64) error {
	file := f.fileOf(s)
	pool, leave, err := f.holding(file)
	if err != nil {
		return err
	}
	defer leave()
	return pool.grow(file, size)
}
