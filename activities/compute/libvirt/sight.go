package libvirt

import (
	"context"
	"errors"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// job is what libvirt is doing with a domain for longer.
type job int

const (
	jobNone     job = iota
	jobOutgoing     // it is leaving
	jobIncoming     // it is arriving
	jobOther        // a dump, a backup...
)

// sight is what libvirt has of a VM at one moment. Taking it waits for no lock, neither ours nor the one that libvirt holds
// while a guest moves.
type sight struct {
	exists bool
	state  libvirt.DomainState
	reason int
	job    job
	stats  *libvirt.DomainJobInfo // of a job that has any
}

func (s *sight) phase() api.Phase {
	if !s.exists {
		return api.PhaseStopped
	}
	return phaseOf(s.state)
}

// broken: a move with post-copy was cut off, so part of the memory is for ever somewhere else. libvirt calls the target's half
// running, but its processors wait for memory that will never come.
func (s *sight) broken() bool {
	switch {
	case s.state == libvirt.DOMAIN_PAUSED && libvirt.DomainPausedReason(s.reason) == libvirt.DOMAIN_PAUSED_POSTCOPY_FAILED,
		s.state == libvirt.DOMAIN_RUNNING && libvirt.DomainRunningReason(s.reason) == libvirt.DOMAIN_RUNNING_POSTCOPY_FAILED:
		return s.exists
	}
	return s.exists && s.postCopy() && s.job == jobNone
}

// postCopy: the guest runs at the target already, while its memory is still being sent.
func (s *sight) postCopy() bool {
	return s.state == libvirt.DOMAIN_PAUSED && libvirt.DomainPausedReason(s.reason) == libvirt.DOMAIN_PAUSED_POSTCOPY
}

// left: it is off because it has moved away.
func (s *sight) left() bool {
	return s.state == libvirt.DOMAIN_SHUTOFF && libvirt.DomainShutoffReason(s.reason) == libvirt.DOMAIN_SHUTOFF_MIGRATED
}

// domainState is what the sight means for a move. What has moved away and is only still defined, because libvirtd died before it
// could forget it, is nothing to go back to.
func (s *sight) domainState() steps.DomainState {
	out := steps.DomainState{Exists: s.exists && !s.left(), Phase: s.phase()}
	if s.broken() {
		out.Phase, out.Broken = api.PhasePaused, true
	}
	return out
}

// see looks at the domain of vm.
func (d *Driver) see(ctx context.Context, vm string) (sight, error) {
	if !api.IsUUID(vm) {
		return sight{}, problem.New(problem.Invalid, "%q is not the ID of a vm", vm)
	}
	got := make(chan sight, 1)
	err := d.linkFor(vm).call(ctx, "look at the domain", func(c *libvirt.Connect) error {
		dom, err := d.own(c, vm)
		if err != nil {
			return err
		}
		defer dom.Free() //nolint:errcheck // frees memory only
		s, err := sightOf(dom)
		if err == nil {
			got <- s
		}
		return err
	})
	if missing(err) {
		return sight{}, nil
	}
	if err != nil {
		return sight{}, err
	}
	return <-got, nil
}

func sightOf(dom *libvirt.Domain) (s sight, err error) {
	s.exists = true
	if s.state, s.reason, err = dom.GetState(); err != nil || s.phase() == api.PhaseStopped {
		return s, err
	}
	// In this order: a job that ends in between has changed the state before it ended.
	s.stats, err = dom.GetJobStats(0)
	var e libvirt.Error
	if errors.As(err, &e) && e.Code == libvirt.ERR_OPERATION_INVALID { // the target of a move has no figures of it
		active, aerr := dom.IsActive()
		if aerr != nil {
			return s, aerr
		}
		if !active {
			s.state, s.reason, err = dom.GetState()
			return s, err
		}
		s.job = jobIncoming
		return s, nil
	}
	if err != nil {
		return s, err
	}
	switch {
	case s.stats.Type == libvirt.DOMAIN_JOB_NONE:
		if s.state, s.reason, err = dom.GetState(); err != nil {
			return s, err
		}
	case s.stats.OperationSet && s.stats.Operation == libvirt.DOMAIN_JOB_OPERATION_MIGRATION_OUT:
		s.job = jobOutgoing
	case s.stats.OperationSet && s.stats.Operation == libvirt.DOMAIN_JOB_OPERATION_MIGRATION_IN:
		s.job = jobIncoming
	default:
		s.job = jobOther
	}
	return s, nil
}

// settling is how often a job that should end is looked at.
const settling = 100 * time.Millisecond

// Settle implements compute.Migrator.
func (d *Driver) Settle(ctx context.Context, vm string) (steps.DomainState, error) {
	t := time.NewTicker(settling)
	defer t.Stop()
	for {
		s, err := d.see(ctx, vm)
		if err != nil {
			return steps.DomainState{}, err
		}
		if s.job != jobOutgoing || s.broken() {
			return s.domainState(), nil
		}
		if !s.postCopy() { // there is no way back from post-copy: it ends or breaks
			d.abort(ctx, vm)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return steps.DomainState{}, overdue(ctx, "end the move", d.opt.URI)
		}
	}
}

// abort asks libvirt to end the job of vm. Whether that works shows in the job; libvirt refuses when it is too early or too
// late.
func (d *Driver) abort(ctx context.Context, vm string) {
	err := d.onJob(ctx, vm, "end the move", (*libvirt.Domain).AbortJob)
	if err != nil {
		d.opt.Log.Debug("a move could not be ended at once", "vm", vm, "error", err)
	}
}

// onJob does something to a domain that is busy, past whoever works on the VM.
func (d *Driver) onJob(ctx context.Context, vm, what string, f func(*libvirt.Domain) error) error {
	return d.linkFor(vm).call(ctx, what, func(c *libvirt.Connect) error {
		dom, err := d.own(c, vm)
		if err != nil {
			return err
		}
		defer dom.Free() //nolint:errcheck // frees memory only
		return f(dom)
	})
}

// Look implements compute.Migrator.
func (d *Driver) Look(ctx context.Context, vm string) (steps.DomainState, error) {
	t := time.NewTicker(settling)
	defer t.Stop()
	for until := time.Now().Add(compute.ArrivalWait); ; {
		s, err := d.see(ctx, vm)
		if err != nil {
			return steps.DomainState{}, err
		}
		if s.job != jobIncoming || s.phase() != api.PhasePaused || s.broken() || time.Now().After(until) {
			return s.domainState(), nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return steps.DomainState{}, overdue(ctx, "look at the domain", d.opt.URI)
		}
	}
}
