package workflows

import (
	"encoding/json"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// hostChange is what the step of a host's update needs.
type hostChange struct {
	After  steps.AgentChange `json:"after"`
	Before steps.AgentChange `json:"before"`
}

// HostUpdate changes what is decided about a node.
var HostUpdate = saga.Table[hostChange]{
	Kind: api.OpHostUpdate,
	Start: func(op steps.Op) (s hostChange, err error) {
		if err = json.Unmarshal(op.Input, &s.After); err == nil {
			err = json.Unmarshal(op.Before, &s.Before)
		}
		return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
	},
	Steps: []saga.Step[hostChange]{{
		Name: "apply", Where: control,
		Do:   func(r *saga.Run, s *hostChange) error { return applyHost(r, s.After) },
		Undo: func(r *saga.Run, s *hostChange) error { return applyHost(r, s.Before) },
	}},
}

func applyHost(r *saga.Run, c steps.AgentChange) error {
	_, err := steps.ApplyAgent.Call(r, "", c)
	return err
}

// HostDelete forgets a node. Whether anything needs it was looked at when it was accepted.
var HostDelete = saga.Table[steps.NodeRef]{
	Kind: api.OpHostDelete, Start: startHost,
	Steps: []saga.Step[steps.NodeRef]{{
		Name: "forget", Where: control, Commit: true,
		Do: func(r *saga.Run, s *steps.NodeRef) error {
			_, err := steps.ForgetAgent.Call(r, "", *s)
			return err
		},
	}},
}

func startHost(op steps.Op) (steps.NodeRef, error) { return steps.NodeRef{Agent: op.Target.ID}, nil }

// drainState is what the steps of a drain share.
type drainState struct {
	Agent   string        `json:"agent"`
	Request api.HostDrain `json:"request"`
	Was     struct {
		Cordoned bool   `json:"cordoned"`
		Reason   string `json:"reason"`
	} `json:"was"`
	Plan api.MovePlan `json:"plan"`
}

// HostDrain empties a node. What has moved stays where it is when the rest is cancelled.
var HostDrain = saga.Table[drainState]{
	Kind: api.OpHostDrain, Start: startDrain,
	Steps: []saga.Step[drainState]{
		{Name: "cordon", Where: control, Do: cordonHost, Undo: uncordonHost},
		{Name: "plan", Where: control, Do: planDrain, Detail: func(s *drainState) any { return s.Plan }}, // reads only
		// A VM that has moved is as well off as before, and moving it back would only disturb it.
		{Name: "move", Where: node, Do: drainMoves, Detail: func(s *drainState) any { return s.Plan }},
	},
	Result: func(s *drainState) (json.RawMessage, error) { return json.Marshal(s.Plan) },
}

func startDrain(op steps.Op) (s drainState, err error) {
	s.Agent = op.Target.ID
	if err = json.Unmarshal(op.Input, &s.Request); err == nil {
		err = json.Unmarshal(op.Before, &s.Was)
	}
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

// reason is why the node is cordoned by the drain.
func (s *drainState) reason(r *saga.Run) string {
	if s.Request.Reason != "" {
		return s.Request.Reason
	}
	return "drained by operation " + r.Op().ID
}

func cordonHost(r *saga.Run, s *drainState) error {
	_, err := steps.CordonAgent.Call(r, "", steps.AgentCordon{Agent: s.Agent, Cordoned: true, Reason: s.reason(r)})
	return err
}

func uncordonHost(r *saga.Run, s *drainState) error {
	_, err := steps.CordonAgent.Call(r, "", steps.AgentCordon{Agent: s.Agent, Cordoned: s.Was.Cordoned, Reason: s.Was.Reason, InPlaceOf: s.reason(r)})
	return err
}

func planDrain(r *saga.Run, s *drainState) (err error) {
	s.Plan, err = steps.PlanDrain.Call(r, "", steps.DrainPlan{Agent: s.Agent, HostDrain: s.Request})
	return err
}

func drainMoves(r *saga.Run, s *drainState) error {
	req := s.Request
	return carryOut(r, s.Plan.Moves, req.Parallel, func(m api.Move) api.VMMigrate {
		live := m.Kind == api.MoveLive // the target is chosen anew when its turn comes: much may have changed by then
		return api.VMMigrate{Cold: !live, CopyStorage: m.Copy, AutoConverge: live && req.AutoConverge, PostCopy: live && req.PostCopy}
	})
}

// balanceState is what the steps of a balance share.
type balanceState struct {
	Request api.HostBalance `json:"request"`
	Plan    api.MovePlan    `json:"plan"`
}

// HostBalance evens out how the nodes are used. What has moved stays where it is when the rest is cancelled.
var HostBalance = saga.Table[balanceState]{
	Kind: api.OpHostBalance,
	Start: func(op steps.Op) (s balanceState, err error) {
		err = json.Unmarshal(op.Input, &s.Request)
		return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
	},
	Steps: []saga.Step[balanceState]{
		{
			Name: "plan", Where: control, Detail: func(s *balanceState) any { return s.Plan }, // reads only
			Do: func(r *saga.Run, s *balanceState) (err error) {
				s.Plan, err = steps.PlanBalance.Call(r, "", s.Request)
				return err
			},
		},
		{
			Name: "move", Where: node, Detail: func(s *balanceState) any { return s.Plan }, // what has moved stays, as with a drain
			Do: func(r *saga.Run, s *balanceState) error {
				return carryOut(r, s.Plan.Moves, s.Request.Parallel, func(m api.Move) api.VMMigrate { return api.VMMigrate{To: m.To, CopyStorage: m.Copy} })
			},
		},
	},
	Result: func(s *balanceState) (json.RawMessage, error) { return json.Marshal(s.Plan) },
}

// recoverState is what the steps of a dead node's recovery share.
type recoverState struct {
	Agent     string       `json:"agent"`
	Confirmed string       `json:"confirmed,omitempty"` // who said that the node is off
	Back      bool         `json:"back"`                // it reports again, so there is nothing to recover
	Proof     *api.Proof   `json:"proof,omitempty"`
	Plan      api.MovePlan `json:"plan"`
}

// HostRecover restarts the HA VMs of a dead node elsewhere. Nothing is started before there is a proof that it does not run
// any more, and the proof stands in the operation. It cannot be cancelled: it waits for the proof, or for the node to be back.
var HostRecover = saga.Table[recoverState]{
	Kind: api.OpHostRecover,
	Start: func(op steps.Op) (s recoverState, err error) {
		s.Agent = op.Target.ID
		if len(op.Input) > 0 {
			err = json.Unmarshal(op.Input, &s.Confirmed)
		}
		return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
	},
	Steps: []saga.Step[recoverState]{
		{Name: "fence", Where: control, Do: fenceHost, Commit: true, Detail: func(s *recoverState) any { return s.Proof }},
		{Name: "plan", Where: control, Do: planRecovery, Detail: func(s *recoverState) any { return s.Plan }},
		{Name: "restart", Where: node, Do: restartElsewhere, Detail: func(s *recoverState) any { return s.Plan }},
	},
	Result: func(s *recoverState) (json.RawMessage, error) { return json.Marshal(s.Plan) },
}

// fenceHost goes on until the node is proven down or is back. The device is asked first: it tells in seconds. If it cannot,
// the end of the node's lease does. If there is neither, the operation is stuck until somebody who looked says that the node
// is off.
func fenceHost(r *saga.Run, s *recoverState) error {
	var fenced *api.Proof
	var device error
	for asked := false; ; {
		v, err := steps.JudgeNode.Call(r, "", steps.Judgement{Agent: s.Agent, Fenced: fenced, Confirmed: s.Confirmed})
		switch {
		case err != nil:
			return err
		case v.Alive:
			s.Back = true
			return nil
		case v.Proof != nil:
			s.Proof = v.Proof
			return nil
		case v.Device && !asked:
			asked = true
			var proof api.Proof
			if proof, device = steps.FenceNode.Call(r, "", steps.NodeRef{Agent: s.Agent}); device == nil {
				fenced = &proof
			}
		case v.Wait > 0:
			if err := r.Sleep(v.Wait); err != nil {
				return err
			}
		default:
			p := problem.New(problem.Unavailable, "nothing proves that node %s is off, so its VMs stay where they are", r.Op().Target.Name).
				Because("%s", v.Reason).Try("make sure that it is off, and say so: gnext host recover %s --confirm-off", r.Op().Target.Name)
			if device != nil {
				p = p.Because("%s; its fence device: %s", v.Reason, device)
			}
			return p
		}
	}
}

func planRecovery(r *saga.Run, s *recoverState) (err error) {
	if s.Back {
		return nil
	}
	s.Plan, err = steps.PlanRecovery.Call(r, "", steps.NodeRef{Agent: s.Agent})
	s.Plan.Proof = s.Proof
	return err
}

// recoveries is how many VMs are started at a time when a node has died.
const recoveries = 8

func restartElsewhere(r *saga.Run, s *recoverState) error {
	return carryOut(r, s.Plan.Moves, recoveries, func(api.Move) api.VMMigrate { return api.VMMigrate{} })
}
