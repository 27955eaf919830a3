package storage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Disk is the file of a volume, open for reading.
type Disk interface {
	io.ReaderAt
	io.Closer
	// Size is the length of the file in bytes.
	Size() int64
	// Next returns where the first stretch of data at or after an offset begins and ends. What is between stretches reads as
	// zeros. After the last it is io.EOF.
	Next(at int64) (from, to int64, err error)
	// Unchanged is an error if the file was written to since it was opened.
	Unchanged() error
}

// A disk on its way between two nodes is
//
//	magic, length of the file, bytes of data in it     8 bytes each
//	offset, length n > 0, n bytes                      8, 4 and n bytes; again and again, offsets ascending
//	length of the file, 0                              8 and 4 bytes
//	SHA-256 of all that                                32 bytes
//
// Numbers are big-endian. Holes are not sent.
const (
	streamMagic = "NSDISK1\n"
	streamHead  = 24
	recordHead  = 12
	maxRecord   = int(api.MiB)
)

// SendDisk writes a disk to w, as ReceiveDisk reads it. A disk that changes meanwhile is in_use, and its stream has no end.
func SendDisk(ctx context.Context, w io.Writer, d Disk) error {
	var data int64
	for at := int64(0); ; {
		from, to, err := d.Next(at)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return problem.Wrap(err, problem.Unavailable, "the disk cannot be read")
		}
		data, at = data+to-from, to
	}
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	head := binary.BigEndian.AppendUint64([]byte(streamMagic), uint64(d.Size()))
	if _, err := out.Write(binary.BigEndian.AppendUint64(head, uint64(data))); err != nil {
		return broken(err)
	}
	buf := make([]byte, recordHead+maxRecord)
	for at := int64(0); ; {
		from, to, err := d.Next(at)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return problem.Wrap(err, problem.Unavailable, "the disk cannot be read")
		}
		for at = from; at < to; {
			if err := ctx.Err(); err != nil {
				return problem.Wrap(err, problem.Cancelled, "sending the disk was cancelled")
			}
			n := int(min(to-at, int64(maxRecord)))
			binary.BigEndian.PutUint64(buf, uint64(at))
			binary.BigEndian.PutUint32(buf[8:], uint32(n))
			if _, err := d.ReadAt(buf[recordHead:recordHead+n], at); err != nil {
				return problem.Wrap(err, problem.Unavailable, "the disk cannot be read")
			}
			if _, err := out.Write(buf[:recordHead+n]); err != nil {
				return broken(err)
			}
			at += int64(n)
		}
	}
	if err := d.Unchanged(); err != nil {
		return err
	}
	end := binary.BigEndian.AppendUint64(nil, uint64(d.Size()))
	if _, err := out.Write(append(end, 0, 0, 0, 0)); err != nil {
		return broken(err)
	}
	_, err := w.Write(sum.Sum(nil))
	return broken(err)
}

func broken(err error) error {
	return problem.Wrap(err, problem.Unavailable, "sending the disk broke off")
}

// sink is where the disk of a stream goes.
type sink interface {
	// begin is called once, with the length of the file and the bytes of data that will come, as the sender has them.
	begin(size, data int64) error
	// put is called with data inside the file, at ascending offsets.
	put(at int64, b []byte) error
}

// readDisk reads a stream to its end. Only if it returns nil is what was put what was sent. A stream that breaks off or is
// damaged is unavailable: another may be better.
func readDisk(r io.Reader, to sink) error {
	sum := sha256.New()
	in := io.TeeReader(r, sum)
	head := make([]byte, streamHead)
	if _, err := io.ReadFull(in, head); err != nil {
		return cutShort(err, 0)
	}
	size, data := int64(binary.BigEndian.Uint64(head[8:])), int64(binary.BigEndian.Uint64(head[16:]))
	if string(head[:8]) != streamMagic || size <= 0 || size > 2*api.MaxDisk || data < 0 || data > size {
		return problem.New(problem.Unavailable, "the disk came damaged").Because("what was sent does not begin as a disk does")
	}
	if err := to.begin(size, data); err != nil {
		return err
	}
	var came, at int64
	buf := make([]byte, maxRecord)
	for {
		record := head[:recordHead]
		if _, err := io.ReadFull(in, record); err != nil {
			return cutShort(err, came)
		}
		from, n := int64(binary.BigEndian.Uint64(record)), int64(binary.BigEndian.Uint32(record[8:]))
		if n == 0 && from == size && came == data {
			break
		}
		if n == 0 || n > int64(maxRecord) || from < at || from > size-n || came+n > data {
			return problem.New(problem.Unavailable, "the disk came damaged").Because("%d bytes at %d of %d cannot be", n, from, size)
		}
		if _, err := io.ReadFull(in, buf[:n]); err != nil {
			return cutShort(err, came)
		}
		if err := to.put(from, buf[:n]); err != nil {
			return err
		}
		came, at = came+n, from+n
	}
	got, want := sum.Sum(nil), make([]byte, sha256.Size)
	if _, err := io.ReadFull(r, want); err != nil {
		return cutShort(err, came)
	}
	if !bytes.Equal(got, want) {
		return problem.New(problem.Unavailable, "the disk came damaged").Because("its checksum is %x, the sender's was %x", got, want)
	}
	return nil
}

func cutShort(err error, came int64) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return problem.Wrap(err, problem.Unavailable, "the disk broke off after %d bytes of data", came)
}

// diskFile is the Disk that is a file.
type diskFile struct {
	*os.File
	info os.FileInfo // as it was opened
}

func openDisk(f *os.File) (*diskFile, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &diskFile{f, info}, nil
}

// OpenFile opens a file as a disk, which is sent as it is.
func OpenFile(path string) (Disk, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "file %s cannot be opened", path)
	}
	d, err := openDisk(f)
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "file %s cannot be looked at", path)
	}
	return d, nil
}

// Size implements Disk.
func (d *diskFile) Size() int64 { return d.info.Size() }

// Next implements Disk.
func (d *diskFile) Next(at int64) (from, to int64, err error) {
	if at >= d.Size() {
		return 0, 0, io.EOF
	}
	from, err = unix.Seek(int(d.Fd()), at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, io.EOF
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) { // the file system does not know of holes
		return at, d.Size(), nil
	}
	if err != nil {
		return 0, 0, err
	}
	if from >= d.Size() {
		return 0, 0, io.EOF
	}
	if to, err = unix.Seek(int(d.Fd()), from, unix.SEEK_HOLE); err != nil {
		return 0, 0, err
	}
	return from, min(to, d.Size()), nil
}

// Unchanged implements Disk.
func (d *diskFile) Unchanged() error {
	now, err := d.Stat()
	if err != nil {
		return problem.Wrap(err, problem.Unavailable, "the disk cannot be looked at")
	}
	if now.Size() != d.info.Size() || !now.ModTime().Equal(d.info.ModTime()) {
		return problem.New(problem.InUse, "the disk was written to while it was read")
	}
	return nil
}
