package state

import (
	"context"
	"slices"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/placement"
	"github.com/nextstack/nextstack/workflows/steps"
)

// registerVolumes implements the steps on the records of volumes.
func (s *State) registerVolumes(reg activities.Registry, host *activities.Host) {
	activities.Implement(reg, host, steps.PlaceVolume, s.placeVolume)
	activities.Implement(reg, host, steps.UnplaceVolume, s.unplaceVolume)
	activities.Implement(reg, host, steps.LoadVolume, s.loadVolume)
	activities.Implement(reg, host, steps.PlaceVolumeMove, s.placeVolumeMove)
}

// heldVolume is held for volumes.
func (s *State) heldVolume(ctx context.Context, t steps.Token, ref steps.VolumeRef) (*api.Volume, *api.Pool, error) {
	v, err := store.Get[api.Volume](ctx, s.kv, s.h, ref.Project, ref.Volume)
	if err != nil {
		return nil, nil, err
	}
	if v.Operation != t.Operation {
		return nil, nil, problem.New(problem.Stale, "operation %s no longer holds volume %s", t.Operation, v.Name)
	}
	pool, err := store.Get[api.Pool](ctx, s.kv, s.h, "", v.Spec.Pool)
	return v, pool, err
}

func (s *State) placeVolume(ctx context.Context, t steps.Token, in steps.VolumeOrder) (out steps.VolumePlaced, err error) {
	err = s.retry(ctx, func() error {
		v, pool, err := s.heldVolume(ctx, t, in.VolumeRef)
		if err != nil {
			return err
		}
		out = steps.VolumePlaced{Disk: diskOf(v, pool)}
		if out.Plan, err = s.volumePlan(ctx, v, pool); err != nil {
			return err
		}
		if in.From != nil {
			out.Plan.From = &steps.VolumeFrom{Volume: in.From.Volume, Layer: in.From.Layer, Snapshot: in.From.Snapshot}
		}
		if out.Plan.Agent = v.Status.Agent; out.Plan.Agent != "" {
			out.Node, err = s.agentName(ctx, out.Plan.Agent)
			return err
		}
		decision, ledger, err := s.nodeFor(ctx, v, pool, in)
		if err != nil {
			return err
		}
		out.Decision, out.Plan.Agent, out.Node = decision, decision.Node, decision.Name
		if pool.Spec.Shared {
			return nil // it is on no node; this one makes it
		}
		v.Status.Agent = decision.Node
		d := store.NewDraft(s.h)
		d.Update(v)
		// Whoever takes the node out of the pool writes its ledger, too.
		d.Touch(store.NodePrefix(decision.Node), ledger)
		_, err = d.Commit(ctx, s.kv)
		return err
	})
	return out, err
}

// nodeFor decides which node keeps or makes a volume, on a revision of that node's ledger.
func (s *State) nodeFor(ctx context.Context, v *api.Volume, pool *api.Pool, in steps.VolumeOrder) (*api.Decision, int64, error) {
	req := placement.VolumeRequest{Volume: v.Name, Pool: pool.ID, NodeID: in.Node}
	switch {
	case v.Spec.Image != "":
		img, err := store.Get[api.Image](ctx, s.kv, s.h, v.Project, v.Spec.Image)
		if err != nil {
			return nil, 0, err
		}
		req.Space = img.Status.Size
	case in.From != nil:
		req.Space = v.Spec.Size
	}
	w, err := s.world(ctx)
	if err != nil {
		return nil, 0, err
	}
	d, err := placement.PlaceVolume(w.nodes, req)
	if err != nil {
		return nil, 0, err
	}
	_, ledger := w.node(d.Node)
	return &d, ledger, nil
}

func (s *State) unplaceVolume(ctx context.Context, t steps.Token, ref steps.VolumeRef) (steps.Nothing, error) {
	return steps.Nothing{}, store.Retry(ctx, func() error {
		v, _, err := s.heldVolume(ctx, t, ref)
		if problem.Is(err, problem.NotFound) || problem.Is(err, problem.Stale) {
			return nil // it is gone, or somebody else's
		}
		if err != nil || v.Status.Agent == "" {
			return err
		}
		d := store.NewDraft(s.h)
		if err := s.touchNode(ctx, d, v.Status.Agent); err != nil {
			return err
		}
		v.Status.Agent = ""
		d.Update(v)
		_, err = d.Commit(ctx, s.kv)
		return err
	})
}

