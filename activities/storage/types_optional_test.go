package storage_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// plainPool is a driver that can do nothing that it need not.
type plainPool struct{ storage.Pool }

// TestTheDriverOfATypeIsAskedForWhatItNeedNotBeAbleTo: what one driver can do is not hidden by the choice among them.
func TestTheDriverOfATypeIsAskedForWhatItNeedNotBeAbleTo(t *testing.T) {
	w := newWorld(t, &storage.Fake{})
	_, err := w.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	p := w.plan()
	require.NoError(t, w.MakeDisk(t.Context(), p, w.src, nil))
	pools := storage.ByType{api.PoolDir: w.Pool, api.PoolRBD: plainPool{}}

	cached := steps.CachedImage{Image: p.Disk.Image, SHA256: p.Disk.ImageSHA256, Pool: w.pool.Pool, PoolPath: w.pool.Path}
	copied, err := pools.OpenCopy(t.Context(), cached)
	require.NoError(t, err)
	require.NoError(t, copied.Close())
	cached.PoolType = api.PoolRBD
	_, err = pools.OpenCopy(t.Context(), cached)
	is(t, problem.Unsupported, err)
	cached.PoolType = "tape"
	_, err = pools.OpenCopy(t.Context(), cached)
	is(t, problem.Unsupported, err)

	v := steps.VolumePlan{Volume: api.NewID(), Name: "data", Pool: w.pool, Size: api.GiB}
	require.NoError(t, pools.CreateVolume(t.Context(), v, w.src, nil))
	sent, err := pools.OpenVolume(t.Context(), v)
	require.NoError(t, err)
	require.NoError(t, sent.Close())
	v.Pool.Type = api.PoolRBD
	_, err = pools.OpenVolume(t.Context(), v)
	is(t, problem.Unsupported, err)
}

// TestDisksOfAVMAreLocatedAsTheyAreMade: by type, a VM has the same files as its pools alone would say.
func TestDisksOfAVMAreLocatedAsTheyAreMade(t *testing.T) {
	w := newWorld(t, &storage.Fake{})
	p := w.plan()
	p.Data = []steps.DataDisk{
		{Volume: api.NewID(), Pool: w.pool, Device: "vdc", Shareable: true},
		{Volume: api.NewID(), Pool: w.pool, Device: "vdd", Layer: api.NewID()},
	}
	want, err := w.Locate(p)
	require.NoError(t, err)
	got, err := storage.ByType{api.PoolDir: w.Pool}.Locate(p)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.Equal(t, api.FormatRaw, got.Data[0].Format)
}
