package admission

import (
	"cmp"
	"context"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// ExportVolume accepts making a file of a volume, which nobody may change meanwhile, or of one of its snapshots, which nobody does.
func (a *Admission) ExportVolume(ctx context.Context, h auth.Handle, o Options, ref string, req api.VolumeExport) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpVolumeExport, updateRequest[api.VolumeExport]{targetRequest{ref}, req}, func(c *acceptance) error {
		v, err := store.Find[api.Volume](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		from := api.VolumeCreate{Volume: v.ID}
		if req.Snapshot != "" {
			from = api.VolumeCreate{Snapshot: req.Snapshot}
		}
		src, err := a.volumeSource(c, &api.Volume{Meta: api.Meta{Project: o.Project}}, from)
		if err != nil {
			return err
		}
		if src.volume.ID != v.ID {
			return problem.New(problem.Invalid, "volume %s cannot be exported", v.Name).Because("%s is of volume %s", src.what, src.volume.Name).
				Try("name a snapshot of it: gnext snap list --volume %s", v.Name)
		}
		pool, err := store.Get[api.Pool](ctx, a.kv, h, "", v.Spec.Pool)
		if err != nil {
			return err
		}
		agent, err := a.reader(c, src, pool)
		if err != nil {
			return err
		}
		work := api.VolumeExportWork{Format: cmp.Or(req.Format, api.FormatQCOW2), ImageCapture: api.ImageCapture{
			Image: c.op.ID, Name: v.Name, Agent: agentRef(agent), Pool: pool.OnNode(), Size: src.size, From: *src.origin,
		}}
		return firstOf(c.target(src.volume), c.input(work))
	})
}
