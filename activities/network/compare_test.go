package network

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// wanted is what should be wired.
type wanted struct {
	VPCs           []steps.VPCWiring
	Subnets        []steps.SubnetWiring
	Ports          []steps.PortWiring
	SecurityGroups []steps.SecurityGroupWiring
}

// compare returns what is on one side only, or different, or broken in itself.
func compare(want wanted, have Inventory) []api.Finding {
	type one struct {
		kind, id string
		wiring   any
	}
	var all []one
	for _, w := range want.VPCs {
		w, _ = normalVPC(w)
		all = append(all, one{KindVPC, w.VPC, w})
	}
	for _, w := range want.Subnets {
		w, _ = normalSubnet(w)
		all = append(all, one{KindSubnet, w.Subnet, w})
	}
	for _, w := range want.Ports {
		w, _ = normalPort(w)
		if it := have.Find(KindPort, w.Port); it != nil && it.Port != nil && w.Chassis == nil {
			w.Chassis = it.Port.Chassis // to name none is to leave it as it is
		}
		all = append(all, one{KindPort, w.Port, w})
	}
	for _, w := range want.SecurityGroups {
		w.Rules = normalRules(w.Rules)
		all = append(all, one{KindSecurityGroup, w.SecurityGroup, w})
	}
	var out []api.Finding
	finding := func(kind, id string, extra bool, what string) {
		out = append(out, api.Finding{Side: "ovn", Kind: kind, ID: id, Extra: extra, Problem: what})
	}
	known := map[string]bool{}
	for _, w := range all {
		known[w.kind+"/"+w.id] = true
		it := have.Find(w.kind, w.id)
		switch {
		case it == nil:
			finding(w.kind, w.id, false, "it is wanted and not in OVN")
		case len(it.Defects) > 0:
			finding(w.kind, w.id, false, "its rows are not right: "+strings.Join(it.Defects, "; "))
		case text(it.wiring()) != text(w.wiring):
			finding(w.kind, w.id, false, "OVN has "+text(it.wiring())+", wanted is "+text(w.wiring))
		}
	}
	for i := range have.Items {
		if it := &have.Items[i]; !known[it.Kind+"/"+it.ID] {
			finding(it.Kind, it.ID, true, "it is in OVN and nobody wants it")
		}
	}
	slices.SortStableFunc(out, func(a, b api.Finding) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID)) })
	return out
}

func (it *Item) wiring() any {
	switch {
	case it.VPC != nil:
		return it.VPC
	case it.Subnet != nil:
		return it.Subnet
	case it.Port != nil:
		return it.Port
	case it.SecurityGroup != nil:
		return it.SecurityGroup
	default:
		return nil
	}
}

// text is a wiring as people read it; equal wirings have equal texts.
func text(w any) string {
	b, err := json.Marshal(w)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
