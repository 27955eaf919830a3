package storage_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// run runs a step of a node.
func run[In, Out any](t *testing.T, node byName, step steps.Step[In, Out], in In) (Out, error) {
	t.Helper()
	out, err := node[step.Name].(func(context.Context, steps.Envelope[In]) (Out, error))(t.Context(), steps.Envelope[In]{In: in})
	return out, steps.FromActivity(step.Name, "", err)
}

// neighbours returns two nodes, each with a pool of its own, that have the same server and can fetch from one another.
func neighbours(t *testing.T, fresh func() storage.Pool) (a, b *world, onA, onB byName) {
	a = newWorld(t, fresh())
	b = a.as(fresh())
	b.pool.Path = filepath.Join(t.TempDir(), "pool")
	var peers storage.Exchange
	reg := func(w *world) byName {
		_, err := w.Prepare(t.Context(), w.pool)
		require.NoError(t, err)
		r := byName{}
		storage.RegisterNode(r, &activities.Host{Log: slog.New(slog.DiscardHandler)}, w.Pool, w.src, &peers)
		return r
	}
	return a, b, reg(a), reg(b)
}

func TestImagesComeFromNodesThatHaveThem(t *testing.T) {
	for name, fresh := range map[string]func() storage.Pool{
		"dir": func() storage.Pool { return storage.NewDir(nil) }, "fake": func() storage.Pool { return &storage.Fake{} },
	} {
		t.Run(name, func(t *testing.T) {
			a, b, onA, onB := neighbours(t, fresh)
			_, err := run(t, onA, steps.OfferImage, steps.ImageOffer{Copy: a.cachedImage()})
			is(t, problem.NotFound, err)

			made, err := run(t, onA, steps.MakeDisk, a.plan())
			require.NoError(t, err)
			require.Equal(t, a.size, made.Fetched)
			require.Empty(t, made.Peer)
			made, err = run(t, onA, steps.MakeDisk, a.plan())
			require.NoError(t, err)
			require.Zero(t, made.Fetched, "a VM of an image that is there copies no data")
			require.Positive(t, made.Took)

			plan := b.plan()
			offer, err := run(t, onA, steps.OfferImage, steps.ImageOffer{Copy: a.cachedImage()})
			require.NoError(t, err)
			plan.Disk.Offer = &offer
			other, err := run(t, onA, steps.OfferImage, steps.ImageOffer{Copy: a.cachedImage()})
			require.NoError(t, err)
			require.NotEqual(t, offer.Ticket, other.Ticket, "an offer ends no other")
			made, err = run(t, onB, steps.MakeDisk, plan)
			require.NoError(t, err)
			require.Equal(t, a.size, made.Fetched)
			require.Equal(t, offer.Address, made.Peer)
			require.EqualValues(t, 1, a.src.opened.Load(), "the server was asked once")
			require.Equal(t, b.kinds(t), map[string]int{storage.KindVolume: 1, storage.KindSeed: 1, storage.KindBacking: 1})
		})
	}
}

// TestAMovedDiskBringsItsImage: the source of a cold move has that, too.
func TestAMovedDiskBringsItsImage(t *testing.T) {
	a := newWorld(t, &storage.Fake{})
	a.pool.Path = filepath.Join(t.TempDir(), "pool") // the same on both nodes
	b := a.as(&storage.Fake{})
	onA, onB := byName{}, byName{}
	var peers storage.Exchange
	for w, reg := range map[*world]byName{a: onA, b: onB} {
		_, err := w.Prepare(t.Context(), w.pool)
		require.NoError(t, err)
		storage.RegisterNode(reg, &activities.Host{Log: slog.New(slog.DiscardHandler)}, w.Pool, w.src, &peers)
	}
	plan := a.plan()
	_, err := run(t, onA, steps.MakeDisk, plan)
	require.NoError(t, err)
	offer, err := run(t, onA, steps.OfferDisk, plan)
	require.NoError(t, err)
	require.NotEmpty(t, offer.Image)
	_, err = run(t, onB, steps.PullDisk, steps.DiskPull{Plan: plan, Offer: offer})
	require.NoError(t, err)
	require.EqualValues(t, 1, a.src.opened.Load(), "the server was asked once")
}

