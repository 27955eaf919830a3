package fleet

import (
	"context"
	"slices"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// How often the HA VMs of a dead node that its recovery has left there are tried again.
const (
	// askEvery is how often it is asked whether one of them could be started elsewhere now. To ask changes nothing.
	askEvery = time.Minute
	// triedAtMost is the longest pause after a recovery that was begun for one of them: the pauses begin with askEvery, and each
	// is twice the one before. What cannot be started anywhere must not make operations for ever.
	triedAtMost = 30 * time.Minute
)

// left is what is remembered of a VM that was left on a dead node. It is forgotten with the server: the next one tries again,
// not sooner than it wonders about anybody.
type left struct {
	due   time.Time // from when on it is worth asking again
	tried int       // recoveries that were begun for it
}

// again tries the HA VMs of dead nodes once more that were not started elsewhere when the nodes died: an operation held them,
// there was no room, or it went wrong. A recovery is only begun if it would start at least one of them. In each sweep one node
// is asked about, the one that has waited longest, since to ask means to plan.
func (f *Fleet) again(ctx context.Context, agents []*api.Agent, now time.Time) error {
	if f.Recoverable == nil || f.Recover == nil {
		return nil
	}
	var next *api.Agent
	var since time.Time
	known := map[string]map[string]*left{}
	for _, a := range agents {
		if a.Status.Phase != api.PhaseDown {
			continue
		}
		due, err := f.remember(a, now, known)
		if err != nil {
			return err
		}
		idle := a.Operation == "" && now.Sub(a.Status.Observed) >= f.suspectAfter() // else it is worked on, or is just coming back
		if idle && !due.IsZero() && !due.After(now) && (next == nil || due.Before(since)) {
			next, since = a, due
		}
	}
	f.watch.left = known
	if next == nil {
		return nil
	}
	return f.tryAgain(ctx, next, known[next.ID], now)
}

// remember brings up to date what is known of the VMs that were left on a dead node, and returns when the first of them is due
// that waits; zero: none waits.
func (f *Fleet) remember(a *api.Agent, now time.Time, known map[string]map[string]*left) (due time.Time, err error) {
	vms, err := f.vmsOn(a.ID)
	if err != nil {
		return due, err
	}
	known[a.ID] = map[string]*left{}
	for _, vm := range vms {
		l := f.watch.left[a.ID][vm.ID]
		if waits(vm) {
			if l == nil {
				l = &left{due: now.Add(f.suspectAfter())} // its node's recovery may be about to
			}
			if due.IsZero() || l.due.Before(due) {
				due = l.due
			}
		}
		if l != nil {
			known[a.ID][vm.ID] = l
		}
	}
	return due, nil
}

// waits reports whether a VM of a dead node may be one to start elsewhere. What else is needed, planning tells.
func waits(vm *api.VM) bool {
	return vm.Spec.HA && vm.Operation == "" && vm.Status.Phase == api.PhaseUnknown
}

// tryAgain begins another recovery of a dead node if it would start somebody whose turn it is.
func (f *Fleet) tryAgain(ctx context.Context, a *api.Agent, vms map[string]*left, now time.Time) error {
	ids, err := f.Recoverable(ctx, a.ID)
	if err != nil {
		return problem.Wrap(err, problem.Internal, "it cannot be told which VMs of agent %s could be started elsewhere", a.Name)
	}
	worth := false
	for id, l := range vms {
		if l.due.After(now) {
			continue
		}
		worth = worth || slices.Contains(ids, id)
		l.due = now.Add(askEvery)
	}
	if !worth {
		return nil
	}
	err = f.Recover(ctx, a)
	if problem.Is(err, problem.Locked) || problem.Is(err, problem.Conflict) {
		return nil // somebody else has just begun, or it is back
	}
	if err != nil {
		return problem.Wrap(err, problem.Internal, "the recovery of agent %s cannot begin again", a.Name)
	}
	for _, id := range ids {
		if l := vms[id]; l != nil {
			l.tried++
			l.due = now.Add(pauseOf(l.tried))
		}
	}
	f.Log.Info("recovery has begun again: VMs that were left can be started elsewhere now", "agent", a.ID, "name", a.Name, "vms", len(ids))
	return nil
}

// pauseOf is how long a VM is left alone for which a number of recoveries have been begun.
func pauseOf(tried int) time.Duration {
	d := askEvery
	for i := 1; i < tried && d < triedAtMost; i++ {
		d *= 2
	}
	return min(d, triedAtMost)
}
