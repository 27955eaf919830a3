package fault

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/fence"
	"github.com/nextstack/nextstack/activities/network"
	"github.com/nextstack/nextstack/activities/state"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/fleet"
	"github.com/nextstack/nextstack/api/problem"
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
	// Fate decides what happens at a moment of a live move; nil: it goes on. It is not cloned.
	Fate func(at compute.MovePoint) compute.MoveFate

	images *images
	net    *storage.Fake    // the file system that all nodes have at netDir
	rack   *compute.Rack    // through which guests go from node to node
	peers  storage.Exchange // through which nodes hand disks to one another
	hook   activities.Hook
	host   *activities.Host
	now    *now
	clock  *fleet.Clock // that leases are judged by
	orders orders

	mu    sync.Mutex
	twins []string // VMs that ran on two nodes at once
	tears int      // switches of disks that are to come, in which libvirtd dies; not cloned
	torn  []string // volumes whose guests have written what nobody knew of then
	busy  bool     // guests write when they go on with the copy of a disk; not cloned
	late  []string // volumes to which they have
}

// netDir is where the nodes have what they share.
const netDir = "/net"

// now is the time in a world. It never goes back, and while a workflow runs, which skips the time that it waits, it is the
// workflow's.
type now struct {
	mu     sync.Mutex
	last   time.Time
	source func() time.Time // nil: time stands still
}

func (n *now) get() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.source != nil {
		if t := n.source(); t.After(n.last) {
			n.last = t
		}
	}
	return n.last
}

// follow makes the time another clock's, and returns whose it was.
func (n *now) follow(source func() time.Time) (before func() time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	before, n.source = n.source, source
	return before
}

// sealer hides secrets well enough for a world that ends with its test.
type sealer struct{}

const seal = "sealed\xff:"

// Seal implements admission.Sealer.
func (sealer) Seal(_, aad string) ([]byte, error) { return []byte(seal + aad), nil }

// Open implements fence.Opener.
func (sealer) Open(sealed []byte, aad string) (string, error) {
	if string(sealed) != seal+aad {
		return "", problem.New(problem.Internal, "this was sealed for somebody else")
	}
	return "secret", nil
}

var quiet = slog.New(slog.DiscardHandler)

// sizes are the nodes of a world. They are so different that placement, which spreads over nodes that are about equal by a
// number drawn from the VM's random ID, has only one choice: all runs of a scenario take the same nodes. The first one has a
// fence device.
var sizes = []struct {
	name   string
	cores  int
	memory int64
}{{"a1", 32, 128 * api.GiB}, {"a2", 3, 12 * api.GiB}, {"a3", 1, 2 * api.GiB}}

// NewWorld returns a cloud with three nodes that are ready, and nothing in it. Hook, which may be nil, is called around every
// attempt of every step.
func NewWorld(ctx context.Context, hook activities.Hook) (*World, error) {
	w := emptyWorld(hook, time.Now(), &storage.Fake{})
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
	for i, size := range sizes {
		n := w.addNode(api.NewID(), size.name, newDisks(&storage.Fake{}))
		a := &api.Agent{
			Meta: api.Meta{ID: n.ID, Name: n.Name, Created: time.Now().UTC()},
			Spec: api.AgentSpec{ReservedMemory: 512 * api.MiB, CPURatio: 4, MemoryRatio: 1},
			Status: api.AgentStatus{Phase: api.PhaseReady, Inventory: api.Inventory{
				Hostname: n.Name, Arch: "x86_64", Accel: "tcg", Cores: size.cores, Memory: size.memory, OVNChassis: n.Name,
				HostUUID: api.NewID(), Peer: api.Peer{Libvirt: n.uri(), Transfer: n.Name + ":1"},
			}},
		}
		if i == 0 {
			a.Spec.Fence = &api.Fence{Driver: api.FenceIPMI, Address: n.Name, User: "admin"}
			d.Put(store.SecretKey(n.ID), seal+n.ID)
		}
		n.Compute.Inv = a.Status.Inventory
		d.Create(a)
	}
	_, err = d.Commit(ctx, w.KV)
	return w, err
}

func emptyWorld(hook activities.Hook, begin time.Time, net *storage.Fake) *World {
	w := &World{
		KV: store.NewMemory(), Network: network.NewFake(), images: newImages(), net: net, rack: &compute.Rack{}, now: &now{last: begin},
		hook: hook, host: &activities.Host{Log: quiet, Hook: hook}, User: auth.Authenticated(auth.Principal{Name: "tester", Role: auth.Admin}),
		Tables: map[string]saga.Definition{},
	}
	w.clock = fleet.NewClock(w.now.get)
	w.Admission = admission.New(w.KV, sealer{})
	for _, d := range workflows.All() {
		w.Tables[d.Name()] = d
	}
	return w
}

// Clone returns a world of its own with the same things in it.
func (w *World) Clone(ctx context.Context, hook activities.Hook) (*World, error) {
	c := emptyWorld(hook, w.now.get(), w.net.Clone())
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
		if err := n.cloneTo(ctx, c); err != nil {
			return nil, err
		}
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

// RegisterControl registers the central steps, as the control plane does.
func (w *World) RegisterControl(reg activities.Registry) { w.registerControl(reg, w.host) }

func (w *World) registerControl(reg activities.Registry, host *activities.Host) {
	state.New(w.KV, w.Admission, control.NetworkRows(w.Network), w.images).WithClock(w.clock).Register(reg, host)
	network.Register(reg, host, w.Network)
	storage.RegisterControl(reg, host, w.images)
	fence.RegisterWith(reg, host, w.KV, sealer{}, func(d fence.Device) (fence.Driver, error) {
		for _, n := range w.Nodes {
			if n.Name == d.Address {
				return &n.Fence, nil
			}
		}
		return nil, problem.New(problem.Unavailable, "there is no fence device at %s", d.Address)
	})
	if w.Extra != nil {
		w.Extra(w, reg, host)
	}
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

// node returns the node that an agent, which is named or whose queue or ID is given, runs on; nil: there is none.
func (w *World) node(ref string) *Node {
	ref = strings.TrimPrefix(ref, steps.NodeQueue(""))
	for _, n := range w.Nodes {
		if n.ID == ref || n.Name == ref {
			return n
		}
	}
	return nil
}

// Audit compares the store with the nodes and the network, and returns what it found. Nodes that are dead are not asked.
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
		if n.dead {
			worlds.Skipped = append(worlds.Skipped, n.Name)
			continue
		}
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
