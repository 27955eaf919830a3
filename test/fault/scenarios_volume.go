package fault

import (
	"context"
	"fmt"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

// makeVolume asks for an empty volume in a pool, changed by change, which may be nil.
func makeVolume(name, pool string, change func(*api.VolumeCreate)) Accept {
	req := api.VolumeCreate{Name: name, Size: api.GiB, Pool: pool}
	if change != nil {
		change(&req)
	}
	return with((*admit).CreateVolume, req)
}

// capture asks for an image of what is in a pool.
func capture(r api.ImageCreate) Accept {
	r.Name = "captured"
	return with((*admit).CreateImage, r)
}

// captured says what is wrong with the image that was captured: what is in it must end so.
func captured(text string) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		img, err := store.Find[api.Image](ctx, w.KV, w.User, api.DefaultProject, "captured")
		if err != nil {
			return "", err
		}
		if got := w.images.texts[img.ID]; got != text {
			return fmt.Sprintf("the image holds %q, not %q", got, text), nil
		}
		return "", nil
	}
}

func export(volume string, e api.VolumeExport) Accept { return on((*admit).ExportVolume, volume, e) }

// exported says what is wrong with the only export that there is: what is in it must end so.
func exported(text string) func(ctx context.Context, w *World) (string, error) {
	return func(_ context.Context, w *World) (string, error) {
		w.images.mu.Lock()
		defer w.images.mu.Unlock()
		for e := range w.images.others {
			if got := w.images.texts[e.Image]; got != text {
				return fmt.Sprintf("the export holds %q, not %q", got, text), nil
			}
			return "", nil
		}
		return "there is no export", nil
	}
}

func attach(volume, vm string) Accept {
	return on((*admit).AttachVolume, volume, api.VolumeAttach{VM: vm})
}

func lend(volume, vm string) Accept {
	return on((*admit).AttachVolume, volume, api.VolumeAttach{VM: vm, ReadOnly: true})
}

func detach(volume, vm string) Accept {
	return on((*admit).DetachVolume, volume, api.VolumeDetach{VM: vm})
}

func grow(volume string) Accept {
	return on((*admit).ResizeVolume, volume, api.VolumeResize{Size: 3 * api.GiB})
}

func retune(volume string, u api.VolumeUpdate) Accept { return on((*admit).UpdateVolume, volume, u) }

func discard(volume string, d api.VolumeDelete) Accept { return on((*admit).DeleteVolume, volume, d) }

func snap(name, volume string) Accept {
	return with((*admit).CreateSnapshot, api.SnapshotCreate{Name: name, Volume: volume})
}

func revert(name string, r api.SnapshotRevert) Accept { return on((*admit).RevertSnapshot, name, r) }

func unsnap(name string) Accept { return about((*admit).DeleteSnapshot, name) }

// root makes a request about the root volume of a VM, whose name nobody knows beforehand.
func root(vm string, accept func(volume string) Accept) Accept {
	return func(ctx context.Context, w *World, h auth.Handle) (*api.Operation, error) {
		m, err := store.Find[api.VM](ctx, w.KV, w.User, api.DefaultProject, vm)
		if err != nil {
			return nil, err
		}
		return accept(m.Status.Volumes[0])(ctx, w, h)
	}
}

// written writes to a volume, so that what is in it before and after is not the same.
func written(text string, volumes ...string) func(ctx context.Context, w *World) error {
	return func(ctx context.Context, w *World) error {
		all, err := store.List[api.Volume](ctx, w.KV, w.User, "*")
		if err != nil {
			return err
		}
		for _, v := range all {
			if !slices.Contains(volumes, v.Name) && (!v.Spec.Root || !slices.Contains(volumes, "root")) {
				continue
			}
			node, plan, err := w.find(ctx, v)
			if err != nil {
				return err
			}
			if err := node.disks.Write(plan, text); err != nil {
				return err
			}
		}
		return nil
	}
}

