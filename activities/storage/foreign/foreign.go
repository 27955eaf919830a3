// Package foreign reads the headers of images in the formats of other hypervisors: VMDK, VDI, VHDX and VHD. Nobody vouches for
// them. It decides what an image refers to and how large it claims to be before any other program opens it, as package qcow2 does
// for the format that images are kept in.
package foreign

import (
	"errors"
	"io"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

const sector = 512

// maxTable bounds what is read of an image's table of blocks, in bytes: that of the largest disk with the smallest usual blocks.
const maxTable = 256 * api.MiB

// Header is what an image says of itself.
type Header struct {
	VirtualSize int64 // bytes
	// Data is how many bytes of data it can hold at most, unpacked; it may be more than the file has, if that is compressed.
	Data int64
}

// Formats are the formats that are known here, as QEMU calls them.
func Formats() []string {
	return []string{api.FormatVMDK, api.FormatVDI, api.FormatVHDX, api.FormatVPC}
}

// Read parses the header of the image in r, which is size bytes long and of the given format. One that cannot be right is
// Invalid, and so is one that cannot be used by itself: what it is made on, or has its data in, would be whatever has that name
// here.
func Read(format string, r io.ReaderAt, size int64) (*Header, error) {
	f := &file{r: r, size: size, format: format}
	var h *Header
	var err error
	switch format {
	case api.FormatVMDK:
		h, err = f.vmdk()
	case api.FormatVDI:
		h, err = f.vdi()
	case api.FormatVHDX:
		h, err = f.vhdx()
	case api.FormatVPC:
		h, err = f.vpc()
	default:
		return nil, problem.New(problem.Invalid, "images of the format %q are not known", format)
	}
	if err != nil {
		return nil, err
	}
	if h.VirtualSize <= 0 || h.VirtualSize > api.MaxDisk {
		return nil, f.bad("it claims a size of %d bytes; the largest disk has %d", h.VirtualSize, api.MaxDisk)
	}
	return h, nil
}

// file is an image that is read.
type file struct {
	r      io.ReaderAt
	size   int64
	format string
}

// bad is the problem of an image whose structure cannot be right.
func (f *file) bad(format string, args ...any) *problem.Problem {
	return problem.New(problem.Invalid, "the file is not a sound %s image", f.format).Because(format, args...).
		Try("see that it is whole and really %s, or make it anew: `qemu-img convert -O qcow2 IMAGE NEW`", f.format)
}

// refuse is the problem of an image that is sound but not by itself.
func (f *file) refuse(format string, args ...any) *problem.Problem {
	return problem.New(problem.Invalid, "the image cannot be taken").Because(format, args...).
		Try("flatten it where its files are: `qemu-img convert -f %s -O qcow2 IMAGE NEW`", f.format)
}

// read reads n bytes at an offset that the image itself may have named.
func (f *file) read(what string, at uint64, n int64) ([]byte, error) {
	if n < 0 || n > maxTable || at > uint64(f.size) || int64(at)+n > f.size {
		return nil, f.bad("its %s is not inside the file", what)
	}
	b := make([]byte, n)
	if _, err := f.r.ReadAt(b, int64(at)); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, f.bad("it ends inside its %s", what)
		}
		return nil, problem.Wrap(err, problem.Internal, "the image cannot be read")
	}
	return b, nil
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
