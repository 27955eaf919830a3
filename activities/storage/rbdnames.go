package storage

import (
	"path"
	"regexp"
	"strings"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// What block devices of a Ceph pool are called. These names are not those of other programs that keep disks in Ceph pools: what
// is not called so is never touched.
const (
	rbdDisk   = "disk-"
	rbdSeed   = "seed-"
	rbdImage  = "image-"
	rbdMemory = "memory-"
)

// RBDDisk is the name of a volume's block device.
func RBDDisk(volume string) string { return rbdDisk + volume }

// RBDSeed is the name of the block device that is a VM's seed.
func RBDSeed(vm string) string { return rbdSeed + vm }

// RBDMemory is the name of the block device that keeps the memory of a guest.
func RBDMemory(id string) string { return rbdMemory + id }

// RBDImage is the name of the copy of an image.
func RBDImage(sha256 string) string { return rbdImage + sha256 }

// ClassifyRBD says what a block device is by its name; KindOther: not one of ours.
func ClassifyRBD(name string) (kind, id string) {
	if id, ok := strings.CutPrefix(name, rbdDisk); ok && api.IsUUID(id) {
		return KindVolume, id
	}
	if id, ok := strings.CutPrefix(name, rbdSeed); ok && api.IsUUID(id) {
		return KindSeed, id
	}
	if id, ok := strings.CutPrefix(name, rbdMemory); ok && api.IsUUID(id) {
		return KindMemory, id
	}
	if id, ok := strings.CutPrefix(name, rbdImage); ok && isSHA256(id) {
		return KindBacking, id
	}
	return KindOther, ""
}

// What the names of snapshots of volumes begin with.
const (
	RBDSnap = "snap-" // a snapshot's ID follows
	RBDKept = "kept-" // what a volume showed before it went back to a snapshot; the ID of that going back follows
	RBDCopy = "copy-" // what a new volume is copied from; its ID follows
)

// ClassifyRBDSnap says what a snapshot of a volume is by its name.
func ClassifyRBDSnap(name string) (kind, id string) {
	for _, n := range []struct{ prefix, kind string }{{RBDSnap, KindSnapshot}, {RBDKept, KindKept}, {RBDCopy, KindKept}} {
		if id, ok := strings.CutPrefix(name, n.prefix); ok && api.IsUUID(id) {
			return n.kind, id
		}
	}
	return KindForeign, ""
}

// LocateRBD says where the disks of a VM are whose pool is one of Ceph. Its data disks must be, too.
func LocateRBD(plan steps.VMPlan) (compute.DomainFiles, error) {
	if err := CheckRBDPlan(plan); err != nil {
		return compute.DomainFiles{}, err
	}
	p := plan.Disk.OnNode()
	out := compute.DomainFiles{Disk: rbdSource(p, RBDDisk(plan.Disk.Volume)), Seed: rbdSource(p, RBDSeed(plan.VM))}
	for _, d := range plan.Data {
		source, err := LocateRBDVolume(steps.VolumePlan{Volume: d.Volume, Pool: d.Pool})
		if err != nil {
			return compute.DomainFiles{}, err
		}
		out.Data = append(out.Data, source)
	}
	return out, nil
}

// LocateRBDVolume says where a volume is.
func LocateRBDVolume(v steps.VolumePlan) (compute.DiskSource, error) {
	if err := CheckRBDVolume(v); err != nil {
		return compute.DiskSource{}, err
	}
	return rbdSource(v.Pool, RBDDisk(v.Volume)), nil
}

// rbdSource: the hypervisor knows the key of a pool by the pool's ID.
func rbdSource(p steps.PoolOnNode, image string) compute.DiskSource {
	return compute.DiskSource{Format: api.FormatRaw, RBD: &compute.RBDImage{
		Monitors: p.Source.Hosts, Pool: p.Source.Name, Image: image, User: p.Source.User, Secret: p.Pool,
	}}
}

// CheckRBDPlan refuses a VM whose disk leads nowhere.
func CheckRBDPlan(plan steps.VMPlan) error {
	var v problem.Validation
	v.Check(api.IsUUID(plan.VM), "vm", plan.VM, "must be a UUID")
	v.Check(api.IsUUID(plan.Disk.Volume), "disk.volume", plan.Disk.Volume, "must be a UUID")
	if err := v.Err("plan of vm " + plan.Name); err != nil {
		return err
	}
	return CheckRBDPool(plan.Disk.OnNode())
}

// CheckRBDVolume refuses a volume that leads nowhere.
func CheckRBDVolume(v steps.VolumePlan) error {
	if !api.IsUUID(v.Volume) {
		return problem.New(problem.Invalid, "the plan of volume %s is not valid", v.Name).Because("%q is not the ID of a volume", v.Volume)
	}
	return CheckRBDPool(v.Pool)
}

// CheckNewRBDVolume refuses a volume that cannot be made.
func CheckNewRBDVolume(v steps.VolumePlan) error {
	if err := CheckRBDVolume(v); err != nil {
		return err
	}
	if v.From != nil && v.From.Snapshot != "" && !api.IsUUID(v.From.Snapshot) {
		return problem.New(problem.Invalid, "%q is not the ID of a snapshot", v.From.Snapshot)
	}
	return checkContent(v)
}

var rbdWord = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)

// CheckRBDPool refuses what is no pool of Ceph. Names end up in what programs of Ceph take apart.
func CheckRBDPool(p steps.PoolOnNode) error {
	var v problem.Validation
	v.Check(api.IsUUID(p.Pool), "pool", p.Pool, "must be a UUID")
	v.Check(p.Type == api.PoolRBD, "type", p.Type, "must be %q", api.PoolRBD)
	v.Check(path.IsAbs(p.Path) && path.Clean(p.Path) == p.Path && p.Path != "/" && !strings.ContainsAny(p.Path, "\x00\n\r,"), "path", p.Path, "must be an absolute, clean path")
	v.Check(rbdWord.MatchString(p.Source.Name), "source.name", p.Source.Name, "must be the name of a Ceph pool")
	v.Check(rbdWord.MatchString(p.Source.User), "source.user", p.Source.User, "must be a user of Ceph, without client.")
	v.Check(len(p.Source.Hosts) > 0, "source.hosts", nil, "must name a monitor")
	for _, h := range p.Source.Hosts {
		v.Check(h != "" && !strings.ContainsAny(h, " ,;\x00\n\r"), "source.hosts", h, "must be HOST or HOST:PORT")
	}
	return v.Err("pool")
}

// RBDCapabilities are those of Ceph pools.
func RBDCapabilities() Capabilities {
	return Capabilities{
		Type: api.PoolRBD, Access: "librbd, in the agent and in QEMU", Shared: true, Clone: true, Flatten: true, Thin: true, Discard: true,
		GrowOnline: true, MultiWriter: true, SharedSnaps: true, LiveSnapshot: true, Checkpoint: true, DropAnywhere: true, Capture: true, Checksum: true,
	}
}
