package fault

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/fence"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/volume"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Node is one compute node.
type Node struct {
	ID, Name string
	Compute  *compute.Fake
	Fence    fence.Fake

	disks  *disks
	source storage.Source
	peers  storage.Peers
	host   *activities.Host

	dead     bool      // its agent takes no work any more; its guests may run on
	noFence  bool      // its fence device is dead, too
	leaseEnd time.Time // when its guardian stops its HA VMs; zero: never
}

// Alive reports whether the node's agent takes work.
func (n *Node) Alive() bool { return !n.dead }

func (n *Node) uri() string { return "fake://" + n.Name }

func (w *World) addNode(id, name string, d *disks) *Node {
	n := &Node{ID: id, Name: name, Compute: &compute.Fake{}, disks: d, source: w.images, peers: &w.peers, host: &activities.Host{Log: quiet, Hook: w.hook}}
	n.Fence.On()
	n.Fence.Cut = func() { n.powerOff(context.Background(), nil) }
	d.NetDir, d.Net = netDir, w.net
	n.Compute.Backing = d.Fake
	d.InUse = func(vm string) bool {
		phase, err := n.Compute.State(context.Background(), vm)
		return err == nil && phase != api.PhaseStopped
	}
	d.VolumeInUse = n.Compute.Writes
	n.Compute.Tear(unheard, w.tear)
	n.Compute.Busy(later, w.write)
	w.rack.Plug(n.uri(), n.Compute)
	n.Compute.OnMove(func(_ string, at compute.MovePoint) compute.MoveFate {
		w.watch(context.Background())
		if w.Fate == nil {
			return compute.MoveGoesOn
		}
		return w.Fate(at)
	})
	w.Nodes = append(w.Nodes, n)
	return n
}

// cloneTo makes a node of w that has the same things.
func (n *Node) cloneTo(ctx context.Context, w *World) error {
	c := w.addNode(n.ID, n.Name, n.disks.clone())
	c.Compute.Inv, c.dead, c.leaseEnd = n.Compute.Inv, n.dead, n.leaseEnd
	if n.noFence {
		c.killFence()
	}
	domains, err := n.Compute.List(ctx)
	if err != nil {
		return err
	}
	for _, d := range domains {
		if !d.Ours {
			c.Compute.AddStranger(d.ID, d.Name)
			continue
		}
		plan, files := steps.VMPlan{VM: d.ID, HA: n.Compute.HA(d.ID)}, compute.DomainFiles{Disk: compute.QCOW2("disk")}
		if d.Phase == api.PhaseStopped {
			err = c.Compute.Define(ctx, plan, files)
		} else {
			err = c.Compute.Create(ctx, plan, files)
		}
		if err != nil {
			return err
		}
		c.Compute.SetDisks(d.ID, n.Compute.Disks(d.ID))
		c.Compute.Remember(d.ID, n.Compute.Memory(d.ID))
	}
	return nil
}

// powerOff stops the guests of a node, or those that may be; nil: all.
func (n *Node) powerOff(ctx context.Context, may func(vm string) bool) {
	domains, _ := n.Compute.List(ctx)
	for _, d := range domains {
		if d.Phase != api.PhaseStopped && (may == nil || may(d.ID)) {
			n.Compute.PowerOff(d.ID)
		}
	}
}

func (n *Node) killFence() {
	n.noFence = true
	n.Fence.Kill(true)
}

// watch looks whether a VM runs on two nodes at this moment, which must never be. Guardians do their work before.
func (w *World) watch(ctx context.Context) {
	on := map[string][]string{}
	for _, n := range w.Nodes {
		if !n.leaseEnd.IsZero() && !w.now.get().Before(n.leaseEnd) {
			n.powerOff(ctx, n.Compute.HA)
		}
		domains, _ := n.Compute.List(ctx)
		for _, d := range domains {
			if d.Phase == api.PhaseRunning {
				on[d.ID] = append(on[d.ID], n.Name)
			}
		}
	}
	for id, nodes := range on {
		// The nodes were asked one after the other, and the guest may have gone from one to the next meanwhile.
		if first := w.node(nodes[0]); len(nodes) < 2 || !first.runs(ctx, id) {
			continue
		}
		what := fmt.Sprintf("vm %s ran on %v at the same time", id, nodes)
		w.mu.Lock()
		if !slices.Contains(w.twins, what) {
			w.twins = append(w.twins, what)
		}
		w.mu.Unlock()
	}
}

func (n *Node) runs(ctx context.Context, vm string) bool {
	phase, err := n.Compute.State(ctx, vm)
	return err == nil && phase == api.PhaseRunning
}

