package placement

import (
	"fmt"
	"slices"

	"github.com/nextstack/nextstack/api"
)

// filter is one thing that a node must be or have. Whether it passes is asked of every node, and allocates nothing; why it
// does not is asked only of the few that are told of.
type filter struct {
	name   string // of those that do not pass, for counting them
	passes func(n *Node, q *query) bool
	why    func(n *Node, q *query) string
}

const notAskedFor = "not asked for"

// filters stand in the order in which their reasons matter: what the request rules out, what an operator can see at a glance,
// what the machine is, what it has room for, and who is there already.
var filters = []filter{
	{notAskedFor, isAskedFor, sayAskedFor},
	{"excluded", isIncluded, sayExcluded},
	{"not ready", isReady, sayNotReady},
	{"cordoned", takesVMs, sayCordoned},
	{"with an inventory that makes no sense", isSane, sayInsane},
	{"of another architecture", hasArch, sayArch},
	{"without the CPU model", hasCPUModel, sayCPUModel},
	{"without the labels", hasLabels, sayLabels},
	{"without the pool", hasPool, sayNoPool},
	{"with too little space in the pool", hasSpace, saySpace},
	{"without the pools of its volumes", hasPools, sayNoPools},
	{"with too little space in the pools of its volumes", haveSpace, sayTooFull},
	{"without network", hasNetwork, sayNoNetwork},
	{"with too little memory", hasMemory, sayMemory},
	{"with too few vCPUs", hasVCPUs, sayVCPUs},
	{"ruled out by the vm group", obeysGroup, sayGroup},
}

// refusing returns the index of the first filter that n does not pass, or -1.
func (q *query) refusing(n *Node) int {
	for i := range filters {
		if !filters[i].passes(n, q) {
			return i
		}
	}
	return -1
}

func isAskedFor(n *Node, q *query) bool { return q.NodeID == "" || n.ID == q.NodeID }

func sayAskedFor(_ *Node, q *query) string {
	if q.pin == nil {
		return fmt.Sprintf("it must be on node %s, which does not exist", q.NodeID)
	}
	if q.Tie != "" {
		return fmt.Sprintf("volume %s is on node %s, in a pool that is not shared", q.Tie, q.pin.Name)
	}
	return "it must be on node " + q.pin.Name
}

func isIncluded(n *Node, q *query) bool {
	if len(q.Exclude) == 0 {
		return true
	}
	_, out := q.Exclude[n.ID]
	return !out
}

func sayExcluded(n *Node, q *query) string {
	if reason := q.Exclude[n.ID]; reason != "" {
		return reason
	}
	return "excluded"
}

func isReady(n *Node, _ *query) bool { return n.Ready }

func sayNotReady(n *Node, _ *query) string {
	state := "not ready"
	if n.Phase != "" && n.Phase != api.PhaseReady {
		state = string(n.Phase)
	}
	return withReason(state, n.Reason)
}

func takesVMs(n *Node, _ *query) bool { return !n.Cordoned }

func sayCordoned(n *Node, _ *query) string { return withReason("cordoned", n.CordonReason) }

func withReason(state, reason string) string {
	if reason == "" {
		return state
	}
	return state + ": " + reason
}

func isSane(n *Node, _ *query) bool { return n.sane() }

func sayInsane(*Node, *query) string { return "its inventory makes no sense: a quantity is negative" }

func hasArch(n *Node, q *query) bool { return q.Arch == "" || n.Arch == q.Arch }

func sayArch(n *Node, q *query) string {
	if n.Arch == "" {
		return fmt.Sprintf("its architecture is not known, %s needed", q.Arch)
	}
	return fmt.Sprintf("is %s, %s needed", n.Arch, q.Arch)
}

func hasCPUModel(n *Node, q *query) bool {
	return q.CPUModel == "" || slices.Contains(n.CPUModels, q.CPUModel)
}

func sayCPUModel(n *Node, q *query) string {
	if len(n.CPUModels) == 0 {
		return fmt.Sprintf("has told of no CPU models, %s needed", q.CPUModel)
	}
	return fmt.Sprintf("cannot give guests the CPU model %s", q.CPUModel)
}

