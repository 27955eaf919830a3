package libvirt

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// facts are what one libvirt says of its host. They do not change while it runs.
type facts struct {
	host domain.Host
	acpi bool // guests have a power button
	inv  api.Inventory
}

// Inventory implements compute.Observer. Of the pools and the network it knows nothing.
func (d *Driver) Inventory(ctx context.Context) (api.Inventory, error) {
	f, err := d.known(ctx)
	if err != nil {
		return api.Inventory{}, err
	}
	inv := f.inv
	inv.UserspaceDP, inv.Peer = d.opt.UserspaceDP(), d.opt.Peer
	inv.Versions = map[string]string{}
	for k, v := range f.inv.Versions {
		inv.Versions[k] = v
	}
	d.machine.fill(ctx, &inv)
	return inv, nil
}

// known returns the facts, which are asked for once per connection.
func (d *Driver) known(ctx context.Context) (*facts, error) {
	got := make(chan *facts, 1)
	err := d.link.call(ctx, "ask libvirt for its capabilities", func(c *libvirt.Connect) error {
		d.mu.Lock()
		f := d.facts
		d.mu.Unlock()
		if f == nil {
			var err error
			if f, err = d.ask(c); err != nil {
				return err
			}
			d.mu.Lock()
			d.facts = f
			d.mu.Unlock()
		}
		got <- f
		return nil
	})
	if err != nil {
		return nil, err
	}
	return <-got, nil
}

func (d *Driver) ask(c *libvirt.Connect) (*facts, error) {
	s, err := c.GetCapabilities()
	if err != nil {
		return nil, err
	}
	var caps libvirtxml.Caps
	if err := caps.Unmarshal(s); err != nil {
		return nil, problem.Wrap(err, problem.Internal, "the capabilities that libvirt tells cannot be read")
	}
	host, err := hostOf(&caps, d.opt.Accel, kvmUsable())
	if err != nil {
		return nil, err
	}
	virt := "qemu"
	if host.Accel == domain.KVM {
		virt = "kvm"
	}
	if s, err = c.GetDomainCapabilities(host.Emulator, host.Arch, host.Machine, virt, 0); err != nil {
		return nil, err
	}
	var dom libvirtxml.DomainCaps
	if err := dom.Unmarshal(s); err != nil {
		return nil, problem.Wrap(err, problem.Internal, "the domain capabilities that libvirt tells cannot be read")
	}
	refine(&host, &dom)
	host.ConsoleDir = d.opt.ConsoleDir
	inv, err := inventory(c, host)
	inv.HostUUID, inv.NUMA = hostUUID(&caps), numaCells(&caps)
	inv.CPUModels, inv.CPUFlags = cpuModels(&dom), cpuFlags(d.machine.files())
	return &facts{host: host, acpi: host.ACPI(), inv: inv}, err
}

func inventory(c *libvirt.Connect, host domain.Host) (inv api.Inventory, err error) {
	node, err := c.GetNodeInfo()
	if err != nil {
		return inv, err
	}
	memory := int64(node.Memory) * api.KiB
	// In a container the node's information can tell less than there is, and something else each time.
	if st, err := c.GetMemoryStats(libvirt.NODE_MEMORY_STATS_ALL_CELLS, 0); err == nil && st.TotalSet {
		memory = int64(st.Total) * api.KiB
	}
	lib, err := c.GetLibVersion()
	if err != nil {
		return inv, err
	}
	qemu, err := c.GetVersion()
	if err != nil {
		return inv, err
	}
	inv = api.Inventory{
		Arch: host.Arch, Accel: host.Accel, Machine: host.Machine, Emulator: host.Emulator, CPUModel: host.CPUModel,
		Cores: int(node.Cpus), Memory: memory,
		Versions: map[string]string{"libvirt": version(lib), "qemu": version(qemu)},
	}
	if inv.Hostname, err = os.Hostname(); err != nil {
		return inv, problem.Wrap(err, problem.Internal, "this node's name cannot be read")
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		inv.Versions["kernel"] = unix.ByteSliceToString(u.Release[:])
	}
	return inv, nil
}

// version writes 9000000 as 9.0.0.
func version(v uint32) string { return fmt.Sprintf("%d.%d.%d", v/1000000, v/1000%1000, v%1000) }

