package stack

import (
	"context"
	"fmt"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
)

// Leaks looks at every node itself for what belongs to nothing that there is, and for what should be there and is not: domains and
// their disks, QEMU processes, all that pools keep of volumes, snapshots, checkpoints and seeds, ports of the integration bridge,
// claims. The audit of the control plane looks, too, but it is the one that is under test. Nothing may be under way meanwhile.
// Nodes without power are not asked.
func (s *Stack) Leaks(ctx context.Context) ([]string, error) {
	var found []string
	leak := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	vms := map[string]*api.VM{} // by ID
	claimed := map[string]api.Amount{}
	ports := map[string]string{} // agent ID by port ID
	for vm, err := range client.All[*api.VM](ctx, s.Client, "", client.ListOptions{}) {
		if err != nil {
			return nil, err
		}
		vms[vm.ID] = vm
		c := claimed[vm.Status.Agent]
		claimed[vm.Status.Agent] = api.Amount{VCPUs: c.VCPUs + vm.Spec.VCPUs, Memory: c.Memory + vm.Spec.Memory}
	}
	for p, err := range client.All[*api.Port](ctx, s.Client, "", client.ListOptions{}) {
		if err != nil {
			return nil, err
		}
		if vm := vms[p.Spec.VM]; vm != nil {
			ports[p.ID] = vm.Status.Agent
		}
	}
	for _, h := range s.Hosts {
		a, err := h.Record(ctx)
		if err != nil {
			return nil, err
		}
		if want := claimed[a.ID]; a.Status.Claimed != want {
			leak("%s: %+v is claimed, its VMs have %+v", h.Name, a.Status.Claimed, want)
		}
		if !h.Powered() {
			continue
		}
		domains, err := h.Domains(ctx)
		if err != nil {
			return nil, err
		}
		for id := range domains {
			if vm := vms[id]; vm == nil || vm.Status.Agent != a.ID {
				leak("%s: domain %s is not of a VM of this node", h.Name, id)
			}
		}
		for id, vm := range vms {
			if running, defined := domains[id]; vm.Status.Agent == a.ID && (!defined || running != (vm.Status.Phase == api.PhaseRunning)) {
				leak("%s: vm %s is %s; defined: %t, running: %t", h.Name, vm.Name, vm.Status.Phase, defined, running)
			}
		}
		plugged, err := h.ports(ctx)
		if err != nil {
			return nil, err
		}
		for _, id := range plugged {
			if ports[id] != a.ID {
				leak("%s: port %s is plugged in, and not of a VM of this node", h.Name, id)
			}
		}
	}
	more, err := s.diskLeaks(ctx, vms)
	if err != nil {
		return nil, err
	}
	found = append(found, more...)
	for id, vm := range vms {
		q, err := s.QEMUs(id)
		if err != nil {
			return nil, err
		}
		if want := map[bool]int{true: 1}[vm.Status.Phase == api.PhaseRunning]; len(q) != want {
			leak("vm %s is %s and has these processes: %+v", vm.Name, vm.Status.Phase, q)
		}
	}
	return found, nil
}

// ports returns what is plugged into the node's integration bridge, but for probes.
func (h *Host) ports(ctx context.Context) ([]string, error) {
	out, err := h.Do(ctx, "ovs-vsctl", "--timeout=20", "--bare", "--no-headings", "--format=csv", "--columns=name,external_ids", "find", "interface", "external_ids:iface-id!=x")
	if err != nil {
		return nil, err
	}
	var ids []string
	for line := range strings.Lines(out) {
		if _, rest, ok := strings.Cut(line, "iface-id="); ok && !strings.HasPrefix(line, "pr-") {
			ids = append(ids, strings.FieldsFunc(rest, func(r rune) bool { return strings.ContainsRune(" ,\"\n}", r) })[0])
		}
	}
	return ids, nil
}
