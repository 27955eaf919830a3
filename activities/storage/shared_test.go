package storage_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

func TestFakeNodesConform(t *testing.T) { conformNodes(t, fakes) }
func TestDirNodesConform(t *testing.T)  { conformNodes(t, dirs) }

// as returns the world of a node that does not have the pool of w yet.
func (w *world) as(p storage.Pool) *world {
	other := *w
	other.Pool = p
	return &other
}

func (w *world) cachedImage() steps.CachedImage {
	return steps.CachedImage{Image: w.img, SHA256: w.sha, Pool: w.pool.Pool, PoolPath: w.pool.Path}
}

func is(t *testing.T, k problem.Kind, err error) {
	t.Helper()
	require.Equal(t, k, problem.KindOf(err), "%v", err)
}

// content is what a disk's stream is, or the error of opening it.
func content(t *testing.T, p storage.Pool, plan steps.VMPlan) (string, error) {
	t.Helper()
	d, err := p.OpenDisk(t.Context(), plan)
	if err != nil {
		return "", err
	}
	defer d.Close()
	b, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	require.NoError(t, err)
	return string(b), nil
}

// sharedPool is a pool that both nodes have.
func sharedPool(t *testing.T, n nodes) (a, b *world) {
	a = newWorld(t, n.a)
	a.pool.Path, a.pool.Shared, a.pool.Agent = filepath.Join(n.net, "pool"), true, api.NewID()
	b = a.as(n.b)
	b.pool.Agent, b.pool.Join = api.NewID(), true
	for range 2 {
		for _, w := range []*world{a, b} {
			u, err := w.Prepare(t.Context(), w.pool)
			require.NoError(t, err)
			require.Positive(t, u.Capacity)
		}
	}
	return a, b
}

