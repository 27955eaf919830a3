package admission

import (
	"context"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// CreateVPC accepts a new VPC.
func (a *Admission) CreateVPC(ctx context.Context, h auth.Handle, o Options, req api.VPCCreate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpVPCCreate, req, func(c *acceptance) error {
		v := &api.VPC{Meta: c.meta(o.Project, req.Name, req.Labels), Spec: api.VPCSpec{CIDR: req.CIDR}}
		c.makes(v, api.PhaseReady)
		return firstOf(c.target(v), c.input(v.Wiring()))
	})
}

// UpdateVPC accepts a change of a VPC.
func (a *Admission) UpdateVPC(ctx context.Context, h auth.Handle, o Options, ref string, req api.VPCUpdate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpVPCUpdate, updateRequest[api.VPCUpdate]{targetRequest{ref}, req}, func(c *acceptance) error {
		v, err := store.Find[api.VPC](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		after := *v
		if req.Labels != nil {
			after.Labels = *req.Labels
		}
		return updates(c, v, &after, v.Wiring(), after.Wiring())
	})
}

// DeleteVPC accepts the removal of a VPC.
func (a *Admission) DeleteVPC(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpVPCDelete, targetRequest{ref}, func(c *acceptance) error {
		v, err := store.Find[api.VPC](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		c.releases(store.LedgerKey(store.UsePrefix(api.RefTo(v))))
		return firstOf(c.before(v.Wiring()), c.deletes(v))
	})
}

// CreateSubnet accepts a new subnet.
func (a *Admission) CreateSubnet(ctx context.Context, h auth.Handle, o Options, req api.SubnetCreate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpSubnetCreate, req, func(c *acceptance) error {
		vpc, err := store.Find[api.VPC](ctx, a.kv, h, o.Project, req.VPC)
		if err != nil {
			return err
		}
		prefix := netip.MustParsePrefix(req.CIDR) // validated above
		if err := a.fits(c, vpc, prefix); err != nil {
			return err
		}
		s := &api.Subnet{
			Meta: c.meta(o.Project, req.Name, req.Labels),
			Spec: api.SubnetSpec{VPC: vpc.ID, CIDR: req.CIDR, Gateway: prefix.Addr().Next().String(), DNS: req.DNS},
		}
		c.makes(s, api.PhaseReady)
		return firstOf(c.needs(api.RefTo(s), vpc), c.target(s), c.input(s.Wiring()))
	})
}

// fits checks that a new subnet lies in its VPC and overlaps none of its sisters. The VPC's ledger makes the check hold
// until the commit.
func (a *Admission) fits(c *acceptance, vpc *api.VPC, prefix netip.Prefix) error {
	whole, err := netip.ParsePrefix(vpc.Spec.CIDR)
	if err != nil {
		return problem.Wrap(err, problem.Internal, "vpc %s has a bad prefix", vpc.Name)
	}
	if !whole.Contains(prefix.Addr()) || prefix.Bits() < whole.Bits() {
		return problem.New(problem.Invalid, "subnet %s is not inside its VPC", prefix).Because("vpc %s is %s", vpc.Name, whole).Try("choose a prefix inside %s", whole)
	}
	users := store.UsePrefix(api.RefTo(vpc))
	ledger, err := store.Ledger(c.ctx, c.kv, users)
	if err != nil {
		return err
	}
	c.Touch(users, ledger.Revision)
	subnets, err := store.List[api.Subnet](c.ctx, c.kv, c.h, vpc.Project)
	if err != nil {
		return err
	}
	for _, s := range subnets {
		if s.Spec.VPC != vpc.ID {
			continue
		}
		if other, err := netip.ParsePrefix(s.Spec.CIDR); err == nil && other.Overlaps(prefix) {
			return problem.New(problem.Conflict, "subnet %s overlaps another", prefix).Because("subnet %s of the same VPC is %s", s.Name, other).Try("choose a prefix that is free")
		}
	}
	return nil
}

// UpdateSubnet accepts a change of a subnet.
func (a *Admission) UpdateSubnet(ctx context.Context, h auth.Handle, o Options, ref string, req api.SubnetUpdate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpSubnetUpdate, updateRequest[api.SubnetUpdate]{targetRequest{ref}, req}, func(c *acceptance) error {
		s, err := store.Find[api.Subnet](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		after := *s
		if req.Labels != nil {
			after.Labels = *req.Labels
		}
		if req.DNS != nil {
			after.Spec.DNS = *req.DNS
		}
		return updates(c, s, &after, s.Wiring(), after.Wiring())
	})
}

// DeleteSubnet accepts the removal of a subnet.
func (a *Admission) DeleteSubnet(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpSubnetDelete, targetRequest{ref}, func(c *acceptance) error {
		s, err := store.Find[api.Subnet](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		c.releases(store.UseClaim(api.Ref{Kind: api.KindVPC, ID: s.Spec.VPC}, api.RefTo(s)))
		return firstOf(c.before(s.Wiring()), c.deletes(s))
	})
}

