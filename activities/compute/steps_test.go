package compute_test

import (
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

func runStep[In, Out any](t *testing.T, env *testsuite.TestActivityEnvironment, s steps.Step[In, Out], seq int, in In) (out Out, err error) {
	t.Helper()
	v, err := env.ExecuteActivity(s.Name, steps.Envelope[In]{Token: steps.Token{Operation: "op", Step: s.Name, Epoch: 1, Seq: seq}, In: in})
	if err != nil {
		return out, steps.FromActivity(s.Name, "node", err)
	}
	require.NoError(t, v.Get(&out))
	return out, nil
}

// inPool has all disks in one pool, unless that is missing.
type inPool struct{ missing *bool }

func (p inPool) Locate(plan steps.VMPlan) (compute.DomainFiles, error) {
	if *p.missing {
		return compute.DomainFiles{}, errors.New("no such pool")
	}
	out := compute.DomainFiles{Disk: compute.QCOW2("/pool/" + plan.Disk.Volume)}
	for _, d := range plan.Data {
		out.Data = append(out.Data, compute.QCOW2("/pool/"+d.Volume))
	}
	return out, nil
}

func (p inPool) LocateVolume(v steps.VolumePlan) (compute.DiskSource, error) {
	if *p.missing {
		return compute.DiskSource{}, errors.New("no such pool")
	}
	return compute.QCOW2("/pool/" + v.Volume), nil
}

func TestSteps(t *testing.T) {
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	fake := &compute.Fake{}
	missing := false
	compute.Register(env, &activities.Host{Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, fake, inPool{&missing})
	plan := steps.VMPlan{VM: api.NewID(), Name: "web", VCPUs: 1, Memory: api.GiB}

	_, err := runStep(t, env, steps.CreateDomain, 1, plan)
	require.NoError(t, err)
	require.Equal(t, 1, fake.Boots(plan.VM))

	_, err = runStep(t, env, steps.CreateDomain, 0, plan)
	require.Equal(t, problem.Stale, problem.KindOf(err), "an overtaken attempt must not touch the domain")

	res, err := runStep(t, env, steps.StopDomain, 2, steps.StopVM{Plan: plan, Timeout: time.Second})
	require.NoError(t, err)
	require.Equal(t, steps.PowerResult{Before: api.PhaseRunning}, res)

	_, err = runStep(t, env, steps.RebootDomain, 3, steps.StopVM{Plan: plan, Timeout: time.Second})
	require.Equal(t, problem.Conflict, problem.KindOf(err))

	_, err = runStep(t, env, steps.RemoveDomain, 4, plan)
	require.NoError(t, err)
	_, err = runStep(t, env, steps.RemoveDomain, 5, plan)
	require.NoError(t, err)

	res, err = runStep(t, env, steps.StopDomain, 6, steps.StopVM{Plan: plan, Timeout: time.Second})
	require.NoError(t, err, "what is not defined is stopped")
	require.Equal(t, api.PhaseStopped, res.Before)

	res, err = runStep(t, env, steps.StartDomain, 7, plan)
	require.NoError(t, err, "start defines a domain that is gone")
	require.Equal(t, api.PhaseStopped, res.Before)
	require.Equal(t, 1, fake.Boots(plan.VM))

	fake.Disconnect(true)
	_, err = runStep(t, env, steps.RemoveDomain, 8, plan)
	require.Equal(t, problem.Unavailable, problem.KindOf(err))
	fake.Disconnect(false)

	fake.AddStranger("11111111-1111-4111-8111-111111111111", "stranger")
	_, err = runStep(t, env, steps.RemoveDomain, 9, steps.VMPlan{VM: "11111111-1111-4111-8111-111111111111"})
	require.Equal(t, problem.Conflict, problem.KindOf(err))

	missing = true
	_, err = runStep(t, env, steps.CreateDomain, 10, steps.VMPlan{VM: api.NewID()})
	require.ErrorContains(t, err, "no such pool")
}

func TestStepsOfMoves(t *testing.T) {
	var suite testsuite.WorkflowTestSuite
	var rack compute.Rack
	source, target := &compute.Fake{Inv: api.Inventory{HostUUID: api.NewID()}}, &compute.Fake{Inv: api.Inventory{HostUUID: api.NewID()}}
	rack.Plug("source", source)
	rack.Plug("target", target)
	host := func(f *compute.Fake) *testsuite.TestActivityEnvironment {
		env := suite.NewTestActivityEnvironment()
		compute.Register(env, &activities.Host{Log: slog.New(slog.DiscardHandler)}, f, inPool{new(bool)})
		return env
	}
	from, to := host(source), host(target)
	plan := steps.VMPlan{VM: api.NewID(), Name: "web", VCPUs: 1, Memory: api.GiB}
	_, err := runStep(t, from, steps.CreateDomain, 1, plan)
	require.NoError(t, err)
	leaving, err := runStep(t, from, steps.DescribeDomain, 2, plan)
	require.NoError(t, err)
	in, err := runStep(t, to, steps.CheckIncoming, 3, steps.IncomingRequest{Plan: plan, Leaving: leaving})
	require.NoError(t, err)
	require.Equal(t, "target", in.URI)

	// The agent stops in the middle: the step is to be tried again, and the move goes on.
	held, goOn := make(chan struct{}), make(chan struct{})
	source.OnMove(func(_ string, at compute.MovePoint) compute.MoveFate {
		if at == compute.MoveCopied {
			close(held)
			<-goOn
		}
		return compute.MoveGoesOn
	})
	stop := make(chan struct{})
	from.SetWorkerStopChannel(stop)
	go func() { <-held; close(stop) }()
	_, err = runStep(t, from, steps.MigrateDomain, 4, steps.MoveDomain{Plan: plan, Incoming: in})
	require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
	close(goOn)
	require.Eventually(t, func() bool { p, err := target.State(t.Context(), plan.VM); return err == nil && p == api.PhaseRunning }, 10*time.Second, time.Millisecond)

	next := host(source) // the agent that comes next
	_, err = runStep(t, next, steps.MigrateDomain, 5, steps.MoveDomain{Plan: plan, Incoming: in})
	require.NoError(t, err)
	state, err := runStep(t, next, steps.SettleDomain, 6, plan)
	require.NoError(t, err)
	require.False(t, state.Exists)
	state, err = runStep(t, to, steps.LookAtDomain, 7, plan)
	require.NoError(t, err)
	require.Equal(t, steps.DomainState{Exists: true, Phase: api.PhaseRunning}, state)
	_, err = runStep(t, to, steps.MarkHA, 8, steps.HAMark{Plan: plan, HA: true})
	require.NoError(t, err)
	require.True(t, target.HA(plan.VM))
	_, err = runStep(t, next, steps.DefineDomain, 9, plan)
	require.NoError(t, err)
	state, err = runStep(t, next, steps.LookAtDomain, 10, plan)
	require.NoError(t, err)
	require.Equal(t, steps.DomainState{Exists: true, Phase: api.PhaseStopped}, state)
}
