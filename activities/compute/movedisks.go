package compute

import (
	"path/filepath"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Filled returns the devices of the disks that a live move fills at its target. Those that a guest only reads are brought there before.
func Filled(plan steps.VMPlan, along bool) (devices []string) {
	if !along {
		return nil
	}
	if !plan.Disk.Shared {
		devices = append(devices, api.RootDevice)
	}
	for _, d := range plan.Data {
		if d.Goes() && !d.ReadOnly {
			devices = append(devices, d.Device)
		}
	}
	return devices
}

// DisksCanArrive refuses guests whose disks are not at their next node and are not copied there.
func DisksCanArrive(req steps.IncomingRequest) error {
	for _, d := range req.Plan.Data {
		if d.Goes() && !req.Copy {
			return problem.New(problem.Conflict, "the guest cannot leave while it runs").Because("volume %s (%s) is in a pool that is not shared", d.Volume, d.Device).
				Try("have it copied: --copy-storage; or detach it, or move it to a shared pool first")
		}
	}
	return nil
}

// Staying returns the files of a guest that must be at its next node before it comes. All others are brought there.
func Staying(req steps.IncomingRequest, files DomainFiles) DomainFiles {
	if !req.Copy {
		return files
	}
	out := files
	if !req.Plan.Disk.Shared {
		out.Disk, out.Seed = DiskSource{}, DiskSource{}
	}
	out.Data = nil
	for i, s := range files.Data {
		if i < len(req.Plan.Data) && !req.Plan.Data[i].Goes() {
			out.Data = append(out.Data, s)
		}
	}
	return out
}

// OneLayer refuses a disk that a move is to fill at its target and that is more than one file, which there it would be: the layers
// below are not copied. Chain is what it consists of, that which is written to first. Of those that are made on an image the copy of
// that is there, too.
func OneLayer(plan steps.VMPlan, device string, chain []string) error {
	image := plan.Disk.Image
	for _, d := range plan.Data {
		if d.Device == device {
			image = d.Image
		}
	}
	no := problem.New(problem.Conflict, "disk %s of the guest cannot be copied to another node", device)
	switch {
	case len(chain) > 2 || len(chain) == 2 && filepath.Dir(chain[0]) == filepath.Dir(chain[1]):
		return no.Because("it has snapshots").Try("delete its snapshots first")
	case len(chain) == 2 && image == "":
		return no.Because("it is made on %s, of which its volume does not tell", chain[1]).Try("run gnext audit")
	}
	return nil
}
