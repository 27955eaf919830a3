package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage/foreign"
	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// What the names of files end with that are not whole.
const (
	madeExt   = ".tmp"
	sourceExt = ".src.tmp"
)

// How much an image may have unpacked: a multiple of the bytes that it came with, which compression of real disks never comes
// near to; but images that are nearly empty may grow to some size in any case.
const (
	unpackedTimes  = 32
	unpackedAlways = 16 * api.GiB
)

// Import implements storage.ImageStore.
func (s *Store) Import(ctx context.Context, in steps.ImageImport, tell func(api.Progress)) (out steps.ImageImported, err error) {
	if tell == nil {
		tell = func(api.Progress) {}
	}
	path, err := s.path(in.Image)
	if err != nil {
		return out, err
	}
	leave, err := s.enter(ctx, in.Image)
	if err != nil {
		return out, err
	}
	defer leave()
	if out, err := s.describe(ctx, path); err == nil { // an earlier attempt did it, and its answer was lost
		return out, nil
	}
	j := &job{Store: s, in: in, made: path + madeExt, src: path + sourceExt, tell: tell}
	defer func() {
		if !j.keeps(ctx, err) {
			err = errors.Join(err, remove(j.src), remove(j.notes()))
		}
		if err != nil {
			err = noSpace(errors.Join(problem.From(err), remove(j.made)), s.images)
		}
	}()
	err = remove(j.made)
	if err == nil && in.URL == "" {
		err = remove(j.src)
	}
	if err != nil {
		return out, err
	}
	if err := j.take(ctx); err != nil {
		return out, err
	}
	tell(api.Progress{Text: "computing the checksum"})
	if out, err = s.describe(ctx, j.made); err != nil {
		return out, err
	}
	return out, problem.Wrap(publish(j.made, path), problem.Internal, "image %s cannot be stored", in.Image)
}

// job is one import.
type job struct {
	*Store
	in        steps.ImageImport
	made, src string // files: what it becomes, and our copy of what it came as
	tell      func(api.Progress)
}

// keeps reports whether what was fetched is kept after an error: another attempt goes on with it. If there is none, the undo of
// the operation removes it.
func (j *job) keeps(ctx context.Context, err error) bool {
	return j.in.URL != "" && err != nil && (ctx.Err() != nil || problem.TraitsOf(problem.KindOf(err)).Retry)
}

// take makes a sound qcow2 image out of the source. Everything is checked on a copy of ours, which nobody can change between
// the check and the use.
func (j *job) take(ctx context.Context) error {
	if !slices.Contains(api.ImageFormats(), j.in.Format) {
		return problem.New(problem.Invalid, "images of the format %q cannot be imported", j.in.Format).Try("give one of %s", strings.Join(api.ImageFormats(), ", "))
	}
	sum, size, err := j.bring(ctx)
	if err != nil {
		return err
	}
	if j.in.SHA256 != "" && sum != j.in.SHA256 {
		return problem.New(problem.Invalid, "the source of the image is not what was announced").Because("its SHA-256 is %s, announced was %s", sum, j.in.SHA256).
			Try("send it again, or correct the checksum")
	}
	var virtual int64
	if j.in.Format != api.FormatQCOW2 {
		if virtual, err = j.convert(ctx, size); err != nil {
			return err
		}
	}
	return j.verify(ctx, virtual)
}

// bring makes our copy of the source, which is j.src, or j.made if nothing has to be made of it, and returns its SHA-256 and size.
func (j *job) bring(ctx context.Context) (sum string, size int64, err error) {
	if j.in.URL != "" {
		if j.in.Path != "" || j.in.Upload != "" {
			return "", 0, problem.New(problem.Invalid, "an image comes from a URL or from elsewhere, not from both")
		}
		if sum, size, err = j.fetch(ctx); err != nil {
			return "", 0, err
		}
		src, _, err := openRegular(j.src)
		if err != nil {
			return "", 0, problem.Wrap(err, problem.Internal, "the image cannot be read")
		}
		defer src.Close() //nolint:errcheck // was only read
		if err := probe(src, size, j.in.Format); err != nil {
			return "", 0, err
		}
		if j.in.Format == api.FormatQCOW2 {
			err = os.Rename(j.src, j.made)
		}
		return sum, size, problem.Wrap(err, problem.Internal, "the image cannot be stored")
	}
	src, size, err := j.source(j.in)
	if err != nil {
		return "", 0, err
	}
	defer src.Close() //nolint:errcheck // was only read
	if size > j.maxSize {
		return "", 0, j.tooLarge(size)
	}
	if err := probe(src, size, j.in.Format); err != nil {
		return "", 0, err
	}
	dst := j.src
	if j.in.Format == api.FormatQCOW2 {
		dst = j.made
	}
	sum, err = copyTo(ctx, dst, src, size, j.tell)
	return sum, size, err
}

func (s *Store) tooLarge(size int64) error {
	return problem.New(problem.TooLarge, "the image is too large").Because("it has %d bytes; at most %d are taken", size, s.maxSize).
		Try("make it smaller, or raise the server's --image-max-size")
}

// mayHave is how many bytes an image may have unpacked that came with so many.
func (s *Store) mayHave(size int64) int64 { return max(s.unpacked, unpackedTimes*size) }

