package libvirt

import (
	"context"
	"errors"
	"strings"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// scope is one of the two lives of a domain: the guest that runs, and what it is started with.
type scope struct {
	dom  *libvirt.Domain
	live bool
}

func (s scope) xml() (string, error) {
	if s.live {
		return s.dom.GetXMLDesc(0)
	}
	return s.dom.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE)
}

func (s scope) impact() libvirt.DomainModificationImpact {
	if s.live {
		return libvirt.DOMAIN_AFFECT_LIVE
	}
	return libvirt.DOMAIN_AFFECT_CONFIG
}

func (s scope) modify() libvirt.DomainDeviceModifyFlags {
	if s.live {
		return libvirt.DOMAIN_DEVICE_MODIFY_LIVE
	}
	return libvirt.DOMAIN_DEVICE_MODIFY_CONFIG
}

// disk returns the disk of a volume; nil: there is none.
func (s scope) disk(volume string) (*domain.Disk, error) {
	xml, err := s.xml()
	if err != nil {
		return nil, err
	}
	return domain.FindDisk(xml, volume)
}

// scopes returns the lives that a domain has, that of the guest first.
func scopes(dom *libvirt.Domain) (out []scope, err error) {
	active, err := dom.IsActive()
	if err != nil {
		return nil, err
	}
	persistent, err := dom.IsPersistent()
	if err != nil {
		return nil, err
	}
	if active {
		out = append(out, scope{dom, true})
	}
	if persistent {
		out = append(out, scope{dom, false})
	}
	return out, nil
}

// inScopes runs f on each life of the domain of vm.
func (d *Driver) inScopes(ctx context.Context, vm, what string, f func(scope) error) error {
	return d.with(ctx, vm, what, func(dom *libvirt.Domain) error {
		all, err := scopes(dom)
		if err != nil {
			return err
		}
		for _, s := range all {
			if ctx.Err() != nil { // the caller is gone; what follows must not happen behind its back
				return ctx.Err()
			}
			if err := f(s); err != nil {
				return err
			}
		}
		return nil
	})
}

// LiveXML returns the XML of the domain of vm as libvirt has it now.
func (d *Driver) LiveXML(ctx context.Context, vm string) (string, error) {
	got := make(chan string, 1)
	err := d.with(ctx, vm, "look at the domain", func(dom *libvirt.Domain) error {
		xml, err := dom.GetXMLDesc(0)
		if err == nil {
			got <- xml
		}
		return err
	})
	if err != nil {
		return "", err
	}
	return <-got, nil
}

// AttachDisk implements compute.Disks.
func (d *Driver) AttachDisk(ctx context.Context, vm string, disk steps.DataDisk, source compute.DiskSource) error {
	const what = "attach the disk"
	if err := compute.CheckDataDisk(disk, source); err != nil {
		return err
	}
	if err := d.untilLetGo(ctx, vm, what, disk.Volume, straysHeld); err != nil { // it may be the very disk
		return err
	}
	return d.inScopes(ctx, vm, what, func(s scope) error {
		now, err := s.xml()
		if err != nil {
			return err
		}
		has, err := domain.FindDisk(now, disk.Volume)
		switch {
		case err != nil:
			return err
		case has != nil && has.Device == disk.Device:
			return nil
		case has != nil:
			return compute.AttachedAs(vm, disk.Volume, has.Device)
		}
		taken, err := domain.HasDevice(now, disk.Device)
		if err == nil && taken {
			err = compute.DeviceTaken(vm, disk.Device)
		}
		if err != nil {
			return err
		}
		alias := ""
		if s.live {
			alias = newAlias()
		}
		xml, err := domain.DataDiskXML(disk, source, direct(source), alias)
		if err != nil {
			return err
		}
		return elsewhere(s.give(xml), disk.Volume)
	})
}

// elsewhere makes in_use of an error that says that another process has the file.
func elsewhere(err error, volume string) error {
	var e libvirt.Error
	if errors.As(err, &e) && strings.Contains(e.Message, "Failed to get") && strings.Contains(e.Message, "lock") {
		return problem.New(problem.InUse, "volume %s is open elsewhere", volume).Because("libvirt: %s", e.Message).Try("detach it from whoever has it; of a node that is dead the file server drops the lock after a while")
	}
	return err
}

