package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// exported is the beginning of the names of what was made of an image in another format; the content's SHA-256 follows.
func (s *Store) exported(image, format string) string {
	return filepath.Join(s.exports, image+"."+format+".")
}

// ExportFile returns the path and the SHA-256 of an image in another format, if an export has made it.
func (s *Store) ExportFile(image, format string) (path, sum string, err error) {
	if !api.IsUUID(image) || !api.IsImageFormat(format) {
		return "", "", problem.New(problem.Invalid, "%q in format %q is no image", image, format)
	}
	found, err := filepath.Glob(s.exported(image, format) + strings.Repeat("[0-9a-f]", 64))
	if err != nil || len(found) == 0 {
		return "", "", problem.New(problem.NotFound, "the image is not there in the format %s", format).Because("it was not exported, or its export has expired").
			Try("export it first")
	}
	return found[0], filepath.Ext(found[0])[1:], nil
}

// Export implements storage.ImageStore.
func (s *Store) Export(ctx context.Context, in steps.ImageExport, tell func(api.Progress)) (out steps.ImageExported, err error) {
	if tell == nil {
		tell = func(api.Progress) {}
	}
	path, err := s.path(in.Image)
	if err == nil && (!api.IsImageFormat(in.Format) || in.Format == api.FormatQCOW2) {
		err = problem.New(problem.Invalid, "images are not exported to the format %q", in.Format)
	}
	if err != nil {
		return out, err
	}
	leave, err := s.enter(ctx, in.Image)
	if err != nil {
		return out, err
	}
	defer leave()
	if there, sum, err := s.ExportFile(in.Image, in.Format); err == nil { // by an earlier export, or an attempt whose answer was lost
		now := time.Now()
		if info, err := os.Stat(there); err == nil && os.Chtimes(there, now, now) == nil {
			return steps.ImageExported{Format: in.Format, SHA256: sum, Size: info.Size()}, nil
		}
	}
	h, size, err := readHeader(path)
	if errors.Is(err, fs.ErrNotExist) {
		return out, problem.New(problem.NotFound, "image %s has no file", in.Image)
	}
	if err != nil {
		return out, err
	}
	if in.Format == api.FormatRaw && h.VirtualSize > s.maxSize {
		return out, problem.New(problem.TooLarge, "the image is too large to be exported as raw").Because("it would have %d bytes; at most %d are made", h.VirtualSize, s.maxSize).
			Try("export it as qcow2, and convert it where it is needed: `qemu-img convert -O raw FILE NEW`")
	}
	tmp := s.exported(in.Image, in.Format) + "tmp"
	if err := remove(tmp); err != nil {
		return out, err
	}
	defer func() {
		if err != nil {
			err = noSpace(errors.Join(problem.From(err), remove(tmp)), s.exports)
		}
	}()
	tell(api.Progress{Text: "converting"})
	i := qemuimg.Image{Path: path, Format: api.FormatQCOW2, Size: size, VirtualSize: h.VirtualSize}
	err = qemuimg.ConvertStrange(ctx, i, tmp, in.Format, qemuimg.Limits{}, func(p float64) { tell(api.Progress{Text: fmt.Sprintf("converting: %.0f%%", p)}) })
	if err != nil {
		return out, err
	}
	info, err := qemuimg.Look(ctx, qemuimg.Image{Path: tmp, Format: in.Format})
	if err != nil {
		return out, err
	}
	if info.VirtualSize != h.VirtualSize {
		return out, problem.New(problem.Unsupported, "the image cannot be exported to the format %s", in.Format).
			Because("it has %d bytes, and would have %d", h.VirtualSize, info.VirtualSize).Try("export it to another format")
	}
	tell(api.Progress{Text: "computing the checksum"})
	sum, err := sumOf(ctx, tmp)
	if err != nil {
		return out, err
	}
	stat, err := os.Stat(tmp)
	if err == nil {
		err = publish(tmp, s.exported(in.Image, in.Format)+sum)
	}
	if err != nil {
		return out, problem.Wrap(err, problem.Internal, "the export of image %s cannot be kept", in.Image)
	}
	return steps.ImageExported{Format: in.Format, SHA256: sum, Size: stat.Size()}, nil
}

// ExportUpload implements storage.ImageStore. Until the file is there, it is an image of that ID.
func (s *Store) ExportUpload(ctx context.Context, in api.UploadExport, tell func(api.Progress)) (out steps.ImageExported, err error) {
	if path, sum, err := s.ExportFile(in.ID, in.Format); err == nil { // an earlier attempt did it, and its answer was lost
		info, err := os.Stat(path)
		if err != nil {
			return out, problem.Wrap(err, problem.Unavailable, "the export cannot be looked at")
		}
		return steps.ImageExported{Format: in.Format, SHA256: sum, Size: info.Size()}, s.dropSource(ctx, in.ID)
	}
	made, err := s.Import(ctx, steps.ImageImport{Image: in.ID, Format: api.FormatQCOW2, Upload: in.ID, SHA256: in.SHA256}, tell)
	if err != nil {
		return out, err
	}
	if in.Format != api.FormatQCOW2 {
		if out, err = s.Export(ctx, steps.ImageExport{Image: in.ID, Format: in.Format}, tell); err != nil {
			return out, err
		}
		return out, s.dropSource(ctx, in.ID)
	}
	leave, err := s.enter(ctx, in.ID)
	if err != nil {
		return out, err
	}
	defer leave()
	path, err := s.path(in.ID)
	if err == nil {
		err = publish(path, s.exported(in.ID, in.Format)+made.SHA256)
	}
	return steps.ImageExported{Format: in.Format, SHA256: made.SHA256, Size: made.Size}, problem.Wrap(err, problem.Internal, "the export cannot be kept")
}

// dropSource removes the image that an export was made of, which nobody has asked for.
func (s *Store) dropSource(ctx context.Context, id string) error {
	leave, err := s.enter(ctx, id)
	if err != nil {
		return err
	}
	defer leave()
	path, err := s.path(id)
	if err != nil {
		return err
	}
	return remove(path)
}

// RemoveExport implements storage.ImageStore.
func (s *Store) RemoveExport(ctx context.Context, in steps.ImageExport) error {
	if !api.IsUUID(in.Image) || !api.IsImageFormat(in.Format) {
		return problem.New(problem.Invalid, "%q in format %q is no image", in.Image, in.Format)
	}
	leave, err := s.enter(ctx, in.Image)
	if err != nil {
		return err
	}
	defer leave()
	return removeAll(s.exported(in.Image, in.Format))
}

// removeAll removes the files whose names begin so; none is fine.
func removeAll(beginning string) error {
	found, err := filepath.Glob(beginning + "*")
	for _, path := range found {
		err = errors.Join(err, remove(path))
	}
	return err
}

// CleanExports removes the exports that nobody has asked for since, and returns how many. Those who fetch one at this moment go on.
func (s *Store) CleanExports(now time.Time, age time.Duration) (n int, err error) {
	entries, err := os.ReadDir(s.exports)
	if err != nil {
		return 0, problem.Wrap(err, problem.Internal, "the exports cannot be listed")
	}
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), ".")
		info, ierr := e.Info()
		if ierr != nil || !api.IsUUID(id) || now.Sub(info.ModTime()) < age {
			continue
		}
		if rerr := remove(filepath.Join(s.exports, e.Name())); rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		n++
	}
	return n, err
}
