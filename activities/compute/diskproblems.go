package compute

import (
	"context"
	"errors"
	"regexp"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

var deviceRE = regexp.MustCompile(`^vd([c-z]|[a-z]{2})$`)

// CheckDataDisk refuses a disk that cannot be one. vda is the root disk, and vdb the seed.
func CheckDataDisk(d steps.DataDisk, source DiskSource) error {
	var v problem.Validation
	v.Check(api.IsUUID(d.Volume), "volume", d.Volume, "must be a UUID")
	v.Check(deviceRE.MatchString(d.Device), "device", d.Device, "must be vdc or a later one")
	v.Check(source.IsSet(), "source", "", "must be there")
	v.Check(source.Format == api.FormatQCOW2 || source.Format == api.FormatRaw, "format", source.Format, "must be qcow2 or raw")
	if err := v.Err("disk " + d.Device); err != nil {
		return err
	}
	if d.Shareable && !d.ReadOnly && source.Format == api.FormatQCOW2 {
		return problem.New(problem.Unsupported, "volume %s cannot be written by several VMs at once", d.Volume).
			Because("it is a qcow2 file, whose structure only one may change").Try("attach it read-only, or use a volume of an RBD pool")
	}
	return nil
}

// NoSuchDisk is the problem of a disk that a domain should have and has not.
func NoSuchDisk(vm, volume string) *problem.Problem {
	return problem.New(problem.NotFound, "the domain of vm %s has no volume %s", vm, volume)
}

// DiskGone is the problem of a VM whose domain has a disk that is not there: the domain is outdated.
func DiskGone(vm string, err error) *problem.Problem {
	return problem.New(problem.NotFound, "a disk of the domain of vm %s is not there", vm).Because("%s", err.Error())
}

// AttachedAs is the problem of a volume that a VM has already, under another name.
func AttachedAs(vm, volume, device string) *problem.Problem {
	return problem.New(problem.Conflict, "vm %s has volume %s already, as %s", vm, volume, device).Try("detach it first")
}

// DeviceTaken is the problem of a device name that another disk has.
func DeviceTaken(vm, device string) *problem.Problem {
	return problem.New(problem.Conflict, "vm %s has another disk %s already", vm, device)
}

// NotBelow is the problem of layers that are not one on the other.
func NotBelow(m Merge) *problem.Problem {
	return problem.New(problem.Conflict, "layer %s is not made on %s", m.Top, m.Below)
}

// HeldOn is the problem of a guest that has not let a disk go until ctx has ended.
func HeldOn(ctx context.Context, vm, volume string) *problem.Problem {
	if errors.Is(ctx.Err(), context.Canceled) {
		return problem.New(problem.Cancelled, "the guest of vm %s was to let volume %s go, and that was cancelled", vm, volume)
	}
	return problem.New(problem.InUse, "the guest of vm %s does not let volume %s go", vm, volume).
		Because("it was asked to, and has not answered: it may still be starting, hang, or not support hot-plugging").
		Try("unmount the volume in the guest and try again, or stop the vm first")
}
