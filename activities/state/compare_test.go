package state_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/state"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/test/fault"
	"github.com/nextstack/nextstack/workflows/steps"
)

// populated is a world with a VM, a free port and a user in it.
func populated(t *testing.T) *fault.World {
	w := base(t)
	_, err := w.Do(ctx, fault.CreateVM("web1"))
	require.NoError(t, err)
	_, err = w.Do(ctx, fault.CreatePort("plug"))
	require.NoError(t, err)
	write(t, w, func(d *store.Draft) {
		d.Create(&api.User{Meta: api.Meta{ID: api.NewID(), Name: "admin"}, Role: "admin"})
		d.Create(&api.Token{Meta: api.Meta{ID: strings.Repeat("0", 64)}, Subject: "admin"})
	})
	return w
}

func write(t *testing.T, w *fault.World, draft func(*store.Draft)) {
	t.Helper()
	d := store.NewDraft(auth.ControlPlane("test"))
	draft(d)
	_, err := d.Commit(ctx, w.KV)
	require.NoError(t, err)
}

func get[T any, P interface {
	*T
	api.Resource
}](t *testing.T, w *fault.World, project, name string) *T {
	t.Helper()
	r, err := store.Find[T, P](ctx, w.KV, w.User, project, name)
	require.NoError(t, err)
	return r
}

func TestACleanWorldHasNoFindings(t *testing.T) {
	findings, err := populated(t).Audit(ctx)
	require.NoError(t, err)
	require.Empty(t, findings)
}

