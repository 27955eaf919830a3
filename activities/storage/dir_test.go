package storage_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

const (
	waitFor = 10 * time.Second
	tick    = 5 * time.Millisecond
)

func preparedDir(t *testing.T) *world {
	w := newWorld(t, storage.NewDir(nil))
	_, err := w.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	return w
}

func TestDirectoriesThatCannotBePools(t *testing.T) {
	w := newWorld(t, storage.NewDir(nil))
	base := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(base, "file"), nil, 0o600))
	require.NoError(t, os.Symlink(base, filepath.Join(base, "link")))
	require.NoError(t, os.MkdirAll(filepath.Join(base, "taken", "volumes", "x"), 0o700))
	require.NoError(t, os.MkdirAll(filepath.Join(base, "odd"), 0o700))
	require.NoError(t, os.Symlink("/", filepath.Join(base, "odd", "volumes")))
	for name, kind := range map[string]problem.Kind{"file": problem.Invalid, "link": problem.Invalid, "taken": problem.Conflict, "odd": problem.Invalid} {
		p := w.pool
		p.Path = filepath.Join(base, name)
		_, err := w.Prepare(t.Context(), p)
		require.Equal(t, kind, problem.KindOf(err), "%s: %v", name, err)
	}
}

func TestOverlayIsWhatWasAsked(t *testing.T) {
	w := preparedDir(t)
	p := w.plan()
	require.NoError(t, w.MakeDisk(t.Context(), p, w.src, nil))
	files, err := storage.Locate(p)
	require.NoError(t, err)
	f, err := os.Open(files.Disk.File)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	h, err := qcow2.Read(f, info.Size())
	require.NoError(t, err)
	require.Equal(t, p.Disk.Size, h.VirtualSize)
	require.Equal(t, "qcow2", h.BackingFormat)
	require.Equal(t, filepath.Join(w.pool.Path, "backing", w.sha), h.BackingFile)

	other := p
	other.Disk.Size *= 2
	require.Equal(t, problem.Conflict, problem.KindOf(w.MakeDisk(t.Context(), other, w.src, nil)))
	small := w.plan()
	small.Disk.Size = api.MiB / 2
	require.Equal(t, problem.Invalid, problem.KindOf(w.MakeDisk(t.Context(), small, w.src, nil)))
}

func TestHalfMadeFilesAreReplaced(t *testing.T) {
	w := preparedDir(t)
	p := w.plan()
	files, err := storage.Locate(p)
	require.NoError(t, err)
	for _, path := range []string{files.Disk.File, files.Seed.File, filepath.Join(w.pool.Path, "backing", w.sha)} {
		require.NoError(t, os.WriteFile(path+".tmp", []byte("half"), 0o600))
	}
	require.NoError(t, os.Mkdir(filepath.Join(w.pool.Path, "seeds", p.VM+".work"), 0o700))
	require.Equal(t, 4, w.kinds(t)[storage.KindOther])
	require.NoError(t, w.MakeDisk(t.Context(), p, w.src, nil))
	require.Zero(t, w.kinds(t)[storage.KindOther])
	// A copy of the wrong length cannot be the image.
	require.NoError(t, w.RemoveDisk(t.Context(), p))
	require.NoError(t, os.Truncate(filepath.Join(w.pool.Path, "backing", w.sha), 10))
	require.NoError(t, w.MakeDisk(t.Context(), p, w.src, nil))
	require.EqualValues(t, 2, w.src.opened.Load())
}

func TestOneDownloadForAllWhoWait(t *testing.T) {
	w := preparedDir(t)
	w.src.gate = make(chan struct{})
	impatient, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- w.MakeDisk(impatient, w.plan(), w.src, nil) }()
	require.Eventually(t, func() bool { return w.src.opened.Load() == 1 }, waitFor, tick)
	var wg sync.WaitGroup
	errs := make(chan error, 5)
	for range 5 {
		wg.Go(func() { errs <- w.MakeDisk(t.Context(), w.plan(), w.src, nil) })
	}
	cancel()
	require.Equal(t, problem.Cancelled, problem.KindOf(<-first))
	close(w.src.gate)
	wg.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	require.LessOrEqual(t, w.src.opened.Load(), int32(2), "the others go on with it, or one of them begins anew")
	require.Equal(t, map[string]int{storage.KindVolume: 5, storage.KindSeed: 5, storage.KindBacking: 1}, w.kinds(t))
}

