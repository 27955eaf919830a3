package workflows

import (
	"errors"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// down returns the proof that a node is down; nil: it is not, as far as anybody knows.
func down(r *saga.Run, agent string) *api.Proof {
	status, err := steps.LookAtAgent.Call(r, "", steps.NodeRef{Agent: agent})
	if err != nil {
		return nil
	}
	return proofOf(status)
}

func proofOf(status api.AgentStatus) *api.Proof {
	if status.Phase != api.PhaseDown {
		return nil
	}
	return status.Proof
}

// excludes reports whether a proof that a node is down says that a guest does not run there: that its lease has ended says so of
// HA guests only.
func excludes(proof *api.Proof, plan steps.VMPlan) bool {
	return proof != nil && (proof.Kind != api.ProofLease || plan.HA)
}

// off reports whether the node of a plan certainly does not run the guest, being down.
func off(r *saga.Run, plan steps.VMPlan) bool { return excludes(down(r, plan.Agent), plan) }

// absent is what becomes of the error of a call about a guest that its node never took: nil if the node certainly does not run
// the guest, and else the error with what would prove it. Other errors stay as they are.
func absent(r *saga.Run, plan steps.VMPlan, err error) error {
	if !errors.Is(err, steps.ErrNeverStarted) {
		return err
	}
	status, lerr := steps.LookAtAgent.Call(r, "", steps.NodeRef{Agent: plan.Agent})
	if lerr != nil || status.Alive() {
		return err
	}
	proof := proofOf(status)
	if excludes(proof, plan) {
		return nil
	}
	p := problem.Caused(err, problem.Unavailable, "nobody knows whether node %s still has vm %s", plan.AgentName, plan.Name)
	what := "nothing proves that the node is off: it is " + string(status.Phase)
	if proof != nil {
		what = "that the node's lease has ended proves of HA VMs only that they do not run there, and this is none"
	}
	return p.Because("%s; %s", p.Why, what).Try("bring the node back; or make sure that it is off, and say so: gnext host recover %s --confirm-off", plan.AgentName)
}
