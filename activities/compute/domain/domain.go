// Package domain turns the plan of a VM into libvirt domain XML. Each configurator below fills one part of the domain from
// the plan and from what is known of the host; none of them asks anybody anything, so the result is the same everywhere.
package domain

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Accelerators.
const (
	KVM = "kvm"
	TCG = "tcg"
)

// CPU models that are modes of libvirt rather than names of processors.
const (
	HostModel       = "host-model"
	HostPassthrough = "host-passthrough"
)

// Host is what the domain depends on besides its plan.
type Host struct {
	Arch        string // as libvirt says it
	Accel       string // KVM or TCG
	Emulator    string
	Machine     string
	CPUModel    string // a named model, HostModel or HostPassthrough; empty: what the emulator has
	EFI         bool   // libvirt can choose a UEFI firmware by itself
	UserspaceDP bool   // the switch is OVS without its kernel module
	DirectIO    bool   // the disk's file system can do O_DIRECT
	// Buffered are the files of data disks whose file system cannot do O_DIRECT.
	Buffered   []string
	ConsoleDir string // where the serial console is logged; empty: nowhere
}

func (h Host) x86() bool { return h.Arch == "x86_64" || h.Arch == "i686" }

// ACPI reports whether guests have it: x86 always, others only together with UEFI, and RISC-V not with every libvirt.
func (h Host) ACPI() bool { return h.x86() || h.EFI && !strings.HasPrefix(h.Arch, "riscv") }

// configurator fills in its part of a domain.
type configurator func(*libvirtxml.Domain, steps.VMPlan, compute.DomainFiles, Host)

var configurators = []configurator{
	identity, lifecycle, size, firmware, features, cpu, clock, rootDisk, seed, dataDisks, nics, console, agentChannel, entropy, balloon, noExtras, ports,
}

// XML returns the domain XML of plan on host.
func XML(plan steps.VMPlan, files compute.DomainFiles, host Host) (string, error) {
	if err := check(plan, files, host); err != nil {
		return "", err
	}
	d := &libvirtxml.Domain{Devices: &libvirtxml.DomainDeviceList{}}
	for _, c := range configurators {
		c(d, plan, files, host)
	}
	s, err := d.Marshal()
	return s, problem.Wrap(err, problem.Internal, "the domain of vm %s cannot be written as XML", plan.Name)
}

func check(plan steps.VMPlan, files compute.DomainFiles, host Host) error {
	var v problem.Validation
	v.Check(api.IsUUID(plan.VM), "vm", plan.VM, "must be a UUID")
	v.Check(plan.VCPUs > 0, "vcpus", plan.VCPUs, "must be at least 1")
	v.Check(plan.Memory >= api.MinMemory, "memory", plan.Memory, "must be at least %d bytes", api.MinMemory)
	v.Check(files.Disk.IsSet(), "disk", "", "must be there")
	for _, s := range files.All() {
		v.Check(s.Format == api.FormatQCOW2 || s.Format == api.FormatRaw, "format", s.Format, "must be qcow2 or raw")
		v.Check(s.RBD != nil || filepath.IsAbs(s.File), "file", s.File, "must be an absolute path")
	}
	v.Check(len(files.Data) == len(plan.Data), "data", len(plan.Data), "each data disk needs a file")
	for i, d := range plan.Data {
		if i < len(files.Data) {
			v.Check(compute.CheckDataDisk(d, files.Data[i]) == nil, fmt.Sprintf("data[%d]", i), d.Device, "must be a volume with a device of its own")
		}
		v.Check(!slices.ContainsFunc(plan.Data[:i], func(o steps.DataDisk) bool { return o.Device == d.Device }), fmt.Sprintf("data[%d]", i), d.Device, "is there twice")
	}
	for i, n := range plan.NICs {
		v.Check(api.IsUUID(n.Port), fmt.Sprintf("nics[%d].port", i), n.Port, "must be a UUID")
	}
	v.Check(host.Arch != "" && host.Emulator != "" && host.Machine != "", "host", host.Arch, "the node's architecture, emulator or machine type is not known")
	return v.Err("plan of vm " + plan.Name)
}

