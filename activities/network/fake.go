package network

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Fake is a Driver without a network: it keeps in memory what the real one keeps in OVN, and passes the same conformance
// suite. The zero value is not usable; call NewFake.
type Fake struct {
	mu      sync.Mutex
	away    bool
	vpcs    map[string]steps.VPCWiring
	subnets map[string]steps.SubnetWiring
	ports   map[string]steps.PortWiring
	groups  map[string]steps.SecurityGroupWiring
}

// NewFake returns an empty fake.
func NewFake() *Fake {
	return &Fake{
		vpcs: map[string]steps.VPCWiring{}, subnets: map[string]steps.SubnetWiring{},
		ports: map[string]steps.PortWiring{}, groups: map[string]steps.SecurityGroupWiring{},
	}
}

// SetAway makes all calls fail with unavailable, or work again.
func (f *Fake) SetAway(away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = away
}

// with runs do under the lock, unless the fake is away or the caller has no time left.
func (f *Fake) with(ctx context.Context, do func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ended(ctx)
	case f.away || ctx.Err() != nil:
		return problem.New(problem.Unavailable, "the network database cannot be reached")
	}
	return do()
}

// WireVPC implements Driver.
func (f *Fake) WireVPC(ctx context.Context, w steps.VPCWiring) error {
	w, err := normalVPC(w)
	if err != nil {
		return err
	}
	return f.with(ctx, func() error { f.vpcs[w.VPC] = w; return nil })
}

// UnwireVPC implements Driver.
func (f *Fake) UnwireVPC(ctx context.Context, id string) error {
	if err := validID("VPC", id); err != nil {
		return err
	}
	return f.with(ctx, func() error {
		for _, s := range f.subnets {
			if s.VPC == id {
				f.dropSubnet(s.Subnet)
			}
		}
		delete(f.vpcs, id)
		return nil
	})
}

// WireSubnet implements Driver.
func (f *Fake) WireSubnet(ctx context.Context, w steps.SubnetWiring) error {
	w, err := normalSubnet(w)
	if err != nil {
		return err
	}
	return f.with(ctx, func() error {
		if _, ok := f.vpcs[w.VPC]; !ok {
			return noVPC(w.VPC, w.Subnet)
		}
		w.DNS = slices.Clone(w.DNS)
		f.subnets[w.Subnet] = w
		return nil
	})
}

// UnwireSubnet implements Driver.
func (f *Fake) UnwireSubnet(ctx context.Context, id string) error {
	if err := validID("subnet", id); err != nil {
		return err
	}
	return f.with(ctx, func() error { f.dropSubnet(id); return nil })
}

func (f *Fake) dropSubnet(id string) {
	delete(f.subnets, id)
	for _, p := range f.ports {
		if p.Subnet == id {
			delete(f.ports, p.Port)
		}
	}
}

// WireSecurityGroup implements Driver.
func (f *Fake) WireSecurityGroup(ctx context.Context, w steps.SecurityGroupWiring) error {
	w, err := normalSecurityGroup(w)
	if err != nil {
		return err
	}
	return f.with(ctx, func() error { f.groups[w.SecurityGroup] = w; return nil })
}

// UnwireSecurityGroup implements Driver.
func (f *Fake) UnwireSecurityGroup(ctx context.Context, id string) error {
	if err := validID("security group", id); err != nil {
		return err
	}
	return f.with(ctx, func() error { delete(f.groups, id); return nil })
}

// WirePorts implements Driver.
func (f *Fake) WirePorts(ctx context.Context, ports []steps.PortWiring) error {
	ports, err := normalPorts(ports)
	if err != nil || len(ports) == 0 {
		return err
	}
	return f.with(ctx, func() error {
		for _, w := range ports {
			s, ok := f.subnets[w.Subnet]
			if !ok {
				return noSubnet(w.Subnet, w.Port)
			}
			if err := checkAddress(w, s.CIDR, s.Gateway); err != nil {
				return err
			}
			for _, g := range w.SecurityGroups {
				if _, ok := f.groups[g]; !ok {
					return noGroup(g, w.Port)
				}
			}
		}
		for _, w := range ports {
			if len(w.Chassis) == 0 {
				w.Chassis = f.ports[w.Port].Chassis
			}
			f.ports[w.Port] = w
		}
		return nil
	})
}

