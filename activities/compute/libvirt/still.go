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

// TakeStill implements compute.Checkpoints. A snapshot of whose disks some are somebody else's ("manual") libvirt ends with the guest
// paused, the others switched. The guest carries the mark of one that rests from before that on: whoever comes after an agent that died lets it go on.
func (d *Driver) TakeStill(ctx context.Context, vm string, c compute.StillCheckpoint, tell func(api.Progress)) (time.Duration, error) {
	if _, err := d.idle(ctx, vm, func() { d.abort(ctx, vm) }); err != nil { // what an agent before this one has begun is worth nothing
		return 0, err
	}
	type work struct {
		xml   string
		flags libvirt.DomainSnapshotCreateFlags
	}
	order := make(chan work, 1)
	err := d.with(ctx, vm, "look at the disks of the guest", func(dom *libvirt.Domain) error {
		if err := wake(dom); err != nil {
			return err
		}
		if s, _, err := dom.GetState(); err != nil || phaseOf(s) != api.PhaseRunning {
			return errors.Join(err, compute.NotRunning(vm))
		}
		xml, err := scope{dom, true}.xml()
		if err != nil {
			return err
		}
		flags, err := d.checkpointFlags(vm, xml)
		if err != nil {
			return err
		}
		if xml, err = domain.StillXML(xml, c); err != nil {
			return err
		}
		if err := layersFor(vm, scope{dom, true}, c); err != nil {
			return err
		}
		order <- work{xml, flags}
		return dom.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, domain.RestElement, domain.RestPrefix, domain.RestNamespace, libvirt.DOMAIN_AFFECT_LIVE)
	})
	if err != nil {
		return 0, err
	}
	w, still := <-order, newStandstill(vm)
	err = d.long(ctx, longCall{vm: vm, what: "take a checkpoint of the guest", tell: tell, text: "writing the memory of the guest", onLink: still.listen, do: func(conn *libvirt.Connect) error {
		dom, err := d.own(conn, vm)
		if err != nil {
			return err
		}
		defer dom.Free() //nolint:errcheck // frees memory only
		snap, err := dom.CreateSnapshotXML(w.xml, w.flags)
		if err == nil {
			snap.Free() //nolint:errcheck // frees memory only
		}
		return err
	}})
	written := time.Now()
	if ctx.Err() != nil && err != nil {
		return 0, err // libvirt goes on with it: who comes next ends that
	}
	if err == nil {
		err = d.keepStill(ctx, vm, c)
	}
	werr := d.with(context.WithoutCancel(ctx), vm, "let the guest go on", wake)
	if missing(werr) || problem.Is(werr, problem.NotFound) {
		werr = nil
	}
	return still.until(written), errors.Join(err, werr)
}

// layersFor makes the layers that disks of a guest are to be written to, and has the domain be started with them, as SwitchDisk does.
func layersFor(vm string, live scope, c compute.StillCheckpoint) error {
	if len(c.Disks) == 0 {
		return nil
	}
	if err := live.allAgreed(); err != nil {
		return err
	}
	if on, err := live.on(c.Disks); err != nil || on > 0 {
		return errors.Join(err, compute.StillOn(vm))
	}
	if c.Fresh != nil {
		if err := c.Fresh(); err != nil {
			return err
		}
	}
	return placeAll(live.dom, c.Disks)
}

// EndStill implements compute.Checkpoints.
func (d *Driver) EndStill(ctx context.Context, vm string) error {
	s, err := d.idle(ctx, vm, func() { d.abort(ctx, vm) })
	if err != nil || !s.exists {
		return err
	}
	err = d.with(ctx, vm, "let the guest go on", wake)
	if missing(err) || problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// keepStill has the disks of a guest be kept that stands still.
func (d *Driver) keepStill(ctx context.Context, vm string, c compute.StillCheckpoint) error {
	for _, do := range []func() error{c.Keep, c.Kept} {
		s, err := d.see(ctx, vm)
		if err != nil {
			return err
		}
		if s.phase() != api.PhasePaused || s.job != jobNone {
			return compute.WokenMeanwhile(vm)
		}
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

// until returns for how long a guest has stood still that has just gone on, and was still at that time at the latest.
func (s *standstill) until(late time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.IsZero() {
		return time.Since(late)
	}
	return time.Since(s.since)
}

// restoredAs says as what a guest has gone on from a memory, as Restore.As calls it; empty: it has not.
func restoredAs(dom *libvirt.Domain) (string, error) {
	s, err := dom.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, domain.RestoredNamespace, libvirt.DOMAIN_AFFECT_LIVE)
	var e libvirt.Error
	if errors.As(err, &e) && (e.Code == libvirt.ERR_NO_DOMAIN_METADATA || e.Code == libvirt.ERR_OPERATION_INVALID) {
		return "", nil // it has not, or does not run
	}
	if err != nil {
		return "", err
	}
	return domain.ReadRestored(s)
}

// DropRestored implements compute.Checkpoints.
func (d *Driver) DropRestored(ctx context.Context, vm, as string) error {
	err := d.with(ctx, vm, "end the guest", func(dom *libvirt.Domain) error {
		is, err := restoredAs(dom)
		if err != nil || is != as {
			return err
		}
		return cut(dom)
	})
	if missing(err) || problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}
