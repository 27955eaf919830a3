package storage_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

func TestMemoriesConform(t *testing.T) {
	t.Run("fake", func(t *testing.T) {
		f := &storage.Fake{Capacity: api.GiB}
		conformMemories(t, f, func(t *testing.T, path, text string) { require.NoError(t, f.WriteMemory(path, text)) })
	})
	t.Run("dir", func(t *testing.T) {
		conformMemories(t, storage.NewDir(nil), func(t *testing.T, path, text string) {
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		})
	})
}

// conformMemories is what every driver passes that keeps the memory of guests. Write does what a hypervisor does.
func conformMemories(t *testing.T, p storage.Pool, write func(t *testing.T, path, text string)) {
	w := newWorld(t, p)
	pools := storage.ByType{w.pool.Type: w.Pool}
	m := steps.MemoryFile{Memory: api.NewID(), Pool: w.pool}
	_, err := pools.PlaceMemory(t.Context(), m, api.MiB)
	is(t, problem.NotFound, err) // it is no pool yet
	_, err = w.Prepare(t.Context(), w.pool)
	require.NoError(t, err)

	path, err := pools.PlaceMemory(t.Context(), m, api.MiB)
	require.NoError(t, err)
	located, err := pools.LocateMemory(m)
	require.NoError(t, err)
	require.Equal(t, path, located)
	require.Empty(t, w.kinds(t), "it is the hypervisor that makes it")
	_, err = pools.KeepMemory(t.Context(), m)
	is(t, problem.NotFound, err)
	write(t, path, "what the guest remembers")
	for range 2 {
		size, err := pools.KeepMemory(t.Context(), m)
		require.NoError(t, err)
		require.GreaterOrEqual(t, size, int64(24))
		again, err := pools.PlaceMemory(t.Context(), m, api.MiB)
		require.NoError(t, err)
		require.Equal(t, path, again)
	}
	list, err := w.List(t.Context(), w.pool)
	require.NoError(t, err)
	require.Equal(t, []steps.FileFound{{Pool: w.pool.Pool, Path: path, Kind: storage.KindMemory, ID: m.Memory}}, list)
	_, err = pools.PlaceMemory(t.Context(), m, 1<<60)
	is(t, problem.NoCapacity, err)
	is(t, problem.InUse, w.Release(t.Context(), w.pool))

	other := m
	other.Memory = api.NewID()
	for range 2 {
		require.NoError(t, pools.RemoveMemory(t.Context(), other), "there is none")
	}
	require.Equal(t, map[string]int{storage.KindMemory: 1}, w.kinds(t))
	for range 2 {
		require.NoError(t, pools.RemoveMemory(t.Context(), m))
	}
	require.Empty(t, w.kinds(t))
	write(t, path, "left behind")
	require.NoError(t, w.Remove(t.Context(), w.pool, list[0]), "as an audit does")
	require.Empty(t, w.kinds(t))

	bad := m
	bad.Memory = "../volumes/x"
	_, err = pools.PlaceMemory(t.Context(), bad, 1)
	is(t, problem.Invalid, err)
	_, err = pools.LocateMemory(bad)
	is(t, problem.Invalid, err)
	is(t, problem.Invalid, pools.RemoveMemory(t.Context(), bad))
	ceph := m
	ceph.Pool.Type = api.PoolRBD
	is(t, problem.Unsupported, storage.ByType{api.PoolRBD: plainPool{}}.RemoveMemory(t.Context(), ceph))

	require.NoError(t, w.Release(t.Context(), w.pool))
}

// TestMemoriesInAPoolOfAnOlderVersion: its directory for them was never made.
func TestMemoriesInAPoolOfAnOlderVersion(t *testing.T) {
	w := newWorld(t, storage.NewDir(nil))
	_, err := w.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(w.pool.Path, "checkpoints")))
	d, err := storage.MemoriesOf(w.Pool, w.pool.Type)
	require.NoError(t, err)
	m := steps.MemoryFile{Memory: api.NewID(), Pool: w.pool}
	require.NoError(t, d.RemoveMemory(t.Context(), m))
	require.Empty(t, w.kinds(t))
	path, err := d.PlaceMemory(t.Context(), m, 1)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Remove(filepath.Dir(path)))
	require.NoError(t, w.Release(t.Context(), w.pool))
}
