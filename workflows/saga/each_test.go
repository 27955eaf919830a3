package saga_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// crowd is a step that calls many nodes, and what became of it.
type crowd struct {
	mu            sync.Mutex
	begun, undone []int
	tokens        []steps.Token
	now, most     int
	outcome       steps.Outcome
	stuck         bool
}

// askMany runs an operation of one step that calls count nodes, at most some of them at a time. Do and undo answer for a call; how
// often it was called before is counted from 0. The first call answers when as many run as may.
func askMany(t *testing.T, count, most int, do, undo func(i, before int) error) *crowd {
	c := &crowd{}
	ask := steps.Step[int, steps.Nothing]{Name: "each.do", Where: steps.Node, Timeout: time.Second}
	take := steps.Step[int, steps.Nothing]{Name: "each.undo", Where: steps.Node, Timeout: time.Second}
	onAll := func(s steps.Step[int, steps.Nothing]) func(r *saga.Run, _ *toyState) error {
		return func(r *saga.Run, _ *toyState) error {
			return r.Each(count, most, func(r *saga.Run, i int) error {
				_, err := s.Call(r, fmt.Sprint("n", i), i)
				return err
			})
		}
	}
	table := saga.Table[toyState]{
		Kind: "toy", Start: func(steps.Op) (toyState, error) { return toyState{}, nil },
		Steps: []saga.Step[toyState]{{Name: "many", Where: "node", Do: onAll(ask), Undo: onAll(take)}},
	}
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(slog.New(slog.DiscardHandler))
	env := suite.NewTestWorkflowEnvironment()
	calls := map[string]int{}
	full := make(chan struct{})
	var once sync.Once
	act := func(name string, note *[]int, answer func(i, before int) error) {
		env.RegisterActivityWithOptions(func(_ context.Context, e steps.Envelope[int]) (steps.Nothing, error) {
			c.mu.Lock()
			key := fmt.Sprint(name, e.In)
			before := calls[key]
			calls[key]++
			*note = append(*note, e.In)
			c.tokens = append(c.tokens, e.Token)
			c.now++
			if c.most = max(c.most, c.now); c.most == min(count, most) {
				once.Do(func() { close(full) })
			}
			c.mu.Unlock()
			<-full
			err := answer(e.In, before)
			c.mu.Lock()
			c.now--
			c.mu.Unlock()
			return steps.Nothing{}, steps.ToActivity(err)
		}, activity.RegisterOptions{Name: name})
	}
	act(ask.Name, &c.begun, do)
	act(take.Name, &c.undone, undo)
	env.RegisterActivityWithOptions(func(_ context.Context, e steps.Envelope[steps.Journal]) (steps.Nothing, error) {
		c.stuck = c.stuck || e.In.State == api.OpStuck
		return steps.Nothing{}, nil
	}, activity.RegisterOptions{Name: steps.SaveJournal.Name})
	env.RegisterActivityWithOptions(func(_ context.Context, e steps.Envelope[steps.Outcome]) (steps.Nothing, error) {
		c.outcome = e.In
		return steps.Nothing{}, nil
	}, activity.RegisterOptions{Name: steps.Settle.Name})
	env.RegisterWorkflowWithOptions(table.Workflow, workflow.RegisterOptions{Name: table.Kind})
	env.ExecuteWorkflow(table.Kind, steps.Op{ID: "op"})
	require.True(t, env.IsWorkflowCompleted())
	return c
}

func fine(int, int) error { return nil }

func upTo(n int) (out []int) {
	for i := range n {
		out = append(out, i)
	}
	return out
}

func TestEachCallsAllAndSoManyAtATime(t *testing.T) {
	for _, tc := range []struct{ count, most int }{{0, 4}, {1, 4}, {4, 4}, {50, 4}, {3, 1}} {
		c := askMany(t, tc.count, tc.most, fine, fine)
		require.Equal(t, api.OpSucceeded, c.outcome.State)
		require.ElementsMatch(t, upTo(tc.count), c.begun)
		require.Equal(t, min(tc.count, tc.most), c.most)
		for _, tok := range c.tokens {
			require.Equal(t, 1, tok.Seq, "it is one attempt")
		}
	}
}

// TestEachBeginsNoMoreOnceOneHasFailedAndUndoesWhatMayHaveHappened: the undo begins when nothing runs any more.
func TestEachBeginsNoMoreOnceOneHasFailedAndUndoesWhatMayHaveHappened(t *testing.T) {
	c := askMany(t, 100, 4, func(i, _ int) error {
		if i == 10 {
			return problem.New(problem.Conflict, "node %d cannot", i)
		}
		return nil
	}, fine)
	require.Equal(t, api.OpFailed, c.outcome.State)
	require.Equal(t, "node 10 cannot", c.outcome.Error.What)
	require.Less(t, len(c.begun), 100)
	require.ElementsMatch(t, upTo(100), c.undone, "nobody knows which were called")
	begun := len(c.begun)
	for i, tok := range c.tokens {
		require.Equal(t, i >= begun, tok.Undo, "call %d of %d", i, begun)
	}
}

func TestOnTheWayBackEachDoesNotStopAtWhatCannotBeUndone(t *testing.T) {
	failing := func(i, before int) error {
		if i == 0 && before < 3 {
			return problem.New(problem.Unavailable, "node 0 is away")
		}
		return nil
	}
	c := askMany(t, 40, 4, func(i, _ int) error {
		if i == 39 {
			return problem.New(problem.Conflict, "no")
		}
		return nil
	}, failing)
	require.Equal(t, api.OpFailed, c.outcome.State)
	require.ElementsMatch(t, upTo(40), c.undone[:40], "all were called the first time")
	require.Len(t, c.undone, 4*40)
}

// TestEachTellsWhatWillNotPass: what may pass is tried again, which is in vain if something else will not.
func TestEachTellsWhatWillNotPass(t *testing.T) {
	c := askMany(t, 3, 3, func(i, _ int) error {
		if i == 2 {
			return problem.New(problem.Conflict, "for good")
		}
		return problem.New(problem.Unavailable, "for a moment")
	}, fine)
	require.Equal(t, "for good", c.outcome.Error.What)
	require.Len(t, c.begun, 3, "it is not tried again")
	c = askMany(t, 3, 3, func(_, before int) error {
		if before == 0 {
			return problem.New(problem.Unavailable, "for a moment")
		}
		return nil
	}, fine)
	require.Equal(t, api.OpSucceeded, c.outcome.State)
	require.Len(t, c.begun, 6)
}
