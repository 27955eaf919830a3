package storage_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// What drivers say of themselves (storage.Capabilities) is held against what they do.

// twins are two nodes that are asked for the same pool.
type twins struct {
	*stand
	other *stand
}

// capability holds a driver against what it says of one thing.
type capability func(t *testing.T, s twins, yes bool)

// capabilities has all that drivers say yes or no to.
var capabilities = map[string]capability{
	"Shared":       shared,
	"Files":        ofFiles,
	"Clone":        clones,
	"Flatten":      flattens,
	"Thin":         thin,
	"Discard":      discards,
	"GrowOnline":   growsOnline,
	"MultiWriter":  severalWriters,
	"SharedSnaps":  sharedSnaps,
	"LiveSnapshot": liveSnapshots,
	"Checkpoint":   keepsMemory,
	"DropAnywhere": dropsAnywhere,
	"Capture":      captures,
	"Checksum":     checksums,
}

// conformCapabilities is what every driver passes. Newly returns two nodes, of which the first has the pool prepared.
func conformCapabilities(t *testing.T, newly func(t *testing.T) twins) {
	s := newly(t)
	says := reflect.ValueOf(s.Capabilities(s.pool))
	for _, f := range reflect.VisibleFields(says.Type()) {
		if f.Type.Kind() != reflect.Bool {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			check := capabilities[f.Name]
			require.NotNil(t, check, "nothing holds drivers against what they say of %s", f.Name)
			check(t, s, says.FieldByName(f.Name).Bool())
		})
	}
}

// kind is the type of the pool, which a node of a sandbox may have in the place of a directory.
func (s twins) kind() string { return s.Capabilities(s.pool).Type }

// full is a volume of an image that has something in all of it.
func (s *stand) full(t *testing.T) (steps.VolumePlan, shown) {
	t.Helper()
	v, want := s.volume(), shown{}
	for i := range int(api.MiB) / slot {
		want[i] = imageByte
	}
	if _, v.Image = s.another(t, len(want)); !s.counted() {
		want = shown{0: imageByte}
	}
	return v, want
}

func shared(t *testing.T, s twins, yes bool) {
	v := s.volume()
	s.make(t, v)
	s.write(t, v, 1, 'a')
	p := s.pool
	p.Agent, p.Join = api.NewID(), yes
	_, err := s.other.Prepare(t.Context(), p)
	switch {
	case yes:
		require.NoError(t, err)
		s.other.shows(t, v, shown{1: 'a'})
		s.other.write(t, v, 2, 'b')
		s.shows(t, v, shown{1: 'a', 2: 'b'})
		require.NoError(t, s.other.RemoveVolume(t.Context(), v))
	case err == nil: // it has a pool of its own
		is(t, problem.NotFound, s.other.GrowVolume(t.Context(), v))
	default:
		is(t, problem.Conflict, err)
		require.Contains(t, problem.From(err).Fix, "--shared")
	}
}

func ofFiles(t *testing.T, s twins, yes bool) {
	v := s.volume()
	s.make(t, v)
	src, err := s.LocateVolume(v)
	require.NoError(t, err)
	require.Equal(t, yes, src.File != "")
	require.Equal(t, !yes, src.RBD != nil)
	before := s.kinds(t)[storage.KindVolume]
	plan := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: v, Layer: api.NewID()}
	require.NoError(t, s.AddSnapshot(t.Context(), plan))
	top, err := s.LocateVolume(s.goesOn(plan))
	require.NoError(t, err)
	require.Equal(t, yes, src.File != top.File, "a snapshot adds a file")
	require.Equal(t, yes, s.kinds(t)[storage.KindVolume] == before+1)
}

func clones(t *testing.T, s twins, yes bool) {
	v, want := s.full(t)
	s.make(t, v)
	s.shows(t, v, want)
	list, err := s.List(t.Context(), s.pool)
	require.NoError(t, err)
	for _, f := range list {
		if f.ID == v.Volume {
			require.Equal(t, yes, f.On == v.Image.SHA256, "%+v", f)
		}
	}
	if g, ok := s.hand.(counter); ok {
		require.Equal(t, yes, g.uses(t, v) < api.MiB/2, "the image was copied")
	}
}

