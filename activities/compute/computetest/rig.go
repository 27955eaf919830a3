// Package computetest has what tests of guests that move need: two nodes, and the suite that every driver passes on them.
package computetest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Guest is a VM on its way between two nodes.
type Guest struct {
	Plan     steps.VMPlan
	At, To   compute.DomainFiles // its files on the first and on the second node
	Restless bool                // it changes its memory faster than it can be sent
}

// Rig is two nodes whose guests can move from A to B.
type Rig struct {
	A, B compute.Driver
	// Boot makes a guest that runs on A. With shared its disk is the same on both nodes, else B has a fresh copy of its image.
	Boot func(t *testing.T, shared, restless bool) Guest
	// Slow makes a move of a guest that is not restless take longer than any test, until moves are quick again.
	Slow func(m *steps.MoveDomain) (quick func())
	// Linger makes a move after which the guest is still defined on A, as when A's hypervisor dies before it can forget it.
	Linger func(t *testing.T, m steps.MoveDomain)
	// Disk makes a disk that is the same on both nodes.
	Disk func(t *testing.T) compute.DiskSource
	// Running says how many hypervisor processes have the VM, wherever, not counting those that only listen.
	Running func(t *testing.T, vm string) int
}

// begin makes what the source is asked for, as the workflow does.
func (r *Rig) begin(t *testing.T, g Guest) steps.MoveDomain {
	t.Helper()
	leaving, err := r.A.Describe(t.Context(), g.Plan.VM)
	require.NoError(t, err)
	in, err := r.B.CheckIncoming(t.Context(), steps.IncomingRequest{Plan: g.Plan, Leaving: leaving, Copy: !g.Plan.Disk.Shared}, g.To)
	require.NoError(t, err)
	return steps.MoveDomain{Plan: g.Plan, Incoming: in, Copy: !g.Plan.Disk.Shared, Timeout: 2 * time.Minute}
}

// AtSource checks that the guest runs at A and nowhere else, once all is over.
func (r *Rig) AtSource(t *testing.T, vm string) {
	t.Helper()
	r.once(t, r.A, r.B, vm)
}

// AtTarget checks that the guest runs at B and nowhere else, once all is over.
func (r *Rig) AtTarget(t *testing.T, vm string) {
	t.Helper()
	r.once(t, r.B, r.A, vm)
}

func (r *Rig) once(t *testing.T, here, there compute.Driver, vm string) {
	t.Helper()
	s, err := here.Look(t.Context(), vm)
	require.NoError(t, err)
	require.Equal(t, steps.DomainState{Exists: true, Phase: api.PhaseRunning}, s)
	s, err = there.Look(t.Context(), vm)
	require.NoError(t, err)
	require.Equal(t, steps.DomainState{Phase: api.PhaseStopped}, s)
	require.Eventually(t, func() bool { return r.Running(t, vm) == 1 }, 10*time.Second, 50*time.Millisecond, "it must run exactly once")
}

// Outcome is the answer of a call of Migrate.
type Outcome struct {
	Moved steps.Moved
	Err   error
}

// Go calls Migrate and returns at once. News gets one value when the move is known to be under way.
func Go(ctx context.Context, d compute.Driver, m steps.MoveDomain) (done chan Outcome, news chan api.Progress) {
	done, news = make(chan Outcome, 1), make(chan api.Progress, 1)
	go func() {
		moved, err := d.Migrate(ctx, m, func(p api.Progress) {
			select {
			case news <- p:
			default:
			}
		})
		done <- Outcome{moved, err}
	}()
	return done, news
}

// UnderWay waits until the move has been told of.
func UnderWay(t *testing.T, done chan Outcome, news chan api.Progress) {
	t.Helper()
	select {
	case p := <-news:
		require.NotNil(t, p.Migrate)
		require.NotEmpty(t, p.Text)
	case out := <-done:
		t.Fatalf("the move was over before it was told of: %+v %v", out.Moved, out.Err)
	case <-time.After(30 * time.Second):
		t.Fatal("the move does not begin")
	}
}

// Over waits for the answer of Migrate.
func Over(t *testing.T, done chan Outcome) Outcome {
	t.Helper()
	select {
	case out := <-done:
		return out
	case <-time.After(2 * time.Minute):
		t.Fatal("the move does not end")
		return Outcome{}
	}
}
