package admission

import (
	"context"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// FlattenVolume accepts making a volume independent of the image that it was made of, which can then be deleted.
func (a *Admission) FlattenVolume(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpVolumeFlatten, targetRequest{ref}, func(c *acceptance) error {
		v, err := store.Find[api.Volume](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		no := problem.New(problem.Conflict, "volume %s cannot be made independent of an image", v.Name)
		pool, snaps, err := a.tree(c, v)
		switch {
		case err != nil:
			return err
		case v.Operation != "": // held by somebody, which those who want to hold it say
		case v.Spec.Image == "":
			return no.Because("it needs none: it was not made of one, or is independent already").Try("see: gnext vol get %s", v.Name)
		case len(snaps) > 0 && pool.Spec.Files():
			return no.Because("it has %d snapshots, the first of which is what was made on the image", len(snaps)).
				Try("delete them first (gnext snap list --volume %s), or make a copy, which needs no image: gnext vol add NAME --from-volume %s", v.Name, v.Name)
		}
		if err := firstOf(c.target(v), ready(v), c.keeps(v)); err != nil {
			return err
		}
		vm, err := a.onlyVM(c, v, no)
		if err != nil {
			return err
		}
		after := changed(v)
		after.Spec.Image = ""
		c.releases(imageClaim(v))
		if err := firstOf(c.becomes(after), c.input(api.VolumeFlatten{Image: v.Spec.Image})); err != nil || !v.Spec.Root {
			return err
		}
		theirs := *vm
		theirs.Spec.Image = ""
		return c.becomes(&theirs)
	})
}

// imageClaim is held as long as a volume needs its image.
func imageClaim(v *api.Volume) string {
	return store.UseClaim(api.Ref{Kind: api.KindImage, ID: v.Spec.Image}, api.RefTo(v))
}
