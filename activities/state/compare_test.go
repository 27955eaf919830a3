package state_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
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
			require.NoError(t, node(w).Compute.Create(ctx, steps.VMPlan{VM: id}, compute.DomainFiles{Disk: "d"}))
		}, "libvirt", "domain", true},
		"domain on the wrong node": {func(t *testing.T, w *fault.World) {
			for _, n := range w.Nodes {
				if n != home(t, w) {
					require.NoError(t, n.Compute.Create(ctx, steps.VMPlan{VM: vm(t, w).ID}, compute.DomainFiles{Disk: "d"}))
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
	require.NoError(t, w.Nodes[0].Compute.Create(ctx, steps.VMPlan{VM: id}, compute.DomainFiles{Disk: "d"}))
	w.Nodes[1].Stray(ctx, "volume", id)
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
