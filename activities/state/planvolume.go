package state

import (
	"context"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/placement"
)

// PlanMigrateVolume tells how a volume would go to another pool, and what is in the way.
func (p *Planner) PlanMigrateVolume(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VolumeMigrate) (*api.DryRun, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	out := dryRun(workflows.VolumeMigrate)
	moving, err := p.moving(ctx, h, o.Project, ref, req)
	if err != nil {
		return planned(out, err)
	}
	out.Volume = moving
	move, err := p.s.settle.PreviewMigrateVolume(ctx, h, o, ref, req)
	if err != nil {
		return planned(out, err)
	}
	moving.Node = move.Agent.Name
	for i := range out.Steps {
		if out.Steps[i].Where == "node" {
			out.Steps[i].Where = moving.Node
		}
	}
	w, err := p.s.world(ctx)
	if err != nil {
		return nil, err
	}
	d, err := placement.PlaceVolume(w.nodes, placement.VolumeRequest{Volume: moving.Volume.Name, Pool: move.To.Pool, Space: moving.Size, NodeID: move.Agent.ID})
	out.Decision = &d
	return planned(out, err)
}

// moving tells what a request to move a volume is about, whether it would be accepted or not.
func (p *Planner) moving(ctx context.Context, h auth.Handle, project, ref string, req api.VolumeMigrate) (*api.VolumeMoving, error) {
	v, err := store.Find[api.Volume](ctx, p.s.kv, h, project, ref)
	if err != nil {
		return nil, err
	}
	from, err := store.Get[api.Pool](ctx, p.s.kv, h, "", v.Spec.Pool)
	if err != nil {
		return nil, err
	}
	to, err := store.Find[api.Pool](ctx, p.s.kv, h, "", req.Pool)
	if err != nil {
		return nil, err
	}
	out := &api.VolumeMoving{Volume: api.RefTo(v), From: from.Name, To: to.Name, Size: v.Spec.Size}
	if req.Bandwidth > 0 {
		out.Seconds = max(1, (v.Spec.Size+req.Bandwidth-1)/req.Bandwidth)
	}
	if vms := v.VMs(); len(vms) == 1 {
		vm, err := store.Get[api.VM](ctx, p.s.kv, h, v.Project, vms[0])
		if err != nil {
			return nil, err
		}
		has := api.RefTo(vm)
		out.VM, out.Live = &has, vm.Status.Phase == api.PhaseRunning
	}
	return out, nil
}
