package admission

import (
	"encoding/json"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// Promise is what a node has promised to a VM: the value of a claim at store.NodeClaim.
type Promise struct {
	api.Amount
	Group string `json:"group,omitempty"` // ID of the VM's group
	// Joins is the ID of the group that the VM will belong to when its update has ended. Until then it counts for both.
	Joins string `json:"joins,omitempty"`
}

// PromiseOf returns what a VM needs of its node.
func PromiseOf(vm *api.VM) Promise {
	return Promise{Amount: api.Amount{VCPUs: vm.Spec.VCPUs, Memory: vm.Spec.Memory}, Group: vm.Spec.Group}
}

// Encode returns the value of the claim.
func (p Promise) Encode() (string, error) {
	b, err := json.Marshal(p)
	return string(b), problem.Wrap(err, problem.Internal, "the claim cannot be encoded")
}

// changeClaim lets a VM count for its new group at once, and for its old one until it has left that. It is refused where the
// group's rule would not have the VM: a rule that is broken keeps nobody away, and is no rule.
func (a *Admission) changeClaim(c *acceptance, vm *api.VM, to *api.VMGroup) error {
	if vm.Status.Agent == "" {
		return nil
	}
	// The ledgers are read before what they are about.
	node, err := store.LedgerRevision(c.ctx, c.kv, store.NodePrefix(vm.Status.Agent))
	if err != nil {
		return err
	}
	if to != nil && !to.Spec.Soft {
		if err := a.obeys(c, vm, to); err != nil {
			return err
		}
	}
	key := store.NodeClaim(vm.Status.Agent, vm.ID)
	e, err := c.kv.Get(c.ctx, key)
	if problem.Is(err, problem.NotFound) {
		return nil // an audit tells of it
	}
	if err != nil {
		return err
	}
	var p Promise
	if err := json.Unmarshal(e.Value, &p); err != nil {
		return problem.Wrap(err, problem.Internal, "the claim at %s cannot be read", key)
	}
	after := p
	after.Group = ""
	if to != nil {
		after.Group, p.Joins = to.ID, to.ID
	}
	meanwhile, err := p.Encode()
	if err != nil {
		return err
	}
	done, err := after.Encode()
	if err != nil {
		return err
	}
	c.Put(key, meanwhile)
	c.Touch(store.NodePrefix(vm.Status.Agent), node)
	c.op.Plan.PutIfDone = append(c.op.Plan.PutIfDone, api.Claim{Key: key, Value: done, Set: store.NodePrefix(vm.Status.Agent)})
	c.op.Plan.PutIfUndone = append(c.op.Plan.PutIfUndone, api.Claim{Key: key, Value: string(e.Value), Set: store.NodePrefix(vm.Status.Agent)})
	return nil
}

// obeys checks that the VM may belong to the group where it is.
func (a *Admission) obeys(c *acceptance, vm *api.VM, group *api.VMGroup) error {
	together := group.Spec.Policy == api.Affinity
	if together { // a rule about all nodes, which the ledger of one cannot keep
		revision, err := store.LedgerRevision(c.ctx, c.kv, store.GroupPrefix(group.ID))
		if err != nil {
			return err
		}
		c.Touch(store.GroupPrefix(group.ID), revision)
	}
	members, err := a.members(c, group)
	if err != nil {
		return err
	}
	no := problem.New(problem.Conflict, "vm %s cannot be brought into group %s", vm.Name, group.Name)
	for _, m := range members {
		here := m.Status.Agent == vm.Status.Agent
		comes := m.Status.MovingTo == vm.Status.Agent
		switch {
		case m.ID == vm.ID || m.Status.Agent == "":
		case !together && (here || comes):
			return no.Because("the group's VMs must be kept apart, and vm %s is on node %s, too", m.Name, vm.Status.AgentName).
				Try("move one of them first: gnext vm migrate %s", vm.Name)
		case together && m.Status.MovingTo != "":
			return no.Because("the group's VMs must stay together, and vm %s is being moved", m.Name).Try("wait until operation %s has ended", m.Operation)
		case together && !here:
			down, err := a.down(c, m.Status.Agent)
			if err != nil {
				return err
			}
			if !down { // what is down keeps nothing together
				return no.Because("the group's VMs must stay together, and vm %s is on node %s", m.Name, m.Status.AgentName).
					Try("move it there first: gnext vm migrate %s --to %s", vm.Name, m.Status.AgentName)
			}
		}
	}
	return nil
}

// members returns the VMs of a group, those that are on their way into it or out of it included.
func (a *Admission) members(c *acceptance, group *api.VMGroup) ([]*api.VM, error) {
	ids, err := store.UserIDs(c.ctx, c.kv, group, api.KindVM)
	if err != nil {
		return nil, err
	}
	var out []*api.VM
	for _, id := range ids {
		vm, err := store.Get[api.VM](c.ctx, c.kv, c.h, group.Project, id)
		if problem.Is(err, problem.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, vm)
	}
	return out, nil
}

func (a *Admission) down(c *acceptance, agent string) (bool, error) {
	ag, err := store.Get[api.Agent](c.ctx, c.kv, c.h, "", agent)
	if problem.Is(err, problem.NotFound) {
		return true, nil
	}
	return err == nil && ag.Status.Phase == api.PhaseDown, err
}
