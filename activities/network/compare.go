package network

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Want is what the store says should be wired. Things that an operation holds right now are better left out of it, and their
// findings ignored: they may be on either side.
type Want struct {
	VPCs           []steps.VPCWiring
	Subnets        []steps.SubnetWiring
	Ports          []steps.PortWiring
	SecurityGroups []steps.SecurityGroupWiring
}

// Compare returns what is on one side only, or different, or broken in itself. Its findings have the side "ovn"; those that
// are extra are what RemoveStray removes, all others go away when the thing is wired again.
func Compare(want Want, have Inventory) []api.Finding {
	type wanted struct {
		kind, id string
		wiring   any
	}
	var all []wanted
	for _, w := range want.VPCs {
		w, _ = normalVPC(w)
		all = append(all, wanted{KindVPC, w.VPC, w})
	}
	for _, w := range want.Subnets {
		w, _ = normalSubnet(w)
		all = append(all, wanted{KindSubnet, w.Subnet, w})
	}
	for _, w := range want.Ports {
		w, _ = normalPort(w)
		all = append(all, wanted{KindPort, w.Port, w})
	}
	for _, w := range want.SecurityGroups {
		w.Rules = normalRules(w.Rules)
		all = append(all, wanted{KindSecurityGroup, w.SecurityGroup, w})
	}
	var out []api.Finding
	finding := func(kind, id string, extra bool, what, fix string) {
		out = append(out, api.Finding{Side: "ovn", Kind: kind, ID: id, Extra: extra, Problem: what, Fix: fix})
	}
	known := map[string]bool{}
	for _, w := range all {
		known[w.kind+"/"+w.id] = true
		it := have.Find(w.kind, w.id)
		switch {
		case it == nil:
			finding(w.kind, w.id, false, "it is in the store and not in OVN", "nothing; update it to have it wired again")
		case len(it.Defects) > 0:
			finding(w.kind, w.id, false, "its rows are not right: "+strings.Join(it.Defects, "; "), "nothing; update it to have it wired again")
		case text(it.wiring()) != text(w.wiring):
			finding(w.kind, w.id, false, "OVN has "+text(it.wiring())+", the store "+text(w.wiring), "nothing; update it to have it wired again")
		}
	}
	for i := range have.Items {
		if it := &have.Items[i]; !known[it.Kind+"/"+it.ID] {
			finding(it.Kind, it.ID, true, "it is in OVN and not in the store", "removes its rows")
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

// text is a wiring as people read it in a finding; equal wirings have equal texts.
func text(w any) string {
	b, err := json.Marshal(w)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
