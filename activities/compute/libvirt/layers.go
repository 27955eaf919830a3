package libvirt

import (
	"context"
	"errors"
	"slices"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// agentPatience is how long a guest's agent may take to answer, in seconds.
const agentPatience = 5

// SwitchDisk implements compute.Disks. The pause is that of the whole call to libvirt, of which the guest's is a part. The domain is
// started with the new layer from before the switch: it shows the same, and should libvirtd die in the middle, and the guest end, what
// the guest has written since is there.
func (d *Driver) SwitchDisk(ctx context.Context, vm, volume string, l compute.LayerSwitch) (compute.Switched, error) {
	var done compute.Switched
	to := l.To
	if err := d.takeBack(ctx, vm, []compute.SwitchedDisk{{Volume: volume, To: to}}); err != nil {
		return done, err
	}
	answer := make(chan compute.Switched, 1)
	running, err := d.guestDisk(ctx, vm, volume, "switch the disk to another file", inAgreement(volume, func(s scope, disk *domain.Disk) error {
		if !disk.Writes(to) && l.Fresh != nil {
			if err := l.Fresh(); err != nil {
				return err
			}
		}
		if err := place(s.dom, volume, to); err != nil {
			return err
		}
		if err := wake(s.dom); err != nil || disk.Writes(to) {
			return err
		}
		out, err := d.snapshot(s, disk, to, l.Freeze)
		if err == nil {
			answer <- out
		}
		return err
	}))
	if err != nil {
		return done, err
	}
	select {
	case done = <-answer:
	default:
	}
	if !running {
		_, err = d.PlaceDisk(ctx, vm, volume, to)
	}
	done.Running = running
	return done, err
}

// snapshot has a guest write to another file. A guest that cannot bring its file systems to rest is not asked twice.
func (d *Driver) snapshot(s scope, disk *domain.Disk, to compute.DiskSource, freeze bool) (out compute.Switched, err error) {
	live, err := s.xml()
	if err != nil {
		return out, err
	}
	xml, err := domain.SnapshotXML(live, disk.Device, to)
	if err != nil {
		return out, err
	}
	const flags = libvirt.DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.DOMAIN_SNAPSHOT_CREATE_NO_METADATA | libvirt.DOMAIN_SNAPSHOT_CREATE_REUSE_EXT |
		libvirt.DOMAIN_SNAPSHOT_CREATE_ATOMIC
	take := func(flags libvirt.DomainSnapshotCreateFlags) error {
		began := time.Now()
		snap, err := s.dom.CreateSnapshotXML(xml, flags)
		if err == nil {
			out.Pause = time.Since(began)
			snap.Free() //nolint:errcheck // frees memory only
		}
		return err
	}
	if freeze && domain.Listens(live) {
		// libvirt wakes them, unless it dies before: then the mark has whoever comes next do so.
		if err := markRest(s.dom); err != nil {
			return out, err
		}
		defer func() {
			if werr := wake(s.dom); werr != nil && !lost(err) {
				err = errors.Join(err, werr)
			}
		}()
		s.dom.AgentSetResponseTimeout(agentPatience, 0) //nolint:errcheck // then it is libvirt's own
		if err = take(flags | libvirt.DOMAIN_SNAPSHOT_CREATE_QUIESCE); err == nil {
			out.Frozen = true
			return out, nil
		}
		if now, derr := s.disk(volumeOf(disk)); lost(err) || derr != nil || now == nil || now.Writes(to) {
			return out, err
		}
		d.opt.Log.Warn("a guest could not bring its file systems to rest for a snapshot", "disk", disk.Device, "error", err)
	}
	return out, take(flags)
}

// volumeOf returns what FindDisk finds the disk by.
func volumeOf(d *domain.Disk) string {
	if d.XML.Serial == "" {
		return compute.SeedDisk
	}
	return d.XML.Serial
}

// MergeDisk implements compute.Disks.
func (d *Driver) MergeDisk(ctx context.Context, vm, volume string, m compute.Merge, tell func(api.Progress)) (running bool, err error) {
	if err := d.takeBack(ctx, vm, []compute.SwitchedDisk{{Volume: volume, To: m.Top}}); err != nil {
		return false, err
	}
	last, running, err := d.diskJob(ctx, vm, volume, "merge layers of the disk", func(s scope, disk *domain.Disk, begun bool) (jobState, error) {
		now, err := merge(ctx, s, disk, volume, m, begun)
		now.text = "merging layers"
		return now, err
	}, tell)
	if err == nil {
		running = running && last.open
	}
	return running, err
}

// merge does what is next to be done.
func merge(ctx context.Context, s scope, disk *domain.Disk, volume string, m compute.Merge, begun bool) (jobState, error) {
	chain := disk.Chain
	if disk.Really != nil { // it may be just that libvirt has not heard of its end
		chain = nil
		for _, r := range disk.Really {
			chain = append(chain, r.File)
		}
	}
	top, below := slices.Index(chain, m.Top.File), slices.Index(chain, m.Below.File)
	switch {
	case top < 0 && below < 0:
		return jobState{}, wake(s.dom)
	case top < 0: // it was merged, or no guest has ever written to it
		if below == 0 && m.Retired != nil {
			if err := m.Retired(); err != nil {
				return jobState{}, err
			}
			if err := place(s.dom, volume, m.Below); err != nil {
				return jobState{}, err
			}
		}
		return jobState{open: true}, wake(s.dom)
	case disk.Really != nil:
		return jobState{}, s.agreed(disk, volume)
	case below != top+1:
		return jobState{}, compute.NotBelow(m)
	}
	job, err := s.dom.GetBlockJobInfo(disk.Device, libvirt.DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
	if err != nil {
		return jobState{}, err
	}
	switch {
	case job.Type == libvirt.DOMAIN_BLOCK_JOB_TYPE_UNKNOWN && begun:
		if now, err := s.disk(volume); err != nil || now == nil || !slices.Contains(now.Chain, m.Top.File) {
			return jobState{underWay: true}, err // it has ended just now
		}
		return jobState{}, problem.New(problem.Unavailable, "merging layers of volume %s was broken off", volume).Because("the node may be out of space: see the log of libvirt")
	case job.Type == libvirt.DOMAIN_BLOCK_JOB_TYPE_UNKNOWN:
		flags := libvirt.DomainBlockCommitFlags(0)
		if top == 0 {
			flags = libvirt.DOMAIN_BLOCK_COMMIT_ACTIVE
		}
		if err := wake(s.dom); err != nil {
			return jobState{}, err
		}
		return jobState{underWay: true}, s.dom.BlockCommit(disk.Device, m.Below.File, m.Top.File, 0, flags)
	case job.Type == libvirt.DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT && top == 0 && disk.Ready:
		return jobState{open: true}, pivot(ctx, s, disk, volume, m)
	case job.Type == libvirt.DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT, job.Type == libvirt.DOMAIN_BLOCK_JOB_TYPE_COMMIT:
		return jobState{underWay: true, done: int64(job.Cur), total: int64(job.End)}, nil
	}
	return jobState{}, problem.New(problem.Unavailable, "libvirt is busy with volume %s", volume).Because("it copies it, or backs it up").Try("wait for the other operation to end")
}

// pivot has the guest go on with the lower layer, which shows the same now. While it does not run, nothing is written: so at any
// moment either layer can be taken for the truth, until the upper one is retired.
func pivot(ctx context.Context, s scope, disk *domain.Disk, volume string, m compute.Merge) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := rest(s.dom); err != nil {
		return err
	}
	if err := s.dom.BlockJobAbort(disk.Device, libvirt.DOMAIN_BLOCK_JOB_ABORT_PIVOT); err != nil {
		if now, derr := s.disk(volume); derr != nil || now == nil || !now.Writes(m.Below) {
			_ = wake(s.dom) // nothing has happened
			return err
		}
	}
	if m.Retired != nil {
		if err := m.Retired(); err != nil {
			return err // the guest waits until it works: what it would write could be lost
		}
	}
	if err := place(s.dom, volume, m.Below); err != nil {
		return err
	}
	return wake(s.dom)
}
