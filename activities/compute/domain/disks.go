package domain

import (
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// spareSlots is how many devices can be plugged into a guest that runs, where each needs a port that was there at its start.
// PCI without Express has free slots anyway.
const spareSlots = 8

func dataDisks(d *libvirtxml.Domain, plan steps.VMPlan, files compute.DomainFiles, host Host) {
	for i, disk := range plan.Data {
		d.Devices.Disks = append(d.Devices.Disks, dataDisk(disk, files.Data[i], !slices.Contains(host.Buffered, files.Data[i].File)))
	}
}

// DataDiskXML returns the XML of a disk that a domain gets besides its root disk. DirectIO: its file system can do O_DIRECT. QEMU is to call
// it by the alias, if there is one, which begins with "ua-".
func DataDiskXML(disk steps.DataDisk, s compute.DiskSource, directIO bool, alias string) (string, error) {
	d := dataDisk(disk, s, directIO)
	if alias != "" {
		d.Alias = &libvirtxml.DomainAlias{Name: alias}
	}
	out, err := d.Marshal()
	return out, problem.Wrap(err, problem.Internal, "disk %s cannot be written as XML", disk.Device)
}

func dataDisk(disk steps.DataDisk, s compute.DiskSource, directIO bool) libvirtxml.DomainDisk {
	d := libvirtxml.DomainDisk{
		Device: "disk",
		Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: s.Format, Cache: cacheMode(s, directIO), Discard: "unmap"},
		Source: source(s),
		Target: &libvirtxml.DomainDiskTarget{Dev: disk.Device, Bus: "virtio"},
		IOTune: ioTune(disk.QoS),
		Serial: Serial(disk.Volume),
	}
	if disk.ReadOnly {
		d.ReadOnly = &libvirtxml.DomainDiskReadOnly{}
	}
	if disk.Shareable {
		d.Shareable = &libvirtxml.DomainDiskShareable{}
	}
	return d
}

// ioTune returns the limits of a disk; nil: none.
func ioTune(q api.VolumeQoS) *libvirtxml.DomainDiskIOTune {
	t := Limits(q)
	if t == (libvirtxml.DomainDiskIOTune{}) {
		return nil
	}
	return &t
}

// Limits returns limits as libvirt says them. A burst is one above a limit; where there is none, nor more than it, it means
// nothing.
func Limits(q api.VolumeQoS) (t libvirtxml.DomainDiskIOTune) {
	t.TotalIopsSec, t.TotalBytesSec = uint64(max(q.IOPS, 0)), uint64(max(q.Bandwidth, 0))
	if q.IOPS > 0 && q.IOPSBurst > q.IOPS {
		t.TotalIopsSecMax = uint64(q.IOPSBurst)
	}
	if q.Bandwidth > 0 && q.BandwidthBurst > q.Bandwidth {
		t.TotalBytesSecMax = uint64(q.BandwidthBurst)
	}
	return t
}

// express reports whether devices are plugged into ports, of which there must be some.
func (h Host) express() bool {
	return strings.Contains(h.Machine, "q35") || !h.x86() && strings.HasPrefix(h.Machine, "virt")
}

// ports gives machines with PCI Express a port for each device, and some to spare. Those that are here take the first ones.
func ports(d *libvirtxml.Domain, plan steps.VMPlan, files compute.DomainFiles, host Host) {
	if !host.express() {
		return
	}
	const others = 3 // the controller of the agent's channel, entropy and balloon
	root := uint(0)
	d.Devices.Controllers = append(d.Devices.Controllers, libvirtxml.DomainController{Type: "pci", Index: &root, Model: "pcie-root"})
	for range len(files.All()) + len(plan.NICs) + others + spareSlots {
		d.Devices.Controllers = append(d.Devices.Controllers, libvirtxml.DomainController{Type: "pci", Model: "pcie-root-port"})
	}
}

