package workflows

import (
	"errors"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// A volume's move whose node is lost is brought to its end by others: none of its guests is to wait for the node, nor is anybody who wants
// the volume.

// heard notes whether the node has taken a call, whose error it returns.
func (s *volumeMoveState) heard(err error) error {
	s.Silent = errors.Is(err, steps.ErrNeverStarted)
	return err
}

// ask has a call made to the node. Lost: the node did not take it, or was not asked since it was silent before, and certainly does nothing to
// either copy any more. That its lease has ended says so of its guests, and not of what it copies by itself.
func (s *volumeMoveState) ask(r *saga.Run, call func() error) (lost bool, err error) {
	if s.Silent {
		if status, err := steps.LookAtAgent.Call(r, "", steps.NodeRef{Agent: s.In.Agent.ID}); err == nil && s.excluded(proofOf(status)) {
			return true, nil
		}
	}
	if err = s.heard(call()); !s.Silent {
		return false, err
	}
	status, lerr := steps.LookAtAgent.Call(r, "", steps.NodeRef{Agent: s.In.Agent.ID})
	if lerr != nil || status.Alive() {
		return false, err
	}
	proof := proofOf(status)
	if s.excluded(proof) {
		return true, nil
	}
	what := "nothing proves that the node is off: it is " + string(status.Phase)
	if proof != nil {
		what = "that the node's lease has ended proves only that no HA VM runs there"
	}
	p := problem.Caused(err, problem.Unavailable, "nobody knows whether node %s still works on volume %s", s.In.Agent.Name, s.Placed.Plan.Name)
	return false, p.Because("%s; %s", p.Why, what).Try("bring the node back; or make sure that it is off, and say so: gnext host recover %s --confirm-off", s.In.Agent.Name)
}

// excluded reports whether a proof that the node is down says that it does nothing to either copy.
func (s *volumeMoveState) excluded(proof *api.Proof) bool {
	vm := s.vm()
	return excludes(proof, steps.VMPlan{HA: vm != nil && vm.HA && !s.stopped()})
}

// keep is ask, for calls that have the VM keep its disk as it was. A node that is back may have written down already that it is the
// copy. That one must go then, or the VM could be started with it: in a pool that no other node sees, the node has to see to it.
func (s *volumeMoveState) keep(r *saga.Run, call func() error) error {
	if s.vm() != nil && !s.In.To.Shared {
		return call()
	}
	_, err := s.ask(r, call)
	return err
}

// eitherCopy is what becomes of the error of a call that was to tell which of the two a guest has: without the node nobody knows.
func (s *volumeMoveState) eitherCopy(r *saga.Run, err error) error {
	if !errors.Is(err, steps.ErrNeverStarted) || down(r, s.In.Agent.ID) == nil {
		return err
	}
	return problem.New(problem.Unavailable, "nobody knows in which pool vm %s had volume %s last", s.vm().Name, s.Placed.Plan.Name).
		Because("node %s is down, and what is in either pool may be as it was last", s.In.Agent.Name).Try("bring node %s back: the operation goes on by itself", s.In.Agent.Name)
}

// remove removes one of the two copies, and the seed beside it if it is a root disk. If the node is lost another one of the pool does; what
// no other one sees stays: it is nobody's, and an audit finds it.
func (s *volumeMoveState) remove(r *saga.Run, v steps.VolumePlan, vm steps.VMPlan, root bool) error {
	on := func(agent string) error {
		v.Agent = agent
		_, err := steps.RemoveVolume.Call(r, agent, v)
		if root && err == nil {
			_, err = steps.RemoveSeed.Call(r, agent, vm)
		}
		return err
	}
	lost, err := s.ask(r, func() error { return on(s.In.Agent.ID) })
	if !lost || !v.Pool.Shared {
		return err
	}
	other, err := otherOfPool(r, steps.VMPlan{Agent: s.In.Agent.ID, AgentName: s.In.Agent.Name, Disk: steps.DiskPlan{Pool: v.Pool.Pool}})
	if err != nil {
		return problem.Caused(err, problem.Unavailable, "what is left of volume %s in its other pool cannot be removed", v.Name)
	}
	return on(other.Agent)
}
