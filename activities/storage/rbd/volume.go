//go:build ceph && cgo

package rbd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Names of snapshots.
const (
	snapPrefix = storage.RBDSnap
	keptPrefix = storage.RBDKept
	copyPrefix = storage.RBDCopy
)

// CreateVolume implements storage.Volumes. A copy of a volume is whole by itself: nothing of it stays with what it was made of.
func (d *Driver) CreateVolume(ctx context.Context, v steps.VolumePlan, src storage.Source, tell func(api.Progress)) error {
	if err := storage.CheckNewRBDVolume(v); err != nil {
		return err
	}
	if tell == nil {
		tell = func(api.Progress) {}
	}
	p, name := v.Pool, storage.RBDDisk(v.Volume)
	switch {
	case v.Image != nil:
		return d.child(ctx, p, v.Volume, v.Size, wanted{id: v.Image.Image, sha: v.Image.SHA256}, src, func(s string) { tell(api.Progress{Text: s}) })
	case v.From != nil:
		return d.onPool(ctx, p, name, "copy volume "+v.From.Volume, func(ctx context.Context, io *rados.IOContext) error { return d.copyVolume(ctx, io, v, tell) })
	}
	return d.onPool(ctx, p, name, "make volume "+v.Volume, func(ctx context.Context, io *rados.IOContext) error {
		return d.make(ctx, io, p, name, v.Size, "nothing", func() error { return create(io, name, v.Size, features) })
	})
}

// make makes a device by begin, unless it was made to its end already. One that was begun and not finished is made anew. Origin is
// what it begins with, by which another one of its name is known.
func (d *Driver) make(ctx context.Context, io *rados.IOContext, p steps.PoolOnNode, name string, size int64, origin string, begin func() error) error {
	done, err := made(io, name, origin, size)
	if done || err != nil {
		return err
	}
	if err := d.removeDevice(ctx, io, p, name); err != nil {
		return err
	}
	if err := begin(); err != nil {
		return err
	}
	d.cfg.Step("begun")
	return finish(io, name, size, origin)
}

// copyVolume fills a new device with what another one shows, or a snapshot of it.
func (d *Driver) copyVolume(ctx context.Context, io *rados.IOContext, v steps.VolumePlan, tell func(api.Progress)) error {
	source, snap := storage.RBDDisk(v.From.Volume), copyPrefix+v.Volume
	if v.From.Snapshot != "" {
		snap = snapPrefix + v.From.Snapshot
	}
	name, origin := storage.RBDDisk(v.Volume), source+"@"+snap
	done, err := made(io, name, origin, v.Size)
	if err != nil {
		return err
	}
	if done {
		return dropCopySnap(io, v)
	}
	if v.From.Snapshot == "" { // it goes on being written while it is copied
		if err := addSnap(io, source, snap); err != nil {
			return missing(err, v.From.Volume)
		}
	}
	from, err := rbd.OpenImageReadOnly(io, source, snap)
	if err != nil {
		return missing(err, v.From.Volume)
	}
	defer from.Close() //nolint:errcheck // was only read
	size, err := from.GetSize()
	if err != nil {
		return err
	}
	if v.Size < int64(size) {
		err := problem.New(problem.Invalid, "a volume of %d bytes is too small for what it begins with", v.Size).Because("that has %d bytes", size).Try("ask for a volume of at least that size")
		return errors.Join(err, dropCopySnap(io, v))
	}
	err = d.make(ctx, io, v.Pool, name, v.Size, origin, func() error {
		if err := create(io, name, v.Size, features); err != nil {
			return err
		}
		return transfer(ctx, io, v, from, name, int64(size), tell)
	})
	if err != nil {
		return err
	}
	return dropCopySnap(io, v)
}

// missing says of what was not found that it is the volume.
func missing(err error, volume string) error {
	if code(err) == unix.ENOENT {
		return problem.New(problem.NotFound, "volume %s, or its snapshot, is not in the pool", volume)
	}
	return err
}

// transfer copies what a device has, without its holes.
func transfer(ctx context.Context, io *rados.IOContext, v steps.VolumePlan, from *rbd.Image, name string, size int64, tell func(api.Progress)) error {
	to, err := rbd.OpenImage(io, name, rbd.NoSnapshot)
	if err != nil {
		return err
	}
	type extent struct{ at, end int64 }
	var all []extent
	total := int64(0)
	err = from.DiffIterate(rbd.DiffIterateConfig{
		Offset: 0, Length: uint64(size), IncludeParent: rbd.IncludeParent, WholeObject: rbd.DisableWholeObject,
		Callback: func(at, length uint64, exists int, _ interface{}) int {
			for end := at + length; exists != 0 && at < end; {
				next := min(end, at-at%chunk+chunk)
				all = append(all, extent{int64(at), int64(next)})
				total += int64(next - at)
				at = next
			}
			return 0
		},
	})
	if err == nil {
		tell(api.Progress{Text: "copying the volume", Total: total})
		group, gctx := errgroup.WithContext(ctx)
		group.SetLimit(writers)
		done := int64(0)
		for _, e := range all {
			if gctx.Err() != nil {
				break
			}
			group.Go(func() error {
				b := make([]byte, e.end-e.at)
				if _, err := from.ReadAt(b, e.at); err != nil {
					return err
				}
				_, err := to.WriteAt(b, e.at)
				return err
			})
			done += e.end - e.at
			tell(api.Progress{Text: "copying the volume", Done: done, Total: total})
		}
		err = group.Wait()
		if err == nil && ctx.Err() != nil {
			err = late(ctx, v.Pool, "copy volume "+v.From.Volume)
		}
	}
	if err == nil {
		err = to.Flush()
	}
	return errors.Join(err, to.Close())
}

