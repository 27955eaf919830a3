package foreign

import (
	"bytes"
	"encoding/binary"
	"regexp"
	"strconv"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

const (
	vmdkHeader     = 512
	vmdkDescriptor = 1 << 16 // bytes of it that are read; QEMU reads 10 KiB
	vmdkAtEnd      = ^uint64(0)
	vmdkFooter     = 3 // type of the marker before a footer
	vmdkMaxGrain   = 2 * api.MiB
)

// vmdkHead is the header of a sparse extent. Sizes and offsets are in sectors.
type vmdkHead struct {
	version, flags      uint32
	capacity, grain     uint64
	descAt, descSize    uint64
	perTable            uint32
	directory, overhead uint64
	compression         uint16
}

func parseVMDK(b []byte) vmdkHead {
	le := binary.LittleEndian
	return vmdkHead{
		version: le.Uint32(b[4:]), flags: le.Uint32(b[8:]), capacity: le.Uint64(b[12:]), grain: le.Uint64(b[20:]),
		descAt: le.Uint64(b[28:]), descSize: le.Uint64(b[36:]), perTable: le.Uint32(b[44:]), directory: le.Uint64(b[56:]), overhead: le.Uint64(b[64:]),
		compression: le.Uint16(b[77:]),
	}
}

// vmdk takes images that are one file: monolithicSparse and streamOptimized. All others are descriptors that name files.
func (f *file) vmdk() (*Header, error) {
	start, err := f.read("header", 0, min(vmdkHeader, f.size))
	if err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(start, []byte("COWD")):
		return nil, f.refuse("it is one extent of an image of several files")
	case bytes.HasPrefix(bytes.TrimLeft(start, " \t\r\n"), []byte("#")) || bytes.Contains(start, []byte("createType")):
		return nil, f.refuse("it is only a descriptor: its data is in other files, which it names")
	case !bytes.HasPrefix(start, []byte("KDMV")):
		return nil, f.bad("it does not begin as a VMDK image does")
	case len(start) < vmdkHeader:
		return nil, f.bad("it ends inside its header")
	}
	h := parseVMDK(start)
	if err := f.vmdkFixed(h); err != nil {
		return nil, err
	}
	if err := f.vmdkEnd(h); err != nil {
		return nil, err
	}
	if err := f.vmdkText(h); err != nil {
		return nil, err
	}
	size := int64(h.capacity) * sector
	return &Header{VirtualSize: size, Data: size}, nil
}

func (f *file) vmdkFixed(h vmdkHead) error {
	switch {
	case h.version < 1 || h.version > 3:
		return f.bad("its version is %d; 1 to 3 are known", h.version)
	case h.capacity == 0: // QEMU takes it for a descriptor that is embedded, and opens what that names
		return f.refuse("it has no data of its own, only a descriptor, which names other files")
	case h.capacity > uint64(api.MaxDisk/sector):
		return f.bad("it claims %d sectors; the largest disk has %d", h.capacity, api.MaxDisk/sector)
	case h.grain == 0 || h.grain > uint64(vmdkMaxGrain/sector) || h.grain&(h.grain-1) != 0:
		return f.bad("its grains have %d sectors", h.grain)
	case h.perTable == 0 || h.perTable > 512:
		return f.bad("its grain tables have %d entries", h.perTable)
	case h.compression > 1:
		return f.bad("its compression %d is not known", h.compression)
	case h.descAt == 0 || h.descSize == 0:
		return f.refuse("it has no descriptor: it is one extent of an image of several files")
	}
	return nil
}

