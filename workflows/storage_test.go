package workflows_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/steps"
)

// poolStage answers for the pool steps, and notes for which agent they were called, and how.
func poolStage(t *testing.T, prepare, release func(p steps.PoolOnNode) error) (st *stage, seen *[]string) {
	st, seen = newStage(t), &[]string{}
	note := func(what string, p steps.PoolOnNode) {
		if p.Join {
			what = "join"
		}
		*seen = append(*seen, what+" "+p.Agent)
	}
	answer(st, steps.PreparePool, func(p steps.PoolOnNode) (api.PoolUsage, error) {
		note("prepare", p)
		return api.PoolUsage{}, prepare(p)
	})
	answer(st, steps.ReleasePool, func(p steps.PoolOnNode) (steps.Nothing, error) {
		note("release", p)
		return steps.Nothing{}, release(p)
	})
	return st, seen
}

func well(steps.PoolOnNode) error { return nil }

func agents(ids ...string) (out []api.AgentRef) {
	for _, id := range ids {
		out = append(out, api.AgentRef{ID: id, Name: id})
	}
	return out
}

func poolChange(t *testing.T, shared bool, add, remove []api.AgentRef) steps.Op {
	return steps.Op{Input: input(t, api.PoolChange{Pool: api.PoolOnNode{Pool: "p", Path: "/p", Shared: shared}, Add: add, Remove: remove})}
}

func TestNodesThatJoinASharedPoolMakeNothing(t *testing.T) {
	st, seen := poolStage(t, func(p steps.PoolOnNode) error {
		if p.Agent == "a2" {
			return problem.New(problem.Conflict, "there is no such directory")
		}
		return nil
	}, well)
	st.run(workflows.PoolUpdate, poolChange(t, true, agents("a1", "a2"), nil))
	require.Equal(t, api.OpFailed, st.outcome.State)
	require.Equal(t, []string{"join a1", "join a2"}, *seen, "and nothing is to be taken back")
	require.Equal(t, "agent a2 does not see the same files at /p as the other nodes of the pool", st.outcome.Error.What)
	require.NotEmpty(t, st.outcome.Error.Fix)
}

func TestWhatCannotBeReleasedIsPreparedAgain(t *testing.T) {
	st, seen := poolStage(t, well, func(p steps.PoolOnNode) error {
		if p.Agent == "a3" {
			return problem.New(problem.InUse, "pool /p is not empty")
		}
		return nil
	})
	st.run(workflows.PoolUpdate, poolChange(t, false, agents("a1"), agents("a2", "a3")))
	require.Equal(t, api.OpFailed, st.outcome.State)
	require.Equal(t, []string{"prepare a1", "release a2", "release a3", "prepare a2", "prepare a3", "release a1"}, *seen)
}

// TestADirectoryThatHadVolumesBeforeIsLeftAlone is about a node that lost the pool while it was down, and gets it again.
func TestADirectoryThatHadVolumesBeforeIsLeftAlone(t *testing.T) {
	st, _ := poolStage(t, func(p steps.PoolOnNode) error {
		if p.Agent == "a2" {
			return problem.New(problem.Invalid, "/p cannot be a pool")
		}
		return nil
	}, func(steps.PoolOnNode) error { return problem.New(problem.InUse, "pool /p is not empty") })
	st.run(workflows.PoolUpdate, poolChange(t, false, agents("a1", "a2"), nil))
	require.Equal(t, api.OpFailed, st.outcome.State)
	require.False(t, st.stuck)
}

// TestANodeThatNeverTookTheReleaseIsNotPreparedAgain: it may be dead for good, and the operation must end.
func TestANodeThatNeverTookTheReleaseIsNotPreparedAgain(t *testing.T) {
	st, seen := poolStage(t, well, func(steps.PoolOnNode) error { return errNeverTaken })
	st.run(workflows.PoolUpdate, poolChange(t, false, nil, agents("a1")))
	require.Equal(t, api.OpFailed, st.outcome.State)
	require.False(t, st.stuck)
	require.NotContains(t, *seen, "prepare a1")
}
