package workflows

import (
	"encoding/json"
	"fmt"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// auditState is what the steps of an audit share.
type auditState struct {
	Request api.AuditRequest   `json:"request"`
	Agents  []steps.AgentPools `json:"agents"`
	Worlds  steps.Worlds       `json:"-"` // not in the checkpoint: it can be larger than the store takes, and there is no undo that needs it
	Report  api.AuditReport    `json:"report"`
}

// Audit compares the store with the nodes and the network, and removes what nobody owns if it was asked to. Nothing in it
// has an undo: looking changes nothing, and what a repair removes was nobody's.
var Audit = saga.Table[auditState]{
	Kind: api.OpAudit, Start: startAudit,
	Steps: []saga.Step[auditState]{
		{Name: "agents", Where: control, Do: loadAgents},
		{Name: "look", Where: node, Do: lookAtNodes},
		{Name: "compare", Where: control, Do: compareWorlds},
		{Name: "repair", Where: control, Do: repairWorlds},
	},
	Result: func(s *auditState) (json.RawMessage, error) { return json.Marshal(s.Report) },
}

func startAudit(op steps.Op) (s auditState, err error) {
	if len(op.Input) > 0 {
		err = json.Unmarshal(op.Input, &s.Request)
	}
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

func loadAgents(r *saga.Run, s *auditState) error {
	list, err := steps.LoadAgents.Call(r, "", steps.Nothing{})
	s.Agents = list.Agents
	return err
}

// lookAtNodes asks every node. One that does not answer is a line in the report, not the end of the audit.
func lookAtNodes(r *saga.Run, s *auditState) error {
	s.Worlds = steps.Worlds{}
	for _, a := range s.Agents {
		if !a.Ready {
			s.Worlds.Skipped = append(s.Worlds.Skipped, fmt.Sprintf("agent %s is not ready", a.Name))
			continue
		}
		w, err := steps.LookAtNode.Call(r, a.ID, steps.NodeQuestion{Pools: a.Pools})
		if problem.Is(err, problem.Cancelled) {
			return err
		}
		if err != nil {
			s.Worlds.Skipped = append(s.Worlds.Skipped, fmt.Sprintf("agent %s: %s", a.Name, err))
			continue
		}
		w.Agent, w.AgentName = a.ID, a.Name
		s.Worlds.Nodes = append(s.Worlds.Nodes, w)
	}
	return nil
}

func compareWorlds(r *saga.Run, s *auditState) (err error) {
	s.Report, err = steps.CompareWorlds.Call(r, "", s.Worlds)
	return err
}

// repairWorlds lets each side remove its own: nodes first, because a claim must not be given back while a domain uses it.
func repairWorlds(r *saga.Run, s *auditState) error {
	if !s.Request.Repair || len(s.Report.Findings) == 0 {
		return nil
	}
	for _, w := range s.Worlds.Nodes {
		if err := repairNode(r, s, w); problem.Is(err, problem.Cancelled) {
			return err
		} else if err != nil { // the findings stay, and the other nodes are repaired all the same
			s.Report.Skipped = append(s.Report.Skipped, fmt.Sprintf("repairing agent %s: %s", w.AgentName, err))
		}
	}
	for _, step := range []steps.Step[[]api.Finding, []api.Finding]{steps.RepairNetwork, steps.RepairStore} {
		findings, err := step.Call(r, "", s.Report.Findings)
		if err != nil {
			return err
		}
		s.Report.Findings = findings
	}
	return nil
}

func repairNode(r *saga.Run, s *auditState, w steps.NodeWorld) error {
	var repair steps.NodeRepair
	for _, a := range s.Agents {
		if a.ID == w.Agent {
			repair.Pools = a.Pools
		}
	}
	var mine []int
	for i, f := range s.Report.Findings {
		if f.Node != w.Agent || !f.Extra {
			continue
		}
		switch f.Side {
		case "libvirt":
			if f.Kind == "secret" {
				repair.Secrets = append(repair.Secrets, f.ID)
				break
			}
			repair.Domains = append(repair.Domains, f.ID)
		case "pool":
			for _, file := range w.Files {
				if file.Path == f.Path {
					repair.Files = append(repair.Files, file)
				}
			}
		case "ovs":
			repair.OVSPorts = append(repair.OVSPorts, f.ID)
		default:
			continue
		}
		mine = append(mine, i)
	}
	if len(mine) == 0 {
		return nil
	}
	if _, err := steps.RepairNode.Call(r, w.Agent, repair); err != nil {
		return err
	}
	for _, i := range mine {
		s.Report.Findings[i].Repaired = true
	}
	return nil
}