// volume returns a volume by its name, or the only root disk there is: "root".
func (w *World) volume(ctx context.Context, name string) (*api.Volume, error) {
	all, err := store.List[api.Volume](ctx, w.KV, w.User, "*")
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(v *api.Volume) bool { return v.Name == name || name == "root" && v.Spec.Root })
	if i < 0 {
		return nil, fmt.Errorf("there is no volume %s", name)
	}
	return all[i], nil
}

// find returns a volume as its node, or one that sees it, knows it.
func (w *World) find(ctx context.Context, v *api.Volume) (*Node, steps.VolumePlan, error) {
	pool, err := store.Get[api.Pool](ctx, w.KV, w.User, "", v.Spec.Pool)
	if err != nil {
		return nil, steps.VolumePlan{}, err
	}
	node := w.Nodes[0]
	if at := w.node(v.Status.Agent); at != nil {
		node = at
	}
	return node, steps.VolumePlan{Volume: v.ID, Pool: pool.OnNode(), Layer: v.Status.Layer, Shareable: v.Spec.Shareable}, nil
}

// then carries a plant out after a request, as if it belonged to it.
func then(accept Accept, plant func(ctx context.Context, w *World) error) Accept {
	return func(ctx context.Context, w *World, h auth.Handle) (*api.Operation, error) {
		if _, err := w.Do(ctx, accept); err != nil {
			return nil, err
		}
		if err := plant(ctx, w); err != nil {
			return nil, err
		}
		return w.Admission.Noop(ctx, h, project)
	}
}

// shows checks what a volume shows, and where it is.
func shows(volume, text string) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		v, err := w.volume(ctx, volume)
		if err != nil {
			return "", err
		}
		node, plan, err := w.find(ctx, v)
		if err != nil {
			return "", err
		}
		got, size, err := node.disks.Shows(plan)
		if err != nil || got == text && size == v.Spec.Size {
			return "", err
		}
		return fmt.Sprintf("volume %s shows %q in %d bytes, not %q in %d", volume, got, size, text, v.Spec.Size), nil
	}
}

