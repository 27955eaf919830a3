package api

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/nextstack/nextstack/api/problem"
)

// VPC is a private network with a router of its own.
type VPC struct {
	Meta
	Spec   VPCSpec        `json:"spec"`
	Status ResourceStatus `json:"status"`
}

// ResourceKind implements Resource.
func (*VPC) ResourceKind() Kind { return KindVPC }

// VPCSpec says which addresses a VPC has.
type VPCSpec struct {
	CIDR string `json:"cidr" doc:"IPv4 prefix that all subnets lie in"`
}

// ResourceStatus is the status of resources that are just there or not.
type ResourceStatus struct {
	Phase  Phase  `json:"phase"`
	Reason string `json:"reason,omitempty"`
}

// VPCCreate is the request for a VPC.
type VPCCreate struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	CIDR   string            `json:"cidr" doc:"IPv4 prefix, /8 to /28"`
}

// Validate checks the shape of the request.
func (r *VPCCreate) Validate() error {
	var v problem.Validation
	CheckName(&v, "name", r.Name)
	CheckLabels(&v, "labels", r.Labels)
	checkCIDR(&v, "cidr", r.CIDR, 8, 28)
	return v.Err("vpc " + r.Name)
}

// VPCUpdate changes a VPC. Nil fields stay as they are.
type VPCUpdate struct {
	Labels *map[string]string `json:"labels,omitempty"`
}

// Validate checks the shape of the request.
func (r *VPCUpdate) Validate() error { return validateLabels(r.Labels, "vpc update") }

// Subnet is a piece of a VPC that ports get their addresses from.
type Subnet struct {
	Meta
	Spec   SubnetSpec     `json:"spec"`
	Status ResourceStatus `json:"status"`
}

// ResourceKind implements Resource.
func (*Subnet) ResourceKind() Kind { return KindSubnet }

// SubnetSpec says which addresses a subnet has.
type SubnetSpec struct {
	VPC     string   `json:"vpc" doc:"VPC ID"`
	CIDR    string   `json:"cidr"`
	Gateway string   `json:"gateway" doc:"The first address; the VPC's router has it"`
	DNS     []string `json:"dns,omitempty" doc:"Name servers told by DHCP; empty: the gateway, which answers for the VMs of the VPC"`
}

// SubnetCreate is the request for a subnet.
type SubnetCreate struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	VPC    string            `json:"vpc"`
	CIDR   string            `json:"cidr" doc:"IPv4 prefix inside the VPC's, /8 to /29"`
	DNS    []string          `json:"dns,omitempty"`
}

// Validate checks the shape of the request.
func (r *SubnetCreate) Validate() error {
	var v problem.Validation
	CheckName(&v, "name", r.Name)
	CheckLabels(&v, "labels", r.Labels)
	CheckRef(&v, "vpc", r.VPC)
	checkCIDR(&v, "cidr", r.CIDR, 8, 29)
	checkDNS(&v, r.DNS)
	return v.Err("subnet " + r.Name)
}

// SubnetUpdate changes a subnet. Nil fields stay as they are.
type SubnetUpdate struct {
	Labels *map[string]string `json:"labels,omitempty"`
	DNS    *[]string          `json:"dns,omitempty"`
}

// Validate checks the shape of the request.
func (r *SubnetUpdate) Validate() error {
	var v problem.Validation
	if r.Labels != nil {
		CheckLabels(&v, "labels", *r.Labels)
	}
	if r.DNS != nil {
		checkDNS(&v, *r.DNS)
	}
	return v.Err("subnet update")
}

// Port is a plug in a subnet: an address, a MAC and the security groups that guard it.
type Port struct {
	Meta
	Spec   PortSpec       `json:"spec"`
	Status ResourceStatus `json:"status"`
}

// ResourceKind implements Resource.
func (*Port) ResourceKind() Kind { return KindPort }

// PortSpec says what the port is. Its ID is also the name of the logical switch port and libvirt's interfaceid.
type PortSpec struct {
	Subnet         string   `json:"subnet" doc:"Subnet ID"`
	Address        string   `json:"address"`
	MAC            string   `json:"mac"`
	SecurityGroups []string `json:"securityGroups,omitempty" doc:"Security group IDs; none: everything may pass"`
	VM             string   `json:"vm,omitempty" doc:"VM ID it belongs to"`
	Hostname       string   `json:"hostname,omitempty" doc:"Name it answers to in the VPC's DNS"`
}

