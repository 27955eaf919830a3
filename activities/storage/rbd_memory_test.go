//go:build ceph && cgo

package storage_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/rbd"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

func writeFile(t *testing.T, path, text string) {
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

func readFile(t *testing.T, path string) string {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

func TestRBDMemoriesConform(t *testing.T) {
	p, key := needCeph(t).pool(t, "memories")
	d := rbd.New(rbd.Config{Key: key, TempDir: t.TempDir(), MemoryDir: filepath.Join(t.TempDir(), "memories")})
	w := newWorldOn(t, d, func(*testing.T) steps.PoolOnNode { return p }, empty)
	conformNamedMemories(t, w, writeFile, readFile)
	w.pool.Pool = api.NewID()
	without, err := storage.MemoriesOf(rbd.New(rbd.Config{Key: key}), p.Type)
	require.NoError(t, err)
	_, err = without.PlaceMemory(t.Context(), steps.MemoryFile{Memory: api.NewID(), Pool: w.pool}, 1)
	is(t, problem.Unsupported, err)
}

// TestRBDCrashesOfMemories: an agent that dies with a memory on the way leaves it to the next.
func TestRBDCrashesOfMemories(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "crashmem")
	c.impatient(t)
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "image")
	writeFile(t, file, "")
	d := rbd.New(rbd.Config{Key: key, TempDir: t.TempDir(), MemoryDir: dir})
	w := newWorldOn(t, d, func(*testing.T) steps.PoolOnNode { return p }, empty)
	_, err := d.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	k, err := key(t.Context(), "")
	require.NoError(t, err)
	mem, err := storage.MemoriesOf(d, p.Type)
	require.NoError(t, err)
	for _, at := range []string{"sealed", "begun"} {
		m := steps.MemoryFile{Memory: api.NewID(), Pool: w.pool}
		path, err := mem.PlaceMemory(t.Context(), m, api.MiB)
		require.NoError(t, err)
		writeFile(t, path, "what it remembers")
		crash{At: at, Key: k, Image: file, Memory: &m, Memories: dir}.happen(t)
		size, err := mem.KeepMemory(t.Context(), m, nil)
		require.NoError(t, err)
		require.EqualValues(t, 17, size)
		require.NoError(t, mem.LendMemory(t.Context(), m, nil, func(path string) error {
			require.Equal(t, "what it remembers", readFile(t, path))
			return nil
		}))
		require.Equal(t, map[string]int{storage.KindMemory: 1}, w.kinds(t))
		require.NoError(t, mem.RemoveMemory(t.Context(), m))

		path, err = mem.PlaceMemory(t.Context(), m, api.MiB)
		require.NoError(t, err)
		writeFile(t, path, "what it remembers")
		crash{At: at, Key: k, Image: file, Memory: &m, Memories: dir}.happen(t)
		require.NoError(t, mem.RemoveMemory(t.Context(), m), "it is undone")
		require.Empty(t, w.kinds(t))
	}
	require.NoError(t, d.Release(t.Context(), w.pool))
}
