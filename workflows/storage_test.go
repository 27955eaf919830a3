package workflows_test

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
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
	var mu sync.Mutex // they are called side by side
	note := func(what string, p steps.PoolOnNode) {
		if p.Join {
			what = "join"
		}
		mu.Lock()
		defer mu.Unlock()
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
	require.ElementsMatch(t, []string{"join a1", "join a2"}, *seen, "and nothing is to be taken back")
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
	require.Equal(t, "prepare a1", (*seen)[0])
	require.ElementsMatch(t, []string{"release a2", "release a3"}, (*seen)[1:3])
	require.ElementsMatch(t, []string{"prepare a2", "prepare a3"}, (*seen)[3:5])
	require.Equal(t, []string{"release a1"}, (*seen)[5:])
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

func poolWork(t *testing.T, shared bool, on []api.AgentRef) steps.Op {
	return steps.Op{Input: input(t, api.PoolWork{Pool: api.PoolOnNode{Pool: "p", Path: "/p", Shared: shared}, Agents: on})}
}

func many(count int) (ids []string) {
	for i := range count {
		ids = append(ids, fmt.Sprintf("a%03d", i))
	}
	return ids
}

// TestTheFirstAgentOfASharedPoolIsAlone: it writes the marker that the others must find.
func TestTheFirstAgentOfASharedPoolIsAlone(t *testing.T) {
	var marked atomic.Bool
	st, seen := poolStage(t, func(p steps.PoolOnNode) error {
		if p.Join && !marked.Load() {
			return problem.New(problem.Conflict, "its marker is missing here")
		}
		runtime.Gosched() // others would be faster
		marked.Store(true)
		return nil
	}, well)
	st.run(workflows.PoolAdd, poolWork(t, true, agents(many(100)...)))
	require.Equal(t, api.OpSucceeded, st.outcome.State, "%v", st.outcome.Error)
	require.Len(t, *seen, 100)
	require.Equal(t, "prepare a000", (*seen)[0])
	require.NotContains(t, (*seen)[1:], "prepare a000")
	for _, id := range many(100)[1:] {
		require.Contains(t, *seen, "join "+id)
	}
}

// TestAPoolThatOneNodeRefusesIsReleasedOnAllThatMayHaveIt, and on none before all that were asked have answered.
func TestAPoolThatOneNodeRefusesIsReleasedOnAllThatMayHaveIt(t *testing.T) {
	var at atomic.Int32
	st, seen := poolStage(t, func(p steps.PoolOnNode) error {
		at.Add(1)
		defer at.Add(-1)
		if p.Agent == "a010" {
			return problem.New(problem.Conflict, "there are files in it")
		}
		runtime.Gosched()
		return nil
	}, func(steps.PoolOnNode) error {
		if at.Load() > 0 {
			return problem.New(problem.Invalid, "a prepare still runs")
		}
		return nil
	})
	st.run(workflows.PoolAdd, poolWork(t, false, agents(many(200)...)))
	require.Equal(t, api.OpFailed, st.outcome.State)
	require.Equal(t, problem.Conflict, st.outcome.Error.Kind)
	require.Equal(t, "pool directory /p on agent a010", st.outcome.Error.What)
	require.False(t, st.stuck)
	asked := 0
	for _, s := range *seen {
		if strings.HasPrefix(s, "prepare ") {
			asked++
			require.Contains(t, *seen, "release "+strings.TrimPrefix(s, "prepare "))
		}
	}
	require.Less(t, asked, 200, "the rest is not asked any more")
}

// TestErrorsOfPoolsSayWhereTheyAreAsPeopleDo, and not where agents mount them, or what names them inside.
func TestErrorsOfPoolsSayWhereTheyAreAsPeopleDo(t *testing.T) {
	for _, kind := range []string{api.PoolRBD, api.PoolNFS} {
		st, _ := poolStage(t, func(steps.PoolOnNode) error { return problem.New(problem.Invalid, "no") }, well)
		pool := api.PoolOnNode{Pool: "p", Type: kind, Path: "/run/x", Shared: true, Source: api.PoolSource{Hosts: []string{"h1", "h2"}, Name: "vms"}}
		st.run(workflows.PoolAdd, steps.Op{Input: input(t, api.PoolWork{Pool: pool, Agents: agents("a1", "a2")})})
		require.Equal(t, api.OpFailed, st.outcome.State)
		require.Equal(t, "pool h1,h2:vms on agent a1", st.outcome.Error.What)
	}
}
