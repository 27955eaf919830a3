package workflows_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// dying is a VM on node a, which dies at some time; b is another node of its pool.
type dying struct {
	*stage
	gone  bool         // node a takes nothing any more
	where api.Phase    // what is known of node a
	proof *api.Proof   //
	plan  steps.VMPlan //
	was   api.Phase    // the VM, before the operation
	world []string     // what was done on which node
}

func newDying(t *testing.T, ha, shared bool) *dying {
	d := &dying{stage: newStage(t), where: api.PhaseReady, was: api.PhaseRunning}
	d.plan = steps.VMPlan{VM: "vm", Name: "web1", Agent: "a", AgentName: "a", HA: ha, Disk: steps.DiskPlan{Pool: "p", Shared: shared, PoolPath: "/a"}}
	placed := func(steps.VMRef) (steps.Placement, error) { return steps.Placement{Phase: d.was, Plan: d.plan}, nil }
	answer(d.stage, steps.PlaceVM, func(o steps.VMOrder) (steps.Placement, error) { return placed(o.VMRef) })
	answer(d.stage, steps.LoadVM, placed)
	fine(d.stage, steps.UnplaceVM)
	fine(d.stage, steps.WirePorts)
	fine(d.stage, steps.UnwirePorts)
	note := func(what string) func(steps.VMPlan) (steps.Nothing, error) {
		return func(p steps.VMPlan) (steps.Nothing, error) { return steps.Nothing{}, d.do(what, p) }
	}
	answer(d.stage, steps.MakeDisk, func(p steps.VMPlan) (steps.DiskMade, error) { return steps.DiskMade{}, d.do("make disk", p) })
	answer(d.stage, steps.RemoveDisk, note("remove disk"))
	answer(d.stage, steps.RemoveDomain, note("remove"))
	answer(d.stage, steps.CreateDomain, note("create"))
	answer(d.stage, steps.StartDomain, func(p steps.VMPlan) (steps.PowerResult, error) { return steps.PowerResult{}, d.do("start", p) })
	answer(d.stage, steps.StopDomain, func(p steps.StopVM) (steps.PowerResult, error) { return steps.PowerResult{}, d.do("stop", p.Plan) })
	answer(d.stage, steps.LookAtAgent, func(steps.NodeRef) (api.AgentStatus, error) {
		return api.AgentStatus{Phase: d.where, Proof: d.proof}, nil
	})
	answer(d.stage, steps.LoadAgents, func(steps.Nothing) (out steps.AgentList, err error) {
		for _, id := range []string{"a", "b"} {
			out.Agents = append(out.Agents, steps.AgentPools{AgentRef: steps.AgentRef{ID: id, Name: id, Ready: true}, Pools: []steps.PoolOnNode{{Pool: "p", Path: "/" + id}}})
		}
		return out, nil
	})
	return d
}

func (d *dying) do(what string, p steps.VMPlan) error {
	if d.gone && p.Agent == "a" {
		return errNeverTaken
	}
	d.world = append(d.world, what+" "+p.Disk.PoolPath)
	return nil
}

// dies lets node a die, with the proof that it has; nil: there is none.
func (d *dying) dies(proof *api.Proof) {
	d.gone, d.where, d.proof = true, api.PhaseDown, proof
	if proof == nil {
		d.where = api.PhaseSuspect
	}
}

var (
	byLease    = &api.Proof{Kind: api.ProofLease}
	byOperator = &api.Proof{Kind: api.ProofOperator}
)

// TestADeadNodeHoldsUpNoDelete: what is proven not to run is deleted, whatever is left of it where nobody can reach it.
func TestADeadNodeHoldsUpNoDelete(t *testing.T) {
	for name, c := range map[string]struct {
		ha, shared bool
		proof      *api.Proof
		done       []string // nil: it waits
	}{
		"its own disk":                   {false, false, byOperator, []string{}},
		"a shared disk":                  {false, true, byOperator, []string{"remove disk /b"}},
		"HA, by its lease":               {true, true, byLease, []string{"remove disk /b"}},
		"not HA, by its lease":           {false, true, byLease, nil},
		"without a proof":                {true, true, nil, nil},
		"without a proof, its own disk":  {false, false, nil, nil},
		"not HA, by its lease, own disk": {false, false, byLease, nil},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDying(t, c.ha, c.shared)
			d.dies(c.proof)
			var why *problem.Problem
			d.onStuck(func(p *problem.Problem) {
				why = p
				d.gone, d.where, d.proof = false, api.PhaseReady, nil // so that the test ends
			})
			d.run(workflows.VMDelete, steps.Op{})
			require.Equal(t, api.OpSucceeded, d.outcome.State)
			if c.done != nil {
				require.False(t, d.stuck)
				require.Equal(t, c.done, append([]string{}, d.world...))
				return
			}
			require.NotNil(t, why)
			require.Contains(t, why.Error(), "nobody knows whether node a still has vm web1")
			require.Contains(t, why.Fix, "gnext host recover a --confirm-off")
			require.Equal(t, []string{"remove /a", "remove disk /a"}, d.world)
		})
	}
}

