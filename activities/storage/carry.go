package storage

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Carrier is what the driver of a pool does that is not the same on all its nodes: it hands volumes from node to node.
type Carrier interface {
	// GiveVolume opens the file of a volume that nobody writes to, to be given to another node. One that somebody writes to is in_use; one
	// that is not what the plan says, or has snapshots, is a conflict.
	GiveVolume(ctx context.Context, v steps.VolumePlan) (Disk, error)
	// TakeVolume makes a volume with the content of the stream that fetch opens. What there was of it is replaced, at the end and only by
	// what is whole. Tell may be nil.
	TakeVolume(ctx context.Context, v steps.VolumePlan, src Source, fetch func(context.Context) (io.ReadCloser, error), tell func(api.Progress)) error
}

var (
	_ Carrier = ByType(nil)
	_ Carrier = (*Dir)(nil)
	_ Carrier = (*Fake)(nil)
)

func carrierOf(p any, poolType string) (Carrier, error) {
	if c, ok := p.(Carrier); ok {
		return c, nil
	}
	return nil, problem.New(problem.Unsupported, "volumes in pools of type %s are not handed from node to node", poolType).
		Because("all nodes of such a pool see them").Try("move the vm without --copy-storage")
}

func registerCarrier(reg activities.Registry, h *activities.Host, pool Pool, src Source, peers Peers) {
	activities.Implement(reg, h, steps.OfferVolume, func(ctx context.Context, _ steps.Token, v steps.VolumePlan) (steps.DiskOffer, error) {
		offer, err := offerVolume(ctx, pool, peers, v)
		return offer, problem.Wrap(err, problem.Internal, "cannot offer volume %s", v.Name)
	})
	activities.Implement(reg, h, steps.PullVolume, func(ctx context.Context, _ steps.Token, in steps.VolumePull) (steps.Nothing, error) {
		to, err := carrierOf(pool, in.Volume.Pool.Type)
		if err == nil {
			fetch := func(ctx context.Context) (io.ReadCloser, error) { return peers.Fetch(ctx, in.Offer) }
			err = to.TakeVolume(ctx, in.Volume, helpedBy(src, peers, in.Offer), fetch, activities.Reporting(ctx))
		}
		return steps.Nothing{}, problem.Wrap(err, problem.Internal, "cannot copy volume %s", in.Volume.Name)
	})
}

// helpedBy is a source of which the copy of the image may come from the node that offers a disk.
func helpedBy(src Source, peers Peers, offer steps.DiskOffer) *helped {
	from := &helped{Source: src, peers: peers}
	if offer.Image != "" {
		from.offer = &steps.DiskOffer{Address: offer.Address, Ticket: offer.Image}
	}
	return from
}

// offerVolume offers a volume after a look at whether it could be given now.
func offerVolume(ctx context.Context, pool Pool, peers Peers, v steps.VolumePlan) (steps.DiskOffer, error) {
	from, err := carrierOf(pool, v.Pool.Type)
	if err != nil {
		return steps.DiskOffer{}, err
	}
	var copied *steps.CachedImage
	if based(v) {
		copied = v.Image
	}
	return offerFile(ctx, pool, peers, v.Volume, func(ctx context.Context) (Disk, error) { return from.GiveVolume(ctx, v) }, copied)
}

// offerFile offers what open opens, and the copy of the image that it is made on, if any: whoever takes the one may need the other, too;
// the server has it in any case.
func offerFile(ctx context.Context, pool Pool, peers Peers, volume string, open OpenDisk, copied *steps.CachedImage) (steps.DiskOffer, error) {
	d, err := open(ctx)
	if err != nil {
		return steps.DiskOffer{}, err
	}
	size := d.Size()
	if err := d.Close(); err != nil {
		return steps.DiskOffer{}, err
	}
	offer, err := peers.Offer(ctx, volume, open)
	if err != nil {
		return offer, err
	}
	offer.Size = size
	if copied == nil {
		return offer, nil
	}
	if image, err := offerImage(ctx, pool, peers, *copied); err == nil {
		offer.Image = image.Ticket
	}
	return offer, nil
}

// based reports whether the file of a volume is made on the copy of an image.
func based(v steps.VolumePlan) bool { return v.Image != nil && !v.Shareable }

