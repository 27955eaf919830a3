package storage_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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

// Every driver is killed in the middle of each thing that it does to volumes. Afterwards whoever comes next does it again, or takes it
// back, and finds all data where it was.

// deed is one thing that a driver does, for a process of its own that may be killed meanwhile.
type deed struct {
	Kind     string
	Volume   *steps.VolumePlan   `json:",omitempty"`
	Snapshot *steps.SnapshotPlan `json:",omitempty"`
	Drop     *steps.SnapshotDrop `json:",omitempty"`
	Revert   *steps.VolumeRevert `json:",omitempty"`

	Image string `json:",omitempty"` // file of the image that the volume is made of
	Dir   string `json:",omitempty"` // of the driver of what is mounted, or of Ceph
	Key   string `json:",omitempty"` // of a user of Ceph
}

// on does it.
func (d deed) on(ctx context.Context, p storage.Pool, src storage.Source) error {
	switch d.Kind {
	case "create":
		return p.CreateVolume(ctx, *d.Volume, src, nil)
	case "remove":
		return p.RemoveVolume(ctx, *d.Volume)
	case "grow":
		return p.GrowVolume(ctx, *d.Volume)
	case "evict":
		return p.EvictImage(ctx, *d.Volume.Image)
	case "flatten":
		return p.FlattenVolume(ctx, *d.Volume, nil)
	case "snap":
		return p.AddSnapshot(ctx, *d.Snapshot)
	case "unsnap":
		return p.UndoSnapshot(ctx, *d.Snapshot)
	case "drop":
		return p.DropSnapshot(ctx, *d.Drop, false, nil)
	case "revert":
		return p.RevertVolume(ctx, *d.Revert)
	case "unrevert":
		return p.UndoRevert(ctx, *d.Revert)
	}
	return problem.New(problem.Invalid, "there is no deed %q", d.Kind)
}

// plans are those that it has.
func (d deed) plans() (out []*steps.VolumePlan) {
	switch {
	case d.Volume != nil:
		out = append(out, d.Volume)
	case d.Snapshot != nil:
		out = append(out, &d.Snapshot.Volume)
	case d.Drop != nil:
		out = append(out, &d.Drop.Volume)
	case d.Revert != nil:
		out = append(out, &d.Revert.Volume)
	}
	return out
}

const deedEnv = "NEXTSTACK_TEST_DEED"

// imageFile is a source with one image.
type imageFile string

func (f imageFile) Seed(context.Context, string) (api.Seed, error) { return api.Seed{}, nil }

func (f imageFile) OpenImage(context.Context, string) (io.ReadCloser, int64, error) {
	in, err := os.Open(string(f))
	if err != nil {
		return nil, 0, err
	}
	info, err := in.Stat()
	return in, info.Size(), err
}

// doDeed is the process.
func doDeed(text string) {
	var d deed
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		panic(err)
	}
	pool := d.plans()[0].Pool
	var p storage.Pool
	switch pool.Type {
	case api.PoolDir:
		p = storage.NewDir(nil)
	case api.PoolRBD:
		p = cephDriver(d)
	default:
		p = storage.NewMounts(storage.NewDir(nil), d.Dir, nil)
	}
	if u := p.Usage(context.Background(), pool); u.Error != "" { // connected, before it begins
		fmt.Println(u.Error)
		os.Exit(1)
	}
	_ = unix.Kill(unix.Getpid(), 0) // now: see killAt
	if err := d.on(context.Background(), p, imageFile(d.Image)); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// killer is what a stand is, too, if what it asks for can be done by a process that is killed.
type killer interface {
	// kill has it be done, and whoever does it die before the nth change; 0: it comes to its end.
	kill(t *testing.T, d deed, n int) killed
}

func (files) kill(t *testing.T, d deed, n int) killed {
	t.Helper()
	return runDeed(t, d, d.plans()[0].Pool.Path+"/", n)
}

func runDeed(t *testing.T, d deed, where string, n int) killed {
	t.Helper()
	b, err := json.Marshal(d)
	require.NoError(t, err)
	k, err := killAt(deedEnv+"="+string(b), where, n)
	if errors.Is(err, unix.EPERM) {
		t.Skip("SKIPPED, NOT TESTED: drivers that are killed. This machine does not let a process be traced: run as root, in a container with the capability SYS_PTRACE, and with kernel.yama.ptrace_scope below 3")
	}
	require.NoError(t, err)
	return k
}

// sight is what a volume shows.
type sight struct {
	v    steps.VolumePlan
	want shown
}

