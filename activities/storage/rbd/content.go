//go:build ceph && cgo

package rbd

import (
	"cmp"
	"context"
	"os"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

var (
	_ storage.Contents = (*Driver)(nil)
	_ storage.Opened   = (*Driver)(nil)
	_ storage.Seeds    = (*Driver)(nil)
)

// What goes to pools of other types, or comes from them, is copied by qemu-img, which has the cluster's library in it: in a process
// that can be ended when the cluster does not answer.

// monitorPort is where monitors listen if nothing else is said.
const monitorPort = "6789"

// device returns a device as QEMU opens it.
func (d *Driver) device(ctx context.Context, v steps.VolumePlan, size int64) (qemuimg.Disk, error) {
	key, err := d.key(ctx, v.Pool)
	if err != nil {
		return qemuimg.Disk{}, err
	}
	var servers []any
	for _, m := range v.Pool.Source.Hosts {
		host, port := api.SplitMonitor(m)
		servers = append(servers, map[string]any{"host": host, "port": cmp.Or(port, monitorPort)})
	}
	return qemuimg.Disk{Size: size, Key: key, Options: map[string]any{"driver": "raw", "file": map[string]any{
		"driver": "rbd", "pool": v.Pool.Source.Name, "image": storage.RBDDisk(v.Volume), "user": v.Pool.Source.User, "server": servers, qemuimg.SecretOption: "",
	}}}, nil
}

// Lend implements storage.Contents.
func (d *Driver) Lend(ctx context.Context, v steps.VolumePlan, use func(context.Context, qemuimg.Disk) error) error {
	size := make(chan uint64, 1)
	err := d.onVolume(ctx, v, "copy it", func(_ context.Context, _ *rados.IOContext, img *rbd.Image) error {
		n, err := img.GetSize()
		size <- n
		return err
	})
	if err != nil {
		return err
	}
	disk, err := d.device(ctx, v, int64(<-size))
	if err != nil {
		return err
	}
	return use(ctx, disk)
}

// Fill implements storage.Contents. What is half-made has no mark that it is whole.
func (d *Driver) Fill(ctx context.Context, v steps.VolumePlan, from qemuimg.Disk, progress func(percent float64)) error {
	if err := storage.CheckNewRBDVolume(v); err != nil {
		return err
	}
	if from.Size > v.Size {
		return problem.New(problem.Invalid, "a volume of %d bytes is too small for what it begins with", v.Size).Because("that has %d bytes", from.Size)
	}
	p, name := v.Pool, storage.RBDDisk(v.Volume)
	err := d.onPool(ctx, p, name, "make volume "+v.Volume, func(ctx context.Context, io *rados.IOContext) error {
		if err := d.removeDevice(ctx, io, p, name); err != nil {
			return err
		}
		return create(io, name, v.Size, features)
	})
	if err != nil {
		return err
	}
	d.cfg.Step("begun")
	to, err := d.device(ctx, v, v.Size)
	if err != nil {
		return err
	}
	if err := qemuimg.Copy(ctx, from, to, progress); err != nil {
		return err
	}
	d.cfg.Step("written")
	return d.onPool(ctx, p, name, "finish volume "+v.Volume, func(_ context.Context, io *rados.IOContext) error {
		return finish(io, name, v.Size, "nothing")
	})
}

// OpenVolume implements storage.Opened: what is read is a qcow2 file that is made of the volume, and goes when it is closed.
func (d *Driver) OpenVolume(ctx context.Context, v steps.VolumePlan) (out storage.Disk, err error) {
	err = d.Lend(ctx, v, func(ctx context.Context, disk qemuimg.Disk) error {
		tmp, err := d.temp(tempPattern, "volumes that are sent to the server")
		if err != nil {
			return err
		}
		defer os.Remove(tmp.Name()) //nolint:errcheck // what stays goes when the agent starts
		defer tmp.Close()           //nolint:errcheck // was not written to
		if err := qcow2.Create(tmp.Name(), disk.Size, ""); err != nil {
			return err
		}
		if err := qemuimg.Copy(ctx, disk, qemuimg.File(tmp.Name(), api.FormatQCOW2, disk.Size), nil); err != nil {
			return err
		}
		out, err = storage.OpenFile(tmp.Name())
		return err
	})
	return out, err
}
