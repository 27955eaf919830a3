// Package storage keeps the files of virtual machines: pools of volumes on the nodes, and the image store on the server
// (package images). What a pool has to be able to do is the Pool interface; Dir is the one that is a directory, and Fake is
// one that lives in memory.
package storage

import (
	"context"
	"io"
	"path/filepath"
	"strings"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Pool is what a node does for the pools on it. All methods may be called again after any interruption. Errors are problems;
// a pool that is not prepared on this node is not_found.
type Pool interface {
	Volumes
	Snapshots
	Flattener
	// Locate says how a hypervisor of this node opens the disks of a VM.
	Locate(plan steps.VMPlan) (compute.DomainFiles, error)
	// Prepare makes the directory a pool, by really using it, and says how much room it has. A directory that is another
	// pool's, is inside one, or holds what looks like one, is a conflict; so is one that two agents see if the pool is not shared, or if it is
	// shared and this agent does not see what the first has made.
	Prepare(ctx context.Context, p steps.PoolOnNode) (api.PoolUsage, error)
	// Release removes what Prepare made and all image copies, and nothing else. It refuses (in_use) while a volume is there, and is
	// content with a directory that is not this pool, and with what can be none or never was reached: a pool that cannot be
	// prepared for a mistake in its address must not be impossible to release for the same.
	Release(ctx context.Context, p steps.PoolOnNode) error
	// MakeDisk makes root disk and seed of a VM, fetching the image if it is not in the pool yet. Progress may be nil.
	MakeDisk(ctx context.Context, plan steps.VMPlan, src Source, progress func(string)) error
	// RemoveDisk removes them, and what was half-made. It is content if they are not there.
	RemoveDisk(ctx context.Context, plan steps.VMPlan) error
	// OpenDisk opens the root disk of a VM that does not run, to be given to another node. One that is used is in_use; one
	// that is not a child of its image's copy in this pool is a conflict.
	OpenDisk(ctx context.Context, plan steps.VMPlan) (Disk, error)
	// ReceiveDisk makes root disk and seed of a VM as MakeDisk does, but with the content of the stream that fetch opens. What
	// there was of the disk is replaced, at the end and only by what is whole. Tell may be nil.
	ReceiveDisk(ctx context.Context, plan steps.VMPlan, src Source, fetch func(context.Context) (io.ReadCloser, error), tell func(api.Progress)) error
	// EvictImage removes the copy of an image. It refuses (in_use) while a volume needs it.
	EvictImage(ctx context.Context, c steps.CachedImage) error
	// List tells what is in a pool; nothing if it is not prepared here.
	List(ctx context.Context, p steps.PoolOnNode) ([]steps.FileFound, error)
	// Remove removes a file that List told of, unless something here needs or writes it.
	Remove(ctx context.Context, p steps.PoolOnNode, f steps.FileFound) error
	// Usage says how much room a pool has; what is wrong with it is in the answer.
	Usage(ctx context.Context, p steps.PoolOnNode) api.PoolUsage
}

// Source is where a node gets what it does not have: the server.
type Source interface {
	// Seed returns what the cloud-init of a VM gets.
	Seed(ctx context.Context, vm string) (api.Seed, error)
	// OpenImage returns the stored file of an image and its length in bytes, -1 if it is not known.
	OpenImage(ctx context.Context, image string) (io.ReadCloser, int64, error)
}

// Directories of a pool.
const (
	volumesDir = "volumes"
	backingDir = "backing"
	seedsDir   = "seeds"
)

// poolDirs are all of them.
var poolDirs = []string{volumesDir, backingDir, seedsDir, checkpointsDir}

// Kinds of files in a pool, as List calls them.
const (
	KindVolume  = "volume"
	KindSeed    = "seed"
	KindBacking = "backing"
	KindOther   = "other" // half-made, or not ours
)

// What the names of files end with.
const (
	volumeExt = ".qcow2"
	rawExt    = ".raw" // of volumes that several VMs may write to
	seedExt   = ".iso"
	tempExt   = ".tmp"
	workExt   = ".work"
)

// Locate says where the disks of a VM are, in pools that are directories.
func Locate(plan steps.VMPlan) (compute.DomainFiles, error) {
	if err := checkPlan(plan); err != nil {
		return compute.DomainFiles{}, err
	}
	out := compute.DomainFiles{
		Disk: compute.QCOW2(filepath.Join(plan.Disk.PoolPath, volumesDir, rootLayer(plan)+volumeExt)),
		Seed: compute.Raw(filepath.Join(plan.Disk.PoolPath, seedsDir, plan.VM+seedExt)),
	}
	for _, d := range plan.Data {
		source, err := locateVolume(steps.VolumePlan{Volume: d.Volume, Pool: d.Pool, Layer: d.Layer, Shareable: d.Shareable})
		if err != nil {
			return compute.DomainFiles{}, err
		}
		out.Data = append(out.Data, source)
	}
	return out, nil
}

func locateVolume(v steps.VolumePlan) (compute.DiskSource, error) {
	if err := checkVolume(v); err != nil {
		return compute.DiskSource{}, err
	}
	if v.Shareable {
		return compute.Raw(layerPath(v)), nil
	}
	return compute.QCOW2(layerPath(v)), nil
}

// layer is the name of the file that a volume is written to.
func layer(v steps.VolumePlan) string {
	if v.Layer != "" {
		return v.Layer
	}
	return v.Volume
}

func rootLayer(plan steps.VMPlan) string {
	return layer(steps.VolumePlan{Volume: plan.Disk.Volume, Layer: plan.Disk.Layer})
}

// at returns the volume as if it were written to another of its layers; empty: the first.
func at(v steps.VolumePlan, layer string) steps.VolumePlan {
	v.Layer = layer
	return v
}

// layerFile is where a layer is below the directory of its pool.
func layerFile(v steps.VolumePlan) string {
	if v.Shareable {
		return volumesDir + "/" + layer(v) + rawExt
	}
	return volumesDir + "/" + layer(v) + volumeExt
}

func layerPath(v steps.VolumePlan) string {
	return filepath.Join(v.Pool.Path, layerFile(v))
}

// checkVolume refuses what could lead out of a pool, or to nowhere.
func checkVolume(v steps.VolumePlan) error {
	var c problem.Validation
	c.Check(api.IsUUID(v.Volume), "volume", v.Volume, "must be a UUID")
	c.Check(v.Layer == "" || api.IsUUID(v.Layer), "layer", v.Layer, "must be a UUID")
	if err := c.Err("plan of volume " + v.Name); err != nil {
		return err
	}
	return checkPool(v.Pool)
}

// checkPlan refuses what could lead out of a pool, or to nowhere.
func checkPlan(plan steps.VMPlan) error {
	var v problem.Validation
	v.Check(api.IsUUID(plan.VM), "vm", plan.VM, "must be a UUID")
	v.Check(api.IsUUID(plan.Disk.Volume), "disk.volume", plan.Disk.Volume, "must be a UUID")
	v.Check(plan.Disk.Layer == "" || api.IsUUID(plan.Disk.Layer), "disk.layer", plan.Disk.Layer, "must be a UUID")
	v.Check(api.IsUUID(plan.Disk.Pool), "disk.pool", plan.Disk.Pool, "must be a UUID")
	checkPath(&v, "disk.poolPath", plan.Disk.PoolPath)
	return v.Err("plan of vm " + plan.Name)
}

func checkPool(p steps.PoolOnNode) error {
	var v problem.Validation
	v.Check(api.IsUUID(p.Pool), "pool", p.Pool, "must be a UUID")
	v.Check(p.Type == api.PoolDir || api.Mounted(p.Type), "type", p.Type, "must be a pool of files")
	checkPath(&v, "path", p.Path)
	return v.Err("pool")
}

func checkPath(v *problem.Validation, field, path string) {
	v.Check(filepath.IsAbs(path) && filepath.Clean(path) == path && path != "/" && !strings.ContainsAny(path, "\x00\n\r,"), field, path, "must be an absolute, clean directory path")
}

func isSHA256(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }
