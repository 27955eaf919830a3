// Package network keeps the virtual networks of the cloud in OVN. It is the only room that speaks OVSDB: the northbound
// database for VPCs, subnets, ports and security groups, and, on a node, the local Open vSwitch.
//
// A VPC is a logical router with a DNS table, a subnet a logical switch with DHCP that hangs on the router, a port a logical
// switch port whose name is libvirt's interfaceid, and a security group a port group with ACLs. Every row carries who owns
// it in its external_ids, and its row UUID follows from the ID of what it is for: so it can be found, audited and collected
// by anybody, and there cannot be two of it.
package network

import (
	"context"

	"github.com/nextstack/nextstack/workflows/steps"
)

// Driver wires the virtual networks. All its errors are *problem.Problem.
//
// Wire makes it exactly so, whatever was there before: it creates, completes or corrects in one transaction, so nobody ever
// sees half of it. Unwire removes it, and is content if nothing is there. All of it may be called again at any time and by
// several callers at once. What is not ours is never touched.
type Driver interface {
	// WireVPC makes the router of a VPC, and mends what hangs on it.
	WireVPC(ctx context.Context, w steps.VPCWiring) error
	// UnwireVPC removes the VPC with every subnet that is still in it.
	UnwireVPC(ctx context.Context, id string) error
	// WireSubnet makes a subnet; not_found if its VPC is not wired.
	WireSubnet(ctx context.Context, w steps.SubnetWiring) error
	// UnwireSubnet removes the subnet with every port that is still in it.
	UnwireSubnet(ctx context.Context, id string) error
	// WireSecurityGroup makes a security group with exactly these rules.
	WireSecurityGroup(ctx context.Context, w steps.SecurityGroupWiring) error
	// UnwireSecurityGroup removes a security group; ports that were in it lose it.
	UnwireSecurityGroup(ctx context.Context, id string) error
	// WirePorts makes all the ports or none; not_found if a subnet or a security group of one of them is not wired.
	WirePorts(ctx context.Context, ports []steps.PortWiring) error
	// BindPorts says on which chassis ports may be bound: one; two while they move, of which the second is let in by the
	// guest's first RARP there; or none, which is any. Ports that are not wired are left out. A wiring of ports that names no
	// chassis leaves this as it is.
	BindPorts(ctx context.Context, ports, chassis []string) error
	// UnwirePorts removes the ports.
	UnwirePorts(ctx context.Context, ids []string) error
	// List tells all that is there and carries our mark.
	List(ctx context.Context) (Inventory, error)
	// RemoveStray removes the rows of one thing of the inventory that an audit found to be nobody's, and nothing else:
	// in_use if something of ours that is not stray itself still hangs on it. It is content if nothing is there.
	RemoveStray(ctx context.Context, kind, id string) error
	// Mend makes one thing of the inventory right again, as it was wired; not_found if that is not known any more because its
	// main row is missing, or if what it hangs on is not wired.
	Mend(ctx context.Context, kind, id string) error
}

// The kinds of things in an inventory, as they stand in findings and in external_ids:nextstack_kind.
const (
	KindVPC           = "vpc"
	KindSubnet        = "subnet"
	KindPort          = "port"
	KindSecurityGroup = "security-group"
)

// Inventory is all that carries our mark, ordered by kind and ID.
type Inventory struct {
	Items []Item `json:"items"`
}

// Item is one thing with all its rows. What it is wired as is told by the one of VPC, Subnet, Port and SecurityGroup that
// fits its kind, in normal form (sorted, without doubles); that one is nil if the thing's main row is missing.
type Item struct {
	Kind    string `json:"kind"`
	ID      string `json:"id"`
	Project string `json:"project"`

	VPC           *steps.VPCWiring           `json:"vpc,omitempty"`
	Subnet        *steps.SubnetWiring        `json:"subnet,omitempty"`
	Port          *steps.PortWiring          `json:"port,omitempty"`
	SecurityGroup *steps.SecurityGroupWiring `json:"securityGroup,omitempty"`

	// Names is what the DNS of a VPC answers: addresses by name, several separated by spaces.
	Names map[string]string `json:"names,omitempty"`
	// Rows is what there is of it in the database.
	Rows []Row `json:"rows,omitempty"`
	// Defects says what is wrong with it in itself: rows that are missing, doubled or altered. Mend corrects them, as wiring it again does.
	Defects []string `json:"defects,omitempty"`
}

// Row is one row of the northbound database.
type Row struct {
	Table string `json:"table"`
	UUID  string `json:"uuid"`
	Name  string `json:"name,omitempty"`
}

// Find returns the item of this kind and ID, or nil.
func (inv *Inventory) Find(kind, id string) *Item {
	for i := range inv.Items {
		if inv.Items[i].Kind == kind && inv.Items[i].ID == id {
			return &inv.Items[i]
		}
	}
	return nil
}
