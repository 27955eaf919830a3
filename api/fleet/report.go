package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// Bounds of a report: one that is over them is a mistake or worse.
const (
	maxObservations = 10_000
	maxPoolsOnNode  = 256
	maxError        = 16 << 10
)

// refreshAfter is how old a VM's Observed may get while nothing changes. Writing it with every report would make as many
// events as there are VMs, every few seconds, to say nothing.
const refreshAfter = 5 * time.Minute

// Report takes in what an agent tells of its node: it updates the agent's record, the pools that the node has and the VMs
// on it that no operation holds. The answer says what the agent is to do, and for how long it may run HA VMs.
func (f *Fleet) Report(ctx context.Context, h auth.Handle, agent string, r api.AgentReport) (*api.AgentOrders, error) {
	if err := owns(h, agent); err != nil {
		return nil, err
	}
	if err := validateReport(&r); err != nil {
		return nil, err
	}
	if now := f.Clock.Now(); r.Sent.After(now) {
		r.Sent = now // a clock that is ahead must not make old observations look new
	}
	pools, err := f.poolsOf(agent)
	if err != nil {
		return nil, err
	}
	t, err := f.take(ctx, agent, &r)
	if err != nil {
		return nil, err
	}
	o := orders(pools)
	o.Lease, o.Stop = t.lease.Seconds(), t.stop
	if every := f.pace(); every > reportEvery {
		o.ReportEvery = every.Seconds()
	}
	if err := f.caughtUp(ctx, t.revision); err != nil {
		f.Log.Warn("what an agent reported is not applied", "agent", agent, "error", err)
		return o, nil
	}
	// What the report means for others must not keep the agent from its orders; the next report tries again.
	if err := f.lookAtPools(ctx, agent, t.wrote); err != nil {
		f.Log.Warn("pools not updated from report", "agent", agent, "error", err)
	}
	// A node that could not be looked at has its VMs as they were last seen; those of one that is down are being seen to.
	if r.Error != "" || t.lease == 0 {
		return o, nil
	}
	if err := f.observeVMs(ctx, agent, &r); err != nil {
		f.Log.Warn("VMs not updated from report", "agent", agent, "error", err)
	}
	if o.Noted, err = f.restart(ctx, agent, &r); err != nil {
		f.Log.Warn("VMs that had no lease cannot be started again", "agent", agent, "error", err)
	}
	return o, nil
}

// caughtUp waits until the cache shows revision: what follows from a report is worked out from there.
func (f *Fleet) caughtUp(ctx context.Context, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return f.Cache.WaitFor(ctx, revision)
}

func orders(pools []*api.Pool) *api.AgentOrders {
	o := &api.AgentOrders{Pools: make([]api.AgentPool, 0, len(pools))}
	for _, p := range pools {
		if p.Status.Phase != api.PhaseReady && p.Status.Phase != api.PhaseUnavailable {
			continue // its directory may not be there yet, or not any more
		}
		o.Pools = append(o.Pools, api.AgentPool{ID: p.ID, Type: p.Spec.Type, Path: p.Spec.Path, Shared: p.Spec.Shared, Source: p.Spec.Source})
	}
	return o
}

func validateReport(r *api.AgentReport) error {
	var v problem.Validation
	v.Check(len(r.VMs) <= maxObservations, "vms", len(r.VMs), "at most %d", maxObservations)
	v.Check(len(r.Inventory.Pools) <= maxPoolsOnNode, "inventory.pools", len(r.Inventory.Pools), "at most %d", maxPoolsOnNode)
	v.Check(len(r.Stopped) <= maxObservations, "stopped", len(r.Stopped), "at most %d", maxObservations)
	for i, o := range r.VMs {
		v.Check(len(o.Reason) <= maxError, fmt.Sprintf("vms[%d].reason", i), len(o.Reason), "at most %d bytes", maxError)
	}
	v.Check(len(r.Error) <= maxError, "error", len(r.Error), "at most %d bytes", maxError)
	v.Check(!r.Sent.IsZero(), "sent", nil, "is missing")
	v.Check(r.Inventory.Cores >= 0 && r.Inventory.Memory >= 0, "inventory", nil, "cores and memory must not be negative")
	return v.Err("agent report")
}

// observeVMs applies what was seen of VMs that are on this node and that no operation holds. A report that was made before
// a VM's last change tells nothing about it. Domains that are no VM of ours are left to the audit.
func (f *Fleet) observeVMs(ctx context.Context, agent string, r *api.AgentReport) error {
	seen := make(map[string]api.VMObservation, len(r.VMs))
	for _, o := range r.VMs {
		seen[o.ID] = o
	}
	here, err := f.vmsOn(agent)
	if err != nil {
		return err
	}
	var first error
	for _, cached := range here {
		vm := *cached // a copy: the cached one is everybody's
		if !observe(&vm, agent, seen, r.Sent) {
			continue
		}
		d := store.NewDraft(f.self)
		d.Update(&vm)
		_, err := d.Commit(ctx, f.KV)
		// Losing a race means that the VM has changed since: then this observation is too old for it.
		if err != nil && !problem.Is(err, problem.Conflict) && first == nil {
			first = err
		}
	}
	return first
}

// reasonMissing is what observe says of a VM that is not on its node. It takes back only this, no other error.
const reasonMissing = "its domain is missing on its node; start the VM to define it again, or delete it"

// observe changes vm to what was seen at the time sent, and reports whether that is worth writing.
func observe(vm *api.VM, agent string, seen map[string]api.VMObservation, sent time.Time) bool {
	if vm.Operation != "" || vm.Status.Agent != agent || !sent.After(vm.Status.Observed) {
		return false
	}
	was, why := vm.Status.Phase, vm.Status.Reason
	// An operation that is undone brings the phase back, but not the reason.
	if !steady(was) && was != api.PhaseUnknown && (was != api.PhaseError || why != reasonMissing && why != "") {
		return false
	}
	now, there := seen[vm.ID]
	switch {
	case there && steady(now.Phase):
		vm.Status.Phase, vm.Status.Reason = now.Phase, now.Reason
	case there:
		return false // something between two phases; the next report will tell
	default:
		vm.Status.Phase, vm.Status.Reason = api.PhaseError, reasonMissing
	}
	if vm.Status.Phase == was && vm.Status.Reason == why && sent.Sub(vm.Status.Observed) < refreshAfter {
		return false
	}
	vm.Status.Observed = sent.UTC()
	return true
}

// steady reports whether a VM stays in this phase by itself.
func steady(p api.Phase) bool {
	return p == api.PhaseRunning || p == api.PhaseStopped || p == api.PhasePaused
}