// dropCopySnap removes the snapshot that a copy was made from, if it was made for that.
func dropCopySnap(io *rados.IOContext, v steps.VolumePlan) error {
	if v.From == nil || v.From.Snapshot != "" {
		return nil
	}
	return dropSnap(io, storage.RBDDisk(v.From.Volume), copyPrefix+v.Volume)
}

// RemoveVolume implements storage.Volumes. A layer is what a volume showed before it went back to a snapshot.
func (d *Driver) RemoveVolume(ctx context.Context, v steps.VolumePlan) error {
	if err := storage.CheckRBDVolume(v); err != nil {
		return err
	}
	name := storage.RBDDisk(v.Volume)
	if v.Layer != "" {
		err := d.onPool(ctx, v.Pool, name, "forget what volume "+v.Volume+" was", func(_ context.Context, io *rados.IOContext) error {
			return dropSnap(io, name, keptPrefix+v.Layer)
		})
		if problem.Is(err, problem.NotFound) {
			return nil
		}
		return err
	}
	if err := d.discard(ctx, v.Pool, name); err != nil || v.From == nil || !api.IsUUID(v.From.Volume) {
		return err
	}
	err := d.onPool(ctx, v.Pool, storage.RBDDisk(v.From.Volume), "tidy volume "+v.From.Volume, func(_ context.Context, io *rados.IOContext) error { return dropCopySnap(io, v) })
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// removeDevice removes a disk or a seed. Of its snapshots those go with it that nobody has asked for.
func (d *Driver) removeDevice(ctx context.Context, io *rados.IOContext, p steps.PoolOnNode, name string) error {
	img, err := rbd.OpenImageReadOnly(io, name, rbd.NoSnapshot)
	if code(err) == unix.ENOENT {
		return d.removeUnused(ctx, io, p, name) // of a device that was half-made or half-removed there may be no more than its name
	}
	if err != nil {
		return err
	}
	snaps, err := img.GetSnapshotNames()
	going, herr := half(img)
	if err = errors.Join(err, herr, img.Close()); err != nil {
		return err
	}
	for i, s := range snaps {
		if name, is := going[s.Id]; is {
			snaps[i].Name = name
		} else if !strings.HasPrefix(s.Name, keptPrefix) && !strings.HasPrefix(s.Name, copyPrefix) {
			return problem.New(problem.InUse, "%s of Ceph pool %s has snapshots", name, p.Source.Name).Because("%s is one of %d", s.Name, len(snaps)).Try("delete them first")
		}
	}
	for _, s := range snaps {
		if err := dropSnap(io, name, s.Name); err != nil {
			return err
		}
	}
	return d.removeUnused(ctx, io, p, name)
}

// GrowVolume implements storage.Volumes.
func (d *Driver) GrowVolume(ctx context.Context, v steps.VolumePlan) error {
	return d.onVolume(ctx, v, "grow it", func(_ context.Context, _ *rados.IOContext, img *rbd.Image) error {
		n, err := img.GetSize()
		switch {
		case err != nil || int64(n) == v.Size:
			return err
		case int64(n) > v.Size:
			return problem.New(problem.Conflict, "a volume of %d bytes does not shrink to %d", n, v.Size).Because("its end may be in use")
		}
		return img.Resize(uint64(v.Size))
	})
}

// onVolume runs f on the device of a volume that was made to its end.
func (d *Driver) onVolume(ctx context.Context, v steps.VolumePlan, what string, f func(context.Context, *rados.IOContext, *rbd.Image) error) error {
	if err := storage.CheckRBDVolume(v); err != nil {
		return err
	}
	name := storage.RBDDisk(v.Volume)
	return d.onPool(ctx, v.Pool, name, fmt.Sprintf("%s: volume %s", what, v.Volume), func(ctx context.Context, io *rados.IOContext) error {
		img, err := rbd.OpenImage(io, name, rbd.NoSnapshot)
		if err != nil {
			return missing(err, v.Volume)
		}
		_, err = img.GetMetadata(wholeKey)
		if err = missing(err, v.Volume); err == nil {
			err = f(ctx, io, img)
		}
		return errors.Join(err, img.Close())
	})
}
