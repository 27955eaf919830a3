package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage/foreign"
	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// source opens what is to be imported.
func (s *Store) source(in steps.ImageImport) (*os.File, int64, error) {
	var path string
	switch {
	case in.Upload != "" && in.Path != "":
		return nil, 0, problem.New(problem.Invalid, "an image comes from an upload or from a path, not from both")
	case in.Upload != "":
		if !api.IsUUID(in.Upload) {
			return nil, 0, problem.New(problem.Invalid, "%q is not the ID of an upload", in.Upload)
		}
		path = filepath.Join(s.uploads, in.Upload)
	default:
		var err error
		if path, err = s.allow(in.Path); err != nil {
			return nil, 0, err
		}
	}
	f, size, err := openRegular(path)
	if errors.Is(err, fs.ErrNotExist) && in.Upload != "" {
		return nil, 0, problem.New(problem.NotFound, "there is no upload %s", in.Upload).Try("send the file first: PUT /v1/uploads/%s", in.Upload)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, problem.New(problem.NotFound, "there is no file %s on the server", in.Path)
	}
	return f, size, problem.Wrap(err, problem.Invalid, "the source of the image cannot be opened")
}

// allow returns the real path of a file on the server, if it is in an allowed directory once all links are followed.
func (s *Store) allow(path string) (string, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return "", problem.New(problem.Invalid, "%q is not an absolute, clean path", path)
	}
	refused := problem.New(problem.Forbidden, "file %s may not be imported", path).Because("it is not in a directory that the server allows").
		Try("upload the file instead, or have its directory added to the server's image directories")
	within := func(p, dir string) bool { return strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/") }
	named := false
	for _, dir := range s.allowed {
		named = named || within(path, dir)
	}
	if !named { // do not even tell whether it is there
		return "", refused
	}
	target, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", problem.New(problem.NotFound, "there is no file %s on the server", path)
	}
	if err != nil {
		return "", problem.Wrap(err, problem.Invalid, "file %s cannot be found", path)
	}
	for _, dir := range s.allowed {
		if real, err := filepath.EvalSymlinks(dir); err == nil && within(target, real) {
			return target, nil
		}
	}
	return "", refused
}

// openRegular opens a regular file. No link is followed any more, and a pipe or device does not make it wait.
func openRegular(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = problem.New(problem.Invalid, "%s is not a regular file", path)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

// strangers are beginnings of files that nobody means when he says another format.
var strangers = []struct{ magic, name, format, fix string }{
	{qcow2.Magic, "a qcow2 image", api.FormatQCOW2, ""},
	{"KDMV", "a VMDK image", api.FormatVMDK, ""},
	{"# Disk DescriptorFile", "a VMDK descriptor", api.FormatVMDK, ""},
	{"vhdxfile", "a VHDX image", api.FormatVHDX, ""},
	{"conectix", "a VHD image", api.FormatVPC, ""},
	{"<<< ", "a VDI image", api.FormatVDI, ""},
	{"LUKS\xba\xbe", "an encrypted disk", "", "decrypt it first"},
	{"\x1f\x8b", "compressed with gzip", "", "uncompress it first"},
	{"\xfd7zXZ\x00", "compressed with xz", "", "uncompress it first"},
	{"\x28\xb5\x2f\xfd", "compressed with zstd", "", "uncompress it first"},
	{"BZh", "compressed with bzip2", "", "uncompress it first"},
	{"PK\x03\x04", "a zip archive", "", "unpack it first"},
}

// probe checks that the file can be what it is said to be, before anything else is done with it. A format is never guessed.
func probe(f *os.File, size int64, format string) error {
	head := make([]byte, 64)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return problem.Wrap(err, problem.Invalid, "the source of the image cannot be read")
	}
	for _, s := range strangers {
		if s.format == format || !bytes.HasPrefix(head[:n], []byte(s.magic)) {
			continue
		}
		if s.fix == "" {
			s.fix = "say that its format is " + s.format
		}
		return problem.New(problem.Invalid, "the file is not a %s image", format).Because("it is %s", s.name).Try("%s", s.fix)
	}
	switch format {
	case api.FormatQCOW2:
		h, err := qcow2.Read(f, size)
		if err != nil {
			return err
		}
		return h.Standalone()
	case api.FormatRaw:
		if size == 0 || size > api.MaxDisk {
			return problem.New(problem.Invalid, "a raw image of %d bytes cannot be a disk", size)
		}
		return nil
	default:
		_, err := foreign.Read(format, f, size)
		return err
	}
}

// copyTo copies the source, byte by byte as it is, and returns its SHA-256.
func copyTo(ctx context.Context, path string, src *os.File, size int64, tell func(api.Progress)) (sum string, err error) {
	dst, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", problem.Wrap(err, problem.Internal, "the image cannot be stored")
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return "", problem.Wrap(err, problem.Internal, "the source of the image cannot be read")
	}
	h := sha256.New()
	in := &reader{ctx: ctx, r: io.LimitReader(src, size+1), told: func(n int64) { tell(api.Progress{Text: "copying", Done: n, Total: size}) }}
	n, err := io.Copy(io.MultiWriter(dst, h), in)
	switch {
	case ctx.Err() != nil:
		return "", problem.New(problem.Cancelled, "the import was cancelled")
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return "", err
	case err != nil:
		return "", problem.Wrap(err, problem.Internal, "the image cannot be copied")
	case n != size:
		return "", problem.New(problem.Conflict, "the source of the image changed while it was read")
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// tellEvery is after how many bytes progress is told.
const tellEvery = 64 * api.MiB

// reader stops when its context does, and tells how far it is.
type reader struct {
	ctx  context.Context
	r    io.Reader
	n    int64
	told func(int64)
}

func (r *reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(b)
	before := r.n
	r.n += int64(n)
	if r.told != nil && r.n/tellEvery != before/tellEvery {
		r.told(r.n)
	}
	return n, err
}
