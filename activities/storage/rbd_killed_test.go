//go:build ceph && cgo

package storage_test

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
	"time"

	cephrbd "github.com/ceph/go-ceph/rbd"
	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/rbd"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// cephDriver makes the driver of Ceph for a deed.
func cephDriver(d deed) storage.Pool {
	return rbd.New(rbd.Config{Key: func(context.Context, string) (string, error) { return d.Key, nil }, TempDir: d.Dir})
}

// mortal is a hand for pools of Ceph whose driver may die.
type mortal struct {
	devices
	key string
}

func (m mortal) kill(t *testing.T, d deed, n int) killed {
	t.Helper()
	d.Dir, d.Key = t.TempDir(), m.key
	return runDeed(t, d, network, n)
}

// TestRBDKilled: what is counted is what librbd sends.
func TestRBDKilled(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "killed")
	c.impatient(t)
	d := rbd.New(rbd.Config{Key: key, TempDir: t.TempDir()})
	w := newWorldOn(t, d, func(*testing.T) steps.PoolOnNode { return p }, empty)
	_, err := d.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	k, err := key(t.Context(), "")
	require.NoError(t, err)
	killAnywhere(t, &stand{world: w, hand: mortal{devices{c}, k}}, 1, 12)
}

// open implements guest.
func (d devices) open(t *testing.T, v steps.VolumePlan) (write func(int, byte), grow func(int64), closed func()) {
	t.Helper()
	io, err := d.conn.OpenIOContext(v.Pool.Source.Name)
	require.NoError(t, err)
	img, err := cephrbd.OpenImage(io, "disk-"+v.Volume, cephrbd.NoSnapshot)
	require.NoError(t, err)
	return func(at int, b byte) {
			_, err := img.WriteAt(bytes.Repeat([]byte{b}, slot), int64(at)*slot)
			require.NoError(t, err)
		}, func(size int64) {
			require.NoError(t, img.Resize(uint64(size)))
		}, func() {
			require.NoError(t, img.Close())
			io.Destroy()
		}
}

// uses implements counter.
func (d devices) uses(t *testing.T, v steps.VolumePlan) (sum int64) {
	t.Helper()
	d.on(t, v, func(img *cephrbd.Image) {
		require.NoError(t, img.DiffIterate(cephrbd.DiffIterateConfig{
			Length: uint64(v.Size), IncludeParent: cephrbd.ExcludeParent, WholeObject: cephrbd.EnableWholeObject,
			Callback: func(_, length uint64, exists int, _ interface{}) int {
				if exists != 0 {
					sum += int64(length)
				}
				return 0
			},
		}))
	})
	return sum
}

// discard implements counter.
func (d devices) discard(t *testing.T, v steps.VolumePlan, slots int) {
	t.Helper()
	d.on(t, v, func(img *cephrbd.Image) {
		_, err := img.Discard(0, uint64(slots*slot))
		require.NoError(t, err)
	})
}

// checksums reports whether all that the cluster keeps is kept by what has checksums.
func (d devices) checksums(t *testing.T) bool {
	t.Helper()
	var all []struct {
		Store string `json:"osd_objectstore"`
	}
	require.NoError(t, json.Unmarshal([]byte(d.cli(t, "osd", "metadata", "-f", "json")), &all))
	require.NotEmpty(t, all)
	for _, osd := range all {
		if osd.Store != "bluestore" {
			return false
		}
	}
	return d.cli(t, "config", "get", "osd.0", "bluestore_csum_type") != "none"
}

func TestRBDCapabilities(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "capable")
	node := func() storage.Pool {
		return rbd.New(rbd.Config{Key: key, TempDir: t.TempDir(), MemoryDir: t.TempDir(), WatchPatience: time.Second})
	}
	conformCapabilities(t, func(t *testing.T) twins {
		w := newWorldOn(t, node(), func(*testing.T) steps.PoolOnNode { return p }, empty)
		w.pool.Agent = api.NewID()
		_, err := w.Prepare(t.Context(), w.pool)
		require.NoError(t, err)
		return twins{&stand{world: w, hand: devices{c}}, &stand{world: w.as(node()), hand: devices{c}}}
	})
}
