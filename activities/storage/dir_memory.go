package storage

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// inMemories calls do with the pool's directory.
func (d *Dir) inMemories(m steps.MemoryFile, do func(root *os.Root) error) error {
	if err := CheckMemory(m); err != nil {
		return err
	}
	root, err := d.open(m.Pool.Pool, m.Pool.Path)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	return do(root)
}

// PlaceMemory implements Memories. A pool that an older version has prepared has no directory for them yet.
func (d *Dir) PlaceMemory(_ context.Context, m steps.MemoryFile, size int64) (string, error) {
	err := d.inMemories(m, func(root *os.Root) error {
		if err := ensureDir(root, checkpointsDir); err != nil {
			return unusable(m.Pool.Path, err)
		}
		u := d.room(m.Pool.Path)
		if u.Error != "" {
			return problem.New(problem.Unavailable, "pool directory %s cannot be measured", m.Pool.Path).Because("%s", u.Error)
		}
		if info, err := root.Lstat(writtenMemory(m)); err == nil {
			u.Free += info.Size()
		}
		if u.Free < size {
			return NoRoomForMemory("pool "+m.Pool.Called(), u, size)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return inPool(m.Pool.Path, writtenMemory(m)), nil
}

// LocateMemory implements Memories.
func (d *Dir) LocateMemory(m steps.MemoryFile) (string, error) {
	return inPool(m.Pool.Path, writtenMemory(m)), CheckMemory(m)
}

// SealMemory implements Memories: the file is durable before it gets the name that counts. Where disks that are on other layers say that
// it is whole there is nothing to do.
func (d *Dir) SealMemory(_ context.Context, m steps.MemoryFile) error {
	if !m.Seal {
		return CheckMemory(m)
	}
	return d.inMemories(m, func(root *os.Root) error {
		from, to := writtenMemory(m), memoryFile(m)
		err := syncFile(root, from)
		if err == nil {
			err = root.Rename(from, to)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return NoMemory(m)
		}
		if err == nil {
			err = syncDir(root, checkpointsDir)
		}
		return problem.Wrap(err, problem.Internal, "file %s cannot be renamed to %s", from, to)
	})
}

// LendMemory implements Memories: it is there. Whether it is whole is for the hypervisor to say.
func (d *Dir) LendMemory(_ context.Context, m steps.MemoryFile, _ func(api.Progress), use func(path string) error) error {
	if err := CheckMemory(m); err != nil {
		return err
	}
	return use(inPool(m.Pool.Path, memoryFile(m)))
}

// KeepMemory implements Memories.
func (d *Dir) KeepMemory(_ context.Context, m steps.MemoryFile, _ func(api.Progress)) (size int64, err error) {
	err = d.inMemories(m, func(root *os.Root) error {
		name := memoryFile(m)
		info, err := root.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return NoMemory(m)
		}
		if err != nil {
			return problem.Wrap(err, problem.Unavailable, "file %s cannot be looked at", name)
		}
		size = info.Size()
		if err := syncFile(root, name); err != nil {
			return err
		}
		return problem.Wrap(syncDir(root, checkpointsDir), problem.Internal, "file %s cannot be made durable", name)
	})
	return size, err
}

// RemoveMemory implements Memories.
func (d *Dir) RemoveMemory(_ context.Context, m steps.MemoryFile) error {
	if err := CheckMemory(m); err != nil {
		return err
	}
	err := d.inMemories(m, func(root *os.Root) error {
		m.Seal = true // whether it was to be, and however far that came
		for _, name := range []string{writtenMemory(m), memoryFile(m)} {
			if err := removeFile(root, name); err != nil {
				return err
			}
		}
		err := syncDir(root, checkpointsDir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return problem.Wrap(err, problem.Internal, "the removal of %s cannot be made durable", memoryFile(m))
	})
	return d.awayOrGone(err, m.Pool.Path)
}
