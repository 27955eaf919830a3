package state

import (
	"context"
	"fmt"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/fleet"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

// judgeNode decides whether a silent node may be taken for dead. The decision is written on condition that both the record and
// the beat are as they were read, and every renewal of a lease is written on condition of the beat: so a node is either
// declared dead or has its lease, whatever happens at the same moment.
func (s *State) judgeNode(ctx context.Context, t steps.Token, j steps.Judgement) (v steps.Verdict, err error) {
	err = store.Retry(ctx, func() error {
		beat, a, err := s.agentAndBeat(ctx, j.Agent)
		if err != nil {
			return err
		}
		if a.Operation != t.Operation {
			return problem.New(problem.Stale, "operation %s no longer holds agent %s", t.Operation, a.Name)
		}
		clock := s.leaseClock()
		v = judge(clock, a, beat, j)
		if v.Proof == nil || v.Proof == a.Status.Proof {
			return nil
		}
		if a.Status.Phase != api.PhaseDown {
			a.Status.Phase, a.Status.Since = api.PhaseDown, clock.Now()
		}
		a.Status.Proof, a.Status.ConfirmedOff = v.Proof, ""
		a.Status.Reason = v.Proof.Detail
		beat.Down = true
		d := store.NewDraft(s.h)
		d.Update(a)
		d.Beat(a.ID, beat)
		if err := s.touchNode(ctx, d, a.ID); err != nil { // who is about to place a VM there decides anew
			return err
		}
		_, err = d.Commit(ctx, s.kv)
		return err
	})
	return v, err
}

// judge is the decision itself.
func judge(clock *fleet.Clock, a *api.Agent, beat store.Beat, j steps.Judgement) steps.Verdict {
	now := clock.Now()
	proof := func(kind, detail string, args ...any) steps.Verdict {
		return steps.Verdict{Proof: &api.Proof{Kind: kind, Detail: fmt.Sprintf(detail, args...), At: now}}
	}
	if by := a.Status.ConfirmedOff; by != "" {
		j.Confirmed = by
	}
	switch {
	case a.Status.Phase == api.PhaseDown && a.Status.Proof != nil && (a.Status.Proof.Kind != api.ProofLease || j.Confirmed == ""):
		return steps.Verdict{Proof: a.Status.Proof} // decided before; only that its lease has ended says less than somebody who looked
	case a.Status.Alive(), beat.Observed.After(a.Status.Since):
		return steps.Verdict{Alive: true}
	case j.Fenced != nil:
		return steps.Verdict{Proof: j.Fenced}
	case j.Confirmed != "":
		return proof(api.ProofOperator, "%s says, having looked, that it is off", j.Confirmed)
	}
	v := steps.Verdict{Device: a.Spec.Fence != nil}
	end, why := leaseEnd(clock, beat)
	if why != "" {
		v.Reason = why
		return v
	}
	if wait := end.Add(fleet.Margin).Sub(now); wait > 0 {
		v.Wait, v.Reason = wait, fmt.Sprintf("its lease ends at %s, and then it takes %s until it has certainly stopped what it ran", end.UTC().Format(time.RFC3339), fleet.Margin)
		return v
	}
	return proof(api.ProofLease, "its lease ended at %s, and its guardian has stopped its HA VMs since", end.UTC().Format(time.RFC3339))
}

// leaseEnd returns when a node's guarded lease is over, by our clock, or why there is no such time.
//
// A lease that another life of the server granted was reckoned by a clock of which we know nothing but that it was meant to
// tell the time: should ours be ahead of it, the lease would seem to be over too early. But no life grants leases after its
// end, so such a lease is over for certain when we have lived as long as it was. The later of the two holds.
func leaseEnd(clock *fleet.Clock, b store.Beat) (end time.Time, why string) {
	switch {
	case b.Until.IsZero():
		return end, "it never had a lease, so nothing makes it stop what it runs"
	case !b.Guarded:
		return end, "its lease was not guarded: nothing on the node makes sure that VMs are stopped when it is over"
	}
	end = b.Until
	if own := clock.Began().Add(b.Lease); b.Life != clock.Life() && own.After(end) {
		end = own
	}
	return end, ""
}