// TestEveryKindOfLeakIsFound plants one and wants exactly that one to be found, on its side, and to be told from a loss.
func TestEveryKindOfLeakIsFound(t *testing.T) {
	id := api.NewID()
	claim := func(key string) func(*testing.T, *fault.World) {
		return func(t *testing.T, w *fault.World) { write(t, w, func(d *store.Draft) { d.Claim(key, id) }) }
	}
	lost := func(key func(t *testing.T, w *fault.World) string) func(*testing.T, *fault.World) {
		return func(t *testing.T, w *fault.World) { write(t, w, func(d *store.Draft) { d.Release(key(t, w)) }) }
	}
	node := func(w *fault.World) *fault.Node { return w.Nodes[0] }
	vm := func(t *testing.T, w *fault.World) *api.VM { return get[api.VM](t, w, opts.Project, "web1") }
	home := func(t *testing.T, w *fault.World) *fault.Node {
		for _, n := range w.Nodes {
			if n.ID == vm(t, w).Status.Agent {
				return n
			}
		}
		t.Fatal("the vm has no node")
		return nil
	}
	for name, c := range map[string]struct {
		plant func(*testing.T, *fault.World)
		side  string
		kind  string
		extra bool
	}{
		"domain": {func(t *testing.T, w *fault.World) {
			require.NoError(t, node(w).Compute.Create(ctx, steps.VMPlan{VM: id}, compute.DomainFiles{Disk: compute.QCOW2("d")}))
		}, "libvirt", "domain", true},
		"domain on the wrong node": {func(t *testing.T, w *fault.World) {
			for _, n := range w.Nodes {
				if n != home(t, w) {
					require.NoError(t, n.Compute.Create(ctx, steps.VMPlan{VM: vm(t, w).ID}, compute.DomainFiles{Disk: compute.QCOW2("d")}))
				}
			}
		}, "libvirt", "domain", true},
		"domain lost": {func(t *testing.T, w *fault.World) {
			require.NoError(t, home(t, w).Compute.Remove(ctx, vm(t, w).ID))
		}, "libvirt", "domain", false},
		"volume":     {func(t *testing.T, w *fault.World) { node(w).Stray(ctx, "volume", id) }, "pool", "volume", true},
		"seed":       {func(t *testing.T, w *fault.World) { node(w).Stray(ctx, "seed", id) }, "pool", "seed", true},
		"image copy": {func(t *testing.T, w *fault.World) { node(w).Stray(ctx, "backing", strings.Repeat("ab", 32)) }, "pool", "backing", true},
		"other file": {func(t *testing.T, w *fault.World) { node(w).Stray(ctx, "other", "x") }, "pool", "other", true},
		"memory":     {func(t *testing.T, w *fault.World) { node(w).Stray(ctx, "memory", id) }, "pool", "memory", true},
		"memory lost": {func(t *testing.T, w *fault.World) {
			_, err := w.Do(ctx, fault.KeepVM("c1"))
			require.NoError(t, err)
			home(t, w).Lose(ctx, "memory", get[api.Checkpoint](t, w, opts.Project, "c1").ID)
		}, "pool", "memory", false},
		"memory lost in a shared pool": {func(t *testing.T, w *fault.World) {
			_, err := w.Do(ctx, fault.KeepVM("c1"))
			require.NoError(t, err)
			p := get[api.Pool](t, w, "", "vms")
			p.Spec.Shared = true
			write(t, w, func(d *store.Draft) { d.Update(p) })
			home(t, w).Lose(ctx, "memory", get[api.Checkpoint](t, w, opts.Project, "c1").ID)
		}, "pool", "memory", false},
		"checkpoint without a snapshot": {func(t *testing.T, w *fault.World) {
			_, err := w.Do(ctx, fault.KeepVM("c1"))
			require.NoError(t, err)
			s := get[api.Snapshot](t, w, opts.Project, get[api.Checkpoint](t, w, opts.Project, "c1").Status.Disks[0].Snapshot)
			s.Spec.Checkpoint = ""
			write(t, w, func(d *store.Draft) { d.Update(s) })
		}, "store", "checkpoint", false},
		"router": {func(t *testing.T, w *fault.World) {
			require.NoError(t, w.Network.WireVPC(ctx, steps.VPCWiring{VPC: id, Name: "v", Project: "p", CIDR: "10.9.0.0/16"}))
		}, "ovn", "vpc", true},
		"group": {func(t *testing.T, w *fault.World) {
			require.NoError(t, w.Network.WireSecurityGroup(ctx, steps.SecurityGroupWiring{SecurityGroup: id, Name: "g", Project: "p"}))
		}, "ovn", "security-group", true},
		"port lost": {func(t *testing.T, w *fault.World) {
			require.NoError(t, w.Network.UnwirePorts(ctx, []string{get[api.Port](t, w, opts.Project, "plug").ID}))
		}, "ovn", "port", false},
		"group lost": {func(t *testing.T, w *fault.World) {
			_, err := w.Do(ctx, fault.CreateSG("lonely"))
			require.NoError(t, err)
			require.NoError(t, w.Network.UnwireSecurityGroup(ctx, get[api.SecurityGroup](t, w, opts.Project, "lonely").ID))
		}, "ovn", "security-group", false},
		"image file": {func(t *testing.T, w *fault.World) { w.StrayImage(ctx, id) }, "images", "image", true},

		"name":        {claim(store.NameClaim(api.KindVPC, "default", "ghost")), "store", "claim", true},
		"address":     {claim(store.AddressClaim(id, "10.0.0.9")), "store", "claim", true},
		"use":         {claim(store.UseClaim(api.Ref{Kind: api.KindVPC, ID: id}, api.Ref{Kind: api.KindSubnet, ID: id})), "store", "claim", true},
		"node":        {claim(store.NodeClaim(id, id)), "store", "claim", true},
		"quota":       {claim(store.QuotaClaim("default", id)), "store", "claim", true},
		"secret":      {claim(store.SecretKey(id)), "store", "claim", true},
		"pool":        {claim(store.PoolPathClaim(id, "/x")), "store", "claim", true},
		"quota lost":  {lost(func(t *testing.T, w *fault.World) string { return store.QuotaClaim("default", vm(t, w).ID) }), "store", "claim", false},
		"node lost":   {lost(func(t *testing.T, w *fault.World) string { return store.NodeClaim(vm(t, w).Status.Agent, vm(t, w).ID) }), "store", "claim", false},
		"name lost":   {lost(func(*testing.T, *fault.World) string { return store.NameClaim(api.KindVM, "default", "web1") }), "store", "claim", false},
		"secret lost": {lost(func(t *testing.T, w *fault.World) string { return store.SecretKey(vm(t, w).ID) }), "store", "claim", false},
		"lock": {func(t *testing.T, w *fault.World) {
			g := get[api.VPC](t, w, opts.Project, "net")
			g.Operation = id
			write(t, w, func(d *store.Draft) { d.Update(g) })
		}, "store", "lock", true},
		"move that nobody makes": {func(t *testing.T, w *fault.World) {
			for _, n := range w.Nodes {
				if n != home(t, w) {
					v := vm(t, w)
					v.Status.MovingTo = n.ID
					write(t, w, func(d *store.Draft) {
						d.Update(v)
						d.Claim(store.NodeClaim(n.ID, v.ID), `{"vcpus":2,"memory":1073741824}`)
					})
				}
			}
		}, "store", "move", false},
		"room at a target that is none": {func(t *testing.T, w *fault.World) {
			for _, n := range w.Nodes {
				if n != home(t, w) {
					write(t, w, func(d *store.Draft) { d.Claim(store.NodeClaim(n.ID, vm(t, w).ID), `{"vcpus":2,"memory":1073741824}`) })
				}
			}
		}, "store", "claim", true},
		"group membership lost": {func(t *testing.T, w *fault.World) {
			g := &api.VMGroup{Meta: api.Meta{ID: id, Name: "g", Project: opts.Project}}
			v := vm(t, w)
			v.Spec.Group = id
			counts, err := admission.PromiseOf(v).Encode()
			require.NoError(t, err)
			write(t, w, func(d *store.Draft) { d.Create(g); d.Update(v); d.Put(store.NodeClaim(v.Status.Agent, v.ID), counts) })
		}, "store", "claim", false},
		"counted for another group": {func(t *testing.T, w *fault.World) {
			p := admission.PromiseOf(vm(t, w))
			p.Group = id
			counts, err := p.Encode()
			require.NoError(t, err)
			write(t, w, func(d *store.Draft) { d.Put(store.NodeClaim(vm(t, w).Status.Agent, vm(t, w).ID), counts) })
		}, "store", "claim", false},
		"still counted for a group that it does not come into": {func(t *testing.T, w *fault.World) {
			p := admission.PromiseOf(vm(t, w))
			p.Joins = id
			counts, err := p.Encode()
			require.NoError(t, err)
			write(t, w, func(d *store.Draft) { d.Put(store.NodeClaim(vm(t, w).Status.Agent, vm(t, w).ID), counts) })
		}, "store", "claim", false},
		"group name":     {claim(store.NameClaim(api.KindVMGroup, "default", "ghost")), "store", "claim", true},
		"fence password": {claim(store.SecretKey(api.NewID())), "store", "claim", true},
		"fence password lost": {func(t *testing.T, w *fault.World) {
			a := get[api.Agent](t, w, "", node(w).Name)
			a.Spec.Fence = &api.Fence{Driver: api.FenceIPMI, Address: "bmc", User: "u"}
			write(t, w, func(d *store.Draft) { d.Update(a) })
		}, "store", "claim", false},
		"disk left on the node before": {func(t *testing.T, w *fault.World) {
			for _, n := range w.Nodes {
				if n != home(t, w) {
					n.Stray(ctx, "volume", vm(t, w).Status.Volumes[0])
				}
			}
		}, "pool", "volume", false},
		"stray in a shared pool": {func(t *testing.T, w *fault.World) {
			p := get[api.Pool](t, w, "", "vms")
			p.Spec.Shared = true
			write(t, w, func(d *store.Draft) { d.Update(p) })
			for _, n := range w.Nodes {
				n.Stray(ctx, "volume", id)
			}
		}, "pool", "volume", true},
		"key of no pool": {func(t *testing.T, w *fault.World) {
			require.NoError(t, w.Nodes[1].Compute.SetSecret(ctx, id, "key"))
		}, "libvirt", "secret", true},
		"stuck operation": {func(t *testing.T, w *fault.World) {
			write(t, w, func(d *store.Draft) {
				d.Create(&api.Operation{Meta: api.Meta{ID: id}, Kind: api.OpNoop, State: api.OpStuck, Plan: &api.OperationPlan{}})
			})
		}, "store", "operation", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := populated(t)
			c.plant(t, w)
			findings, err := w.Audit(ctx)
			require.NoError(t, err)
			require.Len(t, findings, 1)
			f := findings[0]
			require.Equal(t, []any{c.side, c.kind, c.extra}, []any{f.Side, f.Kind, f.Extra}, "%+v", f)
			require.NotEmpty(t, f.ID)
			require.NotEmpty(t, f.Problem)
			require.NotEmpty(t, f.Fix)
		})
	}
}

