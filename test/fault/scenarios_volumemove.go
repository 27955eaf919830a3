package fault

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

func relocate(volume, pool string) Accept {
	return on((*admit).MigrateVolume, volume, api.VolumeMigrate{Pool: pool})
}

// settledIn checks what a volume shows, in which pool it is, and that it needs nothing else.
func settledIn(pool, volume, text string) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		v, err := store.Find[api.Volume](ctx, w.KV, w.User, api.DefaultProject, volume)
		if err != nil {
			return "", err
		}
		p, err := store.Find[api.Pool](ctx, w.KV, w.User, "", pool)
		if err != nil {
			return "", err
		}
		if v.Spec.Pool != p.ID || v.Spec.Image != "" || p.Spec.Shared != (v.Status.Agent == "") {
			return fmt.Sprintf("volume %s is in pool %s on %q and needs image %q", volume, v.Spec.Pool, v.Status.Agent, v.Spec.Image), nil
		}
		return shows(volume, text)(ctx, w)
	}
}

// betweenPools returns the scenarios of volumes that go to other pools.
func betweenPools() []Scenario {
	data, net, fast := makeVolume("data", "vms", nil), makeVolume("data", "shared", nil), makeVolume("data", "fast", nil)
	texts := func(accept Accept) Accept { return then(accept, written("one ", "data")) }
	also := func(before []Accept, more ...Accept) []Accept { return append(slices.Clone(before), more...) }
	run, halt := []Accept{createVM, data, texts(attach("data", "web1"))}, []Accept{createVM, stopVM, data, texts(attach("data", "web1"))}
	held := []Accept{cephOn(), makeVM("web1", ha), net, texts(attach("data", "web1"))}
	ofImage := makeVolume("data", "vms", func(r *api.VolumeCreate) { r.Image = "cirros" })
	ours := makeVolume("data", "vms", func(r *api.VolumeCreate) { r.Shareable = true })
	out := []Scenario{
		{Name: "volume.migrate", Prepare: run, Accept: relocate("data", "shared"), Busy: true, Check: settledIn("shared", "data", "one "+later)},
		{Name: "volume.migrate, HA", Prepare: held, Accept: relocate("data", "fast"), Busy: true, Check: settledIn("fast", "data", "one "+later)},
		{Name: "volume.migrate, stopped", Prepare: halt, Accept: relocate("data", "shared"), Check: settledIn("shared", "data", "one ")},
		{Name: "volume.migrate of one that no vm has", Prepare: []Accept{texts(data)}, Accept: relocate("data", "shared"), Check: settledIn("shared", "data", "one ")},
		{Name: "volume.migrate out of a shared pool", Prepare: []Accept{makeVM("web1", nil), net, texts(attach("data", "web1"))}, Accept: relocate("data", "vms"), Check: settledIn("vms", "data", "one ")},
		{Name: "volume.migrate of one with an image", Prepare: []Accept{createVM, ofImage, attach("data", "web1")}, Accept: relocate("data", "shared"), Check: alone("data", "shared")},
		{Name: "volume.migrate there and back", Prepare: also(run, relocate("data", "shared")), Accept: relocate("data", "vms"), Check: settledIn("vms", "data", "one ")},
		{Name: "volume.migrate, shareable", Prepare: []Accept{texts(ours)}, Accept: relocate("data", "shared"), Check: settledIn("shared", "data", "one ")},
		{Name: "volume.migrate to Ceph", Prepare: also(run, cephOn()), Accept: relocate("data", "fast"), Check: settledIn("fast", "data", "one ")},
		{Name: "volume.migrate to Ceph, stopped", Prepare: also(halt, cephOn()), Accept: relocate("data", "fast"), Check: settledIn("fast", "data", "one ")},
		{Name: "volume.migrate from Ceph", Prepare: []Accept{cephOn(), createVM, fast, texts(attach("data", "web1"))}, Accept: relocate("data", "vms"), Check: settledIn("vms", "data", "one ")},
		{Name: "volume.migrate from Ceph of one that no vm has", Prepare: []Accept{cephOn(), texts(fast)}, Accept: relocate("data", "shared"), Check: settledIn("shared", "data", "one ")},
	}
	toPool := func(pool string) func(volume string) Accept {
		return func(volume string) Accept { return relocate(volume, pool) }
	}
	out = append(out,
		Scenario{Name: "volume.migrate of a root disk", Prepare: []Accept{createVM}, Accept: root("web1", toPool("shared")), Check: rootedIn("web1", "shared")},
		Scenario{Name: "volume.migrate of a root disk, HA", Prepare: []Accept{cephOn(), makeVM("web1", ha)}, Accept: root("web1", toPool("fast")), Busy: true, Check: rootedIn("web1", "fast")},
		Scenario{Name: "volume.migrate of a root disk, stopped", Prepare: []Accept{createVM, stopVM}, Accept: root("web1", toPool("shared")), Check: rootedIn("web1", "shared")},
		Scenario{Name: "volume.migrate of a root disk out of a shared pool", Prepare: []Accept{makeVM("web1", nil)}, Accept: root("web1", toPool("vms")), Check: rootedIn("web1", "vms")},
		Scenario{Name: "volume.migrate of a root disk to Ceph", Prepare: []Accept{cephOn(), createVM}, Accept: root("web1", toPool("fast")), Check: rootedIn("web1", "fast")},
		Scenario{
			Name: "volume.migrate of a root disk back from Ceph", Prepare: []Accept{cephOn(), createVM, root("web1", toPool("fast")), stopVM},
			Accept: root("web1", toPool("vms")), Check: rootedIn("web1", "vms"),
		},
	)
	for i := range out {
		if i > 0 { // as elsewhere
			out[i].Every = 3
		}
		out[i].TurnsAt = "copy"
	}
	return out
}

