package libvirt

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Timing of a move.
const (
	// watch is how often a move is looked at.
	watch = time.Second
	// lastNews is how long the figures of a move that is over may be on their way.
	lastNews = 2 * time.Second
)

// migration is one call of Migrate: a move that it began, or one that it found under way. The move itself is libvirtd's work,
// which goes on whatever becomes of us.
type migration struct {
	d    *Driver
	in   steps.MoveDomain
	vm   string
	tell func(api.Progress)

	began   time.Time
	joined  bool
	pace    pace
	last    *libvirt.DomainJobInfo     // newest figures
	final   chan libvirt.DomainJobInfo // those of the end
	ending  *problem.Problem           // why the move is being ended; nil: it is not
	paused  bool                       // the guest stands still while its memory is sent
	capped  bool                       // the downtime has been set while the move ran
	posting bool                       // post-copy has been asked for
}

// Migrate implements compute.Migrator.
func (d *Driver) Migrate(ctx context.Context, in steps.MoveDomain, tell func(api.Progress)) (steps.Moved, error) {
	m := &migration{d: d, in: in, vm: in.Plan.VM, tell: tell, began: time.Now(), final: make(chan libvirt.DomainJobInfo, 1)}
	if m.in.MaxDowntime <= 0 {
		m.in.MaxDowntime = compute.DefaultMaxDowntime
	}
	if m.in.Timeout <= 0 {
		m.in.Timeout = compute.DefaultMoveTimeout
	}
	s, err := d.see(ctx, m.vm)
	if err != nil {
		return steps.Moved{}, err
	}
	switch {
	case !s.exists, s.left():
		return steps.Moved{}, nil
	case s.broken():
		return steps.Moved{}, compute.InHalves(in.Plan.Name)
	case s.job == jobOutgoing:
		m.joined = true
	case s.job != jobNone:
		return steps.Moved{}, problem.New(problem.Unavailable, "libvirt is busy with vm %s", in.Plan.Name)
	default:
		if err := canLeave(in.Plan.Name, &s); err != nil {
			return steps.Moved{}, err
		}
	}
	// A connection of its own: the call takes as long as the move does, and must not take the place of others.
	own := &link{uri: d.opt.URI, log: d.opt.Log, onLink: m.listen, onLoss: func() {}}
	defer own.close()
	var done chan error
	if m.joined {
		m.listenIn(ctx, own)
	} else if done, err = m.start(ctx, own); err != nil {
		return steps.Moved{}, err
	}
	return m.follow(ctx, done)
}

func canLeave(name string, s *sight) error {
	switch s.phase() {
	case api.PhaseStopped:
		return compute.PoweredOff(name)
	case api.PhasePaused:
		return compute.PausedMeanwhile(name)
	}
	return nil
}