// CreatePort accepts a new port that belongs to no VM.
func (a *Admission) CreatePort(ctx context.Context, h auth.Handle, o Options, req api.PortCreate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpPortCreate, req, func(c *acceptance) error {
		p := &api.Port{Meta: c.meta(o.Project, req.Name, req.Labels)}
		if err := a.plug(c, p, req.Subnet, req.Address, req.SecurityGroups); err != nil {
			return err
		}
		return firstOf(c.target(p), c.input([]api.PortWiring{p.Wiring()}))
	})
}

// plug gives a new port its subnet, address, MAC and security groups.
func (a *Admission) plug(c *acceptance, p *api.Port, subnetRef, address string, groups []string) error {
	subnet, err := store.Find[api.Subnet](c.ctx, c.kv, c.h, p.Project, subnetRef)
	if err != nil {
		return err
	}
	if err := c.needs(api.RefTo(p), subnet); err != nil {
		return err
	}
	p.Spec.Subnet, p.Spec.MAC = subnet.ID, macOf(p.ID)
	if p.Spec.Address, err = a.address(c, subnet, address); err != nil {
		return err
	}
	key := store.AddressClaim(subnet.ID, p.Spec.Address)
	c.mine[key] = true
	c.claims(key, p.ID)
	for _, ref := range groups {
		g, err := store.Find[api.SecurityGroup](c.ctx, c.kv, c.h, p.Project, ref)
		if err != nil {
			return err
		}
		if slices.Contains(p.Spec.SecurityGroups, g.ID) {
			continue
		}
		if err := c.needs(api.RefTo(p), g); err != nil {
			return err
		}
		p.Spec.SecurityGroups = append(p.Spec.SecurityGroups, g.ID)
	}
	c.makes(p, api.PhaseReady)
	return nil
}

// macOf makes a locally administered unicast MAC of the first 40 bits of a random UUID.
func macOf(id string) string {
	u := uuid.MustParse(id)
	const hexDigits = "0123456789abcdef"
	mac := []byte("02")
	for _, b := range u[:5] {
		mac = append(mac, ':', hexDigits[b>>4], hexDigits[b&15])
	}
	return string(mac)
}

// guesses is how many addresses are asked about one by one before all of a subnet are read. Where the last search ended is nearly
// always one that is free, and a subnet may have thousands.
const guesses = 4

// address returns the address that was asked for, if it is free, or the next free one. The search goes on where the last
// one ended, so that parallel requests do not fight and an address is not reused at once.
func (a *Admission) address(c *acceptance, subnet *api.Subnet, wanted string) (string, error) {
	prefix, err := netip.ParsePrefix(subnet.Spec.CIDR)
	if err != nil {
		return "", problem.Wrap(err, problem.Internal, "subnet %s has a bad prefix", subnet.Name)
	}
	if wanted != "" {
		return wantedAddress(c, prefix, subnet, wanted)
	}
	at, _ := a.cursors.LoadOrStore(subnet.ID, new(atomic.Uint32))
	first, size := addrToUint(prefix.Addr()), uint32(1)<<(32-prefix.Bits())
	next := func() string { // neither the network nor the broadcast address
		return uintToAddr(first + 1 + (at.(*atomic.Uint32).Add(1)-1)%(size-2)).String()
	}
	for range guesses {
		ip := next()
		if used, err := addressUsed(c, subnet, ip); err != nil || !used {
			return ip, err
		}
	}
	entries, _, err := c.kv.List(c.ctx, store.AddressPrefix(subnet.ID))
	if err != nil {
		return "", err
	}
	used := map[string]bool{store.AddressClaim(subnet.ID, subnet.Spec.Gateway): true}
	for _, e := range entries {
		used[e.Key] = true
	}
	for range size {
		ip := next()
		if key := store.AddressClaim(subnet.ID, ip); !used[key] && !c.mine[key] {
			return ip, nil
		}
	}
	return "", problem.New(problem.NoCapacity, "subnet %s has no free address", subnet.Name).Because("all %d of %s are used", size-3, prefix).Try("delete ports, or add another subnet")
}

// addressUsed reports whether an address is the gateway's, a port's, or one that this request has taken already.
func addressUsed(c *acceptance, subnet *api.Subnet, ip string) (bool, error) {
	key := store.AddressClaim(subnet.ID, ip)
	if ip == subnet.Spec.Gateway || c.mine[key] {
		return true, nil
	}
	_, err := c.kv.Get(c.ctx, key)
	if problem.Is(err, problem.NotFound) {
		return false, nil
	}
	return true, err
}

func wantedAddress(c *acceptance, prefix netip.Prefix, subnet *api.Subnet, wanted string) (string, error) {
	ip, err := netip.ParseAddr(wanted)
	if err != nil || !prefix.Contains(ip) {
		return "", problem.New(problem.Invalid, "address %s is not in subnet %s", wanted, subnet.Name).Because("the subnet is %s", prefix).Try("choose an address inside it")
	}
	n, first, size := addrToUint(ip), addrToUint(prefix.Addr()), uint32(1)<<(32-prefix.Bits())
	if n == first || n == first+size-1 || ip.String() == subnet.Spec.Gateway {
		return "", problem.New(problem.Invalid, "address %s is reserved", ip).Because("it is the network, broadcast or gateway address of subnet %s", subnet.Name).Try("choose another")
	}
	used, err := addressUsed(c, subnet, ip.String())
	if err != nil {
		return "", err
	}
	if used {
		return "", problem.New(problem.Conflict, "address %s is in use", ip).Because("another port of subnet %s has it", subnet.Name).Try("choose another, or leave it out")
	}
	return ip.String(), nil
}

