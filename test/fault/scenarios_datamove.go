package fault

import (
	"context"
	"fmt"
	"slices"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
)

// alongside returns the moves of VMs that take with them what no other node reaches besides a root disk that is made on an image: data
// volumes, and root disks that are made on none. What is in them is written before.
func alongside() (out []Scenario) {
	live, cold := api.VMMigrate{CopyStorage: true}, api.VMMigrate{Cold: true, CopyStorage: true}
	data, raw := makeVolume("data", "vms", nil), makeVolume("data", "vms", func(r *api.VolumeCreate) { r.Shareable = true })
	has := func(volume Accept, before ...Accept) []Accept {
		return append(before, volume, then(attach("data", "web1"), written("one ", "data", "root")))
	}
	run := has(data, createVM)
	flat := append(slices.Clone(run), root("web1", flatten))
	there := func(phase api.Phase) func(ctx context.Context, w *World) (string, error) {
		return all(is("web1", "a2", phase), shows("data", "one "))
	}
	half := has(data, makeVM("web1", nil))
	out = []Scenario{
		{Name: "vm.migrate with a local volume", Prepare: run, Accept: migrate("web1", live), Check: there(api.PhaseRunning), Every: 8},
		{Name: "vm.migrate cold with a local volume", Prepare: run, Accept: migrate("web1", cold), Check: there(api.PhaseRunning), Every: 8},
		{Name: "vm.migrate of a standing root disk", Prepare: flat, Accept: migrate("web1", live), Check: there(api.PhaseRunning)},
		{Name: "vm.migrate cold of a standing root disk", Prepare: flat, Accept: migrate("web1", cold), Check: there(api.PhaseRunning)},
		{Name: "vm.migrate with a local volume, stopped", Prepare: append(slices.Clone(run), stopVM), Accept: migrate("web1", live), Check: there(api.PhaseStopped)},
		{Name: "vm.migrate with a volume of an image", Prepare: []Accept{createVM, fromImage("vms"), then(attach("data", "web1"), written("one ", "data"))}, Accept: migrate("web1", live), Check: is("web1", "a2", api.PhaseRunning)},
		{Name: "vm.migrate with a volume that it reads", Prepare: []Accept{createVM, data, then(lend("data", "web1"), written("one ", "data"))}, Accept: migrate("web1", live), Check: there(api.PhaseRunning)},
		{Name: "vm.migrate cold with a shareable volume", Prepare: has(raw, createVM), Accept: migrate("web1", cold), Check: there(api.PhaseRunning)},
		{Name: "vm.migrate with a local volume only", Prepare: half, Accept: migrate("web1", live), Check: there(api.PhaseRunning)},
		{Name: "vm.migrate cold with a local volume only", Prepare: half, Accept: migrate("web1", cold), Check: there(api.PhaseRunning)},
	}
	for i := range out {
		if out[i].Turns = true; out[i].Every == 0 {
			out[i].Every = 30
		}
	}
	for _, f := range fates {
		for where, vm := range map[string][]Accept{"": run, ", the rest shared": half} {
			s := cutAt(compute.MoveSwitched, f.fate, fmt.Sprintf("vm.migrate with a local volume that %s when switched%s", f.name, where), false, false)
			s.Prepare, s.Every = vm, 8
			out = append(out, s)
		}
	}
	return out
}

// deaths returns of which nodes' deaths a move is to be tried; none: it makes the calls that another does.
func deaths(move string) []string {
	switch move {
	case "vm.migrate to a node", "vm.migrate back with its disk", "vm.migrate of a standing root disk", "vm.migrate cold of a standing root disk",
		"vm.migrate with a volume of an image", "vm.migrate with a volume that it reads", "vm.migrate cold with a shareable volume":
		return nil
	case "vm.migrate with its disk", "vm.migrate with its disk and a volume", "vm.migrate with a local volume", "vm.migrate with a local volume only":
		return []string{"a1", "a2"} // when both are dead it waits for its source
	case "vm.migrate cold with a local volume only":
		return []string{"a1"} // when its target is dead it waits for that: the guest may have run there
	}
	return []string{"a1", "a2", "a1 a2"}
}
