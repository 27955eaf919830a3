package storage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Copier is what a node does for volumes that go from one of its pools to another.
type Copier interface {
	// CopyVolume makes a volume, which may be there half-made, with what another one shows that no guest has open: that stands in
	// another pool, which may be of another type. Rate is bytes per second at most; 0: no limit. It can be called again after any
	// interruption. Tell may be nil.
	CopyVolume(ctx context.Context, from, to steps.VolumePlan, rate int64, tell func(api.Progress)) error
}

// Contents is what the driver of a pool does for that.
type Contents interface {
	// Lend calls use with a volume that no guest has open, to be read.
	Lend(ctx context.Context, v steps.VolumePlan, use func(context.Context, qemuimg.Disk) error) error
	// Fill makes a volume with what a disk shows. What there is of the volume goes. Progress is told the percentage.
	Fill(ctx context.Context, v steps.VolumePlan, from qemuimg.Disk, progress func(percent float64)) error
}

var (
	_ Copier   = ByType(nil)
	_ Copier   = (*Fake)(nil)
	_ Contents = (*Dir)(nil)
	_ Contents = (*Mounts)(nil)
)

// CopyVolume implements Copier.
func (b ByType) CopyVolume(ctx context.Context, from, to steps.VolumePlan, rate int64, tell func(api.Progress)) error {
	source, err := b.contents(from.Pool.Type)
	if err != nil {
		return err
	}
	target, err := b.contents(to.Pool.Type)
	if err != nil {
		return err
	}
	return source.Lend(ctx, from, func(ctx context.Context, d qemuimg.Disk) error {
		began := time.Now()
		d.Rate = rate
		return target.Fill(ctx, to, d, func(percent float64) {
			if tell == nil {
				return
			}
			p := api.Progress{Text: "copying the volume", Done: int64(percent / 100 * float64(d.Size)), Total: d.Size}
			if took := time.Since(began); took > time.Second {
				p.Rate = int64(float64(p.Done) / took.Seconds())
			}
			tell(p)
		})
	})
}

func (b ByType) contents(poolType string) (Contents, error) {
	d, err := b.of(poolType)
	if err != nil {
		return nil, err
	}
	return contentsOf(d, poolType)
}

func contentsOf(driver any, poolType string) (Contents, error) {
	if c, ok := driver.(Contents); ok {
		return c, nil
	}
	return nil, problem.New(problem.Unsupported, "volumes do not go to pools of type %s, nor come from them", poolType).Because("its driver neither lends nor fills disks").
		Try("make a new volume in the other pool, and copy what is needed inside a guest")
}

// Lend implements Contents.
func (d *Dir) Lend(ctx context.Context, v steps.VolumePlan, use func(context.Context, qemuimg.Disk) error) error {
	return d.onVolume(v, func(root *os.Root) error {
		size, _, err := measure(root, v)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return noLayer(v)
		case err != nil:
			return problem.Wrap(err, problem.Conflict, "volume %s cannot be read", v.Name)
		}
		return use(ctx, qemuimg.File(layerPath(v), formatOf(v), size))
	})
}

// Fill implements Contents.
func (d *Dir) Fill(ctx context.Context, v steps.VolumePlan, from qemuimg.Disk, progress func(percent float64)) error {
	if err := checkNew(v); err != nil {
		return err
	}
	err := d.onVolume(v, func(root *os.Root) error {
		if from.Size > v.Size {
			return tooSmall(v, from.Size)
		}
		tmp := layerFile(v) + tempExt
		if err := d.clear(root, tmp); err != nil {
			return err
		}
		err := vacant(root, v, tmp)
		if err == nil {
			err = qemuimg.Copy(ctx, from, qemuimg.File(inPool(v.Pool.Path, tmp), formatOf(v), v.Size), progress)
		}
		if err != nil {
			return errors.Join(err, removeFile(root, tmp))
		}
		leave, err := d.together(ctx, root, v.Pool.Path)
		if err != nil {
			return errors.Join(err, removeFile(root, tmp))
		}
		defer leave()
		return finish(root, tmp, layerFile(v), volumesDir)
	})
	return full(err, v.Pool, v.Size)
}

// vacant makes an empty volume under another name.
func vacant(root *os.Root, v steps.VolumePlan, tmp string) error {
	if !v.Shareable {
		return qcow2.Create(inPool(v.Pool.Path, tmp), v.Size, "")
	}
	return blank(root, v, tmp)
}

// Lend implements Contents.
func (m *Mounts) Lend(ctx context.Context, v steps.VolumePlan, read func(context.Context, qemuimg.Disk) error) error {
	from, err := contentsOf(m.files, v.Pool.Type)
	if err != nil {
		return err
	}
	return m.done(ctx, v.Pool, func(ctx context.Context) error { return from.Lend(ctx, v, read) })
}

// Fill implements Contents.
func (m *Mounts) Fill(ctx context.Context, v steps.VolumePlan, from qemuimg.Disk, progress func(percent float64)) error {
	to, err := contentsOf(m.files, v.Pool.Type)
	if err != nil {
		return err
	}
	return m.done(ctx, v.Pool, func(ctx context.Context) error { return to.Fill(ctx, v, from, progress) })
}

// CopyVolume implements Copier.
func (f *Fake) CopyVolume(ctx context.Context, from, to steps.VolumePlan, _ int64, tell func(api.Progress)) error {
	if ctx.Err() != nil {
		return problem.New(problem.Cancelled, "the copy was given up")
	}
	if tell != nil {
		tell(api.Progress{Text: "copying the volume", Done: from.Size, Total: from.Size})
	}
	text, size, err := f.Shows(unlayered(from))
	if err != nil {
		return err
	}
	return f.onPool(to, func(_ *Fake, pool *fakePool) error {
		if size > to.Size {
			return tooSmall(to, size)
		}
		v := unlayered(to)
		pool.files[layerPath(v)] = fakeFile{kind: KindVolume, id: layer(v), virtual: to.Size, data: []byte(text)}
		return nil
	})
}

// unlayered is a volume by the name that it has where there are no layers.
func unlayered(v steps.VolumePlan) steps.VolumePlan {
	if named(v.Pool) {
		v.Layer = ""
	}
	return v
}

// CopyLayer implements compute.FakeBacking.
func (f *Fake) CopyLayer(from, to compute.DiskSource) error {
	source := f.fileOf(from)
	pool, leave, err := f.holding(source)
	if err != nil {
		return err
	}
	text, size := strings.Clone(pool.shows(source)), pool.files[source].virtual
	leave()
	target := f.fileOf(to)
	pool, leave, err = f.holding(target)
	if err != nil {
		return err
	}
	defer leave()
	file := pool.files[target]
	if file.virtual < size {
		return problem.New(problem.Conflict, "%s is smaller than %s", to, from)
	}
	file.data = []byte(text)
	pool.files[target] = file
	return nil
}