func identity(d *libvirtxml.Domain, plan steps.VMPlan, _ compute.DomainFiles, host Host) {
	d.Type = "qemu"
	if host.Accel == KVM {
		d.Type = "kvm"
	}
	d.Name, d.UUID = compute.DomainName(plan.VM), plan.VM
	d.Title = printable(plan.Name)
	d.Metadata = &libvirtxml.DomainMetadata{XML: fmt.Sprintf(`<%s:vm xmlns:%s=%q%s/>`, Prefix, Prefix, Namespace,
		Mark{VM: plan.VM, Project: plan.Project, Name: plan.Name, HA: plan.HA}.attrs())}
}

// printable keeps a title on one line, which libvirt insists on.
func printable(s string) string { return strings.Join(strings.Fields(s), " ") }

// lifecycle: a guest that crashed is destroyed, so that its phase tells the truth; one that restarts goes on.
func lifecycle(d *libvirtxml.Domain, _ steps.VMPlan, _ compute.DomainFiles, host Host) {
	d.OnPoweroff, d.OnReboot, d.OnCrash = "destroy", "restart", "destroy"
	if host.x86() { // a guest that suspends itself could not be woken
		off := &libvirtxml.DomainPMPolicy{Enabled: "no"}
		d.PM = &libvirtxml.DomainPM{SuspendToMem: off, SuspendToDisk: off}
	}
}

func size(d *libvirtxml.Domain, plan steps.VMPlan, _ compute.DomainFiles, _ Host) {
	d.Memory = &libvirtxml.DomainMemory{Value: uint(plan.Memory / api.KiB), Unit: "KiB"}
	d.VCPU = &libvirtxml.DomainVCPU{Placement: "static", Value: uint(plan.VCPUs)}
}

func firmware(d *libvirtxml.Domain, _ steps.VMPlan, _ compute.DomainFiles, host Host) {
	d.OS = &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: host.Arch, Machine: host.Machine, Type: "hvm"}}
	d.Devices.Emulator = host.Emulator
	if !host.x86() && host.EFI { // x86 keeps the BIOS: it boots every image, and in less time
		d.OS.Firmware = "efi"
	}
}

// gicV2CPUs is how many processors the older of ARM's interrupt controllers can serve.
const gicV2CPUs = 8

func features(d *libvirtxml.Domain, plan steps.VMPlan, _ compute.DomainFiles, host Host) {
	f := &libvirtxml.DomainFeatureList{}
	if host.ACPI() {
		f.ACPI = &libvirtxml.DomainFeature{}
	}
	if host.x86() {
		f.APIC = &libvirtxml.DomainFeatureAPIC{}
	}
	if host.Arch == "aarch64" && host.Accel == TCG && plan.VCPUs > gicV2CPUs {
		f.GIC = &libvirtxml.DomainFeatureGIC{Version: "3"}
	}
	if host.Accel == TCG { // the default takes a gigabyte of address space and, in time, much of it as memory
		f.TCG = &libvirtxml.DomainFeatureTCG{TBCache: &libvirtxml.DomainFeatureTCGTBCache{Unit: "MiB", Size: 32}}
	}
	d.Features = f
}

func cpu(d *libvirtxml.Domain, plan steps.VMPlan, _ compute.DomainFiles, host Host) {
	if plan.CPUModel != "" {
		host.CPUModel = plan.CPUModel
	}
	c := &libvirtxml.DomainCPU{}
	switch host.CPUModel {
	case "":
		if host.x86() || plan.VCPUs == 1 {
			return
		}
	case HostModel, HostPassthrough:
		c.Mode, c.Check = host.CPUModel, "partial"
		if host.CPUModel == HostPassthrough {
			c.Check = "none"
		}
	default:
		c.Mode, c.Match, c.Check = "custom", "exact", "none"
		c.Model = &libvirtxml.DomainCPUModel{Fallback: "forbid", Value: host.CPUModel}
	}
	c.Topology = &libvirtxml.DomainCPUTopology{Sockets: 1, Cores: plan.VCPUs, Threads: 1}
	d.CPU = c
}

func clock(d *libvirtxml.Domain, _ steps.VMPlan, _ compute.DomainFiles, host Host) {
	d.Clock = &libvirtxml.DomainClock{Offset: "utc"}
	if host.x86() && host.Accel == KVM { // ticks that were missed are made up for; the HPET only costs exits
		d.Clock.Timer = []libvirtxml.DomainTimer{
			{Name: "rtc", TickPolicy: "catchup"}, {Name: "pit", TickPolicy: "delay"}, {Name: "hpet", Present: "no"},
		}
	}
}