// Register registers the steps of a node, as its agent does.
func (n *Node) Register(reg activities.Registry) {
	compute.Register(reg, n.host, n.Compute, n.disks)
	storage.RegisterNode(reg, n.host, n.disks, n.source, n.peers)
	volume.Register(reg, n.host, n.Compute, n.disks)
	activities.Implement(reg, n.host, steps.LookAtNode, func(ctx context.Context, _ steps.Token, _ steps.NodeQuestion) (steps.NodeWorld, error) {
		return n.look(ctx)
	})
	activities.Implement(reg, n.host, steps.RepairNode, n.repair)
}

func (n *Node) look(ctx context.Context) (steps.NodeWorld, error) {
	domains, err := n.Compute.List(ctx)
	if err != nil {
		return steps.NodeWorld{}, err
	}
	files, err := n.disks.list(ctx)
	if err != nil {
		return steps.NodeWorld{}, err
	}
	secrets, err := n.Compute.ListSecrets(ctx)
	return steps.NodeWorld{Agent: n.ID, AgentName: n.Name, Domains: domains, Files: files, Unread: n.disks.unread(ctx), Secrets: secrets}, err
}

func (n *Node) repair(ctx context.Context, _ steps.Token, in steps.NodeRepair) (steps.Nothing, error) {
	for _, id := range in.Domains {
		if err := n.Compute.Remove(ctx, id); err != nil {
			return steps.Nothing{}, err
		}
	}
	for _, id := range in.Secrets {
		if err := n.Compute.DropSecret(ctx, id); err != nil {
			return steps.Nothing{}, err
		}
	}
	return steps.Nothing{}, n.disks.repair(ctx, in.Files, in.Pools)
}

// Wrong says what must not be, whatever has happened: each VM that should run has one guest, on the node that its record names,
// and its ports are bound there; one that should not has none. What a dead node has counts as long as it runs.
func (w *World) Wrong(ctx context.Context) ([]string, error) {
	w.watch(ctx)
	w.mu.Lock()
	out := slices.Clone(w.twins)
	w.mu.Unlock()
	running, defined := map[string][]string{}, map[string][]string{}
	for _, n := range w.Nodes {
		domains, err := n.Compute.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, d := range domains {
			if d.Phase != api.PhaseStopped {
				running[d.ID] = append(running[d.ID], n.ID)
			}
			if !n.dead {
				defined[d.ID] = append(defined[d.ID], n.ID)
			}
		}
	}
	chassis := map[string][]string{}
	inv, err := w.Network.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range inv.Items {
		if i.Port != nil {
			chassis[i.ID] = i.Port.Chassis
		}
	}
	vms, err := store.List[api.VM](ctx, w.KV, w.User, "*")
	if err != nil {
		return nil, err
	}
	lost, err := w.unheard(ctx)
	if err != nil {
		return nil, err
	}
	out = append(out, lost...)
	for _, vm := range vms {
		home := w.node(vm.Status.Agent)
		say := func(format string, args ...any) {
			out = append(out, fmt.Sprintf("vm %s (%s on %s) ", vm.Name, vm.Status.Phase, vm.Status.AgentName)+fmt.Sprintf(format, args...))
		}
		if home == nil || vm.Operation != "" || vm.Status.MovingTo != "" {
			say("is on no node, or on its way to %q, or held by operation %q", vm.Status.MovingTo, vm.Operation)
			continue
		}
		for _, nic := range vm.Spec.NICs {
			if got := chassis[nic.Port]; len(got) != 1 || got[0] != home.Name {
				say("has port %s bound to %v", nic.Port, got)
			}
		}
		if home.dead {
			continue
		}
		for _, k := range home.Compute.Disks(vm.ID) {
			if k.Stray {
				say("has volume %s, and libvirt does not know of it", k.Volume)
			}
		}
		if !slices.Equal(defined[vm.ID], []string{home.ID}) {
			say("has domains on %v", w.names(defined[vm.ID]))
		}
		if home.Compute.HA(vm.ID) != vm.Spec.HA {
			say("has a domain that says ha: %v", !vm.Spec.HA)
		}
		want := []string{home.ID}
		if vm.Status.Phase == api.PhaseStopped {
			want = nil
		}
		if !slices.Equal(running[vm.ID], want) {
			say("runs on %v", w.names(running[vm.ID]))
		}
	}
	return out, nil
}

func (w *World) names(ids []string) (out []string) {
	for _, id := range ids {
		out = append(out, w.node(id).Name)
	}
	return out
}
