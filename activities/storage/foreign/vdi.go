package foreign

import (
	"encoding/binary"

	"github.com/nextstack/nextstack/api"
)

const (
	vdiHeader    = 512
	vdiSignature = 0xbeda107f
	vdiDynamic   = 1
	vdiFixed     = 2
	vdiFree      = 0xfffffffe // this and the next: the block is not there
)

func (f *file) vdi() (*Header, error) {
	b, err := f.read("header", 0, vdiHeader)
	if err != nil {
		return nil, f.bad("it ends inside its header")
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	if u32(0x40) != vdiSignature {
		return nil, f.bad("it does not begin as a VDI image does")
	}
	if v := u32(0x44); v != 0x00010001 {
		return nil, f.bad("its version is %d.%d; 1.1 is known", v>>16, v&0xffff)
	}
	switch kind := u32(0x4c); {
	case kind != vdiDynamic && kind != vdiFixed || !zero(b[0x1a8:0x1c8]):
		return nil, f.refuse("it is a difference to another image, which would be whatever has that name on this machine")
	case u32(0x168) != sector:
		return nil, f.bad("its sectors have %d bytes", u32(0x168))
	}
	size, block, blocks, allocated := binary.LittleEndian.Uint64(b[0x170:]), u32(0x178), u32(0x180), u32(0x184)
	if block != uint32(api.MiB) || u32(0x17c) != 0 {
		return nil, f.bad("its blocks have %d bytes, and %d of something else", block, u32(0x17c))
	}
	if size > uint64(api.MaxDisk) || uint64(blocks)*uint64(block) < size || uint64(blocks) > size/uint64(block)+1 {
		return nil, f.bad("it claims a size of %d bytes in %d blocks; the largest disk has %d", size, blocks, api.MaxDisk)
	}
	data := uint64(u32(0x158))
	if allocated > blocks || data+uint64(allocated)*uint64(block) > uint64(f.size) {
		return nil, f.bad("its %d blocks are not inside the file: it is not whole", allocated)
	}
	if err := f.vdiBlocks(uint64(u32(0x154)), blocks, allocated); err != nil {
		return nil, err
	}
	return &Header{VirtualSize: int64(size), Data: int64(allocated) * int64(block)}, nil
}

// vdiBlocks checks that each block of the disk has a place of its own.
func (f *file) vdiBlocks(at uint64, blocks, allocated uint32) error {
	table, err := f.read("table of blocks", at, int64(blocks)*4)
	if err != nil {
		return err
	}
	taken := make([]bool, allocated)
	for i := range int(blocks) {
		place := binary.LittleEndian.Uint32(table[4*i:])
		switch {
		case place >= vdiFree:
		case place >= allocated:
			return f.bad("block %d is at place %d of %d", i, place, allocated)
		case taken[place]:
			return f.bad("two of its blocks are at place %d", place)
		default:
			taken[place] = true
		}
	}
	return nil
}
