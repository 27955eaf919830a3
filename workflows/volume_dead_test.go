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

// TestADeadNodeHoldsUpNoDisk: an operation on a disk of a VM whose node has died lets the VM go as soon as it is proven that it does not
// run there, or its recovery would wait for the dead node. A disk that may have been given to it is its own then.
func TestADeadNodeHoldsUpNoDisk(t *testing.T) {
	for name, c := range map[string]struct {
		table saga.Definition
		input any
		ha    bool
		proof *api.Proof
		state api.OperationState
		stuck bool
	}{
		"attach, HA":                   {workflows.VolumeAttach, api.DiskOrder{VM: "vm", Device: "vdc"}, true, byLease, api.OpSucceeded, false},
		"attach, not HA":               {workflows.VolumeAttach, api.DiskOrder{VM: "vm", Device: "vdc"}, false, byOperator, api.OpFailed, true},
		"attach, without a proof":      {workflows.VolumeAttach, api.DiskOrder{VM: "vm", Device: "vdc"}, true, nil, api.OpFailed, true},
		"attach, it had it":            {workflows.VolumeAttach, api.DiskOrder{VM: "vm", Device: "vdc", Had: true}, true, byLease, api.OpFailed, false},
		"detach, HA":                   {workflows.VolumeDetach, api.DiskOrder{VM: "vm", Device: "vdc"}, true, byLease, api.OpFailed, false},
		"detach, not HA, by its lease": {workflows.VolumeDetach, api.DiskOrder{VM: "vm", Device: "vdc"}, false, byLease, api.OpFailed, true},
		"limits, HA":                   {workflows.VolumeUpdate, api.VolumeTuning{QoS: api.VolumeQoS{IOPS: 1}}, true, byLease, api.OpFailed, false},
		"limits, without a proof":      {workflows.VolumeUpdate, api.VolumeTuning{QoS: api.VolumeQoS{IOPS: 1}}, true, nil, api.OpFailed, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDying(t, c.ha, true)
			answer(d.stage, steps.LoadVolume, func(steps.VolumeRef) (steps.VolumePlaced, error) {
				return steps.VolumePlaced{Disk: steps.DataDisk{Volume: "v"}, VMs: []steps.Placement{{Plan: d.plan}}}, nil
			})
			node := func(steps.DiskChange) (steps.Nothing, error) {
				if d.gone {
					return steps.Nothing{}, errNeverTaken
				}
				if d.stuck {
					return steps.Nothing{}, nil
				}
				d.dies(c.proof)
				return steps.Nothing{}, problem.New(problem.Conflict, "the node died")
			}
			answer(d.stage, steps.AttachDisk, node)
			answer(d.stage, steps.DetachDisk, node)
			answer(d.stage, steps.TuneDisk, node)
			d.onStuck(func(*problem.Problem) { d.gone, d.where, d.proof = false, api.PhaseReady, nil })
			d.run(c.table, steps.Op{Input: input(t, c.input)})
			require.Equal(t, c.state, d.outcome.State)
			require.Equal(t, c.stuck, d.stuck)
		})
	}
}
