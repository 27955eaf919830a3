package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// UpdatePool accepts a change of a pool's labels, of the nodes that have it, or of how its cluster is reached.
func (a *Admission) UpdatePool(ctx context.Context, h auth.Handle, o Options, ref string, req api.PoolUpdate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	shown := req
	if req.Key != "" {
		shown.Key, o.hidden = hiddenPassword, digest(req.Key)
	}
	return a.accept(ctx, h, o, api.OpPoolUpdate, updateRequest[api.PoolUpdate]{targetRequest{ref}, shown}, func(c *acceptance) error {
		pool, err := store.Find[api.Pool](ctx, a.kv, h, "", ref)
		if err != nil {
			return err
		}
		after := *pool
		after.Spec.Agents = slices.Clone(pool.Spec.Agents)
		if req.Labels != nil {
			after.Labels = *req.Labels
		}
		change := api.PoolChange{Pool: pool.OnNode()}
		if err := a.joins(c, pool, &after, &change, req.AddAgents); err != nil {
			return err
		}
		if err := a.leaves(c, pool, &after, &change, req.RemoveAgents); err != nil {
			return err
		}
		if req.Redirects() {
			if err := a.redirects(c, pool, &after, &change, req); err != nil {
				return err
			}
		}
		return firstOf(c.target(pool), c.after(&after), c.input(change), c.keeps(pool))
	})
}

// redirects has a Ceph pool be reached in another way, once all its nodes have tried that. What names the pool stays: it is in the paths
// of what is in it. One that is proven to be down is not asked: it learns it when it is back.
func (a *Admission) redirects(c *acceptance, pool, after *api.Pool, change *api.PoolChange, req api.PoolUpdate) error {
	no := problem.New(problem.Unsupported, "how pool %s is reached cannot be changed", pool.Name)
	if pool.Spec.Type != api.PoolRBD {
		return no.Because("it is of type %s, and only Ceph pools have monitors, a user and a key", pool.Spec.Type).Try("make another pool")
	}
	s := &after.Spec.Source
	if len(req.Monitors) > 0 {
		s.Hosts = req.Monitors
	}
	if req.User != "" {
		s.User = req.User
	}
	if req.Key != "" {
		if err := a.replaceKey(c, pool.ID, req.Key); err != nil {
			return err
		}
		s.KeyVersion++
		change.Secret = c.op.ID
	}
	change.Source = *s
	agents, err := a.poolAgents(c, pool)
	if err != nil {
		return err
	}
	for _, ag := range agents {
		switch {
		case ag.Status.Alive():
			change.Check = append(change.Check, agentRef(ag))
		case ag.Status.Phase != api.PhaseDown || ag.Status.Proof == nil:
			return no.Away().Because("its node %s is %s, and cannot try it", ag.Name, ag.Status.Phase).Try("wait until it is back, or counts as down; see: gnext host get %s", ag.Name)
		}
	}
	if len(change.Check) == 0 {
		return no.Away().Because("none of its nodes is there to try it").Try("see: gnext pool get %s", pool.Name)
	}
	return nil
}

// replaceKey keeps a key for those who try it, and has it be the pool's when the operation succeeds.
func (a *Admission) replaceKey(c *acceptance, pool, key string) error {
	if err := a.keepKey(c, c.op.ID, key); err != nil {
		return err
	}
	c.releases(store.SecretKey(c.op.ID))
	sealed, err := a.seal.Seal(key, pool)
	c.op.Plan.PutIfDone = append(c.op.Plan.PutIfDone, api.Claim{Key: store.SecretKey(pool), Sealed: sealed})
	return err
}

// joins brings nodes into a pool. One that is in it stays as it is.
func (a *Admission) joins(c *acceptance, pool, after *api.Pool, change *api.PoolChange, refs []string) error {
	agents, err := a.named(c, refs)
	if err != nil {
		return err
	}
	agents = slices.DeleteFunc(agents, func(ag *api.Agent) bool { return slices.Contains(pool.Spec.Agents, ag.ID) })
	if len(agents) == 0 {
		return nil
	}
	for _, ag := range agents {
		if !ag.Status.Alive() {
			return problem.New(problem.Unavailable, "node %s cannot be brought into pool %s", ag.Name, pool.Name).Away().
				Because("it is %s, and cannot prepare the directory", ag.Status.Phase).Try("wait until it is back; see: gnext host get %s", ag.Name)
		}
		after.Spec.Agents = append(after.Spec.Agents, ag.ID)
		change.Add = append(change.Add, agentRef(ag))
		key := store.PoolPathClaim(ag.ID, pool.Spec.Path)
		c.claims(key, pool.ID)
		c.Meaning(key, problem.New(problem.Conflict, "directory %s of node %s is another pool", pool.Spec.Path, ag.Name).Try("see: gnext pool list; a pool has one directory on all its nodes"))
	}
	return a.apart(c, pool, agents)
}