// TestARepairRemovesWhatNobodyOwnsAndNothingElse repairs a world with strays everywhere and looks again.
func TestARepairRemovesWhatNobodyOwnsAndNothingElse(t *testing.T) {
	w := populated(t)
	clean, err := w.Dump(ctx)
	require.NoError(t, err)
	id := api.NewID()
	require.NoError(t, w.Nodes[0].Compute.Create(ctx, steps.VMPlan{VM: id}, compute.DomainFiles{Disk: compute.QCOW2("d")}))
	w.Nodes[1].Stray(ctx, "volume", id)
	require.NoError(t, w.Nodes[1].Compute.SetSecret(ctx, id, "key"))
	require.NoError(t, w.Network.WireVPC(ctx, steps.VPCWiring{VPC: id, Name: "v", Project: "p", CIDR: "10.9.0.0/16"}))
	require.NoError(t, w.Network.WireSubnet(ctx, steps.SubnetWiring{Subnet: api.NewID(), Name: "s", Project: "p", VPC: id, CIDR: "10.9.0.0/24", Gateway: "10.9.0.1"}))
	require.NoError(t, w.Network.WireSecurityGroup(ctx, steps.SecurityGroupWiring{SecurityGroup: id, Name: "g", Project: "p"}))
	w.StrayImage(ctx, id)
	write(t, w, func(d *store.Draft) { d.Claim(store.NameClaim(api.KindVM, "default", "ghost"), id) })
	vpc := get[api.VPC](t, w, opts.Project, "net")
	vpc.Operation = id
	write(t, w, func(d *store.Draft) { d.Update(vpc) })

	_, err = w.Do(ctx, fault.Repair())
	require.NoError(t, err)
	now, err := w.Dump(ctx)
	require.NoError(t, err)
	require.Empty(t, fault.Diff(clean, now))
	findings, err := w.Audit(ctx)
	require.NoError(t, err)
	require.Empty(t, findings)
}