// story is one thing that is done, with what is true before and after it.
type story struct {
	do, undo      deed    // undo: none if it can only be done again
	instead       deed    // what somebody may want instead, after a death; none: nothing
	then          []sight // what there is after that
	before, after []sight
	left, leaves  map[string]int // what is in the pool of it, by kind
	torn          bool           // what the volume shows while it is done is neither, and nobody has it open
	sizes         bool           // while it is done a volume may have either size
	ids           []string       // of all that is made
	image         *steps.CachedImage
}

// crashes are all things that are done to volumes.
var crashes = []struct {
	name  string
	ready func(t *testing.T, s *stand) story
}{
	{"create", func(_ *testing.T, s *stand) story {
		v := s.volume()
		return story{
			do: deed{Kind: "create", Volume: &v}, undo: deed{Kind: "remove", Volume: &v}, after: []sight{{v, shown{}}},
			leaves: map[string]int{storage.KindVolume: 1}, ids: []string{v.Volume},
		}
	}},
	{"clone from an image", func(t *testing.T, s *stand) story {
		v := s.volume()
		file, c := s.another(t, 1)
		v.Image = c
		return story{
			do: deed{Kind: "create", Volume: &v, Image: file}, undo: deed{Kind: "remove", Volume: &v}, after: []sight{{v, shown{0: imageByte}}},
			leaves: map[string]int{storage.KindVolume: 1}, ids: []string{v.Volume}, image: c,
		}
	}},
	{"copy", func(t *testing.T, s *stand) story {
		of, before := s.written(t)
		v := s.volume()
		v.From = &steps.VolumeFrom{Volume: of.Volume}
		return story{
			do: deed{Kind: "create", Volume: &v}, undo: deed{Kind: "remove", Volume: &v}, before: []sight{before}, after: []sight{before, {v, before.want}},
			left: map[string]int{storage.KindVolume: 1}, leaves: map[string]int{storage.KindVolume: 2}, ids: []string{of.Volume, v.Volume},
		}
	}},
	{"grow", func(t *testing.T, s *stand) story {
		v, before := s.written(t)
		bigger := v
		bigger.Size = 40 * api.MiB
		return story{
			do: deed{Kind: "grow", Volume: &bigger}, before: []sight{before}, after: []sight{{bigger, before.want}},
			left: map[string]int{storage.KindVolume: 1}, leaves: map[string]int{storage.KindVolume: 1}, ids: []string{v.Volume}, sizes: true,
		}
	}},
	{"snapshot", func(t *testing.T, s *stand) story {
		v, before := s.written(t)
		plan := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: v, Layer: api.NewID()}
		top := s.goesOn(plan)
		return story{
			do: deed{Kind: "snap", Snapshot: &plan}, undo: deed{Kind: "unsnap", Snapshot: &plan}, before: []sight{before}, after: []sight{{top, before.want}},
			left: map[string]int{storage.KindVolume: 1}, leaves: s.snapped(1), ids: []string{v.Volume, plan.Layer},
		}
	}},
	{"revert", func(t *testing.T, s *stand) story {
		v, before := s.written(t)
		plan := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: v, Layer: api.NewID()}
		require.NoError(t, s.AddSnapshot(t.Context(), plan))
		top := s.goesOn(plan)
		s.write(t, top, 3, 'c')
		s.write(t, top, 7, 'd')
		now := sight{top, shown{3: 'c', 7: 'd', 20: 'b'}}
		r := steps.VolumeRevert{Snapshot: plan.Snapshot, Volume: top, Frozen: v.Layer, Layer: api.NewID()}
		back := top
		if s.Capabilities(s.pool).Files {
			back.Layer = r.Layer
		}
		c := story{
			do: deed{Kind: "revert", Revert: &r}, undo: deed{Kind: "unrevert", Revert: &r}, before: []sight{now}, after: []sight{{back, before.want}},
			left: s.snapped(1), leaves: s.snapped(2), ids: []string{v.Volume, plan.Layer, r.Layer},
		}
		if !s.Capabilities(s.pool).Files {
			c.torn, c.leaves = true, map[string]int{storage.KindVolume: 1, storage.KindSnapshot: 1, storage.KindKept: 1}
		}
		return c
	}},
	{"drop a snapshot", func(t *testing.T, s *stand) story {
		v, _ := s.written(t)
		one := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: v, Layer: api.NewID()}
		require.NoError(t, s.AddSnapshot(t.Context(), one))
		mid := s.goesOn(one)
		s.write(t, mid, 3, 'c')
		s.write(t, mid, 9, 'd')
		two := steps.SnapshotPlan{Snapshot: api.NewID(), Volume: mid, Layer: api.NewID()}
		require.NoError(t, s.AddSnapshot(t.Context(), two))
		top := s.goesOn(two)
		s.write(t, top, 11, 'e')
		now := sight{top, shown{3: 'c', 9: 'd', 11: 'e', 20: 'b'}}
		d := steps.SnapshotDrop{Snapshot: one.Snapshot, Volume: top, Frozen: v.Layer, Child: one.Layer}
		return story{
			do: deed{Kind: "drop", Drop: &d}, before: []sight{now}, after: []sight{now},
			left: s.snapped(2), leaves: s.snapped(1), ids: []string{v.Volume, one.Layer, two.Layer},
		}
	}},
	{"flatten", func(t *testing.T, s *stand) story {
		v := s.volume()
		_, v.Image = s.another(t, 1)
		s.make(t, v)
		s.write(t, v, 20, 'b')
		now := sight{v, shown{0: imageByte, 20: 'b'}}
		return story{
			do: deed{Kind: "flatten", Volume: &v}, before: []sight{now}, after: []sight{now},
			left: map[string]int{storage.KindVolume: 1}, leaves: map[string]int{storage.KindVolume: 1}, ids: []string{v.Volume}, image: v.Image,
		}
	}},
	{"evict an image", func(t *testing.T, s *stand) story {
		v := s.volume()
		_, v.Image = s.another(t, 1)
		require.NoError(t, s.CreateVolume(t.Context(), v, s.src, nil))
		require.NoError(t, s.RemoveVolume(t.Context(), v))
		return story{
			do: deed{Kind: "evict", Volume: &v}, instead: deed{Kind: "create", Volume: &v}, then: []sight{{v, shown{0: imageByte}}},
			ids: []string{v.Image.SHA256, v.Volume}, image: v.Image,
		}
	}},
	{"delete", func(t *testing.T, s *stand) story {
		v, _ := s.written(t)
		return story{do: deed{Kind: "remove", Volume: &v}, left: map[string]int{storage.KindVolume: 1}, ids: []string{v.Volume}}
	}},
}

