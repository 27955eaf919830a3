package nodes

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
)

var errNotYet = errors.New("not yet")

// silent is longer than the pause between two reports.
const silent = 7 * time.Second

// testCutOff takes the management network of a node away for a while. Its guests go on, and so does everything once it is back.
func testCutOff(t *testing.T, w *world) {
	host := w.Hosts[1] // that of the witness, whose pings must go on
	require.NoError(t, host.Cut(t.Context()))
	t.Cleanup(func() { _ = host.Heal(t.Context()) })
	cut := time.Now()
	faults.Add(1)
	require.NoError(t, stack.Poll(within(t, time.Minute), 100*time.Millisecond, func() error {
		if time.Since(cut) < silent {
			return errNotYet
		}
		return nil
	}))
	a, err := host.Record(t.Context())
	require.NoError(t, err)
	require.Less(t, a.Status.Observed.Sub(cut), time.Second, "nobody hears it, and yet it has reported")
	begun := time.Now()
	require.NoError(t, host.Heal(t.Context()))
	require.NoError(t, host.AwaitReport(within(t, time.Minute), begun))
	t.Logf("the node reported %s after it was back", time.Since(begun).Round(100*time.Millisecond))
	w.succeed(t, ask(t, w, small("back", host), ""))
	w.runsOn(t, "back", host)
	w.remove(t, api.KindVM, "back")
}

// testPowerCut takes the power of a node away. When it is back, its VM is off, and can be started.
func testPowerCut(t *testing.T, w *world) {
	host := w.Hosts[0]
	request := small("dark", host)
	request.Pool = stack.Shared
	w.succeed(t, ask(t, w, request, ""))
	w.runsOn(t, "dark", host)
	vm, err := client.Get[*api.VM](t.Context(), w.Client, project, "dark")
	require.NoError(t, err)

	require.NoError(t, host.PowerCut(t.Context()))
	faults.Add(1)
	left, err := w.QEMUs(vm.ID)
	require.NoError(t, err)
	require.Empty(t, left)
	require.False(t, host.Powered())
	require.NoError(t, stack.Poll(within(t, 10*time.Second), 10*time.Millisecond, func() error {
		if host.Agent.Running() {
			return errNotYet
		}
		return nil
	}))

	begun := time.Now()
	require.NoError(t, host.PowerOn(t.Context()))
	require.NoError(t, host.StartAgent(""))
	require.NoError(t, host.AwaitReport(within(t, time.Minute), begun))
	require.NoError(t, stack.Poll(within(t, time.Minute), 50*time.Millisecond, func() error {
		vm, err := client.Get[*api.VM](t.Context(), w.Client, project, "dark")
		if err == nil && vm.Status.Phase != api.PhaseStopped {
			err = errNotYet
		}
		return err
	}), "the VM of a node that lost its power is not stopped when the node is back")
	op, err := w.Client.StartVM(t.Context(), project, "dark", client.Write{})
	require.NoError(t, err)
	w.succeed(t, op.ID)
	w.runsOn(t, "dark", host)
	w.remove(t, api.KindVM, "dark")
}
