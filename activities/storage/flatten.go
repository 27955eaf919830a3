package storage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Flattener is what the driver of a pool does to make volumes independent of the images that they were made of.
type Flattener interface {
	// FlattenVolume brings all that a volume shows of its image into the volume. What a pool of files has open in a guest is for its
	// hypervisor to do (compute.Disks): in_use. One that stands alone is content. Whatever interrupts it, the volume shows the same.
	FlattenVolume(ctx context.Context, v steps.VolumePlan, tell func(api.Progress)) error
	// StandsAlone reports whether a volume needs no image, whether somebody has it open or not.
	StandsAlone(ctx context.Context, v steps.VolumePlan) (bool, error)
}

// FlattenVolume implements Flattener. The volume is changed where it is: until the last moment it has its image below it, which shows
// through where nothing was copied yet. So it needs room for what is copied and no more, and may be killed at any time.
func (d *Dir) FlattenVolume(ctx context.Context, v steps.VolumePlan, tell func(api.Progress)) error {
	err := d.onVolume(v, func(root *os.Root) error {
		h, err := flattening(root, v)
		if err != nil || h == nil || h.BackingFile == "" {
			return err
		}
		err = qemuimg.Flatten(ctx, layerPath(v), h.VirtualSize, func(percent float64) {
			if tell != nil {
				tell(api.Progress{Text: "copying the image into the volume", Done: int64(percent), Total: 100})
			}
		})
		if err != nil {
			return err
		}
		return syncFile(root, layerFile(v))
	})
	return full(err, v.Pool, v.Size)
}

// flattening reads what a volume is made on. Raw files, which have no header, are made on nothing.
func flattening(root *os.Root, v steps.VolumePlan) (*qcow2.Header, error) {
	if v.Shareable {
		_, _, err := measure(root, v)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, noLayer(v)
		}
		return nil, problem.Wrap(err, problem.Conflict, "volume %s cannot be read", v.Name)
	}
	h, err := header(root, layerFile(v))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, noLayer(v)
	case err != nil:
		return nil, problem.Wrap(err, problem.Conflict, "volume %s cannot be read", v.Name)
	case h.BackingFile != "" && filepath.Dir(h.BackingFile) != inPool(v.Pool.Path, backingDir):
		return nil, madeOnLayer(v)
	}
	return h, nil
}

// madeOnLayer: what depends on the image is the first layer of a chain, and not the one that is written to.
func madeOnLayer(v steps.VolumePlan) *problem.Problem {
	return problem.New(problem.Conflict, "volume %s cannot be made independent of its image", v.Name).Because("it has snapshots, and the first of them is what was made on the image").
		Try("delete its snapshots first: gnext snap list --volume %s", v.Name)
}

// StandsAlone implements Flattener.
func (d *Dir) StandsAlone(_ context.Context, v steps.VolumePlan) (yes bool, err error) {
	err = d.onVolume(v, func(root *os.Root) error {
		h, err := flattening(root, v)
		yes = err == nil && (h == nil || h.BackingFile == "")
		return err
	})
	return yes, err
}

// FlattenVolume implements Flattener.
func (m *Mounts) FlattenVolume(ctx context.Context, v steps.VolumePlan, tell func(api.Progress)) error {
	return m.done(ctx, v.Pool, func(ctx context.Context) error { return m.files.FlattenVolume(ctx, v, tell) })
}

// StandsAlone implements Flattener.
func (m *Mounts) StandsAlone(ctx context.Context, v steps.VolumePlan) (bool, error) {
	return use(ctx, m, v.Pool, func(ctx context.Context) (bool, error) { return m.files.StandsAlone(ctx, v) })
}

// FlattenVolume implements Flattener.
func (b ByType) FlattenVolume(ctx context.Context, v steps.VolumePlan, tell func(api.Progress)) error {
	d, err := b.of(v.Pool.Type)
	if err != nil {
		return err
	}
	return d.FlattenVolume(ctx, v, tell)
}

// StandsAlone implements Flattener.
func (b ByType) StandsAlone(ctx context.Context, v steps.VolumePlan) (bool, error) {
	d, err := b.of(v.Pool.Type)
	if err != nil {
		return false, err
	}
	return d.StandsAlone(ctx, v)
}

// FlattenVolume implements Flattener.
func (f *Fake) FlattenVolume(_ context.Context, v steps.VolumePlan, tell func(api.Progress)) error {
	return f.onFlat(v, func(pool *fakePool, path string) error {
		if tell != nil {
			tell(api.Progress{Text: "copying the image into the volume", Done: 1, Total: 1})
		}
		pool.flatten(path)
		return nil
	})
}

// StandsAlone implements Flattener.
func (f *Fake) StandsAlone(_ context.Context, v steps.VolumePlan) (yes bool, err error) {
	err = f.onFlat(v, func(pool *fakePool, path string) error {
		yes = pool.files[path].child == ""
		return nil
	})
	return yes, err
}

// onFlat calls do with the lock held, if there is the volume and it is one layer.
func (f *Fake) onFlat(v steps.VolumePlan, do func(pool *fakePool, path string) error) error {
	return f.onLayer(unlayered(v), func(pool *fakePool, path string) error {
		if pool.files[path].below != "" {
			return madeOnLayer(v)
		}
		return do(pool, path)
	})
}

func (p *fakePool) flatten(path string) {
	file := p.files[path]
	file.data, file.below, file.child = []byte(p.shows(path)), "", ""
	p.files[path] = file
}

// PullLayer implements compute.FakeBacking.
func (f *Fake) PullLayer(s compute.DiskSource) error {
	file := f.fileOf(s)
	pool, leave, err := f.holding(file)
	if err != nil {
		return err
	}
	defer leave()
	pool.flatten(file)
	return nil
}