func hasLabels(n *Node, q *query) bool { return q.missing(n) == nil }

// missing returns the first label that n lacks or has with another value, or nil.
func (q *query) missing(n *Node) *label {
	for i := range q.labels {
		if v, ok := n.Labels[q.labels[i].key]; !ok || v != q.labels[i].value {
			return &q.labels[i]
		}
	}
	return nil
}

func sayLabels(n *Node, q *query) string {
	l := q.missing(n)
	if v, ok := n.Labels[l.key]; ok {
		return fmt.Sprintf("label %s is %q, %q needed", l.key, v, l.value)
	}
	return fmt.Sprintf("has no label %s, %q needed", l.key, l.value)
}

func hasPool(n *Node, q *query) bool {
	if q.Pool == "" {
		return true
	}
	_, has := n.Pools[q.Pool]
	return has
}

func sayNoPool(*Node, *query) string { return "does not have the pool" }

func hasSpace(n *Node, q *query) bool {
	if q.Pool == "" {
		return true
	}
	free := n.Pools[q.Pool]
	return free == UnknownSpace || free >= q.Disk
}

func saySpace(n *Node, q *query) string {
	return fmt.Sprintf("the pool has %s free, %s needed", sizeDown(n.Pools[q.Pool]), sizeUp(q.Disk))
}

func hasPools(n *Node, q *query) bool { return len(q.Also) == 0 || q.without(n) == "" }

func sayNoPools(n *Node, q *query) string {
	return fmt.Sprintf("does not have pool %s, which a volume of the VM is in", q.without(n))
}

func haveSpace(n *Node, q *query) bool { return len(q.Also) == 0 || q.tooFull(n) == nil }

func sayTooFull(n *Node, q *query) string {
	p := q.tooFull(n)
	return fmt.Sprintf("pool %s has %s free, %s needed", p.Name, sizeDown(n.Pools[p.ID]), sizeUp(q.needed(p)))
}

// needed is what all disks in a pool need together.
func (q *query) needed(p *Pool) int64 {
	if p.ID == q.Pool {
		return p.Space + q.Disk
	}
	return p.Space
}

// tooFull returns the first of the pools of volumes that has no room for them, or nil.
func (q *query) tooFull(n *Node) *Pool {
	for i := range q.Also {
		p := &q.Also[i]
		if free, has := n.Pools[p.ID]; has && p.Space > 0 && free != UnknownSpace && free < q.needed(p) {
			return p
		}
	}
	return nil
}

func hasNetwork(n *Node, q *query) bool { return n.Network || !q.Network }

func sayNoNetwork(*Node, *query) string { return "its switch is not part of the network" }

func hasMemory(n *Node, q *query) bool { return n.memoryFree() >= q.Amount.Memory }

func sayMemory(n *Node, q *query) string {
	return fmt.Sprintf("%s of memory free, %s needed", sizeDown(n.memoryFree()), sizeUp(q.Amount.Memory))
}

func hasVCPUs(n *Node, q *query) bool { return n.vcpusFree() >= q.Amount.VCPUs }

func sayVCPUs(n *Node, q *query) string {
	return fmt.Sprintf("%s free, %d needed", plural(max(n.vcpusFree(), 0), "vCPU"), q.Amount.VCPUs)
}

// obeysGroup is about hard rules. The first VM of a group that stays together may go anywhere.
func obeysGroup(n *Node, q *query) bool {
	switch {
	case q.Group.ID == "" || q.Group.Soft:
		return true
	case q.Group.Policy == api.AntiAffinity:
		return q.others(n) == 0
	default:
		return q.anchor == "" || q.others(n) > 0
	}
}

func sayGroup(n *Node, q *query) string {
	if q.Group.Policy == api.AntiAffinity {
		return fmt.Sprintf("has %s of its vm group, which must be kept apart", plural(q.others(n), "VM"))
	}
	return fmt.Sprintf("its vm group must stay together, and is on node %s", q.anchor)
}
