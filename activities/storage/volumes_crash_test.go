package storage_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

func dirStand(t *testing.T) *stand { return newStand(t, storage.NewDir(nil)) }

// TestLeftovers: what a crash leaves at any other moment does not keep anybody from going on, nor from going back.
func TestLeftovers(t *testing.T) {
	file := func(s *stand, v steps.VolumePlan) string {
		src, err := s.LocateVolume(v)
		require.NoError(t, err)
		return src.File
	}
	t.Run("whole but without its name", func(t *testing.T) {
		s := dirStand(t)
		v := s.volume()
		s.make(t, v)
		top := s.snap(t, v)
		for _, w := range []steps.VolumePlan{top, v} {
			require.NoError(t, os.Rename(file(s, w), file(s, w)+".tmp"))
		}
		s.make(t, v)
		require.NoError(t, s.AddSnapshot(t.Context(), steps.SnapshotPlan{Volume: v, Layer: top.Layer}))
		s.shows(t, top, shown{})
		require.Equal(t, map[string]int{storage.KindVolume: 2}, s.kinds(t))
	})
	t.Run("rubbish", func(t *testing.T) {
		s := dirStand(t)
		v, top := s.volume(), s.volume()
		top.Volume, top.Layer = v.Volume, api.NewID()
		child := s.volume()
		child.Image = s.cached()
		for _, w := range []steps.VolumePlan{v, top, child} {
			require.NoError(t, os.WriteFile(file(s, w)+".tmp", []byte("half"), 0o600))
		}
		s.make(t, v)
		s.make(t, child)
		require.NoError(t, s.AddSnapshot(t.Context(), steps.SnapshotPlan{Volume: v, Layer: top.Layer}))
		require.Equal(t, map[string]int{storage.KindVolume: 3, storage.KindBacking: 1}, s.kinds(t))
		require.NoError(t, os.WriteFile(file(s, top)+".tmp", []byte("half"), 0o600))
		require.NoError(t, s.RemoveVolume(t.Context(), top))
		require.Equal(t, map[string]int{storage.KindVolume: 2, storage.KindBacking: 1}, s.kinds(t))
	})
	t.Run("merged and partly moved along", func(t *testing.T) {
		s := dirStand(t)
		v := s.volume()
		s.make(t, v)
		s.write(t, v, 0, 'a')
		one := s.snap(t, v)
		s.write(t, one, 1, 'b')
		two := s.snap(t, one)
		s.write(t, two, 2, 'c')
		leaf := two
		leaf.Layer = api.NewID()
		require.NoError(t, s.RevertVolume(t.Context(), steps.VolumeRevert{Volume: two, Frozen: one.Layer, Layer: leaf.Layer}))
		s.write(t, leaf, 3, 'd')
		program(t, "qemu-img", "commit", "-q", "-d", "-f", "qcow2", file(s, one))
		program(t, "qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", file(s, v), file(s, leaf))
		require.NoError(t, s.drop(t, v, one))
		s.shows(t, two, shown{0: 'a', 1: 'b', 2: 'c'})
		s.shows(t, leaf, shown{0: 'a', 1: 'b', 3: 'd'})
		require.Equal(t, map[string]int{storage.KindVolume: 3}, s.kinds(t))
	})
	t.Run("merged by a guest whose agent died", func(t *testing.T) {
		s := dirStand(t)
		v := s.volume()
		s.make(t, v)
		s.write(t, v, 0, 'a')
		one := s.snap(t, v)
		s.write(t, one, 0, 'b')
		two := s.snap(t, one)
		program(t, "qemu-img", "commit", "-q", "-d", "-f", "qcow2", file(s, one))
		program(t, "qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", file(s, v), file(s, two))
		d := steps.SnapshotDrop{Volume: two, Child: one.Layer}
		require.NoError(t, s.DropSnapshot(t.Context(), d, true, nil))
		s.shows(t, two, shown{0: 'b'})
		require.Equal(t, map[string]int{storage.KindVolume: 2}, s.kinds(t))
	})
}

// TestVolumesThatAreOpen: what a process has open as QEMU does is neither changed nor removed, by nobody.
func TestVolumesThatAreOpen(t *testing.T) {
	s := dirStand(t)
	v := s.volume()
	s.make(t, v)
	s.write(t, v, 0, 'a')
	top := s.snap(t, v)
	src, err := s.LocateVolume(top)
	require.NoError(t, err)
	cmd := exec.Command("qemu-io", "-f", "qcow2", src.File)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	_, err = in.Write([]byte("write -P 98 0 64k\n"))
	require.NoError(t, err)
	b := make([]byte, 512)
	_, err = out.Read(b) // it is open now
	require.NoError(t, err)

	is(t, problem.InUse, s.RemoveVolume(t.Context(), top))
	is(t, problem.InUse, s.UndoSnapshot(t.Context(), steps.SnapshotPlan{Volume: v, Layer: top.Layer}))
	bigger := top
	bigger.Size *= 2
	is(t, problem.InUse, s.GrowVolume(t.Context(), bigger))
	c := s.volume()
	c.From = &steps.VolumeFrom{Volume: v.Volume, Layer: top.Layer}
	is(t, problem.InUse, s.CreateVolume(t.Context(), c, s.src, nil))
	list, err := s.List(t.Context(), s.pool)
	require.NoError(t, err)
	for _, f := range list {
		is(t, problem.InUse, s.Remove(t.Context(), s.pool, f))
	}
	c.From.Layer = ""
	s.make(t, c) // what is frozen can be read
	s.shows(t, c, shown{0: 'a'})
	require.NoError(t, in.Close())
	require.NoError(t, cmd.Wait())
	require.NoError(t, s.RemoveVolume(t.Context(), top))
}

func TestFullPoolTakesNoCopy(t *testing.T) {
	s := dirStand(t)
	small := filepath.Join(t.TempDir(), "small")
	require.NoError(t, os.MkdirAll(small, 0o755))
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=3M"); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: a full pool. A tmpfs cannot be mounted (%v): run as root", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(small, unix.MNT_DETACH)) })
	s.pool.Path, s.pool.Pool = small, api.NewID()
	_, err := s.Prepare(t.Context(), s.pool)
	require.NoError(t, err)
	v := s.volume()
	s.make(t, v)
	for i := range 20 {
		s.write(t, v, i, 'a')
	}
	top := s.snap(t, v)
	for i := range 8 {
		s.write(t, top, i+20, 'b')
	}
	before, _ := s.read(t, top)
	c := s.volume()
	c.From = &steps.VolumeFrom{Volume: v.Volume, Layer: top.Layer}
	is(t, problem.NoCapacity, s.CreateVolume(t.Context(), c, s.src, nil))
	require.Equal(t, map[string]int{storage.KindVolume: 2}, s.kinds(t))
	rest := filepath.Join(small, "rest")
	_ = os.WriteFile(rest, make([]byte, 4*api.MiB), 0o600) // fills it up
	is(t, problem.NoCapacity, s.drop(t, v, top))
	after, _ := s.read(t, top)
	require.Equal(t, before, after, "nothing is lost")
	require.NoError(t, os.Remove(rest))
	require.NoError(t, s.drop(t, v, top))
	after, _ = s.read(t, v)
	require.Equal(t, before, after)
}