func (s *State) loadVolume(ctx context.Context, t steps.Token, ref steps.VolumeRef) (out steps.VolumePlaced, err error) {
	v, pool, err := s.heldVolume(ctx, t, ref)
	if err != nil {
		return out, err
	}
	if out.Plan, err = s.volumePlan(ctx, v, pool); err != nil {
		return out, err
	}
	out.Disk = diskOf(v, pool)
	vms := v.VMs()
	if ref.VM != "" {
		vms = []string{ref.VM}
	}
	for _, id := range vms {
		vm, err := s.loadVM(ctx, t, steps.VMRef{Project: v.Project, VM: id})
		if err != nil {
			return out, err
		}
		out.VMs = append(out.VMs, vm)
	}
	switch {
	case !pool.Spec.Shared:
		if out.Plan.Agent = v.Status.Agent; out.Plan.Agent == "" {
			return out, problem.New(problem.Internal, "volume %s is on no node", v.Name).Try("run gnext audit")
		}
	case len(out.VMs) > 0:
		out.Plan.Agent = out.VMs[0].Plan.Agent
	default:
		d, _, err := s.nodeFor(ctx, &api.Volume{Meta: v.Meta, Spec: api.VolumeSpec{Size: v.Spec.Size}}, pool, steps.VolumeOrder{})
		if err != nil {
			return out, problem.Wrap(err, problem.Unavailable, "no node of pool %s can be asked", pool.Name)
		}
		out.Plan.Agent = d.Node
	}
	out.Node, err = s.agentName(ctx, out.Plan.Agent)
	return out, err
}

func (s *State) agentName(ctx context.Context, id string) (string, error) {
	a, err := store.Get[api.Agent](ctx, s.kv, s.h, "", id)
	if err != nil {
		return "", err
	}
	return a.Name, nil
}

// volumePlan describes a volume, but for who does the work.
func (s *State) volumePlan(ctx context.Context, v *api.Volume, pool *api.Pool) (steps.VolumePlan, error) {
	out := steps.VolumePlan{Volume: v.ID, Name: v.Name, Project: v.Project, Pool: pool.OnNode(), Size: v.Spec.Size, Layer: v.Status.Layer, Shareable: v.Spec.Shareable}
	if v.Spec.Image == "" {
		return out, nil
	}
	img, err := store.Get[api.Image](ctx, s.kv, s.h, v.Project, v.Spec.Image)
	if err != nil {
		return out, err
	}
	out.Image = &steps.CachedImage{Image: img.ID, SHA256: img.Status.SHA256, Pool: pool.ID, PoolPath: pool.Spec.Path}
	return out, nil
}

// diskOf describes a volume as a disk of a VM, but for how that one has it.
func diskOf(v *api.Volume, pool *api.Pool) steps.DataDisk {
	return steps.DataDisk{Volume: v.ID, Pool: pool.OnNode(), Layer: v.Status.Layer, Shareable: v.Spec.Shareable, QoS: v.Spec.QoS, Image: imageBelow(v)}
}

// imageBelow returns the image that the file of a volume is made on.
func imageBelow(v *api.Volume) string {
	if v.Spec.Shareable {
		return ""
	}
	return v.Spec.Image
}

// disks fills in the disks of a VM, as its volumes say. Those that it is about to get do not say it yet: gets does.
func (s *State) disks(ctx context.Context, vm *api.VM, plan *steps.VMPlan, gets []api.VMDisk) error {
	for i, id := range vm.Status.Volumes {
		v, err := store.Get[api.Volume](ctx, s.kv, s.h, vm.Project, id)
		if err != nil {
			return err
		}
		if i == 0 {
			plan.Disk.Layer, plan.Disk.QoS = v.Status.Layer, v.Spec.QoS
			continue
		}
		at := v.Attachment(vm.ID)
		if j := slices.IndexFunc(gets, func(d api.VMDisk) bool { return d.Volume == id }); j >= 0 {
			at = &api.Attachment{VM: vm.ID, Device: gets[j].Device, ReadOnly: gets[j].ReadOnly}
		}
		if at == nil {
			return problem.New(problem.Internal, "vm %s has volume %s, and the volume does not know", vm.Name, v.Name).Try("run gnext audit")
		}
		pool, err := known[api.Pool](ctx, s, vm, "", v.Spec.Pool)
		if err != nil {
			return err
		}
		disk := diskOf(v, pool)
		disk.Device, disk.ReadOnly = at.Device, at.ReadOnly
		plan.Data = append(plan.Data, disk)
	}
	return nil
}
