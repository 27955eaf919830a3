package libvirt

import (
	"context"
	"time"

	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
)

// jobLook is how often a job on a disk is looked at.
const jobLook = 200 * time.Millisecond

// jobState is how far a job on a disk is.
type jobState struct {
	underWay    bool
	text        string // what is told of it; empty: nothing
	done, total int64  // bytes

	open  bool          // of a merge: the guest has one of the layers
	pause time.Duration // of a copy: for how long the guest could not run when it was over
}

// diskJob stays with a job on a disk of a guest that runs until it is over. The work is libvirt's and QEMU's: it goes on whatever
// becomes of us, and who comes next joins it. Next does what is next to be done; begun: it was under way before. Running is false, and
// nothing has happened, if no guest has the disk open. Tell may be nil.
func (d *Driver) diskJob(ctx context.Context, vm, volume, what string, next func(s scope, disk *domain.Disk, begun bool) (jobState, error), tell func(api.Progress)) (last jobState, running bool, err error) {
	t := time.NewTicker(jobLook)
	defer t.Stop()
	begun := false
	for {
		state := make(chan jobState, 1)
		running, err = d.guestDisk(ctx, vm, volume, what, func(s scope, disk *domain.Disk) error {
			now, err := next(s, disk, begun)
			if err == nil {
				state <- now
			}
			return err
		})
		if err != nil || !running {
			return jobState{}, running, err
		}
		now := <-state
		if !now.underWay {
			return now, true, nil
		}
		begun = true
		if tell != nil && now.text != "" {
			tell(api.Progress{Text: now.text, Done: now.done, Total: now.total})
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return now, true, overdue(ctx, what, d.opt.URI)
		}
	}
}
