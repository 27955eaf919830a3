package workflows_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/steps"
)

// TestADeadNodeHoldsUpNoVolume: a volume that goes to another pool on a node that dies is where the journal says, as soon as it is proven
// that nothing happens there any more.
func TestADeadNodeHoldsUpNoVolume(t *testing.T) {
	const running, off, none = api.PhaseRunning, api.PhaseStopped, api.Phase("")
	const moved, back = api.OpSucceeded, api.OpFailed
	for name, c := range map[string]struct {
		was    api.Phase // of the VM that has it; empty: none has
		ha     bool
		local  bool   // the pool that it goes to is the node's own
		step   string // in which the node dies, having done it
		proof  *api.Proof
		state  api.OperationState
		stuck  bool
		remove string // which copy is removed, and by whom; empty: none
	}{
		"HA, in the copy":                   {running, true, false, steps.CopyVolume.Name, byLease, back, false, "new by b"},
		"HA, in the switch":                 {running, true, false, steps.SwitchVolume.Name, byLease, moved, false, "old by b"},
		"HA, while it is cleaned up":        {running, true, false, steps.RemoveVolume.Name, byLease, moved, false, "old by b"},
		"HA, while it is made":              {running, true, false, steps.MakeVolume.Name, byLease, back, false, "new by b"},
		"HA, without a proof":               {running, true, false, steps.CopyVolume.Name, nil, back, true, "new by a"},
		"not HA, in the copy":               {running, false, false, steps.CopyVolume.Name, byOperator, back, true, "new by a"},
		"not HA, while it is cleaned up":    {running, false, false, steps.RemoveVolume.Name, byOperator, moved, false, "old by b"},
		"not HA, by its lease":              {running, false, false, steps.RemoveVolume.Name, byLease, moved, true, "old by a"},
		"off, in the copy":                  {off, false, false, steps.CopyVolume.Name, byOperator, back, false, "new by b"},
		"off, in the switch":                {off, false, false, steps.SwitchVolume.Name, byOperator, moved, false, "old by b"},
		"off and HA, by its lease":          {off, true, false, steps.CopyVolume.Name, byLease, back, true, "new by a"},
		"off, into a pool of the node":      {off, false, true, steps.CopyVolume.Name, byOperator, back, true, "new by a"},
		"no VM, in the copy":                {none, false, false, steps.CopyVolume.Name, byOperator, back, false, "new by b"},
		"no VM, by its lease":               {none, false, false, steps.CopyVolume.Name, byLease, back, true, "new by a"},
		"no VM, into a pool of the node":    {none, false, true, steps.CopyVolume.Name, byOperator, back, false, ""},
		"no VM, while it is cleaned up":     {none, false, false, steps.RemoveVolume.Name, byOperator, moved, false, "old by b"},
		"no VM, cleaned up without a proof": {none, false, false, steps.RemoveVolume.Name, nil, moved, true, "old by a"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDying(t, c.ha, true)
			to := api.PoolOnNode{Pool: "new", Shared: !c.local}
			answer(d.stage, steps.PlaceVolumeMove, func(steps.VolumeMoveOrder) (steps.VolumePlaced, error) {
				p := steps.VolumePlaced{Plan: steps.VolumePlan{Volume: "v", Agent: "a", Pool: steps.PoolOnNode{Pool: "old", Shared: true}}}
				if c.was != none {
					p.VMs = []steps.Placement{{Phase: c.was, Plan: d.plan}}
				}
				return p, nil
			})
			answer(d.stage, steps.LoadAgents, func(steps.Nothing) (out steps.AgentList, err error) {
				for _, id := range []string{"a", "b"} {
					out.Agents = append(out.Agents, steps.AgentPools{AgentRef: steps.AgentRef{ID: id, Name: id, Ready: true}, Pools: []steps.PoolOnNode{{Pool: "old"}, {Pool: "new"}}})
				}
				return out, nil
			})
			on := func(step string) error {
				switch {
				case d.gone:
					return errNeverTaken
				case step == c.step && !d.stuck:
					d.dies(c.proof)
					return problem.New(problem.Unavailable, "the node died")
				}
				return nil
			}
			removed := ""
			answer(d.stage, steps.MakeVolume, func(steps.VolumePlan) (steps.Nothing, error) { return steps.Nothing{}, on(steps.MakeVolume.Name) })
			answer(d.stage, steps.CopyVolume, func(in steps.VolumeCopy) (steps.VolumeCopied, error) {
				require.Equal(t, c.was == off || c.was == running && c.ha, in.Hold)
				return steps.VolumeCopied{Took: 1}, on(steps.CopyVolume.Name)
			})
			answer(d.stage, steps.SettleVolumeCopy, func(steps.VolumeCopy) (steps.VolumeSettled, error) { return steps.VolumeSettled{}, on("settle") })
			answer(d.stage, steps.SwitchVolume, func(steps.VolumeCopy) (steps.VolumeSwitched, error) {
				return steps.VolumeSwitched{Pause: 1}, on(steps.SwitchVolume.Name)
			})
			answer(d.stage, steps.RemoveVolume, func(v steps.VolumePlan) (steps.Nothing, error) {
				if v.Agent == "a" {
					if err := on(steps.RemoveVolume.Name); err != nil {
						return steps.Nothing{}, err
					}
				}
				removed = v.Pool.Pool + " by " + v.Agent
				return steps.Nothing{}, nil
			})
			why := ""
			d.onStuck(func(p *problem.Problem) {
				why = p.Error()
				d.gone, d.where, d.proof = false, api.PhaseReady, nil
			})
			d.run(workflows.VolumeMigrate, steps.Op{
				Target: api.Ref{Kind: api.KindVolume, ID: "v"},
				Input:  input(t, api.VolumeMove{From: api.PoolOnNode{Pool: "old", Shared: true}, To: to, Layer: "layer", Agent: api.AgentRef{ID: "a", Name: "a"}}),
			})
			require.Equal(t, c.state, d.outcome.State)
			require.Equal(t, c.stuck, d.stuck)
			require.Equal(t, c.remove, removed)
			switch {
			case c.stuck && c.was == running && !c.ha && c.step == steps.CopyVolume.Name:
				require.Contains(t, why, "nobody knows in which pool vm web1 had volume")
			case c.stuck && !c.local:
				require.Contains(t, why, "nobody knows whether node a still works on volume")
			}
		})
	}
}