// Disk is a disk of a domain, as its XML tells.
type Disk struct {
	Device string
	Chain  []string           // its files, that which is written to first; as far as they are known
	Source compute.DiskSource // what it is written to, as far as it has a name
	Mirror compute.DiskSource // likewise, where a job copies it to; not set: none does
	Ready  bool               // a job that copies or merges it waits to be completed
	XML    libvirtxml.DomainDisk
	// Really is what the guest has open instead, that which is written to first, where somebody has asked and found that libvirt does
	// not know it.
	Really []compute.DiskSource
	Size   int64 // bytes that the guest sees, where somebody has asked QEMU; else 0
}

// seedDevice is what hypervisors call the seed.
const seedDevice = "vdb"

// FindDisk returns the disk of a volume, or the seed, in the XML of a domain; nil: there is none.
func FindDisk(xml, volume string) (*Disk, error) {
	disks, err := disksOf(xml)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(disks, func(d libvirtxml.DomainDisk) bool {
		if volume == compute.SeedDisk {
			return d.Target != nil && d.Target.Dev == seedDevice
		}
		return d.Serial == Serial(volume) && d.Target != nil
	})
	if i < 0 {
		return nil, nil
	}
	return diskOf(disks[i]), nil
}

// HasDevice reports whether the domain has a disk that goes by a name.
func HasDevice(xml, device string) (bool, error) {
	disks, err := disksOf(xml)
	return slices.ContainsFunc(disks, func(d libvirtxml.DomainDisk) bool { return d.Target != nil && d.Target.Dev == device }), err
}

func disksOf(xml string) ([]libvirtxml.DomainDisk, error) {
	d, err := read(xml)
	if err != nil || d.Devices == nil {
		return nil, err
	}
	return d.Devices.Disks, nil
}

func diskOf(d libvirtxml.DomainDisk) *Disk {
	out := &Disk{Device: d.Target.Dev, XML: d, Ready: d.Mirror != nil && d.Mirror.Ready == "yes", Source: sourceOf(d.Source)}
	if d.Mirror != nil {
		out.Mirror = sourceOf(d.Mirror.Source)
	}
	if f := fileOf(d.Source); f != "" {
		out.Chain = append(out.Chain, f)
	}
	for b := d.BackingStore; b != nil; b = b.BackingStore {
		if f := fileOf(b.Source); f != "" {
			out.Chain = append(out.Chain, f)
		}
	}
	return out
}

func fileOf(s *libvirtxml.DomainDiskSource) string {
	if s == nil || s.File == nil {
		return ""
	}
	return s.File.File
}

// sourceOf returns what a disk is by its name.
func sourceOf(s *libvirtxml.DomainDiskSource) compute.DiskSource {
	if s == nil || s.Network == nil || s.Network.Protocol != "rbd" {
		return compute.DiskSource{File: fileOf(s)}
	}
	r := &compute.RBDImage{}
	r.Pool, r.Image, _ = strings.Cut(s.Network.Name, "/")
	if a := s.Network.Auth; a != nil && a.Secret != nil {
		r.Secret = a.Secret.UUID
	}
	return compute.DiskSource{RBD: r}
}

// Index is the number by which libvirt has QEMU name what the disk is written to; 0: it has none.
func (d *Disk) Index() uint {
	if d.XML.Source == nil {
		return 0
	}
	return d.XML.Source.Index
}

// Alias is what libvirt has QEMU call the device; empty: the domain does not run.
func (d *Disk) Alias() string {
	if d.XML.Alias == nil {
		return ""
	}
	return d.XML.Alias.Name
}

// Opened are the names by which QEMU calls what libvirt has had it open for disks.
type Opened struct {
	Aliases []string // of the devices
	Numbers []uint   // of all layers, and of where jobs copy them to
}

