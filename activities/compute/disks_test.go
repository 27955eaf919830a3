package compute_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"strconv"
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
func TestFakeDisks(t *testing.T) { computetest.Disks(t, fakeBench(t)) }

func TestFakeCheckpoints(t *testing.T) { computetest.Checkpoints(t, fakeBench(t)) }

func fakeBench(t *testing.T) computetest.Bench {
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
		wrote, then := map[string]string{}, map[string]map[string]string{} // by what is in memory
		g.Steady = func(t *testing.T, device string) time.Duration {
			written++
			text := strings.Repeat("x", written) + ";"
			if was := then[f.Memory(g.Plan.VM)]; was != nil { // it may have gone back
				wrote = maps.Clone(was)
			}
			wrote[device] += text
			then[strconv.Itoa(written)] = maps.Clone(wrote)
			f.Remember(g.Plan.VM, strconv.Itoa(written))
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
			const free, page = 1000, 4 << 10
			rate, qos := int64(free), find(device).QoS
			for _, limit := range []int64{qos.IOPS, qos.Bandwidth / page} {
				if limit > 0 {
					rate = min(rate, limit)
				}
			}
			return int(rate)
		}
		g.Counts = func(t *testing.T, _ string) int {
			n, err := strconv.Atoi("0" + f.Memory(g.Plan.VM))
			require.NoError(t, err)
			return n
		}
		return g
	}
	return computetest.Bench{
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
		Memory: func(t *testing.T) string {
			path, err := pool.LocateMemory(steps.MemoryFile{Memory: api.NewID(), Pool: place})
			require.NoError(t, err)
			return path
		},
		Begun: func(t *testing.T, memory string) {
			require.Eventually(t, func() bool {
				_, there, err := pool.ReadMemory(memory)
				return err == nil && there
			}, computetest.Patience, time.Millisecond)
		},
	}
}

func TestRealCheckpoints(t *testing.T) {
	computetest.Checkpoints(t, computetest.Sandbox(t, "a", "b").Bench(t))
}

func TestRealDisks(t *testing.T) {
	computetest.Disks(t, computetest.Sandbox(t, "a", "b").Bench(t))
}