// written is a volume with something in it.
func (s *stand) written(t *testing.T) (steps.VolumePlan, sight) {
	t.Helper()
	v := s.volume()
	require.NoError(t, s.CreateVolume(t.Context(), v, s.src, nil))
	s.write(t, v, 3, 'a')
	s.write(t, v, 20, 'b')
	return v, sight{v, shown{3: 'a', 20: 'b'}}
}

// goesOn is a volume as it is written to after a snapshot.
func (s *stand) goesOn(p steps.SnapshotPlan) steps.VolumePlan {
	v := p.Volume
	if s.Capabilities(s.pool).Files {
		v.Layer = p.Layer
	}
	return v
}

// snapped is what there is of a volume with so many snapshots.
func (s *stand) snapped(n int) map[string]int {
	if s.Capabilities(s.pool).Files {
		return map[string]int{storage.KindVolume: n + 1}
	}
	return map[string]int{storage.KindVolume: 1, storage.KindSnapshot: n}
}

// another makes an image that no pool has, of which so many slots are not empty.
func (s *stand) another(t *testing.T, slots int) (file string, c *steps.CachedImage) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "image")
	id := api.NewID() // which is in it, so that its checksum is one of its own
	program(t, "qemu-img", "create", "-q", "-f", "qcow2", file, "1M")
	program(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d 0 %d", imageByte, slots*slot), file)
	f, err := os.OpenFile(file, os.O_RDWR|os.O_APPEND, 0)
	require.NoError(t, err)
	_, err = f.WriteString(id + strings.Repeat("\x00", 512-len(id)))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	sum := sha256.Sum256(b)
	s.src.mu.Lock()
	s.src.images[id] = b
	s.src.mu.Unlock()
	return file, &steps.CachedImage{Image: id, SHA256: hex.EncodeToString(sum[:]), Pool: s.pool.Pool, PoolPath: s.pool.Path, PoolType: s.pool.Type, PoolSource: s.pool.Source}
}

// of returns what is in the pool of these, whole or half-made.
func (s *stand) of(t *testing.T, ids []string) map[string]int {
	t.Helper()
	list, err := s.List(t.Context(), s.pool)
	require.NoError(t, err)
	n := map[string]int{}
	for _, f := range list {
		if slices.ContainsFunc(ids, func(id string) bool { return strings.Contains(f.Path, id) || f.Of == id }) {
			n[f.Kind]++
		}
	}
	return n
}

// see looks at volumes.
func (s *stand) see(t *testing.T, all []sight, anySize bool) {
	t.Helper()
	for _, w := range all {
		got, size := s.read(t, w.v)
		require.Equal(t, w.want, got)
		if !anySize {
			require.Equal(t, w.v.Size, size)
		}
	}
}

