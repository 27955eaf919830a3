package fault

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"time"

	"go.temporal.io/sdk/activity"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/network"
	"github.com/nextstack/nextstack/activities/state"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workers/control"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// World is a whole cloud in memory: store, control plane, network, image store and nodes.
type World struct {
	KV        *store.Memory
	Admission *admission.Admission
	Network   *network.Fake
	Nodes     []*Node
	User      auth.Handle // an administrator, who makes the requests

	// Extra registers more steps with the control plane, for operations that tests make up.
	Extra func(w *World, reg activities.Registry, host *activities.Host)
	// Tables are the operations that can run, by kind.
	Tables map[string]saga.Definition

	images *images
	peers  storage.Exchange // through which nodes hand disks to one another
	hook   activities.Hook
	host   *activities.Host
}

// Node is one compute node.
type Node struct {
	ID, Name string
	Compute  *compute.Fake

	disks  *disks
	source storage.Source
	peers  storage.Peers
	host   *activities.Host
}

// sealer hides secrets well enough for a world that ends with its test.
type sealer struct{}

// Seal implements admission.Sealer.
func (sealer) Seal(plain, aad string) ([]byte, error) { return []byte("sealed:" + aad), nil }

var quiet = slog.New(slog.DiscardHandler)

// NewWorld returns a cloud with two nodes that are ready, and nothing in it. Hook, which may be nil, is called around every
// attempt of every step.
func NewWorld(ctx context.Context, hook activities.Hook) (*World, error) {
	w := emptyWorld(hook)
	if err := w.Admission.Bootstrap(ctx); err != nil {
		return nil, err
	}
	d := store.NewDraft(auth.ControlPlane("fault"))
	project, err := store.Find[api.Project](ctx, w.KV, w.User, "", api.DefaultProject)
	if err != nil {
		return nil, err
	}
	project.Spec = api.ProjectSpec{VMs: 100, VCPUs: 1000, Memory: api.TiB, Disk: 10 * api.TiB}
	d.Update(project)
	for _, name := range []string{"a1", "a2"} {
		a := &api.Agent{
			Meta: api.Meta{ID: api.NewID(), Name: name, Created: time.Now().UTC()},
			Spec: api.AgentSpec{ReservedMemory: 512 * api.MiB, CPURatio: 4},
			Status: api.AgentStatus{Phase: api.PhaseReady, Inventory: api.Inventory{
				Hostname: name, Arch: "x86_64", Accel: "tcg", Cores: 8, Memory: 32 * api.GiB, OVNChassis: name,
			}},
		}
		d.Create(a)
		w.addNode(a.ID, name, &compute.Fake{}, newDisks())
	}
	_, err = d.Commit(ctx, w.KV)
	return w, err
}

func emptyWorld(hook activities.Hook) *World {
	w := &World{
		KV: store.NewMemory(), Network: network.NewFake(), images: newImages(),
		hook: hook, host: &activities.Host{Log: quiet, Hook: hook}, User: auth.Authenticated(auth.Principal{Name: "tester", Role: auth.Admin}),
		Tables: map[string]saga.Definition{},
	}
	w.Admission = admission.New(w.KV, sealer{})
	for _, d := range workflows.All() {
		w.Tables[d.Name()] = d
	}
	return w
}

func (w *World) addNode(id, name string, driver *compute.Fake, d *disks) {
	w.Nodes = append(w.Nodes, &Node{ID: id, Name: name, Compute: driver, disks: d, source: w.images, peers: &w.peers, host: &activities.Host{Log: quiet, Hook: w.hook}})
}

// Clone returns a world of its own with the same things in it.
func (w *World) Clone(ctx context.Context, hook activities.Hook) (*World, error) {
	c := emptyWorld(hook)
	c.Tables, c.Extra, c.images = w.Tables, w.Extra, w.images.clone()
	entries, _, err := w.KV.List(ctx, store.Root)
	if err != nil {
		return nil, err
	}
	for part := range slices.Chunk(entries, store.MaxOps/2) {
		var tx store.Tx
		for _, e := range part {
			tx.Puts = append(tx.Puts, store.Put{Key: e.Key, Value: e.Value})
		}
		if _, err := c.KV.Commit(ctx, tx); err != nil {
			return nil, err
		}
	}
	if err := cloneNetwork(ctx, w.Network, c.Network); err != nil {
		return nil, err
	}
	for _, n := range w.Nodes {
		driver := &compute.Fake{}
		if err := cloneDomains(ctx, n.Compute, driver); err != nil {
			return nil, err
		}
		d, err := n.disks.clone(ctx, c, n.ID)
		if err != nil {
			return nil, err
		}
		c.addNode(n.ID, n.Name, driver, d)
	}
	return c, nil
}

