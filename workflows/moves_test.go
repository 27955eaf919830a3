package workflows_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/steps"
)

// drainStage is a drain of a node with n VMs. Each of its moves ends when it is looked at for the second time.
type drainStage struct {
	*stage
	cordoned bool
	looks    map[string]int
	under    int // moves under way
	most     int // at a time
	ends     map[string]steps.OperationEnd
}

func newDrain(t *testing.T, n int) *drainStage {
	d := &drainStage{stage: newStage(t), looks: map[string]int{}, ends: map[string]steps.OperationEnd{}}
	answer(d.stage, steps.CordonAgent, func(c steps.AgentCordon) (steps.Nothing, error) {
		d.cordoned = c.Cordoned
		return steps.Nothing{}, nil
	})
	answer(d.stage, steps.PlanDrain, func(steps.DrainPlan) (plan api.MovePlan, err error) {
		for i := range n {
			plan.Moves = append(plan.Moves, api.Move{VM: api.Ref{ID: fmt.Sprint("vm", i)}, Kind: api.MoveLive})
		}
		return plan, nil
	})
	answer(d.stage, steps.OrderMove, func(o steps.MoveOrder) (string, error) {
		require.Equal(t, "op", o.Parent)
		d.under++
		d.most = max(d.most, d.under)
		return "move of " + o.Move.VM.ID, nil
	})
	answer(d.stage, steps.AwaitOperations, func(w steps.Watched) (out []steps.OperationEnd, err error) {
		for _, id := range w.Operations {
			end := steps.OperationEnd{State: api.OpRunning}
			if d.looks[id]++; d.looks[id] >= 2 {
				end = steps.OperationEnd{State: api.OpSucceeded}
				if e, ok := d.ends[id]; ok {
					end = e
				}
				d.under--
			}
			out = append(out, end)
		}
		return out, nil
	})
	return d
}

func (d *drainStage) start(req api.HostDrain) {
	d.run(workflows.HostDrain, steps.Op{Input: input(d.t, req), Before: []byte(`{}`)})
}

func (d *drainStage) plan() (p api.MovePlan) {
	for _, s := range d.outcome.Steps {
		if s.Name == "move" {
			require.NoError(d.t, decode(s.Detail, &p))
		}
	}
	return p
}

func TestDrainMovesAFewAtATime(t *testing.T) {
	d := newDrain(t, 7)
	d.ends["move of vm3"] = steps.OperationEnd{State: api.OpFailed, Error: problem.New(problem.NoCapacity, "no room")}
	d.start(api.HostDrain{Parallel: 3})
	require.Equal(t, api.OpSucceeded, d.outcome.State, "that one VM stays is no reason to bring the others back")
	require.Equal(t, 3, d.most)
	require.True(t, d.cordoned)
	for i, m := range d.plan().Moves {
		if i == 3 {
			require.Equal(t, api.OpFailed, m.State)
			require.Equal(t, problem.NoCapacity, m.Error.Kind)
		} else {
			require.Equal(t, api.OpSucceeded, m.State)
		}
	}
}

// TestDrainWaitsForBusyVMs: somebody else's operation on a VM ends sooner or later.
func TestDrainWaitsForBusyVMs(t *testing.T) {
	d := newDrain(t, 2)
	tries := 0
	answer(d.stage, steps.OrderMove, func(o steps.MoveOrder) (string, error) {
		if o.Move.VM.ID == "vm0" {
			if tries++; tries < 4 {
				return "", problem.New(problem.Locked, "being worked on")
			}
		}
		d.under++
		return "move of " + o.Move.VM.ID, nil
	})
	d.start(api.HostDrain{})
	require.Equal(t, 4, tries)
	require.Equal(t, api.OpSucceeded, d.plan().Moves[0].State)
}

func TestCancelledDrainKeepsWhatMovedAndWaitsForTheRest(t *testing.T) {
	d := newDrain(t, 6)
	d.env.OnRequestCancelExternalWorkflow(mock.Anything, mock.Anything, mock.Anything).Return(func(_, id, _ string) error {
		d.canceled = append(d.canceled, id)
		d.ends[id] = steps.OperationEnd{State: api.OpCancelled, Error: problem.New(problem.Cancelled, "cancelled")}
		return nil
	})
	ordered := 0
	answer(d.stage, steps.OrderMove, func(o steps.MoveOrder) (string, error) {
		d.under++
		if ordered++; ordered == 3 {
			d.env.CancelWorkflow()
		}
		return "move of " + o.Move.VM.ID, nil
	})
	d.start(api.HostDrain{})
	require.Equal(t, api.OpCancelled, d.outcome.State)
	require.Zero(t, d.under, "nothing is under way when it has ended")
	require.LessOrEqual(t, ordered, 4, "no more are begun")
	require.False(t, d.cordoned, "the node takes VMs again")
	require.NotEmpty(t, d.canceled)
}
