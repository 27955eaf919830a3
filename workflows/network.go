package workflows

import (
	"encoding/json"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// wiring is what a network operation turns into (After) and back into (Before). Either may be absent: a create has no
// before, a delete no after.
type wiring[W any] struct {
	Ref    steps.ResourceRef `json:"ref"`
	After  *W                `json:"after,omitempty"`
	Before *W                `json:"before,omitempty"`
}

func startWiring[W any](op steps.Op) (wiring[W], error) {
	s := wiring[W]{Ref: steps.ResourceRef{Project: op.Target.Project, ID: op.Target.ID}}
	for _, side := range []struct {
		raw json.RawMessage
		to  **W
	}{{op.Input, &s.After}, {op.Before, &s.Before}} {
		if len(side.raw) == 0 {
			continue
		}
		*side.to = new(W)
		if err := json.Unmarshal(side.raw, *side.to); err != nil {
			return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
		}
	}
	return s, nil
}

// wires builds the one-step table that all network resources share: the northbound database takes a change as one
// transaction, so there is nothing to divide.
func wires[W any](kind string, wire steps.Step[W, steps.Nothing], unwire func(*saga.Run, *wiring[W]) error) saga.Table[wiring[W]] {
	turn := func(r *saga.Run, s *wiring[W], to *W) error {
		if to == nil {
			return unwire(r, s)
		}
		_, err := wire.Call(r, "", *to)
		return err
	}
	return saga.Table[wiring[W]]{
		Kind: kind, Start: startWiring[W],
		Steps: []saga.Step[wiring[W]]{{
			Name: "wire", Where: control,
			Do:   func(r *saga.Run, s *wiring[W]) error { return turn(r, s, s.After) },
			Undo: func(r *saga.Run, s *wiring[W]) error { return turn(r, s, s.Before) },
		}},
	}
}

func unwireBy[W any](step steps.Step[steps.ResourceRef, steps.Nothing]) func(*saga.Run, *wiring[W]) error {
	return func(r *saga.Run, s *wiring[W]) error {
		_, err := step.Call(r, "", s.Ref)
		return err
	}
}

func unwirePort(r *saga.Run, s *wiring[[]steps.PortWiring]) error {
	_, err := steps.UnwirePorts.Call(r, "", steps.PortRefs{Project: s.Ref.Project, Ports: []string{s.Ref.ID}})
	return err
}

// network returns the create, update and delete operations of the network resources.
func network() []saga.Definition {
	var out []saga.Definition
	for _, kind := range []string{api.OpVPCCreate, api.OpVPCUpdate, api.OpVPCDelete} {
		out = append(out, wires(kind, steps.WireVPC, unwireBy[steps.VPCWiring](steps.UnwireVPC)))
	}
	for _, kind := range []string{api.OpSubnetCreate, api.OpSubnetUpdate, api.OpSubnetDelete} {
		out = append(out, wires(kind, steps.WireSubnet, unwireBy[steps.SubnetWiring](steps.UnwireSubnet)))
	}
	for _, kind := range []string{api.OpSGCreate, api.OpSGUpdate, api.OpSGDelete} {
		out = append(out, wires(kind, steps.WireSecurityGroup, unwireBy[steps.SecurityGroupWiring](steps.UnwireSecurityGroup)))
	}
	for _, kind := range []string{api.OpPortCreate, api.OpPortUpdate, api.OpPortDelete} {
		out = append(out, wires(kind, steps.WirePorts, unwirePort))
	}
	return out
}
