//go:build ceph && cgo

package rbd

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/seed"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// wholeKey is the metadata of a device that was made to its end. It says what it began with.
const wholeKey = "nextstack.whole"

// MakeDisk implements storage.Pool.
func (d *Driver) MakeDisk(ctx context.Context, plan steps.VMPlan, src storage.Source, progress func(string)) error {
	if err := storage.CheckRBDPlan(plan); err != nil {
		return err
	}
	p := plan.Disk.OnNode()
	w := wanted{plan.Disk.Image, plan.Disk.ImageSHA256, plan.Disk.ImageSize}
	if err := d.child(ctx, p, plan.Disk.Volume, plan.Disk.Size, w, src, progress); err != nil {
		return err
	}
	return d.MakeSeed(ctx, plan, src)
}

// MakeSeed implements storage.Seeds.
func (d *Driver) MakeSeed(ctx context.Context, plan steps.VMPlan, src storage.Source) error {
	if err := storage.CheckRBDPlan(plan); err != nil {
		return err
	}
	iso, err := d.seedOf(ctx, plan, src)
	if err != nil {
		return err
	}
	p, name := plan.Disk.OnNode(), storage.RBDSeed(plan.VM)
	return d.onPool(ctx, p, name, "make the seed of vm "+plan.Name, func(ctx context.Context, io *rados.IOContext) error {
		return d.writeSeed(ctx, io, p, name, iso)
	})
}

// child makes a volume as a copy-on-write child of an image, which it brings in if need be.
func (d *Driver) child(ctx context.Context, p steps.PoolOnNode, volume string, size int64, w wanted, src storage.Source, progress func(string)) error {
	if progress == nil {
		progress = func(string) {}
	}
	if b, err := hexOf(w.sha); err != nil || len(b) != 32 {
		return problem.New(problem.Invalid, "the checksum of image %s is %q", w.id, w.sha)
	}
	name := storage.RBDDisk(volume)
	for try := 1; ; try++ {
		var virtual int64
		err := d.onPool(ctx, p, storage.RBDImage(w.sha), "bring image "+w.id+" in", func(ctx context.Context, io *rados.IOContext) (err error) {
			virtual, err = d.image(ctx, io, p, w, src, progress)
			return err
		})
		if err != nil {
			return err
		}
		if size < virtual {
			return problem.New(problem.Invalid, "a disk of %d bytes is too small for image %s", size, w.id).Because("the image has %d bytes", virtual).Try("ask for a disk of at least that size")
		}
		gone := false
		err = d.onPool(ctx, p, name, "make volume "+volume, func(ctx context.Context, io *rados.IOContext) error {
			err := d.clone(ctx, io, p, storage.RBDImage(w.sha), baseSnap, name, size)
			// The copy was taken away since we looked: librbd finds no snapshot, or one that is not protected any more.
			gone = code(err) == unix.ENOENT || code(err) == unix.EINVAL
			if code(err) == unix.EINVAL {
				if serr := steady(ctx, io, storage.RBDImage(w.sha)); serr != nil {
					return serr
				}
			}
			return err
		})
		if err == nil || !gone || try == 3 {
			return err
		}
	}
}

// clone makes a device a copy-on-write child of a snapshot.
func (d *Driver) clone(ctx context.Context, io *rados.IOContext, p steps.PoolOnNode, parent, snap, name string, size int64) error {
	return d.make(ctx, io, p, name, size, parent+"@"+snap, func() error {
		o := rbd.NewRbdImageOptions()
		defer o.Destroy()
		if err := o.SetUint64(rbd.ImageOptionFeatures, features); err != nil {
			return err
		}
		return rbd.CloneImage(io, parent, snap, io, name, o)
	})
}

// finish gives a new device its size and its mark.
func finish(io *rados.IOContext, name string, size int64, origin string) error {
	img, err := rbd.OpenImage(io, name, rbd.NoSnapshot)
	if err != nil {
		return err
	}
	if n, gerr := img.GetSize(); gerr != nil || int64(n) != size {
		err = errors.Join(gerr, img.Resize(uint64(size)))
	}
	if err == nil {
		err = img.SetMetadata(wholeKey, origin)
	}
	return errors.Join(err, img.Close())
}

// made reports whether a device was made to its end, of the same origin. Another one of its name is a conflict.
func made(io *rados.IOContext, name, origin string, size int64) (bool, error) {
	img, err := rbd.OpenImageReadOnly(io, name, rbd.NoSnapshot)
	if code(err) == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer img.Close() //nolint:errcheck // was only read
	began, err := img.GetMetadata(wholeKey)
	if code(err) == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	n, err := img.GetSize()
	if err == nil && (int64(n) != size || began != origin) {
		err = problem.New(problem.Conflict, "the device %s exists and is another one", name).Because("it has %d bytes and was made of %q", n, began)
	}
	return err == nil, err
}

// removeUnused removes a device without snapshots that nobody has open. Whoever died with it open is waited for.
func (d *Driver) removeUnused(ctx context.Context, io *rados.IOContext, p steps.PoolOnNode, name string) error {
	end := time.Now().Add(d.cfg.WatchPatience)
	for {
		err := remove(io, name)
		if code(err) != unix.EBUSY {
			return err
		}
		if time.Now().After(end) {
			return problem.New(problem.InUse, "%s of Ceph pool %s is in use", name, p.Source.Name).Because("%s", openBy(io, name)).
				Try("see who has it open: rbd status %s/%s", p.Source.Name, name)
		}
		select {
		case <-time.After(min(time.Second, d.cfg.WatchPatience/4+time.Millisecond)):
		case <-ctx.Done():
			return late(ctx, p, "remove "+name)
		}
	}
}

