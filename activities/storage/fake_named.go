package storage

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Pools of Ceph keep snapshots by themselves, under names; so does a fake one.

// fakeSnap is what a volume showed at some time.
type fakeSnap struct {
	data    []byte
	virtual int64
}

// What the names of snapshots begin with.
const (
	fakeTaken = RBDSnap // asked for
	fakeKept  = RBDKept // in case going back to another one is undone
)

func named(p steps.PoolOnNode) bool { return p.Type == api.PoolRBD }

// onNamed calls do with the lock held, if there is the volume; it may change its file.
func (f *Fake) onNamed(v steps.VolumePlan, do func(file *fakeFile) error) error {
	v.Layer = ""
	return f.onLayer(v, func(pool *fakePool, path string) error {
		file := pool.files[path]
		file.snaps = maps.Clone(file.snaps) // others may have the old one
		err := do(&file)
		if err == nil {
			pool.files[path] = file
		}
		return err
	})
}

func (f *fakeFile) keep(name string) {
	if _, there := f.snaps[name]; there {
		return
	}
	if f.snaps == nil {
		f.snaps = map[string]fakeSnap{}
	}
	f.snaps[name] = fakeSnap{f.data, f.virtual}
}

// back makes the volume what it was, and reports whether that is known.
func (f *fakeFile) back(name string) bool {
	s, there := f.snaps[name]
	if there {
		f.data, f.virtual = s.data, s.virtual
	}
	return there
}

// content is what a copy of the volume, or of a snapshot of it, begins with.
func (f *fakeFile) content(snapshot string) (fakeSnap, bool) {
	if snapshot == "" {
		return fakeSnap{f.data, f.virtual}, true
	}
	s, there := f.snaps[fakeTaken+snapshot]
	return s, there
}

func (f *Fake) addNamed(s steps.SnapshotPlan) error {
	if !api.IsUUID(s.Snapshot) {
		return problem.New(problem.Invalid, "%q is not the ID of a snapshot", s.Snapshot)
	}
	return f.onNamed(s.Volume, func(file *fakeFile) error {
		file.keep(fakeTaken + s.Snapshot)
		return nil
	})
}

// dropNamed is content if there is no such volume, or no such snapshot.
func (f *Fake) dropNamed(v steps.VolumePlan, name string) error {
	err := f.onNamed(v, func(file *fakeFile) error {
		delete(file.snaps, name)
		return nil
	})
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// dropSnap removes a snapshot that nobody asked for. It is content if there is none.
func (p *fakePool) dropSnap(path, name string) error {
	if kind, _ := ClassifyRBDSnap(name); kind == KindForeign {
		return problem.New(problem.Invalid, "%s is not a snapshot of ours", name)
	}
	if file, there := p.files[path]; there {
		file.snaps = maps.Clone(file.snaps)
		delete(file.snaps, name)
		p.files[path] = file
	}
	return nil
}

// Snap takes a snapshot behind everybody's back.
func (f *Fake) Snap(v steps.VolumePlan, name string) error {
	return f.onNamed(v, func(file *fakeFile) error { file.keep(name); return nil })
}

// Unsnap removes one likewise.
func (f *Fake) Unsnap(v steps.VolumePlan, name string) error { return f.dropNamed(v, name) }

func (f *Fake) removeNamed(v steps.VolumePlan) error {
	if v.Layer != "" {
		return f.dropNamed(v, fakeKept+v.Layer)
	}
	err := f.onLayer(v, func(pool *fakePool, path string) error {
		for _, name := range slices.Sorted(maps.Keys(pool.files[path].snaps)) {
			if strings.HasPrefix(name, fakeTaken) {
				return problem.New(problem.InUse, "volume %s has snapshots", v.Name).Because("%s is one", name)
			}
		}
		delete(pool.files, path)
		return nil
	})
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// CheckRevert implements Snapshots.
func (f *Fake) CheckRevert(_ context.Context, r steps.VolumeRevert) error {
	if !named(r.Volume.Pool) {
		return f.onLayer(at(r.Volume, r.Frozen), func(*fakePool, string) error { return nil })
	}
	return f.onNamed(r.Volume, func(file *fakeFile) error {
		if _, there := file.snaps[fakeTaken+r.Snapshot]; !there {
			return problem.New(problem.NotFound, "volume %s has no snapshot %s", r.Volume.Name, r.Snapshot)
		}
		return nil
	})
}

func (f *Fake) revertNamed(r steps.VolumeRevert) error {
	if !api.IsUUID(r.Layer) {
		return problem.New(problem.Invalid, "%q is not the ID of a layer", r.Layer)
	}
	return f.onNamed(r.Volume, func(file *fakeFile) error {
		if _, there := file.snaps[fakeTaken+r.Snapshot]; !there {
			return problem.New(problem.NotFound, "volume %s has no snapshot %s", r.Volume.Name, r.Snapshot)
		}
		file.keep(fakeKept + r.Layer)
		file.back(fakeTaken + r.Snapshot)
		return nil
	})
}

func (f *Fake) undoRevertNamed(r steps.VolumeRevert) error {
	err := f.onNamed(r.Volume, func(file *fakeFile) error {
		if file.back(fakeKept + r.Layer) {
			delete(file.snaps, fakeKept+r.Layer)
		}
		return nil
	})
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// fileOf is where the fake keeps what a hypervisor opens.
func (f *Fake) fileOf(s compute.DiskSource) string {
	if s.RBD == nil {
		return s.File
	}
	volume, _ := strings.CutPrefix(s.RBD.Image, rbdDisk)
	for _, on := range []*Fake{f, f.Net} {
		if on == nil {
			continue
		}
		on.mu.Lock()
		for path, p := range on.pools {
			if p.id == s.RBD.Secret {
				on.mu.Unlock()
				return layerPath(steps.VolumePlan{Volume: volume, Pool: steps.PoolOnNode{Path: path}})
			}
		}
		on.mu.Unlock()
	}
	return ""
}

// CheckSource implements Checker.
func (f *Fake) CheckSource(_ context.Context, p steps.PoolOnNode, _ string) error {
	if err := CheckRBDPool(p); err != nil {
		return err
	}
	f = f.on(p.Path)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.lost(p.Path); err != nil {
		return err
	}
	_, err := f.find(p.Pool, p.Path)
	return err
}
