package workflows_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/steps"
)

// moveDeath is a move from node a to node b of which nodes die while the guest is on its way.
type moveDeath struct {
	kind           string
	ha, copy       bool
	dead           string // nodes whose steps are never started
	proof          *api.Proof
	source, target steps.DomainState // as seen by who asks
}

// stage returns a stage on which the move dies. It is changed by the names of those that are dead at the moment.
func (c moveDeath) stage(t *testing.T) (st *stage, dead *string) {
	st, dead = moveStage(t, nil, nothing, nothing), new(string)
	never := func(agent string) error {
		if strings.Contains(*dead, agent) {
			return errNeverTaken
		}
		return nil
	}
	answer(st, steps.PlaceMove, func(steps.MoveRequest) (steps.Move, error) {
		plan := func(agent string) steps.VMPlan {
			return steps.VMPlan{VM: "vm", Name: "web1", Agent: agent, AgentName: agent, HA: c.ha}
		}
		return steps.Move{Source: plan("a"), Target: plan("b"), Kind: c.kind, Copy: c.copy, Phase: api.PhaseRunning, Ports: []string{"p"}, From: "ca", To: "cb"}, nil
	})
	end := problem.New(problem.Conflict, "the node died")
	answer(st, steps.MigrateDomain, func(steps.MoveDomain) (steps.Moved, error) { *dead = c.dead; return steps.Moved{}, end })
	note := func(what string) func(steps.VMPlan) (steps.Nothing, error) {
		return func(p steps.VMPlan) (steps.Nothing, error) {
			if err := never(p.Agent); err != nil {
				return steps.Nothing{}, err
			}
			st.calls = append(st.calls, what+"@"+p.Agent)
			return steps.Nothing{}, nil
		}
	}
	answer(st, steps.CreateDomain, func(p steps.VMPlan) (steps.Nothing, error) {
		if c.kind == api.MoveCold {
			*dead = c.dead
			return steps.Nothing{}, end
		}
		return note("create")(p)
	})
	answer(st, steps.RemoveDomain, note("remove"))
	answer(st, steps.StartDomain, func(p steps.VMPlan) (steps.PowerResult, error) {
		_, err := note("start")(p)
		return steps.PowerResult{}, err
	})
	answer(st, steps.StopDomain, func(p steps.StopVM) (steps.PowerResult, error) {
		if c.kind == api.MoveCold && *dead == "" {
			return steps.PowerResult{}, nil // on the way forward
		}
		_, err := note("stop")(p.Plan)
		return steps.PowerResult{}, err
	})
	fine(st, steps.MakeDisk)
	answer(st, steps.RemoveDisk, func(p steps.VMPlan) (steps.Nothing, error) { return steps.Nothing{}, never(p.Agent) })
	answer(st, steps.SettleDomain, func(p steps.VMPlan) (steps.DomainState, error) { return c.source, never(p.Agent) })
	answer(st, steps.LookAtDomain, func(p steps.VMPlan) (steps.DomainState, error) { return c.target, never(p.Agent) })
	answer(st, steps.LookAtAgent, func(n steps.NodeRef) (api.AgentStatus, error) {
		switch {
		case !strings.Contains(*dead, n.Agent):
			return api.AgentStatus{Phase: api.PhaseReady}, nil
		case c.proof == nil:
			return api.AgentStatus{Phase: api.PhaseSuspect}, nil
		}
		return api.AgentStatus{Phase: api.PhaseDown, Proof: c.proof}, nil
	})
	return st, dead
}

// onStuck does something once the operation says for the first time that it is stuck.
func (st *stage) onStuck(do func(why *problem.Problem)) {
	answer(st, steps.SaveJournal, func(j steps.Journal) (steps.Nothing, error) {
		if j.State == api.OpStuck && !st.stuck {
			st.stuck = true
			do(j.Error)
		}
		return steps.Nothing{}, nil
	})
}