// Timing of detaching.
const (
	// askAgain is how often a guest is asked to let a disk go: one that is still starting does not hear it.
	askAgain = 3 * time.Second
	// released is how often we look whether it has.
	released = 100 * time.Millisecond
)

// DetachDisk implements compute.Disks. The guest goes first: as long as it holds on, the next start gives it the disk as well.
func (d *Driver) DetachDisk(ctx context.Context, vm, volume string) error {
	const what = "detach the disk"
	err := d.untilLetGo(ctx, vm, what, volume, func(dom *libvirt.Domain, ask bool) (held bool, err error) {
		if held, err = letGo(dom, volume, ask); !held && err == nil {
			held, err = straysHeld(dom, ask)
		}
		return held, err
	})
	if err != nil {
		return err
	}
	return d.inScopes(ctx, vm, what, func(s scope) error {
		if s.live {
			_, err := closeStrays(s.dom)
			return err
		}
		disk, err := s.disk(volume)
		if err != nil || disk == nil {
			return err
		}
		xml, err := disk.XML.Marshal()
		if err != nil {
			return err
		}
		return s.dom.DetachDeviceFlags(xml, s.modify())
	})
}

// untilLetGo waits until held says that the guest has let a disk go, which it is to ask for now and then.
func (d *Driver) untilLetGo(ctx context.Context, vm, what, volume string, held func(dom *libvirt.Domain, ask bool) (bool, error)) error {
	look := time.NewTicker(released)
	defer look.Stop()
	var asked time.Time
	for {
		ask := time.Since(asked) >= askAgain
		if ask {
			asked = time.Now()
		}
		still := make(chan bool, 1)
		err := d.with(ctx, vm, what, func(dom *libvirt.Domain) error {
			yes, err := held(dom, ask)
			if err == nil {
				still <- yes
			}
			return err
		})
		if ctx.Err() != nil {
			return compute.HeldOn(ctx, vm, volume)
		}
		if err != nil || !<-still {
			return err
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return compute.HeldOn(ctx, vm, volume)
		}
	}
}

// letGo reports whether the guest still has the disk of a volume, and asks it to let it go.
func letGo(dom *libvirt.Domain, volume string, ask bool) (held bool, err error) {
	active, err := dom.IsActive()
	if err != nil || !active {
		return false, err
	}
	live := scope{dom, true}
	disk, err := live.disk(volume)
	if err != nil || disk == nil || !ask {
		return disk != nil, err
	}
	if disk, err = live.real(volume); err == nil { // else it would stay open in QEMU, under names that libvirt does not know
		err = live.agreed(disk, volume)
	}
	if err != nil || disk == nil {
		return disk != nil, err
	}
	xml, err := disk.XML.Marshal()
	if err != nil {
		return false, err
	}
	err = dom.DetachDeviceFlags(xml, live.modify())
	if lost(err) {
		return false, err
	}
	// Else it is on its way, or QEMU says that it was asked already; libvirt may wait for the guest itself, but not for long.
	disk, err = live.disk(volume)
	return disk != nil, err
}

