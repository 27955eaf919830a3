package libvirt

import (
	"context"
	"errors"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// A guest that rests for a moment carries a mark that says so: whoever finds it awake again after an agent has died knows that
// nobody but us has paused it.

// rest pauses a guest that runs. One that is paused stays as it is.
func rest(dom *libvirt.Domain) error {
	s, _, err := dom.GetState()
	if err != nil || phaseOf(s) != api.PhaseRunning {
		return err
	}
	if err := markRest(dom); err != nil {
		return err
	}
	return dom.Suspend()
}

// hold pauses a guest that runs, or rests, so that only release lets it go on. One that somebody else has paused stays as it is.
func hold(dom *libvirt.Domain) error {
	marked, held, _, err := restOf(dom)
	if err != nil || held {
		return err
	}
	s, _, err := dom.GetState()
	if err != nil || phaseOf(s) != api.PhaseRunning && !marked {
		return err
	}
	if err := mark(dom, domain.HeldElement(time.Now())); err != nil || phaseOf(s) != api.PhaseRunning {
		return err
	}
	return dom.Suspend()
}

// restOf returns what the mark of a guest says that rests; it is not marked if it does not rest, or not run.
func restOf(dom *libvirt.Domain) (marked, held bool, since time.Time, err error) {
	element, err := dom.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, domain.RestNamespace, libvirt.DOMAIN_AFFECT_LIVE)
	var e libvirt.Error
	if errors.As(err, &e) && (e.Code == libvirt.ERR_NO_DOMAIN_METADATA || e.Code == libvirt.ERR_OPERATION_INVALID) {
		return false, false, since, nil
	}
	if err == nil {
		since, held, err = domain.ReadRest(element)
	}
	return err == nil, held, since, err
}

// wake ends the rest of a guest, if it rests and is not held.
func wake(dom *libvirt.Domain) error {
	if marked, held, _, err := restOf(dom); err != nil || !marked || held {
		return err
	}
	return awake(dom)
}

// release ends the rest of a guest, if it rests, whether it is held or not.
func release(dom *libvirt.Domain) error {
	if marked, _, _, err := restOf(dom); err != nil || !marked {
		return err
	}
	return awake(dom)
}

// LetGoOn implements compute.Disks.
func (d *Driver) LetGoOn(ctx context.Context, vm string) (pause time.Duration, err error) {
	began := make(chan time.Time, 1)
	err = d.with(ctx, vm, "let the guest go on", func(dom *libvirt.Domain) error {
		_, held, since, err := restOf(dom)
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if err = release(dom); err == nil && held {
			began <- since
		}
		return err
	})
	select {
	case since := <-began:
		return time.Since(since), err
	default:
		return 0, err
	}
}

// awake lets a guest go on that rests.
func awake(dom *libvirt.Domain) error {
	s, _, err := dom.GetState()
	if err != nil {
		return err
	}
	if phaseOf(s) == api.PhasePaused {
		if err := dom.Resume(); err != nil {
			return err
		}
	}
	if xml, err := dom.GetXMLDesc(0); err == nil && domain.Listens(xml) {
		dom.FSThaw(nil, 0) //nolint:errcheck // file systems that were not frozen cannot be thawed
	}
	return dom.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, "", domain.RestPrefix, domain.RestNamespace, libvirt.DOMAIN_AFFECT_LIVE)
}

// resting is how a guest was brought to rest.
type resting struct {
	frozen bool // its file systems are at rest; else it is paused
	since  time.Time
}

// Resting implements compute.Disks. A guest whose file systems cannot be brought to rest is paused.
func (d *Driver) Resting(ctx context.Context, vm string, do func() error) (rested bool, pause time.Duration, err error) {
	got := make(chan resting, 1)
	err = d.with(ctx, vm, "bring the guest to rest", func(dom *libvirt.Domain) error {
		s, _, err := dom.GetState()
		if err != nil || phaseOf(s) == api.PhaseStopped {
			return err
		}
		if err := wake(dom); err != nil {
			return err
		}
		if s, _, err = dom.GetState(); err != nil || phaseOf(s) != api.PhaseRunning {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r := resting{since: time.Now()}
		r.frozen, err = quiet(dom)
		got <- r
		return err
	})
	if err == nil {
		err = do()
	}
	select {
	case r := <-got:
		werr := d.with(context.WithoutCancel(ctx), vm, "let the guest go on", wake)
		if missing(werr) {
			werr = nil
		}
		return r.frozen, time.Since(r.since), errors.Join(err, werr)
	default: // it does not run, or nobody knows how far it came: who comes next wakes it
		return false, 0, err
	}
}

// Freezing implements compute.Disks.
func (d *Driver) Freezing(ctx context.Context, vm string, freeze bool, do func() error) (done compute.Switched, err error) {
	var since time.Time
	got := make(chan compute.Switched, 1)
	err = d.with(ctx, vm, "bring the guest's file systems to rest", func(dom *libvirt.Domain) error {
		if err := wake(dom); err != nil { // whom an agent before this one has left at rest
			return err
		}
		s, _, err := dom.GetState()
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		out := compute.Switched{Running: phaseOf(s) != api.PhaseStopped}
		since = time.Now()
		if freeze && phaseOf(s) == api.PhaseRunning {
			out.Frozen, err = freezes(dom)
		}
		if err == nil {
			got <- out
		}
		return err
	})
	if err != nil {
		return done, err
	}
	done = <-got
	err = do()
	if done.Running {
		werr := d.with(context.WithoutCancel(ctx), vm, "let the guest go on", wake)
		if missing(werr) || problem.Is(werr, problem.NotFound) {
			werr = nil
		}
		err, done.Pause = errors.Join(err, werr), time.Since(since)
	}
	return done, err
}

// markRest marks a guest that is going to rest.
func markRest(dom *libvirt.Domain) error { return mark(dom, domain.RestElement) }

func mark(dom *libvirt.Domain, element string) error {
	return dom.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, element, domain.RestPrefix, domain.RestNamespace, libvirt.DOMAIN_AFFECT_LIVE)
}

// freezes brings the file systems of a guest to rest, if it can.
func freezes(dom *libvirt.Domain) (bool, error) {
	xml, err := dom.GetXMLDesc(0)
	if err != nil || !domain.Listens(xml) {
		return false, err
	}
	if err := markRest(dom); err != nil {
		return false, err
	}
	dom.AgentSetResponseTimeout(agentPatience, 0) //nolint:errcheck // then it is libvirt's own
	return dom.FSFreeze(nil, 0) == nil, nil
}

// quiet freezes the file systems of a guest, or else pauses it.
func quiet(dom *libvirt.Domain) (frozen bool, err error) {
	if is, err := freezes(dom); is || err != nil {
		return is, err
	}
	return false, rest(dom)
}
