package domain

import (
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirtxml"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// RootDisk is what guests know their root disk by.
const RootDisk = api.RootDevice

// Bridge is the OVS bridge that OVN keeps the flows of.
const Bridge = "br-int"

func rootDisk(d *libvirtxml.Domain, plan steps.VMPlan, files compute.DomainFiles, host Host) {
	d.Devices.Disks = append(d.Devices.Disks, libvirtxml.DomainDisk{
		Device: "disk",
		Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: files.Disk.Format, Cache: cacheMode(files.Disk, host.DirectIO), Discard: "unmap"},
		Source: source(files.Disk),
		Target: &libvirtxml.DomainDiskTarget{Dev: RootDisk, Bus: "virtio"},
		IOTune: ioTune(plan.Disk.QoS),
		Serial: Serial(plan.Disk.Volume),
		Boot:   &libvirtxml.DomainDeviceBoot{Order: 1},
	})
}

// cacheMode: with direct I/O the guest's writes are on the disk when the guest thinks so, and not twice in memory. What librbd keeps
// back of a device of Ceph it writes when the guest flushes, and it takes no page of the node's cache.
func cacheMode(s compute.DiskSource, directIO bool) string {
	if directIO && s.RBD == nil {
		return "none"
	}
	return "writeback"
}

func source(s compute.DiskSource) *libvirtxml.DomainDiskSource {
	if s.RBD != nil {
		return &libvirtxml.DomainDiskSource{Network: rbdSource(s.RBD)}
	}
	return &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: s.File}}
}

func rbdSource(r *compute.RBDImage) *libvirtxml.DomainDiskSourceNetwork {
	n := &libvirtxml.DomainDiskSourceNetwork{Protocol: "rbd", Name: r.Pool + "/" + r.Image}
	for _, m := range r.Monitors {
		host, port := api.SplitMonitor(m)
		n.Hosts = append(n.Hosts, libvirtxml.DomainDiskSourceHost{Name: host, Port: port})
	}
	if r.User != "" {
		n.Auth = &libvirtxml.DomainDiskAuth{Username: r.User, Secret: &libvirtxml.DomainDiskSecret{Type: "ceph", UUID: r.Secret}}
	}
	return n
}

// Serial is what guests know a disk by: the beginning of a volume's ID, as much of it as virtio shows to the guest.
func Serial(volume string) string {
	s := strings.ReplaceAll(volume, "-", "")
	return s[:min(len(s), 20)]
}

// seed is a virtio disk and not a CD drive: all architectures have the former, and probing for the latter takes a guest
// seconds. Guests find it by its label.
func seed(d *libvirtxml.Domain, _ steps.VMPlan, files compute.DomainFiles, _ Host) {
	if !files.Seed.IsSet() {
		return
	}
	d.Devices.Disks = append(d.Devices.Disks, libvirtxml.DomainDisk{
		Device:   "disk",
		Driver:   &libvirtxml.DomainDiskDriver{Name: "qemu", Type: files.Seed.Format},
		Source:   source(files.Seed),
		Target:   &libvirtxml.DomainDiskTarget{Dev: seedDevice, Bus: "virtio"},
		ReadOnly: &libvirtxml.DomainDiskReadOnly{},
	})
}

// TapName is the name of the host's end of a port's cable. Interface names end at 15 characters.
func TapName(port string) string {
	s := strings.ReplaceAll(port, "-", "")
	return "tap" + s[:min(len(s), 11)]
}

func nics(d *libvirtxml.Domain, plan steps.VMPlan, _ compute.DomainFiles, host Host) {
	for _, n := range plan.NICs {
		nic := libvirtxml.DomainInterface{
			MAC:    &libvirtxml.DomainInterfaceMAC{Address: n.MAC},
			Source: &libvirtxml.DomainInterfaceSource{Bridge: &libvirtxml.DomainInterfaceSourceBridge{Bridge: Bridge}},
			VirtualPort: &libvirtxml.DomainInterfaceVirtualPort{Params: &libvirtxml.DomainInterfaceVirtualPortParams{
				OpenVSwitch: &libvirtxml.DomainInterfaceVirtualPortParamsOpenVSwitch{InterfaceID: n.Port},
			}},
			Target: &libvirtxml.DomainInterfaceTarget{Dev: TapName(n.Port)},
			Model:  &libvirtxml.DomainInterfaceModel{Type: "virtio"},
			ROM:    &libvirtxml.DomainROM{Enabled: "no"}, // nobody boots from the network, and the ROM takes time to load
		}
		if host.UserspaceDP {
			nic.Driver = withoutOffloads()
		}
		d.Devices.Interfaces = append(d.Devices.Interfaces, nic)
	}
}

// withoutOffloads: the userspace datapath forwards frames as they are, so a checksum or a segmentation that the guest left
// to its NIC would never happen, and TCP would hang.
func withoutOffloads() *libvirtxml.DomainInterfaceDriver {
	return &libvirtxml.DomainInterfaceDriver{
		Name:  "qemu",
		Host:  &libvirtxml.DomainInterfaceDriverHost{CSum: "off", GSO: "off", TSO4: "off", TSO6: "off", ECN: "off", UFO: "off"},
		Guest: &libvirtxml.DomainInterfaceDriverGuest{CSum: "off", TSO4: "off", TSO6: "off", ECN: "off", UFO: "off"},
	}
}

// ConsoleLog is where the serial console of a VM is logged.
func ConsoleLog(dir, vm string) string { return filepath.Join(dir, vm+".log") }

func console(d *libvirtxml.Domain, plan steps.VMPlan, _ compute.DomainFiles, host Host) {
	port := uint(0)
	s := libvirtxml.DomainSerial{
		Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}},
		Target: &libvirtxml.DomainSerialTarget{Port: &port},
	}
	if host.ConsoleDir != "" {
		s.Log = &libvirtxml.DomainChardevLog{File: ConsoleLog(host.ConsoleDir, plan.VM), Append: "on"}
	}
	d.Devices.Serials = []libvirtxml.DomainSerial{s}
}

// agentName is what the guest's agent knows its channel by.
const agentName = "org.qemu.guest_agent.0"

func agentChannel(d *libvirtxml.Domain, _ steps.VMPlan, _ compute.DomainFiles, _ Host) {
	d.Devices.Channels = []libvirtxml.DomainChannel{{
		Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{}},
		Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: agentName}},
	}}
}

func entropy(d *libvirtxml.Domain, _ steps.VMPlan, _ compute.DomainFiles, _ Host) {
	d.Devices.RNGs = []libvirtxml.DomainRNG{{
		Model:   "virtio",
		Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
	}}
}

// balloon: with free page reporting, memory that the guest has freed goes back to the host.
func balloon(d *libvirtxml.Domain, _ steps.VMPlan, _ compute.DomainFiles, _ Host) {
	d.Devices.MemBalloon = &libvirtxml.DomainMemBalloon{Model: "virtio", FreePageReporting: "on"}
}

// noExtras keeps libvirt from adding a USB controller, which firmware and guest would have to probe.
func noExtras(d *libvirtxml.Domain, _ steps.VMPlan, _ compute.DomainFiles, host Host) {
	if host.x86() {
		d.Devices.Controllers = append(d.Devices.Controllers, libvirtxml.DomainController{Type: "usb", Model: "none"})
	}
}
