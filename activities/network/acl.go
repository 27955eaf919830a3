package network

import (
	"fmt"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// ACL directions, as seen from the logical switch.
const (
	fromPort = "from-lport" // what a VM sends
	toPort   = "to-lport"   // what a VM receives
)

// ACL priorities. A port in several groups may do what any of them allows, because every allow beats every drop.
const (
	priorityService = 2000 // DHCP and DNS of the subnet, which no group can cut off
	priorityAllow   = 1001
	priorityDrop    = 1000
)

// ruleMatch returns the ACL direction and match that let through what the rule allows, for members of the port group.
func ruleMatch(group string, r api.Rule) (direction, match string) {
	direction, port, other := toPort, "outport", "ip4.src"
	if r.Direction == api.Egress {
		direction, port, other = fromPort, "inport", "ip4.dst"
	}
	terms := []string{port + " == @" + group, "ip4"}
	if r.CIDR != "" && !strings.HasSuffix(r.CIDR, "/0") { // OVN has no prefix that matches everything
		terms = append(terms, other+" == "+r.CIDR)
	}
	switch r.Protocol {
	case api.ICMP:
		terms = append(terms, "icmp4")
	case api.TCP, api.UDP:
		terms = append(terms, r.Protocol)
		switch {
		case r.PortMin == 0: // all ports
		case r.PortMax == 0 || r.PortMax == r.PortMin:
			terms = append(terms, fmt.Sprintf("%s.dst == %d", r.Protocol, r.PortMin))
		default:
			terms = append(terms, fmt.Sprintf("%s.dst >= %d && %s.dst <= %d", r.Protocol, r.PortMin, r.Protocol, r.PortMax))
		}
	}
	return direction, strings.Join(terms, " && ")
}

// groupACLs returns the ACLs of a security group: what its rules allow, and a drop of all other IP traffic. ARP is no IP
// traffic, so it passes.
func groupACLs(w steps.SecurityGroupWiring) []*acl {
	name := groupName(w.SecurityGroup)
	owner := owned(KindSecurityGroup, w.SecurityGroup, w.Project, roleACL)
	out := []*acl{
		newACL(owner, fromPort, priorityDrop, "drop", "inport == @"+name+" && ip"),
		newACL(owner, toPort, priorityDrop, "drop", "outport == @"+name+" && ip"),
	}
	for _, r := range w.Rules {
		direction, match := ruleMatch(name, r)
		a := newACL(owner, direction, priorityAllow, "allow-related", match)
		a.ExternalIDs[keyRule] = r.String()
		out = append(out, a)
	}
	return out
}

// subnetACLs returns what a subnet lets its ports do whatever their groups say: ask for an address, and ask the name
// servers that DHCP told them of. They are on the switch because only here it is known which those are.
func subnetACLs(w steps.SubnetWiring) []*acl {
	owner := owned(KindSubnet, w.Subnet, w.Project, roleACL)
	servers := strings.Join(nameServers(w), ", ")
	return []*acl{
		newACL(owner, fromPort, priorityService, "allow-related", "ip4 && udp.src == 68 && udp.dst == 67"),
		newACL(owner, fromPort, priorityService, "allow-related", "ip4.dst == {"+servers+"} && (udp.dst == 53 || tcp.dst == 53)"),
	}
}

// newACL makes an ACL whose UUID follows from all that it says, so that another rule is another row.
func newACL(owner map[string]string, direction string, priority int, action, match string) *acl {
	ids := make(map[string]string, len(owner)+1)
	for k, v := range owner {
		ids[k] = v
	}
	return &acl{
		UUID:      rowUUID(owner[keyKind], owner[keyID], roleACL, direction, fmt.Sprint(priority), action, match),
		Direction: direction, Priority: priority, Action: action, Match: match, ExternalIDs: ids,
	}
}
