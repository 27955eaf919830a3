package libvirt

import (
	"context"
	"sync"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/api"
)

// longCall is a call to libvirt that takes as long as it takes to write or read the memory of a guest. libvirtd carries it out
// to its end whatever becomes of us.
type longCall struct {
	vm, what string
	onLink   func(*libvirt.Connect) ([]int, error)
	do       func(*libvirt.Connect) error
	tell     func(api.Progress) // may be nil
	text     string             // of what is told
}

// long makes the call, over a connection of its own: it must not take the place of others.
func (d *Driver) long(ctx context.Context, c longCall) error {
	if c.onLink == nil {
		c.onLink = func(*libvirt.Connect) ([]int, error) { return nil, nil }
	}
	own := &link{uri: d.opt.URI, log: d.opt.Log, onLink: c.onLink, onLoss: func() {}}
	defer own.close()
	conn, err := own.get(ctx)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer conn.Close()    //nolint:errcheck // the count is of no use here
		if ctx.Err() != nil { // the caller is gone; what follows must not happen behind its back
			done <- overdue(ctx, c.what, d.opt.URI)
			return
		}
		done <- explain(c.do(conn), c.what, d.opt.URI)
	}()
	t := time.NewTicker(watch)
	defer t.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return overdue(ctx, c.what, d.opt.URI) // who comes next waits for its end, or brings it about
		case <-t.C:
			c.progress(ctx, d)
		}
	}
}

func (c *longCall) progress(ctx context.Context, d *Driver) {
	if c.tell == nil {
		return
	}
	p := api.Progress{Text: c.text}
	if s, err := d.see(ctx, c.vm); err == nil && s.stats != nil && s.stats.DataTotalSet {
		p.Done, p.Total = int64(s.stats.DataProcessed), int64(s.stats.DataTotal)
	}
	c.tell(p)
}

// idle waits until libvirt does nothing to a domain that takes long, and returns what is there then. Meanwhile may be nil.
func (d *Driver) idle(ctx context.Context, vm string, meanwhile func()) (sight, error) {
	t := time.NewTicker(settling)
	defer t.Stop()
	for {
		s, err := d.see(ctx, vm)
		if err != nil || s.job == jobNone {
			return s, err
		}
		if meanwhile != nil {
			meanwhile()
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return s, overdue(ctx, "wait for what libvirt does with the domain", d.opt.URI)
		}
	}
}

// standstill is for how long a guest stands still, as libvirt's events tell.
type standstill struct {
	vm string

	mu    sync.Mutex
	since time.Time // zero: it runs
	total time.Duration
	ended chan struct{} // closed when it has stood still, and goes on
}

func newStandstill(vm string) *standstill { return &standstill{vm: vm, ended: make(chan struct{})} }

func (s *standstill) listen(c *libvirt.Connect) ([]int, error) {
	id, err := c.DomainEventLifecycleRegister(nil, func(_ *libvirt.Connect, dom *libvirt.Domain, e *libvirt.DomainEventLifecycle) {
		if vm, err := dom.GetUUIDString(); err != nil || vm != s.vm {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		switch e.Event {
		case libvirt.DOMAIN_EVENT_SUSPENDED:
			if s.since.IsZero() {
				s.since = time.Now()
			}
		case libvirt.DOMAIN_EVENT_RESUMED:
			if s.since.IsZero() {
				return
			}
			if s.total == 0 {
				close(s.ended)
			}
			s.total += max(time.Since(s.since), 1)
			s.since = time.Time{}
		}
	})
	if err != nil {
		return nil, err
	}
	return []int{id}, nil
}

// wait waits until it is known, for as long as news may be on their way.
func (s *standstill) wait() {
	select {
	case <-s.ended:
	case <-time.After(lastNews):
	}
}

// length returns how long it was; 0: nobody has told.
func (s *standstill) length() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}
