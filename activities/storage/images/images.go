// Package images is the server's image store: a directory with one qcow2 file per image, called by the image's ID. What
// comes in is checked as if it were made to do harm, because it may be.
package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Store is the image store below one data directory:
//
//	images/ID         a stored image, complete and checked
//	images/ID.tmp     one that is being imported
//	uploads/ID        what a client sent, until it is imported
type Store struct {
	images, uploads string
	allowed         []string

	mu   sync.Mutex
	busy map[string]chan struct{} // image ID -> closed when its import or removal is over
}

var _ storage.ImageStore = (*Store)(nil)

// Open returns the store in the directory data, which it makes if need be. Files on the server can be imported from the
// directories in allowed only.
func Open(data string, allowed []string) (*Store, error) {
	s := &Store{images: filepath.Join(data, "images"), uploads: filepath.Join(data, "uploads"), busy: map[string]chan struct{}{}}
	for _, d := range []string{s.images, s.uploads} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, problem.Wrap(err, problem.Internal, "the image store cannot be made")
		}
	}
	for _, a := range allowed {
		if !filepath.IsAbs(a) {
			return nil, problem.New(problem.Invalid, "image directory %q is not an absolute path", a)
		}
		s.allowed = append(s.allowed, filepath.Clean(a))
	}
	return s, nil
}

// Uploads is the directory in which uploads are kept, each called by its ID.
func (s *Store) Uploads() string { return s.uploads }

// RemoveUpload removes an upload; none is fine.
func (s *Store) RemoveUpload(id string) error {
	if !api.IsUUID(id) {
		return problem.New(problem.Invalid, "%q is not the ID of an upload", id)
	}
	return remove(filepath.Join(s.uploads, id))
}

// OpenImage opens a stored image for reading and says how many bytes it has.
func (s *Store) OpenImage(id string) (*os.File, int64, error) {
	path, err := s.path(id)
	if err != nil {
		return nil, 0, err
	}
	f, size, err := openRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, problem.New(problem.NotFound, "image %s has no file", id).Because("%s is missing", path)
	}
	return f, size, problem.Wrap(err, problem.Internal, "image %s cannot be opened", id)
}

func (s *Store) path(id string) (string, error) {
	if !api.IsUUID(id) {
		return "", problem.New(problem.Invalid, "%q is not the ID of an image", id)
	}
	return filepath.Join(s.images, id), nil
}

// List returns the IDs of the images that have a file, whole or half-made.
func (s *Store) List() ([]string, error) {
	entries, err := os.ReadDir(s.images)
	if err != nil {
		return nil, problem.Wrap(err, problem.Internal, "the image store cannot be listed")
	}
	seen := map[string]bool{}
	var out []string
	for _, e := range entries {
		id := e.Name()[:len(e.Name())-len(filepath.Ext(e.Name()))]
		if api.IsUUID(id) && !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	return out, nil
}

// Remove implements storage.ImageStore.
func (s *Store) Remove(ctx context.Context, id string) error {
	path, err := s.path(id)
	if err != nil {
		return err
	}
	leave, err := s.enter(ctx, id)
	if err != nil {
		return err
	}
	defer leave()
	return errors.Join(remove(path), remove(path+".tmp"), remove(path+".raw.tmp"))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return problem.Wrap(err, problem.Internal, "file %s cannot be removed", path)
	}
	return nil
}

// enter waits until nobody else works on the image: an attempt that was given up may still be at it.
func (s *Store) enter(ctx context.Context, id string) (leave func(), err error) {
	for {
		s.mu.Lock()
		wait, taken := s.busy[id]
		if !taken {
			done := make(chan struct{})
			s.busy[id] = done
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.busy, id)
				s.mu.Unlock()
				close(done)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, problem.New(problem.Cancelled, "work on image %s was cancelled", id)
		}
	}
}

// Import implements storage.ImageStore.
func (s *Store) Import(ctx context.Context, in steps.ImageImport, progress func(string)) (out steps.ImageImported, err error) {
	if progress == nil {
		progress = func(string) {}
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
	tmp, raw := path+".tmp", path+".raw.tmp"
	defer func() {
		err = errors.Join(err, remove(raw))
		if err != nil {
			err = noSpace(errors.Join(problem.From(err), remove(tmp)), s.images)
		}
	}()
	if err := errors.Join(remove(tmp), remove(raw)); err != nil {
		return out, err
	}
	if err := s.take(ctx, in, tmp, raw, progress); err != nil {
		return out, err
	}
	progress("computing the checksum")
	if out, err = s.describe(ctx, tmp); err != nil {
		return out, err
	}
	return out, problem.Wrap(publish(tmp, path), problem.Internal, "image %s cannot be stored", in.Image)
}

// take makes tmp a sound qcow2 image out of the source. Everything is checked on a copy of ours, which nobody can change
// between the check and the use.
func (s *Store) take(ctx context.Context, in steps.ImageImport, tmp, raw string, progress func(string)) error {
	if in.Format != api.FormatQCOW2 && in.Format != api.FormatRaw {
		return problem.New(problem.Invalid, "images are imported as qcow2 or raw, not as %q", in.Format)
	}
	src, size, err := s.source(in)
	if err != nil {
		return err
	}
	defer src.Close() //nolint:errcheck // was only read
	if err := probe(src, size, in.Format); err != nil {
		return err
	}
	dst := tmp
	if in.Format == api.FormatRaw {
		dst = raw
	}
	sum, err := copyTo(ctx, dst, src, size, progress)
	if err != nil {
		return err
	}
	if in.SHA256 != "" && sum != in.SHA256 {
		return problem.New(problem.Invalid, "the source of the image is not what was announced").Because("its SHA-256 is %s, announced was %s", sum, in.SHA256).
			Try("send it again, or correct the checksum")
	}
	if in.Format == api.FormatRaw {
		progress("converting")
		err := qemuimg.Convert(ctx, raw, api.FormatRaw, tmp, size, func(p float64) { progress(fmt.Sprintf("converting: %.0f%%", p)) })
		if err != nil {
			return err
		}
	}
	return verify(ctx, tmp, progress)
}

// verify checks the file at path, which must be a qcow2 image that refers to nothing.
func verify(ctx context.Context, path string, progress func(string)) error {
	progress("checking")
	h, size, err := readHeader(path)
	if err != nil {
		return err
	}
	if err := h.Standalone(); err != nil {
		return err
	}
	info, err := qemuimg.Inspect(ctx, path, api.FormatQCOW2)
	if err != nil {
		return err
	}
	if info.Format != api.FormatQCOW2 || info.Backing != "" || info.Encrypted || info.VirtualSize != h.VirtualSize {
		return problem.New(problem.Invalid, "the image is not what its header says").Because("qemu-img sees format %q, size %d, backing file %q", info.Format, info.VirtualSize, info.Backing)
	}
	return qemuimg.Check(ctx, path, size)
}

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
	f, _, err := openRegular(path)
	if err != nil {
		return out, err
	}
	defer f.Close() //nolint:errcheck // was only read
	sum := sha256.New()
	if _, err := io.Copy(sum, &reader{ctx: ctx, r: f}); err != nil {
		return out, problem.Wrap(err, problem.Internal, "the image cannot be read")
	}
	return steps.ImageImported{SHA256: hex.EncodeToString(sum.Sum(nil)), Size: size, VirtualSize: h.VirtualSize}, nil
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
	return problem.New(problem.NoCapacity, "the server's image store is full: %d bytes of %s are free", int64(st.Bavail)*st.Bsize, dir).Try("delete images, or make room on the server")
}
