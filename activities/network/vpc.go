package network

import (
	"context"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/nextstack/nextstack/workflows/steps"
)

// WireVPC implements Driver. What hangs on the router is mended with it: should the router have been lost, its ports went
// with it, and only here all of them are known.
func (o *OVN) WireVPC(ctx context.Context, w steps.VPCWiring) error {
	w, err := normalVPC(w)
	if err != nil {
		return err
	}
	return o.apply(ctx, "wire VPC "+w.VPC, func(v view) (ops, error) { return v.wholeVPCOps(w) })
}

// wholeVPCOps makes a VPC and what hangs on its router.
func (v view) wholeVPCOps(w steps.VPCWiring) (ops, error) {
	out, err := v.vpcOps(w, nil)
	if err != nil {
		return nil, err
	}
	for _, ls := range find[logicalSwitch](v, map[string]string{keyKind: KindSubnet, keyVPC: w.VPC}) {
		more, err := v.subnetOps(subnetOf(ls), w)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// UnwireVPC implements Driver.
func (o *OVN) UnwireVPC(ctx context.Context, id string) error {
	if err := validID("VPC", id); err != nil {
		return err
	}
	return o.apply(ctx, "unwire VPC "+id, func(view) (ops, error) {
		self, children := map[string]string{keyKind: KindVPC, keyID: id}, map[string]string{keyVPC: id}
		return ops{ // the server looks for the rows; the ports go with the switches and the router that hold them
			discard(&logicalRouter{}, self), discard(&dns{}, self),
			discard(&logicalSwitch{}, children), discard(&dhcpOptions{}, children),
		}, nil
	})
}

// vpcOps makes the router and the DNS table. Ports that are about to change are given in changed (see records).
func (v view) vpcOps(w steps.VPCWiring, changed portChanges) (ops, error) {
	ids := owned(KindVPC, w.VPC, w.Project, roleRouter)
	ids[keyName], ids[keyCIDR] = w.Name, w.CIDR
	out, err := v.put(&logicalRouter{UUID: w.VPC, Name: routerName(w.VPC), ExternalIDs: ids})
	if err != nil {
		return nil, err
	}
	table := &dns{UUID: namesRow(w.VPC), Records: v.records(w, changed), ExternalIDs: owned(KindVPC, w.VPC, w.Project, roleNames)}
	names, err := v.put(table)
	if err != nil {
		return nil, err
	}
	out = append(out, names...)
	return append(out, v.evict(KindVPC, w.VPC, w.VPC, table.UUID)...), nil
}

// vpcOf returns the wiring of a VPC as its router tells it.
func vpcOf(lr *logicalRouter) steps.VPCWiring {
	x := lr.ExternalIDs
	return steps.VPCWiring{VPC: x[keyID], Name: x[keyName], Project: x[keyProject], CIDR: x[keyCIDR]}
}

// namesOps makes the DNS table of a VPC right after changed ports. Each name is changed by itself and checked by the
// server, so that ports of one VPC can be wired at the same time without getting in each other's way.
func (v view) namesOps(vpc string, changed portChanges) (ops, error) {
	lr := get[logicalRouter](v, vpc)
	if lr == nil {
		return nil, nil // no router, no names: wiring the VPC makes both
	}
	w := vpcOf(lr)
	table := get[dns](v, namesRow(vpc))
	if table == nil {
		out, err := v.vpcOps(w, changed)
		for _, ls := range find[logicalSwitch](v, map[string]string{keyKind: KindSubnet, keyVPC: vpc}) {
			out = append(out, join(ls, "dns_records", ls.DNSRecords, namesRow(vpc))...)
		}
		return out, err
	}
	before, after, set := map[string]string{}, map[string]string{}, map[string]string{}
	for host := range v.affected(changed) {
		addresses := v.addresses(vpc, host, changed)
		for _, name := range hostNames(host, w.Name) {
			old, had := table.Records[name]
			if had {
				before[name] = old
			}
			if addresses == "" {
				continue
			}
			after[name] = addresses
			if old != addresses {
				set[name] = addresses
			}
		}
	}
	out := ops{present(lr), present(table)}
	if len(before) > 0 {
		out = append(out, present(table, includes("records", toMap(before))))
	}
	gone := map[string]string{}
	for name, old := range before {
		if after[name] != old {
			gone[name] = old
		}
	}
	if len(gone) > 0 {
		out = append(out, mutate(table.table(), "records", ovsdb.MutateOperationDelete, toMap(gone), "", is(table.UUID)))
	}
	if len(set) > 0 {
		out = append(out, mutate(table.table(), "records", ovsdb.MutateOperationInsert, toMap(set), "", is(table.UUID)))
	}
	if len(after) > 0 { // inserting does not replace: a name that somebody else has just set shows here
		out = append(out, present(table, includes("records", toMap(after))))
	}
	return out, nil
}