// alone checks that a volume that was made from an image is in a pool, and does not keep the image.
func alone(volume, pool string) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		img, err := store.Find[api.Image](ctx, w.KV, w.User, api.DefaultProject, "cirros")
		if err != nil {
			return "", err
		}
		if what, err := settledIn(pool, volume, "image "+img.Status.SHA256+": ")(ctx, w); what != "" || err != nil {
			return what, err
		}
		ids, err := store.UserIDs(ctx, w.KV, img, api.KindVolume)
		if err != nil {
			return "", err
		}
		v, err := store.Find[api.Volume](ctx, w.KV, w.User, api.DefaultProject, volume)
		if err == nil && slices.Contains(ids, v.ID) {
			return "volume " + volume + " still needs the image", nil
		}
		return "", err
	}
}

// rootedIn checks that the root disk of a VM is in a pool, whole, and its seed with it.
func rootedIn(vm, pool string) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		m, err := store.Find[api.VM](ctx, w.KV, w.User, api.DefaultProject, vm)
		if err != nil {
			return "", err
		}
		p, err := store.Find[api.Pool](ctx, w.KV, w.User, "", pool)
		if err != nil {
			return "", err
		}
		v, err := store.Get[api.Volume](ctx, w.KV, w.User, m.Project, m.Status.Volumes[0])
		if err != nil {
			return "", err
		}
		if m.Spec.Pool != p.ID || v.Spec.Pool != p.ID || v.Spec.Image+m.Spec.Image != "" || v.Status.Agent != m.Status.Agent {
			return fmt.Sprintf("the vm is in pool %s and its root disk in %s on %q, and needs image %q", m.Spec.Pool, v.Spec.Pool, v.Status.Agent, v.Spec.Image), nil
		}
		node, plan, err := w.find(ctx, v)
		if err != nil {
			return "", err
		}
		if got, _, err := node.disks.Shows(plan); err != nil || !strings.HasPrefix(got, "a disk of ") {
			return fmt.Sprintf("the root disk shows %q", got), err
		}
		files, err := node.disks.List(ctx, p.OnNode())
		if err != nil || slices.ContainsFunc(files, func(f steps.FileFound) bool { return f.Kind == storage.KindSeed && f.ID == m.ID }) {
			return "", err
		}
		return "its seed is not in the pool", nil
	}
}
