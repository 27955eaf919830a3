package storage

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// inMemories calls do with the lock held.
func (f *Fake) inMemories(m steps.MemoryFile, do func(f *Fake, pool *fakePool, path string) error) error {
	if named(m.Pool) {
		_, err := MemoriesOf(nil, m.Pool.Type)
		return err
	}
	if err := checkMemory(m); err != nil {
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
	err = f.inMemories(m, func(f *Fake, pool *fakePool, at string) error {
		u := f.usage(m.Pool)
		if u.Free += pool.files[at].size; u.Free < size {
			return noRoom(m.Pool.Path, u, size)
		}
		path = at
		return nil
	})
	return path, err
}

// LocateMemory implements Memories.
func (f *Fake) LocateMemory(m steps.MemoryFile) (string, error) {
	if named(m.Pool) {
		_, err := MemoriesOf(nil, m.Pool.Type)
		return "", err
	}
	return inPool(m.Pool.Path, memoryFile(m)), checkMemory(m)
}

// KeepMemory implements Memories.
func (f *Fake) KeepMemory(_ context.Context, m steps.MemoryFile) (size int64, err error) {
	err = f.inMemories(m, func(_ *Fake, pool *fakePool, at string) error {
		file, there := pool.files[at]
		if !there {
			return problem.New(problem.NotFound, "there is no memory %s in pool %s", m.Memory, m.Pool.Path)
		}
		size = file.size
		return nil
	})
	return size, err
}

// RemoveMemory implements Memories.
func (f *Fake) RemoveMemory(_ context.Context, m steps.MemoryFile) error {
	err := f.inMemories(m, func(_ *Fake, pool *fakePool, at string) error {
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
	pool.files[path] = fakeFile{kind: KindMemory, id: strings.TrimSuffix(filepath.Base(path), memoryExt), data: []byte(content), size: int64(len(content)) + 1}
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