// guestDisk runs f on the disk of a guest that runs, or is paused, whether or not libvirt knows what it has open: f has to look, unless
// it is in agreement. Running is false if there is no such guest.
func (d *Driver) guestDisk(ctx context.Context, vm, volume, what string, f func(s scope, disk *domain.Disk) error) (running bool, err error) {
	up := make(chan bool, 1)
	err = d.with(ctx, vm, what, func(dom *libvirt.Domain) error {
		active, err := dom.IsActive()
		if err != nil {
			return err
		}
		s := scope{dom, active}
		disk, err := s.real(volume)
		if err != nil {
			return err
		}
		if disk == nil {
			return compute.NoSuchDisk(vm, volume)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if active {
			err = f(s, disk)
		}
		if err == nil {
			up <- active
		}
		return err
	})
	if err != nil {
		return false, err
	}
	return <-up, nil
}

// inAgreement is f for disks of which libvirt knows what the guest has open, and refuses others.
func inAgreement(volume string, f func(s scope, disk *domain.Disk) error) func(s scope, disk *domain.Disk) error {
	return func(s scope, disk *domain.Disk) error {
		if err := s.agreed(disk, volume); err != nil {
			return err
		}
		return f(s, disk)
	}
}

// ResizeDisk implements compute.Disks.
func (d *Driver) ResizeDisk(ctx context.Context, vm, volume string, size int64) (running bool, err error) {
	return d.guestDisk(ctx, vm, volume, "resize the disk", inAgreement(volume, func(s scope, disk *domain.Disk) error {
		was, err := s.capacity(disk)
		switch {
		case err != nil || was == size:
			return err
		case was > size:
			return problem.New(problem.Conflict, "a volume of %d bytes does not shrink to %d", was, size).Because("its end may be in use")
		}
		if err = s.dom.BlockResize(disk.Device, uint64(size), libvirt.DOMAIN_BLOCK_RESIZE_BYTES); err == nil {
			return nil
		}
		if after, lost := s.dom.GetBlockInfo(disk.Device, 0); lost != nil || int64(after.Capacity) != was {
			return err // who knows what has happened
		}
		return noRoom(err, volume)
	}))
}

// capacity returns the size of a disk in bytes. That libvirt asks QEMU takes it as long as growing the disk.
func (s scope) capacity(disk *domain.Disk) (int64, error) {
	if disk.Size > 0 {
		return disk.Size, nil
	}
	info, err := s.dom.GetBlockInfo(disk.Device, 0)
	if err != nil {
		return 0, err
	}
	return int64(info.Capacity), nil
}

// noRoom makes no_capacity of an error that says that a pool has no room for what describes a larger volume: it is the node's own no, for
// which nobody has to wait until there is room.
func noRoom(err error, volume string) error {
	var e libvirt.Error
	if errors.As(err, &e) && (strings.Contains(e.Message, "No space left on device") || strings.Contains(e.Message, "Disk quota exceeded")) {
		return problem.New(problem.NoCapacity, "volume %s stays as large as it is", volume).Because("its pool is full: libvirt: %s", e.Message).
			Try("make room in the pool, or bring the volume into another one: gnext vol migrate")
	}
	return err
}

// TuneDisk implements compute.Disks.
func (d *Driver) TuneDisk(ctx context.Context, vm, volume string, qos api.VolumeQoS) error {
	t := domain.Limits(qos)
	found := make(chan struct{}, 2)
	err := d.inScopes(ctx, vm, "limit the disk", func(s scope) error {
		disk, err := s.disk(volume)
		if err != nil || disk == nil {
			return err
		}
		found <- struct{}{}
		return s.dom.SetBlockIoTune(disk.Device, &libvirt.DomainBlockIoTuneParameters{
			TotalBytesSecSet: true, TotalBytesSec: t.TotalBytesSec, TotalBytesSecMaxSet: true, TotalBytesSecMax: t.TotalBytesSecMax,
			TotalIopsSecSet: true, TotalIopsSec: t.TotalIopsSec, TotalIopsSecMaxSet: true, TotalIopsSecMax: t.TotalIopsSecMax,
		}, s.impact())
	})
	if err == nil && len(found) == 0 {
		return compute.NoSuchDisk(vm, volume)
	}
	return err
}

// PlaceDisk implements compute.Disks.
func (d *Driver) PlaceDisk(ctx context.Context, vm, volume string, to compute.DiskSource) (running bool, err error) {
	running, err = d.guestDisk(ctx, vm, volume, "place the disk", func(scope, *domain.Disk) error { return nil })
	if err != nil || running {
		return running, err
	}
	return false, d.with(ctx, vm, "place the disk", func(dom *libvirt.Domain) error {
		if active, err := dom.IsActive(); active || err != nil {
			return errors.Join(err, problem.New(problem.Conflict, "vm %s was started meanwhile", vm))
		}
		return place(dom, volume, to)
	})
}

// direct reports whether a source can be opened with O_DIRECT, if that means anything for it.
func direct(s compute.DiskSource) bool { return s.File == "" || directIO(s.File) }

// place has the domain be started with another source of a disk.
func place(dom *libvirt.Domain, volume string, to compute.DiskSource) error {
	s := scope{dom, false}
	if persistent, err := dom.IsPersistent(); err != nil || !persistent {
		return err
	}
	disk, err := s.disk(volume)
	if err != nil || disk == nil || disk.Writes(to) {
		return err
	}
	xml, err := disk.PlacedXML(to, direct(to))
	if err != nil {
		return err
	}
	return dom.UpdateDeviceFlags(xml, s.modify())
}
