package libvirt

import (
	"context"
	"errors"
	"os"
	"slices"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Describe implements compute.Migrator.
func (d *Driver) Describe(ctx context.Context, vm string) (steps.Leaving, error) {
	got := make(chan steps.Leaving, 1)
	err := d.with(ctx, vm, "look at the domain", func(dom *libvirt.Domain) error {
		var l steps.Leaving
		s, _, err := dom.GetState()
		if err != nil {
			return err
		}
		l.Phase = phaseOf(s)
		xml, err := dom.GetXMLDesc(libvirt.DOMAIN_XML_MIGRATABLE)
		if err != nil {
			return err
		}
		g, err := domain.GuestOf(xml)
		if err != nil {
			return err
		}
		l.CPU, l.Accel, l.Arch, l.Machine, l.OwnCPU, l.Blockers = g.CPU, g.Accel, g.Arch, g.Machine, g.OwnCPU, g.Blockers
		got <- l
		return nil
	})
	if err != nil {
		return steps.Leaving{}, err
	}
	l := <-got
	facts, err := d.known(ctx)
	if err == nil {
		l.HostUUID = facts.inv.HostUUID
	}
	return l, err
}

// CheckIncoming implements compute.Migrator.
func (d *Driver) CheckIncoming(ctx context.Context, req steps.IncomingRequest, files compute.DomainFiles) (steps.Incoming, error) {
	var none steps.Incoming
	facts, err := d.known(ctx)
	if err != nil {
		return none, err
	}
	if err := compute.CanArrive(req.Leaving, facts.inv.HostUUID, facts.host.Accel, facts.host.Arch); err != nil {
		return none, err
	}
	if err := compute.DisksCanArrive(req); err != nil {
		return none, err
	}
	if d.opt.Peer.Libvirt == "" {
		return none, compute.NoPeer()
	}
	here, err := d.see(ctx, req.Plan.VM)
	if err != nil {
		return none, err
	}
	if here.phase() != api.PhaseStopped {
		return none, compute.AlreadyHere(req.Plan.VM)
	}
	if err := reachable(compute.Staying(req, files)); err != nil {
		return none, err
	}
	if err := d.checkCPU(ctx, facts.host, req); err != nil {
		return none, err
	}
	xml, err := d.xmlOf(req.Plan, files, facts)
	return steps.Incoming{URI: d.opt.Peer.Libvirt, Address: d.opt.Peer.Address, XML: xml}, err
}

// reachable refuses a guest whose files are not here.
func reachable(files compute.DomainFiles) error {
	for _, s := range files.All() {
		if s.File == "" {
			continue // libvirt opens it, and says so if it cannot
		}
		if _, err := os.Stat(s.File); err != nil {
			return problem.New(problem.Conflict, "the guest's file %s is not to be seen here", s.File).Because("%s", err).
				Try("see that the pool really is shared and mounted on this node, or move the vm with --copy-storage")
		}
	}
	return nil
}

// checkCPU refuses a guest whose processor or machine type this node cannot give.
func (d *Driver) checkCPU(ctx context.Context, host domain.Host, req steps.IncomingRequest) error {
	machine := req.Leaving.Machine
	if machine == "" {
		machine = host.Machine
	}
	return d.link.call(ctx, "compare the guest's processor", func(c *libvirt.Connect) error {
		// It fails for a machine type that the emulator does not have.
		if _, err := c.GetDomainCapabilities(host.Emulator, host.Arch, machine, virtType(host), 0); err != nil {
			var e libvirt.Error
			if errors.As(err, &e) && !lost(err) {
				return problem.New(problem.Unsupported, "emulator %s cannot give the guest its machine type %s", host.Emulator, machine).Because("libvirt: %s", e.Message)
			}
			return err
		}
		if req.Leaving.CPU == "" {
			return nil
		}
		result, err := c.CompareHypervisorCPU(host.Emulator, host.Arch, machine, virtType(host), req.Leaving.CPU, libvirt.CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE)
		var e libvirt.Error
		switch {
		case err == nil && result != libvirt.CPU_COMPARE_INCOMPATIBLE:
			return nil
		case err == nil:
			return problem.New(problem.Unsupported, "this node's processor cannot do what the guest's does")
		case errors.As(err, &e) && e.Code == libvirt.ERR_CPU_INCOMPATIBLE:
			return problem.New(problem.Unsupported, "this node's processor cannot do what the guest's does").Because("libvirt: %s", e.Message)
		case errors.As(err, &e) && (e.Code == libvirt.ERR_NO_SUPPORT || e.Code == libvirt.ERR_CONFIG_UNSUPPORTED || e.Code == libvirt.ERR_OPERATION_UNSUPPORTED):
			return nil // of some architectures libvirt knows too little to compare; it checks the domain when it arrives
		default:
			return err
		}
	})
}

func virtType(host domain.Host) string {
	if host.Accel == domain.KVM {
		return "kvm"
	}
	return "qemu"
}

// xmlOf returns the domain of plan as this node makes it.
func (d *Driver) xmlOf(plan steps.VMPlan, files compute.DomainFiles, f *facts) (string, error) {
	if plan.CPUModel != "" && !slices.Contains(f.inv.CPUModels, plan.CPUModel) {
		return "", compute.NoModel(plan.CPUModel, f.inv.CPUModels)
	}
	host := f.host
	host.UserspaceDP, host.DirectIO = d.opt.UserspaceDP(), files.Disk.File != "" && directIO(files.Disk.File)
	for _, s := range files.Data {
		if s.File != "" && !directIO(s.File) {
			host.Buffered = append(host.Buffered, s.File)
		}
	}
	return domain.XML(plan, files, host)
}