// TestARepairDropsNothingButClaims gives the repair findings that it must not believe.
func TestARepairDropsNothingButClaims(t *testing.T) {
	w := populated(t)
	key := store.Key(api.KindVPC, opts.Project, get[api.VPC](t, w, opts.Project, "net").ID)
	_, err := call(newCentral(w), steps.RepairStore, steps.Token{}, []api.Finding{{Side: "store", Kind: "claim", ID: key, Extra: true}})
	require.True(t, problem.Is(err, problem.Internal), "%v", err)
	_, err = w.KV.Get(ctx, key)
	require.NoError(t, err)
}

// meddling is a store in which something happens just before a list, once, or in which a key cannot be read.
type meddling struct {
	store.KV
	before func(prefix string)
	broken string
}

func (m *meddling) List(ctx context.Context, prefix string) ([]store.Entry, int64, error) {
	if m.before != nil {
		m.before(prefix)
	}
	return m.KV.List(ctx, prefix)
}

func (m *meddling) Get(ctx context.Context, key string) (store.Entry, error) {
	if key == m.broken {
		return store.Entry{}, problem.New(problem.Unavailable, "the store cannot be reached")
	}
	return m.KV.Get(ctx, key)
}

func steady(kv store.KV, w *fault.World) central {
	c := central{}
	state.New(kv, w.Admission, none{}, none{}).Register(c, &activities.Host{Log: slog.New(slog.DiscardHandler)})
	return c
}

