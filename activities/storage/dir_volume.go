package storage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Capabilities implements Volumes.
func (d *Dir) Capabilities(p steps.PoolOnNode) Capabilities { return dirCapabilities(p) }

// Locate implements Pool.
func (d *Dir) Locate(plan steps.VMPlan) (compute.DomainFiles, error) { return Locate(plan) }

// LocateVolume implements Volumes.
func (d *Dir) LocateVolume(v steps.VolumePlan) (compute.DiskSource, error) { return locateVolume(v) }

// onVolume calls do with the pool's directory.
func (d *Dir) onVolume(v steps.VolumePlan, do func(root *os.Root) error) error {
	if err := checkVolume(v); err != nil {
		return err
	}
	root, err := d.open(v.Pool.Pool, v.Pool.Path)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	return do(root)
}

// CreateVolume implements Volumes.
func (d *Dir) CreateVolume(ctx context.Context, v steps.VolumePlan, src Source, tell func(api.Progress)) error {
	if err := checkNew(v); err != nil {
		return err
	}
	if tell == nil {
		tell = func(api.Progress) {}
	}
	err := d.onVolume(v, func(root *os.Root) error {
		switch {
		case v.Shareable:
			return d.createRaw(ctx, root, v, src, tell)
		case v.Image != nil:
			return d.childOfImage(ctx, root, v, src, tell)
		case v.From != nil:
			return d.copyOf(ctx, root, v, tell)
		}
		return d.standing(ctx, root, v, func(tmp string) error { return qcow2.Create(inPool(v.Pool.Path, tmp), v.Size, "") })
	})
	return full(err, v.Pool, api.MiB)
}

func (d *Dir) childOfImage(ctx context.Context, root *os.Root, v steps.VolumePlan, src Source, tell func(api.Progress)) error {
	plan := imagePlan(v)
	backing, err := d.image(ctx, root, plan, src, func(text string) { tell(api.Progress{Text: text}) })
	if err != nil {
		return err
	}
	leave, err := d.together(ctx, root, v.Pool.Path)
	if err != nil {
		return err
	}
	defer leave()
	return overlay(root, plan, backing)
}

// standing makes a volume that is made on nothing, by a function that makes its file, unless it is there.
func (d *Dir) standing(ctx context.Context, root *os.Root, v steps.VolumePlan, write func(tmp string) error) error {
	name := layerFile(v)
	size, backing, err := measure(root, v)
	switch {
	case err == nil && (backing != "" || size != v.Size):
		return otherVolume(v, size, backing)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return problem.Wrap(err, problem.Conflict, "volume %s exists and cannot be read", v.Name)
	}
	tmp := name + tempExt
	if err := d.clear(root, tmp); err != nil {
		return err
	}
	if err := write(tmp); err != nil {
		return errors.Join(err, removeFile(root, tmp))
	}
	leave, err := d.together(ctx, root, v.Pool.Path)
	if err != nil {
		return errors.Join(err, removeFile(root, tmp))
	}
	defer leave()
	return finish(root, tmp, name, volumesDir)
}

// clear removes what an earlier attempt has left half-made, unless that is still at work.
func (d *Dir) clear(root *os.Root, tmp string) error {
	if opened(root, tmp) {
		return problem.New(problem.Unavailable, "file %s is being written", tmp).Because("an earlier attempt is still at work").Try("wait for it to end")
	}
	return removeFile(root, tmp)
}

// copyOf makes a volume of its own with what another shows.
func (d *Dir) copyOf(ctx context.Context, root *os.Root, v steps.VolumePlan, tell func(api.Progress)) error {
	return d.standing(ctx, root, v, func(tmp string) error {
		from, err := origin(root, v)
		if err != nil {
			return err
		}
		size, _, err := measure(root, from)
		if err != nil {
			return problem.Wrap(err, problem.Conflict, "volume %s cannot be copied", from.Volume)
		}
		return pour(ctx, v, layerPath(from), formatOf(from), size, tmp, tell)
	})
}

// pour fills the file of a volume, which is not whole yet, with a copy of an image of a size.
func pour(ctx context.Context, v steps.VolumePlan, from, format string, size int64, tmp string, tell func(api.Progress)) error {
	if size > v.Size {
		return tooSmall(v, size)
	}
	path := inPool(v.Pool.Path, tmp)
	err := qemuimg.ConvertTo(ctx, from, format, path, formatOf(v), size, func(percent float64) {
		tell(api.Progress{Text: "copying the volume", Done: int64(percent / 100 * float64(size)), Total: size})
	})
	if err == nil && size < v.Size {
		err = qemuimg.Resize(ctx, path, formatOf(v), v.Size)
	}
	return err
}

