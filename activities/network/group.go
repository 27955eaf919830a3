package network

import (
	"context"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// WireSecurityGroup implements Driver.
func (o *OVN) WireSecurityGroup(ctx context.Context, w steps.SecurityGroupWiring) error {
	w, err := normalSecurityGroup(w)
	if err != nil {
		return err
	}
	return o.apply(ctx, "wire security group "+w.SecurityGroup, func(v view) (ops, error) { return v.groupOps(w) })
}

// UnwireSecurityGroup implements Driver.
func (o *OVN) UnwireSecurityGroup(ctx context.Context, id string) error {
	if err := validID("security group", id); err != nil {
		return err
	}
	return o.apply(ctx, "unwire security group "+id, func(view) (ops, error) {
		return ops{discard(&portGroup{}, map[string]string{keyKind: KindSecurityGroup, keyID: id})}, nil // its ACLs go with it
	})
}

// groupOps makes the port group and its ACLs, and gives it its members back should the row have been lost.
func (v view) groupOps(w steps.SecurityGroupWiring) (ops, error) {
	ids := owned(KindSecurityGroup, w.SecurityGroup, w.Project, roleGroup)
	ids[keyName], ids[keyRules] = w.Name, rulesText(w.Rules)
	pg := &portGroup{UUID: w.SecurityGroup, Name: groupName(w.SecurityGroup), ExternalIDs: ids}
	if err := v.free(pg); err != nil {
		return nil, err
	}
	var out ops
	for _, a := range groupACLs(w) {
		more, err := v.put(a)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
		pg.ACLs = append(pg.ACLs, a.UUID)
	}
	var err error
	if have := get[portGroup](v, pg.UUID); have == nil {
		for _, lsp := range v.members(w.SecurityGroup) {
			pg.Ports = append(pg.Ports, lsp.UUID)
			out = append(out, present(lsp))
		}
		more, perr := v.put(pg)
		out, err = append(out, more...), perr
	} else {
		more, perr := v.put(pg)
		out, err = append(out, more...), perr
		for _, lsp := range v.members(w.SecurityGroup) {
			if !slices.Contains(have.Ports, lsp.UUID) {
				out = append(out, present(lsp))
				out = append(out, join(pg, "ports", have.Ports, lsp.UUID)...)
			}
		}
	}
	return append(out, v.evict(KindSecurityGroup, w.SecurityGroup, pg.UUID)...), err
}

// members returns the ports that say of themselves that they are in the group.
func (v view) members(sg string) []*logicalSwitchPort {
	var out []*logicalSwitchPort
	all(v, func(lsp *logicalSwitchPort) {
		if slices.Contains(strings.Fields(lsp.ExternalIDs[keyGroups]), sg) {
			out = append(out, lsp)
		}
	})
	slices.SortFunc(out, func(a, b *logicalSwitchPort) int { return strings.Compare(a.UUID, b.UUID) })
	return out
}

// groupOf returns the wiring of a security group as its rows tell it.
func (v view) groupOf(pg *portGroup) steps.SecurityGroupWiring {
	x := pg.ExternalIDs
	w := steps.SecurityGroupWiring{SecurityGroup: x[keyID], Name: x[keyName], Project: x[keyProject]}
	texts := strings.Split(x[keyRules], rulesComma)
	if _, told := x[keyRules]; !told { // written before the key was: its ACLs tell
		texts = nil
		for _, id := range pg.ACLs {
			if a := get[acl](v, id); a != nil {
				texts = append(texts, a.ExternalIDs[keyRule])
			}
		}
	}
	var rules []api.Rule
	for _, s := range texts {
		if r, err := api.ParseRule(s); err == nil {
			rules = append(rules, r)
		}
	}
	w.Rules = normalRules(rules)
	return w
}

const rulesComma = ", "

func rulesText(rules []api.Rule) string {
	texts := make([]string, len(rules))
	for i, r := range rules {
		texts[i] = r.String()
	}
	return strings.Join(texts, rulesComma)
}
