// Package placement decides which node a VM goes to. It is pure: the same nodes and the same request give the same
// decision, in any order of the nodes, so that a decision can be repeated, planned and explained.
package placement

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// UnknownSpace stands in Node.Pools for a pool that the node has but has not reported on yet: any disk fits.
const UnknownSpace int64 = -1

// Node is what placement knows of a node.
type Node struct {
	ID             string
	Name           string
	Ready          bool
	Reason         string // why it is not ready
	Arch           string
	Cores          int
	Memory         int64            // bytes, all of it
	ReservedMemory int64            // bytes kept for the host itself
	CPURatio       float64          // vCPUs that may be promised per core
	Claimed        api.Amount       // promised to VMs
	Pools          map[string]int64 // pool ID -> free bytes, or UnknownSpace
	Labels         map[string]string
}

// Request is what a VM needs.
type Request struct {
	VM     string // its name, for messages
	Amount api.Amount
	Pool   string // ID of the pool of its disk; empty: any node has it
	Disk   int64  // bytes that the disk needs in the pool at once
	Arch   string // empty: any
}

// Decision is where a VM goes and why.
type Decision struct {
	Node    string      `json:"node"` // ID of the first of Ranked; empty if there is none
	Ranked  []Candidate `json:"ranked,omitempty"`
	Refused []Refusal   `json:"refused,omitempty"` // by name
}

// Candidate is a node that has room. Loads are fractions of what may be promised, from 0 to 1, with the VM on the node.
type Candidate struct {
	Node   string  `json:"node"` // ID
	Name   string  `json:"name"`
	Memory float64 `json:"memory"`
	VCPUs  float64 `json:"vcpus"`
}

// Refusal is a node that cannot take the VM.
type Refusal struct {
	Node   string `json:"node"` // ID
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Place ranks the nodes that can take the VM, the least loaded first: by memory, which cannot be shared, then by vCPUs, then
// by name. If there is none, the error is a no_capacity problem that tells of each node why, and the decision still holds
// what was refused. A request that makes no sense is an invalid problem.
func Place(nodes []Node, req Request) (Decision, error) {
	if req.Amount.VCPUs < 1 || req.Amount.Memory < 1 || req.Disk < 0 {
		return Decision{}, problem.New(problem.Invalid, "vm %q cannot be placed", req.VM).
			Because("it asks for %d vCPUs, %d bytes of memory and %d bytes of disk", req.Amount.VCPUs, req.Amount.Memory, req.Disk).
			Try("ask for at least one vCPU and some memory")
	}
	var d Decision
	for i := range nodes {
		n := &nodes[i]
		if reason := refuse(n, req); reason != "" {
			d.Refused = append(d.Refused, Refusal{Node: n.ID, Name: n.Name, Reason: reason})
			continue
		}
		d.Ranked = append(d.Ranked, Candidate{
			Node: n.ID, Name: n.Name,
			Memory: float64(n.Claimed.Memory+req.Amount.Memory) / float64(n.Memory-n.ReservedMemory),
			VCPUs:  float64(n.Claimed.VCPUs+req.Amount.VCPUs) / float64(n.vcpus()),
		})
	}
	slices.SortFunc(d.Ranked, func(a, b Candidate) int {
		return cmp.Or(cmp.Compare(a.Memory, b.Memory), cmp.Compare(a.VCPUs, b.VCPUs), strings.Compare(a.Name, b.Name), strings.Compare(a.Node, b.Node))
	})
	slices.SortFunc(d.Refused, func(a, b Refusal) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Node, b.Node), strings.Compare(a.Reason, b.Reason))
	})
	if len(d.Ranked) == 0 {
		return d, noCapacity(req, d.Refused)
	}
	d.Node = d.Ranked[0].Node
	return d, nil
}

// vcpus returns how many vCPUs may be promised on n.
func (n *Node) vcpus() int {
	limit := math.Floor(float64(n.Cores) * n.CPURatio)
	if !(limit >= 1) { // a ratio that is no number included
		return 0
	}
	return int(min(limit, math.MaxInt32))
}

// refuse returns why n cannot take the VM, or "". Sums are written as differences, which cannot overflow for amounts that
// are not negative.
func refuse(n *Node, req Request) string {
	switch {
	case !n.Ready && n.Reason != "":
		return "not ready: " + n.Reason
	case !n.Ready:
		return "not ready"
	case req.Arch != "" && req.Arch != n.Arch:
		return fmt.Sprintf("is %s, not %s", orUnknown(n.Arch), req.Arch)
	case n.Cores < 0 || n.Memory < 0 || n.ReservedMemory < 0 || n.Claimed.VCPUs < 0 || n.Claimed.Memory < 0:
		return "its inventory makes no sense: a quantity is negative"
	}
	if req.Pool != "" {
		free, has := n.Pools[req.Pool]
		switch {
		case !has:
			return "does not have the pool"
		case free != UnknownSpace && free < req.Disk:
			return fmt.Sprintf("the pool has %s free, %s needed", size(max(free, 0)), size(req.Disk))
		}
	}
	if free := n.Memory - n.ReservedMemory - n.Claimed.Memory; free < req.Amount.Memory {
		return fmt.Sprintf("%s of memory free, %s needed", size(max(free, 0)), size(req.Amount.Memory))
	}
	if free := n.vcpus() - n.Claimed.VCPUs; free < req.Amount.VCPUs {
		return fmt.Sprintf("%d vCPUs free, %d needed", max(free, 0), req.Amount.VCPUs)
	}
	return ""
}

func orUnknown(s string) string {
	if s == "" {
		return "of unknown architecture"
	}
	return s
}

// size writes bytes for people. Nothing is rounded: "4 GiB free, 4 GiB needed" would explain nothing.
func size(n int64) string {
	switch {
	case n >= api.GiB && n%api.GiB == 0:
		return fmt.Sprintf("%d GiB", n/api.GiB)
	case n >= api.MiB && n%api.MiB == 0:
		return fmt.Sprintf("%d MiB", n/api.MiB)
	default:
		return fmt.Sprintf("%d bytes", n)
	}
}

// explained is how many nodes are named one by one in a problem; of the others there is only the number.
const explained = 32

func noCapacity(req Request, refused []Refusal) error {
	p := problem.New(problem.NoCapacity, "no node can take vm %q", req.VM)
	if len(refused) == 0 {
		return p.Because("there are no nodes").Try("add one: run gnext agent run on it")
	}
	reasons := make([]string, 0, explained+1)
	for _, r := range refused[:min(len(refused), explained)] {
		reasons = append(reasons, r.Name+": "+r.Reason)
	}
	if more := len(refused) - explained; more > 0 {
		reasons = append(reasons, fmt.Sprintf("and %d more nodes", more))
	}
	return p.Because("%s", strings.Join(reasons, "; ")).Try("ask for less, delete what is not needed, or add a node")
}
