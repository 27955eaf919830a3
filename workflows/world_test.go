package workflows_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// errNeverTaken is what a step returns in a test that no worker takes.
var errNeverTaken = temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START, nil)

// stage runs one operation with steps that a test answers for.
type stage struct {
	t        *testing.T
	env      *testsuite.TestWorkflowEnvironment
	mu       sync.Mutex
	calls    []string // steps as they were called, "name" or "name@agent"
	outcome  steps.Outcome
	stuck    bool
	canceled []string // operations that were asked to go back
}

func newStage(t *testing.T) *stage {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(slog.New(slog.DiscardHandler))
	st := &stage{t: t, env: suite.NewTestWorkflowEnvironment()}
	st.env.SetTestTimeout(20 * time.Second)
	for _, d := range workflows.All() {
		st.env.RegisterWorkflowWithOptions(d.Func(), workflow.RegisterOptions{Name: d.Name()})
	}
	answer(st, steps.SaveJournal, func(j steps.Journal) (steps.Nothing, error) {
		st.stuck = st.stuck || j.State == api.OpStuck
		return steps.Nothing{}, nil
	})
	answer(st, steps.Settle, func(o steps.Outcome) (steps.Nothing, error) {
		st.outcome = o
		return steps.Nothing{}, nil
	})
	return st
}

// answer says what a step does when it is called.
func answer[In, Out any](st *stage, step steps.Step[In, Out], do func(In) (Out, error)) {
	st.env.RegisterActivityWithOptions(func(_ context.Context, e steps.Envelope[In]) (Out, error) {
		if step.Name != steps.SaveJournal.Name && step.Name != steps.Settle.Name {
			st.mu.Lock()
			st.calls = append(st.calls, step.Name)
			st.mu.Unlock()
		}
		out, err := do(e.In)
		if err == errNeverTaken { //nolint:errorlint // it is handed over as it is
			return out, err
		}
		return out, steps.ToActivity(err)
	}, activity.RegisterOptions{Name: step.Name, DisableAlreadyRegisteredCheck: true})
}

// fine answers that all is well.
func fine[In, Out any](st *stage, step steps.Step[In, Out]) {
	answer(st, step, func(In) (out Out, err error) { return out, nil })
}

func (st *stage) run(d saga.Definition, op steps.Op) {
	op.ID, op.Kind = "op", d.Name()
	st.env.ExecuteWorkflow(d.Name(), op)
	require.True(st.t, st.env.IsWorkflowCompleted())
}

func decode(raw json.RawMessage, to any) error { return json.Unmarshal(raw, to) }

func input(t *testing.T, v any) json.RawMessage {
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return b
}