// GiveVolume implements Carrier.
func (b ByType) GiveVolume(ctx context.Context, v steps.VolumePlan) (Disk, error) {
	c, err := b.carrier(v)
	if err != nil {
		return nil, err
	}
	return c.GiveVolume(ctx, v)
}

// TakeVolume implements Carrier.
func (b ByType) TakeVolume(ctx context.Context, v steps.VolumePlan, src Source, fetch func(context.Context) (io.ReadCloser, error), tell func(api.Progress)) error {
	c, err := b.carrier(v)
	if err != nil {
		return err
	}
	return c.TakeVolume(ctx, v, src, fetch, tell)
}

func (b ByType) carrier(v steps.VolumePlan) (Carrier, error) {
	d, err := b.of(v.Pool.Type)
	if err != nil {
		return nil, err
	}
	return carrierOf(d, v.Pool.Type)
}

// GiveVolume implements Carrier.
func (d *Dir) GiveVolume(ctx context.Context, v steps.VolumePlan) (disk Disk, err error) {
	err = d.onVolume(v, func(root *os.Root) error {
		name := layerFile(v)
		err := isVolume(root, v, name)
		if errors.Is(err, fs.ErrNotExist) {
			return noLayer(v)
		}
		if err != nil {
			return problem.Wrap(err, problem.Conflict, "volume %s cannot be given away", v.Name)
		}
		if _, err := qemuimg.Inspect(ctx, layerPath(v), formatOf(v)); err != nil { // also whether somebody writes to it
			return problem.Wrap(err, problem.Internal, "volume %s cannot be given away", v.Name)
		}
		f, err := root.Open(name)
		if err != nil {
			return problem.Wrap(err, problem.Unavailable, "volume %s cannot be opened", v.Name)
		}
		disk, err = openDisk(f)
		return problem.Wrap(err, problem.Unavailable, "volume %s cannot be looked at", v.Name)
	})
	return disk, err
}

// isVolume says why a file is not what the plan of a volume says: of that size, on the copy of its image in this pool, and on nothing
// else. A file that came from elsewhere must not make QEMU open what its header names.
func isVolume(root *os.Root, v steps.VolumePlan, name string) error {
	if v.Shareable {
		info, err := root.Lstat(name)
		if err == nil && (!info.Mode().IsRegular() || info.Size() != v.Size) {
			err = problem.New(problem.Conflict, "volume %s is another one", v.Volume).Because("it has %d bytes, expected were %d", info.Size(), v.Size)
		}
		return err
	}
	h, err := header(root, name)
	if err != nil {
		return err
	}
	if v.Image != nil {
		return belongs(h, imagePlan(v))
	}
	return belongs(h, steps.VMPlan{Disk: steps.DiskPlan{Volume: v.Volume, PoolPath: v.Pool.Path, Size: v.Size}})
}

// snapshotsStay is the problem of a volume that consists of several files.
func snapshotsStay(volume string) *problem.Problem {
	return problem.New(problem.Conflict, "volume %s cannot be copied to another node", volume).Because("it has snapshots").Try("delete its snapshots first")
}

// TakeVolume implements Carrier.
func (d *Dir) TakeVolume(ctx context.Context, v steps.VolumePlan, src Source, fetch func(context.Context) (io.ReadCloser, error), tell func(api.Progress)) error {
	if tell == nil {
		tell = func(api.Progress) {}
	}
	return d.onVolume(v, func(root *os.Root) error {
		if based(v) {
			if _, err := d.image(ctx, root, imagePlan(v), src, func(text string) { tell(api.Progress{Text: text}) }); err != nil {
				return full(err, v.Pool, api.MiB)
			}
		}
		tmp := layerFile(v) + tempExt
		return d.arrive(ctx, root, v.Pool, tmp, fetch, tell, func() error { return d.keep(ctx, root, v, tmp) })
	})
}

// arrive fills a temporary file with what fetch opens, and has keep give it its name. Nothing is left of it if that fails.
func (d *Dir) arrive(ctx context.Context, root *os.Root, pool steps.PoolOnNode, tmp string, fetch func(context.Context) (io.ReadCloser, error), tell func(api.Progress), keep func() error) error {
	out, err := lockedTemp(ctx, root, tmp)
	if err != nil {
		return full(err, pool, api.MiB)
	}
	defer out.Close() //nolint:errcheck // synced by finish; ends the lock
	to := &diskSink{out: out, path: pool.Path, tell: tell}
	if err := d.pull(ctx, fetch, to); err != nil {
		return errors.Join(full(err, pool, to.data), removeFile(root, tmp))
	}
	if err := keep(); err != nil {
		return errors.Join(err, removeFile(root, tmp))
	}
	return nil
}

