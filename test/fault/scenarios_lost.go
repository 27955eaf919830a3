package fault

import (
	"context"
	"slices"

	"github.com/nextstack/nextstack/api"
)

// disksLost returns scenarios of work on a disk of an HA VM. It is started elsewhere when its node is dead, and so nothing that is done to
// its disks may hold it until that node is back. Whatever becomes of the work, the disk shows what it did, or what it should.
func disksLost() (out []Scenario) {
	restart := api.SnapshotRevert{Restart: true, Force: true}
	for _, in := range []struct {
		name, pool string
		first      []Accept
		vm         func(*api.VMCreate)
	}{
		{"shared", "shared", nil, ha},
		{"Ceph", "fast", []Accept{cephOn()}, func(r *api.VMCreate) { ha(r); fast(r) }},
	} {
		run := append(slices.Clone(in.first), makeVM("web1", in.vm), makeVolume("data", in.pool, nil), then(attach("data", "web1"), written("one ", "data")))
		kept := append(slices.Clone(run), then(snap("s1", "data"), written("two ", "data")))
		image := append(slices.Clone(in.first), makeVM("web1", in.vm), fromImage(in.pool), then(attach("data", "web1"), written("mine ", "data")))
		out = append(out,
			Scenario{Name: "volume.resize, " + in.name, Prepare: run, Accept: grow("data"), Always: shows("data", "one ")},
			Scenario{Name: "volume.flatten, " + in.name, Prepare: image, Accept: flatten("data")},
			Scenario{Name: "snapshot.create, " + in.name, Prepare: run, Accept: snap("s1", "data"), Always: shows("data", "one ")},
			Scenario{Name: "snapshot.delete, " + in.name, Prepare: kept, Accept: unsnap("s1"), Always: shows("data", "one two ")},
			Scenario{Name: "snapshot.revert, " + in.name, Prepare: kept, Accept: revert("s1", restart), Always: either(shows("data", "one "), shows("data", "one two "))},
			Scenario{Name: "volume.attach, " + in.name, Prepare: append(slices.Clone(run), detach("data", "web1")), Accept: attach("data", "web1"), Always: shows("data", "one ")},
			Scenario{Name: "volume.create in a vm, " + in.name, Prepare: run[:len(run)-2], Accept: makeVolume("data", in.pool, forWeb)},
			Scenario{Name: "volume.detach, " + in.name, Prepare: run, Accept: detach("data", "web1"), Always: shows("data", "one ")},
		)
	}
	return out
}

// either is content if one of two checks is.
func either(a, b func(context.Context, *World) (string, error)) func(context.Context, *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		what, err := a(ctx, w)
		if what == "" || err != nil {
			return what, err
		}
		other, err := b(ctx, w)
		if other != "" {
			other = what + ", and " + other
		}
		return other, err
	}
}
