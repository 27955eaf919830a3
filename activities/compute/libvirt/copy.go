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

// MoveDisk implements compute.Disks.
func (d *Driver) MoveDisk(ctx context.Context, vm, volume string, to compute.DiskSource, rate int64, tell func(api.Progress)) (compute.Moved, error) {
	return d.moveDisk(ctx, vm, volume, copying{to, rate, rest}, tell)
}

// MoveDiskStill implements compute.Disks.
func (d *Driver) MoveDiskStill(ctx context.Context, vm, volume string, to compute.DiskSource, rate int64, tell func(api.Progress)) (compute.Moved, error) {
	return d.moveDisk(ctx, vm, volume, copying{to, rate, hold}, tell)
}

// copying is where a disk is copied to, at which rate, and how its guest is paused at the end.
type copying struct {
	to   compute.DiskSource
	rate int64
	halt func(*libvirt.Domain) error
}

func (d *Driver) moveDisk(ctx context.Context, vm, volume string, c copying, tell func(api.Progress)) (compute.Moved, error) {
	last, running, err := d.diskJob(ctx, vm, volume, "copy the disk to another place", func(s scope, disk *domain.Disk, begun bool) (jobState, error) {
		return copyOn(ctx, s, disk, volume, c, begun)
	}, tell)
	switch {
	case err != nil:
		return compute.Moved{Running: running}, err
	case !running:
		there, err := d.startsAt(ctx, vm, volume, c.to)
		return compute.Moved{There: there}, err
	}
	return compute.Moved{Running: true, There: true, Pause: last.pause}, nil
}

// writes reports whether the guest writes to a source, whatever libvirt knows.
func writes(disk *domain.Disk, to compute.DiskSource) bool {
	if disk.Really != nil {
		return on(disk.Really[0], to)
	}
	return disk.Writes(to)
}

// copyOn does what is next to be done.
func copyOn(ctx context.Context, s scope, disk *domain.Disk, volume string, c copying, begun bool) (jobState, error) {
	const text = "copying the disk"
	to, rate := c.to, c.rate
	if writes(disk, to) {
		return jobState{}, arrived(s.dom, volume, to)
	}
	if err := s.agreed(disk, volume); err != nil {
		return jobState{}, err
	}
	job, err := s.dom.GetBlockJobInfo(disk.Device, libvirt.DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
	if err != nil {
		return jobState{}, err
	}
	switch {
	case job.Type == libvirt.DOMAIN_BLOCK_JOB_TYPE_UNKNOWN && begun:
		return jobState{}, problem.New(problem.Unavailable, "the copy of volume %s was broken off", volume).
			Because("what it is copied to may be full or away, or the node out of space: see the log of libvirt")
	case job.Type == libvirt.DOMAIN_BLOCK_JOB_TYPE_UNKNOWN:
		if err := release(s.dom); err != nil { // whom an attempt before this one has left at rest
			return jobState{}, err
		}
		xml, err := disk.CopyXML(to, direct(to))
		if err != nil {
			return jobState{}, err
		}
		// A job of a domain that is defined must be said to be lost when the guest ends: it is begun anew then.
		const flags = libvirt.DOMAIN_BLOCK_COPY_REUSE_EXT | libvirt.DOMAIN_BLOCK_COPY_TRANSIENT_JOB
		return jobState{underWay: true, text: text}, s.dom.BlockCopy(disk.Device, xml, &libvirt.DomainBlockCopyParameters{BandwidthSet: rate > 0, Bandwidth: uint64(max(rate, 0))}, flags)
	case job.Type != libvirt.DOMAIN_BLOCK_JOB_TYPE_COPY || !disk.Mirror.Same(to):
		return jobState{}, problem.New(problem.Unavailable, "libvirt is busy with volume %s", volume).Because("it merges, copies or backs it up").Try("wait for the other operation to end")
	case disk.Ready:
		began := time.Now()
		err := switchOver(ctx, s, disk, volume, c)
		return jobState{pause: time.Since(began)}, err
	default:
		return jobState{underWay: true, text: text, done: int64(job.Cur), total: int64(job.End)}, nil
	}
}

// switchOver has the guest go on with the copy, which is up to date. While it does not run, nothing is written: so at any moment
// either can be taken for the truth, until the domain is started with the copy as well. Then the guest goes on, and only the copy can; one that
// is held does not go on yet.
func switchOver(ctx context.Context, s scope, disk *domain.Disk, volume string, c copying) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := c.halt(s.dom); err != nil {
		return err
	}
	if err := s.dom.BlockJobAbort(disk.Device, libvirt.DOMAIN_BLOCK_JOB_ABORT_PIVOT); err != nil {
		if now, derr := s.disk(volume); derr != nil || now == nil || !now.Writes(c.to) {
			return errors.Join(err, goesBack(s, volume, c.to))
		}
	}
	return arrived(s.dom, volume, c.to)
}

// goesBack has a guest go on with what it had before, unless it has the copy after all: then whoever comes next finds out.
func goesBack(s scope, volume string, to compute.DiskSource) error {
	now, err := s.real(volume)
	if err != nil || now == nil || writes(now, to) {
		return err
	}
	return release(s.dom)
}

// arrived makes sure that a disk that a guest has at its new place is there at its next start, too, before the guest writes to it.
func arrived(dom *libvirt.Domain, volume string, to compute.DiskSource) error {
	if err := place(dom, volume, to); err != nil {
		return err
	}
	return wake(dom)
}

// startsAt reports whether a domain that does not run is started with a source of a disk.
func (d *Driver) startsAt(ctx context.Context, vm, volume string, to compute.DiskSource) (bool, error) {
	got := make(chan bool, 1)
	err := d.with(ctx, vm, "look at the disk", func(dom *libvirt.Domain) error {
		disk, err := scope{dom, false}.disk(volume)
		if err == nil {
			got <- disk != nil && disk.Writes(to)
		}
		return err
	})
	if err != nil {
		return false, err
	}
	return <-got, nil
}

// SettleDisk implements compute.Disks.
func (d *Driver) SettleDisk(ctx context.Context, vm, volume string, to compute.DiskSource) (bool, error) {
	there := make(chan bool, 1)
	running, err := d.guestDisk(ctx, vm, volume, "end the copy of the disk", func(s scope, disk *domain.Disk) error {
		if disk.Mirror.IsSet() && !writes(disk, to) {
			if err := s.dom.BlockJobAbort(disk.Device, 0); err != nil {
				if now, derr := s.disk(volume); derr != nil || now != nil && now.Mirror.IsSet() {
					return err
				}
			}
			now, err := s.real(volume)
			if err != nil {
				return err
			}
			if now == nil {
				return compute.NoSuchDisk(vm, volume)
			}
			disk = now
		}
		if !writes(disk, to) {
			if err := s.agreed(disk, volume); err != nil {
				return err
			}
			there <- false
			return release(s.dom)
		}
		there <- true
		return arrived(s.dom, volume, to)
	})
	if err != nil {
		return false, err
	}
	if !running {
		return d.startsAt(ctx, vm, volume, to)
	}
	return <-there, nil
}
