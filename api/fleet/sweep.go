package fleet

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// watch is what the sweeps remember from one to the next.
type watch struct {
	mu    sync.Mutex
	last  time.Time                   // of the last sweep that could see
	fresh time.Time                   // silence counts from here on: before, it may be the server that did not hear
	begun map[string]time.Time        // by agent: the Observed of the silence that its recovery was begun for
	left  map[string]map[string]*left // by agent and VM: what the recoveries of dead nodes have left there
	said  bool
}

// What is added to the reason of a suspect agent while its recovery does not begin.
const (
	butMany   = "; more than half of the agents are silent, so it is rather the server that is cut off, and nothing is begun"
	butIdle   = "; no HA VM is on it, so nothing is started elsewhere"
	butLocked = "; its recovery waits for operation "
)

// Sweep suspects the agents that have been silent for too long, looks at the pools again that lose a node by it, says of the
// VMs on them that nobody knows whether they run, begins their recovery, and tries again what was left on dead ones. One agent that cannot be written does not keep
// the others from it.
func (f *Fleet) Sweep(ctx context.Context, now time.Time) error {
	f.watch.mu.Lock()
	defer f.watch.mu.Unlock()
	now = f.Clock.At(now)
	if err := f.Cache.Err(); err != nil {
		return err // blind; the gap to the next sweep that is not tells how long
	}
	page, err := store.ListCached[api.Agent](f.Cache, f.self, "", "", 0, nil)
	if err != nil {
		return err
	}
	f.agents.Store(int64(len(page.Items)))
	f.heard(now)
	silent, many := f.silentOnes(page.Items, now)
	var errs []error
	for _, a := range silent {
		var err error
		if a.Status.Phase != api.PhaseDown {
			a, err = f.suspect(ctx, a.ID, now)
			if err == nil && a != nil {
				err = f.recover(ctx, a, many)
			}
		}
		if err == nil && a != nil {
			err = f.unknown(ctx, a)
		}
		errs = append(errs, err)
	}
	if !many && !now.Before(f.watch.fresh) {
		errs = append(errs, f.again(ctx, silent, now))
	}
	return errors.Join(errs...)
}

// heard works out from when on silence counts. The server gives all agents time to be heard after it has begun, and after it
// did not look for so long that it may have been asleep, or cut off from its store.
func (f *Fleet) heard(now time.Time) {
	grace := f.suspectAfter()
	if f.watch.last.IsZero() {
		f.watch.fresh = f.Clock.Began().Add(grace)
	} else if now.Sub(f.watch.last) > grace {
		f.watch.fresh = now
	}
	f.watch.last = now
}

// silentOnes returns the agents that are silent, and whether they are more than half of those that could be alive. Those that
// were proven dead count for neither.
func (f *Fleet) silentOnes(agents []*api.Agent, now time.Time) (silent []*api.Agent, many bool) {
	missed, all := 0, 0
	for _, a := range agents {
		down := a.Status.Phase == api.PhaseDown
		heard := a.Status.Observed
		if heard.Before(f.watch.fresh) && a.Status.Phase != api.PhaseSuspect {
			heard = f.watch.fresh
		}
		quiet := down || now.Sub(heard) >= f.suspectAfter()
		if quiet {
			silent = append(silent, a)
		}
		if !down {
			all++
			if quiet {
				missed++
			}
		}
	}
	many = 2*missed > all
	if many != f.watch.said {
		f.watch.said = many
		if many {
			f.Log.Error("MORE THAN HALF OF THE AGENTS ARE SILENT: no recovery is begun, since it is rather the server that is cut off", "silent", missed, "agents", all)
		} else {
			f.Log.Info("most agents report again", "silent", missed, "agents", all)
		}
	}
	return silent, many
}

