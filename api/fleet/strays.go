package fleet

import (
	"context"
	"errors"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// strays returns the VMs of a report that must not run on its node: they are elsewhere now. The cache finds them, but only the
// store condemns.
//
// While the node is not down, a VM that an operation holds is left alone: it may be on its way here or from here. So is one
// that has no record, and one that nobody has seen at the node of its record since this server began: the store might have been
// brought back from an older copy, and this be the only place where it runs. The audit tells of those. When the node was dead
// and comes back, what it still has and somebody else may have started meanwhile is stopped before anything else.
func (f *Fleet) strays(ctx context.Context, a *api.Agent, r *api.AgentReport) ([]string, error) {
	if r.Error != "" {
		return nil, nil // it tells of an earlier time
	}
	down := a.Status.Phase == api.PhaseDown
	var out []string
	for _, o := range r.VMs {
		vm, err := f.cachedVM(o.ID)
		if err != nil {
			return nil, err
		}
		if !f.stray(a, vm, o.Phase, down) {
			continue
		}
		if vm, err = f.findVM(ctx, o.ID); err != nil && !problem.Is(err, problem.NotFound) {
			return nil, err
		}
		if f.stray(a, vm, o.Phase, down) {
			out = append(out, o.ID)
		}
	}
	return out, nil
}

// stray decides on one VM that was seen in a phase on a's node; nil: it has no record.
func (f *Fleet) stray(a *api.Agent, vm *api.VM, seen api.Phase, down bool) bool {
	switch {
	case vm == nil:
		return down
	case vm.Status.Agent == a.ID:
		// Its recovery may start it elsewhere, or has. After a proof it cannot run here; if it does, the proof was wrong.
		return down && vm.Spec.HA && seen != api.PhaseStopped && (vm.Operation != "" || a.Operation != "")
	case vm.Status.MovingTo == a.ID:
		return false
	case vm.Operation != "":
		return down
	default:
		atHome := vm.Status.Phase == api.PhaseRunning || vm.Status.Phase == api.PhasePaused || vm.Status.Phase == api.PhaseStopped
		return down || vm.Status.Agent != "" && atHome && vm.Status.Observed.After(f.Clock.Began())
	}
}

// restart starts the HA VMs again that their node stopped because it had no lease, and returns those that need not be told of
// any more.
func (f *Fleet) restart(ctx context.Context, agent string, r *api.AgentReport) (noted []string, err error) {
	var errs []error
	for _, id := range r.Stopped {
		vm, err := f.findVM(ctx, id)
		if err != nil && !problem.Is(err, problem.NotFound) {
			errs = append(errs, err)
			continue
		}
		runs := slices.ContainsFunc(r.VMs, func(o api.VMObservation) bool { return o.ID == id && o.Phase != api.PhaseStopped })
		switch {
		case vm == nil || vm.Status.Agent != agent || !vm.Spec.HA || runs:
			noted = append(noted, id) // it is seen to, or nobody wants it back
		case vm.Operation != "" || f.Restart == nil || vm.Status.Phase != api.PhaseStopped && vm.Status.Phase != api.PhaseError:
			// Later, when nobody holds it any more, and what was seen of it stands in its record.
		default:
			if err := f.Restart(ctx, vm); err != nil {
				errs = append(errs, err)
				continue
			}
			f.Log.Info("vm is started again: its node had stopped it for want of a lease", "vm", vm.ID, "name", vm.Name, "agent", agent)
			noted = append(noted, id)
		}
	}
	return noted, errors.Join(errs...)
}

// findVM returns the VM with this ID, whatever project it is in. The cache tells where its record is, which never changes;
// the record itself is read from the store.
func (f *Fleet) findVM(ctx context.Context, id string) (*api.VM, error) {
	if !api.IsUUID(id) {
		return nil, store.NoSuch(api.KindVM, "*", id)
	}
	cached, err := f.cachedVM(id)
	if err != nil {
		return nil, err
	}
	if cached != nil {
		return store.Get[api.VM](ctx, f.KV, f.self, cached.Project, id)
	}
	// It is newer than the cache, or it does not exist.
	all, err := store.List[api.VM](ctx, f.KV, f.self, "*")
	if err != nil {
		return nil, err
	}
	for _, vm := range all {
		if vm.ID == id {
			return vm, nil
		}
	}
	return nil, store.NoSuch(api.KindVM, "*", id)
}