// killAnywhere is what every driver passes. Most is in how many places, at most, each thing is interrupted, unless the environment
// (NEXTSTACK_TEST_KILLS) has another number; at a time says how many are tried at once.
func killAnywhere(t *testing.T, s *stand, most, atATime int) {
	k, ok := s.hand.(killer)
	require.True(t, ok)
	if n, err := strconv.Atoi(os.Getenv("NEXTSTACK_TEST_KILLS")); err == nil {
		most = n
	}
	sem := make(chan struct{}, atATime)
	var wg sync.WaitGroup
	defer func() {
		wg.Wait()
		if t.Failed() {
			return
		}
		require.Empty(t, s.kinds(t), "nothing is left over")
		require.NoError(t, s.Release(t.Context(), s.pool))
	}()
	for _, step := range crashes {
		wg.Go(func() {
			sem <- struct{}{}
			total := 0
			t.Run(step.name, func(t *testing.T) {
				c := step.ready(t, s)
				whole := k.kill(t, c.do, 0)
				require.False(t, whole.Died)
				require.Empty(t, whole.Said)
				require.Positive(t, whole.Changes)
				s.end(t, c)
				total = whole.Changes
			})
			<-sem
			at := spread(total, most)
			if total > 0 {
				t.Logf("%s: killed at %v of %d changes", step.name, at, total)
			}
			for i, n := range at {
				wg.Go(func() {
					sem <- struct{}{}
					defer func() { <-sem }()
					t.Run(fmt.Sprintf("%s/at %d of %d", step.name, n, total), func(t *testing.T) {
						c := step.ready(t, s)
						got := k.kill(t, c.do, n)
						require.True(t, got.Died || s.pool.Type == api.PoolRBD, "it ended before: %+v", got) // what librbd sends is another thing each time
						s.recover(t, c, i%2 == 0)
					})
				})
			}
		})
	}
}

// spread returns at most so many of the numbers up to n, the later rather than the first ones: what is done begins with what nobody sees.
func spread(n, most int) (out []int) {
	for i := 1; i <= min(n, most); i++ {
		at := n * (i + 1) / (most + 2)
		if n <= most {
			at = i
		}
		out = append(out, max(1, at))
	}
	return out
}

// recover does what comes after a death: it is done again, or taken back.
func (s *stand) recover(t *testing.T, c story, first bool) {
	t.Helper()
	if !c.torn {
		s.see(t, c.before, c.sizes)
	}
	if !first && c.undo.Kind != "" {
		require.NoError(t, c.undo.on(t.Context(), s.Pool, s.src), "it is taken back")
		s.see(t, c.before, false)
		require.Equal(t, orEmpty(c.left), s.of(t, c.ids))
	}
	if !first && c.instead.Kind != "" {
		require.NoError(t, c.instead.on(t.Context(), s.Pool, s.src), "something else is done")
		s.see(t, c.then, false)
		s.clear(t, c)
		return
	}
	require.NoError(t, c.do.on(t.Context(), s.Pool, s.src), "it is done again")
	s.end(t, c)
}

// end looks at what was done, takes it back if that can be, and clears away.
func (s *stand) end(t *testing.T, c story) {
	t.Helper()
	s.see(t, c.after, false)
	require.Equal(t, orEmpty(c.leaves), s.of(t, c.ids))
	if c.undo.Kind != "" {
		require.NoError(t, c.undo.on(t.Context(), s.Pool, s.src))
		s.see(t, c.before, false)
		require.Equal(t, orEmpty(c.left), s.of(t, c.ids))
	}
	s.clear(t, c)
}

// clear removes all that there is of something.
func (s *stand) clear(t *testing.T, c story) {
	t.Helper()
	list, err := s.List(t.Context(), s.pool)
	require.NoError(t, err)
	slices.Reverse(list)
	for round := 0; len(s.of(t, c.ids)) > 0 && round < 5; round++ { // those that others are made on can go only after those
		for _, f := range list {
			if slices.ContainsFunc(c.ids, func(id string) bool { return strings.Contains(f.Path, id) || f.Of == id }) {
				_ = s.Remove(t.Context(), s.pool, f)
			}
		}
	}
	require.Empty(t, s.of(t, c.ids))
	if c.image != nil {
		require.NoError(t, s.EvictImage(t.Context(), *c.image))
	}
}

func orEmpty(m map[string]int) map[string]int {
	if m == nil {
		return map[string]int{}
	}
	return m
}

func TestDirKilled(t *testing.T) {
	s := dirStand(t)
	s.hand = files{leaks: true}
	killAnywhere(t, s, 4, 4)
}
