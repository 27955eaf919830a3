package compute_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/computetest"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// unasked is a storage.Source of which nobody asks anything.
type unasked struct{}

func (unasked) Seed(context.Context, string) (api.Seed, error) { return api.Seed{}, nil }
func (unasked) OpenImage(context.Context, string) (io.ReadCloser, int64, error) {
	return nil, 0, errors.New("there are no images")
}

// TestFakeDisks: the guests of a fake write when they are looked at, and how fast follows from their limits.
func TestFakeDisks(t *testing.T) {
	f, pool := &compute.Fake{}, &storage.Fake{}
	f.Backing = pool
	place := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: "/pool", Shared: true}
	_, err := pool.Prepare(t.Context(), place)
	require.NoError(t, err)
	volumes := map[string]steps.VolumePlan{} // by file
	source := func(t *testing.T, v steps.VolumePlan) compute.DiskSource {
		s, err := pool.LocateVolume(v)
		require.NoError(t, err)
		volumes[s.File] = v
		return s
	}
	empty := func(t *testing.T, size int64) compute.DiskSource {
		v := steps.VolumePlan{Volume: api.NewID(), Pool: place, Size: size}
		require.NoError(t, pool.CreateVolume(t.Context(), v, unasked{}, nil))
		return source(t, v)
	}
	written := 0
	boot := func(t *testing.T) computetest.BenchGuest {
		g := computetest.BenchGuest{Plan: steps.VMPlan{VM: api.NewID(), Name: "bench", Disk: steps.DiskPlan{Volume: api.NewID()}}}
		g.Files.Disk = empty(t, api.MiB)
		require.NoError(t, f.Create(t.Context(), g.Plan, g.Files))
		find := func(device string) *compute.FakeDisk {
			for _, d := range f.Disks(g.Plan.VM) {
				if d.Device == device || d.Volume == device {
					return &d
				}
			}
			return nil
		}
		g.Sees = func(t *testing.T, volume string, size int64) {
			d := find(volume)
			require.Equal(t, size == 0, d == nil)
			if d != nil {
				_, has, err := pool.Shows(volumes[d.Source.File])
				require.NoError(t, err)
				require.Equal(t, size, has)
			}
		}
		wrote := map[string]string{}
		g.Steady = func(t *testing.T, device string) time.Duration {
			written++
			text := strings.Repeat("x", written) + ";"
			wrote[device] += text
			require.NoError(t, pool.Write(volumes[find(device).Source.File], text))
			return time.Millisecond
		}
		g.Intact = func(t *testing.T, device string, s compute.DiskSource) {
			got, _, err := pool.Shows(volumes[s.File])
			require.NoError(t, err)
			require.NotEmpty(t, got)
			require.Equal(t, wrote[device], got)
		}
		g.Rate = func(_ *testing.T, device string) int {
			if limit := find(device).QoS.IOPS; limit > 0 {
				return int(limit)
			}
			return 1000
		}
		return g
	}
	computetest.Disks(t, computetest.Bench{
		Driver: f,
		Boot: func(t *testing.T, agent bool) computetest.BenchGuest {
			f.Mute(!agent)
			f.Clingy(false)
			return boot(t)
		},
		Empty: empty,
		Layer: func(t *testing.T, below compute.DiskSource) compute.DiskSource {
			top := volumes[below.File]
			top.Layer = api.NewID()
			require.NoError(t, pool.AddSnapshot(t.Context(), steps.SnapshotPlan{Volume: volumes[below.File], Layer: top.Layer}))
			return source(t, top)
		},
		Stubborn: func(t *testing.T) computetest.BenchGuest {
			f.Clingy(true)
			return boot(t)
		},
	})
}

func TestRealDisks(t *testing.T) {
	computetest.Disks(t, computetest.Sandbox(t, "a", "b").Bench(t))
}
