//go:build ceph && cgo

package storage_test

import (
	"net"
	"testing"
	"time"

	cephrbd "github.com/ceph/go-ceph/rbd"
	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// TestRBDTellsAnAuditOfSnapshotsWatchersAndParents: what the devices of a pool are made on, keep, and are open for.
func TestRBDTellsAnAuditOfSnapshotsWatchersAndParents(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "audited")
	d := c.other(t, p, key)
	w := newWorldOn(t, d, func(*testing.T) steps.PoolOnNode { return p }, empty)
	_, err := d.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	s := &stand{world: w, hand: devices{c}}
	image := w.cached()
	child := s.volume()
	child.Image = &image
	s.make(t, child)
	alone := s.volume()
	s.make(t, alone)
	find := func(path string) *steps.FileFound {
		t.Helper()
		list, err := d.List(t.Context(), w.pool)
		require.NoError(t, err)
		for i := range list {
			if list[i].Path == w.pool.Path+"/"+path {
				return &list[i]
			}
		}
		return nil
	}
	name := "disk-" + child.Volume
	found := find(name)
	require.Equal(t, w.sha, found.On)
	require.Empty(t, found.Watchers, "an audit does not watch what it looks at")
	require.Empty(t, found.Defect)
	require.Empty(t, find("disk-"+alone.Volume).On)
	require.Nil(t, find("image-"+w.sha+"@base"), "that is as it must be")

	io, err := c.conn.OpenIOContext(p.Source.Name)
	require.NoError(t, err)
	defer io.Destroy()
	open := func(name string) *cephrbd.Image {
		t.Helper()
		img, err := cephrbd.OpenImage(io, name, cephrbd.NoSnapshot)
		require.NoError(t, err)
		return img
	}

	t.Run("snapshots", func(t *testing.T) {
		ours, made := api.NewID(), map[string]string{}
		require.NoError(t, d.AddSnapshot(t.Context(), steps.SnapshotPlan{Snapshot: ours, Volume: child}))
		made["snap-"+ours] = storage.KindSnapshot
		img := open(name)
		for snap, kind := range map[string]string{
			"snap-" + api.NewID(): storage.KindSnapshot, "kept-" + api.NewID(): storage.KindKept, "copy-" + api.NewID(): storage.KindKept,
			"stranger": storage.KindForeign, "snap-x": storage.KindForeign,
		} {
			made[snap] = kind
			s, err := img.CreateSnapshot(snap)
			require.NoError(t, err)
			if kind == storage.KindSnapshot {
				require.NoError(t, s.Protect())
			}
		}
		require.NoError(t, img.Close())
		base := open("image-" + w.sha)
		other, err := base.CreateSnapshot("other")
		require.NoError(t, err)
		require.Equal(t, storage.KindForeign, find("image-"+w.sha+"@other").Kind)
		require.NoError(t, other.Remove())
		require.NoError(t, base.Close())
		for snap, kind := range made {
			f := find(name + "@" + snap)
			require.NotNil(t, f, snap)
			require.Equal(t, kind, f.Kind, snap)
			require.Equal(t, child.Volume, f.Of)
			if kind == storage.KindForeign {
				is(t, problem.Invalid, d.Remove(t.Context(), w.pool, *f))
				continue
			}
			require.Equal(t, snap[5:], f.ID)
			if snap == "snap-"+ours {
				continue
			}
			for range 2 {
				require.NoError(t, d.Remove(t.Context(), w.pool, *f))
			}
			require.Nil(t, find(name+"@"+snap))
		}
		require.NotNil(t, find(name+"@snap-"+ours), "nobody has asked for it to go")
		img = open(name)
		for _, snap := range []string{"stranger", "snap-x"} {
			require.NoError(t, img.GetSnapshot(snap).Remove())
		}

		// One that something is made of stays.
		needed := find(name + "@snap-" + ours)
		require.NoError(t, img.GetSnapshot("snap-"+ours).Protect())
		require.NoError(t, img.Close())
		o := cephrbd.NewRbdImageOptions()
		defer o.Destroy()
		require.NoError(t, o.SetUint64(cephrbd.ImageOptionCloneFormat, 1))
		require.NoError(t, cephrbd.CloneImage(io, name, "snap-"+ours, io, "clone", o))
		err = d.Remove(t.Context(), w.pool, *needed)
		is(t, problem.InUse, err)
		require.ErrorContains(t, err, "clone is made of it")
		require.NoError(t, cephrbd.RemoveImage(io, "clone"))
		require.NoError(t, d.Remove(t.Context(), w.pool, *needed))
	})

	t.Run("watchers", func(t *testing.T) {
		img := open(name)
		f := find(name)
		require.Len(t, f.Watchers, 1)
		require.True(t, f.Watchers[0].Here, "this is where it was opened: %+v", f.Watchers)
		require.NotEmpty(t, f.Watchers[0].Addr)
		host, _, err := net.SplitHostPort(f.Watchers[0].Addr)
		require.NoError(t, err)
		require.NotNil(t, net.ParseIP(host), "%+v", f.Watchers)
		require.NoError(t, img.Close())
		require.Eventually(t, func() bool { return len(find(name).Watchers) == 0 }, 10*time.Second, 100*time.Millisecond)
	})

	t.Run("a parent that has another name", func(t *testing.T) {
		img := cephrbd.GetImage(io, "image-"+w.sha)
		require.NoError(t, img.Rename("gone"))
		require.Equal(t, w.sha, find(name).On)
		require.Nil(t, find("image-"+w.sha))
		require.NoError(t, cephrbd.GetImage(io, "gone").Rename("image-"+w.sha))
	})

	t.Run("a parent that is lost", func(t *testing.T) {
		img, err := cephrbd.OpenImageReadOnly(io, "image-"+w.sha, cephrbd.NoSnapshot)
		require.NoError(t, err)
		id, err := img.GetId()
		require.NoError(t, err)
		require.NoError(t, img.Close())
		require.NoError(t, io.Delete("rbd_header."+id))
		f := find(name)
		require.NotNil(t, f)
		require.NotEmpty(t, f.Defect)
		require.NotNil(t, find("disk-"+alone.Volume), "the rest is told of all the same")
		require.Empty(t, find("disk-"+alone.Volume).Defect)
	})
}
