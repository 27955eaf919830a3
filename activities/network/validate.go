package network

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

var hostRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)

// checkID wants a UUID in lower case: it becomes a row's UUID and part of names that OVN reads in its match expressions.
func checkID(v *problem.Validation, path, id string) {
	v.Check(api.IsUUID(id) && strings.ToLower(id) == id, path, id, "must be a UUID in lower case")
}

func validID(what, id string) error {
	var v problem.Validation
	checkID(&v, "id", id)
	return v.Err(what)
}

func checkIPv4(v *problem.Validation, path, s string, within netip.Prefix) netip.Addr {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil || !a.Is4():
		v.Add(path, s, "%q must be an IPv4 address, like 10.1.0.1", s)
	case within.IsValid() && !within.Contains(a):
		v.Add(path, s, "%s must lie in %s", s, within)
	}
	return a
}

func checkPrefix(v *problem.Validation, path, s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is4() || p.Masked() != p {
		v.Add(path, s, "must be an IPv4 prefix, like 10.1.0.0/24")
		return netip.Prefix{}
	}
	return p
}

func normalVPC(w steps.VPCWiring) (steps.VPCWiring, error) {
	var v problem.Validation
	checkID(&v, "vpc", w.VPC)
	w.Name = strings.ToLower(w.Name)
	v.Check(hostRE.MatchString(w.Name), "name", w.Name, "must be a DNS label: it is part of the names of the VPC's VMs")
	checkPrefix(&v, "cidr", w.CIDR)
	return w, v.Err("VPC " + w.VPC)
}

func normalSubnet(w steps.SubnetWiring) (steps.SubnetWiring, error) {
	var v problem.Validation
	checkID(&v, "subnet", w.Subnet)
	checkID(&v, "vpc", w.VPC)
	checkIPv4(&v, "gateway", w.Gateway, checkPrefix(&v, "cidr", w.CIDR))
	for i, s := range w.DNS {
		checkIPv4(&v, fmt.Sprintf("dns[%d]", i), s, netip.Prefix{})
	}
	if len(w.DNS) == 0 {
		w.DNS = nil
	}
	return w, v.Err("subnet " + w.Subnet)
}

func normalSecurityGroup(w steps.SecurityGroupWiring) (steps.SecurityGroupWiring, error) {
	if err := validID("security group", w.SecurityGroup); err != nil {
		return w, err
	}
	if err := (&api.SecurityGroupUpdate{Rules: &w.Rules}).Validate(); err != nil {
		return w, problem.Wrap(err, problem.Invalid, "security group %s is not valid", w.SecurityGroup)
	}
	w.Rules = normalRules(w.Rules)
	return w, nil
}

// normalRules sorts the rules, drops doubles and writes out the last port.
func normalRules(rules []api.Rule) []api.Rule {
	out := slices.Clone(rules)
	for i := range out {
		if out[i].PortMax == 0 {
			out[i].PortMax = out[i].PortMin
		}
	}
	slices.SortFunc(out, func(a, b api.Rule) int { return strings.Compare(a.String(), b.String()) })
	out = slices.Compact(out)
	if len(out) == 0 {
		return nil
	}
	return out
}

func normalPort(w steps.PortWiring) (steps.PortWiring, error) {
	var v problem.Validation
	checkID(&v, "port", w.Port)
	checkID(&v, "subnet", w.Subnet)
	mac, err := net.ParseMAC(w.MAC)
	v.Check(err == nil && len(mac) == 6 && mac[0]&1 == 0, "mac", w.MAC, "must be a unicast Ethernet address, like 52:54:00:12:34:56")
	w.MAC = mac.String()
	checkIPv4(&v, "address", w.Address, netip.Prefix{})
	w.Hostname = strings.ToLower(w.Hostname)
	v.Check(w.Hostname == "" || hostRE.MatchString(w.Hostname), "hostname", w.Hostname, "must be a DNS name")
	w.SecurityGroups = slices.Clone(w.SecurityGroups)
	slices.Sort(w.SecurityGroups)
	w.SecurityGroups = slices.Compact(w.SecurityGroups)
	for i, g := range w.SecurityGroups {
		checkID(&v, fmt.Sprintf("securityGroups[%d]", i), g)
	}
	if len(w.SecurityGroups) == 0 {
		w.SecurityGroups = nil
	}
	w.Chassis = normalChassis(&v, w.Chassis)
	return w, v.Err("port " + w.Port)
}

func normalPorts(in []steps.PortWiring) ([]steps.PortWiring, error) {
	out := make([]steps.PortWiring, 0, len(in))
	seen := map[string]bool{}
	for _, p := range in {
		w, err := normalPort(p)
		if err != nil {
			return nil, err
		}
		if seen[w.Port] {
			return nil, problem.New(problem.Invalid, "port %s is given twice", w.Port).Try("give each port once")
		}
		seen[w.Port] = true
		out = append(out, w)
	}
	return out, nil
}

// checkAddress wants the port's address to be one that a VM of the subnet can have.
func checkAddress(w steps.PortWiring, cidr, gateway string) error {
	var v problem.Validation
	if p, err := netip.ParsePrefix(cidr); err == nil {
		checkIPv4(&v, "address", w.Address, p)
	}
	v.Check(w.Address != gateway, "address", w.Address, "is the gateway of subnet %s", w.Subnet)
	return v.Err("port " + w.Port)
}

// Problems that the driver and its fake share, word for word.

func noVPC(id, subnet string) error {
	return problem.New(problem.NotFound, "subnet %s cannot be wired", subnet).Because("its VPC %s is not wired", id).Try("wire the VPC first")
}

func noSubnet(id, port string) error {
	return problem.New(problem.NotFound, "port %s cannot be wired", port).Because("its subnet %s is not wired", id).Try("wire the subnet first")
}

func noGroup(id, port string) error {
	return problem.New(problem.NotFound, "port %s cannot be wired", port).Because("its security group %s is not wired", id).Try("wire the security group first")
}

func stillInUse(kind, id, by string) error {
	return problem.New(problem.InUse, "%s %s is not removed", kind, id).Because("%s still hangs on it", by).Try("remove that first")
}

func unknownKind(kind string) error {
	return problem.New(problem.Invalid, "there is no kind %q in the network", kind).
		Try("use one of %s, %s, %s, %s", KindVPC, KindSubnet, KindPort, KindSecurityGroup)
}
