package network

import (
	"context"
	"errors"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Register makes reg carry out the steps on the network with d.
func Register(reg activities.Registry, h *activities.Host, d Driver) {
	activities.Implement(reg, h, steps.WireVPC, plain(d.WireVPC))
	activities.Implement(reg, h, steps.UnwireVPC, byID(d.UnwireVPC))
	activities.Implement(reg, h, steps.WireSubnet, plain(d.WireSubnet))
	activities.Implement(reg, h, steps.UnwireSubnet, byID(d.UnwireSubnet))
	activities.Implement(reg, h, steps.WireSecurityGroup, plain(d.WireSecurityGroup))
	activities.Implement(reg, h, steps.UnwireSecurityGroup, byID(d.UnwireSecurityGroup))
	activities.Implement(reg, h, steps.WirePorts, plain(d.WirePorts))
	activities.Implement(reg, h, steps.UnwirePorts, plain(func(ctx context.Context, in steps.PortRefs) error {
		return d.UnwirePorts(ctx, in.Ports)
	}))
	activities.Implement(reg, h, steps.RepairNetwork, func(ctx context.Context, _ steps.Token, in []api.Finding) ([]api.Finding, error) {
		return repair(ctx, d, in)
	})
}

func plain[In any](do func(context.Context, In) error) func(context.Context, steps.Token, In) (steps.Nothing, error) {
	return func(ctx context.Context, _ steps.Token, in In) (steps.Nothing, error) {
		return steps.Nothing{}, do(ctx, in)
	}
}

func byID(do func(context.Context, string) error) func(context.Context, steps.Token, steps.ResourceRef) (steps.Nothing, error) {
	return plain(func(ctx context.Context, ref steps.ResourceRef) error { return do(ctx, ref.ID) })
}

// repairOrder removes what hangs on something before that something.
var repairOrder = []string{KindPort, KindSubnet, KindVPC, KindSecurityGroup}

// repair removes what the findings call extra in OVN and marks what it removed. One that cannot be removed says so in its
// problem and holds up no other; only when the database is away the whole is tried again later.
func repair(ctx context.Context, d Driver, findings []api.Finding) ([]api.Finding, error) {
	for _, kind := range repairOrder {
		for i := range findings {
			f := &findings[i]
			if f.Side != "ovn" || !f.Extra || f.Repaired || f.Kind != kind {
				continue
			}
			err := d.RemoveStray(ctx, f.Kind, f.ID)
			var p *problem.Problem
			switch {
			case err == nil:
				f.Repaired = true
			case errors.As(err, &p) && !problem.TraitsOf(p.Kind).Retry:
				f.Problem += "; not removed: " + p.Error()
			default:
				return findings, err
			}
		}
	}
	return findings, nil
}