// suspect makes a silent agent suspect, and returns it as it is then; nil if it has just reported.
func (f *Fleet) suspect(ctx context.Context, agent string, now time.Time) (*api.Agent, error) {
	beat, a, err := f.known(ctx, agent, true)
	if err != nil {
		return nil, err
	}
	beat.Show(a)
	if a.Status.Phase == api.PhaseSuspect {
		return a, nil
	}
	a.Status.Phase, a.Status.Since, a.Status.Reason = api.PhaseSuspect, now, silence(a)
	d := store.NewDraft(f.self)
	d.Update(a)
	d.Beat(agent, beat) // so that a report of this moment either comes before or sees it
	revision, err := d.Commit(ctx, f.KV)
	if problem.Is(err, problem.Conflict) {
		return nil, nil // it has just reported, or the next sweep will see
	}
	if err != nil {
		return nil, err
	}
	f.Log.Warn("agent is silent", "agent", a.ID, "name", a.Name, "observed", a.Status.Observed)
	if err := f.caughtUp(ctx, revision); err != nil {
		return nil, err
	}
	if err := f.observePools(ctx, agent); err != nil {
		return nil, err
	}
	return store.Get[api.Agent](ctx, f.KV, f.self, "", agent)
}

func silence(a *api.Agent) string {
	return "has not reported since " + a.Status.Observed.UTC().Format(time.RFC3339)
}

// recover begins the recovery of a suspect agent, once for each silence. A node without HA VMs is left in peace: there is
// nothing to start elsewhere, and so no reason to cut its power.
func (f *Fleet) recover(ctx context.Context, a *api.Agent, many bool) error {
	if f.Recover == nil || f.watch.begun[a.ID].Equal(a.Status.Observed) {
		return nil
	}
	why := silence(a)
	vms, err := f.vmsOn(a.ID)
	if err != nil {
		return err
	}
	if !many && !slices.ContainsFunc(vms, func(vm *api.VM) bool { return vm.Spec.HA }) {
		return f.explain(ctx, a.ID, why+butIdle)
	}
	var failed error
	if many {
		why += butMany
	} else {
		err := f.Recover(ctx, a)
		switch {
		case err == nil:
			f.watch.begun[a.ID] = a.Status.Observed
			f.Log.Info("recovery has begun", "agent", a.ID, "name", a.Name)
		case problem.Is(err, problem.Locked):
			why += butLocked + a.Operation
		default:
			failed = problem.Wrap(err, problem.Internal, "the recovery of agent %s cannot begin", a.Name)
		}
	}
	return errors.Join(failed, f.explain(ctx, a.ID, why))
}

// explain writes why a suspect agent is what it is, if that is news.
func (f *Fleet) explain(ctx context.Context, agent, why string) error {
	return store.Retry(ctx, func() error {
		a, err := store.Get[api.Agent](ctx, f.KV, f.self, "", agent)
		if err != nil || a.Status.Phase != api.PhaseSuspect || a.Status.Reason == why {
			return err
		}
		a.Status.Reason = why
		d := store.NewDraft(f.self)
		d.Update(a)
		_, err = d.Commit(ctx, f.KV)
		return err
	})
}

// unknown says of the VMs of a silent node that no operation holds that nobody knows whether they run. Those that are stopped
// are stopped, as far as anybody here has to do with it: they must not be taken for ones that ran.
func (f *Fleet) unknown(ctx context.Context, a *api.Agent) error {
	vms, err := f.vmsOn(a.ID)
	if err != nil {
		return err
	}
	var errs []error
	for _, cached := range vms {
		if cached.Operation != "" || cached.Status.Phase != api.PhaseRunning && cached.Status.Phase != api.PhasePaused {
			continue
		}
		vm := *cached
		vm.Status.Phase, vm.Status.Reason = api.PhaseUnknown, "agent "+a.Name+" "+silence(a)
		d := store.NewDraft(f.self)
		d.Update(&vm)
		if _, err := d.Commit(ctx, f.KV); err != nil && !problem.Is(err, problem.Conflict) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
