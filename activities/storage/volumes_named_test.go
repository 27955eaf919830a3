package storage_test

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// conformNamed is what every driver passes whose pools keep snapshots by themselves, under names. Newly returns a prepared pool whose
// image has something in it.
func conformNamed(t *testing.T, newly func(*testing.T) *stand) {
	cached := func(s *stand) *steps.CachedImage { c := s.world.cached(); return &c }
	snap := func(t *testing.T, s *stand, v steps.VolumePlan) string {
		t.Helper()
		id := api.NewID()
		for range 2 {
			require.NoError(t, s.AddSnapshot(t.Context(), steps.SnapshotPlan{Snapshot: id, Volume: v}))
		}
		return id
	}
	drop := func(t *testing.T, s *stand, v steps.VolumePlan, id string) {
		t.Helper()
		for range 2 {
			require.NoError(t, s.DropSnapshot(t.Context(), steps.SnapshotDrop{Snapshot: id, Volume: v}, false, nil))
		}
	}

	t.Run("create and grow and remove", func(t *testing.T) {
		s := newly(t)
		require.False(t, s.Capabilities(s.pool).Files)
		v := s.volume()
		s.make(t, v)
		s.shows(t, v, shown{})
		s.write(t, v, 3, 'a')
		bigger := v
		bigger.Size *= 2
		is(t, problem.Conflict, s.CreateVolume(t.Context(), bigger, s.src, nil))
		withImage := v
		withImage.Image = cached(s)
		is(t, problem.Conflict, s.CreateVolume(t.Context(), withImage, s.src, nil))
		for range 2 {
			require.NoError(t, s.GrowVolume(t.Context(), bigger))
		}
		is(t, problem.Conflict, s.GrowVolume(t.Context(), v))
		s.shows(t, bigger, shown{3: 'a'})
		require.Equal(t, 1, s.kinds(t)[storage.KindVolume])
		is(t, problem.InUse, s.Release(t.Context(), s.pool))
		layer := v
		layer.Layer = api.NewID()
		require.NoError(t, s.RemoveVolume(t.Context(), layer), "there is no such layer, and the volume stays")
		s.shows(t, bigger, shown{3: 'a'})
		for range 2 {
			require.NoError(t, s.RemoveVolume(t.Context(), v))
		}
		require.Zero(t, s.kinds(t)[storage.KindVolume])
	})

	t.Run("children of an image", func(t *testing.T) {
		s := newly(t)
		a, b := s.volume(), s.volume()
		a.Image, b.Image = cached(s), cached(s)
		s.make(t, a)
		s.make(t, b)
		require.EqualValues(t, 1, s.src.opened.Load(), "the image is fetched once")
		s.write(t, a, 0, 'a')
		s.write(t, a, 1, 'b')
		s.shows(t, a, shown{0: 'a', 1: 'b'})
		s.shows(t, b, shown{0: imageByte})
		require.NoError(t, s.RemoveVolume(t.Context(), b))
		is(t, problem.InUse, s.EvictImage(t.Context(), *cached(s)))
		require.NoError(t, s.RemoveVolume(t.Context(), a))
		require.NoError(t, s.EvictImage(t.Context(), *cached(s)))
		unknown := s.volume()
		unknown.Image = cached(s)
		unknown.Image.Image = api.NewID()
		is(t, problem.NotFound, s.CreateVolume(t.Context(), unknown, s.src, nil))
		require.Empty(t, s.kinds(t))
	})

	t.Run("a volume becomes independent of its image", func(t *testing.T) {
		s := newly(t)
		v := s.volume()
		v.Image = cached(s)
		s.make(t, v)
		s.write(t, v, 5, 'a')
		id := snap(t, s, v)
		s.write(t, v, 0, 'b')
		alone := func(want bool) {
			t.Helper()
			yes, err := s.StandsAlone(t.Context(), v)
			require.NoError(t, err)
			require.Equal(t, want, yes)
		}
		alone(false)
		for range 2 {
			require.NoError(t, s.FlattenVolume(t.Context(), v, func(api.Progress) {}))
			alone(true)
		}
		require.NoError(t, s.EvictImage(t.Context(), *cached(s)), "its snapshots do not need the image either")
		s.shows(t, v, shown{0: 'b', 5: 'a'})
		require.NoError(t, s.RevertVolume(t.Context(), steps.VolumeRevert{Snapshot: id, Volume: v, Layer: api.NewID()}))
		s.shows(t, v, shown{0: imageByte, 5: 'a'})
		gone := s.volume()
		is(t, problem.NotFound, s.FlattenVolume(t.Context(), gone, nil))
		_, err := s.StandsAlone(t.Context(), gone)
		is(t, problem.NotFound, err)
	})

	t.Run("copies", func(t *testing.T) {
		s := newly(t)
		v := s.volume()
		v.Image = cached(s)
		s.make(t, v)
		s.write(t, v, 5, 'a')
		id := snap(t, s, v)
		s.write(t, v, 6, 'b')
		now, then := s.volume(), s.volume()
		now.From = &steps.VolumeFrom{Volume: v.Volume}
		then.From, then.Size = &steps.VolumeFrom{Volume: v.Volume, Snapshot: id}, 3*api.MiB
		told := 0
		require.NoError(t, s.CreateVolume(t.Context(), now, s.src, func(api.Progress) { told++ }))
		require.Positive(t, told)
		s.write(t, v, 7, 'c')
		s.make(t, now)
		s.make(t, then)
		s.shows(t, now, shown{0: imageByte, 5: 'a', 6: 'b'})
		s.shows(t, then, shown{0: imageByte, 5: 'a'})
		small := s.volume()
		small.From, small.Size = now.From, api.MiB
		is(t, problem.Invalid, s.CreateVolume(t.Context(), small, s.src, nil))
		lost := s.volume()
		lost.From = &steps.VolumeFrom{Volume: api.NewID()}
		is(t, problem.NotFound, s.CreateVolume(t.Context(), lost, s.src, nil))
		lost.From = &steps.VolumeFrom{Volume: v.Volume, Snapshot: api.NewID()}
		is(t, problem.NotFound, s.CreateVolume(t.Context(), lost, s.src, nil))
		require.NoError(t, s.RemoveVolume(t.Context(), small))
		require.NoError(t, s.RemoveVolume(t.Context(), lost))
		is(t, problem.InUse, s.RemoveVolume(t.Context(), v))
		drop(t, s, v, id)
		require.NoError(t, s.RemoveVolume(t.Context(), v), "nothing is left of the copying")
		require.NoError(t, s.EvictImage(t.Context(), *cached(s)), "a copy stands by itself")
		s.shows(t, now, shown{0: imageByte, 5: 'a', 6: 'b'})
	})

	t.Run("a snapshot is undone with all that was written since", func(t *testing.T) {
		s := newly(t)
		v := s.volume()
		s.make(t, v)
		plan := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: v}
		for range 2 {
			require.NoError(t, s.UndoSnapshot(t.Context(), plan), "it was never taken")
		}
		s.write(t, v, 1, 'a')
		require.NoError(t, s.AddSnapshot(t.Context(), plan))
		s.write(t, v, 1, 'b')
		for range 2 {
			require.NoError(t, s.UndoSnapshot(t.Context(), plan))
		}
		s.shows(t, v, shown{1: 'b'})
		require.NoError(t, s.RemoveVolume(t.Context(), v))
	})

	t.Run("going back and forth", func(t *testing.T) {
		s := newly(t)
		v := s.volume()
		s.make(t, v)
		s.write(t, v, 0, 'a')
		one := snap(t, s, v)
		s.write(t, v, 1, 'b')
		bigger := v
		bigger.Size *= 2
		require.NoError(t, s.GrowVolume(t.Context(), bigger))
		s.write(t, v, 40, 'c')
		two := snap(t, s, v)
		s.write(t, v, 2, 'd')
		r := steps.VolumeRevert{Snapshot: one, Volume: v, Layer: api.NewID()}
		require.NoError(t, s.UndoRevert(t.Context(), r), "it was never done")
		for range 2 {
			require.NoError(t, s.CheckRevert(t.Context(), r))
			require.NoError(t, s.RevertVolume(t.Context(), r))
		}
		s.shows(t, v, shown{0: 'a'})
		for range 2 {
			require.NoError(t, s.UndoRevert(t.Context(), r))
		}
		s.shows(t, bigger, shown{0: 'a', 1: 'b', 2: 'd', 40: 'c'})

		require.NoError(t, s.RevertVolume(t.Context(), r))
		s.write(t, v, 5, 'e')
		layer := v
		layer.Layer = r.Layer
		for range 2 {
			require.NoError(t, s.RemoveVolume(t.Context(), layer), "what was written before is forgotten")
		}
		require.NoError(t, s.UndoRevert(t.Context(), r))
		s.shows(t, v, shown{0: 'a', 5: 'e'})
		r = steps.VolumeRevert{Snapshot: two, Volume: v, Layer: api.NewID()}
		require.NoError(t, s.RevertVolume(t.Context(), r))
		s.shows(t, bigger, shown{0: 'a', 1: 'b', 40: 'c'})
		drop(t, s, v, one)
		s.shows(t, bigger, shown{0: 'a', 1: 'b', 40: 'c'})
		is(t, problem.InUse, s.RemoveVolume(t.Context(), v))
		drop(t, s, v, two)
		require.NoError(t, s.RemoveVolume(t.Context(), v), "what was kept in case of an undo does not hold it")
		require.Empty(t, s.kinds(t))
	})

	t.Run("nonsense", func(t *testing.T) {
		s := newly(t)
		for i, spoil := range []func(*steps.VolumePlan){
			func(v *steps.VolumePlan) { v.Volume = "../../etc/passwd" },
			func(v *steps.VolumePlan) { v.Size = 0 },
			func(v *steps.VolumePlan) { v.Size = 1000 },
			func(v *steps.VolumePlan) { v.Size = -api.GiB },
			func(v *steps.VolumePlan) { v.Pool.Path = "/x/../etc" },
			func(v *steps.VolumePlan) { v.Image, v.From = cached(s), &steps.VolumeFrom{Volume: api.NewID()} },
			func(v *steps.VolumePlan) { v.From = &steps.VolumeFrom{Volume: "x"} },
			func(v *steps.VolumePlan) { v.From = &steps.VolumeFrom{Volume: api.NewID(), Snapshot: "base"} },
			func(v *steps.VolumePlan) {
				v.Image = &steps.CachedImage{SHA256: "../../x", Pool: v.Pool.Pool, PoolPath: v.Pool.Path}
			},
		} {
			v := s.volume()
			spoil(&v)
			require.Equal(t, problem.Invalid, problem.KindOf(s.CreateVolume(t.Context(), v, s.src, nil)), i)
		}
		v := s.volume()
		is(t, problem.NotFound, s.GrowVolume(t.Context(), v))
		is(t, problem.NotFound, s.AddSnapshot(t.Context(), steps.SnapshotPlan{Snapshot: api.NewID(), Volume: v}))
		is(t, problem.Invalid, s.AddSnapshot(t.Context(), steps.SnapshotPlan{Snapshot: "base", Volume: v}))
		is(t, problem.NotFound, s.RevertVolume(t.Context(), steps.VolumeRevert{Snapshot: api.NewID(), Volume: v, Layer: api.NewID()}))
		is(t, problem.NotFound, s.CheckRevert(t.Context(), steps.VolumeRevert{Snapshot: api.NewID(), Volume: v, Layer: api.NewID()}))
		s.make(t, v)
		is(t, problem.NotFound, s.CheckRevert(t.Context(), steps.VolumeRevert{Snapshot: api.NewID(), Volume: v, Layer: api.NewID()}))
		is(t, problem.NotFound, s.RevertVolume(t.Context(), steps.VolumeRevert{Snapshot: api.NewID(), Volume: v, Layer: api.NewID()}))
		elsewhere := v
		elsewhere.Pool.Pool = api.NewID()
		require.Contains(t, []problem.Kind{problem.NotFound, problem.Conflict}, problem.KindOf(s.CreateVolume(t.Context(), elsewhere, s.src, nil)))
	})

	t.Run("many at once", func(t *testing.T) {
		s := newly(t)
		base := s.volume()
		base.Image = cached(s)
		s.make(t, base)
		var wg sync.WaitGroup
		errs := make(chan error, 8)
		for i := range cap(errs) {
			v := s.volume()
			if v.Image = cached(s); i%2 == 0 {
				v.Image, v.From = nil, &steps.VolumeFrom{Volume: base.Volume}
			}
			wg.Go(func() {
				id, ctx := api.NewID(), context.Background()
				err := s.CreateVolume(ctx, v, s.src, nil)
				if err == nil {
					err = s.AddSnapshot(ctx, steps.SnapshotPlan{Snapshot: id, Volume: v})
				}
				if err == nil {
					err = s.DropSnapshot(ctx, steps.SnapshotDrop{Snapshot: id, Volume: v}, false, nil)
				}
				if err == nil {
					err = s.RemoveVolume(ctx, v)
				}
				errs <- err
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			require.NoError(t, err)
		}
		require.Equal(t, map[string]int{storage.KindVolume: 1, storage.KindBacking: 1}, s.kinds(t))
	})
}

func TestFakeNamedVolumesConform(t *testing.T) {
	conformNamed(t, func(t *testing.T) *stand {
		f := &storage.Fake{}
		w := newWorldOn(t, f, func(*testing.T) steps.PoolOnNode { return cephTwin() }, empty)
		_, err := w.Prepare(t.Context(), w.pool)
		require.NoError(t, err)
		return &stand{world: w, hand: memory{f}}
	})
}

func TestFakeConformsAsPoolOfCeph(t *testing.T) {
	conformOn(t, func() storage.Pool { return &storage.Fake{} }, func(*testing.T) steps.PoolOnNode { return cephTwin() })
}

// cephTwin is a pool of Ceph that no cluster has.
func cephTwin() steps.PoolOnNode {
	s := api.PoolSource{Hosts: []string{"10.0.0.1"}, Name: "vms", User: "libvirt"}
	return steps.PoolOnNode{Type: api.PoolRBD, Shared: true, Path: api.CephPath(s), Source: s}
}
