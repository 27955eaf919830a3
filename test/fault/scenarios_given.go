package fault

import (
	"context"
	"fmt"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
)

// givenVolumes returns the scenarios of VMs that get volumes which exist already when they are made, and of volumes that are made for one.
func givenVolumes() map[string][]Scenario {
	data := then(makeVolume("data", "vms", nil), written("one ", "data"))
	gets := func(r *api.VMCreate) {
		local(r)
		r.Volumes = []api.VMVolume{{Size: api.GiB}}
		r.Attach = []api.VMAttach{{Volume: "data"}, {Volume: "net", ReadOnly: true}}
	}
	has := both(given("web1", "vdc", "vdd", "vde"), shows("data", "one "))
	return map[string][]Scenario{
		api.OpVMCreate: {
			{Name: "vm.create that gets volumes", Prepare: []Accept{data, makeVolume("net", "shared", nil)}, Accept: makeVM("web1", gets), Check: has},
			{
				Name: "vm.create that gets volumes, Ceph", Prepare: []Accept{cephOn(), then(makeVolume("data", "fast", nil), written("one ", "data"))},
				Accept: makeVM("web1", func(r *api.VMCreate) { r.Attach = []api.VMAttach{{Volume: "data"}} }), Check: both(given("web1", "vdc"), shows("data", "one ")), Every: 3,
			},
		},
		api.OpVolumeCreate: {
			{Name: "volume.create in a vm, stopped", Prepare: []Accept{createVM, stopVM}, Accept: makeVolume("data", "vms", forWeb), Check: given("web1", "vdc"), Every: 3},
			{Name: "volume.create in a vm, shared", Prepare: []Accept{makeVM("web1", ha), makeVolume("net", "shared", nil), attach("net", "web1")}, Accept: makeVolume("data", "shared", forWeb), Check: given("web1", "vdc", "vdd"), Every: 3},
			{
				Name: "volume.create in a vm, of what it has", Prepare: []Accept{createVM, stopVM, then(makeVolume("net", "vms", forWeb), written("one ", "net"))},
				Accept: makeVolume("data", "", func(r *api.VolumeCreate) { r.Volume, r.Size = "net", 0; forWeb(r) }), Check: both(given("web1", "vdc", "vdd"), shows("data", "one ")), Every: 3,
			},
		},
	}
}

// forWeb has web1 get a volume that is made.
func forWeb(r *api.VolumeCreate) { r.VM, r.Attach = "web1", true }

// both says what the first of two checks finds.
func both(one, other func(context.Context, *World) (string, error)) func(context.Context, *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		if wrong, err := one(ctx, w); wrong != "" || err != nil {
			return wrong, err
		}
		return other(ctx, w)
	}
}

// given checks that a VM has data disks of these names, which its volumes know of, too.
func given(vm string, devices ...string) func(context.Context, *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		m, err := store.Find[api.VM](ctx, w.KV, w.User, api.DefaultProject, vm)
		if err != nil {
			return "", err
		}
		var known, there []string
		for _, id := range m.Status.Volumes[1:] {
			v, err := store.Get[api.Volume](ctx, w.KV, w.User, m.Project, id)
			if err != nil {
				return "", err
			}
			if at := v.Attachment(m.ID); at != nil {
				known = append(known, at.Device)
			}
		}
		for _, d := range w.node(m.Status.Agent).Compute.Disks(m.ID)[1:] {
			there = append(there, d.Device)
		}
		if !slices.Equal(known, devices) || !slices.Equal(there, devices) {
			return fmt.Sprintf("the records tell of %v, and the guest has %v, not %v", known, there, devices), nil
		}
		return "", nil
	}
}
