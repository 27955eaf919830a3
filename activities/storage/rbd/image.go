//go:build ceph && cgo

package rbd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

const (
	baseSnap = "base" // of an image's copy that is whole
	// What is kept in the directory for what is on its way.
	tempPattern = "nextstack-image-*"
	seedPattern = "nextstack-seed-*"
	// lockTick is how often a lock is asked for that another node has.
	lockTick = 200 * time.Millisecond
	// nameFor is how long a copy may have no more than its name: who makes or removes one is done by then, or has died.
	nameFor = 3 * time.Second
	// chunk is how much is written at a time: an object of the cluster.
	chunk   = 4 << 20
	writers = 4 // at a time
)

// wanted is an image that has to be in a pool.
type wanted struct {
	id, sha string
	size    int64 // bytes of the file to fetch; 0: not known
}

// whole reports whether the pool has a copy of the image that disks can be made of, and how large the image is. One whose import
// ended right before its last step is finished.
func whole(io *rados.IOContext, name string) (size int64, ok bool, err error) {
	img, err := rbd.OpenImage(io, name, rbd.NoSnapshot)
	if code(err) == unix.ENOENT {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer img.Close() //nolint:errcheck // was only read
	s := img.GetSnapshot(baseSnap)
	safe, err := s.IsProtected()
	if code(err) == unix.ENOENT {
		return 0, false, nil
	}
	if err != nil || !safe { // the one who imports it protects it, under its lock
		return 0, false, err
	}
	n, err := img.GetSize()
	return int64(n), err == nil, err
}

// image brings the image into the pool unless it is there. Of several nodes one does it, the one that has the lock of the
// half-made copy; a node that dies loses it. It is called with the image's turn taken.
func (d *Driver) image(ctx context.Context, ioctx *rados.IOContext, p steps.PoolOnNode, w wanted, src storage.Source, progress func(string)) (size int64, err error) {
	name := storage.RBDImage(w.sha)
	var nameless time.Time // since when there is no more than its name
	for {
		if ctx.Err() != nil {
			return 0, late(ctx, p, "bring an image in")
		}
		if size, ok, err := whole(ioctx, name); ok || err != nil {
			return size, err
		}
		if err := create(ioctx, name, 0, features); err != nil && code(err) != unix.EEXIST {
			return 0, err
		}
		img, err := rbd.OpenImage(ioctx, name, rbd.NoSnapshot)
		if code(err) == unix.ENOENT {
			switch {
			case nameless.IsZero():
				nameless = time.Now()
			case time.Since(nameless) > nameFor:
				if err := d.removeUnused(ctx, ioctx, p, name); err != nil {
					return 0, err
				}
				nameless = time.Time{}
			}
			pause(ctx)
			continue
		}
		if err != nil {
			return 0, err
		}
		nameless = time.Time{}
		mine, err := lock(img)
		if err == nil && mine {
			err = d.fill(ctx, img, p, w, src, progress)
		}
		err = errors.Join(err, img.Close()) // which ends the lock
		if err != nil {
			if rerr := removeIf(mine, ioctx, name); rerr != nil { // a whole one has a snapshot, and stays; another node may be at it next
				d.cfg.Log.Warn("a half-made copy of an image stays in Ceph until the next attempt", "image", w.id, "error", rerr)
			}
			return 0, err
		}
		if mine {
			continue // the copy is there now
		}
		progress("another node brings the image in")
		pause(ctx)
	}
}

// pause is between two looks at what another node does.
func pause(ctx context.Context) {
	select {
	case <-time.After(lockTick):
	case <-ctx.Done():
	}
}

// steady protects the snapshot of a copy anew which somebody has begun to unprotect, and has died: librbd says that it is protected,
// and lets nothing be made of it. Whoever is at it alive is waited for.
func steady(ctx context.Context, ioctx *rados.IOContext, name string) error {
	for ctx.Err() == nil {
		img, err := rbd.OpenImage(ioctx, name, rbd.NoSnapshot)
		if code(err) == unix.ENOENT {
			return nil
		}
		if err != nil {
			return err
		}
		mine, err := lock(img)
		if err == nil && mine {
			s := img.GetSnapshot(baseSnap)
			err = s.Unprotect()
			switch no := code(err); {
			case err == nil:
				err = s.Protect()
			case no == unix.EBUSY, no == unix.EINVAL, no == unix.ENOENT: // it has children, and is protected again; or it is not protected at all
				err = nil
			}
		}
		if err = errors.Join(err, img.Close()); err != nil || mine {
			return err
		}
		pause(ctx)
	}
	return nil
}

// removeIf removes a device, or does nothing.
func removeIf(so bool, ioctx *rados.IOContext, name string) error {
	if !so {
		return nil
	}
	return remove(ioctx, name)
}

// lock takes the exclusive lock of a device, and reports whether it has it. Somebody else's is not waited for, unless whoever had
// it is dead: then the cluster takes it away, which takes half a minute.
func lock(img *rbd.Image) (mine bool, err error) {
	err = img.LockAcquire(rbd.LockModeExclusive)
	switch code(err) {
	case unix.EROFS, unix.EBUSY, unix.EAGAIN:
		return false, nil
	}
	return err == nil, err
}

// fill makes a copy whole whose lock we have, from wherever it is.
func (d *Driver) fill(ctx context.Context, img *rbd.Image, p steps.PoolOnNode, w wanted, src storage.Source, progress func(string)) error {
	s := img.GetSnapshot(baseSnap)
	safe, err := s.IsProtected()
	switch {
	case err == nil && safe:
		return nil // another node was faster
	case err == nil: // the snapshot is taken of what is whole and right, so that only this was missing
		return s.Protect()
	case code(err) != unix.ENOENT:
		return err
	}
	raw, size, err := d.fetch(ctx, p, w, src, progress)
	if err != nil {
		return err
	}
	defer raw.Close() //nolint:errcheck // was only read; it has no name any more
	if err := d.roomFor(ctx, p, raw); err != nil {
		return err
	}
	if err := img.Resize(0); err != nil { // what an import before this one has left
		return err
	}
	if err := img.Resize(uint64(size)); err != nil {
		return err
	}
	if err := pour(ctx, p, raw, img, size, progress); err != nil {
		return err
	}
	if err := img.Flush(); err != nil {
		return err
	}
	d.cfg.Step("written")
	if _, err := img.CreateSnapshot(baseSnap); err != nil {
		return err
	}
	d.cfg.Step("snapshot")
	return s.Protect()
}

// temp makes a file of this node for something on its way to the cluster or from there. What an agent that died leaves of these goes
// when the next one starts.
func (d *Driver) temp(pattern, what string) (*os.File, error) {
	if d.cfg.TempDir != "" {
		if err := os.MkdirAll(d.cfg.TempDir, 0o700); err != nil {
			return nil, problem.Wrap(err, problem.Unavailable, "there is no room for %s", what)
		}
	}
	f, err := os.CreateTemp(d.cfg.TempDir, pattern)
	return f, problem.Wrap(err, problem.Unavailable, "there is no room for %s", what)
}

// fetch gets the image's file, checks it, and returns it raw, in a file that has no name any more.
func (d *Driver) fetch(ctx context.Context, p steps.PoolOnNode, w wanted, src storage.Source, progress func(string)) (raw *os.File, size int64, err error) {
	cooked, err := d.temp(tempPattern, "images that are brought into Ceph")
	if err != nil {
		return nil, 0, err
	}
	defer os.Remove(cooked.Name()) //nolint:errcheck // what stays goes when the agent starts
	defer cooked.Close()           //nolint:errcheck // is thrown away
	if err := receive(ctx, cooked, p, w, src, progress); err != nil {
		return nil, 0, localSpace(err, d.cfg.TempDir)
	}
	info, err := cooked.Stat()
	if err != nil {
		return nil, 0, problem.Wrap(err, problem.Internal, "the file of image %s cannot be read", w.id)
	}
	h, err := qcow2.Read(cooked, info.Size())
	if err == nil {
		err = h.Standalone()
	}
	if err != nil {
		return nil, 0, problem.Wrap(err, problem.Invalid, "image %s cannot be used", w.id)
	}
	name := cooked.Name() + ".raw"
	defer os.Remove(name) //nolint:errcheck // likewise
	progress("unpacking the image")
	if err := qemuimg.ConvertTo(ctx, cooked.Name(), api.FormatQCOW2, name, api.FormatRaw, h.VirtualSize, nil); err != nil {
		return nil, 0, localSpace(err, d.cfg.TempDir)
	}
	raw, err = os.Open(name)
	return raw, h.VirtualSize, problem.Wrap(err, problem.Internal, "the file of image %s cannot be read", w.id)
}

// localSpace says of a full disk that it is this node's.
func localSpace(err error, dir string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || problem.Is(err, problem.NoCapacity) {
		return problem.New(problem.NoCapacity, "the directory %s of this node is full", filepath.Clean(dir)).Because("images are unpacked there before they are written to Ceph").Try("make room there")
	}
	return err
}

func receive(ctx context.Context, out io.Writer, p steps.PoolOnNode, w wanted, src storage.Source, progress func(string)) error {
	in, length, err := src.OpenImage(ctx, w.id)
	if ctx.Err() != nil {
		if err == nil {
			in.Close() //nolint:errcheck // nothing was read
		}
		return late(ctx, p, "fetch image "+w.id)
	}
	if err != nil {
		return problem.Wrap(err, problem.Unavailable, "image %s cannot be fetched", w.id)
	}
	defer in.Close() //nolint:errcheck // was only read
	if w.size > 0 && length >= 0 && length != w.size {
		return problem.New(problem.Conflict, "image %s has %d bytes on the server, expected were %d", w.id, length, w.size)
	}
	limit := w.size
	if limit <= 0 {
		limit = api.MaxDisk
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(out, sum, &told{ctx: ctx, total: max(w.size, length), progress: progress}), io.LimitReader(in, limit+1))
	switch {
	case ctx.Err() != nil:
		return late(ctx, p, "fetch image "+w.id)
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return err
	case err != nil:
		return problem.Wrap(err, problem.Unavailable, "image %s broke off after %d bytes", w.id, n)
	case w.size > 0 && n != w.size:
		return problem.New(problem.Unavailable, "image %s broke off: %d bytes came, expected were %d", w.id, n, w.size)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != w.sha {
		return problem.New(problem.Unavailable, "image %s came damaged", w.id).Because("its checksum is %s, expected was %s", got, w.sha)
	}
	return nil
}

// told tells how much has come, and ends the copy when ctx does.
type told struct {
	ctx      context.Context
	n, total int64
	last     time.Time
	progress func(string)
}

func (t *told) Write(b []byte) (int, error) {
	if err := t.ctx.Err(); err != nil {
		return 0, err
	}
	t.n += int64(len(b))
	if time.Since(t.last) > time.Second {
		t.last = time.Now()
		t.progress(fmt.Sprintf("fetching the image: %d of %d bytes", t.n, t.total))
	}
	return len(b), nil
}

// roomFor refuses a file whose content the pool has no room for: better before it is full than after.
func (d *Driver) roomFor(ctx context.Context, p steps.PoolOnNode, raw *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(raw.Fd()), &st); err != nil {
		return problem.Wrap(err, problem.Internal, "a file cannot be measured")
	}
	capacity, free, err := d.measure(ctx, p)
	if err != nil {
		return err
	}
	if need := st.Blocks * 512; need > free {
		return problem.New(problem.NoCapacity, "pool %s is full", p.Called()).Because("%s of %s are free, about %s are needed", api.Size(free), api.Size(capacity), api.Size(need)).
			Try("delete VMs, volumes or images, raise its quota, or add disks to the cluster; see: ceph df")
	}
	return nil
}

// pour writes what is in the file, without its holes, to the device.
func pour(ctx context.Context, p steps.PoolOnNode, raw *os.File, img *rbd.Image, size int64, progress func(string)) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	last := time.Now()
	for at := int64(0); at < size && gctx.Err() == nil; {
		from, err := unix.Seek(int(raw.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		to := size
		if err == nil {
			to, err = unix.Seek(int(raw.Fd()), from, unix.SEEK_HOLE)
		}
		if err != nil {
			return errors.Join(problem.Wrap(err, problem.Internal, "a file cannot be read"), group.Wait())
		}
		to = min(to, size, from-from%chunk+chunk) // not across the end of an object
		group.Go(func() error {
			b := make([]byte, to-from)
			if _, err := raw.ReadAt(b, from); err != nil {
				return problem.Wrap(err, problem.Internal, "a file cannot be read")
			}
			_, err := img.WriteAt(b, from)
			return err
		})
		at = to
		if time.Since(last) > time.Second {
			last = time.Now()
			progress(fmt.Sprintf("writing the image to Ceph: %d of %d bytes", at, size))
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return late(ctx, p, "write an image")
	}
	return nil
}
