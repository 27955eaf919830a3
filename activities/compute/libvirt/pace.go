package libvirt

import (
	"fmt"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/api"
)

// When a move is taken for one that does not converge.
const (
	// flatPasses is how many passes over the memory in a row must find the guest faster than the network.
	flatPasses = 2
	// manyPasses is how many passes are enough in any case.
	manyPasses = 12
)

// pace is how a move gets on, as seen from second to second.
type pace struct {
	dirty, rate int64 // bytes per second: changed by the guest, sent
	throttle    int   // percent
	pass        uint64
	flat        int // passes in a row in which the guest was faster
}

// note takes new figures.
func (p *pace) note(s *libvirt.DomainJobInfo) {
	page := int64(s.MemPageSize)
	if page == 0 {
		page = 4096
	}
	if dirty := int64(s.MemDirtyRate) * page; dirty > 0 {
		p.dirty = dirty
	}
	if rate := int64(s.MemBps); rate > 0 {
		p.rate = rate
	}
	p.throttle = s.AutoConvergeThrottle
	if s.MemIteration == p.pass {
		return
	}
	p.pass = s.MemIteration
	switch {
	case p.pass < 2: // the first pass sends everything, and says nothing of the guest
	case p.dirty >= p.rate:
		p.flat++
	default:
		p.flat = 0
	}
}

// stuck reports whether the move will not end by itself.
func (p *pace) stuck() bool { return p.flat >= flatPasses || p.pass >= manyPasses }

// progress tells users how far it is.
func (p *pace) progress(s *libvirt.DomainJobInfo, post bool) api.Progress {
	out := api.Progress{
		Step: "move", Done: int64(s.DataProcessed), Total: int64(s.DataTotal), Rate: int64(s.MemBps) + int64(s.DiskBps),
		Migrate: &api.MoveProgress{
			Remaining: int64(s.DataRemaining), Dirty: int64(s.MemDirtyRate) * int64(s.MemPageSize), Iteration: int(s.MemIteration),
			ExpectedDowntime: int(s.Downtime), Throttle: s.AutoConvergeThrottle, PostCopy: post,
		},
	}
	left := fmt.Sprintf("%d MiB left, %d MiB/s", out.Migrate.Remaining/api.MiB, out.Rate/api.MiB)
	switch {
	case post:
		out.Text = "the guest runs at the target and fetches its memory: " + left
	case s.DiskTotal > 0 && s.DiskRemaining > 0:
		out.Text = "copying the disk: " + left
	default:
		out.Text = fmt.Sprintf("pass %d over the memory: %s, the guest changes %d MiB/s", s.MemIteration, left, out.Migrate.Dirty/api.MiB)
	}
	return out
}
