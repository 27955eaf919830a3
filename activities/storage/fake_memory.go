package storage

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// inMemories calls do with the lock held.
func (f *Fake) inMemories(m steps.MemoryFile, do func(f *Fake, pool *fakePool, path string) error) error {
	if err := CheckMemory(m); err != nil {
		return err
	}
	f = f.on(m.Pool.Path)
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(m.Pool.Pool, m.Pool.Path)
	if err != nil {
		return err
	}
	return do(f, pool, inPool(m.Pool.Path, memoryFile(m)))
}

// PlaceMemory implements Memories.
func (f *Fake) PlaceMemory(_ context.Context, m steps.MemoryFile, size int64) (path string, err error) {
	err = f.inMemories(m, func(f *Fake, pool *fakePool, _ string) error {
		u, at := f.usage(m.Pool), fakeWritten(m)
		if u.Free += pool.files[at].size; u.Free < size {
			return NoRoomForMemory("pool "+m.Pool.Called(), u, size)
		}
		path = at
		return nil
	})
	return path, err
}

// LocateMemory implements Memories.
func (f *Fake) LocateMemory(m steps.MemoryFile) (string, error) {
	return fakeWritten(m), CheckMemory(m)
}

// fakeWritten is where the hypervisor writes a memory.
func fakeWritten(m steps.MemoryFile) string {
	if named(m.Pool) {
		m.Seal = false // it is known by a mark, as one of the node
	}
	return inPool(m.Pool.Path, writtenMemory(m))
}

// SealMemory implements Memories.
func (f *Fake) SealMemory(_ context.Context, m steps.MemoryFile) error {
	return f.inMemories(m, func(_ *Fake, pool *fakePool, at string) error {
		if !named(m.Pool) && !m.Seal {
			return nil
		}
		file, there := pool.files[fakeWritten(m)]
		if !there {
			return NoMemory(m)
		}
		delete(pool.files, fakeWritten(m))
		file.kind, file.id, file.sealed = KindMemory, m.Memory, true
		pool.files[at] = file
		return nil
	})
}

// LendMemory implements Memories.
func (f *Fake) LendMemory(_ context.Context, m steps.MemoryFile, _ func(api.Progress), use func(path string) error) error {
	path := ""
	err := f.inMemories(m, func(_ *Fake, pool *fakePool, at string) error {
		file, there := pool.files[at]
		if named(m.Pool) && (!there || !m.Aside && !file.sealed) {
			return NoMemory(m)
		}
		path = at
		return nil
	})
	if err != nil {
		return err
	}
	return use(path)
}

// KeepMemory implements Memories.
func (f *Fake) KeepMemory(_ context.Context, m steps.MemoryFile, _ func(api.Progress)) (size int64, err error) {
	err = f.inMemories(m, func(_ *Fake, pool *fakePool, at string) error {
		file, there := pool.files[at]
		if !there || named(m.Pool) && !m.Aside && !file.sealed {
			return NoMemory(m)
		}
		size = file.size
		return nil
	})
	return size, err
}

// RemoveMemory implements Memories.
func (f *Fake) RemoveMemory(_ context.Context, m steps.MemoryFile) error {
	err := f.inMemories(m, func(_ *Fake, pool *fakePool, at string) error {
		m.Seal = true
		delete(pool.files, fakeWritten(m))
		delete(pool.files, at)
		return nil
	})
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// inPoolOf returns the pool whose directory a path is in, with the lock held until leave is called.
func (f *Fake) inPoolOf(path string) (pool *fakePool, leave func(), err error) {
	f = f.on(path)
	f.mu.Lock()
	for dir, p := range f.pools {
		if strings.HasPrefix(path, dir+"/") {
			return p, f.mu.Unlock, nil
		}
	}
	f.mu.Unlock()
	return nil, nil, problem.New(problem.NotFound, "there is no pool for file %s", path)
}

// WriteMemory implements compute.FakeBacking.
func (f *Fake) WriteMemory(path, content string) error {
	pool, leave, err := f.inPoolOf(path)
	if err != nil {
		return err
	}
	defer leave()
	file := fakeFile{data: []byte(content), size: int64(len(content)) + 1}
	file.kind, file.id = classify(checkpointsDir, filepath.Base(path))
	pool.files[path] = file
	return nil
}

// ReadMemory implements compute.FakeBacking.
func (f *Fake) ReadMemory(path string) (content string, there bool, err error) {
	pool, leave, err := f.inPoolOf(path)
	if err != nil {
		return "", false, err
	}
	defer leave()
	file, there := pool.files[path]
	return string(file.data), there, nil
}
