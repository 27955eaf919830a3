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
	activities.Implement(reg, h, steps.BindPorts, plain(func(ctx context.Context, in steps.PortBinding) error {
		return d.BindPorts(ctx, in.Ports, in.Chassis)
	}))
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

// Removal begins with what hangs on something, mending with what something hangs on.
var (
	removeOrder = []string{KindPort, KindSubnet, KindVPC, KindSecurityGroup}
	mendOrder   = []string{KindVPC, KindSubnet, KindSecurityGroup, KindPort}
)

// repair removes what the findings call extra in OVN, mends what they say is altered there, and marks what it did. One that
// cannot be repaired says so in its problem and holds up no other; only when the database is away the whole is tried again
// later.
func repair(ctx context.Context, d Driver, findings []api.Finding) ([]api.Finding, error) {
	each := func(order []string, extra bool, do func(ctx context.Context, kind, id string) error, failed string) error {
		for _, kind := range order {
			for i := range findings {
				f := &findings[i]
				if f.Side != "ovn" || f.Extra != extra || f.Repaired || f.Kind != kind {
					continue
				}
				err := do(ctx, f.Kind, f.ID)
				var p *problem.Problem
				switch {
				case err == nil:
					f.Repaired = true
				case errors.As(err, &p) && !problem.TraitsOf(p.Kind).Retry:
					f.Problem += failed + p.Error()
				default:
					return err
				}
			}
		}
		return nil
	}
	err := each(removeOrder, true, d.RemoveStray, "; not removed: ")
	if err == nil {
		err = each(mendOrder, false, d.Mend, "; not mended: ")
	}
	return findings, err
}