// keep gives a received volume its name, if it is what it should be. What has the name already is older.
func (d *Dir) keep(ctx context.Context, root *os.Root, v steps.VolumePlan, tmp string) error {
	leave, err := d.together(ctx, root, v.Pool.Path)
	if err != nil {
		return err
	}
	defer leave()
	if err := isVolume(root, v, tmp); err != nil {
		return problem.Wrap(err, problem.Conflict, "volume %s cannot be taken as it came", v.Name)
	}
	if based(v) && !copied(root, imagePlan(v).Disk) {
		return problem.New(problem.Unavailable, "the copy of image %s is gone again", v.Image.Image)
	}
	return finish(root, tmp, layerFile(v), volumesDir)
}

// GiveVolume implements Carrier.
func (f *Fake) GiveVolume(_ context.Context, v steps.VolumePlan) (disk Disk, err error) {
	if f.VolumeInUse != nil && f.VolumeInUse(v.Volume) {
		return nil, problem.New(problem.InUse, "volume %s is in use", v.Name)
	}
	err = f.onLayer(v, func(pool *fakePool, path string) error {
		file := pool.files[path]
		switch {
		case file.below != "":
			return snapshotsStay(v.Volume)
		case based(v) != (file.child != "") || file.virtual != v.Size:
			return otherVolume(v, file.virtual, file.child)
		}
		disk = fakeDisk{bytes.NewReader(append([]byte(fakeVolume), file.data...))} // a file is never empty
		return nil
	})
	return disk, err
}

// fakeVolume is what the file of a fake volume begins with on its way.
const fakeVolume = "a volume: "

// TakeVolume implements Carrier.
func (f *Fake) TakeVolume(ctx context.Context, v steps.VolumePlan, src Source, fetch func(context.Context) (io.ReadCloser, error), tell func(api.Progress)) error {
	if tell == nil {
		tell = func(api.Progress) {}
	}
	if based(v) {
		if err := f.on(v.Pool.Path).fetch(ctx, v.Pool, imagePlan(v).Disk, src); err != nil {
			return err
		}
	}
	came, err := swallowDisk(ctx, fetch, tell)
	if err != nil {
		return err
	}
	text, ours := bytes.CutPrefix(came, []byte(fakeVolume))
	if !ours {
		return problem.New(problem.Conflict, "volume %s cannot be taken as it came", v.Name)
	}
	return f.onPool(v, func(_ *Fake, pool *fakePool) error {
		made := fakeFile{kind: KindVolume, id: layer(v), virtual: v.Size, data: text}
		if based(v) {
			made.child = v.Image.SHA256
		}
		pool.files[layerPath(v)] = made
		return nil
	})
}

// SendLayer implements compute.FakeBacking.
func (f *Fake) SendLayer(s compute.DiskSource, to compute.FakeBacking) error {
	pool, leave, err := f.holding(s.File)
	if err != nil {
		return err
	}
	sent := pool.files[s.File]
	leave()
	there, ok := to.(*Fake)
	if !ok || sent.below != "" {
		return problem.New(problem.Conflict, "%s cannot be copied to another node", s.File).Because("it is made on %q", sent.below)
	}
	if pool, leave, err = there.holding(s.File); err != nil {
		return err
	}
	defer leave()
	if made := pool.files[s.File]; made.child != sent.child || made.virtual != sent.virtual {
		return problem.New(problem.Conflict, "%s is another one at the target", s.File)
	}
	pool.files[s.File] = sent
	return nil
}

// swallowDisk reads what another node sends to its end.
func swallowDisk(ctx context.Context, fetch func(context.Context) (io.ReadCloser, error), tell func(api.Progress)) (came []byte, err error) {
	in, err := fetch(ctx)
	if err == nil {
		closed := sync.OnceValue(in.Close)
		stop := context.AfterFunc(ctx, func() { _ = closed() }) // ends a read that waits
		err = readDisk(in, &fakeSink{&came, tell})
		stop()
		_ = closed()
	}
	if err != nil && ctx.Err() != nil {
		return nil, problem.New(problem.Cancelled, "fetching the disk was cancelled")
	}
	return came, err
}
