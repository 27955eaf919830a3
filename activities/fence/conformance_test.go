package fence

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api/problem"
)

// bench is a device with a node that can be seen.
type bench struct {
	Driver
	runs func() bool // whether the node's processes run
	on   func()      // gives the node power
	kill func()      // takes the device's own power
}

// conformance is what every device has to pass.
func conformance(t *testing.T, begin func(t *testing.T) bench) {
	within := func(t *testing.T, d time.Duration) context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		t.Cleanup(cancel)
		return ctx
	}
	t.Run("power off ends what runs and says so", func(t *testing.T) {
		b := begin(t)
		b.on()
		ctx := within(t, giveUp)
		on, err := b.Status(ctx)
		require.NoError(t, err)
		require.True(t, on)
		require.True(t, b.runs())
		for range 2 { // twice is as good as once
			require.NoError(t, b.PowerOff(ctx))
			require.False(t, b.runs(), "when it returns, nothing runs any more")
			on, err = b.Status(ctx)
			require.NoError(t, err)
			require.False(t, on)
		}
	})
	t.Run("a node that is off stays off", func(t *testing.T) {
		b := begin(t)
		require.NoError(t, b.PowerOff(within(t, giveUp)))
		require.False(t, b.runs())
	})
	t.Run("a device without power is unavailable, soon", func(t *testing.T) {
		b := begin(t)
		b.on()
		b.kill()
		began := time.Now()
		err := b.PowerOff(within(t, giveUp))
		require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
		require.ErrorContains(t, err, "does not answer")
		require.Less(t, time.Since(began), giveUp)
		require.True(t, b.runs())
		_, err = b.Status(within(t, giveUp))
		require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
	})
	t.Run("a context that is over is no success", func(t *testing.T) {
		b := begin(t)
		b.on()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.Error(t, b.PowerOff(ctx))
		require.True(t, b.runs())
	})
}

func TestFake(t *testing.T) {
	conformance(t, func(*testing.T) bench {
		f := &Fake{}
		return bench{Driver: f, on: f.On, kill: func() { f.Kill(true) }, runs: func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.on
		}}
	})
	f := &Fake{}
	f.On()
	f.Jam(true)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.Equal(t, problem.Timeout, problem.KindOf(f.PowerOff(ctx)), "an order that is not carried out proves nothing")
}
