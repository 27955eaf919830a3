package qcow2

import (
	"encoding/binary"
	"errors"
	"os"
	"syscall"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Layout of the images that are made here, as QEMU makes them: header, table of refcounts, one block of them, L1 table.
const (
	clusterBits = 16
	cluster     = 1 << clusterBits
	refcountLog = 4 // refcounts have 2^4 bits
	headerOurs  = headerV3 + 8
	mappedByL1  = cluster / 8 * cluster // bytes of the disk that an entry of the L1 table stands for
)

// Create makes an image at path, size bytes large, that is empty or begins as a copy of the qcow2 image backing. Backing is not opened;
// it must have been checked. What is there is overwritten. The image is not made durable.
//
// QEMU's own tool for it needs ten times as long, nearly all of it to start.
func Create(path string, size int64, backing string) error {
	if size <= 0 || size > api.MaxDisk || len(backing) > maxBacking {
		return problem.New(problem.Invalid, "cannot make volume %s", path).Because("an image of %d bytes on %q is none", size, backing)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if err == nil {
		err = errors.Join(write(f, size, backing), f.Close())
	}
	return problem.Wrap(err, problem.Internal, "cannot make volume %s", path)
}

func write(f *os.File, size int64, backing string) error {
	const refTable, refBlock, l1 = cluster, 2 * cluster, 3 * cluster
	entries := (size + mappedByL1 - 1) / mappedByL1
	clusters := l1/cluster + (entries*8+cluster-1)/cluster
	counts := make([]byte, 0, clusters*2)
	for range clusters {
		counts = binary.BigEndian.AppendUint16(counts, 1)
	}
	head := header(size, backing, refTable, l1, uint32(entries))
	for at, b := range map[int64][]byte{0: head, refTable: binary.BigEndian.AppendUint64(nil, refBlock), refBlock: counts} {
		if _, err := f.WriteAt(b, at); err != nil {
			return err
		}
	}
	return f.Truncate(clusters * cluster) // the rest is zero: nothing is allocated yet
}

func header(size int64, backing string, refTable, l1 uint64, entries uint32) []byte {
	b := make([]byte, headerOurs)
	u32, u64 := binary.BigEndian.PutUint32, binary.BigEndian.PutUint64
	copy(b, Magic)
	u32(b[4:], 3)
	u32(b[20:], clusterBits)
	u64(b[24:], uint64(size))
	u32(b[36:], entries)
	u64(b[40:], l1)
	u64(b[48:], refTable)
	u32(b[56:], 1)
	u32(b[96:], refcountLog)
	u32(b[100:], headerOurs)
	if backing == "" {
		return append(b, make([]byte, 8)...) // no extensions
	}
	const format = "qcow2\x00\x00\x00"
	b = binary.BigEndian.AppendUint32(b, extBackingFormat)
	b = binary.BigEndian.AppendUint32(b, uint32(len("qcow2")))
	b = append(b, format...)
	b = append(b, make([]byte, 8)...) // the end of them
	u64(b[8:], uint64(len(b)))
	u32(b[16:], uint32(len(backing)))
	return append(b, backing...)
}