// PortCreate is the request for a port that belongs to no VM.
type PortCreate struct {
	Name           string            `json:"name"`
	Labels         map[string]string `json:"labels,omitempty"`
	Subnet         string            `json:"subnet"`
	Address        string            `json:"address,omitempty"`
	SecurityGroups []string          `json:"securityGroups,omitempty"`
}

// Validate checks the shape of the request.
func (r *PortCreate) Validate() error {
	var v problem.Validation
	CheckName(&v, "name", r.Name)
	CheckLabels(&v, "labels", r.Labels)
	CheckRef(&v, "subnet", r.Subnet)
	if r.Address != "" {
		_, err := netip.ParseAddr(r.Address)
		v.Check(err == nil, "address", r.Address, "must be an IP address, like 10.1.0.5")
	}
	checkRefs(&v, "securityGroups", r.SecurityGroups)
	return v.Err("port " + r.Name)
}

// PortUpdate changes a port. Nil fields stay as they are.
type PortUpdate struct {
	Labels         *map[string]string `json:"labels,omitempty"`
	SecurityGroups *[]string          `json:"securityGroups,omitempty"`
}

// Validate checks the shape of the request.
func (r *PortUpdate) Validate() error {
	var v problem.Validation
	if r.Labels != nil {
		CheckLabels(&v, "labels", *r.Labels)
	}
	if r.SecurityGroups != nil {
		checkRefs(&v, "securityGroups", *r.SecurityGroups)
	}
	return v.Err("port update")
}

// SecurityGroup is a set of rules for the ports that carry it. What no rule allows is dropped.
type SecurityGroup struct {
	Meta
	Spec   SecurityGroupSpec `json:"spec"`
	Status ResourceStatus    `json:"status"`
}

// ResourceKind implements Resource.
func (*SecurityGroup) ResourceKind() Kind { return KindSecurityGroup }

// SecurityGroupSpec holds the rules.
type SecurityGroupSpec struct {
	Rules []Rule `json:"rules"`
}

// Rule directions and protocols.
const (
	Ingress = "ingress"
	Egress  = "egress"
	AnyIP   = "any"
	TCP     = "tcp"
	UDP     = "udp"
	ICMP    = "icmp"
)

// Rule allows one kind of traffic.
type Rule struct {
	Direction string `json:"direction" enum:"ingress,egress"`
	Protocol  string `json:"protocol" enum:"any,tcp,udp,icmp"`
	PortMin   int    `json:"portMin,omitempty" doc:"First port, tcp and udp only; 0: all"`
	PortMax   int    `json:"portMax,omitempty" doc:"Last port; 0: the same as portMin"`
	CIDR      string `json:"cidr,omitempty" doc:"The other side; empty: anybody"`
}

// MaxRules bounds the rules of one security group.
const MaxRules = 256

// ParseRule reads "ingress tcp 80-81 10.0.0.0/8": direction, protocol, ports (tcp and udp only, optional) and the other
// side (optional).
func ParseRule(s string) (Rule, error) {
	bad := func(why string) (Rule, error) {
		return Rule{}, problem.New(problem.Invalid, "rule %q", s).Because("%s", why).
			Try("write DIRECTION PROTOCOL [PORT[-PORT]] [CIDR], like \"ingress tcp 80 0.0.0.0/0\"")
	}
	f := strings.Fields(s)
	if len(f) < 2 || len(f) > 4 {
		return bad("has the wrong number of words")
	}
	r := Rule{Direction: f[0], Protocol: f[1]}
	rest := f[2:]
	if len(rest) > 0 && !strings.ContainsAny(rest[0], "./:") {
		lo, hi, isRange := strings.Cut(rest[0], "-")
		var err error
		if r.PortMin, err = strconv.Atoi(lo); err != nil {
			return bad("the port is not a number")
		}
		if r.PortMax = r.PortMin; isRange {
			if r.PortMax, err = strconv.Atoi(hi); err != nil {
				return bad("the last port is not a number")
			}
		}
		rest = rest[1:]
	}
	if len(rest) > 1 {
		return bad("has a word too many")
	}
	if len(rest) == 1 {
		r.CIDR = rest[0]
	}
	var v problem.Validation
	r.check(&v, "rule")
	return r, v.Err("rule " + strconv.Quote(s))
}

// String is the inverse of ParseRule.
func (r Rule) String() string {
	s := r.Direction + " " + r.Protocol
	if r.PortMin != 0 {
		s += " " + strconv.Itoa(r.PortMin)
		if r.PortMax != 0 && r.PortMax != r.PortMin {
			s += "-" + strconv.Itoa(r.PortMax)
		}
	}
	if r.CIDR != "" {
		s += " " + r.CIDR
	}
	return s
}