func cloneNetwork(ctx context.Context, from, to *network.Fake) error {
	inv, err := from.List(ctx)
	if err != nil {
		return err
	}
	wire := map[string]func(network.Item) error{
		network.KindVPC:           func(i network.Item) error { return to.WireVPC(ctx, *i.VPC) },
		network.KindSubnet:        func(i network.Item) error { return to.WireSubnet(ctx, *i.Subnet) },
		network.KindSecurityGroup: func(i network.Item) error { return to.WireSecurityGroup(ctx, *i.SecurityGroup) },
		network.KindPort:          func(i network.Item) error { return to.WirePorts(ctx, []steps.PortWiring{*i.Port}) },
	}
	for _, kind := range []string{network.KindVPC, network.KindSubnet, network.KindSecurityGroup, network.KindPort} {
		for _, item := range inv.Items {
			if item.Kind != kind {
				continue
			}
			if err := wire[kind](item); err != nil {
				return err
			}
		}
	}
	return nil
}

func cloneDomains(ctx context.Context, from, to *compute.Fake) error {
	domains, err := from.List(ctx)
	if err != nil {
		return err
	}
	for _, d := range domains {
		if !d.Ours {
			to.AddStranger(d.ID, d.Name)
			continue
		}
		if err := to.Create(ctx, steps.VMPlan{VM: d.ID}, compute.DomainFiles{Disk: "disk"}); err != nil {
			return err
		}
		if d.Phase == api.PhaseStopped {
			to.PowerOff(d.ID)
		}
	}
	return nil
}

// RegisterControl registers the central steps, as the control plane does.
func (w *World) RegisterControl(reg activities.Registry) { w.registerControl(reg, w.host) }

func (w *World) registerControl(reg activities.Registry, host *activities.Host) {
	state.New(w.KV, w.Admission, control.NetworkRows(w.Network), w.images).Register(reg, host)
	network.Register(reg, host, w.Network)
	storage.RegisterControl(reg, host, w.images)
	if w.Extra != nil {
		w.Extra(w, reg, host)
	}
}

// Register registers the steps of a node, as its agent does.
func (n *Node) Register(reg activities.Registry) {
	compute.Register(reg, n.host, n.Compute, storage.Locate)
	storage.RegisterNode(reg, n.host, n.disks, n.source, n.peers)
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
	return steps.NodeWorld{Agent: n.ID, AgentName: n.Name, Domains: domains, Files: files}, err
}

func (n *Node) repair(ctx context.Context, _ steps.Token, in steps.NodeRepair) (steps.Nothing, error) {
	for _, id := range in.Domains {
		if err := n.Compute.Remove(ctx, id); err != nil {
			return steps.Nothing{}, err
		}
	}
	return steps.Nothing{}, n.disks.repair(ctx, in.Files, in.Pools)
}

// byName collects implementations, so that they can be called or handed on.
type byName map[string]any

// RegisterActivityWithOptions implements activities.Registry.
func (b byName) RegisterActivityWithOptions(a any, o activity.RegisterOptions) { b[o.Name] = a }

// Register registers all steps of all places in reg, as if every worker polled it: a step on a node goes to the node whose
// queue it was sent to.
func (w *World) Register(reg activities.Registry) {
	w.RegisterControl(reg)
	nodes := map[string]byName{}
	for _, n := range w.Nodes {
		nodes[steps.NodeQueue(n.ID)] = byName{}
		n.Register(nodes[steps.NodeQueue(n.ID)])
	}
	for name, a := range nodes[steps.NodeQueue(w.Nodes[0].ID)] {
		pick := func(args []reflect.Value) []reflect.Value {
			queue := activity.GetInfo(args[0].Interface().(context.Context)).TaskQueue
			node := nodes[queue]
			if node == nil {
				panic(fmt.Sprintf("step %s was sent to queue %q, which no worker polls", name, queue))
			}
			return reflect.ValueOf(node[name]).Call(args)
		}
		reg.RegisterActivityWithOptions(reflect.MakeFunc(reflect.TypeOf(a), pick).Interface(), activity.RegisterOptions{Name: name})
	}
}

// Audit compares the store with the nodes and the network, and returns what it found.
func (w *World) Audit(ctx context.Context) ([]api.Finding, error) {
	audit := &api.Operation{
		Meta: api.Meta{ID: api.NewID(), Created: time.Now().Add(time.Hour)}, // late enough that nothing counts as just ended
		Kind: api.OpAudit, State: api.OpRunning, Plan: &api.OperationPlan{},
	}
	d := store.NewDraft(auth.ControlPlane("fault"))
	d.Create(audit)
	rev, err := d.Commit(ctx, w.KV)
	if err != nil {
		return nil, err
	}
	audit.Revision = rev
	defer func() {
		d := store.NewDraft(auth.ControlPlane("fault"))
		d.Delete(audit)
		_, _ = d.Commit(ctx, w.KV)
	}()
	var worlds steps.Worlds
	for _, n := range w.Nodes {
		seen, err := n.look(ctx)
		if err != nil {
			return nil, err
		}
		worlds.Nodes = append(worlds.Nodes, seen)
	}
	central := byName{}
	state.New(w.KV, w.Admission, control.NetworkRows(w.Network), w.images).Register(central, &activities.Host{Log: quiet})
	compare := central[steps.CompareWorlds.Name].(func(context.Context, steps.Envelope[steps.Worlds]) (api.AuditReport, error))
	report, err := compare(ctx, steps.Envelope[steps.Worlds]{Token: steps.Token{Operation: audit.ID}, In: worlds})
	return report.Findings, err
}
