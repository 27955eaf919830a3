package fault

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/store"
)

// all checks everything that checks say.
func all(checks ...func(ctx context.Context, w *World) (string, error)) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		for _, check := range checks {
			if what, err := check(ctx, w); what != "" || err != nil {
				return what, err
			}
		}
		return "", nil
	}
}

// changeHost changes the record and the last sign of life of a node, as the fleet does.
func changeHost(ctx context.Context, w *World, name string, change func(a *api.Agent, b *store.Beat)) error {
	a, err := store.Find[api.Agent](ctx, w.KV, w.User, "", name)
	if err != nil {
		return err
	}
	b, err := store.ReadBeat(ctx, w.KV, a.ID)
	if err != nil {
		return err
	}
	change(a, &b)
	d := store.NewDraft(auth.ControlPlane("fault"))
	d.Update(a)
	d.Beat(a.ID, b)
	_, err = d.Commit(ctx, w.KV)
	return err
}

// lost makes nobody know any more whether the VMs of a node run.
func lost(ctx context.Context, w *World, name string) error {
	vms, err := store.List[api.VM](ctx, w.KV, w.User, "*")
	if err != nil {
		return err
	}
	d := store.NewDraft(auth.ControlPlane("fault"))
	for _, vm := range vms {
		if vm.Status.AgentName == name && vm.Status.Phase == api.PhaseRunning {
			vm.SetPhase(api.PhaseUnknown, "its node is silent")
			d.Update(vm)
		}
	}
	_, err = d.Commit(ctx, w.KV)
	return err
}

// silent plants a node that has not been heard of for a while. Its guests run on, and nobody knows. Change, which may be nil,
// changes what was last heard of it.
func silent(name string, change func(n *Node, b *store.Beat)) func(ctx context.Context, w *World) error {
	return func(ctx context.Context, w *World) error {
		n := w.node(name)
		n.dead = true
		now := w.now.get()
		err := changeHost(ctx, w, name, func(a *api.Agent, b *store.Beat) {
			a.Status.Phase, a.Status.Reason, a.Status.Since = api.PhaseSuspect, "it is silent", now
			b.Observed = now.Add(-15 * time.Second)
			if change != nil {
				change(n, b)
			}
		})
		if err != nil {
			return err
		}
		return lost(ctx, w, name)
	}
}

// leased says that a node's lease ends in 5 seconds, and its HA VMs with it.
func leased(n *Node, b *store.Beat) {
	b.Until, b.Lease, b.Guarded, b.Life = b.Observed.Add(20*time.Second), 20*time.Second, true, "an earlier one"
	n.leaseEnd = b.Until
}

func leasedOnly(n *Node, b *store.Beat) {
	leased(n, b)
	n.killFence()
}

// died plants a node that is down, with the proof.
func died(name string) func(ctx context.Context, w *World) error {
	return func(ctx context.Context, w *World) error {
		n := w.node(name)
		n.dead = true
		n.powerOff(ctx, nil)
		err := changeHost(ctx, w, name, func(a *api.Agent, b *store.Beat) {
			a.Status.Phase, a.Status.Since = api.PhaseDown, w.now.get()
			a.Status.Proof = &api.Proof{Kind: api.ProofOperator, Detail: "seen", At: w.now.get()}
			b.Down = true
		})
		if err != nil {
			return err
		}
		return lost(ctx, w, name)
	}
}

// proof checks how it is known that a node is down.
func proof(name, kind string) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		a, err := store.Find[api.Agent](ctx, w.KV, w.User, "", name)
		if err != nil || a.Status.Phase == api.PhaseDown && a.Status.Proof != nil && a.Status.Proof.Kind == kind {
			return "", err
		}
		return fmt.Sprintf("node %s is %s by %v, not by %s", name, a.Status.Phase, a.Status.Proof, kind), nil
	}
}

func drain(req api.HostDrain) Accept { return on((*admit).DrainHost, "a1", req) }

func recoverHost(name, confirmedBy string) Accept {
	return func(ctx context.Context, w *World, h auth.Handle) (*api.Operation, error) {
		return w.Admission.RecoverHost(ctx, h, project, name, confirmedBy)
	}
}

// backAgain recovers a node that reports again before anything has been done.
func backAgain(name string) Accept {
	return func(ctx context.Context, w *World, h auth.Handle) (*api.Operation, error) {
		op, err := recoverHost(name, "")(ctx, w, h)
		if err != nil {
			return nil, err
		}
		n := w.node(name)
		n.dead, n.leaseEnd = false, time.Time{}
		return op, changeHost(ctx, w, name, func(a *api.Agent, b *store.Beat) { a.Status.Phase, b.Observed = api.PhaseReady, w.now.get() })
	}
}