// listen asks for the figures that libvirt tells when the move is over: the source has no domain then that could be asked.
func (m *migration) listen(c *libvirt.Connect) ([]int, error) {
	id, err := c.DomainEventJobCompletedRegister(nil, func(_ *libvirt.Connect, dom *libvirt.Domain, e *libvirt.DomainEventJobCompleted) {
		if vm, err := dom.GetUUIDString(); err == nil && vm == m.vm {
			select {
			case m.final <- e.Info:
			default:
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return []int{id}, nil
}

// listenIn connects for the sake of the events alone. Without them the figures are those that were seen last.
func (m *migration) listenIn(ctx context.Context, own *link) {
	conn, err := own.get(ctx)
	if err != nil {
		m.d.opt.Log.Debug("nobody will tell the figures of a move", "vm", m.vm, "error", err)
		return
	}
	conn.Close() //nolint:errcheck // the link has a reference of its own
}

// start has libvirt begin the move. The channel gets the one answer.
func (m *migration) start(ctx context.Context, own *link) (chan error, error) {
	const what = "move the guest"
	live := make(chan string, 1)
	err := m.d.onJob(ctx, m.vm, what, func(dom *libvirt.Domain) error {
		if err := dom.MigrateSetMaxDowntime(uint64(m.in.MaxDowntime.Milliseconds()), 0); err != nil {
			m.d.opt.Log.Debug("the downtime is set when the move runs", "vm", m.vm, "error", err)
		}
		if err := leavesWith(scope{dom, true}, m.in); err != nil {
			return err
		}
		s, err := dom.GetXMLDesc(libvirt.DOMAIN_XML_MIGRATABLE)
		if err == nil {
			live <- s
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	xml := <-live
	guest, err := domain.GuestOf(xml)
	if err != nil {
		return nil, err
	}
	m.paused = m.d.standsStill(guest)
	params, flags, err := m.params(xml)
	if err != nil {
		return nil, err
	}
	conn, err := own.get(ctx)
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() {
		defer conn.Close()    //nolint:errcheck // the count is of no use here
		if ctx.Err() != nil { // the caller is gone; what follows must not happen behind its back
			done <- overdue(ctx, what, m.d.opt.URI)
			return
		}
		dom, err := m.d.own(conn, m.vm)
		if err == nil {
			err = dom.MigrateToURI3(m.in.Incoming.URI, params, flags)
			dom.Free() //nolint:errcheck // frees memory only
		}
		if alive, aerr := conn.IsAlive(); lost(err) && alive && aerr == nil { // it was the source's libvirt that lost somebody
			err = problem.New(problem.Unavailable, "the target's libvirt at %s cannot be reached, or was lost", m.in.Incoming.URI).Because("libvirt: %s", err).
				Try("see that libvirtd runs and listens there")
		}
		done <- explain(cutOff(err), what, m.d.opt.URI)
	}()
	return done, nil
}

// cutOff says of a target that still has the guest of an attempt before, which has lost its source's libvirt, that this ends by itself.
func cutOff(err error) error {
	var e libvirt.Error
	if errors.As(err, &e) && e.Code == libvirt.ERR_OPERATION_INVALID && strings.Contains(e.Message, "is already active") {
		return problem.New(problem.Conflict, "the guest cannot be moved").Because("the target still waits for it from an attempt before, which was cut off: libvirt: %s", e.Message).
			Try("move it again: the target has given up by then")
	}
	return err
}

// leavesWith refuses a guest that would go on at its next node with other layers than it has: of one that libvirt does not know to write
// elsewhere, libvirt would copy what it believes in. Where nothing is copied it is the plan that says what the next node opens: if that is
// what the guest has open, both agree again when it has arrived.
func leavesWith(s scope, in steps.MoveDomain) error {
	xml, err := s.xml()
	if err != nil {
		return err
	}
	disks, err := domain.Devices(xml)
	if err != nil {
		return err
	}
	for _, k := range disks {
		volume := volumeOf(k)
		disk, err := s.real(volume)
		if err != nil {
			return err
		}
		if disk != nil && slices.Contains(compute.Filled(in.Plan, in.Copy), disk.Device) {
			if err := compute.OneLayer(in.Plan, disk.Device, disk.Chain); err != nil {
				return err
			}
		}
		if disk == nil || disk.Really == nil {
			continue
		}
		there, err := domain.FindDisk(in.Incoming.XML, volume)
		if err != nil {
			return err
		}
		if in.Copy || there == nil || !on(disk.Really[0], there.Source) {
			return s.agreed(disk, volume)
		}
	}
	return nil
}

// standsStill reports whether a guest has to be paused while its memory is sent or written: one that is emulated has. Of what it writes
// meanwhile some would be lost: QEMU's emulator does not learn that a page is being watched again if nothing has been written, since it was
// looked at last, but pages that still wait to be sent (physical_memory_sync_dirty_bitmap returns early when it counts no new pages). With
// KVM the kernel watches.
func (d *Driver) standsStill(g domain.Guest) bool {
	return g.Accel == domain.TCG && !d.opt.LiveTCG
}

// params say how the guest is moved.
func (m *migration) params(live string) (*libvirt.DomainMigrateParameters, libvirt.DomainMigrateFlags, error) {
	in := m.in
	xml, err := domain.Transplant(live, in.Incoming.XML)
	if err != nil {
		return nil, 0, err
	}
	p := &libvirt.DomainMigrateParameters{DestXML: xml, DestXMLSet: true, PersistXML: in.Incoming.XML, PersistXMLSet: true}
	flags := libvirt.MIGRATE_PEER2PEER | libvirt.MIGRATE_PERSIST_DEST | libvirt.MIGRATE_UNDEFINE_SOURCE | libvirt.MIGRATE_ABORT_ON_ERROR
	if !m.paused {
		flags |= libvirt.MIGRATE_LIVE
	}
	if a := in.Incoming.Address; a != "" {
		host := a
		if ip, err := netip.ParseAddr(a); err == nil {
			p.ListenAddress, p.ListenAddressSet = a, true
			if ip.Is6() {
				host = "[" + a + "]"
			}
		}
		p.URI, p.URISet = "tcp://"+host, true
	}
	if in.Bandwidth > 0 {
		p.Bandwidth, p.BandwidthSet = uint64((in.Bandwidth+api.MiB-1)/api.MiB), true
	}
	if in.AutoConverge && !m.paused {
		flags |= libvirt.MIGRATE_AUTO_CONVERGE
	}
	if in.PostCopy && !m.paused {
		flags |= libvirt.MIGRATE_POSTCOPY
	}
	if disks := compute.Filled(in.Plan, in.Copy); len(disks) > 0 { // the target has made them, on the same images: only what the guest has written is sent
		flags |= libvirt.MIGRATE_NON_SHARED_INC
		p.MigrateDisks, p.MigrateDisksSet = disks, true
	}
	if in.Plan.Disk.Shared || len(in.Plan.Data) > 0 { // which libvirt cannot see of a directory; the target has looked whether they are there
		flags |= libvirt.MIGRATE_UNSAFE
	}
	return p, flags, nil
}

// follow stays with the move until it is over. Done gets libvirt's answer if we asked; of a move that was joined only the
// domain tells.
func (m *migration) follow(ctx context.Context, done chan error) (steps.Moved, error) {
	t := time.NewTicker(watch)
	defer t.Stop()
	cancelled := ctx.Done()
	steady := context.WithoutCancel(ctx) // a move that is being ended is followed to its end
	for {
		select {
		case err := <-done:
			if err == nil {
				return m.moved(), nil
			}
			s, serr := m.d.see(steady, m.vm)
			if serr != nil {
				return steps.Moved{}, err
			}
			if s.job != jobOutgoing || s.broken() {
				return m.judge(&s, err)
			}
			done = nil // somebody else was faster: theirs is joined
		case <-cancelled:
			if errors.Is(context.Cause(ctx), compute.ErrLeave) {
				return steps.Moved{}, compute.Left(m.in.Plan.Name)
			}
			cancelled = nil
			m.end(steady, problem.New(problem.Cancelled, "the move of vm %s was cancelled", m.in.Plan.Name))
		case <-t.C:
		}
		s, err := m.d.see(steady, m.vm)
		switch {
		case err != nil && done == nil:
			return steps.Moved{}, err // whoever comes next joins again
		case err != nil:
			continue // the answer to come says more
		case done == nil && (s.job != jobOutgoing || s.broken()):
			return m.judge(&s, nil)
		case s.broken(): // libvirt waits for somebody to repair what nobody repairs
			return m.judge(&s, nil)
		case s.job == jobOutgoing:
			m.steer(steady, &s)
		}
	}
}

// end asks libvirt to end the move, and is repeated until it is over: libvirt refuses while it is too early.
func (m *migration) end(ctx context.Context, why *problem.Problem) {
	if m.ending == nil {
		m.ending = why
	}
	m.d.abort(ctx, m.vm)
}

// steer looks at the figures of a move and does what follows from them.
func (m *migration) steer(ctx context.Context, s *sight) {
	m.last = s.stats
	m.pace.note(s.stats)
	if m.tell != nil {
		m.tell(m.pace.progress(s.stats, s.postCopy()))
	}
	if !m.capped && s.stats.MemTotalSet { // in case it was too early before
		m.capped = true
		ms := uint64(m.in.MaxDowntime.Milliseconds())
		if err := m.d.onJob(ctx, m.vm, "set the downtime", func(dom *libvirt.Domain) error { return dom.MigrateSetMaxDowntime(ms, 0) }); err != nil {
			m.d.opt.Log.Debug("the downtime could not be set", "vm", m.vm, "error", err)
		}
	}
	late := m.elapsed() >= m.in.Timeout
	switch {
	case s.postCopy():
		m.posting = true
	case m.ending != nil:
		m.end(ctx, m.ending)
	case m.in.PostCopy && s.phase() == api.PhaseRunning && (late || m.pace.stuck()):
		if err := m.d.onJob(ctx, m.vm, "switch to post-copy", func(dom *libvirt.Domain) error { return dom.MigrateStartPostCopy(0) }); err != nil {
			m.d.opt.Log.Debug("not yet post-copy", "vm", m.vm, "error", err) // while disks are copied, say
			return
		}
		m.posting = true
	case late:
		m.end(ctx, compute.NotConverging(m.in.Plan.Name, m.pace.dirty, m.pace.rate, m.pace.throttle))
	}
}

// elapsed is how long the move has taken, also before we joined.
func (m *migration) elapsed() time.Duration {
	if m.last != nil && m.last.TimeElapsedSet {
		return time.Duration(m.last.TimeElapsed) * time.Millisecond
	}
	return time.Since(m.began)
}

// judge says from what is left here how the move ended. Err is what libvirt said; nil: nothing.
func (m *migration) judge(s *sight, err error) (steps.Moved, error) {
	switch {
	case !s.exists, s.left():
		return m.moved(), nil
	case s.broken():
		return steps.Moved{}, compute.InHalves(m.in.Plan.Name)
	case m.ending != nil:
		return steps.Moved{}, m.ending
	case s.phase() == api.PhaseStopped:
		return steps.Moved{}, compute.PoweredOff(m.in.Plan.Name)
	case err != nil:
		return steps.Moved{}, err
	case s.phase() == api.PhasePaused:
		return steps.Moved{}, compute.PausedMeanwhile(m.in.Plan.Name)
	}
	return steps.Moved{}, problem.New(problem.Unavailable, "the move of vm %s was ended by somebody, or failed", m.in.Plan.Name).
		Because("it was begun by an agent that is gone, so nobody knows why; the guest runs on")
}

// moved are the figures of a move that is done.
func (m *migration) moved() steps.Moved {
	var info *libvirt.DomainJobInfo
	select {
	case final := <-m.final:
		info = &final
	case <-time.After(lastNews):
		info = m.last // nobody told the downtime
	}
	out := steps.Moved{PostCopy: m.posting}
	if info != nil {
		out.Total = time.Duration(info.TimeElapsed) * time.Millisecond
		out.Downtime = time.Duration(info.Downtime) * time.Millisecond
		out.Bytes, out.Iterations = int64(info.DataProcessed), int(info.MemIteration)
	}
	if out.Total <= 0 {
		out.Total = time.Since(m.began)
	}
	return out
}