// TestAMoveWhoseNodeDies: a node that is proven down holds up no move, and what may run there is not started elsewhere.
func TestAMoveWhoseNodeDies(t *testing.T) {
	fenced, lease := &api.Proof{Kind: api.ProofFence}, &api.Proof{Kind: api.ProofLease}
	live, cold := api.MoveLive, api.MoveCold
	for name, c := range map[string]struct {
		kind           string
		ha             bool
		dead           string
		proof          *api.Proof
		source, target steps.DomainState
		state          api.OperationState
		told           []string
	}{
		"both, it has gone":                 {live, false, "ab", fenced, nothing, nothing, api.OpFailed, []string{"bind cacb", "bind ca"}},
		"both, HA, by their leases":         {live, true, "ab", lease, nothing, nothing, api.OpFailed, []string{"bind cacb", "bind ca"}},
		"both, not HA, by their leases":     {live, false, "ab", lease, nothing, nothing, api.OpStuck, []string{"bind cacb"}},
		"both, without a proof":             {live, true, "ab", nil, nothing, nothing, api.OpStuck, []string{"bind cacb"}},
		"both of a cold move":               {cold, false, "ab", fenced, nothing, nothing, api.OpFailed, []string{"bind cb", "bind ca"}},
		"target, it waits":                  {live, false, "b", fenced, paused, nothing, api.OpFailed, []string{"bind cacb", "stop@a", "start@a", "bind ca"}},
		"target, its memory is torn":        {live, false, "b", fenced, broken, nothing, api.OpFailed, []string{"bind cacb", "stop@a", "start@a", "bind ca"}},
		"target, it is off":                 {live, true, "b", lease, stopped, nothing, api.OpFailed, []string{"bind cacb", "start@a", "bind ca"}},
		"target, it waits, by its lease":    {live, false, "b", lease, paused, nothing, api.OpStuck, []string{"bind cacb"}},
		"source, it has arrived and is off": {live, false, "a", fenced, nothing, stopped, api.OpSucceeded, []string{"bind cacb", "start@b", "bind cb"}},
		"source, by its lease, it is off":   {live, false, "a", lease, nothing, stopped, api.OpStuck, []string{"bind cacb"}},
		"target, it never left":             {live, false, "b", fenced, running, nothing, api.OpFailed, []string{"bind cacb", "bind ca"}},
		"target, it had arrived":            {live, false, "b", fenced, nothing, nothing, api.OpSucceeded, []string{"bind cacb", "bind cb", "remove@a"}},
		"target of a cold move":             {cold, false, "b", fenced, nothing, nothing, api.OpFailed, []string{"bind cb", "bind ca", "start@a"}},
		"target, HA, by its lease":          {cold, true, "b", lease, nothing, nothing, api.OpFailed, []string{"bind cb", "bind ca", "start@a"}},
		"target, not HA, by its lease":      {cold, false, "b", lease, nothing, nothing, api.OpStuck, []string{"bind cb"}},
		"target, without a proof":           {live, false, "b", nil, running, nothing, api.OpStuck, []string{"bind cacb"}},
		"source, it had arrived":            {live, false, "a", fenced, nothing, running, api.OpSucceeded, []string{"bind cacb", "bind cb"}},
		"source, it waits":                  {live, false, "a", fenced, nothing, paused, api.OpFailed, []string{"bind cacb", "remove@b", "bind ca"}},
		"source, its memory is torn":        {live, false, "a", fenced, nothing, broken, api.OpSucceeded, []string{"bind cacb", "remove@b", "create@b", "bind cb"}},
		"source of a cold move":             {cold, false, "a", fenced, nothing, nothing, api.OpFailed, []string{"bind cb", "remove@b", "bind ca"}},
	} {
		t.Run(name, func(t *testing.T) {
			st, dead := moveDeath{c.kind, c.ha, false, c.dead, c.proof, c.source, c.target}.stage(t)
			if c.state == api.OpStuck { // it goes on when the node is back
				st.onStuck(func(why *problem.Problem) {
					*dead = ""
					require.Equal(t, c.told, st.told())
					require.Contains(t, why.Error(), "nobody knows whether node")
					require.Contains(t, why.Fix, "--confirm-off")
				})
			}
			st.run(workflows.VMMigrate, steps.Op{Input: input(t, api.VMMigrate{Cold: c.kind == cold})})
			if c.state == api.OpStuck {
				require.True(t, st.stuck)
				return
			}
			require.Equal(t, c.state, st.outcome.State)
			require.Equal(t, c.told, st.told())
			require.False(t, st.stuck)
		})
	}
}

