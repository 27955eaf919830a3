package libvirt

import (
	"context"
	"errors"
	"hash/fnv"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Options say how to reach libvirt and what is known of the node besides.
type Options struct {
	URI        string // e.g. qemu:///system
	ConsoleDir string // where serial consoles are logged; empty: nowhere
	Accel      string // kvm or tcg; empty: kvm where it works
	// LiveTCG lets emulated guests run while their memory is sent, of which some may then be lost (see standsStill). It is for tests of
	// live moves, where there is no KVM.
	LiveTCG bool
	// Peer is how other nodes' hypervisors reach this one's. Without a URI of libvirt guests can leave, but not arrive while
	// they run.
	Peer api.Peer
	// UserspaceDP says whether the node's switch is OVS without its kernel module. Nil: no.
	UserspaceDP func() bool
	Log         *slog.Logger // nil: the default
}

// Driver is libvirt. It connects when it is first used, and again whenever the connection was lost.
type Driver struct {
	opt     Options
	link    *link     // tells of events, and answers what is asked about the node
	links   []*link   // carry the calls on VMs, each VM's on one of them
	events  broadcast // of any change
	reboots broadcast // of guests that have restarted
	vms     locks
	machine machine // the node, as its kernel tells of it

	mu    sync.Mutex
	facts *facts          // of the current connection; nil: not yet asked
	ours  map[string]bool // domains known to carry our mark; dropped when they are redefined
}

var _ compute.Driver = (*Driver)(nil)

// New returns a driver. It does not connect yet.
func New(opt Options) *Driver {
	if opt.Log == nil {
		opt.Log = slog.Default()
	}
	if opt.UserspaceDP == nil {
		opt.UserspaceDP = func() bool { return false }
	}
	d := &Driver{opt: opt, ours: map[string]bool{}}
	d.link = &link{uri: opt.URI, log: opt.Log, onLink: d.subscribe, onLoss: d.forget}
	for range vmLinks {
		d.links = append(d.links, &link{
			uri: opt.URI, log: opt.Log, onLink: func(*libvirt.Connect) ([]int, error) { return nil, nil }, onLoss: func() {},
		})
	}
	return d
}

// vmLinks is how many connections calls on VMs are spread over. libvirtd works on five calls of one connection at a time, and
// starting a domain is a long one: with a single connection the first guests of a burst would boot, and use the processors,
// while the last ones still wait for their turn.
const vmLinks = 4

// linkFor returns the connection that calls on a VM go over.
func (d *Driver) linkFor(vm string) *link {
	h := fnv.New32a()
	h.Write([]byte(vm)) //nolint:errcheck // it never fails
	return d.links[h.Sum32()%vmLinks]
}

// Close ends the connections. Calls that come later fail as unavailable.
func (d *Driver) Close() {
	d.link.close()
	for _, l := range d.links {
		l.close()
	}
}

// forget is called when the connection was lost: another libvirt may answer next.
func (d *Driver) forget() {
	d.mu.Lock()
	d.facts = nil
	clear(d.ours)
	d.mu.Unlock()
	d.events.send(compute.Event{})
}

// Create implements compute.Creator.
func (d *Driver) Create(ctx context.Context, plan steps.VMPlan, files compute.DomainFiles) error {
	facts, err := d.known(ctx)
	if err != nil {
		return err
	}
	xml, err := d.xmlOf(plan, files, facts)
	if err != nil {
		return err
	}
	return d.onVM(ctx, plan.VM, "create the domain", func(c *libvirt.Connect) error {
		dom, err := d.own(c, plan.VM)
		if err == nil {
			defer dom.Free() //nolint:errcheck // frees memory only
			if up, uerr := resume(dom); up || uerr != nil {
				return uerr
			}
		} else if !missing(err) {
			return err
		}
		if ctx.Err() != nil { // the caller is gone; what follows must not happen behind its back
			return ctx.Err()
		}
		if dom, err = c.DomainDefineXMLFlags(xml, 0); err != nil {
			return err
		}
		defer dom.Free() //nolint:errcheck // frees memory only
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return dom.CreateWithFlags(0)
	})
}

// Define implements compute.Creator.
func (d *Driver) Define(ctx context.Context, plan steps.VMPlan, files compute.DomainFiles) error {
	facts, err := d.known(ctx)
	if err != nil {
		return err
	}
	xml, err := d.xmlOf(plan, files, facts)
	if err != nil {
		return err
	}
	return d.onVM(ctx, plan.VM, "define the domain", func(c *libvirt.Connect) error {
		dom, err := d.own(c, plan.VM)
		if err == nil {
			active, aerr := dom.IsActive()
			dom.Free() //nolint:errcheck // frees memory only
			if active || aerr != nil {
				return aerr
			}
		} else if !missing(err) {
			return err
		}
		if ctx.Err() != nil { // the caller is gone; what follows must not happen behind its back
			return ctx.Err()
		}
		if dom, err = c.DomainDefineXMLFlags(xml, 0); err == nil {
			dom.Free() //nolint:errcheck // frees memory only
		}
		return err
	})
}

// directIO reports whether the file can be opened with O_DIRECT; not every file system can do it. A file that is not there
// is for QEMU to complain about.
func directIO(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return !errors.Is(err, unix.EINVAL)
	}
	f.Close() //nolint:errcheck // was only read
	return true
}

