package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// poolsOf returns the pools that a node has. They are the cache's: who wants to change one makes a copy.
func (f *Fleet) poolsOf(agent string) ([]*api.Pool, error) {
	page, err := store.ListCached(f.Cache, f.self, "", "", 0, func(p *api.Pool) bool { return slices.Contains(p.Spec.Agents, agent) })
	return page.Items, err
}

// lookAtPools works out the status of a node's pools if there is a reason to: the node's record was written, which it is when
// its pools have changed as it sees them, or a pool was.
func (f *Fleet) lookAtPools(ctx context.Context, agent string, pools []*api.Pool, wrote bool) error {
	var newest int64
	for _, p := range pools {
		newest = max(newest, p.Revision)
	}
	f.mu.Lock()
	same := f.pools[agent] == newest
	f.mu.Unlock()
	if same && !wrote {
		return nil
	}
	if err := f.observePools(ctx, agent); err != nil {
		return err
	}
	f.mu.Lock()
	f.pools[agent] = newest
	f.mu.Unlock()
	return nil
}

// observePools works out the status of every pool that a node has, from the last reports of all its nodes.
func (f *Fleet) observePools(ctx context.Context, agent string) error {
	pools, err := f.poolsOf(agent)
	if err != nil || len(pools) == 0 {
		return err
	}
	all, err := store.ListCached[api.Agent](f.Cache, f.self, "", "", 0, nil)
	if err != nil {
		return err
	}
	agents := make(map[string]*api.Agent, len(all.Items))
	for _, a := range all.Items {
		agents[a.ID] = a
	}
	var first error
	for _, cached := range pools {
		p := *cached
		if p.Operation != "" || p.Status.Phase != api.PhaseReady && p.Status.Phase != api.PhaseUnavailable {
			continue
		}
		now := poolStatus(&p, agents)
		if !worthWriting(p.Status, now) {
			continue
		}
		p.Status = now
		d := store.NewDraft(f.self)
		d.Update(&p)
		// Losing a race is no loss: whoever won looks at the pool again with the next report.
		if _, err := d.Commit(ctx, f.KV); err != nil && !problem.Is(err, problem.Conflict) && first == nil {
			first = err
		}
	}
	return first
}

// poolStatus sums a pool up. A directory pool is a directory of each node, and a volume lies in one of them: so capacity and
// free are the sums over the nodes that are there and have no trouble with it. (A single volume still has to fit one node;
// that is for the placement to see.) A shared pool is the same directory everywhere; it counts once, as the node sees it that
// sees most. The pool is ready while one node is; the reason names the others.
func poolStatus(p *api.Pool, agents map[string]*api.Agent) api.PoolStatus {
	s := api.PoolStatus{Phase: api.PhaseUnavailable}
	var trouble []string
	var unheard bool
	for _, id := range p.Spec.Agents {
		a := agents[id]
		if a == nil {
			trouble = append(trouble, "agent "+id+" is gone")
			continue
		}
		if a.Status.Phase != api.PhaseReady && a.Status.Phase != api.PhaseMaintenance {
			trouble = append(trouble, a.Name+" is "+string(a.Status.Phase))
			continue
		}
		i := slices.IndexFunc(a.Status.Inventory.Pools, func(u api.PoolUsage) bool { return u.Pool == p.ID })
		switch {
		case i < 0:
			unheard = true // it has not been asked yet, or its answer is on its way
		case a.Status.Inventory.Pools[i].Error != "":
			trouble = append(trouble, a.Name+": "+a.Status.Inventory.Pools[i].Error)
		default:
			u := a.Status.Inventory.Pools[i]
			if p.Spec.Shared { // all see the same room
				u.Capacity, u.Free = max(u.Capacity-s.Capacity, 0), max(u.Free-s.Free, 0)
			}
			s.Phase = api.PhaseReady
			s.Capacity += u.Capacity
			s.Free += u.Free
		}
	}
	if unheard && s.Phase != api.PhaseReady {
		return p.Status // a pool that has just been added must not look broken until it is first reported on
	}
	if more := len(trouble) - maxTrouble; more > 0 {
		trouble = append(trouble[:maxTrouble], fmt.Sprintf("and %d more", more))
	}
	s.Reason = strings.Join(trouble, "; ")
	return s
}

// maxTrouble is how many nodes the reason of a pool names.
const maxTrouble = 8

// worthWriting keeps the small ups and downs of free space from making a write and an event with every report: it has to
// move by a hundredth of the capacity.
func worthWriting(was, now api.PoolStatus) bool {
	moved := was.Free - now.Free
	if moved < 0 {
		moved = -moved
	}
	return was.Phase != now.Phase || was.Reason != now.Reason || was.Capacity != now.Capacity || moved > 0 && moved >= now.Capacity/100
}
