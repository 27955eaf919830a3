package workflows_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/steps"
)

var (
	nothing = steps.DomainState{Phase: api.PhaseStopped}
	running = steps.DomainState{Exists: true, Phase: api.PhaseRunning}
	paused  = steps.DomainState{Exists: true, Phase: api.PhasePaused}
	stopped = steps.DomainState{Exists: true, Phase: api.PhaseStopped}
	broken  = steps.DomainState{Exists: true, Phase: api.PhasePaused, Broken: true}
)

// moveStage is a live move whose migration ends as the test says.
func moveStage(t *testing.T, migrate error, source, target steps.DomainState) *stage {
	st := newStage(t)
	answer(st, steps.PlaceMove, func(steps.MoveRequest) (steps.Move, error) {
		return steps.Move{
			Source: steps.VMPlan{VM: "vm", Agent: "a", AgentName: "a"}, Target: steps.VMPlan{VM: "vm", Agent: "b", AgentName: "b"},
			Kind: api.MoveLive, Phase: api.PhaseRunning, Ports: []string{"p"}, From: "ca", To: "cb",
		}, nil
	})
	fine(st, steps.UnplaceMove)
	fine(st, steps.DescribeDomain)
	fine(st, steps.CheckIncoming)
	answer(st, steps.BindPorts, func(b steps.PortBinding) (steps.Nothing, error) {
		st.calls = append(st.calls, "bind "+join(b.Chassis))
		return steps.Nothing{}, nil
	})
	answer(st, steps.MigrateDomain, func(steps.MoveDomain) (steps.Moved, error) { return steps.Moved{Total: time.Second}, migrate })
	answer(st, steps.SettleDomain, func(steps.VMPlan) (steps.DomainState, error) { return source, nil })
	answer(st, steps.LookAtDomain, func(steps.VMPlan) (steps.DomainState, error) { return target, nil })
	answer(st, steps.LookAtAgent, func(steps.NodeRef) (api.AgentStatus, error) { return api.AgentStatus{Phase: api.PhaseReady}, nil })
	answer(st, steps.RemoveDomain, func(p steps.VMPlan) (steps.Nothing, error) {
		st.calls = append(st.calls, "remove@"+p.Agent)
		return steps.Nothing{}, nil
	})
	answer(st, steps.CreateDomain, func(p steps.VMPlan) (steps.Nothing, error) {
		st.calls = append(st.calls, "create@"+p.Agent)
		return steps.Nothing{}, nil
	})
	answer(st, steps.StartDomain, func(p steps.VMPlan) (steps.PowerResult, error) {
		st.calls = append(st.calls, "start@"+p.Agent)
		return steps.PowerResult{}, nil
	})
	fine(st, steps.SwitchVM)
	return st
}

func join(s []string) string {
	out := ""
	for _, x := range s {
		out += x
	}
	return out
}

func TestLiveMove(t *testing.T) {
	st := moveStage(t, nil, nothing, running)
	st.run(workflows.VMMigrate, steps.Op{Input: input(t, api.VMMigrate{})})
	require.Equal(t, api.OpSucceeded, st.outcome.State)
	require.Equal(t, []string{"bind cacb", "bind cb", "remove@a"}, st.told())
}

// told is the calls that a test has a word for.
func (st *stage) told() (out []string) {
	for _, c := range st.calls {
		if len(c) > 4 && (c[:4] == "bind" || c[:6] == "remove" || c[:6] == "create" || c[:6] == "start@" || c[:5] == "stop@") {
			out = append(out, c)
		}
	}
	return out
}

// TestAMoveThatWentWrongEndsWithOneGuest has every pair of what source and target can have when it is settled.
func TestAMoveThatWentWrongEndsWithOneGuest(t *testing.T) {
	lost := problem.New(problem.Conflict, "the move was interrupted")
	for name, c := range map[string]struct {
		source, target steps.DomainState
		state          api.OperationState
		told           []string // after "bind cacb"
	}{
		"it never left":                         {running, nothing, api.OpFailed, []string{"remove@b", "bind ca"}},
		"it never left, and half arrived":       {running, paused, api.OpFailed, []string{"remove@b", "bind ca"}},
		"it has arrived":                        {nothing, running, api.OpSucceeded, []string{"bind cb", "remove@a"}},
		"it has arrived, the source waits":      {paused, running, api.OpSucceeded, []string{"bind cb", "remove@a"}},
		"it waits at the source":                {paused, nothing, api.OpFailed, []string{"remove@b", "start@a", "bind ca"}},
		"it waits at both":                      {paused, paused, api.OpFailed, []string{"remove@b", "start@a", "bind ca"}},
		"it is lost":                            {nothing, nothing, api.OpFailed, []string{"remove@b", "start@a", "bind ca"}},
		"its memory is torn, its disk is there": {broken, paused, api.OpSucceeded, []string{"remove@b", "create@b", "bind cb", "remove@a"}},
		"torn, and its source has restarted":    {stopped, broken, api.OpSucceeded, []string{"remove@b", "create@b", "bind cb", "remove@a"}},
		"it has arrived and powered off":        {nothing, stopped, api.OpSucceeded, []string{"start@b", "bind cb", "remove@a"}},
		"it has arrived and its disk is full":   {nothing, paused, api.OpSucceeded, []string{"start@b", "bind cb", "remove@a"}},
		"it powered off before it left":         {stopped, nothing, api.OpFailed, []string{"remove@b", "start@a", "bind ca"}},
	} {
		t.Run(name, func(t *testing.T) {
			st := moveStage(t, lost, c.source, c.target)
			st.run(workflows.VMMigrate, steps.Op{Input: input(t, api.VMMigrate{})})
			require.Equal(t, c.state, st.outcome.State)
			require.Equal(t, append([]string{"bind cacb"}, c.told...), st.told())
			require.False(t, st.stuck)
		})
	}
}

// TestAMoveIsNotDoneBeforeItsGuestRunsAtTheTarget: that it has left is not enough.
func TestAMoveIsNotDoneBeforeItsGuestRunsAtTheTarget(t *testing.T) {
	st := moveStage(t, nil, nothing, nothing)
	st.run(workflows.VMMigrate, steps.Op{Input: input(t, api.VMMigrate{})})
	require.Equal(t, api.OpFailed, st.outcome.State)
	require.Contains(t, st.told(), "start@a", "it is started again where its disk is")
}
