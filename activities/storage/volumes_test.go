package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// slot is where a test writes, and what it reads: so many bytes, all the same.
const slot = 64 << 10

// shown is what a volume shows: of each slot that is not empty, the byte that is in it.
type shown map[int]byte

// hand writes to volumes of a pool, and reads them, as no driver does.
type hand interface {
	write(t *testing.T, v steps.VolumePlan, slot int, b byte)
	read(t *testing.T, v steps.VolumePlan) (shown, int64)
}

// files is a hand for pools of qcow2 files.
type files struct {
	leaks bool // clusters that nobody uses are no fault: somebody may have died
}

func program(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return string(out)
}

func (files) write(t *testing.T, v steps.VolumePlan, at int, b byte) {
	t.Helper()
	s, err := (&storage.Dir{}).LocateVolume(v)
	require.NoError(t, err)
	out := program(t, "qemu-io", "-f", s.Format, "-c", fmt.Sprintf("write -P %d %d %d", b, at*slot, slot), s.File)
	require.NotContains(t, out, "failed")
}

func (h files) read(t *testing.T, v steps.VolumePlan) (shown, int64) {
	t.Helper()
	s, err := (&storage.Dir{}).LocateVolume(v)
	require.NoError(t, err)
	raw := filepath.Join(t.TempDir(), "raw")
	program(t, "qemu-img", "convert", "-f", s.Format, "-O", "raw", s.File, raw)
	if s.Format == api.FormatQCOW2 {
		out, err := exec.Command("qemu-img", "check", "-q", "-f", "qcow2", s.File).CombinedOutput()
		var exit *exec.ExitError
		if leaked := errors.As(err, &exit) && exit.ExitCode() == 3; !leaked || !h.leaks {
			require.NoError(t, err, "%s", out)
		}
	}
	return shows(t, raw)
}

// shows is what a file shows that is the volume byte by byte.
func shows(t *testing.T, raw string) (shown, int64) {
	t.Helper()
	all, err := os.ReadFile(raw)
	require.NoError(t, err)
	out := shown{}
	for i := 0; i*slot < len(all); i++ {
		part := all[i*slot : min((i+1)*slot, len(all))]
		require.Equal(t, len(part), bytes.Count(part, part[:1]), "slot %d is neither old nor new", i)
		if part[0] != 0 {
			out[i] = part[0]
		}
	}
	return out, int64(len(all))
}

// memory is a hand for fakes.
type memory struct{ *storage.Fake }

func (m memory) write(t *testing.T, v steps.VolumePlan, at int, b byte) {
	t.Helper()
	require.NoError(t, m.Write(v, fmt.Sprintf("%d=%d;", at, b)))
}

func (m memory) read(t *testing.T, v steps.VolumePlan) (shown, int64) {
	t.Helper()
	text, size, err := m.Shows(v)
	require.NoError(t, err)
	out := shown{}
	if image, rest, ok := strings.Cut(text, ": "); ok {
		require.Contains(t, image, "image ")
		out[0], text = imageByte, rest
	}
	for _, w := range strings.Split(strings.TrimSuffix(text, ";"), ";") {
		var at int
		var b byte
		if _, err := fmt.Sscanf(w, "%d=%d", &at, &b); err == nil {
			out[at] = b
		}
	}
	return out, size
}

// imageByte is in the first slot of the image.
const imageByte = 'I'

// stand is a pool with a hand.
type stand struct {
	*world
	hand
}

// newStand returns a prepared pool whose image has something in it.
func newStand(t *testing.T, pool storage.Pool) *stand {
	w := newWorldWith(t, pool, func(path string) {
		program(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d 0 %d", imageByte, slot), path)
	})
	_, err := w.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	return handed(w)
}

// handed returns a world with the hand that goes with its pool.
func handed(w *world) *stand {
	s := &stand{world: w, hand: files{}}
	switch p := w.Pool.(type) {
	case *storage.Fake:
		s.hand = memory{p}
	case hand:
		s.hand = p
	}
	return s
}

func (s *stand) volume() steps.VolumePlan {
	return steps.VolumePlan{Volume: api.NewID(), Name: "data", Pool: s.pool, Agent: api.NewID(), Size: 2 * api.MiB}
}

func (s *stand) cached() *steps.CachedImage {
	return &steps.CachedImage{Image: s.img, SHA256: s.sha, Pool: s.pool.Pool, PoolPath: s.pool.Path}
}

func (s *stand) make(t *testing.T, v steps.VolumePlan) {
	t.Helper()
	for range 2 {
		require.NoError(t, s.CreateVolume(t.Context(), v, s.src, nil))
	}
}

func (s *stand) shows(t *testing.T, v steps.VolumePlan, want shown) {
	t.Helper()
	got, size := s.read(t, v)
	require.Equal(t, want, got)
	require.Equal(t, v.Size, size)
}

// snap takes a snapshot and returns the volume as it is written to afterwards.
func (s *stand) snap(t *testing.T, v steps.VolumePlan) steps.VolumePlan {
	t.Helper()
	plan := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: v, Layer: api.NewID()}
	for range 2 {
		require.NoError(t, s.AddSnapshot(t.Context(), plan))
	}
	v.Layer = plan.Layer
	return v
}

