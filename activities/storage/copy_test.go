package storage_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

func TestFakeCopiesVolumes(t *testing.T) {
	f := &storage.Fake{}
	conformCopies(t, f, newStand(t, f), newStand(t, f))
}

func TestDirCopiesVolumes(t *testing.T) {
	d := storage.NewDir(nil)
	conformCopies(t, storage.ByType{api.PoolDir: d}, newStand(t, d), newStand(t, d))
}

// conformCopies is what everybody passes who copies volumes from one pool to another, of whatever types they are.
func conformCopies(t *testing.T, c storage.Copier, from, to *stand) {
	// there returns a volume as it is to be in the other pool, where it is empty yet.
	there := func(t *testing.T, v steps.VolumePlan) steps.VolumePlan {
		v.Pool, v.Layer, v.Image, v.From = to.pool, "", nil, nil
		if to.Capabilities(to.pool).Files {
			v.Layer = api.NewID()
		}
		to.make(t, v)
		return v
	}
	done := func(t *testing.T, source, target steps.VolumePlan, want shown) {
		t.Helper()
		told := api.Progress{}
		require.NoError(t, c.CopyVolume(t.Context(), source, target, 0, func(p api.Progress) { told = p }))
		require.Equal(t, source.Size, told.Total)
		to.shows(t, target, want)
		from.shows(t, source, want)
		require.NoError(t, c.CopyVolume(t.Context(), source, target, 0, nil), "once more")
		to.shows(t, target, want)
		to.make(t, target) // it is what it was made as
		require.NoError(t, from.RemoveVolume(t.Context(), source))
		to.write(t, target, 5, 'z')
		want[5] = 'z'
		to.shows(t, target, want)
		bigger := target
		bigger.Size *= 2
		require.NoError(t, to.GrowVolume(t.Context(), bigger))
		to.shows(t, bigger, want)
		require.NoError(t, to.RemoveVolume(t.Context(), target))
		require.Zero(t, to.kinds(t)[storage.KindVolume])
	}

	t.Run("of a volume", func(t *testing.T) {
		v := from.volume()
		from.make(t, v)
		from.write(t, v, 3, 'a')
		from.write(t, v, 31, 'b')
		done(t, v, there(t, v), shown{3: 'a', 31: 'b'})
	})

	t.Run("of an empty one", func(t *testing.T) {
		v := from.volume()
		from.make(t, v)
		done(t, v, there(t, v), shown{})
	})

	t.Run("of a child of an image", func(t *testing.T) {
		v := from.volume()
		v.Image = from.cached()
		v.Image.PoolType, v.Image.PoolSource = from.pool.Type, from.pool.Source
		from.make(t, v)
		from.write(t, v, 1, 'a')
		done(t, v, there(t, v), shown{0: imageByte, 1: 'a'})
		require.NoError(t, from.EvictImage(t.Context(), *v.Image), "nothing needs it any more")
	})

	t.Run("over what is half-made", func(t *testing.T) {
		v := from.volume()
		from.make(t, v)
		from.write(t, v, 3, 'a')
		target := there(t, v)
		to.write(t, target, 7, 'x')
		done(t, v, target, shown{3: 'a'})
	})

	if from.Capabilities(from.pool).Files {
		t.Run("of all layers", func(t *testing.T) {
			v := from.volume()
			from.make(t, v)
			from.write(t, v, 3, 'a')
			top := from.snap(t, v)
			from.write(t, top, 4, 'b')
			done(t, top, there(t, top), shown{3: 'a', 4: 'b'})
			require.NoError(t, from.RemoveVolume(t.Context(), v))
		})
		if to.Capabilities(to.pool).Files {
			t.Run("of one that several VMs may write to", func(t *testing.T) {
				v := from.volume()
				v.Shareable = true
				from.make(t, v)
				from.write(t, v, 3, 'a')
				done(t, v, there(t, v), shown{3: 'a'})
			})
		}
	}

	t.Run("given up and begun again", func(t *testing.T) {
		v := from.volume()
		v.Size = 512 * api.MiB
		from.make(t, v)
		from.write(t, v, 3, 'a')
		target := there(t, v)
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("given up"))
		is(t, problem.Cancelled, c.CopyVolume(ctx, v, target, 0, nil))
		ctx, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer stop()
		_ = c.CopyVolume(ctx, v, target, 0, nil) // it may even have been fast enough
		from.shows(t, v, shown{3: 'a'})
		done(t, v, target, shown{3: 'a'})
	})

	t.Run("refusals", func(t *testing.T) {
		v := from.volume()
		target := there(t, v)
		is(t, problem.NotFound, c.CopyVolume(t.Context(), v, target, 0, nil))
		from.make(t, v)
		small := target
		small.Size /= 2
		is(t, problem.Invalid, c.CopyVolume(t.Context(), v, small, 0, nil))
		if to.Capabilities(to.pool).Files {
			elsewhere := target
			elsewhere.Pool.Pool = api.NewID()
			is(t, problem.Conflict, c.CopyVolume(t.Context(), v, elsewhere, 0, nil))
		}
		require.NoError(t, to.RemoveVolume(t.Context(), target))
		require.NoError(t, from.RemoveVolume(t.Context(), v))
		require.Zero(t, to.kinds(t)[storage.KindVolume])
	})
}

// conformSeeds is what every driver passes for the seeds of VMs whose root disks come from other pools.
func conformSeeds(t *testing.T, w *world) {
	seeds, plan := w.Pool.(storage.Seeds), w.plan()
	plan.Disk.Image, plan.Disk.ImageSHA256, plan.Disk.ImageSize = "", "", 0
	require.NoError(t, seeds.RemoveSeed(t.Context(), plan), "there is none")
	for range 2 {
		require.NoError(t, seeds.MakeSeed(t.Context(), plan, w.src))
	}
	require.Equal(t, map[string]int{storage.KindSeed: 1}, w.kinds(t))
	for range 2 {
		require.NoError(t, seeds.RemoveSeed(t.Context(), plan))
	}
	require.Empty(t, w.kinds(t))
	require.NoError(t, seeds.MakeSeed(t.Context(), plan, w.src))
	require.NoError(t, w.RemoveDisk(t.Context(), plan), "it goes with the disk")
	require.Empty(t, w.kinds(t))
	plan.Disk.Pool = api.NewID()
	require.Error(t, seeds.MakeSeed(t.Context(), plan, w.src))
}

func TestSeedsOfDisksFromOtherPools(t *testing.T) {
	dir := storage.NewDir(nil)
	conformSeeds(t, newStand(t, dir).world)
	conformSeeds(t, newStand(t, &storage.Fake{}).world)
	w := newStand(t, dir).world
	w.Pool = storage.ByType{api.PoolDir: dir}
	conformSeeds(t, w)
}
