package saga_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// The toy operation has three steps; world holds what they leave behind.
type toyState struct{ Seen []string }

var (
	toyStep = steps.Step[string, string]{Name: "toy.do", Where: steps.Local, Timeout: time.Second}
	toyUndo = steps.Step[string, string]{Name: "toy.undo", Where: steps.Node, Timeout: time.Second}
)

func toy(commitAt int) saga.Table[toyState] {
	t := saga.Table[toyState]{Kind: "toy", Start: func(steps.Op) (toyState, error) { return toyState{}, nil }}
	for i, name := range []string{"a", "b", "c"} {
		t.Steps = append(t.Steps, saga.Step[toyState]{
			Name: name, Where: "control", Commit: i == commitAt,
			Do: func(r *saga.Run, s *toyState) error {
				out, err := toyStep.Call(r, "", name)
				s.Seen = append(s.Seen, out)
				return err
			},
			Undo: func(r *saga.Run, _ *toyState) error {
				_, err := toyUndo.Call(r, "n1", name)
				return err
			},
		})
	}
	return t
}

// bench runs one toy operation; fail decides about each attempt.
type bench struct {
	env     *testsuite.TestWorkflowEnvironment
	world   map[string]bool
	outcome steps.Outcome
	states  []api.OperationState
	tokens  []steps.Token
}

func run(t *testing.T, table saga.Table[toyState], op steps.Op, fail func(b *bench, tok steps.Token, attempt int) error) *bench {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(slog.New(slog.DiscardHandler))
	b := &bench{env: suite.NewTestWorkflowEnvironment(), world: map[string]bool{}}
	attempts := map[string]int{}
	act := func(name string, do func(string)) {
		b.env.RegisterActivityWithOptions(func(_ context.Context, e steps.Envelope[string]) (string, error) {
			b.tokens = append(b.tokens, e.Token)
			key := name + e.In
			attempts[key]++
			if err := fail(b, e.Token, attempts[key]); errors.Is(err, errNeverTaken) {
				return "", err
			} else if err != nil {
				return "", steps.ToActivity(err)
			}
			do(e.In)
			return e.In, nil
		}, activity.RegisterOptions{Name: name})
	}
	act(toyStep.Name, func(s string) { b.world[s] = true })
	act(toyUndo.Name, func(s string) { delete(b.world, s) })
	b.env.RegisterActivityWithOptions(func(_ context.Context, e steps.Envelope[steps.Journal]) (steps.Nothing, error) {
		b.states = append(b.states, e.In.State)
		return steps.Nothing{}, nil
	}, activity.RegisterOptions{Name: steps.SaveJournal.Name})
	b.env.RegisterActivityWithOptions(func(_ context.Context, e steps.Envelope[steps.Outcome]) (steps.Nothing, error) {
		b.outcome = e.In
		return steps.Nothing{}, nil
	}, activity.RegisterOptions{Name: steps.Settle.Name})
	b.env.RegisterWorkflowWithOptions(table.Workflow, workflow.RegisterOptions{Name: table.Kind})
	b.env.ExecuteWorkflow(table.Kind, op)
	require.True(t, b.env.IsWorkflowCompleted())
	return b
}

func never(*bench, steps.Token, int) error { return nil }

func TestDoneOperationLeavesItsWorld(t *testing.T) {
	b := run(t, toy(-1), steps.Op{ID: "op", Epoch: 7}, never)
	require.NoError(t, b.env.GetWorkflowError())
	require.Equal(t, api.OpSucceeded, b.outcome.State)
	require.Len(t, b.world, 3)
	for i, tok := range b.tokens {
		require.Equal(t, int64(7), tok.Epoch)
		require.Equal(t, i+1, tok.Seq)
	}
	for _, s := range b.outcome.Steps {
		require.Equal(t, api.StepDone, s.State)
	}
}

func TestFailedStepUndoesAllThatMayHaveRun(t *testing.T) {
	b := run(t, toy(-1), steps.Op{ID: "op"}, func(_ *bench, tok steps.Token, _ int) error {
		if tok.Step == "b" && !tok.Undo {
			return problem.New(problem.NoCapacity, "full").Try("add a disk")
		}
		return nil
	})
	require.Equal(t, api.OpFailed, b.outcome.State)
	require.Equal(t, problem.NoCapacity, b.outcome.Error.Kind)
	require.Equal(t, "add a disk", b.outcome.Error.Fix)
	require.Empty(t, b.world)
	require.Equal(t, []api.StepState{api.StepUndone, api.StepUndone, api.StepPending},
		[]api.StepState{b.outcome.Steps[0].State, b.outcome.Steps[1].State, b.outcome.Steps[2].State})
	var app *temporal.ApplicationError
	require.True(t, errors.As(b.env.GetWorkflowError(), &app))
	require.Equal(t, string(problem.NoCapacity), app.Type())
}

