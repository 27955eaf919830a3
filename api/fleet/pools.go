package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// poolsOf returns the pools that a node has. They are the cache's: who wants to change one makes a copy.
func (f *Fleet) poolsOf(agent string) ([]*api.Pool, error) {
	page, err := store.ListCached(f.Cache, f.self, "", "", 0, func(p *api.Pool) bool { return slices.Contains(p.Spec.Agents, agent) })
	return page.Items, err
}

// poolLook is what is remembered of the last time that a pool's status was worked out.
type poolLook struct {
	at       time.Time
	revision int64 // of the pool then
	due      bool  // something has changed since
}

// Working out the status of a pool reads the records of all its agents, and must not take the processors when a thousand of
// them report: perAgent must pass until it is done again, for each agent that there is above fewAgents.
const (
	perAgent  = 2 * time.Millisecond
	fewAgents = 50
	// lookAgain is when a pool is looked at again although nothing is known to have changed: its volumes may have.
	lookAgain = 30 * time.Second
)

// lookAtPools works out the status of those of a node's pools that there is a reason to look at: the node's record was
// written, which it is when its pools have changed as it sees them, or the pool was. One that was looked at a moment ago is
// left to a later report, of whatever node.
func (f *Fleet) lookAtPools(ctx context.Context, agent string, wrote bool) error {
	pools, err := f.poolsOf(agent)
	if err != nil {
		return err
	}
	now, pause := time.Now(), time.Duration(max(0, f.agents.Load()-fewAgents))*perAgent
	var due []*api.Pool
	f.mu.Lock()
	for _, p := range pools {
		l := f.pools[p.ID]
		l.due = l.due || wrote || l.revision != p.Revision || now.Sub(l.at) >= lookAgain
		if l.due && now.Sub(l.at) >= pause {
			l = poolLook{at: now, revision: p.Revision}
			due = append(due, p)
		}
		f.pools[p.ID] = l
	}
	f.mu.Unlock()
	if err = f.sumUp(ctx, due); err != nil {
		f.mu.Lock()
		for _, p := range due {
			f.pools[p.ID] = poolLook{due: true}
		}
		f.mu.Unlock()
	}
	return err
}

// observePools works out the status of every pool that a node has.
func (f *Fleet) observePools(ctx context.Context, agent string) error {
	pools, err := f.poolsOf(agent)
	if err != nil {
		return err
	}
	return f.sumUp(ctx, pools)
}

// sumUp works out the status of pools from the last reports of all their nodes.
func (f *Fleet) sumUp(ctx context.Context, pools []*api.Pool) error {
	if len(pools) == 0 {
		return nil
	}
	all, err := store.ListCached[api.Agent](f.Cache, f.self, "", "", 0, nil)
	if err != nil {
		return err
	}
	agents := make(map[string]*api.Agent, len(all.Items))
	for _, a := range all.Items {
		agents[a.ID] = a
	}
	volumes, err := f.volumesOf()
	if err != nil {
		return err
	}
	var first error
	for _, cached := range pools {
		p := *cached
		if p.Operation != "" || p.Status.Phase != api.PhaseReady && p.Status.Phase != api.PhaseUnavailable {
			continue
		}
		now := poolStatus(&p, agents)
		now.Promised, now.Volumes = 0, len(volumes[p.ID])
		for _, v := range volumes[p.ID] {
			now.Promised += v.Spec.Size
		}
		if err := f.markVolumes(ctx, &p, now, volumes[p.ID]); err != nil && first == nil {
			first = err
		}
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
	s := api.PoolStatus{Phase: api.PhaseUnavailable, Agents: make([]api.PoolAgent, 0, len(p.Spec.Agents))}
	var trouble []string
	var unheard bool
	not := func(agent, name, why string) {
		if name == "" {
			name = "agent " + agent
		}
		if why == "" {
			unheard, why = true, "it has not said yet" // it has not been asked, or its answer is on its way
		} else {
			trouble = append(trouble, name+why)
			why = strings.TrimPrefix(why, ": ")
		}
		s.Agents = append(s.Agents, api.PoolAgent{Agent: agent, Reason: strings.TrimSpace(why)})
	}
	for _, id := range p.Spec.Agents {
		a := agents[id]
		if a == nil {
			not(id, "", " is gone")
			continue
		}
		if a.Status.Phase != api.PhaseReady && a.Status.Phase != api.PhaseMaintenance {
			not(id, a.Name, " is "+string(a.Status.Phase))
			continue
		}
		i := slices.IndexFunc(a.Status.Inventory.Pools, func(u api.PoolUsage) bool { return u.Pool == p.ID })
		switch {
		case i < 0:
			not(id, a.Name, "")
		case a.Status.Inventory.Pools[i].Error != "":
			not(id, a.Name, ": "+a.Status.Inventory.Pools[i].Error)
		default:
			u := a.Status.Inventory.Pools[i]
			if p.Spec.Shared { // all see the same room
				u.Capacity, u.Free = max(u.Capacity-s.Capacity, 0), max(u.Free-s.Free, 0)
			}
			s.Phase = api.PhaseReady
			s.Capacity += u.Capacity
			s.Free += u.Free
			s.Agents = append(s.Agents, api.PoolAgent{Agent: id, Reaches: true})
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
	return was.Phase != now.Phase || was.Reason != now.Reason || was.Capacity != now.Capacity || was.Promised != now.Promised || was.Volumes != now.Volumes ||
		!slices.Equal(was.Agents, now.Agents) || moved > 0 && moved >= now.Capacity/100
}
