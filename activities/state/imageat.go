package state

import (
	"context"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/placement"
	"github.com/nextstack/nextstack/workflows/steps"
)

// imageAt finds another node that has a copy of a VM's image in the same pool, if the VM's node has none and that one can give it
// away. All nodes of a shared pool have one copy. Whatever is not known is no error: the server has the image.
func (s *State) imageAt(ctx context.Context, vm *api.VM, plan steps.VMPlan) *steps.ImageAt {
	if plan.Disk.Shared || plan.Disk.ImageSHA256 == "" {
		return nil
	}
	w, err := s.world(ctx)
	if err != nil {
		return nil
	}
	have := placement.Cached{Pool: plan.Disk.Pool, SHA256: plan.Disk.ImageSHA256}
	if home, _ := w.node(plan.Agent); home == nil || home.Images[have] {
		return nil
	}
	// VMs that are made at the same time ask different nodes, each the first after a place of its own.
	begin := int(seed(vm.ID) % uint64(len(w.nodes)))
	for i := range w.nodes {
		n := &w.nodes[(begin+i)%len(w.nodes)]
		if !n.Ready || n.ID == plan.Agent || !n.Images[have] {
			continue
		}
		if a, err := known[api.Agent](ctx, s, vm, "", n.ID); err != nil || a.Status.Inventory.Peer.Transfer == "" {
			continue
		}
		return &steps.ImageAt{Agent: n.ID, Copy: steps.CachedImage{
			Image: plan.Disk.Image, SHA256: plan.Disk.ImageSHA256, Pool: plan.Disk.Pool, PoolPath: plan.Disk.PoolPath,
		}}
	}
	return nil
}
