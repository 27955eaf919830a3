package workflows_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/steps"
)

// recovery is the recovery of a node with one HA VM; judge says what the verdicts are, one after the other.
func recovery(t *testing.T, device error, judge func(n int, j steps.Judgement) steps.Verdict) *stage {
	st := newStage(t)
	n := 0
	answer(st, steps.JudgeNode, func(j steps.Judgement) (steps.Verdict, error) { n++; return judge(n, j), nil })
	answer(st, steps.FenceNode, func(steps.NodeRef) (api.Proof, error) {
		return api.Proof{Kind: api.ProofFence, Detail: "power is off"}, device
	})
	answer(st, steps.PlanRecovery, func(steps.NodeRef) (api.MovePlan, error) {
		return api.MovePlan{Moves: []api.Move{{VM: api.Ref{ID: "vm"}, Kind: api.MoveRestart}}}, nil
	})
	answer(st, steps.OrderMove, func(steps.MoveOrder) (string, error) { return "restart", nil })
	answer(st, steps.AwaitOperations, func(steps.Watched) ([]steps.OperationEnd, error) {
		return []steps.OperationEnd{{State: api.OpSucceeded}}, nil
	})
	return st
}

func (st *stage) recovered() (p api.MovePlan) {
	require.NoError(st.t, decode(st.outcome.Result, &p))
	return p
}

func TestANodeThatIsBackIsNotRecovered(t *testing.T) {
	st := recovery(t, nil, func(int, steps.Judgement) steps.Verdict { return steps.Verdict{Alive: true} })
	st.run(workflows.HostRecover, steps.Op{})
	require.Equal(t, api.OpSucceeded, st.outcome.State)
	require.NotContains(t, st.calls, steps.OrderMove.Name)
}

func TestAFencedNodeIsRecoveredAtOnce(t *testing.T) {
	st := recovery(t, nil, func(_ int, j steps.Judgement) steps.Verdict {
		if j.Fenced != nil {
			return steps.Verdict{Proof: j.Fenced}
		}
		return steps.Verdict{Device: true, Wait: time.Minute}
	})
	st.run(workflows.HostRecover, steps.Op{})
	require.Equal(t, api.ProofFence, st.recovered().Proof.Kind)
	require.Equal(t, api.OpSucceeded, st.recovered().Moves[0].State)
	require.Contains(t, string(st.outcome.Steps[0].Detail), "power is off", "the proof stands in the operation")
}

func TestWhenTheDeviceIsDeadTheLeaseProves(t *testing.T) {
	lease := &api.Proof{Kind: api.ProofLease}
	st := recovery(t, problem.New(problem.Timeout, "no answer"), func(n int, j steps.Judgement) steps.Verdict {
		require.Nil(t, j.Fenced)
		if n < 4 {
			return steps.Verdict{Device: true, Wait: 10 * time.Second}
		}
		return steps.Verdict{Proof: lease}
	})
	began := st.env.Now()
	st.run(workflows.HostRecover, steps.Op{})
	require.Equal(t, api.ProofLease, st.recovered().Proof.Kind)
	require.GreaterOrEqual(t, st.env.Now().Sub(began), 20*time.Second, "it waits for the end of the lease")
}

// TestNoProofNoRestart: it waits, says so, and goes on when somebody has looked.
func TestNoProofNoRestart(t *testing.T) {
	st := recovery(t, nil, func(n int, _ steps.Judgement) steps.Verdict {
		if n < 10 {
			return steps.Verdict{Reason: "it has no fence device, and its lease was not guarded"}
		}
		return steps.Verdict{Proof: &api.Proof{Kind: api.ProofOperator}}
	})
	st.run(workflows.HostRecover, steps.Op{})
	require.True(t, st.stuck)
	require.Equal(t, api.ProofOperator, st.recovered().Proof.Kind)
	fenced, ordered := 0, 0
	for i, c := range st.calls {
		if c == steps.JudgeNode.Name {
			fenced = i
		}
		if c == steps.OrderMove.Name {
			ordered = i
		}
	}
	require.Greater(t, ordered, fenced, "nothing is started before there is a proof")
}

// TestARestartInVainIsMadeAgain: the node that it chose had died, too, and was not suspect yet.
func TestARestartInVainIsMadeAgain(t *testing.T) {
	for name, c := range map[string]struct {
		why    *problem.Problem
		vain   int // how often it fails
		orders []string
		state  api.OperationState
	}{
		"once":                {problem.New(problem.Unavailable, "nobody took it"), 1, []string{"", "restart 1"}, api.OpSucceeded},
		"too often":           {problem.New(problem.Unavailable, "nobody took it"), 9, []string{"", "restart 1", "restart 2", "restart 3"}, api.OpFailed},
		"and would be always": {problem.New(problem.Conflict, "it runs"), 1, []string{""}, api.OpFailed},
	} {
		t.Run(name, func(t *testing.T) {
			st := recovery(t, nil, func(int, steps.Judgement) steps.Verdict {
				return steps.Verdict{Proof: &api.Proof{Kind: api.ProofLease}}
			})
			var orders []string
			answer(st, steps.OrderMove, func(o steps.MoveOrder) (string, error) {
				orders = append(orders, o.Move.Operation)
				return fmt.Sprint("restart ", len(orders)), nil
			})
			answer(st, steps.AwaitOperations, func(steps.Watched) ([]steps.OperationEnd, error) {
				if len(orders) <= c.vain {
					return []steps.OperationEnd{{State: api.OpFailed, Error: c.why}}, nil
				}
				return []steps.OperationEnd{{State: api.OpSucceeded}}, nil
			})
			st.run(workflows.HostRecover, steps.Op{})
			require.Equal(t, c.orders, orders)
			require.Equal(t, c.state, st.recovered().Moves[0].State)
		})
	}
}
