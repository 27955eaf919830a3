package fault

import (
	"context"
	"fmt"
	"slices"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
)

// movesLost returns scenarios of volumes that go to other pools on a node that dies. Whatever becomes of the move, one copy is left that
// shows all that its guest has written, and the VM is started with that: an HA VM elsewhere, and one that was off when the node is back.
func movesLost() []Scenario {
	keep := func(more ...Accept) []Accept { return append([]Accept{cephOn()}, more...) }
	with := func(change func(*api.VMCreate), pool string, more ...Accept) []Accept {
		vm := []Accept{makeVM("web1", change), makeVolume("data", pool, nil), then(attach("data", "web1"), written("one ", "data"))}
		return keep(append(vm, more...)...)
	}
	loose := func(pool string) []Accept { return keep(then(makeVolume("data", pool, nil), written("one ", "data"))) }
	text := either(shows("data", "one "), shows("data", "one "+later))
	elsewhere, again := all(text, restartsElsewhere("data")), all(shows("data", "one "), startsAgain("data"))
	toPool := func(pool string) Accept {
		return root("web1", func(volume string) Accept { return relocate(volume, pool) })
	}
	inCeph := func(r *api.VMCreate) { ha(r); fast(r) }
	return []Scenario{
		{Name: "volume.migrate to Ceph, HA", Prepare: with(ha, "shared"), Accept: relocate("data", "fast"), Busy: true, Always: elsewhere},
		{Name: "volume.migrate from Ceph, HA", Prepare: with(ha, "fast"), Accept: relocate("data", "shared"), Busy: true, Always: elsewhere},
		{Name: "volume.migrate of a root disk to Ceph, HA", Prepare: with(ha, "shared"), Accept: toPool("fast"), Busy: true, Always: all(restartsElsewhere("root"), text)},
		{Name: "volume.migrate of a root disk from Ceph, HA", Prepare: with(inCeph, "fast"), Accept: toPool("shared"), Busy: true, Always: all(restartsElsewhere("root"), text)},
		{Name: "volume.migrate to Ceph, off", Prepare: with(nil, "shared", stopVM), Accept: relocate("data", "fast"), Always: again},
		{Name: "volume.migrate to Ceph, off, and again", Prepare: with(nil, "shared", stopVM), Accept: relocate("data", "fast"), Always: movesAgain("data", "shared", "fast")},
		{Name: "volume.migrate from Ceph, off", Prepare: with(ha, "fast", stopVM), Accept: relocate("data", "shared"), Always: again},
		{Name: "volume.migrate out of a pool of the node, off", Prepare: with(nil, "vms", stopVM), Accept: relocate("data", "shared"), Always: again},
		{Name: "volume.migrate of a root disk, off", Prepare: with(nil, "shared", stopVM), Accept: toPool("fast"), Always: all(shows("data", "one "), startsAgain("root"))},
		{Name: "volume.migrate to Ceph of one that no vm has", Prepare: loose("shared"), Accept: relocate("data", "fast"), Always: shows("data", "one ")},
		{Name: "volume.migrate from Ceph of one that no vm has", Prepare: loose("fast"), Accept: relocate("data", "shared"), Always: shows("data", "one ")},
		{Name: "volume.migrate into a pool of the node, of one that no vm has", Prepare: loose("shared"), Accept: relocate("data", "vms"), Always: shows("data", "one ")},
		{Name: "volume.migrate out of a pool of the node, of one that no vm has", Prepare: loose("vms"), Accept: relocate("data", "shared"), Always: shows("data", "one ")},
	}
}

// restartsElsewhere has the HA VM of a dead node be recovered, and says what is wrong with it then.
func restartsElsewhere(volume string) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		if w.node("a1").Alive() {
			return runsWith(ctx, w, volume, "a1")
		}
		if _, err := w.Do(ctx, recoverHost("a1", "")); err != nil {
			return "", err
		}
		return runsWith(ctx, w, volume, "a2")
	}
}

// returns has a node take work again, if it was dead.
func returns(ctx context.Context, w *World, name string) error {
	w.node(name).dead = false
	return changeHost(ctx, w, name, func(a *api.Agent, b *store.Beat) {
		a.Status.Phase, a.Status.Proof, b.Down = api.PhaseReady, nil, false
	})
}

// startsAgain has a VM be started that was off, on its node, which is back.
func startsAgain(volume string) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		if err := returns(ctx, w, "a1"); err != nil {
			return "", err
		}
		if _, err := w.Do(ctx, about((*admit).StartVM, "web1")); err != nil {
			return "", err
		}
		return runsWith(ctx, w, volume, "a1")
	}
}

// movesAgain has the volume of a VM that is off go to the pool where it is not, by the same node, which is back.
func movesAgain(volume, a, b string) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		if err := returns(ctx, w, "a1"); err != nil {
			return "", err
		}
		v, err := w.volume(ctx, volume)
		if err != nil {
			return "", err
		}
		p, err := store.Get[api.Pool](ctx, w.KV, w.User, "", v.Spec.Pool)
		if err != nil {
			return "", err
		}
		to := a
		if p.Name == a {
			to = b
		}
		if _, err := w.Do(ctx, relocate(volume, to)); err != nil {
			return "", err
		}
		return all(shows(volume, "one "), startsAgain(volume))(ctx, w)
	}
}

// runsWith says what is wrong if the VM does not run on a node, with that disk where the record says that it is.
func runsWith(ctx context.Context, w *World, volume, node string) (string, error) {
	if what, err := is("web1", node, api.PhaseRunning)(ctx, w); what != "" || err != nil {
		return what, err
	}
	v, err := w.volume(ctx, volume)
	if err != nil {
		return "", err
	}
	vm, err := store.Find[api.VM](ctx, w.KV, w.User, api.DefaultProject, "web1")
	if err != nil {
		return "", err
	}
	_, plan, err := w.find(ctx, v)
	if err != nil {
		return "", err
	}
	n := w.node(node)
	want, err := n.disks.LocateVolume(plan)
	if err != nil {
		return "", err
	}
	disks := n.Compute.Disks(vm.ID)
	i := slices.IndexFunc(disks, func(d compute.FakeDisk) bool { return d.Volume == v.ID })
	if i < 0 || !disks[i].Source.Same(want) {
		return fmt.Sprintf("the vm runs with %v on %s, and not with volume %s as %s", disks, node, volume, want), nil
	}
	return "", nil
}