// flattens: while a guest has the volume open, see TestRealFlatten in activities/volume, and test/crash.
func flattens(t *testing.T, s twins, yes bool) {
	v, want := s.full(t)
	s.make(t, v)
	if !yes {
		is(t, problem.Unsupported, s.FlattenVolume(t.Context(), v, nil))
		return
	}
	require.NoError(t, s.FlattenVolume(t.Context(), v, nil))
	alone, err := s.StandsAlone(t.Context(), v)
	require.NoError(t, err)
	require.True(t, alone)
	require.NoError(t, s.EvictImage(t.Context(), *v.Image))
	s.shows(t, v, want)
}

// counted reports whether what volumes take can be counted.
func (s *stand) counted() bool {
	_, ok := s.hand.(counter)
	return ok
}

func thin(t *testing.T, s twins, yes bool) {
	g, ok := s.hand.(counter)
	if !ok {
		return
	}
	v := s.volume()
	v.Size = 64 * api.MiB
	require.NoError(t, s.CreateVolume(t.Context(), v, s.src, nil))
	before := g.uses(t, v)
	require.Equal(t, yes, before < api.MiB)
	for i := range 16 {
		s.write(t, v, i, 'a')
	}
	after := g.uses(t, v)
	require.GreaterOrEqual(t, after, api.MiB)
	if yes {
		require.Less(t, after-before, 4*api.MiB+api.MiB/2, "what was written, in whole objects")
	}
	plan := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: v, Layer: api.NewID()}
	require.NoError(t, s.AddSnapshot(t.Context(), plan))
	if top := s.goesOn(plan); yes && top.Layer != v.Layer {
		require.Less(t, g.uses(t, top), api.MiB, "a snapshot copies nothing")
	} else if yes {
		require.Equal(t, after, g.uses(t, v), "a snapshot copies nothing")
	}
}

func discards(t *testing.T, s twins, yes bool) {
	c, ok := s.hand.(counter)
	if !ok {
		return
	}
	v := s.volume()
	v.Size = 16 * api.MiB
	require.NoError(t, s.CreateVolume(t.Context(), v, s.src, nil))
	const slots = int(8*api.MiB) / slot
	w, _, closed := s.hand.(guest).open(t, v)
	for i := range slots {
		w(i, 'a')
	}
	closed()
	before := c.uses(t, v)
	require.GreaterOrEqual(t, before, 8*api.MiB)
	c.discard(t, v, slots)
	after := c.uses(t, v)
	if s.kind() == api.PoolNFS && !strings.Contains(s.pool.Source.Options, "vers=") {
		t.Logf("the best version that the server has gives back %d bytes of %d; only vers=4.2 says that it does", before-after, before)
		return
	}
	require.Equal(t, yes, after < before-4*api.MiB, "%d bytes are in use, before it were %d", after, before)
}

// growsOnline: what the driver leaves to the hypervisor that has the volume open is in TestRealVolumes of activities/volume, with a guest
// that sees it.
func growsOnline(t *testing.T, s twins, yes bool) {
	v := s.volume()
	s.make(t, v)
	bigger := v
	bigger.Size *= 2
	w, grow, closed := s.hand.(guest).open(t, v)
	w(3, 'a')
	err := s.GrowVolume(t.Context(), bigger)
	if s.Capabilities(s.pool).Files {
		if s.counted() { // in memory nobody has anything open
			is(t, problem.InUse, err) // it is for whoever has it open
		}
		if yes {
			grow(bigger.Size)
		}
	} else if yes {
		require.NoError(t, err)
	} else {
		require.Error(t, err)
	}
	if yes {
		w(40, 'b') // beyond what was its end
	}
	closed()
	if yes {
		s.shows(t, bigger, shown{3: 'a', 40: 'b'})
	}
}

// writable makes a volume for several writers, or reports that there are none here.
func (s twins) writable(t *testing.T) (steps.VolumePlan, bool) {
	v := s.volume()
	v.Shareable = true
	err := s.CreateVolume(t.Context(), v, s.src, nil)
	if problem.Is(err, problem.Unsupported) && s.kind() == api.PoolGluster {
		// What lies below a pool is tried out when it is asked for: docs/storage.md says so. Nothing is left of the try.
		require.ErrorContains(t, err, "says that it has zeroed parts of files, and has not")
		require.Empty(t, s.of(t, []string{v.Volume}))
		return v, false
	}
	if problem.Is(err, problem.Unsupported) {
		require.False(t, s.Capabilities(s.pool).MultiWriter)
		return v, false
	}
	require.NoError(t, err)
	return v, true
}