func TestAbandonedDownloadLeavesNothing(t *testing.T) {
	w := preparedDir(t)
	w.src.gate = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.MakeDisk(ctx, w.plan(), w.src, nil) }()
	require.Eventually(t, func() bool { return w.src.opened.Load() == 1 }, waitFor, tick)
	cancel()
	require.Equal(t, problem.Cancelled, problem.KindOf(<-done))
	require.Eventually(t, func() bool { return len(w.kinds(t)) == 0 }, waitFor, tick)
}

func TestFullPoolSaysSo(t *testing.T) {
	w := newWorld(t, storage.NewDir(nil))
	require.NoError(t, os.MkdirAll(w.pool.Path, 0o755))
	if err := unix.Mount("tmpfs", w.pool.Path, "tmpfs", 0, "size=128k"); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: a full pool. A tmpfs cannot be mounted (%v): run as root", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(w.pool.Path, unix.MNT_DETACH)) })
	_, err := w.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	p := w.plan()
	p.Disk.PoolName = "vms"
	err = w.MakeDisk(t.Context(), p, w.src, nil)
	require.Equal(t, problem.NoCapacity, problem.KindOf(err), "%v", err)
	require.ErrorContains(t, err, "pool vms is full: ", "where it is mounted says nothing to people")
	require.ErrorContains(t, err, " of 128K are free")
	require.Empty(t, w.kinds(t)[storage.KindBacking])
}

func TestPoolThatIsNotMountedKeepsItsVolumes(t *testing.T) {
	w := preparedDir(t)
	p := w.plan()
	require.NoError(t, w.MakeDisk(t.Context(), p, w.src, nil))
	hidden := w.pool.Path + ".hidden"
	require.NoError(t, os.Rename(w.pool.Path, hidden))
	require.NoError(t, os.Mkdir(w.pool.Path, 0o755)) // the mount point
	require.Equal(t, problem.Unavailable, problem.KindOf(w.RemoveDisk(t.Context(), p)), "it must not be called removed")
	require.Equal(t, problem.NotFound, problem.KindOf(w.MakeDisk(t.Context(), w.plan(), w.src, nil)))
	require.NotEmpty(t, w.Usage(t.Context(), w.pool).Error)
}

func TestLinksInAPoolAreNotFollowed(t *testing.T) {
	w := preparedDir(t)
	precious := filepath.Join(t.TempDir(), "precious")
	require.NoError(t, os.WriteFile(precious, []byte("precious"), 0o600))
	p := w.plan()
	files, err := storage.Locate(p)
	require.NoError(t, err)
	require.NoError(t, os.Symlink(precious, files.Disk.File))
	require.Error(t, w.MakeDisk(t.Context(), p, w.src, nil))
	require.Equal(t, 1, w.kinds(t)[storage.KindOther])
	require.NoError(t, w.Remove(t.Context(), w.pool, steps.FileFound{Pool: w.pool.Pool, Path: files.Disk.File}))
	require.FileExists(t, precious)
	require.NoError(t, os.Symlink(precious, files.Disk.File+".tmp"))
	require.NoError(t, w.MakeDisk(t.Context(), p, w.src, nil))
	b, err := os.ReadFile(precious)
	require.NoError(t, err)
	require.Equal(t, "precious", string(b))
}

// TestAMarkerAloneIsAPoolWithNothingInIt: it is what people put in the place of a pool that was lost, so that what waits for it ends.
func TestAMarkerAloneIsAPoolWithNothingInIt(t *testing.T) {
	w := newWorld(t, storage.NewDir(nil))
	require.NoError(t, os.MkdirAll(w.pool.Path, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(w.pool.Path, ".nextstack-pool"), []byte(`{"pool":"`+w.pool.Pool+`","type":"dir","shared":true}`), 0o600))
	require.Empty(t, w.Usage(t.Context(), w.pool).Error)
	require.Empty(t, w.kinds(t))
	require.NoError(t, w.RemoveDisk(t.Context(), w.plan()))
	require.NoError(t, w.RemoveVolume(t.Context(), steps.VolumePlan{Volume: api.NewID(), Pool: w.pool, Size: api.MiB}))
	require.NoError(t, w.EvictImage(t.Context(), w.cachedImage()))
	require.NoError(t, w.Release(t.Context(), w.pool))
	require.NotEmpty(t, w.Usage(t.Context(), w.pool).Error)
}
