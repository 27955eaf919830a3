package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// A volume that several VMs may write to is a raw file: the structure of a qcow2 file is in the memory of whoever has it open.

func formatOf(v steps.VolumePlan) string {
	if v.Shareable {
		return api.FormatRaw
	}
	return api.FormatQCOW2
}

// measure returns how large a volume is, and what its file is made on.
func measure(root *os.Root, v steps.VolumePlan) (size int64, backing string, err error) {
	if !v.Shareable {
		h, err := header(root, layerFile(v))
		if err != nil {
			return 0, "", err
		}
		return h.VirtualSize, h.BackingFile, nil
	}
	info, err := root.Lstat(layerFile(v))
	if err != nil {
		return 0, "", err
	}
	if !info.Mode().IsRegular() {
		return 0, "", fmt.Errorf("%s is not a regular file", layerFile(v))
	}
	return info.Size(), "", nil
}

// origin returns the volume that another is to be a copy of, which may be of either format.
func origin(root *os.Root, v steps.VolumePlan) (steps.VolumePlan, error) {
	from := steps.VolumePlan{Volume: v.From.Volume, Name: v.From.Volume, Pool: v.Pool, Layer: v.From.Layer}
	for _, from.Shareable = range []bool{false, true} {
		if _, err := root.Lstat(layerFile(from)); !errors.Is(err, fs.ErrNotExist) {
			return from, problem.Wrap(err, problem.Unavailable, "volume %s cannot be looked at", from.Volume)
		}
	}
	from.Shareable = false
	return from, noLayer(from)
}

// blank makes an empty raw file as large as a volume.
func blank(root *os.Root, v steps.VolumePlan, tmp string) error {
	f, err := root.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		err = errors.Join(f.Truncate(v.Size), f.Close())
	}
	return problem.Wrap(err, problem.Internal, "volume %s cannot be made", v.Name)
}

// createRaw makes a volume that several VMs may write to.
func (d *Dir) createRaw(ctx context.Context, root *os.Root, v steps.VolumePlan, src Source, tell func(api.Progress)) error {
	if v.From != nil {
		return d.copyOf(ctx, root, v, tell)
	}
	var image string
	if v.Image != nil {
		var err error
		if image, err = d.image(ctx, root, imagePlan(v), src, func(text string) { tell(api.Progress{Text: text}) }); err != nil {
			return err
		}
	}
	return d.standing(ctx, root, v, func(tmp string) error {
		if image == "" {
			return blank(root, v, tmp)
		}
		h, err := header(root, backingDir+"/"+v.Image.SHA256)
		if err == nil {
			err = h.Standalone()
		}
		if err != nil {
			return problem.Wrap(err, problem.Internal, "the copy of image %s cannot be read", v.Image.Image)
		}
		return pour(ctx, v, image, api.FormatQCOW2, h.VirtualSize, tmp, tell)
	})
}
