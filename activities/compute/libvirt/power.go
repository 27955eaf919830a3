package libvirt

import (
	"context"
	"errors"
	"fmt"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// phaseOf translates what libvirt calls a state. A guest that is shutting down still runs.
func phaseOf(s libvirt.DomainState) api.Phase {
	switch s {
	case libvirt.DOMAIN_RUNNING, libvirt.DOMAIN_BLOCKED, libvirt.DOMAIN_SHUTDOWN:
		return api.PhaseRunning
	case libvirt.DOMAIN_PAUSED, libvirt.DOMAIN_PMSUSPENDED:
		return api.PhasePaused
	default:
		return api.PhaseStopped
	}
}

// with runs f on the domain of vm.
func (d *Driver) with(ctx context.Context, vm, what string, f func(*libvirt.Domain) error) error {
	return d.onVM(ctx, vm, what, func(c *libvirt.Connect) error {
		dom, err := d.own(c, vm)
		if err != nil {
			return err
		}
		defer dom.Free() //nolint:errcheck // frees memory only
		return f(dom)
	})
}

// State implements compute.Observer.
func (d *Driver) State(ctx context.Context, vm string) (api.Phase, error) {
	got := make(chan api.Phase, 1)
	err := d.with(ctx, vm, "look at the domain", func(dom *libvirt.Domain) error {
		s, _, err := dom.GetState()
		if err == nil {
			got <- phaseOf(s)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	return <-got, nil
}

// Start implements compute.Power.
func (d *Driver) Start(ctx context.Context, vm string) (api.Phase, error) {
	before := make(chan api.Phase, 1)
	err := d.with(ctx, vm, "start the domain", func(dom *libvirt.Domain) error {
		s, _, err := dom.GetState()
		if err != nil {
			return err
		}
		before <- phaseOf(s)
		up, err := resume(dom)
		if err != nil || up || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if err = dom.CreateWithFlags(0); noDisk(err) {
			return compute.DiskGone(vm, err)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	return <-before, nil
}

// Stop implements compute.Power.
func (d *Driver) Stop(ctx context.Context, vm string, force bool, timeout time.Duration, progress func(string)) (steps.PowerResult, error) {
	before, err := d.State(ctx, vm)
	res := steps.PowerResult{Before: before}
	if err != nil || before == api.PhaseStopped {
		return res, err
	}
	if !force {
		stopped, err := d.persuade(ctx, vm, persuasion{
			what: "power off", timeout: timeout, progress: progress, listen: d.events.listen,
			ask: func(dom *libvirt.Domain) error { return dom.ShutdownFlags(d.button()) },
			// Whatever the event was about, the domain itself knows.
			obeyed: func(bool) (bool, error) {
				p, err := d.State(ctx, vm)
				return p == api.PhaseStopped || problem.Is(err, problem.NotFound), err
			},
		})
		if err != nil || stopped {
			return res, err
		}
	}
	res.Forced = true
	return res, d.with(ctx, vm, "cut the power", cut)
}

// Reboot implements compute.Power.
func (d *Driver) Reboot(ctx context.Context, vm string, force bool, timeout time.Duration, progress func(string)) (steps.PowerResult, error) {
	before, err := d.State(ctx, vm)
	res := steps.PowerResult{Before: before}
	if err != nil {
		return res, err
	}
	if before == api.PhaseStopped {
		return res, compute.NotRunning(vm)
	}
	if !force {
		restarted, err := d.persuade(ctx, vm, persuasion{
			what: "restart", timeout: timeout, progress: progress, listen: d.reboots.listen,
			ask:    func(dom *libvirt.Domain) error { return dom.Reboot(libvirt.DomainRebootFlagValues(d.button())) },
			obeyed: func(event bool) (bool, error) { return event, nil },
		})
		if err != nil || restarted {
			return res, err
		}
	}
	res.Forced = true
	return res, d.with(ctx, vm, "reset the domain", func(dom *libvirt.Domain) error {
		if err := dom.Reset(0); err != nil {
			return err
		}
		_, err := resume(dom)
		return err
	})
}

// button is how a guest is asked: by the ACPI power button where there is one, else as libvirt knows best. Reboots take the
// same flag under another name.
func (d *Driver) button() libvirt.DomainShutdownFlags {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.facts != nil && d.facts.acpi {
		return libvirt.DOMAIN_SHUTDOWN_ACPI_POWER_BTN
	}
	return libvirt.DOMAIN_SHUTDOWN_DEFAULT
}

// persuasion is a request that a guest may not hear, or not obey.
type persuasion struct {
	what     string
	timeout  time.Duration
	progress func(string)
	listen   func(context.Context) <-chan compute.Event
	ask      func(*libvirt.Domain) error
	obeyed   func(event bool) (bool, error) // event: something happened to the VM since the last time
}

// look is how often the domain is looked at while no event comes: events are lost with the connection that carries them.
const look = time.Second

// persuade asks again and again until the guest obeys, which it reports, or the time is over, or ctx ends. That libvirtd is
// away meanwhile is no reason to give up: the guest does not notice.
func (d *Driver) persuade(ctx context.Context, vm string, p persuasion) (obeyed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if p.timeout <= 0 {
		p.timeout = compute.DefaultStopTimeout
	}
	if _, err := d.known(ctx); err != nil && !problem.Is(err, problem.Unavailable) {
		return false, err
	}
	events := p.listen(ctx)
	over, nag, looks := time.NewTimer(p.timeout), time.NewTicker(compute.Nag), time.NewTicker(look)
	defer over.Stop()
	defer nag.Stop()
	defer looks.Stop()
	ask := func() error {
		err := d.with(ctx, vm, p.what, func(dom *libvirt.Domain) error {
			if s, _, err := dom.GetState(); err != nil || phaseOf(s) == api.PhasePaused {
				return errors.Join(err, dom.Resume()) // a paused guest hears nothing
			}
			return p.ask(dom)
		})
		if problem.Is(err, problem.Unavailable) || problem.Is(err, problem.Conflict) || problem.Is(err, problem.Internal) {
			return nil // away, or stopping already, or cannot: time will tell
		}
		return err
	}
	began := time.Now()
	err = ask()
	for err == nil {
		event := false
		select {
		case e := <-events:
			if event = e.VM == vm; !event && e.VM != "" {
				continue
			}
		case <-looks.C:
		case <-nag.C:
			if p.progress != nil {
				p.progress(fmt.Sprintf("asked the guest to %s, %s ago", p.what, time.Since(began).Round(time.Second)))
			}
			err = ask()
		case <-over.C:
			return p.obeyed(false)
		case <-ctx.Done():
			return false, overdue(ctx, p.what, d.opt.URI)
		}
		if err != nil {
			break
		}
		if obeyed, err = p.obeyed(event); obeyed {
			return true, nil
		}
		if problem.Is(err, problem.Unavailable) {
			err = nil
		}
	}
	if problem.Is(err, problem.NotFound) { // gone is as good as off
		return true, nil
	}
	return false, err
}
