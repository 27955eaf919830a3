package network

import (
	"crypto/sha256"
	"net"
	"strings"

	"github.com/google/uuid"
)

// Keys of external_ids. Kind, ID, project and role are on every row of ours. Those of a thing's main row tell all that it is
// wired as (but where a port is bound): other columns are what follows from them, and can be made again.
const (
	keyKind    = "nextstack_kind"    // kind of the thing that the row is part of
	keyID      = "nextstack_id"      // ID of that thing
	keyProject = "nextstack_project" //
	keyRole    = "nextstack_role"    // what the row is in that thing

	keyName     = "nextstack_name"
	keyVPC      = "nextstack_vpc"
	keySubnet   = "nextstack_subnet"
	keyCIDR     = "nextstack_cidr"
	keyGateway  = "nextstack_gateway"
	keyDNS      = "nextstack_dns" // addresses, separated by spaces
	keyVM       = "nextstack_vm"
	keyHostname = "nextstack_hostname"
	keyMAC      = "nextstack_mac"
	keyAddress  = "nextstack_address"
	keyGroups   = "nextstack_groups" // IDs of security groups, separated by spaces
	keyRule     = "nextstack_rule"
	keyRules    = "nextstack_rules" // of a whole security group
	keyPrefix   = "nextstack_"
)

// Roles of rows.
const (
	roleRouter     = "router"
	roleNames      = "names"
	roleSwitch     = "switch"
	roleDHCP       = "dhcp"
	roleRouterPort = "router-port" // the router's side of the link to a subnet
	roleUplink     = "uplink"      // the switch's side of it
	rolePort       = "port"
	roleGroup      = "group"
	roleACL        = "acl"
)

// rowSpace makes the UUIDs of secondary rows. It never changes: rows in databases carry what follows from it.
var rowSpace = uuid.MustParse("5f0c1d3e-9b57-4c1f-8e0b-7d1b6a2f4c11")

// rowUUID returns the UUID of a secondary row: the main row of a thing has the thing's own ID.
func rowUUID(parts ...string) string {
	return uuid.NewSHA1(rowSpace, []byte(strings.Join(parts, "/"))).String()
}

func namesRow(vpc string) string         { return rowUUID(KindVPC, vpc, roleNames) }
func dhcpRow(subnet string) string       { return rowUUID(KindSubnet, subnet, roleDHCP) }
func routerPortRow(subnet string) string { return rowUUID(KindSubnet, subnet, roleRouterPort) }
func uplinkRow(subnet string) string     { return rowUUID(KindSubnet, subnet, roleUplink) }

func routerName(vpc string) string        { return "vpc-" + vpc }
func switchName(subnet string) string     { return "subnet-" + subnet }
func routerPortName(subnet string) string { return "router-port-" + subnet }
func uplinkName(subnet string) string     { return "uplink-" + subnet }

// groupName is the name of a port group. It stands in match expressions, where a dash would be an operator.
func groupName(sg string) string { return "sg_" + strings.ReplaceAll(sg, "-", "_") }

// gatewayMAC returns the router's MAC in a subnet: locally administered, the same whenever it is asked for, and out of the
// range that VMs get (52:54:00).
func gatewayMAC(subnet string) string {
	h := sha256.Sum256([]byte(subnet))
	return net.HardwareAddr{0x0a, h[0], h[1], h[2], h[3], h[4]}.String()
}

// domain is what the names of a VPC's VMs end in.
func domain(vpcName string) string { return vpcName + ".internal" }

// hostNames returns the names that a VM answers to: the bare one, for guests without a search list, and the full one.
func hostNames(hostname, vpcName string) []string {
	if hostname == "" {
		return nil
	}
	return []string{hostname, hostname + "." + domain(vpcName)}
}