// opened reports whether a process has the file open as an image: QEMU keeps locks on it, other than those that we take. Where
// the file system has no locks nobody is found.
func opened(root *os.Root, name string) bool {
	f, err := root.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // was not even read
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0}
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock) == nil && lock.Type != unix.F_UNLCK
}

// RemoveVolume implements Volumes.
func (d *Dir) RemoveVolume(ctx context.Context, v steps.VolumePlan) error {
	err := d.onVolume(v, func(root *os.Root) error {
		leave, err := d.alone(ctx, root, v.Pool.Path)
		if err != nil {
			return err
		}
		defer leave()
		return errors.Join(removeLayer(root, v), removeFile(root, layerFile(v)+tempExt))
	})
	return d.awayOrGone(err, v.Pool.Path)
}

// awayOrGone decides about a pool that is not found: a directory that is gone altogether has no volume either. One whose marker
// is missing may be a file system that is not mounted: the volume is still there, and the removal must wait.
func (d *Dir) awayOrGone(err error, path string) error {
	if err == nil {
		return nil
	}
	if _, serr := os.Lstat(path); errors.Is(serr, fs.ErrNotExist) {
		return nil
	}
	if problem.Is(err, problem.NotFound) {
		p := problem.From(err)
		return problem.New(problem.Unavailable, "%s", p.What).Because("%s", p.Why).Try("%s", p.Fix)
	}
	return err
}

// removeLayer removes a layer that nobody has open and nothing is made on. It is called alone.
func removeLayer(root *os.Root, v steps.VolumePlan) error {
	name := layerFile(v)
	if _, err := root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	children, err := madeOn(root, v)
	switch {
	case err != nil:
		return err
	case len(children) > 0:
		return stillNeeded(v, children[0])
	case opened(root, name):
		return problem.New(problem.InUse, "volume file %s is in use", layerPath(v)).Because("a process holds QEMU's lock on it").Try("detach it, or stop the vm that has it")
	}
	if err := removeFile(root, name); err != nil {
		return err
	}
	return problem.Wrap(syncDir(root, volumesDir), problem.Internal, "the removal of volume file %s cannot be made durable", layerPath(v))
}

// madeOn returns the names of the files that are made on a layer. One that cannot be read might be.
func madeOn(root *os.Root, v steps.VolumePlan) (names []string, err error) {
	entries, err := fs.ReadDir(root.FS(), volumesDir)
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "the volumes of pool %s cannot be listed", v.Pool.Path)
	}
	for _, e := range entries {
		if kind, id := classify(volumesDir, e.Name()); kind != KindVolume || !e.Type().IsRegular() || id == layer(v) {
			continue
		}
		h, err := header(root, volumesDir+"/"+e.Name())
		if errors.Is(err, fs.ErrNotExist) || problem.Is(err, problem.Invalid) {
			continue // gone, or nothing that anybody could open
		}
		if err != nil {
			return nil, problem.Wrap(err, problem.InUse, "volume file %s may be needed by %s, which cannot be read", layerPath(v), e.Name())
		}
		if filepath.Base(h.BackingFile) == layer(v)+volumeExt {
			names = append(names, strings.TrimSuffix(e.Name(), volumeExt))
		}
	}
	return names, nil
}

// GrowVolume implements Volumes.
func (d *Dir) GrowVolume(ctx context.Context, v steps.VolumePlan) error {
	if err := checkNew(v); err != nil {
		return err
	}
	return d.onVolume(v, func(root *os.Root) error {
		size, _, err := measure(root, v)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return noLayer(v)
		case err != nil:
			return problem.Wrap(err, problem.Conflict, "volume %s cannot be read", v.Name)
		case size > v.Size:
			return shrinking(size, v.Size)
		case size == v.Size:
			return nil
		}
		if err := qemuimg.Resize(ctx, layerPath(v), formatOf(v), v.Size); err != nil {
			return full(err, v.Pool, api.MiB)
		}
		return syncFile(root, layerFile(v))
	})
}

// syncFile makes what a program has written durable.
func syncFile(root *os.Root, name string) error {
	f, err := root.OpenFile(name, os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	return problem.Wrap(err, problem.Internal, "file %s cannot be made durable", name)
}
