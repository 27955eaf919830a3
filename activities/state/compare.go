package state

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

// The sides of a finding.
const (
	sideStore   = "store"
	sideLibvirt = "libvirt"
	sidePool    = "pool"
	sideOVS     = "ovs"
	sideOVN     = "ovn"
	sideImages  = "images"
)

// Kinds of findings in the store that a repair treats differently.
const (
	kindClaim = "claim"
	kindLock  = "lock"
)

// comparison holds the books against the world. It reads nothing by itself.
type comparison struct {
	*books
	home   map[string]bool // IDs of the VMs whose domain was seen on their own node
	told   map[string]bool // files of shared pools that are in the report: each of the pool's agents sees them
	layers map[string]layer
	seenIn map[string]bool // files of volumes that were seen, by pool and name
	// notRead are pools that nodes could not look into, by pool and agent.
	notRead map[string]bool
	report  api.AuditReport
}

func (c *comparison) find(f api.Finding) { c.report.Findings = append(c.report.Findings, f) }

// extra notes a thing of the world that no record asks for.
func (c *comparison) extra(side, kind, id, node, path, what string) {
	c.find(api.Finding{Side: side, Kind: kind, ID: id, Node: node, Path: path, Extra: true, Problem: what + ", and no record asks for it", Fix: "remove it"})
}

// missing notes a thing that a record asks for and that is not there.
func (c *comparison) missing(side, kind, id, node, what string) {
	c.find(api.Finding{Side: side, Kind: kind, ID: id, Node: node, Problem: what + " is missing", Fix: "nothing: what was lost must be restored or deleted by a person"})
}

func (c *comparison) domains(n steps.NodeWorld) {
	seen := map[string]bool{}
	for _, d := range n.Domains {
		if !d.Ours {
			continue
		}
		c.report.Checked["domain"]++
		seen[d.ID] = true
		switch vm := c.vms[d.ID]; {
		case c.moving[d.ID], vm != nil && vm.Status.Agent == n.Agent:
		case vm != nil && !c.home[d.ID]: // it is the only one that was seen, as when a node has joined under another name
			c.find(api.Finding{
				Side: sideLibvirt, Kind: "domain", ID: d.ID, Node: n.Agent, Problem: "the domain of vm " + vm.Name + " is on " + n.AgentName + ", and was not seen where it should be",
				Fix: "nothing: a person must see which of the two nodes is right",
			})
		default:
			c.extra(sideLibvirt, "domain", d.ID, n.Agent, "", "domain "+d.Name+" exists on "+n.AgentName)
		}
	}
	for id, vm := range c.vms {
		if vm.Status.Agent == n.Agent && !seen[id] && !c.moving[id] {
			c.missing(sideLibvirt, "domain", id, n.Agent, "the domain of vm "+vm.Name)
		}
	}
}

func (c *comparison) files(n steps.NodeWorld) {
	seen, unread := map[string]bool{}, c.unread(n)
	for pool := range unread {
		c.notRead[pool+"/"+n.Agent] = true
	}
	for _, f := range n.Files {
		c.report.Checked[f.Kind]++
		if named(f) {
			c.snapshot(n, f)
			continue
		}
		seen[f.Kind+f.ID] = true
		l, known := c.layers[f.ID]
		if f.Kind == "volume" || f.Kind == kindMemory {
			c.seenIn[f.Pool+"/"+f.ID] = true
		}
		if c.moving[f.ID] || f.Kind == "volume" && known && c.layerMoving(f.ID, l) {
			continue
		}
		if c.fileOwned(f) {
			c.astray(n, f)
			continue
		}
		if f.Kind != "volume" && f.Kind != "seed" && f.Kind != kindMemory && c.active {
			continue // it may be the half-made file of a running operation
		}
		if !c.first(f) {
			continue
		}
		c.extra(sidePool, f.Kind, f.ID, n.Agent, f.Path, fmt.Sprintf("%s file %s exists on %s", f.Kind, f.Path, n.AgentName))
	}
	for name, l := range c.layers {
		if l.volume.Status.Agent == n.Agent && !c.sharedPool(l.volume.Spec.Pool) && !seen["volume"+name] && !c.layerMoving(name, l) && !unread[l.volume.Spec.Pool] {
			c.missing(sidePool, "volume", name, n.Agent, l.what())
		}
	}
	c.memories(n, unread)
	c.disks(n)
}

// fileOwned does not ask on which node the file was seen: agents may share a directory, and each of them sees all that is in it.
func (c *comparison) fileOwned(f steps.FileFound) bool {
	switch f.Kind {
	case "volume":
		l, known := c.layers[f.ID]
		return known && l.volume.Spec.Pool == f.Pool
	case "seed":
		vm := c.vms[f.ID]
		return vm != nil && vm.Spec.Pool == f.Pool
	case kindMemory:
		cp := c.checkpoints[f.ID]
		return cp != nil && cp.Status.Pool == f.Pool
	case "backing":
		for _, img := range c.images {
			if img.Status.SHA256 == f.ID {
				return true
			}
		}
	}
	return false
}

