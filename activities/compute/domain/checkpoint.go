package domain

import (
	"libvirt.org/go/libvirtxml"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api/problem"
)

// CheckpointXML returns the XML of a snapshot of a domain that takes its memory into a file, and has disks of it be written to
// other files.
func CheckpointXML(xml string, c compute.Checkpoint) (string, error) {
	return memoryXML(xml, c.Memory, c.Disks, nil)
}

// StillXML returns the XML of a snapshot of a domain that takes its memory into a file, has those of its disks that have layers be written
// to others, and leaves the rest to somebody else, for whom libvirt keeps the guest paused.
func StillXML(xml string, c compute.StillCheckpoint) (string, error) {
	return memoryXML(xml, c.Memory, c.Disks, c.Volumes)
}

// memoryXML is for all of a domain's disks that are not read-only: some are switched, and the others left.
func memoryXML(xml, memory string, switched []compute.SwitchedDisk, left []string) (string, error) {
	disks, err := disksOf(xml)
	if err != nil {
		return "", err
	}
	to := map[string]*compute.DiskSource{} // nil: it is left
	for _, d := range switched {
		to[Serial(d.Volume)] = &d.To
	}
	for _, v := range left {
		to[Serial(v)] = nil
	}
	s := libvirtxml.DomainSnapshot{
		Memory: &libvirtxml.DomainSnapshotMemory{Snapshot: "external", File: memory}, Disks: &libvirtxml.DomainSnapshotDisks{},
	}
	for _, d := range disks {
		if d.Target == nil {
			continue
		}
		out := libvirtxml.DomainSnapshotDisk{Name: d.Target.Dev, Snapshot: "no"}
		next, ok := to[d.Serial]
		delete(to, d.Serial)
		switch {
		case next != nil:
			out.Snapshot, out.Driver, out.Source = "external", &libvirtxml.DomainDiskDriver{Type: next.Format}, source(*next)
		case ok:
			out.Snapshot = "manual"
		case d.ReadOnly == nil:
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
