package storage_test

import (
	"os"
	"path/filepath"
	"strings"
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
	_, err = pools.KeepMemory(t.Context(), m, nil)
	is(t, problem.NotFound, err)
	write(t, path, "what the guest remembers")
	lent := ""
	require.NoError(t, pools.LendMemory(t.Context(), m, nil, func(at string) error { lent = at; return nil }))
	require.Equal(t, path, lent)
	for range 2 {
		size, err := pools.KeepMemory(t.Context(), m, nil)
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
	plain := m
	plain.Pool = cephTwin()
	is(t, problem.Unsupported, storage.ByType{api.PoolRBD: plainPool{}}.RemoveMemory(t.Context(), plain))
	require.NoError(t, pools.SealMemory(t.Context(), m), "the layers of the disks say so")

	// One that has to be sealed is none until it is.
	written := m
	written.Seal = true
	is(t, problem.NotFound, pools.SealMemory(t.Context(), written))
	temp, err := pools.PlaceMemory(t.Context(), written, api.MiB)
	require.NoError(t, err)
	located, err = pools.LocateMemory(written)
	require.NoError(t, err)
	require.Equal(t, temp, located)
	for range 2 { // the second attempt writes over what the first has left
		write(t, temp, "of an attempt that did not come to its end")
		_, err = pools.KeepMemory(t.Context(), written, nil)
		is(t, problem.NotFound, err)
	}
	require.Equal(t, map[string]int{storage.KindOther: 1}, w.kinds(t))
	for range 2 {
		require.NoError(t, pools.RemoveMemory(t.Context(), m), "who removes it need not know")
	}
	require.Empty(t, w.kinds(t))
	write(t, temp, "what the guest remembers")
	require.NoError(t, pools.SealMemory(t.Context(), written))
	is(t, problem.NotFound, pools.SealMemory(t.Context(), written)) // there is none that is not sealed
	for range 2 {
		size, err := pools.KeepMemory(t.Context(), written, nil)
		require.NoError(t, err)
		require.GreaterOrEqual(t, size, int64(24))
		require.NoError(t, pools.LendMemory(t.Context(), m, nil, func(at string) error { require.Equal(t, path, at); return nil }))
	}
	list, err = w.List(t.Context(), w.pool)
	require.NoError(t, err)
	require.Equal(t, []steps.FileFound{{Pool: w.pool.Pool, Path: path, Kind: storage.KindMemory, ID: m.Memory}}, list)
	require.NoError(t, pools.RemoveMemory(t.Context(), m))
	require.Empty(t, w.kinds(t))
	bad.Seal = true
	is(t, problem.Invalid, pools.SealMemory(t.Context(), bad))

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

func TestFakeNamedMemoriesConform(t *testing.T) {
	f := &storage.Fake{Capacity: api.GiB}
	w := newWorldOn(t, f, func(*testing.T) steps.PoolOnNode { return cephTwin() }, empty)
	conformNamedMemories(t, w, func(t *testing.T, path, text string) { require.NoError(t, f.WriteMemory(path, text)) }, func(t *testing.T, path string) string {
		text, _, err := f.ReadMemory(path)
		require.NoError(t, err)
		return text
	})
}

// conformNamedMemories is what every driver passes that keeps the memory of guests in a pool that is none of files. Write and read do what a
// hypervisor does.
func conformNamedMemories(t *testing.T, w *world, write func(t *testing.T, path, text string), read func(t *testing.T, path string) string) {
	pools := storage.ByType{w.pool.Type: w.Pool}
	m := steps.MemoryFile{Memory: api.NewID(), Pool: w.pool}
	text := strings.Repeat("what the guest remembers ", 300_000)
	keeps := func() error {
		_, err := pools.KeepMemory(t.Context(), m, nil)
		return err
	}
	lends := func(m steps.MemoryFile) (out string, err error) {
		err = pools.LendMemory(t.Context(), m, func(api.Progress) {}, func(path string) error { out = read(t, path); return nil })
		return out, err
	}
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
	is(t, problem.NotFound, keeps())
	is(t, problem.NotFound, pools.SealMemory(t.Context(), m))
	write(t, path, "of an attempt that did not come to its end")
	is(t, problem.NotFound, keeps()) // nobody has said that its disks are kept
	_, err = lends(m)
	is(t, problem.NotFound, err)
	write(t, path, text)
	require.NoError(t, pools.SealMemory(t.Context(), m))
	for range 2 {
		size, err := pools.KeepMemory(t.Context(), m, func(api.Progress) {})
		require.NoError(t, err)
		require.GreaterOrEqual(t, size, int64(len(text)))
		got, err := lends(m)
		require.NoError(t, err)
		require.Equal(t, text, got)
	}
	list, err := w.List(t.Context(), w.pool)
	require.NoError(t, err)
	require.Len(t, list, 1, "nothing is left on the node")
	require.Equal(t, []string{storage.KindMemory, m.Memory}, []string{list[0].Kind, list[0].ID})
	is(t, problem.InUse, w.Release(t.Context(), w.pool))
	large := m
	large.Memory = api.NewID()
	_, err = pools.PlaceMemory(t.Context(), large, 1<<60)
	is(t, problem.NoCapacity, err)

	// Put aside, it is only for this node, and needs no seal.
	aside := steps.MemoryFile{Memory: api.NewID(), Pool: w.pool, Aside: true}
	_, err = lends(aside)
	is(t, problem.NotFound, err)
	path, err = pools.PlaceMemory(t.Context(), aside, api.MiB)
	require.NoError(t, err)
	write(t, path, "now")
	for range 2 {
		_, err = pools.KeepMemory(t.Context(), aside, nil)
		require.NoError(t, err)
		got, err := lends(aside)
		require.NoError(t, err)
		require.Equal(t, "now", got)
	}
	list, err = w.List(t.Context(), w.pool)
	require.NoError(t, err)
	require.Len(t, list, 2, "an audit sees it")
	aside.Aside = false
	for range 2 {
		require.NoError(t, pools.RemoveMemory(t.Context(), aside))
	}
	require.Equal(t, map[string]int{storage.KindMemory: 1}, w.kinds(t))

	for range 2 {
		require.NoError(t, pools.RemoveMemory(t.Context(), m))
	}
	require.Empty(t, w.kinds(t))
	is(t, problem.NotFound, keeps())
	path, err = pools.PlaceMemory(t.Context(), m, api.MiB)
	require.NoError(t, err)
	write(t, path, "left behind")
	list, err = w.List(t.Context(), w.pool)
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.NoError(t, w.Remove(t.Context(), w.pool, list[0]), "as an audit does")
	require.Empty(t, w.kinds(t))

	bad := m
	bad.Memory = "../volumes/x"
	_, err = pools.PlaceMemory(t.Context(), bad, 1)
	is(t, problem.Invalid, err)
	_, err = pools.LocateMemory(bad)
	is(t, problem.Invalid, err)
	is(t, problem.Invalid, pools.SealMemory(t.Context(), bad))
	is(t, problem.Invalid, pools.RemoveMemory(t.Context(), bad))
	require.NoError(t, w.Release(t.Context(), w.pool))
}
