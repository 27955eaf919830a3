package network

import (
	"context"
	"slices"
	"strings"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/nextstack/nextstack/workflows/steps"
)

// WirePorts implements Driver.
func (o *OVN) WirePorts(ctx context.Context, ports []steps.PortWiring) error {
	ports, err := normalPorts(ports)
	if err != nil || len(ports) == 0 {
		return err
	}
	return o.apply(ctx, "wire ports", func(v view) (ops, error) { return v.wholePortOps(ports...) })
}

// wholePortOps makes ports and their names.
func (v view) wholePortOps(ports ...steps.PortWiring) (ops, error) {
	var out ops
	changed := portChanges{}
	vpcs := map[string]bool{}
	for i := range ports {
		w := ports[i]
		more, err := v.portOps(w)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
		changed[w.Port] = &w
		vpcs[get[logicalSwitch](v, w.Subnet).ExternalIDs[keyVPC]] = true
		if lsp := get[logicalSwitchPort](v, w.Port); lsp != nil {
			vpcs[lsp.ExternalIDs[keyVPC]] = true // it may move from another VPC
		}
	}
	more, err := v.allNamesOps(vpcs, changed)
	return append(out, more...), err
}

// UnwirePorts implements Driver.
func (o *OVN) UnwirePorts(ctx context.Context, ids []string) error {
	for _, id := range ids {
		if err := validID("port", id); err != nil {
			return err
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return o.apply(ctx, "unwire ports "+strings.Join(ids, " "), func(v view) (ops, error) {
		var out ops
		changed := portChanges{}
		vpcs := map[string]bool{}
		for _, id := range ids {
			lsp := get[logicalSwitchPort](v, id)
			if lsp == nil {
				out = append(out, absent((&logicalSwitchPort{}).table(), id))
			} else {
				out = append(out, present(lsp), leave(&logicalSwitch{}, id))
				changed[id] = nil
				vpcs[lsp.ExternalIDs[keyVPC]] = true
			}
			out = append(out, v.evict(KindPort, id, id)...)
		}
		more, err := v.allNamesOps(vpcs, changed)
		return append(out, more...), err
	})
}

func (v view) allNamesOps(vpcs map[string]bool, changed portChanges) (ops, error) {
	var out ops
	for vpc := range vpcs {
		more, err := v.namesOps(vpc, changed)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// portOps makes a port on the switch of its subnet, and makes it be in its groups and in no other of ours.
func (v view) portOps(w steps.PortWiring) (ops, error) {
	ls := get[logicalSwitch](v, w.Subnet)
	if ls == nil {
		return nil, noSubnet(w.Subnet, w.Port)
	}
	if err := checkAddress(w, ls.ExternalIDs[keyCIDR], ls.ExternalIDs[keyGateway]); err != nil {
		return nil, err
	}
	var out ops
	if have := get[logicalSwitchPort](v, w.Port); have != nil && len(w.Chassis) == 0 { // it stays bound as it is
		w.Chassis = bindingOf(have)
		out = append(out, op{Operation: wait(have.table(), ovsdb.Row{"options": toMap(have.Options)}, is(w.Port))})
	}
	lsp := portRow(w, ls.ExternalIDs[keyVPC])
	if err := v.free(lsp); err != nil {
		return nil, err
	}
	more, err := v.put(lsp)
	if err != nil {
		return nil, err
	}
	out = append(out, more...)
	out = append(out, leave(ls, w.Port, isNot(ls.UUID)))
	out = append(out, join(ls, "ports", ls.Ports, w.Port)...)

	others := []ovsdb.Condition{includes("external_ids", toMap(map[string]string{keyKind: KindSecurityGroup}))}
	for _, id := range w.SecurityGroups {
		pg := get[portGroup](v, id)
		if pg == nil {
			return nil, noGroup(id, w.Port)
		}
		out = append(out, join(pg, "ports", pg.Ports, w.Port)...)
		others = append(others, isNot(id))
	}
	out = append(out, leave(&portGroup{}, w.Port, others...))
	return append(out, v.evict(KindPort, w.Port, w.Port)...), nil
}

func portRow(w steps.PortWiring, vpc string) *logicalSwitchPort {
	ids := owned(KindPort, w.Port, w.Project, rolePort)
	ids[keyVPC], ids[keySubnet], ids[keyVM], ids[keyHostname] = vpc, w.Subnet, w.VM, w.Hostname
	ids[keyMAC], ids[keyAddress], ids[keyGroups] = w.MAC, w.Address, strings.Join(w.SecurityGroups, " ")
	dhcp, address := dhcpRow(w.Subnet), w.MAC+" "+w.Address
	return &logicalSwitchPort{ // the guest has its hostname from its seed: DHCP need not tell it
		UUID: w.Port, Name: w.Port, Addresses: []string{address}, PortSecurity: []string{address}, DHCPv4: &dhcp, Options: bindingOptions(w.Chassis),
		ExternalIDs: ids,
	}
}

// portOf returns the wiring of a port as its row tells it.
func portOf(lsp *logicalSwitchPort) steps.PortWiring {
	x := lsp.ExternalIDs
	w := steps.PortWiring{
		Port: x[keyID], Project: x[keyProject], Subnet: x[keySubnet], VM: x[keyVM], Hostname: x[keyHostname],
		MAC: x[keyMAC], Address: x[keyAddress], SecurityGroups: strings.Fields(x[keyGroups]), Chassis: bindingOf(lsp),
	}
	if len(w.SecurityGroups) == 0 {
		w.SecurityGroups = nil
	}
	if w.MAC == "" && len(lsp.Addresses) == 1 { // written before the keys were
		w.MAC, w.Address, _ = strings.Cut(lsp.Addresses[0], " ")
	}
	slices.Sort(w.SecurityGroups)
	return w
}