// TestAMoveWithItsDiskWaitsForTheNodeThatHasIt: the disk as it was last is on one of two nodes, and both may be down.
func TestAMoveWithItsDiskWaitsForTheNodeThatHasIt(t *testing.T) {
	for name, c := range map[string]struct {
		dead, then     string // then: who is dead when it has said that it waits
		source, target steps.DomainState
		why            string
		state          api.OperationState
		told           []string
	}{
		"both, the source comes back, it had not left": {"ab", "b", paused, nothing, "nobody knows on which node vm web1 ran last", api.OpFailed, []string{"start@a", "bind ca"}},
		"both, the source comes back, it had left":     {"ab", "b", nothing, nothing, "nobody knows on which node vm web1 ran last", api.OpSucceeded, []string{"bind cb", "remove@a"}},
		"source, it has arrived and is off":            {"a", "", nothing, stopped, "nobody knows on which node vm web1 ran last", api.OpSucceeded, []string{"start@b", "bind cb", "remove@a"}},
		"target, its memory is torn":                   {"b", "", broken, paused, "ran on node b last", api.OpSucceeded, []string{"remove@b", "create@b", "bind cb", "remove@a"}},
	} {
		t.Run(name, func(t *testing.T) {
			st, dead := moveDeath{api.MoveLive, false, true, c.dead, &api.Proof{Kind: api.ProofOperator}, c.source, c.target}.stage(t)
			said := 0
			st.onStuck(func(why *problem.Problem) {
				said++
				*dead = c.then
				require.Contains(t, why.Error(), c.why)
				require.NotEmpty(t, why.Fix)
			})
			st.run(workflows.VMMigrate, steps.Op{Input: input(t, api.VMMigrate{CopyStorage: true})})
			require.Equal(t, 1, said)
			require.Equal(t, c.state, st.outcome.State)
			require.Equal(t, append([]string{"bind cacb"}, c.told...), st.told())
		})
	}
}

// TestAMoveOfWhichHalfIsSharedWaitsForItsTarget: what a guest may have written there to a shared disk does not fit to its others as they
// are at the source.
func TestAMoveOfWhichHalfIsSharedWaitsForItsTarget(t *testing.T) {
	for name, c := range map[string]struct {
		kind           string
		source, target steps.DomainState // when it is back
		state          api.OperationState
		told           []string
	}{
		"live, it had not run there":     {api.MoveLive, paused, nothing, api.OpFailed, []string{"bind cacb", "remove@b", "start@a", "bind ca"}},
		"live, it runs there":            {api.MoveLive, paused, running, api.OpSucceeded, []string{"bind cacb", "bind cb", "remove@a"}},
		"cold, it was not started there": {api.MoveCold, nothing, nothing, api.OpFailed, []string{"bind cb", "remove@b", "bind ca", "start@a"}},
		"cold, it runs there":            {api.MoveCold, nothing, running, api.OpSucceeded, []string{"bind cb", "start@b", "bind cb", "remove@a"}},
		"cold, it is only defined there": {api.MoveCold, nothing, stopped, api.OpFailed, []string{"bind cb", "remove@b", "bind ca", "start@a"}},
	} {
		t.Run(name, func(t *testing.T) {
			st, dead := moveDeath{c.kind, false, true, "b", &api.Proof{Kind: api.ProofOperator}, c.source, c.target}.stage(t)
			shared := func(agent string) steps.VMPlan {
				disk := steps.DataDisk{Volume: "data", Device: "vdc", Pool: steps.PoolOnNode{Type: api.PoolDir}}
				return steps.VMPlan{VM: "vm", Name: "web1", Agent: agent, AgentName: agent, Disk: steps.DiskPlan{Volume: "root", Shared: true}, Data: []steps.DataDisk{disk}}
			}
			answer(st, steps.PlaceMove, func(steps.MoveRequest) (steps.Move, error) {
				return steps.Move{
					Source: shared("a"), Target: shared("b"), Kind: c.kind, Copy: true, Phase: api.PhaseRunning, Ports: []string{"p"}, From: "ca", To: "cb",
					Volumes: []steps.VolumePlan{{Volume: "data"}},
				}, nil
			})
			fine(st, steps.MakeVolume)
			fine(st, steps.OfferVolume)
			fine(st, steps.PullVolume)
			var removed []string
			answer(st, steps.RemoveVolume, func(v steps.VolumePlan) (steps.Nothing, error) {
				removed = append(removed, v.Agent)
				return steps.Nothing{}, nil
			})
			said := 0
			st.onStuck(func(why *problem.Problem) {
				said++
				*dead = ""
				require.Contains(t, why.Error(), "may have run on node b last")
				require.NotEmpty(t, why.Fix)
			})
			st.run(workflows.VMMigrate, steps.Op{Input: input(t, api.VMMigrate{CopyStorage: true, Cold: c.kind == api.MoveCold})})
			require.Equal(t, 1, said)
			require.Equal(t, c.state, st.outcome.State)
			require.Equal(t, c.told, st.told())
			last := "b"
			if c.state == api.OpSucceeded {
				last = "a"
			}
			require.Equal(t, last, removed[len(removed)-1], "one copy is left")
		})
	}
}
