package computetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// written is about what one write of a guest of a Bench takes of a limit of bandwidth: its kernel writes pages.
const written = 4 << 10

func limits(t *testing.T, b Bench) {
	g := b.Boot(t, false)
	disk, _ := b.give(t, g, "vdc")
	tune := func(qos api.VolumeQoS) error { return b.TuneDisk(t.Context(), g.Plan.VM, disk.Volume, qos) }
	for _, qos := range []api.VolumeQoS{{IOPS: 4, IOPSBurst: 5}, {Bandwidth: 4 * written, BandwidthBurst: 5 * written}} {
		free := g.Rate(t, "vdc")
		for range 2 {
			require.NoError(t, tune(qos))
		}
		slow := g.Rate(t, "vdc")
		require.Less(t, slow, max(free/2, 6), "free it does %d writes a second", free)
		require.NoError(t, tune(api.VolumeQoS{}))
		again := 0
		sometime(t, "without limits it is not fast again", func() bool { again = g.Rate(t, "vdc"); return again > slow })
		t.Logf("%+v: %d writes a second free, %d limited, %d free", qos, free, slow, again)
	}
	require.Equal(t, problem.NotFound, problem.KindOf(b.TuneDisk(t.Context(), g.Plan.VM, api.NewID(), api.VolumeQoS{})))
}

// sometime waits until something that takes its time is true. It is for what a machine that is busy may keep from happening, but
// nothing makes happen that must not.
func sometime(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for begun := time.Now(); !ok(); {
		require.Less(t, time.Since(begun), Patience, what)
	}
}

// What guests do under limits with bursts: work that takes its time without a burst, and does not within one. After that it is slow.
const (
	slowly = 2  // writes a second
	burst  = 80 // writes
	work   = 16 // writes, as good as free within the burst
)

// Bursts changes the limits of a disk of a guest that runs, with and without bursts, and measures how long the guest needs for the
// same work. Tune does it. It is for guests that write by themselves.
func Bursts(t *testing.T, g BenchGuest, device string, tune func(api.VolumeQoS) error) {
	t.Helper()
	until := func(from int) time.Duration {
		begun := time.Now()
		for g.Counts(t, device) < from+work {
		}
		return time.Since(begun)
	}
	// What is counted begins behind the change where the guest is to be slower after it, and before it where it is to be faster: a burst
	// may be over when the guest is asked for the first time.
	slower := func(qos api.VolumeQoS) time.Duration {
		require.NoError(t, tune(qos))
		return until(g.Counts(t, device))
	}
	faster := func(qos api.VolumeQoS) time.Duration {
		from := g.Counts(t, device)
		require.NoError(t, tune(qos))
		return until(from)
	}
	const least = work / slowly * time.Second
	for name, qos := range map[string][2]api.VolumeQoS{
		"requests": {{IOPS: slowly}, {IOPS: slowly, IOPSBurst: burst}},
		"bytes":    {{Bandwidth: slowly * written}, {Bandwidth: slowly * written, BandwidthBurst: burst * written}},
	} {
		require.NoError(t, tune(api.VolumeQoS{}))
		g.Steady(t, device)
		plain := slower(qos[0])
		require.GreaterOrEqual(t, plain, least*3/4, "%s: a limit without a burst does not bite", name)
		var fast time.Duration
		sometime(t, name+": there is no burst", func() bool { fast = faster(qos[1]); return fast < least*3/4 })
		t.Logf("%s: %d writes take %s at %d a second, %s within a burst", name, work, plain.Round(time.Millisecond), slowly, fast.Round(time.Millisecond))
		// Whoever has spent it is as slow as ever.
		sometime(t, name+": the burst does not end", func() bool { return g.Rate(t, device) <= 2*slowly })
	}
	sometime(t, "without limits it is not fast again", func() bool { return faster(api.VolumeQoS{}) < least*3/4 })
}