// TestANodeThatIsBackInTheMiddleOfADeleteIsCleaned: it was not asked to remove the domain when it was dead, and is now.
func TestANodeThatIsBackInTheMiddleOfADeleteIsCleaned(t *testing.T) {
	d := newDying(t, false, false)
	d.dies(byOperator)
	answer(d.stage, steps.SaveJournal, func(j steps.Journal) (steps.Nothing, error) {
		if j.Steps[1].State == api.StepDone { // the first of the two that need the node
			d.gone, d.where, d.proof = false, api.PhaseReady, nil
		}
		return steps.Nothing{}, nil
	})
	d.run(workflows.VMDelete, steps.Op{})
	require.Equal(t, api.OpSucceeded, d.outcome.State)
	require.Equal(t, []string{"remove /a", "remove disk /a"}, d.world)
}

// TestADeadNodeHoldsUpNoUndo: what began on a node that has died since ends, if it is proven that it did not begin to run.
func TestADeadNodeHoldsUpNoUndo(t *testing.T) {
	for name, c := range map[string]struct {
		table saga.Definition
		step  string // in which the node dies, having done it
		ha    bool
		was   api.Phase
		proof *api.Proof
		stuck bool
	}{
		"create":                       {workflows.VMCreate, steps.CreateDomain.Name, false, "", byOperator, false},
		"create, while its disk":       {workflows.VMCreate, steps.MakeDisk.Name, false, "", byOperator, false},
		"create, HA, by its lease":     {workflows.VMCreate, steps.CreateDomain.Name, true, "", byLease, false},
		"create, not HA, by its lease": {workflows.VMCreate, steps.CreateDomain.Name, false, "", byLease, true},
		"create, without a proof":      {workflows.VMCreate, steps.CreateDomain.Name, true, "", nil, true},
		"stop":                         {workflows.VMStop, steps.StopDomain.Name, true, api.PhaseRunning, byLease, false},
		"stop, not HA":                 {workflows.VMStop, steps.StopDomain.Name, false, api.PhaseRunning, byLease, false},
		"start":                        {workflows.VMStart, steps.StartDomain.Name, true, api.PhaseStopped, byLease, false},
		"start, not HA, by its lease":  {workflows.VMStart, steps.StartDomain.Name, false, api.PhaseStopped, byLease, true},
		"start, not HA, off":           {workflows.VMStart, steps.StartDomain.Name, false, api.PhaseStopped, byOperator, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDying(t, c.ha, false)
			d.was = c.was
			dies := func() error {
				if !d.gone && d.where == api.PhaseReady && !d.stuck {
					d.dies(c.proof)
					return problem.New(problem.Conflict, "the node died")
				}
				return errNeverTaken
			}
			switch c.step {
			case steps.CreateDomain.Name:
				answer(d.stage, steps.CreateDomain, func(steps.VMPlan) (steps.Nothing, error) { return steps.Nothing{}, dies() })
			case steps.MakeDisk.Name:
				answer(d.stage, steps.MakeDisk, func(steps.VMPlan) (steps.DiskMade, error) { return steps.DiskMade{}, dies() })
			case steps.StopDomain.Name:
				answer(d.stage, steps.StopDomain, func(steps.StopVM) (steps.PowerResult, error) { return steps.PowerResult{}, dies() })
			case steps.StartDomain.Name:
				answer(d.stage, steps.StartDomain, func(steps.VMPlan) (steps.PowerResult, error) { return steps.PowerResult{}, dies() })
			}
			d.onStuck(func(*problem.Problem) { d.gone, d.where, d.proof = false, api.PhaseReady, nil })
			d.run(c.table, steps.Op{Input: input(t, api.VMStop{})})
			require.Equal(t, api.OpFailed, d.outcome.State)
			require.Equal(t, c.stuck, d.stuck)
		})
	}
}
