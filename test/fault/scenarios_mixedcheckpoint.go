package fault

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
)

// livesOnAll checks what the guest has in its memory, and what is in both of its disks, as lives has written it.
func livesOnAll(memory, text string) func(ctx context.Context, w *World) (string, error) {
	return both(livesOn(memory, text), func(ctx context.Context, w *World) (string, error) {
		vm, err := store.Find[api.VM](ctx, w.KV, w.User, api.DefaultProject, "web1")
		if err != nil {
			return "", err
		}
		v, err := store.Get[api.Volume](ctx, w.KV, w.User, vm.Project, vm.Status.Volumes[0])
		if err != nil {
			return "", err
		}
		node, plan, err := w.find(ctx, v)
		if err != nil {
			return "", err
		}
		got, _, err := node.disks.Shows(plan)
		if _, rest, is := strings.Cut(got, ": "); err != nil || is && rest[min(len(api.NewID()), len(rest)):] == text { // after its image, which has its ID
			return "", err
		}
		return fmt.Sprintf("the root disk shows %q, and should end with its image and %q", got, text), nil
	})
}

// checkpointsMixed returns scenarios of checkpoints of a VM that has one of its disks in Ceph and the other in a pool of files: either the
// root disk, beside which the memory is, or the data volume is in Ceph.
func checkpointsMixed() map[string][]Scenario {
	also := func(before []Accept, more ...Accept) []Accept { return append(slices.Clone(before), more...) }
	life := func(root func(*api.VMCreate), data string) []Accept {
		return []Accept{cephOn(), makeVM("web1", root), makeVolume("data", data, nil), then(attach("data", "web1"), lives("n=1", "one "))}
	}
	files, ceph := life(local, "fast"), life(fast, "vms") // by where the root disk is
	first := then(checkpoint("c1"), lives("n=2", "two "))
	second := then(checkpoint("c2"), lives("n=3", "three "))
	return map[string][]Scenario{
		api.OpCheckpointCreate: {
			{Name: "checkpoint.create, root in files, data in Ceph", Prepare: files, Accept: checkpoint("c1"), Check: livesOnAll("n=1", "one ")},
			{Name: "checkpoint.create, root in Ceph, data in files", Prepare: ceph, Accept: checkpoint("c1"), Check: livesOnAll("n=1", "one ")},
			{
				Name: "checkpoint.create, mixed, libvirtd dies in the switch", Prepare: ceph, Accept: checkpoint("c1"), Tears: 2,
				Check: livesOn("n=1", "one "+unheard+unheard), Every: 3,
			},
			{Name: "checkpoint.create, mixed, the second", Prepare: also(files, first), Accept: checkpoint("c2"), Check: livesOnAll("n=2", "one two "), Every: 3},
		},
		api.OpCheckpointDelete: {
			{Name: "checkpoint.delete, root in files, data in Ceph", Prepare: also(files, first), Accept: uncheckpoint("c1"), Check: livesOnAll("n=2", "one two ")},
			{Name: "checkpoint.delete, root in Ceph, data in files", Prepare: also(ceph, first), Accept: uncheckpoint("c1"), Check: livesOnAll("n=2", "one two "), Every: 3},
			{
				Name: "checkpoint.delete in the middle, mixed, stopped", Prepare: also(files, first, second, stopVM), Accept: uncheckpoint("c1"),
				Check: livesOnAll("", "one two three "), Every: 3,
			},
		},
		api.OpCheckpointRevert: {
			{Name: "checkpoint.revert, root in files, data in Ceph", Prepare: also(files, first), Accept: goBack("c1"), Check: livesOnAll("n=1", "one ")},
			{Name: "checkpoint.revert, root in Ceph, data in files", Prepare: also(ceph, first), Accept: goBack("c1"), Check: livesOnAll("n=1", "one "), Every: 3},
			{Name: "checkpoint.revert, mixed, stopped", Prepare: also(files, first, stopVM), Accept: goBack("c1"), Check: livesOnAll("n=1", "one "), Every: 3},
			{
				Name: "checkpoint.revert in a tree, mixed, and larger since", Accept: goBack("c2"), Check: livesOnAll("n=2", "one two "), Every: 6,
				Prepare: also(ceph, first, second, goBack("c1"), checkpoint("c3"), grow("data"), root("web1", grow)),
			},
		},
		api.OpVMDelete: {{
			Name: "vm.delete with checkpoints, mixed", Every: 9, Prepare: also(ceph, checkpoint("c1"), checkpoint("c2")),
			Accept: on((*admit).DeleteVMWith, "web1", api.VMDelete{Snapshots: true}), Check: shows("data", "one "),
		}},
	}
}

// checkpointsLostMixed returns scenarios of a VM that can be started elsewhere when its node is dead, and so must not be waited for: but
// only where both of its pools are.
func checkpointsLostMixed() []Scenario {
	in := func(r *api.VMCreate) { ha(r); fast(r) }
	run := []Accept{cephOn("a1", "a3"), makeVM("web1", in), makeVolume("data", "shared", nil), then(attach("data", "web1"), lives("n=1", "one "))}
	turned := []Accept{cephOn("a1", "a3"), makeVM("web1", ha), makeVolume("data", "fast", nil), then(attach("data", "web1"), lives("n=1", "one "))}
	first := then(checkpoint("c1"), lives("n=2", "two "))
	return []Scenario{
		{Name: "checkpoint.create, root in Ceph, data in shared files", Prepare: run, Accept: checkpoint("c1")},
		{Name: "checkpoint.create, root in shared files, data in Ceph", Prepare: turned, Accept: checkpoint("c1")},
		{Name: "checkpoint.revert, root in Ceph, data in shared files", Prepare: append(slices.Clone(run), first), Accept: goBack("c1")},
		{Name: "checkpoint.revert, root in shared files, data in Ceph", Prepare: append(slices.Clone(turned), first), Accept: goBack("c1")},
		{Name: "checkpoint.delete, root in shared files, data in Ceph", Prepare: append(slices.Clone(turned), first), Accept: uncheckpoint("c1")},
	}
}
