package network

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/nextstack/nextstack/api/problem"
)

// Options of a logical switch port that say where it may be bound. Without them any chassis that has an interface with the
// port's ID takes the port for itself.
const (
	optChassis    = "requested-chassis"
	optActivation = "activation-strategy" // of all chassis but the first: blocked until the guest shows itself there
	byRARP        = "rarp"                // by the packet that QEMU sends when a guest goes on at the target of its move
)

// BindPorts implements Driver.
func (o *OVN) BindPorts(ctx context.Context, ports, chassis []string) error {
	chassis, err := normalBinding(ports, chassis)
	if err != nil || len(ports) == 0 {
		return err
	}
	return o.apply(ctx, "bind ports "+strings.Join(ports, " "), func(v view) (ops, error) { return v.bindOps(ports, chassis), nil })
}

// bindOps changes the options of the ports that are wired, and of their options those two.
func (v view) bindOps(ports, chassis []string) ops {
	var out ops
	for _, id := range ports {
		lsp := get[logicalSwitchPort](v, id)
		if lsp == nil {
			out = append(out, absent(lsp.table(), id))
			continue
		}
		if lsp.ExternalIDs[keyKind] != KindPort {
			out = append(out, present(lsp)) // not a port that a guest has
			continue
		}
		out = append(out, op{Operation: wait(lsp.table(), ovsdb.Row{"options": toMap(lsp.Options)}, is(id))})
		want := maps.Clone(lsp.Options)
		maps.DeleteFunc(want, func(k, _ string) bool { return k == optChassis || k == optActivation })
		if want == nil {
			want = map[string]string{}
		}
		maps.Copy(want, bindingOptions(chassis))
		if maps.Equal(want, lsp.Options) {
			continue
		}
		out = append(out, op{ovsdb.Operation{
			Op: ovsdb.OperationUpdate, Table: lsp.table(), Where: []ovsdb.Condition{is(id)}, Row: ovsdb.Row{"options": toMap(want)},
		}, label(lsp) + " is bound otherwise"})
	}
	return out
}

// bindingOptions are the options that bind a port to these chassis.
func bindingOptions(chassis []string) map[string]string {
	switch len(chassis) {
	case 0:
		return nil
	case 1:
		return map[string]string{optChassis: chassis[0]}
	default:
		return map[string]string{optChassis: strings.Join(chassis, ","), optActivation: byRARP}
	}
}

// bindingOf returns the chassis that a port is bound to; nil: to none.
func bindingOf(lsp *logicalSwitchPort) []string {
	if s := lsp.Options[optChassis]; s != "" {
		return strings.Split(s, ",")
	}
	return nil
}

func normalBinding(ports, chassis []string) ([]string, error) {
	var v problem.Validation
	for i, id := range ports {
		checkID(&v, fmt.Sprintf("ports[%d]", i), id)
	}
	chassis = normalChassis(&v, chassis)
	return chassis, v.Err("port binding")
}

// normalChassis wants the names of at most two chassis, in the order in which they were given; the same one twice is one.
func normalChassis(v *problem.Validation, chassis []string) []string {
	if len(chassis) == 0 {
		return nil
	}
	chassis = slices.Compact(slices.Clone(chassis))
	v.Check(len(chassis) <= 2, "chassis", len(chassis), "must be one, or two while the port moves")
	for i, c := range chassis {
		plain := c != "" && len(c) <= 255 && !strings.ContainsFunc(c, func(r rune) bool { return r <= ' ' || r > '~' || r == ',' })
		v.Check(plain, fmt.Sprintf("chassis[%d]", i), c, "must be the name of a chassis, without commas and spaces")
	}
	return chassis
}
