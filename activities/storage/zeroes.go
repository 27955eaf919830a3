package storage

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api/problem"
)

// zeroes finds out whether a file system that says that it has zeroed a part of a file has done so. GlusterFS is asked for it by
// newer kernels, and the client of version 10 takes it for a wish to allocate (https://github.com/gluster/glusterfs/issues/4313).
// One that refuses is fine.
func zeroes(dir string) (bool, error) {
	const size, part = 64 << 10, 16 << 10
	f, err := os.CreateTemp(dir, ".zeroes-*"+tempExt)
	if err != nil {
		return false, err
	}
	defer func() { _, _ = f.Close(), os.Remove(f.Name()) }()
	if _, err := f.Write(bytes.Repeat([]byte{1}, size)); err != nil {
		return false, err
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE, part, part); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			err = nil
		}
		return true, err
	}
	b := make([]byte, part)
	_, err = f.ReadAt(b, part)
	return bytes.Equal(b, make([]byte, part)), err
}

// checkRaw refuses a volume that is a raw file where zeroes are not what they seem: a guest would find what it has cleared. In qcow2
// files it is written down what is zero.
func checkRaw(pool string) error {
	ok, err := zeroes(filepath.Join(pool, backingDir))
	if err != nil {
		return problem.Wrap(err, problem.Unavailable, "pool %s cannot be tried out", pool)
	}
	if !ok {
		return problem.New(problem.Unsupported, "volumes that several VMs write to cannot be in pool %s", pool).
			Because("its file system says that it has zeroed parts of files, and has not").
			Try("use another pool; of GlusterFS, see whether there is a newer version of its client")
	}
	return nil
}