// convert makes a qcow2 image of our copy of the source, and returns the size that guests will see.
func (j *job) convert(ctx context.Context, size int64) (int64, error) {
	i := qemuimg.Image{Path: j.src, Format: j.in.Format, Size: size, VirtualSize: size}
	limits := qemuimg.Limits{}
	if j.in.Format != api.FormatRaw {
		j.tell(api.Progress{Text: "checking"})
		h, err := readForeign(j.in.Format, j.src) // once more: the source may have changed while it was copied
		if err != nil {
			return 0, err
		}
		i.VirtualSize, limits.File = h.VirtualSize, j.mayHave(size)
		info, err := qemuimg.Look(ctx, i)
		if err != nil {
			return 0, err
		}
		if err := agree(info, i); err != nil {
			return 0, err
		}
		if _, err := qemuimg.CheckStrange(ctx, i); err != nil {
			return 0, err
		}
	}
	tables := i.VirtualSize/64 + 64*api.MiB
	if limits.File == 0 || limits.File > i.VirtualSize+tables {
		limits.File = i.VirtualSize + tables
	}
	limits.File = min(limits.File, j.maxSize)
	j.tell(api.Progress{Text: "converting"})
	err := qemuimg.ConvertStrange(ctx, i, j.made, api.FormatQCOW2, limits, func(p float64) { j.tell(api.Progress{Text: fmt.Sprintf("converting: %.0f%%", p)}) })
	return i.VirtualSize, err
}

// agree compares what QEMU sees with what the header says: where they differ, one of the two was meant to be deceived.
func agree(info qemuimg.Info, i qemuimg.Image) error {
	elsewhere := ""
	for _, e := range info.Specific.Data.Extents {
		if e.Filename != i.Path {
			elsewhere = e.Filename
		}
	}
	if info.Format == i.Format && info.Backing == "" && !info.Encrypted && info.VirtualSize == i.VirtualSize && elsewhere == "" {
		return nil
	}
	return problem.New(problem.Invalid, "the image is not what its header says").
		Because("qemu-img sees format %q, size %d (the header: %d), backing file %q, data in %q", info.Format, info.VirtualSize, i.VirtualSize, info.Backing, elsewhere).
		Try("make it anew: `qemu-img convert -f %s -O qcow2 IMAGE NEW`", i.Format)
}

func readForeign(format, path string) (*foreign.Header, error) {
	f, size, err := openRegular(path)
	if err != nil {
		return nil, problem.Wrap(err, problem.Internal, "the image cannot be read")
	}
	defer f.Close() //nolint:errcheck // was only read
	return foreign.Read(format, f, size)
}

// verify checks what was made, which must be a qcow2 image that refers to nothing, and has the virtual size; 0: any.
func (j *job) verify(ctx context.Context, virtual int64) error {
	j.tell(api.Progress{Text: "checking"})
	h, size, err := readHeader(j.made)
	if err != nil {
		return err
	}
	if err := h.Standalone(); err != nil {
		return err
	}
	i := qemuimg.Image{Path: j.made, Format: api.FormatQCOW2, Size: size, VirtualSize: h.VirtualSize}
	info, err := qemuimg.Look(ctx, i)
	if err != nil {
		return err
	}
	if err := agree(info, i); err != nil {
		return err
	}
	checked, err := qemuimg.CheckStrange(ctx, i)
	if err != nil {
		return err
	}
	if virtual != 0 && (h.VirtualSize < virtual || h.VirtualSize >= virtual+sectorSize) {
		return problem.New(problem.Internal, "the conversion went wrong").Because("the image has %d bytes, and had %d", h.VirtualSize, virtual)
	}
	// Clusters may be compressed, or stand for many places of the disk at once.
	if data := checked.Allocated * h.ClusterSize; j.in.Format == api.FormatQCOW2 && data > j.mayHave(size) {
		return problem.New(problem.Invalid, "the image is refused").
			Because("it has %d bytes, and %d unpacked: it looks as if it was made to fill the pools", size, data).
			Try("unpack it where it is: `qemu-img convert -O qcow2 IMAGE NEW`, and import that")
	}
	return nil
}

const sectorSize = 512

func readHeader(path string) (*qcow2.Header, int64, error) {
	f, size, err := openRegular(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close() //nolint:errcheck // was only read
	h, err := qcow2.Read(f, size)
	return h, size, err
}

// describe computes what is to be known of a finished file.
func (s *Store) describe(ctx context.Context, path string) (out steps.ImageImported, err error) {
	h, size, err := readHeader(path)
	if err != nil {
		return out, err
	}
	sum, err := sumOf(ctx, path)
	return steps.ImageImported{SHA256: sum, Size: size, VirtualSize: h.VirtualSize}, err
}

// sumOf returns the SHA-256 of a file.
func sumOf(ctx context.Context, path string) (string, error) {
	f, _, err := openRegular(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // was only read
	sum := sha256.New()
	if _, err := io.Copy(sum, &reader{ctx: ctx, r: f}); err != nil {
		return "", problem.Wrap(err, problem.Internal, "the image cannot be read")
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// publish makes a finished file durable under its name.
func publish(tmp, path string) error {
	f, err := os.OpenFile(tmp, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// noSpace makes "no space left on device" a problem that says so.
func noSpace(err error, dir string) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) && !problem.Is(err, problem.NoCapacity) {
		return problem.From(err)
	}
	var st unix.Statfs_t
	_ = unix.Statfs(dir, &st) // zeros then
	return problem.New(problem.NoCapacity, "the server's image store is full: %s of %s are free", api.Size(int64(st.Bavail)*st.Bsize), dir).Try("delete images, or make room on the server")
}
