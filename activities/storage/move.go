package storage

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

const (
	// peerPatience is how long a node that sends a disk may be silent.
	peerPatience = time.Minute
	tellEvery    = 200 * time.Millisecond
)

// OpenDisk implements Pool.
func (d *Dir) OpenDisk(ctx context.Context, plan steps.VMPlan) (Disk, error) {
	if err := checkPlan(plan); err != nil {
		return nil, err
	}
	root, err := d.open(plan.Disk.Pool, plan.Disk.PoolPath)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	name := volumesDir + "/" + rootLayer(plan) + volumeExt
	h, err := header(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, problem.New(problem.NotFound, "vm %s has no disk here", plan.Name).Because("there is no %s", inPool(plan.Disk.PoolPath, name))
	}
	if err == nil {
		err = belongs(h, plan)
	}
	if err != nil {
		return nil, problem.Wrap(err, problem.Conflict, "the disk of vm %s cannot be given away", plan.Name)
	}
	if _, err := qemuimg.Inspect(ctx, inPool(plan.Disk.PoolPath, name), "qcow2"); err != nil {
		return nil, problem.Wrap(err, problem.Internal, "the disk of vm %s cannot be given away", plan.Name)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "the disk of vm %s cannot be opened", plan.Name)
	}
	disk, err := openDisk(f)
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "the disk of vm %s cannot be looked at", plan.Name)
	}
	return disk, nil
}

// belongs says why a volume is not what the plan says: a child of its image's copy in this pool, if it has an image, and of nothing
// else. A file that came from elsewhere must not make QEMU open what its header names.
func belongs(h *qcow2.Header, plan steps.VMPlan) error {
	var backing, format string
	if sha := plan.Disk.ImageSHA256; sha != "" {
		backing, format = inPool(plan.Disk.PoolPath, backingDir, sha), api.FormatQCOW2
	}
	refuse := func(format string, args ...any) error {
		return problem.New(problem.Conflict, "volume %s is another one", plan.Disk.Volume).Because(format, args...)
	}
	switch {
	case filepath.Dir(h.BackingFile) == inPool(plan.Disk.PoolPath, volumesDir):
		return snapshotsStay(plan.Disk.Volume)
	case h.BackingFile != backing || h.BackingFormat != format:
		return refuse("its backing file is %q (%s), expected was %q (%s)", h.BackingFile, h.BackingFormat, backing, format)
	case h.VirtualSize != plan.Disk.Size:
		return refuse("it has %d bytes, expected were %d", h.VirtualSize, plan.Disk.Size)
	case h.DataFile:
		return refuse("its data is in another file")
	case h.Encrypted:
		return refuse("it is encrypted")
	case h.Corrupt:
		return refuse("it is marked as corrupt")
	case h.Unknown != 0:
		return refuse("it uses features that are not known here")
	default:
		return nil
	}
}

// ReceiveDisk implements Pool.
func (d *Dir) ReceiveDisk(ctx context.Context, plan steps.VMPlan, src Source, fetch func(context.Context) (io.ReadCloser, error), tell func(api.Progress)) error {
	if err := checkPlan(plan); err != nil {
		return err
	}
	if tell == nil {
		tell = func(api.Progress) {}
	}
	root, err := d.open(plan.Disk.Pool, plan.Disk.PoolPath)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	if _, err := d.image(ctx, root, plan, src, func(text string) { tell(api.Progress{Text: text}) }); err != nil {
		return full(err, plan.Disk.OnNode(), plan.Disk.ImageSize)
	}
	if err := writeSeed(ctx, root, plan, src); err != nil {
		return full(err, plan.Disk.OnNode(), api.MiB)
	}
	name := volumesDir + "/" + rootLayer(plan) + volumeExt
	tmp := name + tempExt
	return d.arrive(ctx, root, plan.Disk.OnNode(), tmp, fetch, tell, func() error { return d.accept(ctx, root, plan, tmp, name) })
}

// accept gives a received volume its name, if it is what it should be. What has the name already is older.
func (d *Dir) accept(ctx context.Context, root *os.Root, plan steps.VMPlan, tmp, name string) error {
	leave, err := d.together(ctx, root, plan.Disk.PoolPath)
	if err != nil {
		return err
	}
	defer leave()
	h, err := header(root, tmp)
	if err == nil {
		err = belongs(h, plan)
	}
	if err != nil {
		return problem.Wrap(err, problem.Conflict, "the disk that came for vm %s cannot be taken", plan.Name)
	}
	if !copied(root, plan.Disk) {
		return problem.New(problem.Unavailable, "the copy of image %s is gone again", plan.Disk.Image)
	}
	return finish(root, tmp, name, volumesDir)
}

// pull reads the stream into to. It ends when ctx does, and when the sender has been silent for too long.
func (d *Dir) pull(ctx context.Context, fetch func(context.Context) (io.ReadCloser, error), to *diskSink) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := problem.New(problem.Unavailable, "the disk broke off").Because("the node that sends it has been silent for %s", d.patience)
	watch := time.AfterFunc(d.patience, func() { cancel(silent) })
	defer watch.Stop()
	in, err := fetch(ctx)
	if err == nil {
		closed := sync.OnceValue(in.Close)
		stop := context.AfterFunc(ctx, func() { _ = closed() }) // ends a read that waits
		err = readDisk(reader{ctx, alive{in, func(int) { watch.Reset(d.patience) }}}, to)
		stop()
		_ = closed()
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), silent):
		return silent
	case ctx.Err() != nil:
		return problem.New(problem.Cancelled, "fetching the disk was cancelled")
	}
	return err
}

// alive tells when something was read.
type alive struct {
	io.Reader
	yes func(n int)
}

func (a alive) Read(b []byte) (int, error) {
	n, err := a.Reader.Read(b)
	if n > 0 {
		a.yes(n)
	}
	return n, err
}

// diskSink writes a stream into a file, with its holes.
type diskSink struct {
	out        *os.File
	path       string // of the pool
	tell       func(api.Progress)
	data, done int64
	began      time.Time
	told       time.Time
}

func (s *diskSink) begin(size, data int64) error {
	s.data, s.began = data, time.Now()
	var st unix.Statfs_t
	if unix.Fstatfs(int(s.out.Fd()), &st) == nil && data > int64(st.Bavail)*st.Bsize {
		return unix.ENOSPC // better before the pool is full than after
	}
	return s.out.Truncate(size)
}

func (s *diskSink) put(at int64, b []byte) error {
	if _, err := s.out.WriteAt(b, at); err != nil {
		return err
	}
	s.done += int64(len(b))
	if now := time.Now(); now.Sub(s.told) >= tellEvery || s.done == s.data {
		s.told = now
		p := api.Progress{Text: "copying the disk", Done: s.done, Total: s.data}
		if took := now.Sub(s.began); took > 0 {
			p.Rate = int64(float64(s.done) / took.Seconds())
		}
		s.tell(p)
	}
	return nil
}