// conformShared is for what several nodes do to the same pool at once.
func conformShared(t *testing.T, fresh func(*testing.T) nodes) {
	shared := func(t *testing.T) (a, b *world) { return sharedPool(t, fresh(t)) }

	t.Run("a shared pool is one pool", func(t *testing.T) {
		a, b := shared(t)
		p, q := a.plan(), b.plan()
		require.NoError(t, a.MakeDisk(t.Context(), p, a.src, nil))
		require.NoError(t, b.MakeDisk(t.Context(), q, b.src, nil))
		require.EqualValues(t, 1, a.src.opened.Load(), "the image is fetched once")
		require.Equal(t, a.kinds(t), b.kinds(t))
		require.Equal(t, map[string]int{storage.KindVolume: 2, storage.KindSeed: 2, storage.KindBacking: 1}, a.kinds(t))
		require.Equal(t, []string{a.sha}, b.Usage(t.Context(), b.pool).Images)
		require.NoError(t, a.RemoveDisk(t.Context(), p))
		is(t, problem.InUse, a.EvictImage(t.Context(), a.cachedImage()))
		is(t, problem.InUse, a.Release(t.Context(), a.pool))
		require.NoError(t, a.RemoveDisk(t.Context(), q), "whoever lives can")
		require.NoError(t, b.EvictImage(t.Context(), b.cachedImage()))
		require.Empty(t, a.Usage(t.Context(), a.pool).Images)
		for _, w := range []*world{b, a} {
			require.NoError(t, w.Release(t.Context(), w.pool))
		}
		require.NotEmpty(t, a.Usage(t.Context(), a.pool).Error)
	})

	t.Run("two agents on one directory of a pool that is not shared", func(t *testing.T) {
		a, b := shared(t)
		mine, theirs := a.pool, b.pool
		require.NoError(t, a.Release(t.Context(), mine))
		mine.Shared, theirs.Shared, theirs.Join = false, false, false
		for range 2 {
			_, err := a.Prepare(t.Context(), mine)
			require.NoError(t, err, "again by the same agent is fine")
		}
		_, err := b.Prepare(t.Context(), theirs)
		is(t, problem.Conflict, err)
		require.Contains(t, problem.From(err).Fix, "--shared")
	})

	t.Run("two agents at once on one directory of a pool that is not shared", func(t *testing.T) {
		for round, rounds := 0, 50; round < rounds; round++ {
			n := fresh(t)
			if n.rounds > 0 {
				rounds = n.rounds
			}
			a := newWorld(t, n.a)
			a.pool.Path, a.pool.Agent = filepath.Join(n.net, "pool"), api.NewID()
			b := a.as(n.b)
			b.pool.Agent = api.NewID()
			var errs [2]error
			begin := make(chan struct{})
			var wg sync.WaitGroup
			for i, w := range []*world{a, b} {
				wg.Go(func() {
					<-begin
					_, errs[i] = w.Prepare(t.Context(), w.pool)
				})
			}
			close(begin)
			wg.Wait()
			winner, loser := a, b
			if errs[0] != nil {
				winner, loser = b, a
			}
			is(t, problem.Conflict, errors.Join(errs[0], errs[1]))
			require.True(t, (errs[0] == nil) != (errs[1] == nil), "round %d: %v", round, errs)
			_, err := winner.Prepare(t.Context(), winner.pool)
			require.NoError(t, err)
			_, err = loser.Prepare(t.Context(), loser.pool)
			is(t, problem.Conflict, err)
			for i, w := range []*world{a, b} { // the undo, at once as well
				wg.Go(func() { errs[i] = w.Release(t.Context(), w.pool) })
			}
			wg.Wait()
			require.NoError(t, errors.Join(errs[0], errs[1]))
			require.NotEmpty(t, a.Usage(t.Context(), a.pool).Error, "it is no pool any more")
		}
	})

	t.Run("many on two nodes at once", func(t *testing.T) {
		n := fresh(t)
		a, b := sharedPool(t, n)
		var wg sync.WaitGroup
		errs := make(chan error, 60)
		for i, w := range []*world{a, b} {
			for j := range 10 {
				wg.Go(func() {
					p := w.plan()
					p.Agent = w.pool.Agent
					for { // the other node may evict the copy between the look at it and the use of it
						err := w.MakeDisk(t.Context(), p, w.src, nil)
						if err == nil || !problem.TraitsOf(problem.KindOf(err)).Retry {
							errs <- err
							break
						}
					}
					if (i+j)%2 == 0 {
						errs <- w.RemoveDisk(t.Context(), p)
					}
				})
			}
			wg.Go(func() {
				for range 10 {
					err := w.EvictImage(t.Context(), w.cachedImage())
					if n.rounds > 0 && problem.Is(err, problem.Unavailable) && strings.Contains(err.Error(), "is busy") {
						continue // where all is slow somebody may have the lock all the time
					}
					if err != nil && !problem.Is(err, problem.InUse) {
						errs <- err
					}
				}
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			require.NoError(t, err)
		}
		require.Equal(t, map[string]int{storage.KindVolume: 10, storage.KindSeed: 10, storage.KindBacking: 1}, a.kinds(t), "no volume without what it is a child of")
	})
}

// conformNodes is for what several nodes do to the same pool.
func conformNodes(t *testing.T, fresh func(*testing.T) nodes) {
	conformShared(t, fresh)
	shared := func(t *testing.T) (a, b *world) { return sharedPool(t, fresh(t)) }
	// apart is a pool of which each node has its own directory.
	apart := func(t *testing.T) (a, b *world) {
		n := fresh(t)
		a = newWorld(t, n.a)
		a.pool.Path, a.pool.Agent = filepath.Join(n.own, "pool"), api.NewID()
		b = a.as(n.b)
		b.pool.Agent = api.NewID()
		for _, w := range []*world{a, b} {
			_, err := w.Prepare(t.Context(), w.pool)
			require.NoError(t, err)
		}
		return a, b
	}
	// sent makes b receive the disk of a, or what spoil makes of it.
	sent := func(t *testing.T, a, b *world, plan steps.VMPlan, spoil func(io.Reader) io.Reader, tell func(api.Progress)) error {
		var x storage.Exchange
		o, err := x.Offer(t.Context(), plan.Disk.Volume, func(ctx context.Context) (storage.Disk, error) { return a.OpenDisk(ctx, plan) })
		require.NoError(t, err)
		return b.ReceiveDisk(t.Context(), plan, b.src, func(ctx context.Context) (io.ReadCloser, error) {
			r, err := x.Fetch(ctx, o)
			if err != nil || spoil == nil {
				return r, err
			}
			return struct {
				io.Reader
				io.Closer
			}{spoil(r), r}, nil
		}, tell)
	}

	t.Run("who joins must see what the first has made", func(t *testing.T) {
		a, b := shared(t)
		elsewhere := b.pool
		elsewhere.Path = filepath.Join(t.TempDir(), "not-mounted")
		_, err := b.Prepare(t.Context(), elsewhere)
		is(t, problem.Conflict, err)
		require.NotEmpty(t, b.Usage(t.Context(), elsewhere).Error, "it must not make a pool there")
		other := elsewhere
		other.Pool, other.Join = api.NewID(), false
		_, err = b.Prepare(t.Context(), other)
		require.NoError(t, err)
		_, err = b.Prepare(t.Context(), elsewhere)
		is(t, problem.Conflict, err)
		require.NoError(t, b.Release(t.Context(), elsewhere), "it is another pool's")
		require.Empty(t, b.Usage(t.Context(), other).Error)
		require.Empty(t, a.Usage(t.Context(), a.pool).Error)
	})

	t.Run("a disk goes to another node", func(t *testing.T) {
		a, b := apart(t)
		p := a.plan()
		require.NoError(t, a.MakeDisk(t.Context(), p, a.src, nil))
		was, err := content(t, a, p)
		require.NoError(t, err)
		// It may have been made at the target before, with other content: what comes is what counts.
		require.NoError(t, b.MakeDisk(t.Context(), p, b.src, nil))
		other, err := content(t, b, p)
		require.NoError(t, err)
		require.Equal(t, len(was), len(other))
		var told []api.Progress
		for range 2 {
			require.NoError(t, sent(t, a, b, p, nil, func(p api.Progress) { told = append(told, p) }))
		}
		now, err := content(t, b, p)
		require.NoError(t, err)
		require.Equal(t, was, now)
		require.NotEmpty(t, told)
		last := told[len(told)-1]
		require.Positive(t, last.Total)
		require.Equal(t, last.Total, last.Done)
		require.Equal(t, map[string]int{storage.KindVolume: 1, storage.KindSeed: 1, storage.KindBacking: 1}, b.kinds(t))
		require.NoError(t, a.RemoveDisk(t.Context(), p))
		require.Equal(t, 1, b.kinds(t)[storage.KindVolume], "the target's is its own")
		require.NoError(t, sent(t, b, a, p, nil, nil))
		now, err = content(t, a, p)
		require.NoError(t, err)
		require.Equal(t, was, now)
	})

	t.Run("a disk that is not there or another one is not given away", func(t *testing.T) {
		a, b := apart(t)
		p := a.plan()
		_, err := a.OpenDisk(t.Context(), p)
		is(t, problem.NotFound, err)
		is(t, problem.NotFound, sent(t, a, b, p, nil, nil))
		require.Equal(t, 0, b.kinds(t)[storage.KindVolume])
		require.NoError(t, a.MakeDisk(t.Context(), p, a.src, nil))
		larger := p
		larger.Disk.Size *= 2
		_, err = a.OpenDisk(t.Context(), larger)
		is(t, problem.Conflict, err)
		other := p
		other.Disk.ImageSHA256 = strings.Repeat("0", 64)
		_, err = a.OpenDisk(t.Context(), other)
		is(t, problem.Conflict, err)
		astray := p
		astray.Disk.Volume = "../../etc/passwd"
		_, err = a.OpenDisk(t.Context(), astray)
		is(t, problem.Invalid, err)
		is(t, problem.Invalid, b.ReceiveDisk(t.Context(), astray, b.src, nil, nil))
	})

	t.Run("only what comes whole and right is taken", func(t *testing.T) {
		a, b := apart(t)
		p := a.plan()
		require.NoError(t, a.MakeDisk(t.Context(), p, a.src, nil))
		whole := 0
		require.NoError(t, sent(t, a, b, p, func(r io.Reader) io.Reader { return &counting{r, &whole} }, nil))
		require.NoError(t, b.RemoveDisk(t.Context(), p))
		for name, spoil := range map[string]func(io.Reader) io.Reader{
			"nothing":             func(io.Reader) io.Reader { return strings.NewReader("") },
			"something else":      func(io.Reader) io.Reader { return strings.NewReader(strings.Repeat("x", 4096)) },
			"cut in its head":     func(r io.Reader) io.Reader { return io.LimitReader(r, 20) },
			"cut in the middle":   func(r io.Reader) io.Reader { return io.LimitReader(r, int64(whole/2)) },
			"without its sum":     func(r io.Reader) io.Reader { return io.LimitReader(r, int64(whole-32)) },
			"a bit of its data":   func(r io.Reader) io.Reader { return &flip{Reader: r, at: whole / 2} },
			"a bit of its length": func(r io.Reader) io.Reader { return &flip{Reader: r, at: 10} },
			"a bit of an offset":  func(r io.Reader) io.Reader { return &flip{Reader: r, at: 24} },
			"a bit of the sum":    func(r io.Reader) io.Reader { return &flip{Reader: r, at: whole - 1} },
		} {
			t.Run(name, func(t *testing.T) {
				is(t, problem.Unavailable, sent(t, a, b, p, spoil, nil))
				require.Equal(t, map[string]int{storage.KindSeed: 1, storage.KindBacking: 1}, b.kinds(t), "nothing half-made is left")
			})
		}
		// What comes is whole, but not what was to come.
		q := a.plan()
		q.Disk.Size *= 2
		require.NoError(t, a.MakeDisk(t.Context(), q, a.src, nil))
		var x storage.Exchange
		o, err := x.Offer(t.Context(), p.Disk.Volume, func(ctx context.Context) (storage.Disk, error) { return a.OpenDisk(ctx, q) })
		require.NoError(t, err)
		is(t, problem.Conflict, b.ReceiveDisk(t.Context(), p, b.src, func(ctx context.Context) (io.ReadCloser, error) { return x.Fetch(ctx, o) }, nil))
		require.Equal(t, 0, b.kinds(t)[storage.KindVolume])
		require.NoError(t, b.RemoveDisk(t.Context(), p))
		require.NoError(t, sent(t, a, b, p, nil, nil))
	})

	t.Run("a transfer that is cancelled ends at once and leaves nothing", func(t *testing.T) {
		a, b := apart(t)
		p := a.plan()
		require.NoError(t, a.MakeDisk(t.Context(), p, a.src, nil))
		ctx, cancel := context.WithCancel(t.Context())
		hang, w := io.Pipe() // nothing ever comes
		defer w.Close()
		done, begun := make(chan error, 1), make(chan struct{})
		go func() {
			done <- b.ReceiveDisk(ctx, p, b.src, func(context.Context) (io.ReadCloser, error) { close(begun); return hang, nil }, nil)
		}()
		<-begun
		cancel()
		is(t, problem.Cancelled, <-done)
		require.Equal(t, 0, b.kinds(t)[storage.KindOther]+b.kinds(t)[storage.KindVolume])
	})
}

// counting counts what is read.
type counting struct {
	io.Reader
	n *int
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	*c.n += n
	return n, err
}

// flip turns one bit over.
type flip struct {
	io.Reader
	at, pos int
}

func (f *flip) Read(b []byte) (int, error) {
	n, err := f.Reader.Read(b)
	if i := f.at - f.pos; i >= 0 && i < n {
		b[i] ^= 1
	}
	f.pos += n
	return n, err
}

// TestACopyInUseIsNeverReplaced: on a network file system a guest of another node would lose the file under its feet.
func TestACopyInUseIsNeverReplaced(t *testing.T) {
	n := dirs(t)
	a := newWorld(t, n.a)
	a.pool.Shared, a.src.gate = true, make(chan struct{})
	b := a.as(n.b)
	_, err := a.Prepare(t.Context(), a.pool)
	require.NoError(t, err)
	errs := make(chan error, 2)
	for _, w := range []*world{a, b} {
		p := w.plan()
		p.Agent = api.NewID()
		go func() { errs <- w.MakeDisk(t.Context(), p, w.src, nil) }()
	}
	require.Eventually(t, func() bool { return a.src.opened.Load() >= 1 && a.kinds(t)[storage.KindOther] == 2 }, waitFor, tick, "each has a file of its own")
	// Meanwhile the image comes by another way, and is in use.
	path := filepath.Join(a.pool.Path, "backing", a.sha)
	require.NoError(t, os.WriteFile(path, a.src.images[a.img], 0o600))
	before, err := os.Stat(path)
	require.NoError(t, err)
	close(a.src.gate)
	require.NoError(t, <-errs)
	require.NoError(t, <-errs)
	after, err := os.Stat(path)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after))
	require.Zero(t, a.kinds(t)[storage.KindOther])
}

