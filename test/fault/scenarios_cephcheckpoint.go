package fault

import (
	"slices"

	"github.com/nextstack/nextstack/api"
)

// fast has a VM have its root disk in Ceph.
func fast(r *api.VMCreate) { r.Pool = "fast" }

// checkpointsInCeph returns scenarios of checkpoints of a VM all of whose disks are in Ceph, where snapshots have names.
func checkpointsInCeph() map[string][]Scenario {
	also := func(before []Accept, more ...Accept) []Accept { return append(slices.Clone(before), more...) }
	run := []Accept{cephOn(), makeVM("web1", fast), makeVolume("data", "fast", nil), then(attach("data", "web1"), lives("n=1", "one "))}
	first := then(checkpoint("c1"), lives("n=2", "two "))
	second := then(checkpoint("c2"), lives("n=3", "three "))
	off := also(run, first, stopVM)
	return map[string][]Scenario{
		api.OpCheckpointCreate: {
			{Name: "checkpoint.create, Ceph", Prepare: run, Accept: checkpoint("c1"), Check: livesOn("n=1", "one ")},
			{Name: "checkpoint.create, the second, Ceph", Prepare: also(run, first), Accept: checkpoint("c2"), Check: livesOn("n=2", "one two "), Every: 3},
		},
		api.OpCheckpointDelete: {
			{Name: "checkpoint.delete, Ceph", Prepare: also(run, first), Accept: uncheckpoint("c1"), Check: livesOn("n=2", "one two ")},
			{
				Name: "checkpoint.delete in a branch, Ceph", Prepare: also(run, first, second, then(goBack("c1"), lives("n=4", "four "))), Accept: uncheckpoint("c1"),
				Check: livesOn("n=4", "one four "), Every: 3,
			},
		},
		api.OpCheckpointRevert: {
			{Name: "checkpoint.revert, Ceph", Prepare: also(run, first), Accept: goBack("c1"), Check: livesOn("n=1", "one ")},
			{Name: "checkpoint.revert, Ceph, stopped", Prepare: off, Accept: goBack("c1"), Check: livesOn("n=1", "one "), Every: 3},
			{Name: "checkpoint.revert in a tree, Ceph", Prepare: also(run, first, second, goBack("c1"), checkpoint("c3")), Accept: goBack("c2"), Check: livesOn("n=2", "one two "), Every: 3},
			{Name: "checkpoint.revert, Ceph, and larger since", Prepare: also(run, first, grow("data"), root("web1", grow)), Accept: goBack("c1"), Check: livesOn("n=1", "one "), Every: 3},
			{Name: "checkpoint.revert to where it is, Ceph", Prepare: also(run, first, then(goBack("c1"), lives("n=5", "five "))), Accept: goBack("c1"), Check: livesOn("n=1", "one "), Every: 3},
		},
		api.OpVMDelete: {{
			Name: "vm.delete with checkpoints, Ceph", Every: 3, Prepare: also(run, checkpoint("c1"), checkpoint("c2")),
			Accept: on((*admit).DeleteVMWith, "web1", api.VMDelete{Snapshots: true}), Check: shows("data", "one "),
		}},
	}
}

// checkpointsLostInCeph returns scenarios of a VM that can be started elsewhere when its node is dead, and so must not be waited for.
func checkpointsLostInCeph() []Scenario {
	in := func(r *api.VMCreate) { ha(r); fast(r) }
	run := []Accept{cephOn(), makeVM("web1", in), makeVolume("data", "fast", nil), then(attach("data", "web1"), lives("n=1", "one "))}
	first := append(slices.Clone(run), then(checkpoint("c1"), lives("n=2", "two ")))
	return []Scenario{
		{Name: "checkpoint.create, Ceph", Prepare: run, Accept: checkpoint("c1")},
		{Name: "checkpoint.revert, Ceph", Prepare: first, Accept: goBack("c1")},
		{Name: "checkpoint.delete, Ceph", Prepare: first, Accept: uncheckpoint("c1")},
	}
}
