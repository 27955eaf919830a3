package libvirt

import (
	"context"
	"slices"
	"strings"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/workflows/steps"
)

// List implements compute.Observer.
func (d *Driver) List(ctx context.Context) ([]steps.DomainFound, error) {
	got := make(chan []steps.DomainFound, 1)
	err := d.link.call(ctx, "list the domains", func(c *libvirt.Connect) error {
		// One call for all. It does not wait for a domain on which a long job runs.
		stats, err := c.GetAllDomainStats(nil, libvirt.DOMAIN_STATS_STATE, libvirt.CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
		if err != nil {
			return err
		}
		out := make([]steps.DomainFound, 0, len(stats))
		for _, s := range stats {
			f, ferr := d.found(s)
			s.Domain.Free() //nolint:errcheck // frees memory only
			if missing(ferr) {
				continue // it went away meanwhile
			}
			if ferr != nil && err == nil {
				err = ferr
			}
			out = append(out, f)
		}
		slices.SortFunc(out, func(a, b steps.DomainFound) int { return strings.Compare(a.ID, b.ID) })
		got <- out
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-got, nil
}

func (d *Driver) found(s libvirt.DomainStats) (f steps.DomainFound, err error) {
	if f.ID, err = s.Domain.GetUUIDString(); err != nil {
		return f, err
	}
	if f.Name, err = s.Domain.GetName(); err != nil {
		return f, err
	}
	var state libvirt.DomainState
	var why int
	if s.State != nil && s.State.StateSet {
		state, why = s.State.State, s.State.Reason
	} else if state, why, err = s.Domain.GetState(); err != nil {
		return f, err
	}
	f.Phase = phaseOf(state)
	if state == libvirt.DOMAIN_PAUSED && libvirt.DomainPausedReason(why) == libvirt.DOMAIN_PAUSED_IOERROR {
		f.Reason = "a disk of it gave an error: its pool may be full or away; make room, then start it again"
	}
	d.mu.Lock()
	f.Ours = d.ours[f.ID]
	d.mu.Unlock()
	if f.Ours {
		return f, nil
	}
	if f.Ours, err = marked(s.Domain); err == nil && f.Ours {
		d.mu.Lock()
		d.ours[f.ID] = true
		d.mu.Unlock()
	}
	return f, err
}

// Events implements compute.Observer. It connects by itself only when somebody calls another method.
func (d *Driver) Events(ctx context.Context) <-chan compute.Event { return d.events.listen(ctx) }

// subscribe asks for the events of a new connection.
func (d *Driver) subscribe(c *libvirt.Connect) (ids []int, err error) {
	id, err := c.DomainEventLifecycleRegister(nil, func(_ *libvirt.Connect, dom *libvirt.Domain, e *libvirt.DomainEventLifecycle) {
		vm, err := dom.GetUUIDString()
		if err != nil {
			return
		}
		if e.Event == libvirt.DOMAIN_EVENT_DEFINED || e.Event == libvirt.DOMAIN_EVENT_UNDEFINED {
			d.mu.Lock()
			delete(d.ours, vm)
			d.mu.Unlock()
		}
		d.events.send(compute.Event{VM: vm})
	})
	if err != nil {
		return ids, err
	}
	ids = append(ids, id)
	id, err = c.DomainEventRebootRegister(nil, func(_ *libvirt.Connect, dom *libvirt.Domain) {
		if vm, err := dom.GetUUIDString(); err == nil {
			d.reboots.send(compute.Event{VM: vm})
		}
	})
	if err != nil {
		return ids, err
	}
	// What happened while nobody listened is not known.
	d.events.send(compute.Event{})
	return append(ids, id), nil
}