func TestALockOfAnotherNodeIsRespected(t *testing.T) {
	w := preparedDir(t)
	p := w.plan()
	require.NoError(t, w.MakeDisk(t.Context(), p, w.src, nil))
	require.NoError(t, w.RemoveDisk(t.Context(), p))
	other, err := os.OpenFile(filepath.Join(w.pool.Path, ".nextstack-pool"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, unix.Flock(int(other.Fd()), unix.LOCK_SH)) // it is making a child
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.EvictImage(ctx, w.cachedImage()) }()
	// Who makes children meanwhile is not held up by the other node, only by who waits to be alone here.
	cancel()
	is(t, problem.Cancelled, <-done)
	require.FileExists(t, filepath.Join(w.pool.Path, "backing", w.sha))
	require.NoError(t, w.MakeDisk(t.Context(), p, w.src, nil))
	require.NoError(t, w.RemoveDisk(t.Context(), p))
	go func() { done <- w.EvictImage(t.Context(), w.cachedImage()) }()
	require.NoError(t, unix.Flock(int(other.Fd()), unix.LOCK_UN))
	require.NoError(t, <-done)
	require.NoFileExists(t, filepath.Join(w.pool.Path, "backing", w.sha))
}

func TestOldMarkersNameNoAgent(t *testing.T) {
	w := newWorld(t, storage.NewDir(nil))
	require.NoError(t, os.MkdirAll(w.pool.Path, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(w.pool.Path, ".nextstack-pool"), []byte(`{"pool":"`+w.pool.Pool+`","type":"dir"}`), 0o600))
	w.pool.Agent = api.NewID()
	_, err := w.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	require.NoError(t, w.MakeDisk(t.Context(), w.plan(), w.src, nil))
}

func TestAClonedFakeIsAWorldOfItsOwn(t *testing.T) {
	f := &storage.Fake{}
	w := newWorld(t, f)
	_, err := w.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	p := w.plan()
	require.NoError(t, w.MakeDisk(t.Context(), p, w.src, nil))
	c := f.Clone()
	require.Equal(t, f.Content(p), c.Content(p))
	require.NoError(t, w.RemoveDisk(t.Context(), p))
	require.Empty(t, f.Content(p))
	require.NotEmpty(t, c.Content(p))
	is(t, problem.InUse, c.EvictImage(t.Context(), w.cachedImage()))
	require.NoError(t, f.EvictImage(t.Context(), w.cachedImage()))
}
