package network

import (
	"context"

	"github.com/nextstack/nextstack/api/problem"
)

// Mend implements Driver. The external_ids of a thing's main row tell all that it is wired as, so no other source is needed,
// and an operation that wires the same thing meanwhile cannot be undone by it: the transaction rests on that row as it was.
func (o *OVN) Mend(ctx context.Context, kind, id string) error {
	if err := checkKind(kind, id); err != nil {
		return err
	}
	return o.apply(ctx, "mend "+kind+" "+id, func(v view) (ops, error) { return v.mendOps(kind, id) })
}

func (v view) mendOps(kind, id string) (ops, error) {
	var seen op // what the plan is made of must still be so
	var out ops
	var err error
	switch kind {
	case KindVPC:
		lr := get[logicalRouter](v, id)
		if lr == nil {
			return nil, notWired(kind, id)
		}
		seen = present(lr)
		out, err = v.wholeVPCOps(vpcOf(lr))
	case KindSubnet:
		ls := get[logicalSwitch](v, id)
		if ls == nil {
			return nil, notWired(kind, id)
		}
		seen = present(ls)
		out, err = v.wholeSubnetOps(subnetOf(ls))
	case KindPort:
		lsp := get[logicalSwitchPort](v, id)
		if lsp == nil {
			return nil, notWired(kind, id)
		}
		seen = present(lsp)
		w := portOf(lsp)
		w.Chassis = nil // which stays as it is
		out, err = v.wholePortOps(w)
	case KindSecurityGroup:
		pg := get[portGroup](v, id)
		if pg == nil {
			return nil, notWired(kind, id)
		}
		seen = present(pg)
		out, err = v.groupOps(v.groupOf(pg))
	}
	return append(ops{seen}, out...), err
}

// checkKind wants a kind of things that are in the network, and an ID.
func checkKind(kind, id string) error {
	switch kind {
	case KindVPC, KindSubnet, KindPort, KindSecurityGroup:
		return validID(kind, id)
	default:
		return unknownKind(kind)
	}
}

func notWired(kind, id string) error {
	return problem.New(problem.NotFound, "%s %s cannot be mended", kind, id).
		Because("its main row is missing, and with it what it was wired as").Try("update it, which wires it again")
}
