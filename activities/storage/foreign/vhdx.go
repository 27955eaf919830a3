package foreign

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"github.com/google/uuid"

	"github.com/nextstack/nextstack/api"
)

const (
	vhdxBlock      = 4096 // bytes of a header that its checksum is of
	vhdxTable      = 64 << 10
	vhdxMaxEntries = 2047
	vhdxHasParent  = 2 // bit of the file parameters
)

// What the parts of a VHDX image are called.
var (
	vhdxMetadata  = guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")
	vhdxBAT       = guid("2dc27766-f623-4200-9d64-115e9bfd4a08")
	vhdxParams    = guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
	vhdxSize      = guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
	vhdxSector    = guid("8141bf1d-a96f-4709-ba47-f233a8faab5f")
	vhdxPhysical  = guid("cda348c7-445d-4471-9cc9-e9885251c556")
	vhdxDisk      = guid("beca12ab-b2e6-4523-93ef-c309e000c746")
	vhdxLocator   = guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
	vhdxChecksums = crc32.MakeTable(crc32.Castagnoli)
)

// guid returns a GUID as it is written to disk: its first three parts little-endian.
func guid(s string) [16]byte {
	u := uuid.MustParse(s)
	return [16]byte{u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]}
}

func (f *file) vhdx() (*Header, error) {
	start, err := f.read("identifier", 0, min(8, f.size))
	if err != nil {
		return nil, err
	}
	if string(start) != "vhdxfile" {
		return nil, f.bad("it does not begin as a VHDX image does")
	}
	if err := f.vhdxClosed(); err != nil {
		return nil, err
	}
	region, length, err := f.vhdxRegions()
	if err != nil {
		return nil, err
	}
	return f.vhdxItems(region, length)
}

// vhdxClosed checks the newer of the two headers: an image with a log was not closed, and nobody replays the logs of strangers.
func (f *file) vhdxClosed() error {
	var newest []byte
	for _, at := range []uint64{64 << 10, 128 << 10} {
		b, err := f.read("header", at, vhdxBlock)
		if err != nil {
			return err
		}
		if string(b[:4]) == "head" && vhdxSum(b) && (newest == nil || binary.LittleEndian.Uint64(b[8:]) >= binary.LittleEndian.Uint64(newest[8:])) {
			newest = b
		}
	}
	switch {
	case newest == nil:
		return f.bad("both of its headers are damaged")
	case binary.LittleEndian.Uint16(newest[66:]) != 1:
		return f.bad("its version is %d; 1 is known", binary.LittleEndian.Uint16(newest[66:]))
	case !zero(newest[48:64]):
		return f.refuse("it was not closed properly: its log has to be replayed first")
	}
	return nil
}

// vhdxSum reports whether the CRC-32C after the first four bytes is right.
func vhdxSum(b []byte) bool {
	c := bytes.Clone(b)
	clear(c[4:8])
	return crc32.Checksum(c, vhdxChecksums) == binary.LittleEndian.Uint32(b[4:])
}

// vhdxRegions returns where the metadata is.
func (f *file) vhdxRegions() (at uint64, length uint32, err error) {
	b, err := f.read("region table", 192<<10, vhdxTable)
	if err != nil {
		return 0, 0, err
	}
	n := binary.LittleEndian.Uint32(b[8:])
	if string(b[:4]) != "regi" || !vhdxSum(b) || n > vhdxMaxEntries {
		return 0, 0, f.bad("its region table is damaged")
	}
	for i := range int(n) {
		e := b[16+32*i:]
		switch [16]byte(e[:16]) {
		case vhdxMetadata:
			if length != 0 {
				return 0, 0, f.bad("it has its metadata twice")
			}
			at, length = binary.LittleEndian.Uint64(e[16:]), binary.LittleEndian.Uint32(e[24:])
		case vhdxBAT:
			if from := binary.LittleEndian.Uint64(e[16:]); from > uint64(f.size) || from+uint64(binary.LittleEndian.Uint32(e[24:])) > uint64(f.size) {
				return 0, 0, f.bad("its table of blocks is not inside the file")
			}
		default:
			return 0, 0, f.bad("it has a region that is not known here")
		}
	}
	if length < vhdxTable {
		return 0, 0, f.bad("it has no metadata")
	}
	return at, length, nil
}

// vhdxItems reads the metadata.
func (f *file) vhdxItems(at uint64, length uint32) (*Header, error) {
	b, err := f.read("metadata", at, vhdxTable)
	if err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint16(b[10:])
	if string(b[:8]) != "metadata" || n > vhdxMaxEntries {
		return nil, f.bad("its metadata is damaged")
	}
	h, seen, block := &Header{}, map[[16]byte]bool{}, int64(0)
	for i := range int(n) {
		e := b[32+32*i:]
		id, offset, size := [16]byte(e[:16]), binary.LittleEndian.Uint32(e[16:]), binary.LittleEndian.Uint32(e[20:])
		if seen[id] {
			return nil, f.bad("it has an item of metadata twice")
		}
		seen[id] = true
		if offset < vhdxTable || uint64(offset)+uint64(size) > uint64(length) {
			return nil, f.bad("an item of its metadata is not where metadata is")
		}
		switch id {
		case vhdxLocator:
			return nil, f.vhdxParent()
		case vhdxParams, vhdxSize:
			item, err := f.read("metadata", at+uint64(offset), 8)
			if err != nil {
				return nil, err
			}
			if id == vhdxSize {
				h.VirtualSize = int64(min(binary.LittleEndian.Uint64(item), uint64(api.MaxDisk)+1))
				continue
			}
			block = int64(binary.LittleEndian.Uint32(item))
			if binary.LittleEndian.Uint32(item[4:])&vhdxHasParent != 0 {
				return nil, f.vhdxParent()
			}
		case vhdxSector, vhdxPhysical, vhdxDisk:
		default:
			if binary.LittleEndian.Uint32(e[24:])&4 != 0 { // who does not know it must not read the image
				return nil, f.bad("it has required metadata that is not known here")
			}
		}
	}
	if block < api.MiB || block > 256*api.MiB || block&(block-1) != 0 {
		return nil, f.bad("its blocks have %d bytes", block)
	}
	h.Data = min(h.VirtualSize, f.size)
	return h, nil
}

func (f *file) vhdxParent() error {
	return f.refuse("it is a difference to another image, which would be whatever has that name on this machine")
}