func (s *stand) drop(t *testing.T, frozen, child steps.VolumePlan) error {
	t.Helper()
	d := steps.SnapshotDrop{Volume: child, Frozen: frozen.Layer, Child: child.Layer}
	err := s.DropSnapshot(t.Context(), d, false, nil)
	if err == nil {
		require.NoError(t, s.DropSnapshot(t.Context(), d, false, nil), "once more")
	}
	return err
}

// larger is the same volume with another size.
func larger(v steps.VolumePlan) steps.VolumePlan {
	v.Size += api.MiB
	return v
}

func TestFakeVolumesConform(t *testing.T) {
	conformVolumes(t, func() storage.Pool { return &storage.Fake{} })
}

func TestDirVolumesConform(t *testing.T) {
	conformVolumes(t, func() storage.Pool { return storage.NewDir(nil) })
}

// conformVolumes is what every driver of pools of files passes.
func conformVolumes(t *testing.T, fresh func() storage.Pool) {
	t.Run("create and grow and remove", func(t *testing.T) {
		s := newStand(t, fresh())
		v := s.volume()
		s.make(t, v)
		s.shows(t, v, shown{})
		s.write(t, v, 3, 'a')
		bigger := v
		bigger.Size *= 2
		is(t, problem.Conflict, s.CreateVolume(t.Context(), bigger, s.src, nil))
		withImage := v
		withImage.Image = s.cached()
		is(t, problem.Conflict, s.CreateVolume(t.Context(), withImage, s.src, nil))
		for range 2 {
			require.NoError(t, s.GrowVolume(t.Context(), bigger))
		}
		is(t, problem.Conflict, s.GrowVolume(t.Context(), v))
		s.shows(t, bigger, shown{3: 'a'})
		list, err := s.List(t.Context(), s.pool)
		require.NoError(t, err)
		require.Contains(t, list, steps.FileFound{Pool: s.pool.Pool, Path: filepath.Join(s.pool.Path, "volumes", v.Volume+".qcow2"), Kind: storage.KindVolume, ID: v.Volume})
		is(t, problem.InUse, s.Release(t.Context(), s.pool))
		for range 2 {
			require.NoError(t, s.RemoveVolume(t.Context(), v))
		}
		require.Zero(t, s.kinds(t)[storage.KindVolume])
	})

	t.Run("children of an image", func(t *testing.T) {
		s := newStand(t, fresh())
		a, b := s.volume(), s.volume()
		a.Image, b.Image = s.cached(), s.cached()
		s.make(t, a)
		s.make(t, b)
		require.EqualValues(t, 1, s.src.opened.Load(), "the image is fetched once")
		s.write(t, a, 0, 'a')
		s.write(t, a, 1, 'b')
		s.shows(t, a, shown{0: 'a', 1: 'b'})
		s.shows(t, b, shown{0: imageByte})
		top := s.snap(t, a)
		is(t, problem.InUse, s.EvictImage(t.Context(), *s.cached()))
		require.NoError(t, s.RemoveVolume(t.Context(), b))
		is(t, problem.InUse, s.EvictImage(t.Context(), *s.cached()))
		s.shows(t, top, shown{0: 'a', 1: 'b'})
		require.NoError(t, s.RemoveVolume(t.Context(), top))
		require.NoError(t, s.RemoveVolume(t.Context(), a))
		require.NoError(t, s.EvictImage(t.Context(), *s.cached()))
		unknown := s.volume()
		unknown.Image = &steps.CachedImage{Image: api.NewID(), SHA256: s.sha, Pool: s.pool.Pool, PoolPath: s.pool.Path}
		is(t, problem.NotFound, s.CreateVolume(t.Context(), unknown, s.src, nil))
		require.Empty(t, s.kinds(t))
	})

	t.Run("copies", func(t *testing.T) {
		s := newStand(t, fresh())
		v := s.volume()
		v.Image = s.cached()
		s.make(t, v)
		s.write(t, v, 5, 'a')
		top := s.snap(t, v)
		s.write(t, top, 6, 'b')
		now, then := s.volume(), s.volume()
		now.From = &steps.VolumeFrom{Volume: v.Volume, Layer: top.Layer}
		then.From, then.Size = &steps.VolumeFrom{Volume: v.Volume}, 3*api.MiB
		told := 0
		require.NoError(t, s.CreateVolume(t.Context(), now, s.src, func(api.Progress) { told++ }))
		require.Positive(t, told)
		s.make(t, then)
		s.shows(t, now, shown{0: imageByte, 5: 'a', 6: 'b'})
		s.shows(t, then, shown{0: imageByte, 5: 'a'})
		small := s.volume()
		small.From, small.Size = now.From, api.MiB
		is(t, problem.Invalid, s.CreateVolume(t.Context(), small, s.src, nil))
		lost := s.volume()
		lost.From = &steps.VolumeFrom{Volume: api.NewID()}
		is(t, problem.NotFound, s.CreateVolume(t.Context(), lost, s.src, nil))
		require.NoError(t, s.RemoveVolume(t.Context(), top))
		require.NoError(t, s.RemoveVolume(t.Context(), v))
		require.NoError(t, s.EvictImage(t.Context(), *s.cached()), "a copy stands by itself")
		s.shows(t, now, shown{0: imageByte, 5: 'a', 6: 'b'})
	})

	t.Run("a volume becomes independent of its image", func(t *testing.T) { conformFlat(t, newStand(t, fresh())) })

	t.Run("volumes that several VMs may write to", func(t *testing.T) {
		s := newStand(t, fresh())
		a, b, c, back := s.volume(), s.volume(), s.volume(), s.volume()
		a.Shareable, b.Shareable, c.Shareable = true, true, true
		b.Image = s.cached()
		if err := s.CreateVolume(t.Context(), a, s.src, nil); problem.Is(err, problem.Unsupported) {
			require.Empty(t, s.kinds(t))
			return // the file system cannot have such
		}
		s.make(t, a)
		s.make(t, b)
		src, err := s.LocateVolume(a)
		require.NoError(t, err)
		require.Equal(t, api.FormatRaw, src.Format)
		s.write(t, a, 1, 'a')
		s.shows(t, a, shown{1: 'a'})
		s.shows(t, b, shown{0: imageByte})
		require.NoError(t, s.EvictImage(t.Context(), *s.cached()), "raw files have no parents")
		yes, err := s.StandsAlone(t.Context(), b)
		require.NoError(t, err)
		require.True(t, yes)
		require.NoError(t, s.FlattenVolume(t.Context(), b, nil))
		c.From, c.Size = &steps.VolumeFrom{Volume: a.Volume}, 3*api.MiB
		s.make(t, c)
		s.shows(t, c, shown{1: 'a'})
		back.From = &steps.VolumeFrom{Volume: b.Volume}
		s.make(t, back)
		s.shows(t, back, shown{0: imageByte})
		a.Size *= 2
		for range 2 {
			require.NoError(t, s.GrowVolume(t.Context(), a))
		}
		s.shows(t, a, shown{1: 'a'})
		is(t, problem.Conflict, s.CreateVolume(t.Context(), larger(c), s.src, nil))
		is(t, problem.Unsupported, s.AddSnapshot(t.Context(), steps.SnapshotPlan{Volume: a, Layer: api.NewID()}))
		require.Equal(t, map[string]int{storage.KindVolume: 4}, s.kinds(t))
		for _, v := range []steps.VolumePlan{a, b, c, back} {
			for range 2 {
				require.NoError(t, s.RemoveVolume(t.Context(), v))
			}
		}
		require.Empty(t, s.kinds(t))
	})

	t.Run("a snapshot is undone with all that was written since", func(t *testing.T) {
		s := newStand(t, fresh())
		v := s.volume()
		s.make(t, v)
		plan := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: v, Layer: api.NewID()}
		for range 2 {
			require.NoError(t, s.UndoSnapshot(t.Context(), plan), "it was never taken")
		}
		s.write(t, v, 1, 'a')
		require.NoError(t, s.AddSnapshot(t.Context(), plan))
		top := v
		top.Layer = plan.Layer
		s.write(t, top, 1, 'b')
		s.write(t, top, 2, 'c')
		s.shows(t, v, shown{1: 'a'})
		for range 2 {
			require.NoError(t, s.UndoSnapshot(t.Context(), plan))
		}
		s.shows(t, v, shown{1: 'b', 2: 'c'})
		require.Equal(t, 1, s.kinds(t)[storage.KindVolume])
	})

	t.Run("snapshots are dropped from anywhere", func(t *testing.T) {
		s := newStand(t, fresh())
		v := s.volume()
		s.make(t, v)
		s.write(t, v, 0, 'a')
		one := s.snap(t, v)
		s.write(t, one, 1, 'b')
		two := s.snap(t, one)
		s.write(t, two, 1, 'c')
		two.Size *= 2
		require.NoError(t, s.GrowVolume(t.Context(), two))
		s.write(t, two, 40, 'd')
		three := s.snap(t, two)
		s.write(t, three, 2, 'e')
		s.shows(t, v, shown{0: 'a'})
		s.shows(t, one, shown{0: 'a', 1: 'b'})
		s.shows(t, three, shown{0: 'a', 1: 'c', 2: 'e', 40: 'd'})
		is(t, problem.InUse, s.RemoveVolume(t.Context(), one))

		require.NoError(t, s.drop(t, one, two), "in the middle")
		one.Size = two.Size
		s.shows(t, v, shown{0: 'a'})
		s.shows(t, one, shown{0: 'a', 1: 'c', 40: 'd'})
		s.shows(t, three, shown{0: 'a', 1: 'c', 2: 'e', 40: 'd'})
		require.NoError(t, s.drop(t, v, one), "the oldest")
		v.Size = two.Size
		s.shows(t, v, shown{0: 'a', 1: 'c', 40: 'd'})
		s.shows(t, three, shown{0: 'a', 1: 'c', 2: 'e', 40: 'd'})
		require.NoError(t, s.drop(t, v, three), "the newest")
		s.shows(t, v, shown{0: 'a', 1: 'c', 2: 'e', 40: 'd'})
		require.Equal(t, 1, s.kinds(t)[storage.KindVolume])
	})

	t.Run("going back makes a tree", func(t *testing.T) {
		s := newStand(t, fresh())
		v := s.volume()
		s.make(t, v)
		s.write(t, v, 0, 'a')
		one := s.snap(t, v)
		s.write(t, one, 1, 'b')
		r := steps.VolumeRevert{Snapshot: api.NewID(), Volume: one, Layer: api.NewID()}
		require.NoError(t, s.UndoRevert(t.Context(), r), "it was never done")
		for range 2 {
			require.NoError(t, s.CheckRevert(t.Context(), r))
			require.NoError(t, s.RevertVolume(t.Context(), r))
		}
		other := one
		other.Layer = r.Layer
		s.shows(t, other, shown{0: 'a'})
		s.write(t, other, 2, 'c')
		s.shows(t, one, shown{0: 'a', 1: 'b'})
		for range 2 {
			require.NoError(t, s.UndoRevert(t.Context(), r))
		}
		s.shows(t, one, shown{0: 'a', 1: 'b'})

		require.NoError(t, s.RevertVolume(t.Context(), r))
		s.write(t, other, 2, 'd')
		top := s.snap(t, other)
		s.write(t, top, 3, 'e')
		// A branch that is made on what is merged moves along.
		twig := steps.VolumeRevert{Snapshot: api.NewID(), Volume: top, Frozen: other.Layer, Layer: api.NewID()}
		require.NoError(t, s.RevertVolume(t.Context(), twig))
		leaf := top
		leaf.Layer = twig.Layer
		s.write(t, leaf, 4, 'f')
		is(t, problem.InUse, s.drop(t, v, other))
		is(t, problem.InUse, s.drop(t, v, one))
		s.shows(t, one, shown{0: 'a', 1: 'b'})
		require.NoError(t, s.DropSnapshot(t.Context(), steps.SnapshotDrop{Volume: top, Frozen: one.Layer}, false, nil), "nothing is made on it")
		require.NoError(t, s.drop(t, v, other))
		s.shows(t, v, shown{0: 'a', 2: 'd'})
		s.shows(t, top, shown{0: 'a', 2: 'd', 3: 'e'})
		s.shows(t, leaf, shown{0: 'a', 2: 'd', 4: 'f'})
	})

	t.Run("what a guest has merged is cleared away", func(t *testing.T) {
		s := newStand(t, fresh())
		v := s.volume()
		s.make(t, v)
		s.write(t, v, 0, 'a')
		top := s.snap(t, v)
		d := steps.SnapshotDrop{Volume: top, Child: top.Layer}
		for range 2 {
			require.NoError(t, s.RetireLayer(top))
		}
		s.write(t, v, 0, 'b') // the guest goes on
		for range 2 {
			require.NoError(t, s.DropSnapshot(t.Context(), d, false, nil), "it must not be merged again")
		}
		s.shows(t, v, shown{0: 'b'})
		require.Equal(t, map[string]int{storage.KindVolume: 1}, s.kinds(t))
	})

	t.Run("nonsense", func(t *testing.T) {
		s := newStand(t, fresh())
		for _, spoil := range []func(*steps.VolumePlan){
			func(v *steps.VolumePlan) { v.Volume = "../../etc/passwd" },
			func(v *steps.VolumePlan) { v.Layer = "../x" },
			func(v *steps.VolumePlan) { v.Size = 0 },
			func(v *steps.VolumePlan) { v.Size = 1000 },
			func(v *steps.VolumePlan) { v.Size = -api.GiB },
			func(v *steps.VolumePlan) { v.Pool.Path = "/x/../etc" },
			func(v *steps.VolumePlan) { v.Image, v.From = s.cached(), &steps.VolumeFrom{Volume: api.NewID()} },
			func(v *steps.VolumePlan) { v.From = &steps.VolumeFrom{Volume: "x"} },
			func(v *steps.VolumePlan) { v.Image = &steps.CachedImage{SHA256: "../../x"} },
			func(v *steps.VolumePlan) { v.Image = s.cached(); v.Image.Pool = api.NewID() },
		} {
			v := s.volume()
			spoil(&v)
			is(t, problem.Invalid, s.CreateVolume(t.Context(), v, s.src, nil))
		}
		v := s.volume()
		is(t, problem.NotFound, s.GrowVolume(t.Context(), v))
		is(t, problem.NotFound, s.AddSnapshot(t.Context(), steps.SnapshotPlan{Volume: v, Layer: api.NewID()}))
		is(t, problem.Invalid, s.AddSnapshot(t.Context(), steps.SnapshotPlan{Volume: v, Layer: v.Volume}))
		is(t, problem.NotFound, s.RevertVolume(t.Context(), steps.VolumeRevert{Volume: v, Layer: api.NewID()}))
		is(t, problem.NotFound, s.CheckRevert(t.Context(), steps.VolumeRevert{Volume: v, Layer: api.NewID()}))
		elsewhere := v
		elsewhere.Pool.Path += "-not"
		is(t, problem.NotFound, s.CreateVolume(t.Context(), elsewhere, s.src, nil))
		require.NoError(t, s.RemoveVolume(t.Context(), elsewhere))
		require.Empty(t, s.kinds(t))
	})

	t.Run("many at once", func(t *testing.T) {
		s := newStand(t, fresh())
		base := s.volume()
		base.Image = s.cached()
		s.make(t, base)
		var wg sync.WaitGroup
		errs := make(chan error, 8)
		for i := range cap(errs) {
			v := s.volume()
			if v.Image = s.cached(); i%2 == 0 {
				v.Image, v.From = nil, &steps.VolumeFrom{Volume: base.Volume}
			}
			wg.Go(func() {
				top := v
				top.Layer = api.NewID()
				err := s.CreateVolume(context.Background(), v, s.src, nil)
				if err == nil {
					err = s.AddSnapshot(context.Background(), steps.SnapshotPlan{Volume: v, Layer: top.Layer})
				}
				if err == nil {
					err = s.DropSnapshot(context.Background(), steps.SnapshotDrop{Volume: top, Child: top.Layer}, false, nil)
				}
				if err == nil {
					err = s.RemoveVolume(context.Background(), v)
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
