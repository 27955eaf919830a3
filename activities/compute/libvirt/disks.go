package libvirt

import (
	"context"
	"time"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

var errNotYet = problem.New(problem.Unsupported, "disks of virtual machines cannot be changed yet")

// AttachDisk implements compute.Disks.
func (d *Driver) AttachDisk(context.Context, string, steps.DataDisk, compute.DiskSource) error {
	return errNotYet
}

// DetachDisk implements compute.Disks.
func (d *Driver) DetachDisk(context.Context, string, string) error { return errNotYet }

// ResizeDisk implements compute.Disks.
func (d *Driver) ResizeDisk(context.Context, string, string, int64) (bool, error) {
	return false, errNotYet
}

// TuneDisk implements compute.Disks.
func (d *Driver) TuneDisk(context.Context, string, string, api.VolumeQoS) error { return errNotYet }

// SwitchDisk implements compute.Disks.
func (d *Driver) SwitchDisk(context.Context, string, string, compute.DiskSource, bool) (compute.Switched, error) {
	return compute.Switched{}, errNotYet
}

// PlaceDisk implements compute.Disks.
func (d *Driver) PlaceDisk(context.Context, string, string, compute.DiskSource) (bool, error) {
	return false, errNotYet
}

// MergeDisk implements compute.Disks.
func (d *Driver) MergeDisk(context.Context, string, string, compute.Merge, func(api.Progress)) (bool, error) {
	return false, errNotYet
}

// Resting implements compute.Disks.
func (d *Driver) Resting(context.Context, string, func() error) (bool, time.Duration, error) {
	return false, 0, errNotYet
}