// openBy says who has a device open.
func openBy(io *rados.IOContext, name string) string {
	img, err := rbd.OpenImageReadOnly(io, name, rbd.NoSnapshot)
	if err != nil {
		return "something has it open"
	}
	defer img.Close() //nolint:errcheck // was only read
	if w, err := img.ListWatchers(); err == nil {
		for _, at := range w {
			return "a client at " + at.Addr + " has it open"
		}
	}
	return "something has it open"
}

// seedOf makes the seed of a VM, in memory.
func (d *Driver) seedOf(ctx context.Context, plan steps.VMPlan, src storage.Source) ([]byte, error) {
	s, err := src.Seed(ctx, plan.VM)
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "the seed of vm %s cannot be fetched", plan.Name)
	}
	if d.cfg.TempDir != "" {
		if err := os.MkdirAll(d.cfg.TempDir, 0o700); err != nil {
			return nil, problem.Wrap(err, problem.Unavailable, "there is no room for seeds")
		}
	}
	dir, err := os.MkdirTemp(d.cfg.TempDir, seedPattern)
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "there is no room for seeds")
	}
	defer os.RemoveAll(dir) //nolint:errcheck // small, and goes with the next life of the directory
	var macs []string
	for _, n := range plan.NICs {
		macs = append(macs, n.MAC)
	}
	iso := filepath.Join(dir, "seed.iso")
	if err := seed.Write(iso, filepath.Join(dir, "work"), s, macs); err != nil {
		return nil, problem.Wrap(err, problem.Internal, "the seed of vm %s cannot be written", plan.Name)
	}
	b, err := os.ReadFile(iso)
	return b, problem.Wrap(err, problem.Internal, "the seed of vm %s cannot be read", plan.Name)
}

// writeSeed makes the seed anew: it is small, and what it says may have been cut off.
func (d *Driver) writeSeed(ctx context.Context, io *rados.IOContext, p steps.PoolOnNode, name string, iso []byte) error {
	if err := d.removeUnused(ctx, io, p, name); err != nil {
		return err
	}
	const sector = 512
	size := (int64(len(iso)) + sector - 1) / sector * sector
	// Guests only read it, also two at a time while one moves: nobody needs a lock.
	if err := create(io, name, size, rbd.FeatureLayering); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return late(ctx, p, "write a seed")
	}
	img, err := rbd.OpenImage(io, name, rbd.NoSnapshot)
	if err != nil {
		return err
	}
	d.cfg.Step("seed")
	_, err = img.WriteAt(iso, 0)
	if err == nil {
		err = img.Flush()
	}
	return errors.Join(err, img.Close())
}

// RemoveDisk implements storage.Pool.
func (d *Driver) RemoveDisk(ctx context.Context, plan steps.VMPlan) error {
	if err := storage.CheckRBDPlan(plan); err != nil {
		return err
	}
	p := plan.Disk.OnNode()
	if err := d.discard(ctx, p, storage.RBDDisk(plan.Disk.Volume)); err != nil {
		return err
	}
	return d.RemoveSeed(ctx, plan)
}

// RemoveSeed implements storage.Seeds.
func (d *Driver) RemoveSeed(ctx context.Context, plan steps.VMPlan) error {
	if err := storage.CheckRBDPlan(plan); err != nil {
		return err
	}
	return d.discard(ctx, plan.Disk.OnNode(), storage.RBDSeed(plan.VM))
}

// discard removes a device, in a pool that need not be there any more. It refuses if it is there and the pool is not ours.
func (d *Driver) discard(ctx context.Context, p steps.PoolOnNode, name string) error {
	return d.call(ctx, p, name, "remove "+name, func(ctx context.Context, io *rados.IOContext) error {
		err := ours(io, p)
		if problem.Is(err, problem.NotFound) || problem.Is(err, problem.Conflict) {
			img, oerr := rbd.OpenImageReadOnly(io, name, rbd.NoSnapshot)
			if code(oerr) == unix.ENOENT {
				return nil
			}
			if oerr == nil {
				oerr = img.Close()
			}
			f := problem.From(err)
			return errors.Join(problem.New(problem.Unavailable, "%s", f.What).Because("%s", f.Why).Try("%s", f.Fix), oerr)
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return late(ctx, p, "remove "+name)
		}
		return d.removeDevice(ctx, io, p, name)
	})
}

// OpenDisk implements storage.Pool.
func (d *Driver) OpenDisk(context.Context, steps.VMPlan) (storage.Disk, error) {
	return nil, noTransfer()
}

// ReceiveDisk implements storage.Pool.
func (d *Driver) ReceiveDisk(context.Context, steps.VMPlan, storage.Source, func(context.Context) (io.ReadCloser, error), func(api.Progress)) error {
	return noTransfer()
}

func noTransfer() error {
	return problem.New(problem.Unsupported, "disks in Ceph are not handed from node to node").Because("all nodes of the pool see them").Try("move the vm without --copy-storage")
}