// TestAnAuditLeavesWhatIsAcceptedMeanwhile accepts a VM between any two reads of the audit, and again before its repair.
func TestAnAuditLeavesWhatIsAcceptedMeanwhile(t *testing.T) {
	for _, at := range []api.Kind{api.KindOperation, api.KindVM, api.KindPort, api.KindUser, ""} {
		prefix := store.KindPrefix(at)
		if at == "" {
			prefix = store.ClaimsRoot
		}
		t.Run(string(at), func(t *testing.T) {
			w := base(t)
			audit, err := w.Admission.Audit(ctx, w.User, admission.Options{}, api.AuditRequest{Repair: true})
			require.NoError(t, err)
			var once sync.Once
			kv := &meddling{KV: w.KV, before: func(p string) {
				if p == prefix {
					once.Do(func() { accept(t, w, "late") })
				}
			}}
			c := steady(kv, w)
			token := steps.Token{Operation: audit.ID, Kind: audit.Kind, Epoch: audit.Revision}
			report, err := call(c, steps.CompareWorlds, token, steps.Worlds{})
			require.NoError(t, err)
			claims, _, err := w.KV.List(ctx, store.ClaimsRoot)
			require.NoError(t, err)
			for _, f := range report.Findings {
				require.NotEqual(t, "claim", f.Kind, "%+v", f)
			}
			// Even if the claims were taken for nobody's, they are younger than the audit.
			var findings []api.Finding
			for _, e := range claims {
				if e.Revision > audit.Revision {
					findings = append(findings, api.Finding{Side: "store", Kind: "claim", ID: e.Key, Extra: true})
				}
			}
			require.NotEmpty(t, findings)
			findings, err = call(c, steps.RepairStore, token, findings)
			require.NoError(t, err)
			for _, f := range findings {
				require.False(t, f.Repaired)
			}
			after, _, err := w.KV.List(ctx, store.ClaimsRoot)
			require.NoError(t, err)
			require.Equal(t, claims, after)
		})
	}
}

// TestALockOfWhoCannotBeAskedStaysShut repairs a lock while the record of its operation cannot be read.
func TestALockOfWhoCannotBeAskedStaysShut(t *testing.T) {
	w := base(t)
	op := accept(t, w, "web1")
	vm := get[api.VM](t, w, opts.Project, "web1")
	c := steady(&meddling{KV: w.KV, broken: store.Key(api.KindOperation, "", op.ID)}, w)
	_, err := call(c, steps.RepairStore, steps.Token{}, []api.Finding{{Side: "store", Kind: "lock", ID: vm.ID, Path: "vms/" + vm.Project, Extra: true}})
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
	require.Equal(t, op.ID, get[api.VM](t, w, opts.Project, "web1").Operation)
}

// TestAnAuditSparesWhatARecordAsksFor shows nodes on which live things look as if they were in the wrong place.
func TestAnAuditSparesWhatARecordAsksFor(t *testing.T) {
	w := populated(t)
	vm := get[api.VM](t, w, opts.Project, "web1")
	audit, err := w.Admission.Audit(ctx, w.User, admission.Options{}, api.AuditRequest{})
	require.NoError(t, err)
	other := steps.NodeWorld{
		Agent: api.NewID(), AgentName: "other",
		// Of a node that has joined under another name: nobody saw the domain where the record says that it is.
		Domains: []steps.DomainFound{{ID: vm.ID, Name: "web1", Phase: api.PhaseRunning, Ours: true}},
		// Of a directory that two agents share.
		Files: []steps.FileFound{
			{Pool: vm.Spec.Pool, Path: "/vms/volumes/v", Kind: "volume", ID: vm.Status.Volumes[0]},
			{Pool: vm.Spec.Pool, Path: "/vms/seeds/s", Kind: "seed", ID: vm.ID},
		},
		// Of somebody else.
		OVSPorts: []steps.PortFound{{Name: "mp0", Port: "node-router"}},
	}
	// A second of grace lies behind the making of the VM; the audit must not spare it for that.
	write(t, w, func(d *store.Draft) {
		op, err := store.Get[api.Operation](ctx, w.KV, w.User, "", audit.ID)
		require.NoError(t, err)
		op.Created = op.Created.Add(time.Hour)
		d.Update(op)
	})
	report, err := call(newCentral(w), steps.CompareWorlds, steps.Token{Operation: audit.ID}, steps.Worlds{Nodes: []steps.NodeWorld{other}})
	require.NoError(t, err)
	domains := 0
	for _, f := range report.Findings {
		require.False(t, f.Extra, "%+v", f)
		if f.Kind == "domain" {
			domains++
		}
	}
	require.Equal(t, 1, domains, "a person should look at it")
}

