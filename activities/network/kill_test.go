//go:build !race

// Not with race detection: a connection that breaks in the moment in which it is made shows a race in libovsdb 0.8.1 itself
// (it adds to a WaitGroup that is waited for already; https://github.com/ovn-kubernetes/libovsdb/pull/497).

package network

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// TestKilledInTheMiddle kills the server again and again while ports come and go, and in the end all is as it should be.
func TestKilledInTheMiddle(t *testing.T) {
	s, o := newTestOVN(t)
	ctx := testContext(t)
	w := aWorld()
	w.wire(ctx, t, o)
	var stop atomic.Bool
	var calls, refused atomic.Int64
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			p := steps.PortWiring{Port: uid(2000 + i), Project: "default", Subnet: uid(11), MAC: fmt.Sprintf("52:54:00:00:02:%02x", i), Address: fmt.Sprintf("10.1.0.%d", 200+i), Hostname: "shared", SecurityGroups: []string{uid(21)}}
			for !stop.Load() {
				for _, err := range []error{o.WirePorts(ctx, []steps.PortWiring{p}), o.UnwirePorts(ctx, []string{p.Port})} {
					calls.Add(1)
					if err != nil {
						refused.Add(1)
						if !problem.TraitsOf(problem.KindOf(err)).Retry {
							t.Errorf("not to be retried: %v", err)
						}
					}
				}
			}
		})
	}
	for range 5 {
		before := calls.Load()
		require.Eventually(t, func() bool { return calls.Load() > before+40 }, 30*time.Second, time.Millisecond)
		s.kill()
		s.start()
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d calls, %d refused, over 5 kills", calls.Load(), refused.Load())
	for i := range 4 {
		require.NoError(t, o.UnwirePorts(ctx, []string{uid(2000 + i)}))
	}
	settled(ctx, t, o, w)
}