// volumes returns the scenarios of the operations on volumes and snapshots.
func volumes() map[string][]Scenario {
	name, yes := "renamed", true
	labels := map[string]string{"tier": "gold"}
	ours := makeVolume("data", "shared", func(r *api.VolumeCreate) { r.Shareable = true })
	qos := api.VolumeQoS{IOPS: 500, IOPSBurst: 1000, Bandwidth: api.MiB}
	data, net := makeVolume("data", "vms", nil), makeVolume("data", "shared", nil)
	run, halt := []Accept{createVM, data, attach("data", "web1")}, []Accept{createVM, stopVM, data, attach("data", "web1")}
	remote := []Accept{makeVM("web1", nil), net, attach("data", "web1")}
	now := api.VolumeDelete{Now: true}
	also := func(before []Accept, more ...Accept) []Accept { return append(slices.Clone(before), more...) }
	from := func(change func(*api.VolumeCreate)) Accept {
		return makeVolume("copy", "", func(r *api.VolumeCreate) { r.Size, r.Pool = 0, ""; change(r) })
	}
	kept := then(snap("s1", "data"), written("one ", "data")) // what a snapshot of it does not have
	more := then(snap("s2", "data"), written("two ", "data"))
	all := map[string][]Scenario{
		api.OpVolumeCreate: {
			{Name: "volume.create in a vm", Prepare: []Accept{createVM}, Accept: makeVolume("data", "vms", forWeb), Check: given("web1", "vdc")},
			{Name: "volume.create", Accept: data},
			{Name: "volume.create, shared", Accept: net},
			{Name: "volume.create, shareable", Accept: ours},
			{Name: "volume.create from an image", Accept: makeVolume("data", "vms", func(r *api.VolumeCreate) { r.Image = "cirros" })},
			{Name: "volume.create for a vm", Prepare: []Accept{createVM, migrate("web1", api.VMMigrate{CopyStorage: true})}, Accept: makeVolume("data", "vms", func(r *api.VolumeCreate) { r.VM = "web1" })},
			{Name: "volume.create from a snapshot", Prepare: also(run, kept), Accept: from(func(r *api.VolumeCreate) { r.Snapshot = "s1" }), Check: shows("copy", "")},
			{Name: "volume.create from a volume", Prepare: also(halt, kept), Accept: from(func(r *api.VolumeCreate) { r.Volume = "data" }), Check: shows("copy", "one ")},
		},
		api.OpImageCapture: {
			{Name: "image.capture of a volume", Prepare: also(halt, kept), Accept: capture(api.ImageCreate{Volume: "data"}), Check: captured("one ")},
			{Name: "image.capture of a snapshot", Prepare: also(run, kept), Accept: capture(api.ImageCreate{Snapshot: "s1"}), Check: captured("")},
		},
		api.OpVolumeExport: {
			{Name: "volume.export", Prepare: also(halt, kept), Accept: export("data", api.VolumeExport{Format: api.FormatVMDK}), Check: exported("one ")},
			{Name: "volume.export of a snapshot", Prepare: also(run, kept), Accept: export("data", api.VolumeExport{Snapshot: "s1"}), Check: exported("")},
		},
		api.OpVolumeUpdate: {
			{Name: "volume.update, limits", Prepare: run, Accept: retune("data", api.VolumeUpdate{QoS: &qos})},
			{Name: "volume.update", Prepare: run, Accept: retune("data", api.VolumeUpdate{Name: &name, Labels: &labels, Protected: &yes})},
			{Name: "volume.update, limits of one that no vm has", Prepare: []Accept{data}, Accept: retune("data", api.VolumeUpdate{QoS: &qos})},
			{Name: "volume.update, limits in two vms", Accept: retune("data", api.VolumeUpdate{QoS: &qos}), Prepare: []Accept{
				makeVM("web1", nil), makeVM("web2", nil), net, lend("data", "web1"), lend("data", "web2"),
			}},
			{Name: "volume.update, limits of a root disk", Prepare: []Accept{createVM, stopVM}, Accept: root("web1", func(v string) Accept { return retune(v, api.VolumeUpdate{QoS: &qos}) })},
		},
		api.OpVolumeAttach: {
			{Name: "volume.attach", Prepare: []Accept{createVM, data}, Accept: attach("data", "web1")},
			{Name: "volume.attach, stopped", Prepare: []Accept{createVM, stopVM, data}, Accept: attach("data", "web1")},
			{Name: "volume.attach, shared", Prepare: []Accept{makeVM("web1", ha), net}, Accept: attach("data", "web1")},
			{Name: "volume.attach, libvirtd dies over it", Prepare: []Accept{createVM, data}, Accept: attach("data", "web1"), Tears: 2},
			{Name: "volume.attach once more", Prepare: run, Accept: attach("data", "web1")},
			{Name: "volume.attach to a second vm", Prepare: []Accept{makeVM("web1", nil), makeVM("web2", nil), net, lend("data", "web1")}, Accept: lend("data", "web2")},
			{Name: "volume.attach of a shareable one to a second vm", Prepare: []Accept{makeVM("web1", nil), makeVM("web2", nil), ours, attach("data", "web1")}, Accept: attach("data", "web2")},
		},
		api.OpVolumeDetach: {
			{Name: "volume.detach", Prepare: run, Accept: detach("data", "")},
			{Name: "volume.detach, stopped", Prepare: halt, Accept: detach("data", "web1")},
			{Name: "volume.detach, shared", Prepare: also(remote, makeVolume("more", "shared", nil), attach("more", "web1")), Accept: detach("data", "")},
		},
		api.OpVolumeResize: {
			{Name: "volume.resize", Prepare: run, Accept: grow("data"), TurnsAt: "grow", Check: shows("data", "")},
			{Name: "volume.resize, stopped", Prepare: halt, Accept: grow("data"), TurnsAt: "grow", Check: shows("data", "")},
			{Name: "volume.resize of one that no vm has", Prepare: []Accept{net}, Accept: grow("data"), TurnsAt: "grow", Check: shows("data", "")},
			{Name: "volume.resize of a root disk", Prepare: []Accept{createVM}, Accept: root("web1", grow), TurnsAt: "grow"},
		},
		api.OpVolumeDelete: {
			{Name: "volume.delete", Prepare: []Accept{data}, Accept: discard("data", api.VolumeDelete{})},
			{Name: "volume.delete with snapshots", Prepare: []Accept{data, snap("s1", "data")}, Accept: discard("data", api.VolumeDelete{Snapshots: true})},
		},
		api.OpVolumeRestore: {
			{Name: "volume.restore", Prepare: []Accept{data, snap("s1", "data"), discard("data", api.VolumeDelete{Snapshots: true})}, Accept: about((*admit).RestoreVolume, "data")},
		},
		api.OpVolumePurge: {
			{Name: "volume.purge", Prepare: []Accept{data}, Accept: discard("data", now)},
			{Name: "volume.purge, shareable", Prepare: []Accept{ours}, Accept: discard("data", now)},
			{Name: "volume.purge, shared", Prepare: []Accept{net, discard("data", api.VolumeDelete{})}, Accept: discard("data", now)},
			{
				Name: "volume.purge with snapshots", Prepare: []Accept{data, snap("s1", "data"), snap("s2", "data"), revert("s1", api.SnapshotRevert{}), snap("s3", "data")},
				Accept: discard("data", api.VolumeDelete{Now: true, Snapshots: true}),
			},
		},
		api.OpSnapshotCreate: {
			{Name: "snapshot.create", Prepare: also(run, kept), Accept: snap("s2", "data"), Check: shows("data", "one ")},
			{Name: "snapshot.create, libvirtd dies in the switch", Prepare: also(run, kept), Accept: snap("s2", "data"), Tears: 2, Check: shows("data", "one "+unheard+unheard)},
			{Name: "snapshot.create, stopped", Prepare: also(halt, kept), Accept: snap("s2", "data"), Check: shows("data", "one ")},
			{Name: "snapshot.create of one that no vm has", Prepare: []Accept{net}, Accept: snap("s1", "data")},
			{Name: "snapshot.create of a root disk", Prepare: []Accept{makeVM("web1", ha)}, Accept: root("web1", func(v string) Accept { return snap("s1", v) })},
		},
		api.OpSnapshotDelete: {
			{Name: "snapshot.delete", Prepare: also(run, kept), Accept: unsnap("s1"), Check: shows("data", "one ")},
			{Name: "snapshot.delete, stopped", Prepare: also(halt, kept), Accept: unsnap("s1"), Check: shows("data", "one ")},
			{Name: "snapshot.delete of one that no vm has", Prepare: []Accept{net, kept}, Accept: unsnap("s1"), Check: shows("data", "one ")},
			{Name: "snapshot.delete of a root disk", Prepare: []Accept{createVM, root("web1", func(v string) Accept { return snap("s1", v) })}, Accept: unsnap("s1")},
			{Name: "snapshot.delete of one that has moved", Prepare: also(run, relocate("data", "shared"), kept), Accept: unsnap("s1"), Check: shows("data", "one ")},
			{Name: "snapshot.delete in the middle", Prepare: also(run, kept, more), Accept: unsnap("s1"), Check: shows("data", "one two ")},
			{Name: "snapshot.delete in the middle, stopped", Prepare: also(halt, kept, more), Accept: unsnap("s1"), Check: shows("data", "one two ")},
			{Name: "snapshot.delete at the end of a branch", Prepare: also(halt, kept, more, revert("s1", api.SnapshotRevert{})), Accept: unsnap("s2"), Check: shows("data", "")},
			{
				Name: "snapshot.delete in a branch", Prepare: also(run, kept, more, snap("s3", "data"), revert("s1", api.SnapshotRevert{Restart: true})),
				Accept: unsnap("s2"), Check: shows("data", ""),
			},
		},
		api.OpSnapshotRevert: {
			{Name: "snapshot.revert", Prepare: also(run, kept, more), Accept: revert("s1", api.SnapshotRevert{Restart: true}), Check: shows("data", "")},
			{Name: "snapshot.revert, stopped", Prepare: also(halt, kept, more), Accept: revert("s2", api.SnapshotRevert{Restart: true}), Check: shows("data", "one ")},
			{Name: "snapshot.revert of one that no vm has", Prepare: []Accept{net, kept, grow("data")}, Accept: revert("s1", api.SnapshotRevert{}), Check: shows("data", "")},
			{
				Name: "snapshot.revert of a root disk", Accept: revert("s1", api.SnapshotRevert{Restart: true, Force: true}),
				Prepare: []Accept{makeVM("web1", ha), root("web1", func(v string) Accept { return snap("s1", v) }), root("web1", grow)},
			},
		},
	}
	all[api.OpVolumeMigrate] = betweenPools()
	for kind, more := range inCeph() {
		all[kind] = append(all[kind], more...)
	}
	for _, variants := range all {
		for i := range variants {
			if i > 0 { // the first makes about all the calls that there are
				variants[i].Every = 3
			}
		}
	}
	return all
}