// TestWhatCannotBeReadIsNotMissing: of a pool whose servers are away, or that shows something else than it did, nobody can tell what
// is in it.
func TestWhatCannotBeReadIsNotMissing(t *testing.T) {
	w := populated(t)
	vm, pool := get[api.VM](t, w, opts.Project, "web1"), get[api.Pool](t, w, "", "vms")
	audit, err := w.Admission.Audit(ctx, w.User, admission.Options{}, api.AuditRequest{})
	require.NoError(t, err)
	audit.Created = audit.Created.Add(24 * time.Hour) // after all that was done in this world, whose clock is not ours
	write(t, w, func(d *store.Draft) { d.Update(audit) })
	token := steps.Token{Operation: audit.ID, Kind: audit.Kind, Epoch: audit.Revision}
	node := steps.NodeWorld{Agent: vm.Status.Agent, AgentName: vm.Status.AgentName}
	volumes := func(n steps.NodeWorld) (missing int, skipped []string) {
		report, err := call(steady(w.KV, w), steps.CompareWorlds, token, steps.Worlds{Nodes: []steps.NodeWorld{n}})
		require.NoError(t, err)
		for _, f := range report.Findings {
			if f.Side == "pool" && f.Kind == "volume" && f.ID == vm.Status.Volumes[0] {
				missing++
			}
		}
		return missing, report.Skipped
	}
	missing, skipped := volumes(node)
	require.Equal(t, 1, missing, "the pool was read, and is empty")
	require.Empty(t, skipped)

	away := node
	away.Unread = []steps.PoolUnread{{Pool: pool.ID, Why: "it does not answer"}}
	missing, skipped = volumes(away)
	require.Zero(t, missing)
	require.Equal(t, []string{"pool vms on " + node.AgentName + ": it does not answer"}, skipped)

	agent := get[api.Agent](t, w, "", node.AgentName)
	agent.Status.Inventory.Pools = []api.PoolUsage{{Pool: pool.ID, Error: "its marker is missing"}}
	pool.Status.Phase = api.PhaseUnavailable
	write(t, w, func(d *store.Draft) { d.Update(agent); d.Update(pool) })
	missing, skipped = volumes(node)
	require.Zero(t, missing)
	require.Len(t, skipped, 1)

	// Another node can use it, which sees nothing of what this one has: it is this one's word that counts.
	pool = get[api.Pool](t, w, "", "vms")
	pool.Status.Phase = api.PhaseReady
	write(t, w, func(d *store.Draft) { d.Update(pool) })
	missing, skipped = volumes(node)
	require.Zero(t, missing)
	require.Equal(t, []string{"pool vms on " + node.AgentName + ": its marker is missing"}, skipped)

	// Of a shared one all nodes see the same, and it was listed.
	pool = get[api.Pool](t, w, "", "vms")
	pool.Spec.Shared = true
	write(t, w, func(d *store.Draft) { d.Update(pool) })
	missing, skipped = volumes(node)
	require.Equal(t, 1, missing)
	require.Empty(t, skipped)

	// What is on its way to become a pool, or to be none, is not there everywhere.
	pool = get[api.Pool](t, w, "", "vms")
	pool.Operation = api.NewID()
	op := &api.Operation{Meta: api.Meta{ID: pool.Operation}, Kind: api.OpPoolUpdate, State: api.OpRunning, Plan: &api.OperationPlan{
		Locks: []api.Lock{{Ref: api.RefTo(pool)}},
	}}
	write(t, w, func(d *store.Draft) { d.Update(pool); d.Create(op) })
	missing, skipped = volumes(away)
	require.Zero(t, missing)
	require.Empty(t, skipped)
}