func (c *comparison) sharedPool(id string) bool {
	p := c.pools[id]
	return p != nil && p.Spec.Shared
}

// astray notes a file that a record asks for, but on another node: what a move has left behind, say. It is never removed by a
// repair: should the two nodes share the directory though the pool does not say so, it is the only one there is.
func (c *comparison) astray(n steps.NodeWorld, f steps.FileFound) {
	owner := ""
	switch f.Kind {
	case "volume":
		owner = c.layers[f.ID].volume.Status.Agent
	case "seed":
		owner = c.vms[f.ID].Status.Agent
	case kindMemory:
		owner = c.memoryAgent(c.checkpoints[f.ID])
	}
	if owner == "" || owner == n.Agent || c.sharedPool(f.Pool) {
		return
	}
	c.find(api.Finding{
		Side: sidePool, Kind: f.Kind, ID: f.ID, Node: n.Agent, Path: f.Path, Problem: fmt.Sprintf("%s file %s is on %s, and belongs on another node", f.Kind, f.Path, n.AgentName),
		Fix: "nothing: a person must see whether it is a copy",
	})
}

func (c *comparison) ovsPorts(n steps.NodeWorld) {
	for _, p := range n.OVSPorts {
		c.report.Checked["ovs port"]++
		// Ours are called by their port's ID; other names are of interfaces that somebody else has bound.
		if c.ports[p.Port] == nil && !c.moving[p.Port] && api.IsUUID(p.Port) {
			c.extra(sideOVS, "port", p.Name, n.Agent, "", fmt.Sprintf("interface %s of port %s exists on %s", p.Name, p.Port, n.AgentName))
		}
	}
}

// keys are those that hypervisors open disks with; a node forgets that of a pool it has no more.
func (c *comparison) keys(n steps.NodeWorld) {
	for _, id := range n.Secrets {
		c.report.Checked["secret"]++
		if p := c.pools[id]; (p == nil || !slices.Contains(p.Spec.Agents, n.Agent)) && !c.moving[id] {
			c.extra(sideLibvirt, "secret", id, n.Agent, "", "the key of pool "+id+" is known to the hypervisor of "+n.AgentName)
		}
	}
}

func (c *comparison) network(rows []Row) {
	seen := map[string]bool{}
	kinds := map[string]api.Kind{"vpc": api.KindVPC, "subnet": api.KindSubnet, "port": api.KindPort, "security-group": api.KindSecurityGroup}
	for _, r := range rows {
		c.report.Checked["network row"]++
		seen[r.ID] = true
		if owner := c.all[r.ID]; (owner == nil || owner.ResourceKind() != kinds[r.Kind]) && !c.moving[r.ID] {
			c.extra(sideOVN, r.Kind, r.ID, "", "", r.What+" exists")
			continue
		}
		for _, d := range r.Defects {
			if !c.moving[r.ID] {
				c.find(api.Finding{Side: sideOVN, Kind: r.Kind, ID: r.ID, Problem: r.What + ": " + d, Fix: "correct its rows"})
			}
		}
	}
	for id, r := range c.all {
		for word, kind := range kinds {
			if r.ResourceKind() == kind && !seen[id] && !c.moving[id] {
				c.missing(sideOVN, word, id, "", "the network part of "+kind.Singular()+" "+r.GetMeta().Name)
			}
		}
	}
}

func (c *comparison) imageFiles(stored []string) {
	seen := map[string]bool{}
	for _, id := range stored {
		c.report.Checked["image file"]++
		seen[id] = true
		if op := c.ops[id]; op != nil && op.Kind == api.OpVolumeExport && op.State == api.OpSucceeded {
			continue // what it has made is kept for a while
		}
		if c.images[id] == nil && !c.moving[id] {
			c.extra(sideImages, "image", id, "", "", "the file of image "+id+" exists")
		}
	}
	for id, img := range c.images {
		if !seen[id] && !c.moving[id] {
			c.missing(sideImages, "image", id, "", "the file of image "+img.Name)
		}
	}
}

// claims checks that every claim belongs to a record that would make it, and that no record lacks one that it must have.
func (c *comparison) claims() {
	due := c.due()
	for _, e := range append(c.books.claims, c.secrets...) {
		c.report.Checked["claim"]++
		owner, ok := due[e.Key]
		if ok && (owner.value == "" || owner.value == string(e.Value)) {
			delete(due, e.Key)
			c.counted(e, owner.owner)
			continue
		}
		if c.claimMoving(e) {
			delete(due, e.Key)
			continue
		}
		c.find(api.Finding{Side: sideStore, Kind: kindClaim, ID: e.Key, Extra: true, Problem: "claim " + e.Key + " exists, and no record has it", Fix: "remove it"})
	}
	for key, d := range due {
		if !c.moving[d.owner] {
			c.find(api.Finding{Side: sideStore, Kind: kindClaim, ID: key, Problem: "claim " + key + " is missing", Fix: "nothing: tell the developers how it came to this"})
		}
	}
}

