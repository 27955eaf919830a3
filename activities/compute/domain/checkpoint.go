package domain

import (
	"libvirt.org/go/libvirtxml"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api/problem"
)

// CheckpointXML returns the XML of a snapshot of a domain that takes its memory into a file, and has disks of it be written to
// other files.
func CheckpointXML(xml string, c compute.Checkpoint) (string, error) {
	disks, err := disksOf(xml)
	if err != nil {
		return "", err
	}
	to := map[string]compute.DiskSource{}
	for _, d := range c.Disks {
		to[Serial(d.Volume)] = d.To
	}
	s := libvirtxml.DomainSnapshot{
		Memory: &libvirtxml.DomainSnapshotMemory{Snapshot: "external", File: c.Memory}, Disks: &libvirtxml.DomainSnapshotDisks{},
	}
	for _, d := range disks {
		if d.Target == nil {
			continue
		}
		out := libvirtxml.DomainSnapshotDisk{Name: d.Target.Dev, Snapshot: "no"}
		if next, ok := to[d.Serial]; ok {
			delete(to, d.Serial)
			out.Snapshot, out.Driver, out.Source = "external", &libvirtxml.DomainDiskDriver{Type: next.Format}, source(next)
		} else if d.ReadOnly == nil {
			return "", strange(d.Target.Dev)
		}
		s.Disks.Disks = append(s.Disks.Disks, out)
	}
	for serial := range to {
		return "", problem.New(problem.NotFound, "the domain has no disk %s", serial)
	}
	out, err := s.Marshal()
	return out, problem.Wrap(err, problem.Internal, "a checkpoint cannot be written as XML")
}

// StillXML returns the XML of a snapshot of a domain that takes its memory into a file, and leaves its disks to somebody else, for whom
// libvirt keeps the guest paused.
func StillXML(xml string, c compute.StillCheckpoint) (string, error) {
	disks, err := disksOf(xml)
	if err != nil {
		return "", err
	}
	left := map[string]bool{}
	for _, v := range c.Volumes {
		left[Serial(v)] = true
	}
	s := libvirtxml.DomainSnapshot{
		Memory: &libvirtxml.DomainSnapshotMemory{Snapshot: "external", File: c.Memory}, Disks: &libvirtxml.DomainSnapshotDisks{},
	}
	for _, d := range disks {
		if d.Target == nil {
			continue
		}
		how := "no"
		if left[d.Serial] {
			delete(left, d.Serial)
			how = "manual"
		} else if d.ReadOnly == nil {
			return "", strange(d.Target.Dev)
		}
		s.Disks.Disks = append(s.Disks.Disks, libvirtxml.DomainSnapshotDisk{Name: d.Target.Dev, Snapshot: how})
	}
	for serial := range left {
		return "", problem.New(problem.NotFound, "the domain has no disk %s", serial)
	}
	out, err := s.Marshal()
	return out, problem.Wrap(err, problem.Internal, "a checkpoint cannot be written as XML")
}

func strange(device string) *problem.Problem {
	return problem.New(problem.Conflict, "disk %s of the domain would not be in the checkpoint", device).Because("it is none of the VM's volumes, or was attached meanwhile")
}

// Restored returns the XML with which a guest goes on from a memory. All that the guest can see is as it is in saved, which came
// with the memory; there is the domain as its plan has it now, and gives what the guest does not see: files, limits, and the mark. As is what
// this going on is called; empty: nothing.
func Restored(saved, there, vm, as string) (string, error) {
	kept, err := disksOf(saved)
	if err != nil {
		return "", err
	}
	now, err := read(there)
	if err != nil {
		return "", err
	}
	if now.Devices == nil || len(now.Devices.Disks) != len(kept) {
		var has, had []string
		if now.Devices != nil {
			has = devices(now.Devices.Disks)
		}
		had = devices(kept)
		return "", compute.OtherDisks(vm, has, had)
	}
	xml, err := Transplant(saved, there)
	if err != nil {
		return "", err
	}
	d, err := read(xml)
	if err != nil {
		return "", err
	}
	d.Title, d.Metadata = now.Title, now.Metadata
	if as != "" {
		d.Metadata = &libvirtxml.DomainMetadata{XML: restored(as)}
		if now.Metadata != nil {
			d.Metadata.XML = now.Metadata.XML + d.Metadata.XML
		}
	}
	for i := range d.Devices.Disks {
		for _, n := range now.Devices.Disks {
			if n.Target != nil && d.Devices.Disks[i].Target != nil && n.Target.Dev == d.Devices.Disks[i].Target.Dev {
				d.Devices.Disks[i].IOTune = n.IOTune
			}
		}
	}
	out, err := d.Marshal()
	return out, problem.Wrap(err, problem.Internal, "the XML of a domain cannot be written")
}

// devices returns what disks are called.
func devices(disks []libvirtxml.DomainDisk) (out []string) {
	for _, d := range disks {
		if d.Target != nil {
			out = append(out, d.Target.Dev)
		}
	}
	return out
}
