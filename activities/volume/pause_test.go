package volume_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/volume"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// timed is a pool that knows for how long a guest waits.
type timed struct {
	*storage.Fake
	waits time.Duration
}

func (p timed) TimeSnapshot(ctx context.Context, s steps.SnapshotPlan) (time.Duration, error) {
	return p.waits, p.AddSnapshot(ctx, s)
}

// TestGuestWaitsAsLongAsItsPoolSays: a guest that goes on does not wait for what comes before and after the moment; one whose file
// systems are at rest does.
func TestGuestWaitsAsLongAsItsPoolSays(t *testing.T) {
	k := newCephKeeper(t)
	const waits = time.Microsecond // less than the fake guest takes
	var suite testsuite.WorkflowTestSuite
	k.env = suite.NewTestActivityEnvironment()
	volume.Register(k.env, &activities.Host{}, k.guest, timed{k.pool, waits})
	take := func(freeze bool) steps.SnapshotTaken {
		taken, err := ask(k.bench, steps.TakeSnapshot, steps.SnapshotPlan{Snapshot: api.NewID(), Volume: k.v, VM: k.vm, Freeze: freeze})
		require.NoError(t, err)
		return taken
	}
	require.Equal(t, steps.SnapshotTaken{Pause: waits}, take(false))
	frozen := take(true)
	require.True(t, frozen.Frozen)
	require.Greater(t, frozen.Pause, waits)
	_, err := k.guest.Stop(t.Context(), k.vm.VM, true, 0, nil)
	require.NoError(t, err)
	require.Zero(t, take(true))
}
