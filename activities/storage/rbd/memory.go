//go:build ceph && cgo

package rbd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

var (
	_ storage.Memories = (*Driver)(nil)
	_ storage.Timer    = (*Driver)(nil)
)

// The hypervisor writes the memory of a guest to a file of the node. One that belongs to snapshots of disks gets another name as soon
// as those are there, and only then goes to the pool: so what is half-made is never taken for whole.
const (
	writtenExt  = ".memory" // as the hypervisor writes it
	sealedExt   = ".sealed" // with all that goes with it
	lentPattern = "nextstack-memory-*"
	memoryMark  = "a guest" // what such a device begins with
	nodeDir     = "node/"   // of what is on this node, as List calls it
)

// local is a file of this node for a memory.
func (d *Driver) local(m steps.MemoryFile, ext string) (string, error) {
	if err := storage.CheckMemory(m); err != nil {
		return "", err
	}
	if d.cfg.MemoryDir == "" {
		return "", problem.New(problem.Unsupported, "the memory of guests cannot go to Ceph pool %s", m.Pool.Source.Name).Because("the agent has no directory for it on the way")
	}
	return filepath.Join(d.cfg.MemoryDir, m.Pool.Pool, m.Memory+ext), nil
}

// LocateMemory implements storage.Memories.
func (d *Driver) LocateMemory(m steps.MemoryFile) (string, error) { return d.local(m, writtenExt) }

// PlaceMemory implements storage.Memories. There must be room for it here, and in the pool.
func (d *Driver) PlaceMemory(ctx context.Context, m steps.MemoryFile, size int64) (string, error) {
	path, err := d.local(m, writtenExt)
	if err != nil {
		return "", err
	}
	if err := d.onPool(ctx, m.Pool, "", "make room for the memory of a guest", func(ctx context.Context, _ *rados.IOContext) error {
		capacity, free, err := d.measure(ctx, m.Pool)
		if err == nil && !m.Aside && free < size {
			err = storage.NoRoomForMemory("pool "+m.Pool.Called(), api.PoolUsage{Capacity: capacity, Free: free}, size)
		}
		return err
	}); err != nil {
		return "", err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", problem.Wrap(err, problem.Unavailable, "there is no room for the memory of guests")
	}
	return path, roomOn(dir, path, size)
}

// roomOn checks that a directory of this node has room for a file, which may be there already.
func roomOn(dir, path string, size int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return problem.Wrap(err, problem.Unavailable, "directory %s cannot be measured", dir)
	}
	u := api.PoolUsage{Capacity: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize}
	if info, err := os.Stat(path); err == nil {
		u.Free += info.Size()
	}
	if u.Free < size {
		return storage.NoRoomForMemory("directory "+dir+" of this node", u, size)
	}
	return nil
}

// durable makes a file and its name survive the end of the node.
func durable(path string) error {
	for _, p := range []string{path, filepath.Dir(path)} {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return problem.Wrap(err, problem.Internal, "file %s cannot be made durable", path)
		}
	}
	return nil
}

// SealMemory implements storage.Memories.
func (d *Driver) SealMemory(_ context.Context, m steps.MemoryFile) error {
	from, err := d.local(m, writtenExt)
	if err != nil {
		return err
	}
	to, err := d.local(m, sealedExt)
	if err != nil {
		return err
	}
	err = os.Rename(from, to)
	if errors.Is(err, fs.ErrNotExist) {
		return storage.NoMemory(m)
	}
	if err == nil {
		d.cfg.Step("sealed")
	}
	return problem.Wrap(err, problem.Internal, "file %s cannot be renamed", from)
}

// KeepMemory implements storage.Memories. What is put aside stays on this node.
func (d *Driver) KeepMemory(ctx context.Context, m steps.MemoryFile, tell func(api.Progress)) (size int64, err error) {
	ext := sealedExt
	if m.Aside {
		ext = writtenExt
	}
	path, err := d.local(m, ext)
	if err != nil {
		return 0, err
	}
	if !m.Aside {
		if size, err := d.memory(ctx, m); err != nil || size > 0 {
			return size, errors.Join(err, d.tidy(m))
		}
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, storage.NoMemory(m)
	}
	if err == nil {
		err = durable(path)
	}
	if err != nil || m.Aside {
		return fileSize(info), problem.Wrap(err, problem.Unavailable, "the memory in %s cannot be kept", path)
	}
	if err := d.upload(ctx, m, path, info.Size(), tell); err != nil {
		return 0, err
	}
	return info.Size(), d.tidy(m)
}

func fileSize(info fs.FileInfo) int64 {
	if info == nil {
		return 0
	}
	return info.Size()
}

// memory says how large the memory is that the pool has whole; 0: it has none.
func (d *Driver) memory(ctx context.Context, m steps.MemoryFile) (size int64, err error) {
	name := storage.RBDMemory(m.Memory)
	err = d.onPool(ctx, m.Pool, name, "look for memory "+m.Memory, func(_ context.Context, io *rados.IOContext) error {
		img, err := rbd.OpenImageReadOnly(io, name, rbd.NoSnapshot)
		if code(err) == unix.ENOENT {
			return nil
		}
		if err != nil {
			return err
		}
		defer img.Close() //nolint:errcheck // was only read
		if _, err := img.GetMetadata(wholeKey); err != nil {
			if code(err) == unix.ENOENT {
				return nil
			}
			return err
		}
		n, err := img.GetSize()
		size = int64(n)
		return err
	})
	return size, err
}

