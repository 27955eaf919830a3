package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/activities/storage/seed"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// MakeDisk implements Pool.
func (d *Dir) MakeDisk(ctx context.Context, plan steps.VMPlan, src Source, progress func(string)) error {
	if err := checkPlan(plan); err != nil {
		return err
	}
	root, err := d.open(plan.Disk.Pool, plan.Disk.PoolPath)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	backing, err := d.image(ctx, root, plan, src, progress)
	if err != nil {
		return full(err, plan.Disk.OnNode(), plan.Disk.ImageSize)
	}
	leave, err := d.together(ctx, root, plan.Disk.PoolPath)
	if err != nil {
		return err
	}
	err = overlay(root, plan, backing)
	leave()
	if err != nil {
		return full(err, plan.Disk.OnNode(), api.MiB)
	}
	return full(writeSeed(ctx, root, plan, src), plan.Disk.OnNode(), api.MiB)
}

// full makes "no space left on device" a problem with numbers.
func full(err error, p steps.PoolOnNode, need int64) error {
	if err == nil || !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) && !problem.Is(err, problem.NoCapacity) {
		return err
	}
	u := usage("", p.Path)
	return problem.New(problem.NoCapacity, "pool %s is full", p.Called()).Because("%s of %s are free, about %s are needed", api.Size(u.Free), api.Size(u.Capacity), api.Size(need)).
		Try("delete VMs or images, or use another pool")
}

// overlay makes the root disk as a child of backing, unless it is there.
func overlay(root *os.Root, plan steps.VMPlan, backing string) error {
	name := volumesDir + "/" + rootLayer(plan) + volumeExt
	if h, err := header(root, name); err == nil {
		// It was made by an earlier attempt, whole: it has its name only since then.
		if h.BackingFile != backing || h.VirtualSize != plan.Disk.Size {
			return problem.New(problem.Conflict, "volume %s exists and is another one", plan.Disk.Volume).
				Because("it has %d bytes and backing file %q", h.VirtualSize, h.BackingFile)
		}
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return problem.Wrap(err, problem.Conflict, "volume %s exists and cannot be read", plan.Disk.Volume)
	}
	h, err := backingHeader(root, strings.TrimPrefix(backing, plan.Disk.PoolPath+"/"), plan.Disk.Image)
	if err != nil {
		return err
	}
	if err := h.Standalone(); err != nil {
		return err
	}
	if plan.Disk.Size < h.VirtualSize {
		return problem.New(problem.Invalid, "a root disk of %d bytes is too small for image %s", plan.Disk.Size, plan.Disk.Image).
			Because("the image has %d bytes", h.VirtualSize).Try("ask for a root disk of at least that size")
	}
	tmp := name + tempExt
	if err := removeFile(root, tmp); err != nil {
		return err
	}
	if err := qcow2.Create(inPool(plan.Disk.PoolPath, tmp), plan.Disk.Size, backing); err != nil {
		return errors.Join(err, removeFile(root, tmp))
	}
	return finish(root, tmp, name, volumesDir)
}

// finish makes a whole file durable under its name.
func finish(root *os.Root, tmp, name, dir string) error {
	f, err := root.OpenFile(tmp, os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(f.Chmod(0o600), f.Sync(), f.Close())
	}
	if err == nil {
		err = root.Rename(tmp, name)
	}
	if err == nil {
		err = syncDir(root, dir)
	}
	return problem.Wrap(err, problem.Internal, "file %s cannot be finished", name)
}

// header reads the header of a qcow2 file in the pool. A link is not followed.
func header(root *os.Root, name string) (*qcow2.Header, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // was only read
	return qcow2.Read(f, info.Size())
}

// writeSeed makes the seed. It is made anew each time: it is small, and what it says may have been cut off.
func writeSeed(ctx context.Context, root *os.Root, plan steps.VMPlan, src Source) error {
	s, err := src.Seed(ctx, plan.VM)
	if err != nil {
		return problem.Wrap(err, problem.Unavailable, "the seed of vm %s cannot be fetched", plan.Name)
	}
	name := seedsDir + "/" + plan.VM + seedExt
	tmp, work := name+tempExt, seedsDir+"/"+plan.VM+workExt
	if err := errors.Join(removeFile(root, tmp), root.RemoveAll(work)); err != nil {
		return problem.Wrap(err, problem.Internal, "what is left of an earlier seed cannot be removed")
	}
	var macs []string
	for _, n := range plan.NICs {
		macs = append(macs, n.MAC)
	}
	if err := seed.Write(inPool(plan.Disk.PoolPath, tmp), inPool(plan.Disk.PoolPath, work), s, macs); err != nil {
		return problem.Wrap(errors.Join(err, removeFile(root, tmp)), problem.Internal, "the seed of vm %s cannot be written", plan.Name)
	}
	return finish(root, tmp, name, seedsDir)
}

// removeFile removes a file; none is fine.
func removeFile(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return problem.Wrap(err, problem.Internal, "file %s cannot be removed", name)
	}
	return nil
}

// RemoveDisk implements Pool.
func (d *Dir) RemoveDisk(_ context.Context, plan steps.VMPlan) error {
	if err := checkPlan(plan); err != nil {
		return err
	}
	root, err := d.open(plan.Disk.Pool, plan.Disk.PoolPath)
	if err != nil {
		return d.awayOrGone(err, plan.Disk.PoolPath)
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	volume := volumesDir + "/" + rootLayer(plan) + volumeExt
	err = errors.Join(removeFile(root, volume), removeFile(root, volume+tempExt), removeSeed(root, plan.VM))
	return problem.Wrap(err, problem.Internal, "the disk of vm %s cannot be removed", plan.Name)
}