// counted checks that a VM counts for the group that it belongs to, and for no other.
func (c *comparison) counted(e store.Entry, owner string) {
	vm := c.vms[owner]
	if vm == nil || c.moving[owner] || !strings.HasPrefix(e.Key, store.NodesRoot) {
		return
	}
	var p admission.Promise
	if json.Unmarshal(e.Value, &p) == nil && p.Group == vm.Spec.Group && p.Joins == "" {
		return
	}
	c.find(api.Finding{
		Side: sideStore, Kind: kindClaim, ID: e.Key, Problem: "claim " + e.Key + " counts vm " + vm.Name + " for another group than its own",
		Fix: "nothing: tell the developers how it came to this",
	})
}

// claimMoving reports whether an operation that runs may own the claim.
func (c *comparison) claimMoving(e store.Entry) bool {
	for id := range c.moving {
		if strings.Contains(e.Key, id) || string(e.Value) == id {
			return true
		}
	}
	return false
}

// dueClaim is a claim that must exist.
type dueClaim struct{ owner, value string }

// due returns every claim that the records ask for.
func (c *comparison) due() map[string]dueClaim {
	out := map[string]dueClaim{}
	for id, r := range c.all {
		m := r.GetMeta()
		if m.Name != "" {
			out[store.NameClaim(r.ResourceKind(), m.Project, m.Name)] = dueClaim{id, id}
		}
		uses := func(kind api.Kind, used string) {
			out[store.UseClaim(api.Ref{Kind: kind, ID: used}, api.RefTo(r))] = dueClaim{owner: id}
		}
		switch r := r.(type) {
		case *api.VM:
			out[store.QuotaClaim(m.Project, id)] = dueClaim{owner: id}
			if r.Status.Agent != "" {
				out[store.NodeClaim(r.Status.Agent, id)] = dueClaim{owner: id}
			}
			if r.Status.MovingTo != "" {
				out[store.NodeClaim(r.Status.MovingTo, id)] = dueClaim{owner: id}
			}
			if r.Spec.UserData {
				out[store.SecretKey(id)] = dueClaim{owner: id}
			}
			if r.Spec.Group != "" {
				uses(api.KindVMGroup, r.Spec.Group)
			}
		case *api.Agent:
			if r.Spec.Fence != nil {
				out[store.SecretKey(id)] = dueClaim{owner: id}
			}
		case *api.Checkpoint:
			out[store.QuotaClaim(m.Project, id)] = dueClaim{owner: id}
		case *api.Snapshot:
			uses(api.KindVolume, r.Spec.Volume)
		case *api.Volume:
			if !r.Spec.Root { // which counts with its VM
				out[store.QuotaClaim(m.Project, id)] = dueClaim{owner: id}
			}
			uses(api.KindPool, r.Spec.Pool)
			if r.Spec.Image != "" {
				uses(api.KindImage, r.Spec.Image)
			}
		case *api.Subnet:
			uses(api.KindVPC, r.Spec.VPC)
		case *api.Port:
			out[store.AddressClaim(r.Spec.Subnet, r.Spec.Address)] = dueClaim{id, id}
			uses(api.KindSubnet, r.Spec.Subnet)
			for _, g := range r.Spec.SecurityGroups {
				uses(api.KindSecurityGroup, g)
			}
		case *api.Pool:
			if r.Spec.Type == api.PoolRBD {
				out[store.SecretKey(id)] = dueClaim{owner: id}
			}
			for _, agent := range r.Spec.Agents {
				out[store.PoolPathClaim(agent, r.Spec.Path)] = dueClaim{id, id}
			}
		}
	}
	return out
}

// locks checks that whoever holds a record is an operation that has not ended.
func (c *comparison) locks() {
	for id, r := range c.all {
		m := r.GetMeta()
		if m.Operation == "" {
			continue
		}
		c.report.Checked[kindLock]++
		if op := c.ops[m.Operation]; op == nil || op.State.Ended() && !op.Ended.After(c.since) {
			c.find(api.Finding{
				Side: sideStore, Kind: kindLock, ID: id, Path: string(r.ResourceKind()) + "/" + m.Project, Extra: true,
				Problem: fmt.Sprintf("%s %s is held by operation %s, which has ended", r.ResourceKind().Singular(), m.Name, m.Operation), Fix: "open the lock",
			})
		}
	}
	for id, vm := range c.vms {
		if vm.Status.MovingTo != "" && vm.Operation == "" {
			c.find(api.Finding{
				Side: sideStore, Kind: "move", ID: id, Node: vm.Status.MovingTo, Problem: "vm " + vm.Name + " is written down as moving, and no operation moves it",
				Fix: "nothing: tell the developers how it came to this",
			})
		}
	}
	for id, op := range c.ops {
		if op.State == api.OpStuck {
			c.find(api.Finding{Side: sideStore, Kind: "operation", ID: id, Problem: op.Kind + " is stuck", Fix: "nothing: see gnext op show " + id})
		}
	}
}