// withVolumes returns more scenarios of operations on VMs: of those that have a volume.
func withVolumes() map[string][]Scenario {
	net, disk := makeVolume("data", "shared", nil), makeVolume("data", "vms", nil)
	remote := []Accept{makeVM("web1", ha), net, attach("data", "web1")}
	return map[string][]Scenario{
		api.OpVMDelete: {
			{Name: "vm.delete with a volume", Prepare: []Accept{createVM, disk, attach("data", "web1")}, Accept: deleteVM, Check: shows("data", "")},
			{
				Name: "vm.delete with a volume and snapshots", Accept: on((*admit).DeleteVMWith, "web1", api.VMDelete{Snapshots: true}),
				Prepare: []Accept{createVM, disk, attach("data", "web1"), snap("d1", "data"), root("web1", func(v string) Accept { return snap("s1", v) }), root("web1", func(v string) Accept { return snap("s2", v) })},
			},
		},
		api.OpVMStart:   {{Name: "vm.start with a volume", Prepare: []Accept{createVM, stopVM, disk, attach("data", "web1")}, Accept: about((*admit).StartVM, "web1")}},
		api.OpVMRecover: {{Name: "vm.recover with a volume", Prepare: remote, Plant: died("a1"), Accept: about((*admit).RecoverVM, "web1"), Check: is("web1", "a2", api.PhaseRunning)}},
		api.OpVMMigrate: {
			{Name: "vm.migrate with a volume", Prepare: remote, Accept: migrate("web1", api.VMMigrate{}), Check: is("web1", "a2", api.PhaseRunning), Turns: true, Every: 3},
			{Name: "vm.migrate cold with a volume", Prepare: remote, Accept: migrate("web1", api.VMMigrate{Cold: true}), Check: is("web1", "a2", api.PhaseRunning), Turns: true, Every: 3},
			{
				Name: "vm.migrate with its disk and a volume", Prepare: []Accept{createVM, net, attach("data", "web1")}, Turns: true, Every: 3,
				Accept: migrate("web1", api.VMMigrate{CopyStorage: true}), Check: is("web1", "a2", api.PhaseRunning),
			},
		},
		api.OpHostDrain: {{
			Name: "host.drain with a volume", Prepare: []Accept{makeVM("web1", nil), disk, attach("data", "web1")}, Accept: drain(api.HostDrain{CopyStorage: true}), Orders: true, Every: 4,
			Check: all(is("web1", "a2", api.PhaseRunning), shows("data", "")),
		}},
	}
}
