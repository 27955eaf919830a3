package state

import (
	"context"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/placement"
	"github.com/nextstack/nextstack/workflows/steps"
)

// piece is a disk of a VM, and the pool that it is in.
type piece struct {
	volume *api.Volume
	pool   *api.Pool
}

// local reports whether only the node that the disk is on reaches it: it goes along when its VM moves.
func (p piece) local() bool { return !p.pool.Spec.Shared }

// baggage returns the disks of a VM, the root disk first.
func (s *State) baggage(ctx context.Context, vm *api.VM) ([]piece, error) {
	return s.pieces(ctx, vm, vm.Status.Volumes)
}

// besideRoot are the IDs of a VM's volumes but for its root disk.
func besideRoot(vm *api.VM) []string { return vm.Status.Volumes[min(1, len(vm.Status.Volumes)):] }

// pieces returns these of the disks of a VM.
func (s *State) pieces(ctx context.Context, vm *api.VM, volumes []string) (out []piece, err error) {
	for _, id := range volumes {
		v, err := store.Get[api.Volume](ctx, s.kv, s.h, vm.Project, id)
		if err != nil {
			return nil, err
		}
		pool, err := known[api.Pool](ctx, s, vm, "", v.Spec.Pool)
		if err != nil {
			return nil, err
		}
		out = append(out, piece{v, pool})
	}
	return out, nil
}

// firstLocal returns the first disk that goes along; nil: none does.
func firstLocal(disks []piece) *piece {
	if i := slices.IndexFunc(disks, piece.local); i >= 0 {
		return &disks[i]
	}
	return nil
}

// poolsFor returns the pools of disks, each once. Sized says what a disk needs at once on a node that it comes to.
func poolsFor(disks []piece, sized func(piece) int64) (out []placement.Pool) {
	for _, d := range disks {
		i := slices.IndexFunc(out, func(p placement.Pool) bool { return p.ID == d.pool.ID })
		if i < 0 {
			i = len(out)
			out = append(out, placement.Pool{ID: d.pool.ID, Name: d.pool.Name})
		}
		if d.local() {
			out[i].Space += sized(d)
		}
	}
	return out
}

// roomFor returns what the pools of a VM's data volumes must have room for on its next node: like that of the root disk, all that may be
// written to those that go along, and their images, should a pool not have them yet.
func (s *State) roomFor(ctx context.Context, disks []piece) ([]placement.Pool, error) {
	images := map[string]int64{}
	for _, d := range disks {
		if id := d.volume.Spec.Image; id != "" && d.local() {
			img, err := store.Get[api.Image](ctx, s.kv, s.h, d.volume.Project, id)
			if err != nil {
				return nil, err
			}
			images[id] = img.Status.Size
		}
	}
	return poolsFor(disks[min(1, len(disks)):], func(d piece) int64 { return d.volume.Spec.Size + images[d.volume.Spec.Image] }), nil
}

// alone returns those of the disks that go along as volumes of their own: all but a root disk that is made on an image.
func (s *State) alone(ctx context.Context, disks []piece) (out []steps.VolumePlan, err error) {
	for _, d := range disks {
		if !d.local() || d.volume.Spec.Root && d.volume.Spec.Image != "" {
			continue
		}
		plan, err := s.volumePlan(ctx, d.volume, d.pool)
		if err != nil {
			return nil, err
		}
		if plan.Shareable {
			plan.Image = nil // it was made of one, and stands alone since
		}
		out = append(out, plan)
	}
	return out, nil
}

// follow writes into the disks that have gone along on which node they are. The root disk is on that of its VM in any case.
func (s *State) follow(ctx context.Context, d *store.Draft, vm *api.VM, agent string) error {
	disks, err := s.baggage(ctx, vm)
	if err != nil {
		return err
	}
	for i, p := range disks {
		if i == 0 || p.local() {
			p.volume.Status.Agent = agent
			d.Update(p.volume)
		}
	}
	return nil
}