// leaves takes nodes out of a pool. What is shared stays where it is, so nobody is asked; and one that is proven to be down
// cannot be.
func (a *Admission) leaves(c *acceptance, pool, after *api.Pool, change *api.PoolChange, refs []string) error {
	agents, err := a.named(c, refs)
	if err != nil {
		return err
	}
	for _, ag := range agents {
		no := problem.New(problem.InUse, "node %s cannot be taken out of pool %s", ag.Name, pool.Name)
		at := slices.Index(after.Spec.Agents, ag.ID)
		switch {
		case at < 0:
			continue
		case !slices.Contains(pool.Spec.Agents, ag.ID):
			no.Kind = problem.Invalid
			return no.Because("it is to be added as well").Try("say one of both")
		}
		if err := a.unused(c, pool, ag, no); err != nil {
			return err
		}
		down := ag.Status.Phase == api.PhaseDown && ag.Status.Proof != nil
		if !pool.Spec.Shared && !down {
			if !ag.Status.Alive() {
				return no.Away().Because("it is %s: it cannot be asked, and nothing proves that it is off", ag.Status.Phase).
					Try("wait until it is back, or counts as down; see: gnext host get %s", ag.Name)
			}
			change.Remove = append(change.Remove, agentRef(ag))
		}
		after.Spec.Agents = slices.Delete(after.Spec.Agents, at, at+1)
		pool.Status.Leaving = append(pool.Status.Leaving, ag.ID)
		c.releases(store.PoolPathClaim(ag.ID, pool.Spec.Path))
	}
	if len(after.Spec.Agents) == 0 {
		return problem.New(problem.InUse, "pool %s needs a node", pool.Name).Because("it would have none any more").
			Try("bring another one into it (--add-agent), or delete the pool: gnext pool del %s", pool.Name)
	}
	return nil
}

// named finds the agents that were named, each once; none were: none.
func (a *Admission) named(c *acceptance, refs []string) ([]*api.Agent, error) {
	if len(refs) == 0 {
		return nil, nil // which to agentsFor means all
	}
	return a.agentsFor(c, refs)
}

// unused checks that nothing of a pool is on a node, or about to be. Whoever puts something there writes the node's ledger: so
// what was decided before and is not written yet fails, and is decided again, without this node.
func (a *Admission) unused(c *acceptance, pool *api.Pool, ag *api.Agent, no *problem.Problem) error {
	prefix := store.NodePrefix(ag.ID)
	ledger, err := store.Ledger(c.ctx, c.kv, prefix)
	if err != nil {
		return err
	}
	c.Touch(prefix, ledger.Revision)
	vms, err := store.List[api.VM](c.ctx, c.kv, c.h, "*")
	if err != nil {
		return err
	}
	var on []string
	theirs, coming := map[string]bool{}, map[string]bool{}
	for _, vm := range vms {
		if vm.Status.MovingTo == ag.ID {
			coming[vm.ID] = true
		}
		if vm.Spec.Pool == pool.ID && (vm.Status.Agent == ag.ID || vm.Status.MovingTo == ag.ID) {
			theirs[vm.ID] = true
			on = append(on, fmt.Sprintf("vm %s of project %s", vm.Name, vm.Project))
		}
	}
	volumes, err := store.List[api.Volume](c.ctx, c.kv, c.h, "*")
	if err != nil {
		return err
	}
	for _, v := range volumes {
		here := v.Status.Agent == ag.ID || slices.ContainsFunc(v.VMs(), func(id string) bool { return coming[id] })
		if v.Spec.Pool == pool.ID && here && !pool.Spec.Shared && !theirs[v.Spec.VM] {
			on = append(on, fmt.Sprintf("volume %s of project %s", v.Name, v.Project))
		}
	}
	users, err := store.UserIDs(c.ctx, c.kv, pool, api.KindVolume)
	if err != nil {
		return err
	}
	for _, v := range volumes { // one that needs the pool and is not in it is on its way there
		if v.Spec.Pool != pool.ID && slices.Contains(users, v.ID) {
			return no.Because("volume %s of project %s is being moved into the pool", v.Name, v.Project).Try("wait for operation %s", v.Operation)
		}
	}
	if len(on) == 0 {
		return nil
	}
	no = no.Because("it has %s", strings.Join(first(on, 5), ", "))
	if ag.Status.Alive() {
		return no.Try("move VMs away (gnext host drain %s) and volumes that no VM has into another pool (gnext vol migrate VOLUME --pool OTHER), or delete them", ag.Name)
	}
	return no.Try("wait until they are restarted elsewhere, or the node is back; see: gnext host get %s", ag.Name)
}
