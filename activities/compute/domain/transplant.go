package domain

import (
	"slices"

	"libvirt.org/go/libvirtxml"

	"github.com/nextstack/nextstack/api/problem"
)

// Guest is what of a guest that runs must be found at its next node.
type Guest struct {
	Accel, Arch, Machine string
	CPU                  string   // XML
	OwnCPU               bool     // it has the very processor of its node
	Blockers             []string // what of it cannot move
}

// GuestOf reads the XML of a guest that runs.
func GuestOf(live string) (g Guest, err error) {
	d, err := read(live)
	if err != nil {
		return g, err
	}
	g.Accel = TCG
	if d.Type == "kvm" {
		g.Accel = KVM
	}
	if d.OS != nil && d.OS.Type != nil {
		g.Arch, g.Machine = d.OS.Type.Arch, d.OS.Type.Machine
	}
	if d.CPU != nil {
		g.OwnCPU = d.CPU.Mode == HostPassthrough
		if g.CPU, err = d.CPU.Marshal(); err != nil {
			return g, problem.Wrap(err, problem.Internal, "the CPU of a domain cannot be written as XML")
		}
	}
	g.Blockers = blockers(d.Devices)
	return g, nil
}

// blockers are devices whose state is outside of QEMU, so that it cannot go along.
func blockers(devs *libvirtxml.DomainDeviceList) (out []string) {
	if devs == nil {
		return nil
	}
	if len(devs.Hostdevs) > 0 {
		out = append(out, "it has a device of its node (hostdev)")
	}
	if slices.ContainsFunc(devs.Interfaces, func(i libvirtxml.DomainInterface) bool {
		return i.Source != nil && (i.Source.Hostdev != nil || i.Source.VDPA != nil)
	}) {
		out = append(out, "it has a network interface of its node (hostdev or vdpa)")
	}
	if len(devs.Filesystems) > 0 {
		out = append(out, "it has a directory of its node (filesystem)")
	}
	if slices.ContainsFunc(devs.Disks, func(d libvirtxml.DomainDisk) bool {
		return d.ReadOnly == nil && d.Target != nil && d.Target.Dev != RootDisk && d.Serial == ""
	}) {
		out = append(out, "it has a disk besides "+RootDisk+" that it can write to and that is none of its volumes")
	}
	return out
}

func read(xml string) (*libvirtxml.Domain, error) {
	var d libvirtxml.Domain
	if err := d.Unmarshal(xml); err != nil {
		return nil, problem.Wrap(err, problem.Internal, "the XML of a domain cannot be read")
	}
	return &d, nil
}

// Transplant returns the XML with which a guest that runs goes on at its next node. All that the guest can see stays as it is
// in live, whatever a domain made today would look like; there is the domain as that node would make it, and gives what
// concerns the node alone: emulator, files, and how they are opened.
func Transplant(live, there string) (string, error) {
	d, err := read(live)
	if err != nil {
		return "", err
	}
	t, err := read(there)
	if err != nil {
		return "", err
	}
	if d.Devices == nil || t.Devices == nil {
		return "", problem.New(problem.Internal, "a domain without devices cannot move")
	}
	d.Devices.Emulator = t.Devices.Emulator
	for i := range d.Devices.Disks {
		if err := transplantDisk(&d.Devices.Disks[i], t.Devices.Disks); err != nil {
			return "", err
		}
	}
	var log *libvirtxml.DomainChardevLog
	if len(t.Devices.Serials) > 0 {
		log = t.Devices.Serials[0].Log
	}
	for i := range d.Devices.Serials {
		d.Devices.Serials[i].Log = log
	}
	for i := range d.Devices.Consoles {
		d.Devices.Consoles[i].Log = log
	}
	s, err := d.Marshal()
	return s, problem.Wrap(err, problem.Internal, "the XML of a domain cannot be written")
}

func transplantDisk(disk *libvirtxml.DomainDisk, there []libvirtxml.DomainDisk) error {
	if disk.Target == nil {
		return problem.New(problem.Internal, "a disk without a name cannot move")
	}
	i := slices.IndexFunc(there, func(d libvirtxml.DomainDisk) bool { return d.Target != nil && d.Target.Dev == disk.Target.Dev })
	if i < 0 {
		return problem.New(problem.Conflict, "disk %s of the guest is not in its plan, so it cannot move while it runs", disk.Target.Dev).Try("stop the vm, start it and try again")
	}
	disk.Source, disk.BackingStore, disk.Mirror = there[i].Source, nil, nil
	if disk.Driver != nil && there[i].Driver != nil {
		disk.Driver.Cache = there[i].Driver.Cache
	}
	return nil
}
