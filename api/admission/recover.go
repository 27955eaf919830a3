package admission

import (
	"context"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// recoverRequest is a request to recover a node as an operation remembers it.
type recoverRequest struct {
	targetRequest
	ConfirmedBy string `json:"confirmedBy,omitempty"`
}

// RecoverHost accepts starting the HA VMs of a silent node elsewhere. Somebody who has looked says by confirmedBy, which is
// their name, that the node is off. If a recovery of the node is under way it is told so, and returned.
func (a *Admission) RecoverHost(ctx context.Context, h auth.Handle, o Options, ref, confirmedBy string) (*api.Operation, error) {
	for again := true; ; again = false {
		if confirmedBy != "" {
			if op, err := a.confirmOff(ctx, h, ref, confirmedBy); op != nil || err != nil {
				return op, err
			}
		}
		op, err := a.recoverHost(ctx, h, o, ref, confirmedBy)
		if confirmedBy == "" || !again || !problem.Is(err, problem.Locked) {
			return op, err
		}
		// The server may have begun the recovery by itself in this very moment.
	}
}

func (a *Admission) recoverHost(ctx context.Context, h auth.Handle, o Options, ref, confirmedBy string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpHostRecover, recoverRequest{targetRequest{ref}, confirmedBy}, func(c *acceptance) error {
		agent, err := store.Find[api.Agent](ctx, a.kv, h, "", ref)
		if err != nil {
			return err
		}
		if err := dead(agent); err != nil {
			return err
		}
		if err := a.takeOver(c, agent); err != nil {
			return err
		}
		if confirmedBy != "" {
			if err := c.input(confirmedBy); err != nil {
				return err
			}
		}
		return firstOf(c.target(agent), c.keeps(agent))
	})
}

func dead(agent *api.Agent) error {
	if !agent.Status.Alive() {
		return nil
	}
	return problem.New(problem.Conflict, "host %s cannot be recovered", agent.Name).Because("it is alive (%s), and runs its VMs", agent.Status.Phase).
		Try("to empty it: gnext host drain %s", agent.Name)
}

// takeOver takes a node away from its drain. A drain waits for moves away from the node, and those may wait for the proof
// that the node is off, which only its recovery brings. The drain goes on, and finds at its end that it holds nothing;
// if it is cancelled, it takes its cordon back all the same.
func (a *Admission) takeOver(c *acceptance, agent *api.Agent) error {
	if agent.Operation == "" {
		return nil
	}
	holder, err := store.Get[api.Operation](c.ctx, c.kv, c.h, "", agent.Operation)
	if err == nil && holder.Kind == api.OpHostDrain {
		agent.Operation = ""
	}
	if problem.Is(err, problem.NotFound) {
		return nil // the audit's business; holds says whose it is
	}
	return err
}

// confirmOff tells the recovery of a node that is under way that somebody has seen that the node is off. It returns nil if
// there is none.
func (a *Admission) confirmOff(ctx context.Context, h auth.Handle, ref, by string) (*api.Operation, error) {
	var op *api.Operation
	err := store.Retry(ctx, func() error {
		agent, err := store.Find[api.Agent](ctx, a.kv, h, "", ref)
		if err != nil || agent.Operation == "" {
			return err
		}
		holder, err := store.Get[api.Operation](ctx, a.kv, h, "", agent.Operation)
		if err != nil || holder.Kind != api.OpHostRecover || holder.State.Ended() {
			return err
		}
		if err := dead(agent); err != nil {
			return err
		}
		if p := agent.Status.Proof; agent.Status.Phase == api.PhaseDown && p != nil {
			if p.Kind != api.ProofLease {
				op = holder
			}
			return nil // what it is about has been decided; who says more than that says it to another one
		}
		agent.Status.ConfirmedOff = by
		d := store.NewDraft(h)
		d.Update(agent) // on the revision at which this recovery held it
		if _, err = d.Commit(ctx, a.kv); err == nil {
			op = holder
		}
		return err
	})
	return op, err
}
