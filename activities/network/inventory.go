package network

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api/problem"
)

// List implements Driver.
func (o *OVN) List(ctx context.Context) (Inventory, error) {
	for try := 1; ; try++ {
		s, err := o.link.session(ctx)
		if err == nil {
			if err = s.sync(ctx); err == nil {
				return view{s.tables}.inventory()
			}
			s.drop() // a connection that was lost unnoticed shows here
		}
		if try == 3 || !errors.Is(err, errLost) {
			return Inventory{}, problem.Wrap(err, problem.Unavailable, "cannot list the network")
		}
	}
}

func (v view) inventory() (Inventory, error) {
	items := map[string]*Item{}
	note := func(r row) {
		x := *r.ids()
		key := x[keyKind] + "/" + x[keyID]
		it := items[key]
		if it == nil {
			it = &Item{Kind: x[keyKind], ID: x[keyID], Project: x[keyProject]}
			items[key] = it
		}
		it.Rows = append(it.Rows, Row{Table: r.table(), UUID: r.uuid(), Name: r.name()})
	}
	all(v, func(r *logicalRouter) { note(r) })
	all(v, func(r *dns) { note(r) })
	all(v, func(r *logicalSwitch) { note(r) })
	all(v, func(r *dhcpOptions) { note(r) })
	all(v, func(r *logicalRouterPort) { note(r) })
	all(v, func(r *logicalSwitchPort) { note(r) })
	all(v, func(r *portGroup) { note(r) })
	all(v, func(r *acl) { note(r) })

	inv := Inventory{Items: make([]Item, 0, len(items))}
	memberships := v.memberships()
	for _, key := range slices.Sorted(maps.Keys(items)) {
		it := items[key]
		if err := v.describe(it, memberships); err != nil {
			return Inventory{}, err
		}
		slices.SortFunc(it.Rows, func(a, b Row) int {
			return cmp.Or(cmp.Compare(a.Table, b.Table), cmp.Compare(a.UUID, b.UUID))
		})
		inv.Items = append(inv.Items, *it)
	}
	return inv, nil
}

// memberships returns the security groups that each port really is in.
func (v view) memberships() map[string][]string {
	out := map[string][]string{}
	all(v, func(pg *portGroup) {
		for _, p := range pg.Ports {
			out[p] = append(out[p], pg.ExternalIDs[keyID])
		}
	})
	for _, groups := range out {
		slices.Sort(groups)
	}
	return out
}

// describe says what the item is wired as. Its defects are what wiring it again would correct.
func (v view) describe(it *Item, memberships map[string][]string) error {
	var todo ops
	var err error
	switch it.Kind {
	case KindVPC:
		lr := get[logicalRouter](v, it.ID)
		if lr == nil {
			break
		}
		w := vpcOf(lr)
		it.VPC = &w
		todo, err = v.vpcOps(w, nil)
		if names := get[dns](v, namesRow(it.ID)); names != nil && len(names.Records) > 0 {
			it.Names = maps.Clone(names.Records)
		}
	case KindSubnet:
		ls := get[logicalSwitch](v, it.ID)
		if ls == nil {
			break
		}
		w := subnetOf(ls)
		it.Subnet = &w
		lr := get[logicalRouter](v, w.VPC)
		if lr == nil {
			it.Defects = append(it.Defects, "Logical_Router "+routerName(w.VPC)+" is missing")
			return nil
		}
		todo, err = v.subnetOps(w, vpcOf(lr))
	case KindPort:
		lsp := get[logicalSwitchPort](v, it.ID)
		if lsp == nil {
			break
		}
		w := portOf(lsp)
		it.Port = &w
		todo, err = v.portOps(w)
		if !slices.Equal(w.SecurityGroups, memberships[it.ID]) {
			it.Defects = append(it.Defects, "its security groups are ["+strings.Join(memberships[it.ID], " ")+"]")
			w.SecurityGroups = slices.Clone(memberships[it.ID])
		}
	case KindSecurityGroup:
		pg := get[portGroup](v, it.ID)
		if pg == nil {
			break
		}
		w := v.groupOf(pg)
		it.SecurityGroup = &w
		todo, err = v.groupOps(w)
	default:
		it.Defects = append(it.Defects, "nobody knows this kind of thing")
		return nil
	}
	if it.VPC == nil && it.Subnet == nil && it.Port == nil && it.SecurityGroup == nil {
		it.Defects = append(it.Defects, "its main row is missing")
		return nil
	}
	it.Defects = append(it.Defects, todo.notes()...)
	if err != nil { // what it needs is not there, or its row holds what cannot be
		if p := problem.From(err); p.Kind != problem.Internal {
			it.Defects = append(it.Defects, p.Error())
			return nil
		}
	}
	return err
}

// RemoveStray implements Driver.
func (o *OVN) RemoveStray(ctx context.Context, kind, id string) error {
	mark := map[string]string{keyKind: kind, keyID: id}
	switch kind {
	case KindVPC:
		if err := validID("VPC", id); err != nil {
			return err
		}
		return o.apply(ctx, "remove stray VPC "+id, func(v view) (ops, error) {
			if left := find[logicalSwitch](v, map[string]string{keyKind: KindSubnet, keyVPC: id}); len(left) > 0 {
				return nil, stillInUse(kind, id, "subnet "+left[0].ExternalIDs[keyID])
			}
			out := ops{discard(&logicalRouter{}, mark), discard(&dns{}, mark)}
			if lr := get[logicalRouter](v, id); lr != nil { // nor may a subnet have been linked to it since
				seen, err := v.encode(lr, &lr.Ports)
				if err != nil {
					return nil, err
				}
				out = append(ops{{Operation: wait(lr.table(), seen, is(id))}}, out...)
			}
			return out, nil
		})
	case KindSubnet:
		if err := validID("subnet", id); err != nil {
			return err
		}
		return o.apply(ctx, "remove stray subnet "+id, func(v view) (ops, error) {
			if left := find[logicalSwitchPort](v, map[string]string{keySubnet: id}); len(left) > 0 {
				return nil, stillInUse(kind, id, "port "+left[0].ExternalIDs[keyID])
			}
			return v.unwireSubnetOps(id)
		})
	case KindPort:
		return o.UnwirePorts(ctx, []string{id})
	case KindSecurityGroup:
		return o.UnwireSecurityGroup(ctx, id)
	default:
		return unknownKind(kind)
	}
}
