package storage

import (
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

func dirCapabilities(p steps.PoolOnNode) Capabilities {
	return Capabilities{
		Type: api.PoolDir, Access: "the file system of the node", Shared: p.Shared, Files: true, Clone: true, Flatten: true, Thin: true, Discard: true,
		GrowOnline: true, MultiWriter: true, LiveSnapshot: true, Checkpoint: true, Capture: true,
	}
}

// checkNew refuses a volume that cannot be made.
func checkNew(v steps.VolumePlan) error {
	if err := checkVolume(v); err != nil {
		return err
	}
	return checkContent(v)
}

// checkContent refuses a volume that has no size, or would begin with what is nowhere.
func checkContent(v steps.VolumePlan) error {
	var c problem.Validation
	c.Check(v.Size >= 512 && v.Size <= api.MaxDisk && v.Size%512 == 0, "size", v.Size, "must be a multiple of 512, at most %d", api.MaxDisk)
	c.Check(v.Image == nil || v.From == nil, "from", "", "a volume is made from an image or from another volume, not from both")
	if v.Image != nil {
		c.Check(v.Image.Pool == v.Pool.Pool && v.Image.PoolPath == v.Pool.Path, "image.pool", v.Image.Pool, "must be the volume's pool")
		c.Check(isSHA256(v.Image.SHA256), "image.sha256", v.Image.SHA256, "must be 64 hexadecimal digits")
	}
	if v.From != nil {
		c.Check(api.IsUUID(v.From.Volume), "from.volume", v.From.Volume, "must be a UUID")
		c.Check(v.From.Layer == "" || api.IsUUID(v.From.Layer), "from.layer", v.From.Layer, "must be a UUID")
	}
	return c.Err("volume " + v.Name)
}

// newLayer returns the volume as it is written to another layer, which is one of its own.
func newLayer(v steps.VolumePlan, layer string) (steps.VolumePlan, error) {
	if v.Shareable {
		return v, problem.New(problem.Unsupported, "volume %s has no snapshots", v.Name).Because("several VMs may write to it, so that it is one raw file")
	}
	if !api.IsUUID(layer) || layer == v.Volume {
		return v, problem.New(problem.Invalid, "%q cannot be a layer on volume %s", layer, v.Name)
	}
	return at(v, layer), checkVolume(v)
}

// undoing is what taking a snapshot back comes to: the layer that it made is merged into the one that it froze.
func undoing(s steps.SnapshotPlan) steps.SnapshotDrop {
	return steps.SnapshotDrop{Snapshot: s.Snapshot, Volume: at(s.Volume, s.Layer), VM: s.VM, Frozen: s.Volume.Layer, Child: s.Layer}
}

// imagePlan is what fetching the image of a volume is asked with.
func imagePlan(v steps.VolumePlan) steps.VMPlan {
	return steps.VMPlan{Name: v.Name, Agent: v.Agent, Disk: steps.DiskPlan{
		Volume: v.Volume, Pool: v.Pool.Pool, PoolName: v.Pool.Name, PoolPath: v.Pool.Path, Size: v.Size, Image: v.Image.Image, ImageSHA256: v.Image.SHA256,
	}}
}

func noLayer(v steps.VolumePlan) *problem.Problem {
	return problem.New(problem.NotFound, "volume %s is not in the pool", v.Name).Because("there is no %s", layerPath(v))
}

func otherVolume(v steps.VolumePlan, size int64, backing string) *problem.Problem {
	return problem.New(problem.Conflict, "volume file %s exists and is another one", layerPath(v)).Because("it has %d bytes and is made on %q", size, backing)
}

func stillNeeded(v steps.VolumePlan, by string) *problem.Problem {
	return problem.New(problem.InUse, "volume file %s is needed by %s", layerPath(v), by).Try("delete first what was made on it")
}

func tooSmall(v steps.VolumePlan, need int64) *problem.Problem {
	return problem.New(problem.Invalid, "a volume of %d bytes is too small for what it begins with", v.Size).Because("that has %d bytes", need).Try("ask for a volume of at least that size")
}

func shrinking(from, to int64) *problem.Problem {
	return problem.New(problem.Conflict, "a volume of %d bytes does not shrink to %d", from, to).Because("its end may be in use")
}
