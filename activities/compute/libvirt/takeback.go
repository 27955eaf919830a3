package libvirt

import (
	"context"
	"fmt"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api/problem"
)

// A guest that writes to a layer of which libvirt knows nothing is brought back to the one that libvirt believes in: what it has written
// meanwhile is merged into that while it goes on, as a merge of libvirt's own does it. Then both agree, and whoever wanted the switch
// makes it again, or gives it up. To teach libvirt the new layer there is no way: none of its calls takes over what QEMU has.

// completing is how often a guest at rest is looked at, which waits.
const completing = 5 * time.Millisecond

// lead is a disk whose guest is ahead of libvirt.
type lead struct {
	disk *domain.Disk
	node string // what it is written to
}

// job is what QEMU is to call the work.
func (l lead) job() string { return "gnext-" + l.disk.Device }

// takeBack brings a guest that has gone over to any of these layers behind libvirt's back to those that libvirt knows, and closes layers
// that are open for nothing. A guest that was brought back is left at rest: the layers show the same as what is below until it is woken,
// and must not count any more then. One that does not run is content.
func (d *Driver) takeBack(ctx context.Context, vm string, disks []compute.SwitchedDisk) error {
	const what = "take back a switch that libvirt does not know of"
	t := time.NewTicker(jobLook)
	defer t.Stop()
	begun := map[string]bool{}
	for {
		var left, resting bool
		done := make(chan struct{}, 1)
		err := d.with(ctx, vm, what, func(dom *libvirt.Domain) error {
			active, err := dom.IsActive()
			if err != nil || !active {
				return err
			}
			leads, err := leadsOf(scope{dom, true}, disks)
			if err == nil && len(leads) == 0 {
				err = forget(dom, disks)
			} else if err == nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				left = true
				resting, err = bring(dom, leads, begun)
			}
			if err == nil {
				done <- struct{}{}
			}
			return err
		})
		if err != nil {
			return err
		}
		select {
		case <-done:
		default:
			return nil // it does not run
		}
		if !left {
			return nil
		}
		if resting {
			t.Reset(completing)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return overdue(ctx, what, d.opt.URI)
		}
	}
}

// leadsOf returns the disks that are written to those layers, made on what libvirt believes in.
func leadsOf(s scope, disks []compute.SwitchedDisk) (out []lead, err error) {
	for _, k := range disks {
		disk, err := s.real(k.Volume)
		if err != nil {
			return nil, err
		}
		if disk == nil || len(disk.Really) < 2 || !on(disk.Really[0], k.To) || !on(disk.Really[1], disk.Source) || disk.Index() == 0 {
			continue // whoever needs the disk is refused
		}
		has, err := deviceOf(s.dom, disk.Alias())
		if err != nil {
			return nil, err
		}
		if has != nil {
			out = append(out, lead{disk, has.node})
		}
	}
	return out, nil
}

// bring does what is next to be done. Resting: the guest waits for the end.
func bring(dom *libvirt.Domain, leads []lead, begun map[string]bool) (resting bool, err error) {
	var jobs []struct {
		ID     string `json:"id"`
		Status string `json:"status"`
	}
	if err := monitor(dom, "query-jobs", map[string]any{}, &jobs); err != nil {
		return false, err
	}
	status := map[string]string{}
	for _, j := range jobs {
		status[j.ID] = j.Status
	}
	ready := 0
	for _, l := range leads {
		switch status[l.job()] {
		case "":
			if begun[l.job()] {
				return false, problem.New(problem.Unavailable, "taking back a switch of disk %s was broken off", l.disk.Device).Because("the node may be out of space: see the log of libvirt")
			}
			begun[l.job()] = true
			err := monitor(dom, "block-commit", map[string]any{"job-id": l.job(), "device": l.node, "base-node": fmt.Sprintf("libvirt-%d-format", l.disk.Index())}, nil)
			if err != nil {
				return false, err
			}
		case "ready":
			ready++
		}
	}
	if ready < len(leads) {
		return false, nil
	}
	if err := rest(dom); err != nil {
		return false, err
	}
	for _, l := range leads {
		begun[l.job()] = false // it ends now
		if err := monitor(dom, "job-complete", map[string]any{"id": l.job()}, nil); err != nil {
			return false, err
		}
	}
	return true, nil
}