func addrToUint(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func uintToAddr(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// portClaims returns what a port has claimed.
func portClaims(p *api.Port) []string {
	me := api.RefTo(p)
	out := []string{store.AddressClaim(p.Spec.Subnet, p.Spec.Address), store.UseClaim(api.Ref{Kind: api.KindSubnet, ID: p.Spec.Subnet}, me)}
	for _, g := range p.Spec.SecurityGroups {
		out = append(out, store.UseClaim(api.Ref{Kind: api.KindSecurityGroup, ID: g}, me))
	}
	return out
}

// UpdatePort accepts a change of a port.
func (a *Admission) UpdatePort(ctx context.Context, h auth.Handle, o Options, ref string, req api.PortUpdate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpPortUpdate, updateRequest[api.PortUpdate]{targetRequest{ref}, req}, func(c *acceptance) error {
		p, err := store.Find[api.Port](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		after := *p
		if req.Labels != nil {
			after.Labels = *req.Labels
		}
		if req.SecurityGroups != nil {
			if after.Spec.SecurityGroups, err = a.regroup(c, p, *req.SecurityGroups); err != nil {
				return err
			}
		}
		return updates(c, p, &after, []api.PortWiring{p.Wiring()}, []api.PortWiring{after.Wiring()})
	})
}

// regroup claims the security groups that a port gets, and gives back those it loses.
func (a *Admission) regroup(c *acceptance, p *api.Port, refs []string) ([]string, error) {
	ids := []string{}
	for _, ref := range refs {
		g, err := store.Find[api.SecurityGroup](c.ctx, c.kv, c.h, p.Project, ref)
		if err != nil {
			return nil, err
		}
		if slices.Contains(ids, g.ID) {
			continue
		}
		ids = append(ids, g.ID)
		if slices.Contains(p.Spec.SecurityGroups, g.ID) {
			continue
		}
		if err := c.needs(api.RefTo(p), g); err != nil {
			return nil, err
		}
	}
	for _, old := range p.Spec.SecurityGroups {
		if !slices.Contains(ids, old) {
			c.releases(store.UseClaim(api.Ref{Kind: api.KindSecurityGroup, ID: old}, api.RefTo(p)))
		}
	}
	return ids, nil
}

// DeletePort accepts the removal of a port that belongs to no VM.
func (a *Admission) DeletePort(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpPortDelete, targetRequest{ref}, func(c *acceptance) error {
		p, err := store.Find[api.Port](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		if p.Spec.VM != "" {
			return problem.New(problem.InUse, "port %s belongs to a VM", p.Name).Because("vm %s has it", p.Spec.VM).Try("delete the VM")
		}
		c.releases(portClaims(p)...)
		return firstOf(c.before([]api.PortWiring{p.Wiring()}), c.deletes(p))
	})
}

// CreateSecurityGroup accepts a new security group.
func (a *Admission) CreateSecurityGroup(ctx context.Context, h auth.Handle, o Options, req api.SecurityGroupCreate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpSGCreate, req, func(c *acceptance) error {
		g := &api.SecurityGroup{Meta: c.meta(o.Project, req.Name, req.Labels), Spec: api.SecurityGroupSpec{Rules: req.Rules}}
		c.makes(g, api.PhaseReady)
		return firstOf(c.target(g), c.input(g.Wiring()))
	})
}

// UpdateSecurityGroup accepts a change of a security group.
func (a *Admission) UpdateSecurityGroup(ctx context.Context, h auth.Handle, o Options, ref string, req api.SecurityGroupUpdate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpSGUpdate, updateRequest[api.SecurityGroupUpdate]{targetRequest{ref}, req}, func(c *acceptance) error {
		g, err := store.Find[api.SecurityGroup](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		after := *g
		if req.Labels != nil {
			after.Labels = *req.Labels
		}
		if req.Rules != nil {
			after.Spec.Rules = *req.Rules
		}
		return updates(c, g, &after, g.Wiring(), after.Wiring())
	})
}

// DeleteSecurityGroup accepts the removal of a security group.
func (a *Admission) DeleteSecurityGroup(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpSGDelete, targetRequest{ref}, func(c *acceptance) error {
		g, err := store.Find[api.SecurityGroup](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		return firstOf(c.before(g.Wiring()), c.deletes(g))
	})
}

// updates locks the target while the world is brought from one wiring to the other.
func updates(c *acceptance, r, after api.Phased, from, to any) error {
	if err := firstOf(c.target(r), c.after(after), c.before(from), c.input(to)); err != nil {
		return err
	}
	return c.holds(r, r.GetPhase(), r.GetPhase())
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
