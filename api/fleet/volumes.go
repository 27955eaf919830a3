package fleet

import (
	"context"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// volumesOf returns all volumes by their pool. They are the cache's: who wants to change one makes a copy.
func (f *Fleet) volumesOf() (map[string][]*api.Volume, error) {
	all, err := store.ListCached[api.Volume](f.Cache, f.self, "*", "", 0, nil)
	if err != nil {
		return nil, err
	}
	out := map[string][]*api.Volume{}
	for _, v := range all.Items {
		out[v.Spec.Pool] = append(out[v.Spec.Pool], v)
	}
	return out, nil
}

// marksAtOnce is how many volumes are marked in one transaction.
const marksAtOnce = 32

// markVolumes says of the volumes of a pool that they are unavailable while it is, and why, and takes that back. Nothing else is
// said of them: they are there, only nobody can get at them. A volume that an operation holds is left to a later look.
func (f *Fleet) markVolumes(ctx context.Context, p *api.Pool, now api.PoolStatus, volumes []*api.Volume) error {
	away := ""
	if now.Phase == api.PhaseUnavailable {
		away = "pool " + p.Name + " is unavailable: " + now.Reason
	}
	nodes := map[string]string{} // what is wrong with it on a node
	for _, a := range now.Agents {
		if !a.Reaches {
			nodes[a.Agent] = a.Reason
		}
	}
	var due []*api.Volume
	for _, v := range volumes {
		reason := away
		if why := nodes[v.Status.Agent]; reason == "" && why != "" && !p.Spec.Shared {
			reason = "its node cannot use pool " + p.Name + ": " + why
		}
		phase := api.PhaseReady
		if reason != "" {
			phase = api.PhaseUnavailable
		}
		known := v.Status.Phase == api.PhaseReady || v.Status.Phase == api.PhaseUnavailable
		if v.Operation != "" || !known || v.Status.Phase == phase && v.Status.Reason == reason || v.Status.Phase == phase && phase == api.PhaseReady {
			continue
		}
		marked := *v
		marked.SetPhase(phase, reason)
		due = append(due, &marked)
	}
	var first error
	for len(due) > 0 {
		some := due[:min(len(due), marksAtOnce)]
		due = due[len(some):]
		d := store.NewDraft(f.self)
		for _, v := range some {
			d.Update(v)
		}
		// Losing a race is no loss: the pool is looked at again.
		if _, err := d.Commit(ctx, f.KV); err != nil && !problem.Is(err, problem.Conflict) && first == nil {
			first = err
		}
	}
	return first
}
