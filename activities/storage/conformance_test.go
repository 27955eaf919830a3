package storage_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// server is a Source in memory.
type server struct {
	mu     sync.Mutex
	images map[string][]byte
	opened atomic.Int32
	gate   chan struct{} // if not nil, images are sent only once it is closed
	spoil  bool
}

func (s *server) Seed(_ context.Context, vm string) (api.Seed, error) {
	return api.Seed{InstanceID: vm, Hostname: "web"}, nil
}

func (s *server) OpenImage(ctx context.Context, image string) (io.ReadCloser, int64, error) {
	s.opened.Add(1)
	s.mu.Lock()
	b, ok := s.images[image]
	s.mu.Unlock()
	if !ok {
		return nil, 0, problem.New(problem.NotFound, "there is no image %s", image)
	}
	if s.spoil {
		b = bytes.Clone(b)
		b[len(b)-1] ^= 1
	}
	if s.gate != nil {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	return io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
}

// image is a real qcow2 image of 1 MiB.
func image(t *testing.T, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("SKIPPED, NOT TESTED: pools. Install qemu-utils")
	}
	path := filepath.Join(t.TempDir(), "image")
	out, err := exec.Command("qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, "1M")...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

type world struct {
	storage.Pool
	src  *server
	pool steps.PoolOnNode
	sha  string
	size int64
	img  string
}

func newWorld(t *testing.T, p storage.Pool) *world {
	return newWorldWith(t, p, func(string) {})
}

// newWorldWith is newWorld with an image to which fill writes.
func newWorldWith(t *testing.T, p storage.Pool, fill func(path string)) *world {
	return newWorldOn(t, p, directory, fill)
}

// newWorldOn is newWorldWith where a pool can be made, which is not one yet.
func newWorldOn(t *testing.T, p storage.Pool, on func(*testing.T) steps.PoolOnNode, fill func(path string)) *world {
	path := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(path, image(t), 0o600))
	fill(path)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	sum := sha256.Sum256(b)
	w := &world{Pool: p, src: &server{images: map[string][]byte{}}, sha: hex.EncodeToString(sum[:]), size: int64(len(b)), img: api.NewID()}
	w.src.images[w.img] = b
	w.pool = on(t)
	w.pool.Pool = api.NewID()
	return w
}

func (w *world) plan() steps.VMPlan {
	return steps.VMPlan{VM: api.NewID(), Name: "web", NICs: []steps.NICPlan{{Port: api.NewID(), MAC: "52:54:00:00:00:01"}}, Disk: steps.DiskPlan{
		Volume: api.NewID(), Pool: w.pool.Pool, PoolPath: w.pool.Path, Size: 2 * api.MiB, Image: w.img, ImageSHA256: w.sha, ImageSize: w.size,
		Type: w.pool.Type, Source: w.pool.Source, Shared: w.pool.Shared,
	}}
}

// cached is the image's copy in the pool.
func (w *world) cached() steps.CachedImage {
	return steps.CachedImage{Image: w.img, SHA256: w.sha, Pool: w.pool.Pool, PoolPath: w.pool.Path, PoolType: w.pool.Type, PoolSource: w.pool.Source}
}

func (w *world) kinds(t *testing.T) map[string]int {
	list, err := w.List(t.Context(), w.pool)
	require.NoError(t, err)
	n := map[string]int{}
	for _, f := range list {
		require.Equal(t, w.pool.Pool, f.Pool)
		n[f.Kind]++
	}
	return n
}

// directory is a pool that is one, which is not there yet.
func directory(t *testing.T) steps.PoolOnNode {
	return steps.PoolOnNode{Type: api.PoolDir, Path: filepath.Join(t.TempDir(), "pool")}
}

// empty leaves an image as it is.
func empty(string) {}

func TestFakeConforms(t *testing.T) { conform(t, func() storage.Pool { return &storage.Fake{} }) }
func TestDirConforms(t *testing.T)  { conform(t, func() storage.Pool { return storage.NewDir(nil) }) }

func conform(t *testing.T, fresh func() storage.Pool) { conformOn(t, fresh, directory) }

// conformOn holds a driver against what is expected of all of them. On says where a pool can be made, which is not one yet.
func conformOn(t *testing.T, fresh func() storage.Pool, on func(*testing.T) steps.PoolOnNode) {
	prepared := func(t *testing.T) *world {
		w := newWorldOn(t, fresh(), on, empty)
		_, err := w.Prepare(t.Context(), w.pool)
		require.NoError(t, err)
		return w
	}

	t.Run("prepare and release", func(t *testing.T) {
		w := newWorldOn(t, fresh(), on, empty)
		require.NotEmpty(t, w.Usage(t.Context(), w.pool).Error)
		require.NoError(t, w.Release(t.Context(), w.pool), "nothing to release")
		for range 2 {
			u, err := w.Prepare(t.Context(), w.pool)
			require.NoError(t, err)
			require.Positive(t, u.Capacity)
			require.Positive(t, u.Free)
			require.Equal(t, w.pool.Pool, u.Pool)
		}
		other := w.pool
		other.Pool = api.NewID()
		_, err := w.Prepare(t.Context(), other)
		is(t, problem.Conflict, err)
		require.NoError(t, w.Release(t.Context(), other), "somebody else's pool is not ours to release")
		require.Empty(t, w.Usage(t.Context(), w.pool).Error)
		for range 2 {
			require.NoError(t, w.Release(t.Context(), w.pool))
		}
		_, err = w.Prepare(t.Context(), other)
		require.NoError(t, err)
	})

	t.Run("paths that are none are refused", func(t *testing.T) {
		w := newWorldOn(t, fresh(), on, empty)
		for _, path := range []string{"", "/", "vms", "/vms/../etc", "/vms/", "/a,b"} {
			p := w.pool
			p.Path = path
			_, err := w.Prepare(t.Context(), p)
			is(t, problem.Invalid, err)
		}
		p := w.pool
		p.Pool = "../x"
		_, err := w.Prepare(t.Context(), p)
		is(t, problem.Invalid, err)
	})

	t.Run("disks", func(t *testing.T) {
		w := prepared(t)
		a, b := w.plan(), w.plan()
		for range 2 {
			require.NoError(t, w.MakeDisk(t.Context(), a, w.src, nil))
		}
		require.NoError(t, w.MakeDisk(t.Context(), b, w.src, nil))
		require.EqualValues(t, 1, w.src.opened.Load(), "the image is fetched once")
		require.Equal(t, map[string]int{storage.KindVolume: 2, storage.KindSeed: 2, storage.KindBacking: 1}, w.kinds(t))
		is(t, problem.InUse, w.Release(t.Context(), w.pool))
		is(t, problem.InUse, w.EvictImage(t.Context(), w.cached()))
		for range 2 {
			require.NoError(t, w.RemoveDisk(t.Context(), a))
		}
		is(t, problem.InUse, w.EvictImage(t.Context(), w.cached()))
		require.NoError(t, w.RemoveDisk(t.Context(), b))
		for range 2 {
			require.NoError(t, w.EvictImage(t.Context(), w.cached()))
		}
		require.Empty(t, w.kinds(t))
		require.NoError(t, w.Release(t.Context(), w.pool))
	})

	t.Run("what is not there is said so", func(t *testing.T) {
		w := newWorldOn(t, fresh(), on, empty)
		is(t, problem.NotFound, w.MakeDisk(t.Context(), w.plan(), w.src, nil))
		require.NoError(t, w.RemoveDisk(t.Context(), w.plan()))
		_, err := w.List(t.Context(), w.pool)
		is(t, problem.NotFound, err)
		_, err = w.Prepare(t.Context(), w.pool)
		require.NoError(t, err)
		p := w.plan()
		p.Disk.Image = api.NewID()
		is(t, problem.NotFound, w.MakeDisk(t.Context(), p, w.src, nil))
		require.NoError(t, w.RemoveDisk(t.Context(), p))
		require.Empty(t, w.kinds(t))
	})

	t.Run("a damaged image does not become a copy", func(t *testing.T) {
		w := prepared(t)
		w.src.spoil = true
		is(t, problem.Unavailable, w.MakeDisk(t.Context(), w.plan(), w.src, nil))
		require.Empty(t, w.kinds(t))
		w.src.spoil = false
		require.NoError(t, w.MakeDisk(t.Context(), w.plan(), w.src, nil))
	})

	t.Run("names lead nowhere else", func(t *testing.T) {
		w := prepared(t)
		p := w.plan()
		p.Disk.Volume = "../../etc/passwd"
		is(t, problem.Invalid, w.MakeDisk(t.Context(), p, w.src, nil))
		is(t, problem.Invalid, w.RemoveDisk(t.Context(), p))
	})

	t.Run("an audit removes only what is in the pool and not needed", func(t *testing.T) {
		w := prepared(t)
		p := w.plan()
		require.NoError(t, w.MakeDisk(t.Context(), p, w.src, nil))
		list, err := w.List(t.Context(), w.pool)
		require.NoError(t, err)
		for _, f := range list {
			if f.Kind == storage.KindBacking {
				require.Equal(t, w.sha, f.ID)
				is(t, problem.InUse, w.Remove(t.Context(), w.pool, f))
			}
		}
		outside := filepath.Join(t.TempDir(), "precious")
		require.NoError(t, os.WriteFile(outside, nil, 0o600))
		for _, path := range []string{outside, w.pool.Path + "/../precious", w.pool.Path + "/volumes/../../precious", w.pool.Path, w.pool.Path + "/volumes", w.pool.Path + "/.nextstack-pool", "/", ""} {
			is(t, problem.Invalid, w.Remove(t.Context(), w.pool, steps.FileFound{Pool: w.pool.Pool, Path: path}))
		}
		require.FileExists(t, outside)
		for _, f := range list {
			if f.Kind == storage.KindVolume || f.Kind == storage.KindSeed {
				for range 2 {
					require.NoError(t, w.Remove(t.Context(), w.pool, f))
				}
			}
		}
		require.Equal(t, map[string]int{storage.KindBacking: 1}, w.kinds(t))
	})
}