// severalWriters: guests that have it at once are in TestDisksOfSeveralVMs of activities/compute/libvirt.
func severalWriters(t *testing.T, s twins, yes bool) {
	v, ok := s.writable(t)
	if !ok {
		return
	}
	require.True(t, yes)
	src, err := s.LocateVolume(v)
	require.NoError(t, err)
	require.Equal(t, api.FormatRaw, src.Format, "who has a qcow2 file open has its tables in memory")
	s.write(t, v, 1, 'a')
	g := s.hand.(guest)
	one, _, closeOne := g.open(t, v)
	two, _, closeTwo := g.open(t, v)
	for i := range 4 {
		one(2*i+2, 'b')
		two(2*i+3, 'c')
	}
	closeOne()
	closeTwo()
	s.shows(t, v, shown{1: 'a', 2: 'b', 3: 'c', 4: 'b', 5: 'c', 6: 'b', 7: 'c', 8: 'b', 9: 'c'})
}

func sharedSnaps(t *testing.T, s twins, yes bool) {
	v, ok := s.writable(t)
	if !ok {
		return
	}
	s.write(t, v, 1, 'a')
	plan := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: v, Layer: api.NewID()}
	err := s.AddSnapshot(t.Context(), plan)
	if !yes {
		is(t, problem.Unsupported, err)
		require.Equal(t, map[string]int{storage.KindVolume: 1}, s.of(t, []string{v.Volume, plan.Layer}))
		return
	}
	require.NoError(t, err)
	s.write(t, v, 1, 'b')
	require.NoError(t, s.RevertVolume(t.Context(), steps.VolumeRevert{Snapshot: plan.Snapshot, Volume: v, Layer: api.NewID()}))
	s.shows(t, v, shown{1: 'a'})
}

// liveSnapshots: that a guest goes on in what was made here is in TestRealVolumes of activities/volume, and with Ceph in test/crash.
func liveSnapshots(t *testing.T, s twins, yes bool) {
	v := s.volume()
	s.make(t, v)
	w, _, closed := s.hand.(guest).open(t, v)
	w(3, 'a')
	plan := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: v, Layer: api.NewID()}
	err := s.AddSnapshot(t.Context(), plan)
	if !yes {
		is(t, problem.InUse, err)
		closed()
		return
	}
	require.NoError(t, err)
	now := s.goesOn(plan)
	if now.Layer == v.Layer { // else its hypervisor writes to the new layer
		w(3, 'b')
	}
	closed()
	s.write(t, now, 4, 'c')
	require.NoError(t, s.RevertVolume(t.Context(), steps.VolumeRevert{Snapshot: plan.Snapshot, Volume: now, Frozen: v.Layer, Layer: api.NewID()}))
	s.shows(t, v, shown{3: 'a'})
}

// keepsMemory: guests that go back to that very moment are in TestRealCheckpoints, TestRealCheckpointsInCeph and TestRealMixedCheckpoints of activities/volume.
func keepsMemory(t *testing.T, s twins, yes bool) {
	m := steps.MemoryFile{Memory: api.NewID(), Pool: s.pool}
	var path string
	var err error
	if n, far := s.Pool.(*farNode); far {
		path, err = n.placeMemory(t.Context(), m)
	} else {
		path, err = storage.ByType{s.pool.Type: s.Pool}.PlaceMemory(t.Context(), m, api.MiB)
	}
	if !yes {
		is(t, problem.Unsupported, err)
		return
	}
	require.NoError(t, err)
	require.True(t, filepath.IsAbs(path))
	if n, far := s.Pool.(*farNode); far {
		m.Seal = true
		written, err := n.placeMemory(t.Context(), m)
		require.NoError(t, err)
		require.NotEqual(t, path, written)
	}
}

