package libvirt

import (
	"context"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// PullDisk implements compute.Disks.
func (d *Driver) PullDisk(ctx context.Context, vm, volume string, tell func(api.Progress)) (running bool, err error) {
	_, running, err = d.diskJob(ctx, vm, volume, "bring all that the disk shows into its file", func(s scope, disk *domain.Disk, begun bool) (jobState, error) {
		now, err := pull(s, disk, volume, begun)
		if now.total > 0 {
			now.text = "copying the image into the volume"
		}
		return now, err
	}, tell)
	return running, err
}

// pull does what is next to be done. Begun: it was under way before.
func pull(s scope, disk *domain.Disk, volume string, begun bool) (jobState, error) {
	job, err := s.dom.GetBlockJobInfo(disk.Device, libvirt.DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
	switch {
	case err != nil:
		return jobState{}, err
	case job.Type == libvirt.DOMAIN_BLOCK_JOB_TYPE_PULL:
		return jobState{underWay: true, done: int64(job.Cur), total: int64(job.End)}, nil
	case job.Type != libvirt.DOMAIN_BLOCK_JOB_TYPE_UNKNOWN:
		return jobState{}, problem.New(problem.Unavailable, "libvirt is busy with volume %s", volume).Because("it copies it, or merges its layers").Try("wait for the other operation to end")
	}
	now, err := s.real(volume) // again: a job may have ended since
	if err != nil || now == nil {
		return jobState{}, err
	}
	switch {
	case len(now.Chain) < 2, len(now.Really) == 1 && on(now.Really[0], now.Source):
		return jobState{}, wake(s.dom)
	case now.Really != nil:
		return jobState{}, s.agreed(now, volume)
	case begun:
		return jobState{}, problem.New(problem.Unavailable, "copying the image into volume %s was broken off", volume).Because("the node may be out of space: see the log of libvirt")
	}
	if err := wake(s.dom); err != nil {
		return jobState{}, err
	}
	return jobState{underWay: true}, s.dom.BlockPull(disk.Device, 0, 0)
}

// StopPull implements compute.Disks.
func (d *Driver) StopPull(ctx context.Context, vm, volume string) error {
	_, err := d.guestDisk(ctx, vm, volume, "stop copying into the disk", func(s scope, disk *domain.Disk) error {
		job, err := s.dom.GetBlockJobInfo(disk.Device, 0)
		if err != nil || job.Type != libvirt.DOMAIN_BLOCK_JOB_TYPE_PULL {
			return err
		}
		err = s.dom.BlockJobAbort(disk.Device, 0) // returns when it has ended
		if now, jerr := s.dom.GetBlockJobInfo(disk.Device, 0); err != nil && jerr == nil && now.Type == libvirt.DOMAIN_BLOCK_JOB_TYPE_UNKNOWN {
			return nil // by itself, meanwhile
		}
		return err
	})
	return err
}