// upload brings a file into the pool.
func (d *Driver) upload(ctx context.Context, m steps.MemoryFile, path string, size int64, tell func(api.Progress)) error {
	name := storage.RBDMemory(m.Memory)
	progress := func(string) {
		if tell != nil {
			tell(api.Progress{Text: "bringing the memory into Ceph"})
		}
	}
	return d.onPool(ctx, m.Pool, name, "keep memory "+m.Memory, func(ctx context.Context, io *rados.IOContext) error {
		file, err := os.Open(path)
		if err != nil {
			return problem.Wrap(err, problem.Unavailable, "the memory in %s cannot be read", path)
		}
		defer file.Close() //nolint:errcheck // was only read
		return d.make(ctx, io, m.Pool, name, size, memoryMark, func() error {
			if err := create(io, name, size, features); err != nil {
				return err
			}
			img, err := rbd.OpenImage(io, name, rbd.NoSnapshot)
			if err != nil {
				return err
			}
			if err = pour(ctx, m.Pool, file, img, size, progress); err == nil {
				err = img.Flush()
			}
			return errors.Join(err, img.Close())
		})
	})
}

// LendMemory implements storage.Memories. A copy that is used when the agent dies is removed by the next one.
func (d *Driver) LendMemory(ctx context.Context, m steps.MemoryFile, tell func(api.Progress), use func(path string) error) error {
	path, err := d.local(m, writtenExt)
	if err != nil {
		return err
	}
	if m.Aside {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return storage.NoMemory(m)
		}
		return use(path)
	}
	size, err := d.memory(ctx, m)
	if err == nil && size == 0 {
		err = storage.NoMemory(m)
	}
	if err != nil {
		return err
	}
	tmp, err := d.temp(lentPattern, "the memory of guests")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // what stays goes when the agent starts
	err = roomOn(filepath.Dir(tmp.Name()), tmp.Name(), size)
	if err == nil {
		err = d.download(ctx, m, tmp, size, tell)
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return localSpace(err, filepath.Dir(tmp.Name()))
	}
	return use(tmp.Name())
}

// download writes what the pool has of a memory to a file.
func (d *Driver) download(ctx context.Context, m steps.MemoryFile, to *os.File, size int64, tell func(api.Progress)) error {
	name := storage.RBDMemory(m.Memory)
	return d.onPool(ctx, m.Pool, name, "read memory "+m.Memory, func(ctx context.Context, io *rados.IOContext) error {
		img, err := rbd.OpenImageReadOnly(io, name, rbd.NoSnapshot)
		if err != nil {
			return err
		}
		defer img.Close() //nolint:errcheck // was only read
		if err := to.Truncate(size); err != nil {
			return err
		}
		group, gctx := errgroup.WithContext(ctx)
		group.SetLimit(writers)
		last := time.Now()
		for at := int64(0); at < size && gctx.Err() == nil; at += chunk {
			group.Go(func() error {
				b := make([]byte, min(chunk, size-at))
				if _, err := img.ReadAt(b, at); err != nil {
					return err
				}
				_, err := to.WriteAt(b, at)
				return err
			})
			if tell != nil && time.Since(last) > time.Second {
				last = time.Now()
				tell(api.Progress{Text: "fetching the memory from Ceph", Done: at, Total: size})
			}
		}
		err = group.Wait()
		if err == nil && ctx.Err() != nil {
			err = late(ctx, m.Pool, "read a memory")
		}
		return err
	})
}

// tidy removes what is on this node of a memory.
func (d *Driver) tidy(m steps.MemoryFile) error {
	for _, ext := range []string{writtenExt, sealedExt} {
		path, err := d.local(m, ext)
		if err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return problem.Wrap(err, problem.Internal, "file %s cannot be removed", path)
		}
	}
	return nil
}

// RemoveMemory implements storage.Memories.
func (d *Driver) RemoveMemory(ctx context.Context, m steps.MemoryFile) error {
	if err := d.tidy(m); err != nil {
		return err
	}
	return d.discard(ctx, m.Pool, storage.RBDMemory(m.Memory))
}

// here lists what is on this node of the memories of a pool.
func (d *Driver) here(p steps.PoolOnNode) (out []steps.FileFound, err error) {
	if d.cfg.MemoryDir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(filepath.Join(d.cfg.MemoryDir, p.Pool))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if id, ok := memoryID(e.Name()); ok {
			out = append(out, steps.FileFound{Pool: p.Pool, Path: p.Path + "/" + nodeDir + e.Name(), Kind: storage.KindOther, ID: id})
		}
	}
	return out, problem.Wrap(err, problem.Unavailable, "the memories of pool %s on this node cannot be listed", p.Path)
}

func memoryID(file string) (string, bool) {
	for _, ext := range []string{writtenExt, sealedExt} {
		if id, ok := strings.CutSuffix(file, ext); ok && api.IsUUID(id) {
			return id, true
		}
	}
	return "", false
}

// removeHere removes a file that here has listed.
func (d *Driver) removeHere(p steps.PoolOnNode, file string) error {
	if _, ok := memoryID(file); !ok || d.cfg.MemoryDir == "" || !api.IsUUID(p.Pool) {
		return problem.New(problem.Invalid, "%q is no memory of pool %s", file, p.Path)
	}
	err := os.Remove(filepath.Join(d.cfg.MemoryDir, p.Pool, file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return problem.Wrap(err, problem.Internal, "file %s cannot be removed", file)
}