// resume makes a domain that is active run, and reports whether it was. One that lost part of its memory is ended: it has to
// be started.
func resume(dom *libvirt.Domain) (active bool, err error) {
	s, err := sightOf(dom)
	switch {
	case err != nil:
		return false, err
	case s.broken():
		return false, cut(dom)
	case s.phase() == api.PhaseRunning:
		return true, nil
	case s.phase() == api.PhasePaused && s.job == jobIncoming:
		vm, _ := dom.GetUUIDString()
		return true, compute.AlreadyHere(vm)
	case s.phase() == api.PhasePaused:
		return true, dom.Resume()
	default:
		return false, nil
	}
}

// Remove implements compute.Creator.
func (d *Driver) Remove(ctx context.Context, vm string) error {
	return d.onVM(ctx, vm, "remove the domain", func(c *libvirt.Connect) error {
		dom, err := d.own(c, vm)
		if missing(err) {
			d.removeConsole(vm)
			return nil
		}
		if err != nil {
			return err
		}
		defer dom.Free() //nolint:errcheck // frees memory only
		if err := cut(dom); err != nil {
			return err
		}
		const all = libvirt.DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.DOMAIN_UNDEFINE_NVRAM | libvirt.DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
		if err := dom.UndefineFlags(all); err != nil && !missing(err) {
			return err
		}
		d.removeConsole(vm)
		return nil
	})
}

// cut ends the domain's process if it has one.
func cut(dom *libvirt.Domain) error {
	err := dom.DestroyFlags(0)
	var e libvirt.Error
	if errors.As(err, &e) && e.Code == libvirt.ERR_OPERATION_INVALID { // not running
		return nil
	}
	if missing(err) {
		return nil
	}
	return err
}

func (d *Driver) removeConsole(vm string) {
	if d.opt.ConsoleDir == "" || !api.IsUUID(vm) {
		return
	}
	for _, p := range []string{domain.ConsoleLog(d.opt.ConsoleDir, vm), oldConsole(d.opt.ConsoleDir, vm)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			d.opt.Log.Warn("a console log stays behind", "path", p, "error", err)
		}
	}
}

// own returns the domain of vm. One without our mark is a conflict: not everything on a node is for us to touch.
func (d *Driver) own(c *libvirt.Connect, vm string) (*libvirt.Domain, error) {
	dom, err := c.LookupDomainByUUIDString(vm)
	if err != nil {
		return nil, err
	}
	ok, err := marked(dom)
	if err == nil && !ok {
		name, _ := dom.GetName()
		err = compute.NotOurs(vm, name)
	}
	if err != nil {
		dom.Free() //nolint:errcheck // frees memory only
		return nil, err
	}
	return dom, nil
}

// marked reports whether the domain carries our metadata.
func marked(dom *libvirt.Domain) (bool, error) {
	_, err := dom.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, domain.Namespace, 0)
	var e libvirt.Error
	if errors.As(err, &e) && e.Code == libvirt.ERR_NO_DOMAIN_METADATA {
		return false, nil
	}
	return err == nil, err
}

// onVM runs f on the connection while nobody else works on the VM. Should ctx end while f hangs inside libvirt, the VM stays
// taken until f is back, so that nothing overtakes it.
func (d *Driver) onVM(ctx context.Context, vm, what string, f func(*libvirt.Connect) error) error {
	if !api.IsUUID(vm) {
		return problem.New(problem.Invalid, "%q is not the ID of a vm", vm)
	}
	leave, err := d.vms.enter(ctx, vm)
	if err != nil {
		return overdue(ctx, what, d.opt.URI)
	}
	const waiting, begun, givenUp = 0, 1, 2
	var state atomic.Int32
	err = d.linkFor(vm).call(ctx, what, func(c *libvirt.Connect) error {
		if !state.CompareAndSwap(waiting, begun) {
			return ctx.Err()
		}
		defer leave()
		return f(c)
	})
	if state.CompareAndSwap(waiting, givenUp) {
		leave()
	}
	return err
}