// vmdkEnd checks where the tables are. An image that was written as a stream tells it at its end, in a second header.
func (f *file) vmdkEnd(h vmdkHead) error {
	inside := func(h vmdkHead) error {
		tables := (h.capacity + h.grain*uint64(h.perTable) - 1) / (h.grain * uint64(h.perTable))
		if h.directory > uint64(f.size)/sector {
			return f.bad("its grain directory is not inside the file")
		}
		_, err := f.read("grain directory", h.directory*sector, int64(min(tables*4, uint64(maxTable)+1)))
		return err
	}
	if h.directory != vmdkAtEnd {
		return inside(h)
	}
	if f.size%sector != 0 || f.size < 3*sector+vmdkHeader {
		return f.bad("it ends inside its last sector")
	}
	end, err := f.read("footer", uint64(f.size-3*sector), 3*sector)
	if err != nil {
		return err
	}
	kind, footer := binary.LittleEndian.Uint32(end[12:]), end[sector:2*sector]
	if kind != vmdkFooter || !bytes.HasPrefix(footer, []byte("KDMV")) || !zero(end[2*sector:]) {
		return f.bad("it has no footer: it is not whole")
	}
	g := parseVMDK(footer)
	if g.capacity != h.capacity || g.grain != h.grain || g.perTable != h.perTable || g.descAt != h.descAt || g.flags != h.flags || g.directory == vmdkAtEnd {
		return f.bad("its footer is not what its header is")
	}
	return inside(g)
}

// extent is a line of a descriptor that names where data is.
var extent = regexp.MustCompile(`^(RW|RDONLY|NOACCESS)\s+(\d+)\s+([A-Za-z]+)(?:\s+"([^"]*)")?`)

// vmdkText checks the descriptor, both where the header says that it is and where QEMU looks for the parent.
func (f *file) vmdkText(h vmdkHead) error {
	if h.descAt > uint64(f.size)/sector {
		return f.bad("its descriptor is not inside the file")
	}
	length := int64(min(h.descSize, vmdkDescriptor/sector) * sector)
	text, err := f.read("descriptor", h.descAt*sector, min(length, f.size-int64(h.descAt)*sector))
	if err != nil {
		return err
	}
	first, err := f.read("descriptor", sector, min(int64(vmdkDescriptor), f.size-sector))
	if err != nil {
		return err
	}
	for _, t := range [][]byte{text, first} {
		if bytes.Contains(bytes.ToLower(t), []byte("parentfilenamehint")) {
			return f.refuse("it has a parent, so it would read whatever has that name on this machine")
		}
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	kind, extents := "", 0
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		key, value, _ := strings.Cut(line, "=")
		value = strings.Trim(strings.TrimSpace(value), `"`)
		switch key = strings.ToLower(strings.TrimSpace(key)); {
		case key == "createtype":
			kind = value
		case key == "parentcid" && !strings.EqualFold(value, "ffffffff"):
			return f.refuse("it has a parent, whose ID is %q", clip(value))
		}
		m := extent.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if extents++; extents > 1 {
			return f.refuse("its data is in several files")
		}
		if err := f.vmdkExtent(h, m); err != nil {
			return err
		}
	}
	if kind != "monolithicSparse" && kind != "streamOptimized" {
		return f.refuse("it is of the kind %q, whose data is in other files; monolithicSparse and streamOptimized are not", clip(kind))
	}
	if extents == 0 {
		return f.bad("its descriptor names no data")
	}
	return nil
}

func (f *file) vmdkExtent(h vmdkHead, m []string) error {
	if m[3] != "SPARSE" || strings.ContainsAny(m[4], `/\:`) {
		return f.refuse("its data is in another file: %s %q", m[3], clip(m[4]))
	}
	if sectors, err := strconv.ParseUint(m[2], 10, 64); err != nil || sectors != h.capacity {
		return problem.New(problem.Invalid, "the image claims two sizes").Because("its header has %d sectors, its descriptor %s", h.capacity, clip(m[2])).
			Try("make it anew: `qemu-img convert -f vmdk -O qcow2 IMAGE NEW`")
	}
	return nil
}

// clip keeps what a file says short.
func clip(s string) string { return s[:min(len(s), 100)] }