// hosts returns the scenarios of the operations on nodes.
func hosts() map[string][]Scenario {
	labels, ratio, cordoned := map[string]string{"rack": "7"}, 2.0, true
	fleet := []Accept{
		makeVM("web1", ha), makeVM("web2", nil), stop("web2"), makeVM("db", local), makeVM("pin", func(r *api.VMCreate) { r.NodeID = "a1" }),
	}
	dead := []Accept{makeVM("web1", ha), makeVM("web2", ha), makeVM("lazy", nil), makeVM("off", ha), stop("off")}
	recovered := all(is("web1", "a2", api.PhaseRunning), is("web2", "a2", api.PhaseRunning), is("lazy", "a1", api.PhaseUnknown), is("off", "a1", api.PhaseStopped))
	small := func(r *api.VMCreate) { r.VCPUs, r.Memory = 1, 512*api.MiB }
	to := func(name, node string) Accept { return migrate(name, api.VMMigrate{To: node}) }
	return map[string][]Scenario{
		api.OpHostUpdate: {
			{Name: "host.update", Accept: on((*admit).UpdateHost, "a2", api.AgentUpdate{Labels: &labels, CPURatio: &ratio, Cordoned: &cordoned})},
			{Name: "host.update, fence device", Accept: on((*admit).UpdateHost, "a2", api.AgentUpdate{
				Fence: &api.Fence{Driver: api.FenceIPMI, Address: "a2", User: "admin", Password: "secret"},
			})},
			{Name: "host.update, no fence device", Accept: on((*admit).UpdateHost, "a1", api.AgentUpdate{Fence: &api.Fence{}})},
		},
		api.OpHostDrain: {
			{
				Name: "host.drain", Prepare: fleet, Accept: drain(api.HostDrain{Reason: "new disks"}), Orders: true, Every: 4,
				Check: all(is("web1", "a2", api.PhaseRunning), is("web2", "a2", api.PhaseStopped), is("db", "a1", api.PhaseRunning), is("pin", "a1", api.PhaseRunning)),
			},
			{
				Name: "host.drain with disks", Prepare: fleet, Accept: drain(api.HostDrain{CopyStorage: true, Parallel: 1}), Orders: true, Every: 4,
				Check: all(is("web1", "a2", api.PhaseRunning), is("web2", "a2", api.PhaseStopped), is("db", "a2", api.PhaseRunning), is("pin", "a1", api.PhaseRunning)),
			},
		},
		api.OpHostBalance: {{
			Name: "host.balance", Accept: with((*admit).BalanceHosts, api.HostBalance{}), Orders: true, Every: 4,
			Prepare: []Accept{makeVM("web1", small), to("web1", "a3"), makeVM("web2", small), to("web2", "a3")},
			Check:   all(is("web1", "a2", api.PhaseRunning), is("web2", "a1", api.PhaseRunning)),
		}},
		api.OpHostRecover: {
			{Name: "host.recover by its fence device", Prepare: dead, Plant: silent("a1", nil), Accept: recoverHost("a1", ""), Orders: true, Every: 4, Check: all(recovered, proof("a1", api.ProofFence))},
			{Name: "host.recover by its lease", Prepare: dead, Plant: silent("a1", leasedOnly), Accept: recoverHost("a1", ""), Orders: true, Every: 4, Check: all(recovered, proof("a1", api.ProofLease))},
			{Name: "host.recover by both", Prepare: dead, Plant: silent("a1", leased), Accept: recoverHost("a1", ""), Orders: true, Every: 4, Check: recovered},
			{
				Name: "host.recover by an operator", Prepare: dead, Accept: recoverHost("a1", "alice"), Orders: true, Every: 4, Check: all(recovered, proof("a1", api.ProofOperator)),
				Plant: silent("a1", func(n *Node, _ *store.Beat) { n.killFence(); n.powerOff(context.Background(), nil) }),
			},
			{Name: "host.recover of what was left", Prepare: dead, Plant: died("a1"), Accept: recoverHost("a1", ""), Orders: true, Every: 4, Check: all(recovered, proof("a1", api.ProofOperator))},
			{
				Name: "host.recover of a node that is back", Prepare: dead, Plant: silent("a1", leased), Accept: backAgain("a1"), Orders: true,
				Check: all(is("web1", "a1", api.PhaseUnknown), is("web2", "a1", api.PhaseUnknown)),
			},
		},
		api.OpHostDelete: {{Name: "host.delete", Plant: stranger, Accept: about((*admit).DeleteHost, "a4")}},
	}
}

// stranger plants the record of a node that is gone for good and that nothing was on, with its credential.
func stranger(ctx context.Context, w *World) error {
	a := &api.Agent{
		Meta:   api.Meta{ID: api.NewID(), Name: "a4"},
		Spec:   api.AgentSpec{CPURatio: 4, MemoryRatio: 1, Fence: &api.Fence{Driver: api.FenceIPMI, Address: "a4", User: "admin"}},
		Status: api.AgentStatus{Phase: api.PhaseSuspect},
	}
	d := store.NewDraft(auth.ControlPlane("fault"))
	d.Create(a)
	d.Create(&api.Token{Meta: api.Meta{ID: strings.Repeat("0", 64)}, Subject: a.ID, Role: string(auth.Agent)})
	d.Put(store.SecretKey(a.ID), seal+a.ID)
	d.Beat(a.ID, store.Beat{Observed: w.now.get()})
	_, err := d.Commit(ctx, w.KV)
	return err
}