// OpenedFor returns what libvirt knows to be open for the disks of a domain that runs.
func OpenedFor(xml string) (out Opened, err error) {
	disks, err := disksOf(xml)
	number := func(n uint) {
		if n > 0 {
			out.Numbers = append(out.Numbers, n)
		}
	}
	chain := func(top *libvirtxml.DomainDiskSource, below *libvirtxml.DomainDiskBackingStore) {
		if top != nil {
			number(top.Index)
		}
		for b := below; b != nil; b = b.BackingStore {
			number(b.Index)
		}
	}
	for _, d := range disks {
		if d.Alias != nil {
			out.Aliases = append(out.Aliases, d.Alias.Name)
		}
		chain(d.Source, d.BackingStore)
		if d.Mirror != nil {
			chain(d.Mirror.Source, d.Mirror.BackingStore)
		}
	}
	return out, err
}

// Devices returns the disks of a domain that are disks for its guest.
func Devices(xml string) (out []*Disk, err error) {
	disks, err := disksOf(xml)
	for _, d := range disks {
		if d.Target != nil && d.Source != nil {
			out = append(out, diskOf(d))
		}
	}
	return out, err
}

// Writes reports whether a file, or device, is the one that the disk is written to.
func (d *Disk) Writes(s compute.DiskSource) bool { return d.Source.Same(s) }

// CopyXML returns the XML of the place that the disk is to be copied to. DirectIO: its file system can do O_DIRECT.
func (d *Disk) CopyXML(s compute.DiskSource, directIO bool) (string, error) {
	x := libvirtxml.DomainDisk{
		Device: "disk",
		Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: s.Format, Cache: cacheMode(s, directIO), Discard: "unmap"},
		Source: source(s),
		Target: &libvirtxml.DomainDiskTarget{Dev: d.Device, Bus: "virtio"},
	}
	out, err := x.Marshal()
	return out, problem.Wrap(err, problem.Internal, "the copy of disk %s cannot be written as XML", d.Device)
}

// PlacedXML returns the XML of the disk with another source. DirectIO: its file system can do O_DIRECT.
func (d *Disk) PlacedXML(s compute.DiskSource, directIO bool) (string, error) {
	x := d.XML
	x.Source, x.BackingStore, x.Mirror, x.Alias = source(s), nil, nil, nil
	if x.Driver != nil {
		driver := *x.Driver
		driver.Type, driver.Cache = s.Format, cacheMode(s, directIO)
		x.Driver = &driver
	}
	out, err := x.Marshal()
	return out, problem.Wrap(err, problem.Internal, "disk %s cannot be written as XML", d.Device)
}

// SnapshotXML returns the XML of a snapshot that has one disk of a domain be written to another file.
func SnapshotXML(xml, device string, to compute.DiskSource) (string, error) {
	disks, err := disksOf(xml)
	if err != nil {
		return "", err
	}
	s := libvirtxml.DomainSnapshot{Disks: &libvirtxml.DomainSnapshotDisks{}}
	for _, d := range disks {
		switch {
		case d.Target == nil:
		case d.Target.Dev == device:
			s.Disks.Disks = append(s.Disks.Disks, libvirtxml.DomainSnapshotDisk{
				Name: device, Snapshot: "external", Driver: &libvirtxml.DomainDiskDriver{Type: to.Format}, Source: source(to),
			})
		default:
			s.Disks.Disks = append(s.Disks.Disks, libvirtxml.DomainSnapshotDisk{Name: d.Target.Dev, Snapshot: "no"})
		}
	}
	out, err := s.Marshal()
	return out, problem.Wrap(err, problem.Internal, "a snapshot of disk %s cannot be written as XML", device)
}

// Listens reports whether the guest's agent listens.
func Listens(xml string) bool {
	d, err := read(xml)
	return err == nil && d.Devices != nil && slices.ContainsFunc(d.Devices.Channels, func(c libvirtxml.DomainChannel) bool {
		return c.Target != nil && c.Target.VirtIO != nil && c.Target.VirtIO.Name == agentName && c.Target.VirtIO.State == "connected"
	})
}
