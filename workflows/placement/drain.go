package placement

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Departure is where one VM of a node could go, or why it cannot.
type Departure struct {
	VM       VM
	Decision api.Decision
	Problem  *problem.Problem // why it stays; nil: it goes to Decision.Node
}

// Drain decides for each VM of the node from where it would go once those before it have gone. The largest come first,
// because they are the hardest to find room for. It does not matter whether the node itself is alive or cordoned.
func Drain(nodes []Node, vms []VM, from string) []Departure {
	w := newWorld(nodes)
	var leaving []VM
	for _, vm := range vms {
		if vm.Node == from {
			leaving = append(leaving, vm)
		}
	}
	slices.SortFunc(leaving, func(a, b VM) int {
		return cmp.Or(cmp.Compare(b.Amount.Memory, a.Amount.Memory), cmp.Compare(b.Amount.VCPUs, a.Amount.VCPUs), compareVMs(&a, &b))
	})
	out := make([]Departure, 0, len(leaving))
	for i := range leaving {
		out = append(out, w.depart(&leaving[i]))
	}
	return out
}

func compareVMs(a, b *VM) int {
	return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
}

// depart finds a place for one VM and lets it go there.
func (w *world) depart(vm *VM) Departure {
	if why := vm.fixed(); why != "" {
		return Departure{VM: *vm, Problem: problem.New(problem.Conflict, "vm %q stays where it is", vm.Name).Because("%s", why)}
	}
	req := vm.Request
	req.At = vm.Node
	req.Exclude = maps.Clone(req.Exclude)
	if req.Exclude == nil {
		req.Exclude = map[string]string{}
	}
	req.Exclude[vm.Node] = "the VM is to leave it"
	d, err := Place(w.nodes, req)
	if err != nil {
		return Departure{VM: *vm, Decision: d, Problem: problem.From(err)}
	}
	w.move(vm, w.node(d.Node))
	return Departure{VM: *vm, Decision: d}
}

// fixed returns why the VM cannot go anywhere, whatever the other nodes are like, or "".
func (vm *VM) fixed() string {
	switch {
	case vm.Stays != "":
		return vm.Stays
	case vm.Request.NodeID != "" && vm.Request.NodeID == vm.Node:
		return "it is pinned to this node"
	default:
		return ""
	}
}
