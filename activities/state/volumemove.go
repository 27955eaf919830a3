package state

import (
	"context"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/placement"
	"github.com/nextstack/nextstack/workflows/steps"
)

// placeVolumeMove reads only: which node it is was decided when the move was accepted. Like that of a volume that is made, its room
// is that of all that may be written to it.
func (s *State) placeVolumeMove(ctx context.Context, t steps.Token, in steps.VolumeMoveOrder) (out steps.VolumePlaced, err error) {
	if out, err = s.loadVolume(ctx, t, in.VolumeRef); err != nil {
		return out, err
	}
	if out.Plan.Pool.Pool == in.To.Pool {
		return out, problem.New(problem.Internal, "volume %s is in pool %s already", out.Plan.Name, in.To.Pool)
	}
	out.Plan.Agent, out.Node = in.Agent.ID, in.Agent.Name
	w, err := s.world(ctx)
	if err != nil {
		return out, err
	}
	d, err := placement.PlaceVolume(w.nodes, placement.VolumeRequest{Volume: out.Plan.Name, Pool: in.To.Pool, Space: out.Plan.Size, NodeID: in.Agent.ID})
	if err != nil {
		return out, err
	}
	out.Decision = &d
	return out, nil
}
