package crash

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
)

// TestExternalEngine runs the control plane against an etcd and a Temporal that are processes of their own. That VMs are made
// and the stack came up at all is the first half of the test.
func TestExternalEngine(t *testing.T) {
	w := &world{Stack: stack.Up(t, stack.Options{External: true})}
	t.Run("ThroughExternalEtcd", func(t *testing.T) {
		w.create(t, "through")
		w.remove(t, "through")
		w.clean(t)
	})
	t.Run("TemporalAway", func(t *testing.T) { testTemporalAway(t, w) })
}

// away is how long Temporal is gone.
const away = 20 * time.Second

// testTemporalAway asks for twenty things while Temporal is not there. All are accepted, and all are done once it is back.
func testTemporalAway(t *testing.T, w *world) {
	require.NoError(t, w.Temporal.Kill())
	begun := time.Now()
	var ids []string
	for i := range 20 {
		var op *api.Operation
		var err error
		if i%2 == 0 {
			op, err = client.Create(t.Context(), w.Client, project, small(fmt.Sprintf("patient-%02d", i)), client.Write{})
		} else {
			op, err = client.Create(t.Context(), w.Client, project, &api.VPCCreate{Name: fmt.Sprintf("patient-%02d", i), CIDR: "10.4.0.0/16"}, client.Write{})
		}
		require.NoError(t, err, "request %d, while Temporal is away", i)
		ids = append(ids, op.ID)
	}
	t.Logf("20 requests were accepted within %s", time.Since(begun).Round(time.Millisecond))
	back := time.NewTimer(time.Until(begun.Add(away)))
	defer back.Stop()
	select {
	case <-back.C: // this span of time is what is tested
	case <-t.Context().Done():
	}
	for _, id := range ids {
		op, err := w.Client.Operation(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, api.OpAccepted, op.State, "Temporal was away, and yet: %s", stack.Describe(op))
	}
	require.NoError(t, w.Temporal.Start())
	since := time.Now()
	w.succeed(t, ids...)
	t.Logf("they were done %s after Temporal came back", time.Since(since).Round(100*time.Millisecond))
	var vms, vpcs []string
	for i := range 20 {
		if name := fmt.Sprintf("patient-%02d", i); i%2 == 0 {
			vms = append(vms, name)
		} else {
			vpcs = append(vpcs, name)
		}
	}
	w.remove(t, vms...)
	w.removeAll(t, api.KindVPC, vpcs...)
	w.clean(t)
}