func dropsAnywhere(t *testing.T, s twins, yes bool) {
	v := s.volume()
	s.make(t, v)
	s.write(t, v, 0, 'a')
	one := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: v, Layer: api.NewID()}
	require.NoError(t, s.AddSnapshot(t.Context(), one))
	mid := s.goesOn(one)
	s.write(t, mid, 1, 'b')
	two := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: mid, Layer: api.NewID()}
	require.NoError(t, s.AddSnapshot(t.Context(), two))
	r := steps.VolumeRevert{Snapshot: one.Snapshot, Volume: s.goesOn(two), Frozen: v.Layer, Layer: api.NewID()}
	require.NoError(t, s.RevertVolume(t.Context(), r))
	now := r.Volume
	if s.Capabilities(s.pool).Files {
		now.Layer = r.Layer
	}
	s.write(t, now, 2, 'c') // both the other snapshot and the volume go on from the first one
	err := s.DropSnapshot(t.Context(), steps.SnapshotDrop{Snapshot: one.Snapshot, Volume: now, Frozen: v.Layer, Child: r.Layer}, false, nil)
	if yes {
		require.NoError(t, err)
	} else {
		is(t, problem.InUse, err)
	}
	s.shows(t, now, shown{0: 'a', 2: 'c'})
	back := steps.VolumeRevert{Snapshot: two.Snapshot, Volume: now, Frozen: mid.Layer, Layer: api.NewID()}
	require.NoError(t, s.RevertVolume(t.Context(), back))
	if s.Capabilities(s.pool).Files {
		now.Layer = back.Layer
	}
	s.shows(t, now, shown{0: 'a', 1: 'b'})
}

func captures(t *testing.T, s twins, yes bool) {
	v := s.volume()
	s.make(t, v)
	s.write(t, v, 3, 'a')
	from, ok := s.Pool.(storage.Opened)
	require.Equal(t, yes, ok)
	if !yes {
		return
	}
	d, err := from.OpenVolume(t.Context(), v)
	require.NoError(t, err)
	defer d.Close()
	if !s.counted() {
		return // what a twin gives is no image
	}
	file := filepath.Join(t.TempDir(), "captured")
	f, err := os.Create(file)
	require.NoError(t, err)
	_, err = io.Copy(f, io.NewSectionReader(d, 0, d.Size()))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	raw := filepath.Join(t.TempDir(), "raw")
	program(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", file, raw)
	got, size := shows(t, raw)
	require.Equal(t, shown{3: 'a'}, got)
	require.Equal(t, v.Size, size)
}

// checksums: it is a fact of Ceph, whose sandbox is asked for it. Below pools of files it is not known, so that none says yes.
func checksums(t *testing.T, s twins, yes bool) {
	c, ok := s.hand.(interface{ checksums(t *testing.T) bool })
	require.Equal(t, yes, ok && c.checksums(t) || s.kind() == api.PoolRBD && !ok)
}

func TestDirCapabilities(t *testing.T) {
	conformCapabilities(t, func(t *testing.T) twins { return twinsOf(t, storage.NewDir(nil), storage.NewDir(nil), true) })
	s := twinsOf(t, storage.NewDir(nil), storage.NewDir(nil), false)
	require.False(t, s.Capabilities(s.pool).Shared)
	shared(t, s, false)
}

func TestFakeCapabilities(t *testing.T) {
	for _, share := range []bool{false, true} {
		t.Run(fmt.Sprintf("dir shared %v", share), func(t *testing.T) {
			conformCapabilities(t, func(t *testing.T) twins {
				net, dir := &storage.Fake{}, os.TempDir()
				if !share {
					dir = "/none"
				}
				return twinsOf(t, &storage.Fake{Net: net, NetDir: dir}, &storage.Fake{Net: net, NetDir: dir}, share)
			})
		})
	}
	t.Run("rbd", func(t *testing.T) {
		conformCapabilities(t, func(t *testing.T) twins {
			net := &storage.Fake{}
			a, b := &storage.Fake{Net: net}, &storage.Fake{Net: net}
			w := newWorldOn(t, a, func(*testing.T) steps.PoolOnNode { return cephTwin() }, empty)
			w.pool.Agent = api.NewID()
			_, err := w.Prepare(t.Context(), w.pool)
			require.NoError(t, err)
			return twins{&stand{world: w, hand: memory{net}}, &stand{world: w.as(b), hand: memory{net}}}
		})
	})
}

// twinsOf returns the stands of two nodes, of which a has a pool.
func twinsOf(t *testing.T, a, b storage.Pool, shared bool) twins {
	t.Helper()
	w := newWorld(t, a)
	w.pool.Shared, w.pool.Agent = shared, api.NewID()
	_, err := w.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	return twins{handed(w), handed(w.as(b))}
}
