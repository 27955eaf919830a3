package network

import (
	"context"
	"net/netip"
	"strconv"
	"strings"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/nextstack/nextstack/workflows/steps"
)

const (
	overlayMTU = 1442 // 1500 less what geneve adds
	leaseTime  = 3600 // seconds; a guest learns of other name servers after half of it
)

// WireSubnet implements Driver.
func (o *OVN) WireSubnet(ctx context.Context, w steps.SubnetWiring) error {
	w, err := normalSubnet(w)
	if err != nil {
		return err
	}
	return o.apply(ctx, "wire subnet "+w.Subnet, func(v view) (ops, error) { return v.wholeSubnetOps(w) })
}

// wholeSubnetOps makes a subnet, and the DNS table that it needs should that have been lost.
func (v view) wholeSubnetOps(w steps.SubnetWiring) (ops, error) {
	lr := get[logicalRouter](v, w.VPC)
	if lr == nil {
		return nil, noVPC(w.VPC, w.Subnet)
	}
	out := ops{present(lr)}
	if get[dns](v, namesRow(w.VPC)) == nil {
		more, err := v.vpcOps(vpcOf(lr), nil)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	more, err := v.subnetOps(w, vpcOf(lr))
	return append(out, more...), err
}

// UnwireSubnet implements Driver.
func (o *OVN) UnwireSubnet(ctx context.Context, id string) error {
	if err := validID("subnet", id); err != nil {
		return err
	}
	return o.apply(ctx, "unwire subnet "+id, func(v view) (ops, error) { return v.unwireSubnetOps(id) })
}

func (v view) unwireSubnetOps(id string) (ops, error) {
	var out ops
	if ls := get[logicalSwitch](v, id); ls == nil {
		out = append(out, absent(ls.table(), id))
	} else { // the ports on it go with it, so their names must go too: no other port may come in between
		seen, err := v.encode(ls, &ls.Ports, &ls.ExternalIDs)
		if err != nil {
			return nil, err
		}
		out = append(out, op{Operation: wait(ls.table(), seen, is(id))})
		changed := portChanges{}
		for _, lsp := range find[logicalSwitchPort](v, map[string]string{keySubnet: id}) {
			out = append(out, present(lsp))
			changed[lsp.UUID] = nil
		}
		names, err := v.namesOps(ls.ExternalIDs[keyVPC], changed)
		if err != nil {
			return nil, err
		}
		out = append(out, names...)
	}
	mark := map[string]string{keyKind: KindSubnet, keyID: id}
	out = append(out, discard(&logicalSwitch{}, mark), discard(&dhcpOptions{}, mark))
	for _, lrp := range find[logicalRouterPort](v, mark) {
		out = append(out, leave(&logicalRouter{}, lrp.UUID))
	}
	return append(out, leave(&logicalRouter{}, routerPortRow(id)), leave(&logicalSwitch{}, uplinkRow(id))), nil
}

// subnetOps makes the switch, its DHCP, and the link to the router of its VPC.
func (v view) subnetOps(w steps.SubnetWiring, vpc steps.VPCWiring) (ops, error) {
	mine := func(role string) map[string]string {
		ids := owned(KindSubnet, w.Subnet, w.Project, role)
		ids[keyVPC] = w.VPC
		return ids
	}
	var out ops
	var aclRows []string
	rows := []row{}
	for _, a := range subnetACLs(w) {
		rows, aclRows = append(rows, a), append(aclRows, a.UUID)
	}
	ids := mine(roleSwitch)
	ids[keyName], ids[keyCIDR], ids[keyGateway], ids[keyDNS] = w.Name, w.CIDR, w.Gateway, strings.Join(w.DNS, " ")
	ls := &logicalSwitch{
		UUID: w.Subnet, Name: switchName(w.Subnet), ACLs: aclRows, DNSRecords: []string{namesRow(w.VPC)},
		OtherConfig: map[string]string{"subnet": w.CIDR}, ExternalIDs: ids,
	}
	dhcp := &dhcpOptions{UUID: dhcpRow(w.Subnet), CIDR: w.CIDR, Options: dhcpFor(w, vpc.Name), ExternalIDs: mine(roleDHCP)}
	lrp := &logicalRouterPort{
		UUID: routerPortRow(w.Subnet), Name: routerPortName(w.Subnet), MAC: gatewayMAC(w.Subnet),
		Networks: []string{w.Gateway + "/" + strconv.Itoa(bits(w.CIDR))}, ExternalIDs: mine(roleRouterPort),
	}
	uplinkIDs := owned(KindSubnet, w.Subnet, w.Project, roleUplink) // not the VPC: by that key its ports are looked up
	uplink := &logicalSwitchPort{
		UUID: uplinkRow(w.Subnet), Name: uplinkName(w.Subnet), Type: "router", Addresses: []string{"router"},
		Options: map[string]string{"router-port": lrp.Name}, ExternalIDs: uplinkIDs,
	}
	for _, r := range append(rows, ls, dhcp, lrp, uplink) {
		if r.name() != "" {
			if err := v.free(r); err != nil {
				return nil, err
			}
		}
		more, err := v.put(r)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	if have := get[logicalSwitch](v, ls.UUID); have != nil {
		ls.Ports = have.Ports
	}
	out = append(out, join(ls, "ports", ls.Ports, uplink.UUID)...)
	out = append(out, leave(&logicalRouter{}, lrp.UUID, isNot(w.VPC)), leave(ls, uplink.UUID, isNot(ls.UUID)))
	lr := &logicalRouter{UUID: w.VPC, Name: routerName(w.VPC)} // it may be made in the same transaction
	if have := get[logicalRouter](v, w.VPC); have != nil {
		lr = have
	}
	out = append(out, join(lr, "ports", lr.Ports, lrp.UUID)...)
	out = append(out, v.leaseOps(w.Subnet, dhcp.UUID)...)
	return append(out, v.evict(KindSubnet, w.Subnet, ls.UUID, dhcp.UUID, lrp.UUID, uplink.UUID)...), nil
}

// leaseOps gives the ports of a subnet their DHCP options back, which the database takes from them when the row is lost.
func (v view) leaseOps(subnet, dhcp string) ops {
	var out ops
	for _, lsp := range find[logicalSwitchPort](v, map[string]string{keySubnet: subnet}) {
		if lsp.DHCPv4 != nil && *lsp.DHCPv4 == dhcp && get[dhcpOptions](v, dhcp) != nil {
			continue
		}
		out = append(out, present(lsp), op{ovsdb.Operation{
			Op: ovsdb.OperationUpdate, Table: lsp.table(), Where: []ovsdb.Condition{is(lsp.UUID)}, Row: ovsdb.Row{"dhcpv4_options": toSet(dhcp)},
		}, label(lsp) + " differs in dhcpv4_options"})
	}
	return out
}

// nameServers returns whom the guests of a subnet ask: the given servers, or the gateway, in whose place OVN answers.
func nameServers(w steps.SubnetWiring) []string {
	if len(w.DNS) == 0 {
		return []string{w.Gateway}
	}
	return w.DNS
}

func dhcpFor(w steps.SubnetWiring, vpcName string) map[string]string {
	servers := strings.Join(nameServers(w), ", ")
	if len(nameServers(w)) > 1 {
		servers = "{" + servers + "}"
	}
	return map[string]string{
		"server_id": w.Gateway, "server_mac": gatewayMAC(w.Subnet), "router": w.Gateway, "dns_server": servers,
		"lease_time": strconv.Itoa(leaseTime), "mtu": strconv.Itoa(overlayMTU), "domain_name": strconv.Quote(domain(vpcName)),
	}
}

func bits(cidr string) int {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return 32
	}
	return p.Bits()
}

// subnetOf returns the wiring of a subnet as its switch tells it.
func subnetOf(ls *logicalSwitch) steps.SubnetWiring {
	x := ls.ExternalIDs
	w := steps.SubnetWiring{
		Subnet: x[keyID], Name: x[keyName], Project: x[keyProject], VPC: x[keyVPC], CIDR: x[keyCIDR], Gateway: x[keyGateway],
	}
	if x[keyDNS] != "" {
		w.DNS = strings.Fields(x[keyDNS])
	}
	return w
}
