package storage

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Opened is what a pool can do whose volumes are files.
type Opened interface {
	// OpenVolume opens the file of a volume that stands alone and is not used, for reading.
	OpenVolume(ctx context.Context, v steps.VolumePlan) (Disk, error)
}

// Receiver is a server that takes files from nodes.
type Receiver interface {
	// TakeImage sends what an image is to be made of, and returns its SHA-256. What has arrived under that ID already is not sent
	// again. Progress is told how many bytes are there.
	TakeImage(ctx context.Context, image string, file io.ReadSeeker, size int64, progress func(int64)) (sum string, err error)
}

func sendVolume(ctx context.Context, pool Pool, src Source, in steps.VolumeSend, tell func(api.Progress)) (out steps.VolumeSent, err error) {
	from, ok := pool.(Opened)
	to, also := src.(Receiver)
	if !ok || !also {
		return out, problem.New(problem.Unsupported, "this node cannot send volumes to the server")
	}
	d, err := from.OpenVolume(ctx, in.Volume)
	if err != nil {
		return out, err
	}
	defer d.Close() //nolint:errcheck // was only read
	out.Size = d.Size()
	began := time.Now()
	out.SHA256, err = to.TakeImage(ctx, in.Image, io.NewSectionReader(d, 0, out.Size), out.Size, func(n int64) {
		p := api.Progress{Text: "sending the volume to the server", Done: n, Total: out.Size}
		if took := time.Since(began); took > time.Second {
			p.Rate = int64(float64(n) / took.Seconds())
		}
		tell(p)
	})
	return out, err
}

// OpenVolume implements Opened.
func (d *Dir) OpenVolume(_ context.Context, v steps.VolumePlan) (disk Disk, err error) {
	err = d.onVolume(v, func(root *os.Root) error {
		h, err := header(root, layerFile(v))
		if errors.Is(err, fs.ErrNotExist) {
			return noLayer(v)
		}
		if err == nil {
			err = h.Standalone()
		}
		if err != nil {
			return problem.Wrap(err, problem.Conflict, "volume %s cannot be read", v.Name)
		}
		f, err := root.Open(layerFile(v))
		if err != nil {
			return problem.Wrap(err, problem.Unavailable, "volume %s cannot be opened", v.Name)
		}
		disk, err = openDisk(f)
		return problem.Wrap(err, problem.Unavailable, "volume %s cannot be looked at", v.Name)
	})
	return disk, err
}

// OpenVolume implements Opened.
func (f *Fake) OpenVolume(_ context.Context, v steps.VolumePlan) (disk Disk, err error) {
	err = f.onLayer(v, func(pool *fakePool, path string) error {
		disk = fakeDisk{bytes.NewReader([]byte(pool.shows(path)))}
		return nil
	})
	return disk, err
}
