package state

import (
	"context"
	"time"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/fleet"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

// registerHosts implements the steps on the records of nodes.
func (s *State) registerHosts(reg activities.Registry, host *activities.Host) {
	activities.Implement(reg, host, steps.ApplyAgent, s.applyAgent)
	activities.Implement(reg, host, steps.CordonAgent, s.cordonAgent)
	activities.Implement(reg, host, steps.ForgetAgent, s.forgetAgent)
	activities.Implement(reg, host, steps.LookAtAgent, s.lookAtAgent)
	activities.Implement(reg, host, steps.JudgeNode, s.judgeNode)
}

// WithClock makes s judge leases by c, which must be the clock of the fleet that grants them. Without it, it is that of the
// process.
func (s *State) WithClock(c *fleet.Clock) *State {
	s.clock = c
	return s
}

func (s *State) leaseClock() *fleet.Clock {
	if s.clock == nil {
		return fleet.ProcessClock()
	}
	return s.clock
}

// applyAgent writes what is decided about a node, and its fence device's password with it.
func (s *State) applyAgent(ctx context.Context, t steps.Token, c steps.AgentChange) (steps.Nothing, error) {
	return steps.Nothing{}, s.changeAgent(ctx, t, c.Agent, func(d *store.Draft, a *api.Agent) {
		a.Spec, a.Labels = c.Spec, c.Labels
		cordoned(a, s.leaseClock().Now())
		switch {
		case c.Spec.Fence == nil:
			d.Release(store.SecretKey(a.ID))
		case c.Secret != nil:
			d.Put(store.SecretKey(a.ID), string(c.Secret))
		}
	})
}

func (s *State) cordonAgent(ctx context.Context, t steps.Token, c steps.AgentCordon) (steps.Nothing, error) {
	change := func(_ *store.Draft, a *api.Agent) {
		a.Spec.Cordoned, a.Spec.CordonReason = c.Cordoned, c.Reason
		cordoned(a, s.leaseClock().Now())
	}
	if t.Undo && c.InPlaceOf != "" {
		return steps.Nothing{}, s.takeBack(ctx, t, c, change)
	}
	return steps.Nothing{}, s.changeAgent(ctx, t, c.Agent, change)
}

// takeBack takes a cordon back, also of a node that the operation has lost to the node's recovery: nobody else would. Where
// somebody has decided anew since, and for an operation that has ended, it does nothing.
func (s *State) takeBack(ctx context.Context, t steps.Token, c steps.AgentCordon, change func(*store.Draft, *api.Agent)) error {
	var lost bool
	err := store.Retry(ctx, func() error {
		a, err := store.Get[api.Agent](ctx, s.kv, s.h, "", c.Agent)
		if lost = err == nil && a.Operation != t.Operation; !lost {
			return nil // changeAgent sees what it is
		}
		if !a.Spec.Cordoned || a.Spec.CordonReason != c.InPlaceOf {
			return nil
		}
		if a.Operation != "" {
			holder, err := store.Get[api.Operation](ctx, s.kv, s.h, "", a.Operation)
			if err != nil || holder.Kind != api.OpHostRecover {
				return err
			}
		}
		mine, err := store.Get[api.Operation](ctx, s.kv, s.h, "", t.Operation)
		if err != nil || mine.State.Ended() {
			return err
		}
		d := store.NewDraft(s.h)
		d.Unchanged(mine)
		return s.writeAgent(ctx, d, a, change)
	})
	if lost || err != nil {
		return err
	}
	return s.changeAgent(ctx, t, c.Agent, change)
}

// cordoned makes the phase of a node that takes VMs, or would, say what its spec says, without waiting for its next report.
func cordoned(a *api.Agent, now time.Time) {
	phase, reason := api.PhaseReady, ""
	if a.Spec.Cordoned {
		phase, reason = api.PhaseMaintenance, a.Spec.CordonReason
	}
	if a.Status.Phase != api.PhaseReady && a.Status.Phase != api.PhaseMaintenance {
		return
	}
	if a.Status.Phase != phase {
		a.Status.Since = now
	}
	a.Status.Phase, a.Status.Reason = phase, reason
}

// changeAgent changes a node that the calling operation holds. What it does not hold it leaves alone, and is content: a drain
// may have lost its node to the node's recovery, and has nothing to take back then.
func (s *State) changeAgent(ctx context.Context, t steps.Token, agent string, change func(*store.Draft, *api.Agent)) error {
	return store.Retry(ctx, func() error {
		a, err := store.Get[api.Agent](ctx, s.kv, s.h, "", agent)
		if problem.Is(err, problem.NotFound) && t.Undo {
			return nil
		}
		if err != nil || a.Operation != t.Operation {
			return err
		}
		return s.writeAgent(ctx, store.NewDraft(s.h), a, change)
	})
}

func (s *State) writeAgent(ctx context.Context, d *store.Draft, a *api.Agent, change func(*store.Draft, *api.Agent)) error {
	change(d, a)
	d.Update(a)
	if err := s.touchNode(ctx, d, a.ID); err != nil { // who is about to place a VM there decides anew
		return err
	}
	_, err := d.Commit(ctx, s.kv)
	return err
}

// forgetAgent revokes the node's credential first: from then on it cannot report, and nothing of it comes back.
func (s *State) forgetAgent(ctx context.Context, t steps.Token, n steps.NodeRef) (steps.Nothing, error) {
	tokens, err := store.List[api.Token](ctx, s.kv, s.h, "")
	if err != nil {
		return steps.Nothing{}, err
	}
	for _, token := range tokens {
		if token.Subject != n.Agent || token.Role != string(auth.Agent) {
			continue
		}
		d := store.NewDraft(s.h)
		d.Delete(token)
		if _, err := d.Commit(ctx, s.kv); err != nil && !problem.Is(err, problem.Conflict) {
			return steps.Nothing{}, err
		}
	}
	return steps.Nothing{}, store.Retry(ctx, func() error {
		a, err := store.Get[api.Agent](ctx, s.kv, s.h, "", n.Agent)
		if problem.Is(err, problem.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if a.Operation != t.Operation {
			return problem.New(problem.Stale, "operation %s no longer holds agent %s", t.Operation, a.Name)
		}
		d := store.NewDraft(s.h)
		d.Delete(a)
		d.Release(store.BeatKey(a.ID))
		_, err = d.Commit(ctx, s.kv)
		return err
	})
}

func (s *State) lookAtAgent(ctx context.Context, _ steps.Token, n steps.NodeRef) (api.AgentStatus, error) {
	_, a, err := s.agentAndBeat(ctx, n.Agent)
	if err != nil {
		return api.AgentStatus{}, err
	}
	return a.Status, nil
}

// agentAndBeat returns an agent's beat, and its record with what the beat knows better.
func (s *State) agentAndBeat(ctx context.Context, agent string) (store.Beat, *api.Agent, error) {
	beat, err := store.ReadBeat(ctx, s.kv, agent)
	if err != nil {
		return beat, nil, err
	}
	a, err := store.Get[api.Agent](ctx, s.kv, s.h, "", agent)
	if err == nil {
		beat.Show(a)
	}
	return beat, a, err
}