// machines are the machine types to prefer; of any other architecture it is the emulator's own choice.
var machines = map[string]string{"x86_64": "pc", "i686": "pc", "aarch64": "virt", "armv7l": "virt", "riscv64": "virt", "s390x": "s390-ccw-virtio", "ppc64le": "pseries", "loongarch64": "virt"}

// hostOf picks from the capabilities what domains shall be: of the host's own architecture, with KVM if it works.
func hostOf(caps *libvirtxml.Caps, accel string, kvm bool) (h domain.Host, err error) {
	if caps.Host.CPU != nil {
		h.Arch = caps.Host.CPU.Arch
	}
	i := slices.IndexFunc(caps.Guests, func(g libvirtxml.CapsGuest) bool { return g.OSType == "hvm" && g.Arch.Name == h.Arch })
	if i < 0 {
		return h, problem.New(problem.Unsupported, "libvirt has no emulator for this node's architecture %s", h.Arch).Try("install the qemu-system package of %s and restart libvirtd", h.Arch)
	}
	g := caps.Guests[i].Arch
	h.Emulator = g.Emulator
	lists := g.Machines
	h.Accel = domain.TCG
	for _, d := range g.Domains {
		if d.Type != "kvm" {
			continue
		}
		if accel == domain.KVM || accel == "" && kvm {
			h.Accel = domain.KVM
			if d.Emulator != "" {
				h.Emulator = d.Emulator
			}
			if len(d.Machines) > 0 {
				lists = d.Machines
			}
		}
	}
	if accel == domain.KVM && h.Accel != domain.KVM {
		return h, problem.New(problem.Unsupported, "KVM was asked for, and libvirt does not have it on this node").Try("see `virt-host-validate qemu`, or let the agent choose")
	}
	h.Machine = machineOf(lists, machines[h.Arch])
	if h.Machine == "" {
		return h, problem.New(problem.Unsupported, "emulator %s has no machine type", h.Emulator)
	}
	return h, nil
}

// machineOf returns the full name of the machine type called want, so that a domain does not change with its emulator; the
// first of all if there is none of that name.
func machineOf(list []libvirtxml.CapsGuestMachine, want string) string {
	for _, m := range list {
		if m.Name == want {
			if m.Canonical != "" {
				return m.Canonical
			}
			return m.Name
		}
	}
	if len(list) == 0 {
		return ""
	}
	return list[0].Name
}

// plain are the processors to emulate, best first. They have names, so that a domain means the same everywhere, and they are
// old enough to be emulated whole.
var plain = map[string][]string{
	"x86_64":  {"Nehalem", "qemu64"}, // x86-64-v2 is what distributions of today ask for
	"aarch64": {"cortex-a72", "cortex-a57"},
}

// refine fills in what depends on machine type and accelerator.
func refine(h *domain.Host, caps *libvirtxml.DomainCaps) {
	if caps.OS != nil {
		for _, e := range caps.OS.Enums {
			h.EFI = h.EFI || e.Name == "firmware" && slices.Contains(e.Values, "efi")
		}
	}
	if caps.CPU == nil {
		return
	}
	modes := map[string]libvirtxml.DomainCapsCPUMode{}
	for _, m := range caps.CPU.Modes {
		if m.Supported == "yes" {
			modes[m.Name] = m
		}
	}
	if h.Accel == domain.KVM {
		for _, m := range []string{domain.HostModel, domain.HostPassthrough} {
			if _, ok := modes[m]; ok {
				h.CPUModel = m
				return
			}
		}
		return
	}
	for _, name := range plain[h.Arch] {
		for _, m := range modes["custom"].Models {
			if m.Name == name && m.Usable != "no" {
				h.CPUModel = name
				return
			}
		}
	}
}

// Of linux/kvm.h.
const (
	kvmGetAPIVersion = 0xae00
	kvmCreateVM      = 0xae01
	kvmAPIVersion    = 12
)

// kvmUsable reports whether a virtual machine can really be made with /dev/kvm: the device alone says nothing where
// virtualization is nested, or switched off in the firmware.
func kvmUsable() bool {
	if runtime.GOOS != "linux" {
		return false
	}
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	v, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), kvmGetAPIVersion, 0)
	if errno != 0 || v != kvmAPIVersion {
		return false
	}
	vm, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), kvmCreateVM, 0)
	if errno != 0 {
		return false
	}
	return unix.Close(int(vm)) == nil
}
