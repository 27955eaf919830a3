//go:build ceph && cgo

package rbd

import (
	"context"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// FlattenVolume implements storage.Flattener, for a device that a guest has open as well: then librbd asks the guest's to do it. Its
// snapshots become independent with it (the feature deep-flatten). What was interrupted may go on in the guest's librbd.
func (d *Driver) FlattenVolume(ctx context.Context, v steps.VolumePlan, _ func(api.Progress)) error {
	return d.onVolume(ctx, v, "make it independent of its image", func(_ context.Context, _ *rados.IOContext, img *rbd.Image) error {
		if alone, err := alone(img); alone || err != nil {
			return err
		}
		return img.Flatten()
	})
}

// StandsAlone implements storage.Flattener.
func (d *Driver) StandsAlone(ctx context.Context, v steps.VolumePlan) (yes bool, err error) {
	answer := make(chan bool, 1)
	err = d.onVolume(ctx, v, "see whether it needs its image", func(_ context.Context, _ *rados.IOContext, img *rbd.Image) error {
		alone, err := alone(img)
		answer <- alone
		return err
	})
	if err != nil {
		return false, err
	}
	return <-answer, nil
}

// alone reports whether a device has no parent.
func alone(img *rbd.Image) (bool, error) {
	_, err := img.GetParent()
	if code(err) == unix.ENOENT {
		return true, nil
	}
	return false, err
}