func TestRetryableFailureIsRepeatedAndCounted(t *testing.T) {
	b := run(t, toy(-1), steps.Op{ID: "op"}, func(_ *bench, tok steps.Token, attempt int) error {
		if tok.Step == "b" && attempt < 4 {
			return problem.New(problem.Unavailable, "away")
		}
		return nil
	})
	require.Equal(t, api.OpSucceeded, b.outcome.State)
	require.Equal(t, 4, b.outcome.Steps[1].Attempts)
}

// TestAStepOfLittlePatience: one whose attempts take long is not tried as often as all others.
func TestAStepOfLittlePatience(t *testing.T) {
	for patience, attempts := range map[time.Duration]int{0: saga.DefaultRetry.Attempts, 5 * time.Second: 6, time.Millisecond: 2, time.Hour: saga.DefaultRetry.Attempts} {
		table := toy(-1)
		table.Steps[1].Patience = patience
		b := run(t, table, steps.Op{ID: "op"}, func(_ *bench, tok steps.Token, _ int) error {
			if tok.Step == "b" && !tok.Undo {
				return problem.New(problem.Unavailable, "away")
			}
			return nil
		})
		require.Equal(t, api.OpFailed, b.outcome.State)
		failed := 0
		for _, tok := range b.tokens {
			if tok.Step == "b" && !tok.Undo {
				failed++
			}
		}
		require.Equal(t, attempts, failed, patience)
		require.Empty(t, b.world)
	}
}

func TestUndoNeverGivesUpAndSaysThatItIsStuck(t *testing.T) {
	b := run(t, toy(-1), steps.Op{ID: "op"}, func(_ *bench, tok steps.Token, attempt int) error {
		switch {
		case tok.Step == "c" && !tok.Undo:
			return problem.New(problem.Invalid, "no")
		case tok.Step == "a" && tok.Undo && attempt < 40:
			return problem.New(problem.Internal, "broken")
		}
		return nil
	})
	require.Equal(t, api.OpFailed, b.outcome.State)
	require.Contains(t, b.states, api.OpStuck)
	require.Empty(t, b.world)
}

func TestCancelUndoes(t *testing.T) {
	b := run(t, toy(-1), steps.Op{ID: "op"}, func(b *bench, tok steps.Token, _ int) error {
		if tok.Step == "b" && !tok.Undo {
			b.env.CancelWorkflow()
		}
		return nil
	})
	require.Equal(t, api.OpCancelled, b.outcome.State)
	require.Empty(t, b.world)
}

func TestPastThePointOfNoReturnThereIsOnlyForward(t *testing.T) {
	b := run(t, toy(1), steps.Op{ID: "op"}, func(b *bench, tok steps.Token, attempt int) error {
		if tok.Step == "b" {
			b.env.CancelWorkflow()
		}
		if tok.Step == "c" && attempt < 20 {
			return problem.New(problem.Invalid, "not yet")
		}
		return nil
	})
	require.Equal(t, api.OpSucceeded, b.outcome.State)
	require.Contains(t, b.states, api.OpStuck)
	require.Len(t, b.world, 3)
}

func TestLostWorkflowIsUndoneFromItsJournal(t *testing.T) {
	checkpoint, err := json.Marshal(toyState{Seen: []string{"a"}})
	require.NoError(t, err)
	b := run(t, toy(-1), steps.Op{ID: "op", Recover: &steps.Recovery{Started: 2, Checkpoint: checkpoint}}, never)
	require.Equal(t, api.OpFailed, b.outcome.State)
	require.Equal(t, []string{"b", "a"}, []string{b.tokens[0].Step, b.tokens[1].Step})
	require.True(t, b.tokens[0].Undo)
}

func TestLostWorkflowPastThePointOfNoReturnGoesForward(t *testing.T) {
	b := run(t, toy(0), steps.Op{ID: "op", Recover: &steps.Recovery{Started: 2, Committed: true}}, never)
	require.Equal(t, api.OpSucceeded, b.outcome.State)
	require.Equal(t, []string{"b", "c"}, []string{b.tokens[0].Step, b.tokens[1].Step})
}