// TestPeersThatFailAreNotNeeded: the server has the image, too.
func TestPeersThatFailAreNotNeeded(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, a *world, offer *steps.DiskOffer){
		"unknown ticket": func(_ *testing.T, _ *world, o *steps.DiskOffer) { o.Ticket = api.NewID() },
		"copy gone": func(t *testing.T, a *world, _ *steps.DiskOffer) {
			require.NoError(t, os.Remove(filepath.Join(a.pool.Path, "backing", a.sha)))
		},
		"copy damaged": func(t *testing.T, a *world, _ *steps.DiskOffer) {
			path := filepath.Join(a.pool.Path, "backing", a.sha)
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			b[len(b)-1] ^= 1
			require.NoError(t, os.WriteFile(path, b, 0o600))
		},
		"copy too short": func(t *testing.T, a *world, _ *steps.DiskOffer) {
			require.NoError(t, os.Truncate(filepath.Join(a.pool.Path, "backing", a.sha), 10))
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, onA, onB := neighbours(t, func() storage.Pool { return storage.NewDir(nil) })
			_, err := run(t, onA, steps.MakeDisk, a.plan())
			require.NoError(t, err)
			offer, err := run(t, onA, steps.OfferImage, steps.ImageOffer{Copy: a.cachedImage()})
			require.NoError(t, err)
			spoil(t, a, &offer)
			plan := b.plan()
			plan.Disk.Offer = &offer
			made, err := run(t, onB, steps.MakeDisk, plan)
			require.NoError(t, err)
			require.Empty(t, made.Peer, "it came from the server")
			require.EqualValues(t, 2, a.src.opened.Load())
			got, err := os.ReadFile(filepath.Join(b.pool.Path, "backing", b.sha))
			require.NoError(t, err)
			sum := sha256.Sum256(got)
			require.Equal(t, b.sha, hex.EncodeToString(sum[:]))
		})
	}
}

// TestAFullPoolMakesRoom: copies that no volume needs go, the one that was used longest ago first, and none that is needed or was
// used just now.
func TestAFullPoolMakesRoom(t *testing.T) {
	d := storage.NewDir(nil)
	w := newWorld(t, d)
	var mu sync.Mutex
	slots := 4 // how many images the pool has room for, besides what is kept free
	d.SetRoom(func(path string) api.PoolUsage {
		mu.Lock()
		defer mu.Unlock()
		entries, err := os.ReadDir(filepath.Join(path, "backing"))
		require.NoError(t, err)
		n := 0
		for _, e := range entries {
			if len(e.Name()) == 64 {
				n++
			}
		}
		return api.PoolUsage{Capacity: 100 * w.size, Free: 10*w.size + int64(slots-n)*w.size}
	})
	_, err := w.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	// Other images are the first one with something behind it, which qcow2 does not mind.
	plans := make([]steps.VMPlan, 6)
	for i := range plans {
		b := append([]byte(nil), w.src.images[w.img]...)
		b[len(b)-1-i] ^= 1
		sum := sha256.Sum256(b)
		plans[i] = w.plan()
		plans[i].Disk.Image, plans[i].Disk.ImageSHA256 = api.NewID(), hex.EncodeToString(sum[:])
		w.src.images[plans[i].Disk.Image] = b
	}
	path := func(i int) string { return filepath.Join(w.pool.Path, "backing", plans[i].Disk.ImageSHA256) }
	make := func(i int) { require.NoError(t, w.MakeDisk(t.Context(), plans[i], w.src, nil)) }
	old := func(i int, ago time.Duration) {
		at := unix.NsecToTimespec(time.Now().Add(-ago).UnixNano())
		require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, path(i), []unix.Timespec{at, {Nsec: unix.UTIME_OMIT}}, 0))
	}
	for i := range 4 {
		make(i)
	}
	require.NoError(t, w.RemoveDisk(t.Context(), plans[1]))
	require.NoError(t, w.RemoveDisk(t.Context(), plans[2]))
	require.NoError(t, w.RemoveDisk(t.Context(), plans[3]))
	old(0, 5*time.Hour) // needed
	old(1, time.Hour)
	old(2, 2*time.Hour) // used longest ago
	make(4)
	require.FileExists(t, path(0))
	require.FileExists(t, path(1))
	require.NoFileExists(t, path(2))
	require.FileExists(t, path(3))
	old(1, time.Hour)
	make(5)
	require.NoFileExists(t, path(1))
	require.FileExists(t, path(0))
	require.FileExists(t, path(3), "it was used just now")

	// A volume of a copy that was removed can be made again.
	mu.Lock()
	slots = 100
	mu.Unlock()
	make(2)
	before := w.src.opened.Load()
	make(2)
	require.Equal(t, before, w.src.opened.Load())
}
