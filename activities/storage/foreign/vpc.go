package foreign

import (
	"bytes"
	"encoding/binary"

	"github.com/nextstack/nextstack/api"
)

const (
	vpcFooter  = 512
	vpcHeader  = 1024
	vpcFixed   = 2
	vpcDynamic = 3
	vpcChild   = 4
	vpcFree    = ^uint32(0)
)

// vpc takes VHD images of a fixed size, which end with a footer, and dynamic ones, which begin with a copy of it.
func (f *file) vpc() (*Header, error) {
	if f.size < vpcFooter {
		return nil, f.bad("it ends inside its footer")
	}
	end, err := f.read("footer", uint64(f.size-vpcFooter), vpcFooter)
	if err != nil {
		return nil, err
	}
	start, err := f.read("header", 0, vpcFooter)
	if err != nil {
		return nil, err
	}
	magic := []byte("conectix")
	dynamic := bytes.HasPrefix(start, magic)
	switch {
	case !bytes.HasPrefix(end, magic) && dynamic:
		return nil, f.bad("it has no footer: it is not whole")
	case !bytes.HasPrefix(end, magic):
		return nil, f.bad("it does not end as a VHD image does")
	case dynamic && !bytes.Equal(start, end):
		return nil, f.bad("its footer is not what its header is")
	case !vpcSum(end, 64):
		return nil, f.bad("the checksum of its footer is wrong")
	}
	size, kind := binary.BigEndian.Uint64(end[48:]), binary.BigEndian.Uint32(end[60:])
	if size == 0 || size > uint64(api.MaxDisk) || size%sector != 0 {
		return nil, f.bad("it claims a size of %d bytes; the largest disk has %d", size, api.MaxDisk)
	}
	switch {
	case kind == vpcChild:
		return nil, f.refuse("it is a difference to another image, which would be whatever has that name on this machine")
	case kind == vpcFixed && !dynamic:
		if size != uint64(f.size-vpcFooter) {
			return nil, f.bad("it claims a size of %d bytes, and has %d", size, f.size-vpcFooter)
		}
		return &Header{VirtualSize: int64(size), Data: int64(size)}, nil
	case kind == vpcDynamic && dynamic:
		return f.vpcDynamic(size, binary.BigEndian.Uint64(end[16:]))
	}
	return nil, f.bad("it is of the kind %d; 2 (fixed) and 3 (dynamic) are known", kind)
}

// vpcSum reports whether the checksum at an offset is right: the complement of the sum of all other bytes.
func vpcSum(b []byte, at int) bool {
	var sum uint32
	for i, c := range b {
		if i < at || i >= at+4 {
			sum += uint32(c)
		}
	}
	return ^sum == binary.BigEndian.Uint32(b[at:])
}

func (f *file) vpcDynamic(size, at uint64) (*Header, error) {
	b, err := f.read("dynamic header", at, vpcHeader)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(b, []byte("cxsparse")) || !vpcSum(b, 36) {
		return nil, f.bad("its dynamic header is damaged")
	}
	if !zero(b[40:56]) || !zero(b[64:768]) { // the parent's ID, name and locators
		return nil, f.refuse("it names a parent, which would be whatever has that name on this machine")
	}
	entries, block := binary.BigEndian.Uint32(b[28:]), binary.BigEndian.Uint32(b[32:])
	if block < 512<<3 || block&(block-1) != 0 || block > uint32(256*api.MiB) {
		return nil, f.bad("its blocks have %d bytes", block)
	}
	if uint64(entries)*uint64(block) < size || uint64(entries) > uint64(api.MaxDisk)/uint64(block) {
		return nil, f.bad("it claims a size of %d bytes in %d blocks", size, entries)
	}
	table, err := f.read("table of blocks", binary.BigEndian.Uint64(b[16:]), int64(entries)*4)
	if err != nil {
		return nil, err
	}
	bitmap := (block/sector/8 + sector - 1) / sector * sector
	taken := map[uint32]bool{}
	for i := range int(entries) {
		place := binary.BigEndian.Uint32(table[4*i:])
		switch {
		case place == vpcFree:
		case uint64(place)*sector+uint64(bitmap)+uint64(block) > uint64(f.size):
			return nil, f.bad("block %d is not inside the file: it is not whole", i)
		case taken[place]:
			return nil, f.bad("two of its blocks are at sector %d", place)
		default:
			taken[place] = true
		}
	}
	return &Header{VirtualSize: int64(size), Data: int64(len(taken)) * int64(block)}, nil
}