// TestResumeHurries stops an undo in its longest pause, and shows that the signal ends the pause.
func TestResumeHurries(t *testing.T) {
	var stuckAt, resumedAt time.Time
	b := run(t, toy(-1), steps.Op{ID: "op"}, func(b *bench, tok steps.Token, attempt int) error {
		if tok.Step == "a" && !tok.Undo {
			return problem.New(problem.Invalid, "no")
		}
		switch {
		case tok.Undo && attempt < 9:
			return problem.New(problem.Internal, "broken")
		case tok.Undo && attempt == 9:
			stuckAt = b.env.Now()
			b.env.RegisterDelayedCallback(func() { b.env.SignalWorkflow(saga.ResumeSignal, nil) }, time.Second)
			return problem.New(problem.Internal, "broken")
		case tok.Undo:
			resumedAt = b.env.Now()
		}
		return nil
	})
	require.Equal(t, api.OpFailed, b.outcome.State)
	require.Less(t, resumedAt.Sub(stuckAt), 3*time.Second, "the pause would have been 10 s")
}

func TestRecoveredPastThePointOfNoReturnItNeverGoesBack(t *testing.T) {
	b := run(t, toy(0), steps.Op{ID: "op", Recover: &steps.Recovery{Started: 3, Committed: true}}, func(b *bench, tok steps.Token, attempt int) error {
		b.env.CancelWorkflow()
		if attempt < 20 {
			return problem.New(problem.Invalid, "not yet")
		}
		return nil
	})
	require.Equal(t, api.OpSucceeded, b.outcome.State)
	for _, tok := range b.tokens {
		require.False(t, tok.Undo)
		require.Equal(t, "c", tok.Step)
	}
}

func TestRecoveryGoesOnCountingWhereNobodyHasCounted(t *testing.T) {
	op := &api.Operation{Meta: api.Meta{ID: "op", Revision: 107}, State: api.OpRunning, Steps: []api.StepRecord{{State: api.StepDone}, {State: api.StepRunning}, {State: api.StepPending}}}
	from := saga.RecoveryOf(toy(2), op, 100)
	require.Equal(t, steps.Recovery{Started: 2, Seq: 7}, *from)
	b := run(t, toy(2), steps.Op{ID: "op", Epoch: 100, Recover: from}, never)
	require.Equal(t, 8, b.tokens[0].Seq)
}

func TestCancelledBeforeAnyWorkerTookTheStepThereIsNothingToUndo(t *testing.T) {
	table := toy(-1)
	table.Steps[1].Do = func(r *saga.Run, _ *toyState) error {
		_, err := toyUndo.Call(r, "n1", "gone")
		return err
	}
	b := run(t, table, steps.Op{ID: "op"}, func(b *bench, tok steps.Token, _ int) error {
		if tok.Step == "b" && !tok.Undo {
			b.env.CancelWorkflow()
			return errNeverTaken
		}
		return nil
	})
	require.Equal(t, api.OpCancelled, b.outcome.State)
	require.Equal(t, []api.StepState{api.StepUndone, api.StepFailed, api.StepPending},
		[]api.StepState{b.outcome.Steps[0].State, b.outcome.Steps[1].State, b.outcome.Steps[2].State})
}

// TestAStepThatCallsSeveralIsUndoneUnlessNoneWasTaken: that the last call of a step was never started says nothing about those
// before it, and whoever writes a step need not think of that.
func TestAStepThatCallsSeveralIsUndoneUnlessNoneWasTaken(t *testing.T) {
	for name, c := range map[string]struct {
		gone string // the call that no worker takes
		hide bool   // the step says so in its own words
		want api.StepState
	}{
		"the first":               {"b1", false, api.StepFailed},
		"the second":              {"b2", false, api.StepUndone},
		"the second, in words":    {"b2", true, api.StepUndone},
		"the only one of a retry": {"b2 later", false, api.StepUndone},
	} {
		t.Run(name, func(t *testing.T) {
			table := toy(-1)
			table.Steps[1].Do = func(r *saga.Run, _ *toyState) error {
				for _, what := range []string{"b1", "b2"} {
					if _, err := toyStep.Call(r, "", what); err != nil {
						if c.hide {
							return problem.Wrap(err, problem.Internal, "on one of several nodes")
						}
						return err
					}
				}
				return nil
			}
			b1, b2 := 0, 0
			b := run(t, table, steps.Op{ID: "op"}, func(b *bench, tok steps.Token, attempt int) error {
				if tok.Step != "b" || tok.Undo {
					return nil
				}
				second := b.world["b1"]
				if second {
					b2++
				} else {
					b1++
				}
				switch {
				case c.gone == "b1", c.gone == "b2" && second:
					return errNeverTaken
				case c.gone == "b2 later" && attempt == 1:
					return problem.New(problem.Unavailable, "away")
				case c.gone == "b2 later":
					return errNeverTaken
				}
				return nil
			})
			require.Equal(t, api.OpFailed, b.outcome.State)
			require.Equal(t, c.want, b.outcome.Steps[1].State)
			require.LessOrEqual(t, b1, 2)
			require.LessOrEqual(t, b2, 1, "nobody is there, so it is not tried again")
		})
	}
}

