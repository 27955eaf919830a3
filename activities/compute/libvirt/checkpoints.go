package libvirt

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// TakeCheckpoint implements compute.Checkpoints. libvirt writes the memory while the guest goes on, stops it for what is left, has
// QEMU switch all disks at once, and only then lets it go on: so disks that are switched say that the memory is whole. A guest that is
// emulated stands still from the beginning: of what it writes meanwhile QEMU would lose some, as when it moves (see standsStill).
func (d *Driver) TakeCheckpoint(ctx context.Context, vm string, c compute.Checkpoint, tell func(api.Progress)) (time.Duration, error) {
	if _, err := d.idle(ctx, vm, nil); err != nil { // it may be what an agent before this one has begun
		return 0, err
	}
	if err := d.takeBack(ctx, vm, c.Disks); err != nil {
		return 0, err
	}
	type work struct {
		xml   string
		flags libvirt.DomainSnapshotCreateFlags
	}
	order := make(chan work, 1)
	err := d.with(ctx, vm, "look at the disks of the guest", func(dom *libvirt.Domain) error {
		if active, err := dom.IsActive(); err != nil || !active {
			return errors.Join(err, compute.NotRunning(vm))
		}
		live := scope{dom, true}
		if err := live.allAgreed(); err != nil {
			return err
		}
		on, err := live.on(c.Disks)
		switch {
		case err != nil:
			return err
		case on == len(c.Disks):
			return wake(dom)
		case on > 0:
			return compute.HalfSwitched(vm)
		}
		if c.Fresh != nil {
			if err := c.Fresh(); err != nil {
				return err
			}
		}
		if err := placeAll(dom, c.Disks); err != nil { // before the switch, as SwitchDisk does
			return err
		}
		if err := wake(dom); err != nil {
			return err
		}
		xml, err := live.xml()
		if err != nil {
			return err
		}
		flags, err := d.checkpointFlags(vm, xml)
		if err != nil {
			return err
		}
		if xml, err = domain.CheckpointXML(xml, c); err == nil {
			order <- work{xml, flags}
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	still, taken := newStandstill(vm), false
	select {
	case w := <-order:
		taken = true
		err = d.long(ctx, longCall{vm: vm, what: "take a checkpoint of the guest", tell: tell, text: "writing the memory of the guest", onLink: still.listen, do: func(conn *libvirt.Connect) error {
			dom, err := d.own(conn, vm)
			if err != nil {
				return err
			}
			defer dom.Free() //nolint:errcheck // frees memory only
			snap, err := dom.CreateSnapshotXML(w.xml, w.flags)
			if err != nil && !lost(err) && ctx.Err() == nil { // a libvirtd that died may have left the layers open
				if ferr := forget(dom, c.Disks); ferr != nil {
					return errors.Join(ferr, err)
				}
				snap, err = dom.CreateSnapshotXML(w.xml, w.flags)
			}
			if err == nil {
				snap.Free()  //nolint:errcheck // frees memory only
				still.wait() // the connection tells of it
			}
			return err
		}})
	default:
	}
	if err != nil {
		return 0, err
	}
	err = d.with(ctx, vm, "place the disks", func(dom *libvirt.Domain) error { return placeAll(dom, c.Disks) })
	if err != nil || !taken {
		return 0, err
	}
	return still.length(), nil
}

// checkpointFlags says how a guest is kept, and refuses one of which more than memory and disks would have to be.
func (d *Driver) checkpointFlags(vm, live string) (libvirt.DomainSnapshotCreateFlags, error) {
	flags := libvirt.DOMAIN_SNAPSHOT_CREATE_NO_METADATA | libvirt.DOMAIN_SNAPSHOT_CREATE_REUSE_EXT | libvirt.DOMAIN_SNAPSHOT_CREATE_ATOMIC
	g, err := domain.GuestOf(live)
	if err != nil {
		return 0, err
	}
	if len(g.Blockers) > 0 {
		return 0, problem.New(problem.Unsupported, "vm %s can have no checkpoint", vm).Because("%s", g.Blockers[0]).Try("take snapshots of its volumes: gnext snap add")
	}
	if !d.standsStill(g) {
		flags |= libvirt.DOMAIN_SNAPSHOT_CREATE_LIVE
	}
	return flags, nil
}

// on says how many disks are written to the layers that are named.
func (s scope) on(disks []compute.SwitchedDisk) (n int, err error) {
	xml, err := s.xml()
	if err != nil {
		return 0, err
	}
	for _, k := range disks {
		disk, err := domain.FindDisk(xml, k.Volume)
		if err != nil {
			return 0, err
		}
		if disk == nil {
			return 0, problem.New(problem.NotFound, "the domain has no volume %s", k.Volume)
		}
		if disk.Writes(k.To) {
			n++
		}
	}
	return n, nil
}

// placeAll has the domain be started with other sources of its disks.
func placeAll(dom *libvirt.Domain, disks []compute.SwitchedDisk) error {
	for _, k := range disks {
		if err := place(dom, k.Volume, k.To); err != nil {
			return err
		}
	}
	return nil
}

// EndCheckpoint implements compute.Checkpoints.
func (d *Driver) EndCheckpoint(ctx context.Context, vm string, disks []compute.SwitchedDisk) error {
	s, err := d.idle(ctx, vm, func() { d.abort(ctx, vm) })
	if err != nil || !s.exists || len(disks) == 0 {
		return err
	}
	err = d.with(ctx, vm, "close layers that are not used", func(dom *libvirt.Domain) error { return forget(dom, disks) })
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// SaveGuest implements compute.Checkpoints.
func (d *Driver) SaveGuest(ctx context.Context, vm, memory string, tell func(api.Progress)) error {
	s, err := d.idle(ctx, vm, nil)
	if err != nil || s.phase() == api.PhaseStopped {
		return err
	}
	err = d.with(ctx, vm, "let the guest go on", func(dom *libvirt.Domain) error {
		if active, err := dom.IsActive(); err != nil || !active {
			return err
		}
		if err := (scope{dom, true}).allAgreed(); err != nil { // it goes on with what libvirt says
			return err
		}
		return wake(dom)
	})
	if err != nil {
		return err
	}
	err = d.long(ctx, longCall{vm: vm, what: "put the guest aside", tell: tell, text: "writing the memory of the guest", do: func(conn *libvirt.Connect) error {
		dom, err := d.own(conn, vm)
		if err != nil {
			return err
		}
		defer dom.Free() //nolint:errcheck // frees memory only
		return dom.SaveFlags(memory, "", 0)
	}})
	if err == nil || ctx.Err() != nil {
		return err
	}
	if s, serr := d.idle(ctx, vm, nil); serr == nil && s.phase() == api.PhaseStopped { // it has ended by itself meanwhile, or was put aside after all
		return nil
	}
	return err
}

// DropGuest implements compute.Checkpoints.
func (d *Driver) DropGuest(ctx context.Context, vm string, disks []compute.SwitchedDisk) error {
	err := d.with(ctx, vm, "end the guest", func(dom *libvirt.Domain) error {
		if active, err := dom.IsActive(); err != nil || !active {
			return err
		}
		xml, err := scope{dom, true}.xml()
		if err != nil {
			return err
		}
		for _, k := range disks {
			disk, err := domain.FindDisk(xml, k.Volume)
			if err != nil {
				return err
			}
			if disk != nil && disk.Writes(k.To) {
				return cut(dom)
			}
		}
		return nil
	})
	if missing(err) || problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// What libvirt begins a file with that has the whole memory of a guest; one that is not whole begins otherwise.
const wholeMemory = "LibvirtQemudSave"

// MemoryWhole implements compute.Checkpoints.
func (d *Driver) MemoryWhole(_ context.Context, memory string) (bool, error) {
	f, err := os.Open(memory)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, problem.Wrap(err, problem.Unavailable, "the memory in %s cannot be read", memory)
	}
	defer f.Close() //nolint:errcheck // was only read
	b := make([]byte, len(wholeMemory))
	_, err = io.ReadFull(f, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return false, nil
	}
	return string(b) == wholeMemory, problem.Wrap(err, problem.Unavailable, "the memory in %s cannot be read", memory)
}

// RestoreGuest implements compute.Checkpoints.
func (d *Driver) RestoreGuest(ctx context.Context, r compute.Restore, tell func(api.Progress)) error {
	vm := r.Plan.VM
	s, err := d.idle(ctx, vm, nil)
	if err != nil {
		return err
	}
	if s.phase() != api.PhaseStopped {
		running := make(chan bool, 1)
		err := d.with(ctx, vm, "look at the disks of the guest", func(dom *libvirt.Domain) error {
			if s.phase() == api.PhasePaused {
				return cut(dom) // it has not gone on yet
			}
			on, err := scope{dom, true}.on(r.Disks())
			as := r.As
			if err == nil && as != "" {
				as, err = restoredAs(dom)
			}
			if err == nil && (on < len(r.Disks()) || as != r.As) {
				err = compute.RunsElsewise(r.Plan.Name)
			}
			running <- true
			return err
		})
		if err != nil || len(running) > 0 {
			return err
		}
	}
	if r.Fresh != nil {
		if err := r.Fresh(); err != nil {
			return err
		}
	}
	xml, err := d.restored(ctx, r)
	if err != nil {
		return err
	}
	err = d.long(ctx, longCall{vm: vm, what: "have the guest go on", tell: tell, text: "reading the memory of the guest", do: func(conn *libvirt.Connect) error {
		return conn.DomainRestoreFlags(r.Memory, xml, libvirt.DOMAIN_SAVE_PAUSED)
	}})
	if err == nil && r.Used != nil {
		err = r.Used()
	}
	if err != nil {
		return err
	}
	return d.with(ctx, vm, "have the guest go on", func(dom *libvirt.Domain) error {
		_, err := resume(dom)
		return err
	})
}

// restored returns the XML with which a guest goes on, and has the domain be started with those disks later, too.
func (d *Driver) restored(ctx context.Context, r compute.Restore) (string, error) {
	facts, err := d.known(ctx)
	if err != nil {
		return "", err
	}
	there, err := d.xmlOf(r.Plan, r.Files, facts)
	if err != nil {
		return "", err
	}
	out := make(chan string, 1)
	err = d.onVM(ctx, r.Plan.VM, "prepare the domain to go on", func(c *libvirt.Connect) error {
		saved, err := c.DomainSaveImageGetXMLDesc(r.Memory, libvirt.DOMAIN_SAVE_IMAGE_XML_SECURE)
		if err != nil {
			return err
		}
		xml, err := domain.Restored(saved, there, r.Plan.Name, r.As)
		if err != nil {
			return err
		}
		dom, err := d.own(c, r.Plan.VM)
		if missing(err) { // a node that was installed anew has none
			dom, err = c.DomainDefineXMLFlags(there, 0)
		}
		if err != nil {
			return err
		}
		defer dom.Free() //nolint:errcheck // frees memory only
		if err := placeAll(dom, r.Disks()); err != nil {
			return err
		}
		out <- xml
		return nil
	})
	if err != nil {
		return "", err
	}
	return <-out, nil
}