func (r Rule) check(v *problem.Validation, path string) {
	v.Check(r.Direction == Ingress || r.Direction == Egress, path+".direction", r.Direction, "must be ingress or egress")
	switch r.Protocol {
	case TCP, UDP:
		v.Check(r.PortMin >= 0 && r.PortMin <= 65535, path+".portMin", r.PortMin, "must be 0 to 65535")
		v.Check(r.PortMax == 0 || r.PortMax >= r.PortMin && r.PortMax <= 65535 && r.PortMin > 0, path+".portMax", r.PortMax, "must be portMin to 65535")
	case ICMP, AnyIP:
		v.Check(r.PortMin == 0 && r.PortMax == 0, path+".portMin", r.PortMin, "only tcp and udp have ports")
	default:
		v.Add(path+".protocol", r.Protocol, "must be any, tcp, udp or icmp")
	}
	if r.CIDR != "" {
		p, err := netip.ParsePrefix(r.CIDR)
		v.Check(err == nil && p.Addr().Is4() && p.Masked() == p, path+".cidr", r.CIDR, "must be an IPv4 prefix, like 10.1.0.0/24")
	}
}

// SecurityGroupCreate is the request for a security group.
type SecurityGroupCreate struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Rules  []Rule            `json:"rules,omitempty"`
}

// Validate checks the shape of the request.
func (r *SecurityGroupCreate) Validate() error {
	var v problem.Validation
	CheckName(&v, "name", r.Name)
	CheckLabels(&v, "labels", r.Labels)
	checkRules(&v, r.Rules)
	return v.Err("security group " + r.Name)
}

// SecurityGroupUpdate changes a security group. Nil fields stay as they are; rules are replaced as a whole.
type SecurityGroupUpdate struct {
	Labels *map[string]string `json:"labels,omitempty"`
	Rules  *[]Rule            `json:"rules,omitempty"`
}

// Validate checks the shape of the request.
func (r *SecurityGroupUpdate) Validate() error {
	var v problem.Validation
	if r.Labels != nil {
		CheckLabels(&v, "labels", *r.Labels)
	}
	if r.Rules != nil {
		checkRules(&v, *r.Rules)
	}
	return v.Err("security group update")
}

func checkRules(v *problem.Validation, rules []Rule) {
	v.Check(len(rules) <= MaxRules, "rules", len(rules), "at most %d", MaxRules)
	for i, r := range rules {
		r.check(v, pathIndex("rules", i))
	}
}

func checkDNS(v *problem.Validation, servers []string) {
	v.Check(len(servers) <= 4, "dns", len(servers), "at most 4")
	for i, s := range servers {
		a, err := netip.ParseAddr(s)
		v.Check(err == nil && a.Is4(), pathIndex("dns", i), s, "must be an IPv4 address")
	}
}

// checkCIDR wants the network address itself: 10.1.0.5/24 is more often a mistake than a wish.
func checkCIDR(v *problem.Validation, path, s string, minBits, maxBits int) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || !p.Addr().Is4():
		v.Add(path, s, "must be an IPv4 prefix, like 10.1.0.0/16")
	case p.Masked() != p:
		v.Add(path, s, "has host bits set; did you mean %s?", p.Masked())
	case p.Bits() < minBits || p.Bits() > maxBits:
		v.Add(path, s, "must be /%d to /%d", minBits, maxBits)
	case p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsUnspecified():
		v.Add(path, s, "must be unicast addresses")
	}
}

// CheckRef adds a field error unless s can be a name or an ID.
func CheckRef(v *problem.Validation, path, s string) {
	v.Check(ValidName(s) || IsUUID(s), path, s, "must be a name or a UUID")
}

// CheckBandwidth adds a field error unless n is a limit of what is copied, in bytes per second.
func CheckBandwidth(v *problem.Validation, n int64) {
	v.Check(n == 0 || n >= MiB, "bandwidth", n, "must be 0 (no limit) or at least 1 MiB per second, in bytes")
}

func checkRefs(v *problem.Validation, path string, refs []string) {
	v.Check(len(refs) <= 64, path, len(refs), "at most 64")
	seen := map[string]bool{}
	for i, s := range refs {
		CheckRef(v, pathIndex(path, i), s)
		v.Check(!seen[s], pathIndex(path, i), s, "is given twice")
		seen[s] = true
	}
}

func validateLabels(labels *map[string]string, what string) error {
	var v problem.Validation
	if labels != nil {
		CheckLabels(&v, "labels", *labels)
	}
	return v.Err(what)
}

func pathIndex(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }
