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
	out = []Scenario{
		{Name: "vm.migrate with a local volume", Prepare: run, Accept: migrate("web1", live), Check: there(api.PhaseRunning)},
		{Name: "vm.migrate cold with a local volume", Prepare: run, Accept: migrate("web1", cold), Check: there(api.PhaseRunning)},
		{Name: "vm.migrate of a standing root disk", Prepare: flat, Accept: migrate("web1", live), Check: there(api.PhaseRunning)},
		{Name: "vm.migrate cold of a standing root disk", Prepare: flat, Accept: migrate("web1", cold), Check: there(api.PhaseRunning)},
		{Name: "vm.migrate with a local volume, stopped", Prepare: append(slices.Clone(run), stopVM), Accept: migrate("web1", live), Check: there(api.PhaseStopped)},
		{Name: "vm.migrate back with a local volume", Prepare: append(slices.Clone(run), migrate("web1", live)), Accept: migrate("web1", live), Check: all(is("web1", "a1", api.PhaseRunning), shows("data", "one "))},
		{Name: "vm.migrate with a volume of an image", Prepare: []Accept{createVM, fromImage("vms"), then(attach("data", "web1"), written("one ", "data"))}, Accept: migrate("web1", live), Check: is("web1", "a2", api.PhaseRunning)},
		{Name: "vm.migrate cold with a volume of an image", Prepare: []Accept{createVM, fromImage("vms"), attach("data", "web1")}, Accept: migrate("web1", cold), Check: is("web1", "a2", api.PhaseRunning)},
		{Name: "vm.migrate with a volume that it reads", Prepare: []Accept{createVM, data, then(lend("data", "web1"), written("one ", "data"))}, Accept: migrate("web1", live), Check: there(api.PhaseRunning)},
		{Name: "vm.migrate with a shareable volume", Prepare: has(raw, createVM), Accept: migrate("web1", live), Check: there(api.PhaseRunning)},
		{Name: "vm.migrate cold with a shareable volume", Prepare: has(raw, createVM), Accept: migrate("web1", cold), Check: there(api.PhaseRunning)},
		{Name: "vm.migrate with a local volume only", Prepare: has(data, makeVM("web1", nil)), Accept: migrate("web1", live), Check: there(api.PhaseRunning)},
		{Name: "vm.migrate cold with a local volume only", Prepare: has(data, makeVM("web1", nil)), Accept: migrate("web1", cold), Check: there(api.PhaseRunning)},
	}
	for i := range out {
		out[i].Turns = true
		if out[i].Every = 4; i < 3 { // these make about all the calls that there are
			out[i].Every = 2
		}
	}
	for _, at := range []compute.MovePoint{compute.MoveCopied, compute.MoveSwitched, compute.MoveArrived} {
		for _, f := range fates {
			for where, vm := range map[string][]Accept{"": run, ", the rest shared": has(data, makeVM("web1", nil))} {
				s := cutAt(at, f.fate, fmt.Sprintf("vm.migrate with a local volume that %s when %s%s", f.name, at, where), false, false)
				s.Prepare = vm
				out = append(out, s)
			}
		}
	}
	return out
}
