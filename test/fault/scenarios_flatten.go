package fault

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
)

func flatten(volume string) Accept { return about((*admit).FlattenVolume, volume) }

// fromImage makes a volume of an image, in a pool.
func fromImage(pool string) Accept {
	return makeVolume("data", pool, func(r *api.VolumeCreate) { r.Image = "cirros" })
}

// standsAlone checks that a volume still shows what its image did, and does not need it.
func standsAlone(volume string) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		all, err := store.List[api.Volume](ctx, w.KV, w.User, "*")
		if err != nil {
			return "", err
		}
		i := slices.IndexFunc(all, func(v *api.Volume) bool { return v.Name == volume || volume == "root" && v.Spec.Root })
		if i < 0 {
			return "there is no volume " + volume, nil
		}
		node, plan, err := w.find(ctx, all[i])
		if err != nil {
			return "", err
		}
		text, _, err := node.disks.Shows(plan)
		if err != nil {
			return "", err
		}
		alone, err := node.disks.StandsAlone(ctx, plan)
		if err == nil && (!alone || all[i].Spec.Image != "" || !strings.Contains(text, "image ") || !strings.HasSuffix(text, "mine ")) {
			return fmt.Sprintf("volume %s is said to be of image %q, stands alone: %t, and shows %q", volume, all[i].Spec.Image, alone, text), nil
		}
		return "", err
	}
}

// flattening returns the scenarios of volumes that become independent of their images.
func flattening() map[string][]Scenario {
	mine := func(volume string, before ...Accept) []Accept {
		last := len(before) - 1
		return append(slices.Clone(before[:last]), then(before[last], written("mine ", volume)))
	}
	local, ceph := fromImage("vms"), fromImage("fast")
	check := standsAlone("data")
	base := mine("root", createVM)
	rootFlat := append(slices.Clone(base), root("web1", flatten))
	gone := append(slices.Clone(rootFlat), about((*admit).DeleteImage, "cirros"))
	return map[string][]Scenario{
		api.OpVolumeFlatten: {
			{Name: "volume.flatten", Prepare: mine("data", createVM, local, attach("data", "web1")), Accept: flatten("data"), TurnsAt: "flatten", Check: check},
			{Name: "volume.flatten, stopped", Prepare: mine("data", createVM, stopVM, local, attach("data", "web1")), Accept: flatten("data"), TurnsAt: "flatten", Check: check, Every: 3},
			{Name: "volume.flatten of one that no vm has", Prepare: mine("data", fromImage("shared")), Accept: flatten("data"), TurnsAt: "flatten", Check: check, Every: 3},
			{Name: "volume.flatten of a root disk", Prepare: base, Accept: root("web1", flatten), TurnsAt: "flatten", Check: standsAlone("root"), Every: 3},
			{
				Name: "volume.flatten, Ceph", Prepare: append(mine("data", cephOn(), createVM, ceph, attach("data", "web1")), snap("s1", "data")),
				Accept: flatten("data"), TurnsAt: "flatten", Check: check, Every: 3,
			},
		},
		api.OpImageDelete: {{Name: "image.delete, of which a disk was independent", Prepare: rootFlat, Accept: about((*admit).DeleteImage, "cirros"), Check: standsAlone("root"), Every: 3}},
		api.OpVMStart:     {{Name: "vm.start without its image", Prepare: append(slices.Clone(gone), stopVM), Accept: about((*admit).StartVM, "web1"), Check: standsAlone("root"), Every: 3}},
		api.OpVMDelete:    {{Name: "vm.delete without its image", Prepare: gone, Accept: deleteVM, Every: 3}},
	}
}