// BindPorts implements Driver.
func (f *Fake) BindPorts(ctx context.Context, ports, chassis []string) error {
	chassis, err := normalBinding(ports, chassis)
	if err != nil || len(ports) == 0 {
		return err
	}
	return f.with(ctx, func() error {
		for _, id := range ports {
			if w, ok := f.ports[id]; ok {
				w.Chassis = chassis
				f.ports[id] = w
			}
		}
		return nil
	})
}

// UnwirePorts implements Driver.
func (f *Fake) UnwirePorts(ctx context.Context, ids []string) error {
	for _, id := range ids {
		if err := validID("port", id); err != nil {
			return err
		}
	}
	return f.with(ctx, func() error {
		for _, id := range ids {
			delete(f.ports, id)
		}
		return nil
	})
}

// List implements Driver.
func (f *Fake) List(ctx context.Context) (Inventory, error) {
	inv := Inventory{Items: []Item{}}
	err := f.with(ctx, func() error {
		for _, w := range f.vpcs {
			inv.Items = append(inv.Items, Item{Kind: KindVPC, ID: w.VPC, Project: w.Project, VPC: &w, Names: f.names(w)})
		}
		for _, w := range f.subnets {
			w.DNS = slices.Clone(w.DNS)
			inv.Items = append(inv.Items, Item{Kind: KindSubnet, ID: w.Subnet, Project: w.Project, Subnet: &w})
		}
		for _, w := range f.ports {
			it := Item{Kind: KindPort, ID: w.Port, Project: w.Project}
			var left []string
			for _, g := range w.SecurityGroups {
				if _, ok := f.groups[g]; ok {
					left = append(left, g)
				}
			}
			if len(left) != len(w.SecurityGroups) {
				it.Defects = []string{"its security groups are [" + strings.Join(left, " ") + "]"}
			}
			w.SecurityGroups, w.Chassis = left, slices.Clone(w.Chassis)
			it.Port = &w
			inv.Items = append(inv.Items, it)
		}
		for _, w := range f.groups {
			w.Rules = slices.Clone(w.Rules)
			inv.Items = append(inv.Items, Item{Kind: KindSecurityGroup, ID: w.SecurityGroup, Project: w.Project, SecurityGroup: &w})
		}
		slices.SortFunc(inv.Items, func(a, b Item) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID)) })
		return nil
	})
	return inv, err
}

func (f *Fake) names(w steps.VPCWiring) map[string]string {
	found := map[string][]string{}
	for _, p := range f.ports {
		if f.subnets[p.Subnet].VPC == w.VPC {
			for _, name := range hostNames(p.Hostname, w.Name) {
				found[name] = append(found[name], p.Address)
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	out := map[string]string{}
	for name, addresses := range found {
		slices.Sort(addresses)
		out[name] = strings.Join(slices.Compact(addresses), " ")
	}
	return out
}

// RemoveStray implements Driver.
func (f *Fake) RemoveStray(ctx context.Context, kind, id string) error {
	if err := checkKind(kind, id); err != nil {
		return err
	}
	return f.with(ctx, func() error {
		switch kind {
		case KindVPC:
			for _, s := range f.subnets {
				if s.VPC == id {
					return stillInUse(kind, id, "subnet "+s.Subnet)
				}
			}
			delete(f.vpcs, id)
		case KindSubnet:
			for _, p := range f.ports {
				if p.Subnet == id {
					return stillInUse(kind, id, "port "+p.Port)
				}
			}
			delete(f.subnets, id)
		case KindPort:
			delete(f.ports, id)
		case KindSecurityGroup:
			delete(f.groups, id)
		}
		return nil
	})
}

// Mend implements Driver. Nothing of the fake can be altered, but a port may be in a group that is gone.
func (f *Fake) Mend(ctx context.Context, kind, id string) error {
	if err := checkKind(kind, id); err != nil {
		return err
	}
	return f.with(ctx, func() error {
		known := false
		switch kind {
		case KindVPC:
			_, known = f.vpcs[id]
		case KindSubnet:
			_, known = f.subnets[id]
		case KindPort:
			var w steps.PortWiring
			w, known = f.ports[id]
			for _, g := range w.SecurityGroups {
				if _, ok := f.groups[g]; !ok {
					return noGroup(g, id)
				}
			}
		case KindSecurityGroup:
			_, known = f.groups[id]
		}
		if !known {
			return notWired(kind, id)
		}
		return nil
	})
}
