package libvirt

import (
	"context"
	"errors"
	"os"
	"slices"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

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
	l.HostUUID, err = d.hostUUID(ctx)
	return l, err
}

// hostUUID returns what libvirt takes for the identity of this machine. It moves no guest to a libvirt with the same.
func (d *Driver) hostUUID(ctx context.Context) (string, error) {
	got := make(chan string, 1)
	err := d.link.call(ctx, "ask libvirt for its capabilities", func(c *libvirt.Connect) error {
		s, err := c.GetCapabilities()
		if err != nil {
			return err
		}
		var caps libvirtxml.Caps
		if err := caps.Unmarshal(s); err != nil {
			return problem.Wrap(err, problem.Internal, "the capabilities that libvirt tells cannot be read")
		}
		got <- caps.Host.UUID
		return nil
	})
	if err != nil {
		return "", err
	}
	return <-got, nil
}

// CheckIncoming implements compute.Migrator.
func (d *Driver) CheckIncoming(ctx context.Context, req steps.IncomingRequest, files compute.DomainFiles) (steps.Incoming, error) {
	var none steps.Incoming
	facts, err := d.known(ctx)
	if err != nil {
		return none, err
	}
	uuid, err := d.hostUUID(ctx)
	if err != nil {
		return none, err
	}
	if err := compute.CanArrive(req.Leaving, uuid, facts.host.Accel, facts.host.Arch); err != nil {
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
	if !req.Copy {
		if err := reachable(files); err != nil {
			return none, err
		}
	}
	if err := d.checkCPU(ctx, facts.host, req); err != nil {
		return none, err
	}
	xml, err := d.xmlOf(ctx, req.Plan, files, facts.host)
	return steps.Incoming{URI: d.opt.Peer.Libvirt, Address: d.opt.Peer.Address, XML: xml}, err
}

// reachable refuses a guest whose files are not here.
func reachable(files compute.DomainFiles) error {
	for _, path := range []string{files.Disk, files.Seed} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			return problem.New(problem.Conflict, "the guest's file %s is not to be seen here", path).Because("%s", err).
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
func (d *Driver) xmlOf(ctx context.Context, plan steps.VMPlan, files compute.DomainFiles, host domain.Host) (string, error) {
	if err := d.checkModel(ctx, plan.CPUModel, host); err != nil {
		return "", err
	}
	host.UserspaceDP, host.DirectIO = d.opt.UserspaceDP(), directIO(files.Disk)
	return domain.XML(plan, files, host)
}

// checkModel refuses a CPU model that this node cannot give to guests. An empty one is the node's choice.
func (d *Driver) checkModel(ctx context.Context, model string, host domain.Host) error {
	if model == "" {
		return nil
	}
	return d.link.call(ctx, "ask libvirt for its CPU models", func(c *libvirt.Connect) error {
		s, err := c.GetDomainCapabilities(host.Emulator, host.Arch, host.Machine, virtType(host), 0)
		if err != nil {
			return err
		}
		var caps libvirtxml.DomainCaps
		if err := caps.Unmarshal(s); err != nil {
			return problem.Wrap(err, problem.Internal, "the domain capabilities that libvirt tells cannot be read")
		}
		usable := namedModels(&caps)
		if !slices.Contains(usable, model) {
			return compute.NoModel(model, usable)
		}
		return nil
	})
}

// namedModels are the CPU models by name that guests can have.
func namedModels(caps *libvirtxml.DomainCaps) (out []string) {
	if caps.CPU == nil {
		return nil
	}
	for _, mode := range caps.CPU.Modes {
		for _, m := range mode.Models {
			if mode.Name == "custom" && mode.Supported == "yes" && m.Usable != "no" {
				out = append(out, m.Name)
			}
		}
	}
	slices.Sort(out)
	return out
}