// errNeverTaken is what Temporal says of a task that no worker took.
var errNeverTaken = temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START, nil)

// TestWhatTheStoreFindsTooLargeIsGivenAgainWithoutWeight: a journal that can never be written must not hold the operation for ever.
func TestWhatTheStoreFindsTooLargeIsGivenAgainWithoutWeight(t *testing.T) {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(slog.New(slog.DiscardHandler))
	env := suite.NewTestWorkflowEnvironment()
	var ended steps.Outcome
	tooLarge := func(checkpoint json.RawMessage) error {
		if len(checkpoint) > 0 {
			return steps.ToActivity(problem.New(problem.TooLarge, "over the limit"))
		}
		return nil
	}
	env.RegisterActivityWithOptions(func(_ context.Context, e steps.Envelope[string]) (string, error) { return e.In, nil }, activity.RegisterOptions{Name: toyStep.Name})
	env.RegisterActivityWithOptions(func(_ context.Context, e steps.Envelope[steps.Journal]) (steps.Nothing, error) {
		return steps.Nothing{}, tooLarge(e.In.Checkpoint)
	}, activity.RegisterOptions{Name: steps.SaveJournal.Name})
	env.RegisterActivityWithOptions(func(_ context.Context, e steps.Envelope[steps.Outcome]) (steps.Nothing, error) {
		ended = e.In
		return steps.Nothing{}, tooLarge(e.In.Checkpoint)
	}, activity.RegisterOptions{Name: steps.Settle.Name})
	env.RegisterWorkflowWithOptions(toy(-1).Workflow, workflow.RegisterOptions{Name: "toy"})
	env.ExecuteWorkflow("toy", steps.Op{ID: "op"})
	require.NoError(t, env.GetWorkflowError())
	require.Equal(t, api.OpSucceeded, ended.State)
}

func TestARecoveryRemembersWhyItGoesBack(t *testing.T) {
	cause := problem.New(problem.Cancelled, "somebody asked")
	op := &api.Operation{
		State: api.OpStuck, Error: problem.New(problem.Unavailable, "agent away"), Plan: &api.OperationPlan{Cause: cause},
		Steps: []api.StepRecord{{State: api.StepUndoing}, {State: api.StepPending}},
	}
	r := saga.RecoveryOf(toy(-1), op, 1)
	require.Equal(t, cause, r.Error)
	require.Equal(t, 1, r.Started)
}

// A move that went wrong is not always undone: it may have happened all the same.
func TestUndoThatFindsItsStepDoneTurnsTheOperationAround(t *testing.T) {
	table := toy(-1)
	undo := table.Steps[1].Undo
	table.Steps[1].Undo = func(r *saga.Run, s *toyState) error {
		if err := undo(r, s); err != nil {
			return err
		}
		return saga.ErrDone
	}
	for name, cancel := range map[string]bool{"failed": false, "cancelled": true} {
		t.Run(name, func(t *testing.T) {
			fails := 0
			b := run(t, table, steps.Op{ID: "op"}, func(b *bench, tok steps.Token, _ int) error {
				if tok.Step != "c" || tok.Undo || fails > 0 {
					return nil
				}
				fails++
				if cancel {
					b.env.CancelWorkflow()
					return nil
				}
				return problem.New(problem.Conflict, "no")
			})
			require.Equal(t, api.OpSucceeded, b.outcome.State)
			require.Nil(t, b.outcome.Error)
			require.Nil(t, b.outcome.Cause)
			require.True(t, b.world["a"], "what came before the step is not undone")
			require.True(t, b.world["c"], "what comes after it is done again")
			for _, s := range b.outcome.Steps {
				require.Equal(t, api.StepDone, s.State, s.Name)
			}
		})
	}
}

func TestDetailOfAStepIsInTheJournal(t *testing.T) {
	table := toy(-1)
	table.Steps[0].Detail = func(s *toyState) any { return s.Seen }
	table.Steps[1].Detail = func(*toyState) any { return (*toyState)(nil) }
	b := run(t, table, steps.Op{ID: "op"}, never)
	require.JSONEq(t, `["a"]`, string(b.outcome.Steps[0].Detail))
	require.Empty(t, b.outcome.Steps[1].Detail, "nothing to tell")
}
