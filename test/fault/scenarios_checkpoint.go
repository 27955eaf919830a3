package fault

import (
	"context"
	"fmt"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
)

// KeepVM asks for a checkpoint of the VM web1.
func KeepVM(name string) Accept { return checkpoint(name) }

func checkpoint(name string) Accept {
	return with((*admit).CreateCheckpoint, api.CheckpointCreate{Name: name, VM: "web1"})
}

func uncheckpoint(name string) Accept { return about((*admit).DeleteCheckpoint, name) }

func goBack(name string) Accept { return about((*admit).RevertCheckpoint, name) }

// lives has a guest write to its memory, and to its data volume.
func lives(memory, text string) func(ctx context.Context, w *World) error {
	return func(ctx context.Context, w *World) error {
		vm, err := store.Find[api.VM](ctx, w.KV, w.User, api.DefaultProject, "web1")
		if err != nil {
			return err
		}
		w.node(vm.Status.Agent).Compute.Remember(vm.ID, memory)
		return written(text, "data", "root")(ctx, w)
	}
}

// livesOn checks what the guest has in its memory, and what is in its data volume.
func livesOn(memory, text string) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		vm, err := store.Find[api.VM](ctx, w.KV, w.User, api.DefaultProject, "web1")
		if err != nil {
			return "", err
		}
		if got := w.node(vm.Status.Agent).Compute.Memory(vm.ID); got != memory {
			return fmt.Sprintf("the guest remembers %q, not %q", got, memory), nil
		}
		return shows("data", text)(ctx, w)
	}
}

// checkpoints returns the scenarios of the operations on checkpoints. What is in the memory of the guest and on its disks is part of
// the world that must be as it was, or as it is after the undisturbed operation.
func checkpoints() map[string][]Scenario {
	also := func(before []Accept, more ...Accept) []Accept { return append(slices.Clone(before), more...) }
	run := []Accept{createVM, makeVolume("data", "vms", nil), then(attach("data", "web1"), lives("n=1", "one "))}
	remote := []Accept{makeVM("web1", ha), makeVolume("data", "shared", nil), then(attach("data", "web1"), lives("n=1", "one "))}
	first := then(checkpoint("c1"), lives("n=2", "two "))
	second := then(checkpoint("c2"), lives("n=3", "three "))
	off := also(run, first, stopVM)
	return map[string][]Scenario{
		api.OpCheckpointCreate: {
			{Name: "checkpoint.create", Prepare: run, Accept: checkpoint("c1"), Check: livesOn("n=1", "one ")},
			{Name: "checkpoint.create, libvirtd dies in the switch", Prepare: run, Accept: checkpoint("c1"), Tears: 2, Check: livesOn("n=1", "one "+unheard), Every: 3},
			{Name: "checkpoint.create, the second", Prepare: also(run, first), Accept: checkpoint("c2"), Check: livesOn("n=2", "one two "), Every: 3},
			{Name: "checkpoint.create, shared", Prepare: remote, Accept: checkpoint("c1"), Check: livesOn("n=1", "one "), Every: 3},
		},
		api.OpCheckpointDelete: {
			{Name: "checkpoint.delete", Prepare: also(run, first), Accept: uncheckpoint("c1"), Check: livesOn("n=2", "one two ")},
			{Name: "checkpoint.delete, stopped", Prepare: off, Accept: uncheckpoint("c1"), Check: livesOn("", "one two "), Every: 3},
			{Name: "checkpoint.delete in the middle", Prepare: also(run, first, second), Accept: uncheckpoint("c1"), Check: livesOn("n=3", "one two three "), Every: 3},
			{Name: "checkpoint.delete, its volume detached", Prepare: also(remote, first, detach("data", "web1")), Accept: uncheckpoint("c1"), Check: livesOn("n=2", "one two "), Every: 3},
		},
		api.OpCheckpointRevert: {
			{Name: "checkpoint.revert", Prepare: also(run, first), Accept: goBack("c1"), Check: livesOn("n=1", "one ")},
			{Name: "checkpoint.revert, stopped", Prepare: off, Accept: goBack("c1"), Check: livesOn("n=1", "one "), Every: 3},
			{Name: "checkpoint.revert in a tree", Prepare: also(run, first, second, goBack("c1"), checkpoint("c3")), Accept: goBack("c2"), Check: livesOn("n=2", "one two "), Every: 3},
			{Name: "checkpoint.revert, shared, and larger since", Prepare: also(remote, first, grow("data"), root("web1", grow)), Accept: goBack("c1"), Check: livesOn("n=1", "one "), Every: 3},
		},
	}
}

// checkpointsShared returns scenarios of a VM that can be started elsewhere when its node is dead, and so must not be waited for.
func checkpointsShared() []Scenario {
	remote := []Accept{makeVM("web1", ha), makeVolume("data", "shared", nil), then(attach("data", "web1"), lives("n=1", "one "))}
	first := append(slices.Clone(remote), then(checkpoint("c1"), lives("n=2", "two ")))
	return []Scenario{
		{Name: "checkpoint.create, shared", Prepare: remote, Accept: checkpoint("c1")},
		{Name: "checkpoint.revert, shared", Prepare: first, Accept: goBack("c1")},
		{Name: "checkpoint.delete, shared", Prepare: first, Accept: uncheckpoint("c1")},
	}
}

// withCheckpoints returns more scenarios of operations on VMs that have checkpoints.
func withCheckpoints() map[string][]Scenario {
	return map[string][]Scenario{
		api.OpVMDelete: {{
			Name: "vm.delete with checkpoints", Every: 3, Prepare: []Accept{createVM, makeVolume("data", "vms", nil), attach("data", "web1"), checkpoint("c1"), checkpoint("c2")},
			Accept: on((*admit).DeleteVMWith, "web1", api.VMDelete{Snapshots: true}), Check: shows("data", ""),
		}},
		api.OpVMMigrate: {{
			Name: "vm.migrate with a checkpoint", Every: 4, Turns: true, Check: is("web1", "a2", api.PhaseRunning), Accept: migrate("web1", api.VMMigrate{}),
			Prepare: []Accept{makeVM("web1", ha), then(checkpoint("c1"), lives("n=2", ""))},
		}},
	}
}
