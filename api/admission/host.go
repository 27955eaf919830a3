package admission

import (
	"context"
	"fmt"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// hiddenPassword stands in an operation's request where a password was. No password is that long.
const hiddenPassword = "(hidden; send it again)"

// UpdateHost accepts a change of what is decided about a node.
func (a *Admission) UpdateHost(ctx context.Context, h auth.Handle, o Options, ref string, req api.AgentUpdate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	shown := req
	if f := req.Fence; f != nil && f.Password != "" {
		hidden := *f
		hidden.Password = hiddenPassword
		shown.Fence, o.hidden = &hidden, digest(f.Password)
	}
	return a.accept(ctx, h, o, api.OpHostUpdate, updateRequest[api.AgentUpdate]{targetRequest{ref}, shown}, func(c *acceptance) error {
		agent, err := store.Find[api.Agent](ctx, a.kv, h, "", ref)
		if err != nil {
			return err
		}
		before := api.AgentChange{Agent: agent.ID, Spec: agent.Spec, Labels: agent.Labels}
		after := before
		if err := changeHost(&after, agent, req); err != nil {
			return err
		}
		if err := a.changeFence(c, agent, &before, &after, req.Fence); err != nil {
			return err
		}
		return firstOf(c.target(agent), c.before(before), c.input(after), c.keeps(agent))
	})
}

func changeHost(after *api.AgentChange, agent *api.Agent, req api.AgentUpdate) error {
	if req.Labels != nil {
		after.Labels = *req.Labels
	}
	if req.ReservedMemory != nil {
		after.Spec.ReservedMemory = *req.ReservedMemory
	}
	if req.CPURatio != nil {
		after.Spec.CPURatio = *req.CPURatio
	}
	if req.MemoryRatio != nil {
		after.Spec.MemoryRatio = *req.MemoryRatio
	}
	if req.Cordoned != nil {
		after.Spec.Cordoned = *req.Cordoned
	}
	if req.CordonReason != nil {
		after.Spec.CordonReason = *req.CordonReason
	}
	if after.Spec.Cordoned {
		return nil
	}
	if req.CordonReason != nil && *req.CordonReason != "" {
		return problem.New(problem.Invalid, "there is no reason to give: host %s is not cordoned", agent.Name).Try("cordon it: gnext host cordon %s --reason TEXT", agent.Name)
	}
	after.Spec.CordonReason = "" // it was that of a cordon that is over
	return nil
}

// changeFence changes the device that can power a node off. The password of the device that was is never sent to another.
func (a *Admission) changeFence(c *acceptance, agent *api.Agent, before, after *api.AgentChange, req *api.Fence) error {
	if req == nil {
		return nil
	}
	kept, err := a.kv.Get(c.ctx, store.SecretKey(agent.ID))
	if err != nil && !problem.Is(err, problem.NotFound) {
		return err
	}
	before.Secret = kept.Value
	if req.Driver == "" {
		after.Spec.Fence = nil
		return nil
	}
	was, device := agent.Spec.Fence, *req
	device.Password = ""
	after.Spec.Fence = &device
	if req.Password == "" {
		if was == nil || *was != device || len(kept.Value) == 0 {
			return problem.New(problem.Invalid, "the fence device of host %s needs its password", agent.Name).
				Because("a password is kept for one driver, address and user").Try("send the password with the change")
		}
		return nil
	}
	after.Secret, err = a.seal.Seal(req.Password, agent.ID)
	return err
}

// DrainHost accepts moving every VM away from a node.
func (a *Admission) DrainHost(ctx context.Context, h auth.Handle, o Options, ref string, req api.HostDrain) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpHostDrain, drainRequest{targetRequest{ref}, req}, func(c *acceptance) error {
		agent, err := store.Find[api.Agent](ctx, a.kv, h, "", ref)
		if err != nil {
			return err
		}
		if err := firstOf(c.target(agent), c.keeps(agent)); err != nil {
			return err
		}
		if !agent.Status.Alive() {
			return problem.New(problem.Conflict, "host %s cannot be drained", agent.Name).Because("it is %s: nothing can be moved away from it", agent.Status.Phase).
				Try("its HA VMs are restarted elsewhere by its recovery; see: gnext host get %s", agent.Name)
		}
		return firstOf(c.input(req), c.before(api.Cordon{Cordoned: agent.Spec.Cordoned, Reason: agent.Spec.CordonReason}))
	})
}

// drainRequest is a request to drain a node as an operation remembers it.
type drainRequest struct {
	targetRequest
	api.HostDrain
}

// BalanceHosts accepts evening out how the nodes are used.
func (a *Admission) BalanceHosts(ctx context.Context, h auth.Handle, o Options, req api.HostBalance) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpHostBalance, req, func(c *acceptance) error { return c.input(req) })
}

// DeleteHost accepts forgetting a node that is not alive and that nothing is on.
func (a *Admission) DeleteHost(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpHostDelete, targetRequest{ref}, func(c *acceptance) error {
		agent, err := store.Find[api.Agent](ctx, a.kv, h, "", ref)
		if err != nil {
			return err
		}
		if err := c.deletes(agent); err != nil {
			return err
		}
		if agent.Status.Alive() {
			return problem.New(problem.Conflict, "host %s cannot be deleted", agent.Name).Because("it is %s: it would report again, and be nobody", agent.Status.Phase).
				Try("empty it (gnext host drain %s), stop its agent, and wait until it counts as silent", agent.Name)
		}
		if err := a.empty(c, agent); err != nil {
			return err
		}
		c.releases(store.LedgerKey(store.NodePrefix(agent.ID)), store.SecretKey(agent.ID))
		return nil
	})
}

// empty checks that nothing is on a node, now and when the draft is committed.
func (a *Admission) empty(c *acceptance, agent *api.Agent) error {
	on, fix := []string{}, "delete or move those first"
	vms, err := store.List[api.VM](c.ctx, c.kv, c.h, "*")
	if err != nil {
		return err
	}
	for _, vm := range vms {
		if vm.Status.Agent == agent.ID || vm.Status.MovingTo == agent.ID || vm.Spec.NodeID == agent.ID {
			on = append(on, fmt.Sprintf("vm %s of project %s", vm.Name, vm.Project))
		}
	}
	pools, err := store.List[api.Pool](c.ctx, c.kv, c.h, "")
	if err != nil {
		return err
	}
	for _, p := range pools {
		for _, id := range p.Spec.Agents {
			if id == agent.ID {
				if len(on) == 0 {
					fix = fmt.Sprintf("take it out of its pools first: gnext pool update %s --remove-agent %s", p.Name, agent.Name)
				}
				on = append(on, "pool "+p.Name)
			}
		}
	}
	used := problem.New(problem.InUse, "host %s is still in use", agent.Name).Because("something of it is promised").Try("look again: gnext host get %s", agent.Name)
	if len(on) > 0 {
		return used.Because("it has %s", strings.Join(first(on, 5), ", ")).Try("%s", fix)
	}
	c.None(store.NodePrefix(agent.ID), used)
	c.None(store.PoolPathClaim(agent.ID, "/"), used)
	return nil
}
