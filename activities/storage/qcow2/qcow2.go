// Package qcow2 reads the header of qcow2 images that nobody vouches for. It decides what an image refers to and how large
// it claims to be before any other program opens it. It also makes images with nothing in them.
package qcow2

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Magic begins every qcow2 image.
const Magic = "QFI\xfb"

// Sizes and limits of the format.
const (
	headerV2    = 72
	headerV3    = 104
	minCluster  = 9
	maxCluster  = 21
	maxL1       = 32 * api.MiB // bytes, as QEMU has it
	maxRefTable = 8 * api.MiB  // bytes, as QEMU has it
	maxBacking  = 1023         // bytes of a backing file's name
	maxExtra    = 64           // header extensions; real images have a handful
)

// Incompatible features: who does not know one cannot read the image.
const (
	featDirty = 1 << iota
	featCorrupt
	featDataFile
	featCompression
	featExtendedL2
)

// Header extensions that matter here.
const (
	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extDataFile      = 0x44415441
	extEncryption    = 0x0537be77
)

// Header is what an image says of itself.
type Header struct {
	Version       int
	VirtualSize   int64 // bytes
	ClusterSize   int64 // bytes
	BackingFile   string
	BackingFormat string
	DataFile      bool // the data is in another file
	Encrypted     bool
	Dirty         bool
	Corrupt       bool
	Snapshots     int
	Unknown       uint64 // incompatible feature bits that are not known here
}

// Read parses the header of the image in r, which is size bytes long. An image whose header cannot be right is Invalid.
func Read(r io.ReaderAt, size int64) (*Header, error) {
	raw := make([]byte, headerV3)
	n, err := r.ReadAt(raw, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, problem.Wrap(err, problem.Internal, "the image cannot be read")
	}
	raw = raw[:n]
	if n < headerV2 {
		return nil, bad("it ends inside its header")
	}
	if string(raw[:4]) != Magic {
		return nil, bad("it does not begin as a qcow2 image does")
	}
	h, p := &Header{}, parser{raw: raw, r: r, size: size}
	if err := p.fixed(h); err != nil {
		return nil, err
	}
	if err := p.extensions(h); err != nil {
		return nil, err
	}
	return h, p.backing(h)
}

func bad(format string, args ...any) *problem.Problem {
	return problem.New(problem.Invalid, "the file is not a sound qcow2 image").Because(format, args...).
		Try("see that it is whole and really qcow2 (`qemu-img check IMAGE`); if it is of another format, name that")
}

type parser struct {
	raw  []byte
	r    io.ReaderAt
	size int64

	length        int64 // of the header
	backingAt     uint64
	backingLength uint32
}

func (p *parser) u32(at int) uint32 { return binary.BigEndian.Uint32(p.raw[at:]) }
func (p *parser) u64(at int) uint64 { return binary.BigEndian.Uint64(p.raw[at:]) }

// fixed reads the part that every image has.
func (p *parser) fixed(h *Header) error {
	h.Version, p.length = int(p.u32(4)), headerV2
	if h.Version != 2 && h.Version != 3 {
		return bad("its version is %d; 2 and 3 are known", p.u32(4))
	}
	if h.Version == 3 {
		if err := p.features(h); err != nil {
			return err
		}
	}
	bits := p.u32(20)
	if bits < minCluster || bits > maxCluster {
		return bad("its clusters have 2^%d bytes", bits)
	}
	h.ClusterSize = 1 << bits
	if p.length > h.ClusterSize {
		return bad("its header is longer than a cluster")
	}
	virtual := p.u64(24)
	if virtual == 0 || virtual > uint64(api.MaxDisk) {
		return bad("it claims a size of %d bytes; the largest disk has %d", virtual, api.MaxDisk)
	}
	h.VirtualSize = int64(virtual)
	h.Encrypted = p.u32(32) != 0
	h.Snapshots = int(p.u32(60))
	p.backingAt, p.backingLength = p.u64(8), p.u32(16)
	if err := p.inside("L1 table", p.u64(40), int64(p.u32(36))*8, maxL1); err != nil {
		return err
	}
	if h.Snapshots > 0 {
		if err := p.inside("snapshot table", p.u64(64), 1, 1); err != nil {
			return err
		}
	}
	return p.inside("refcount table", p.u64(48), int64(p.u32(56))*h.ClusterSize, maxRefTable)
}

func (p *parser) features(h *Header) error {
	if len(p.raw) < headerV3 {
		return bad("it ends inside its header")
	}
	p.length = int64(p.u32(100))
	if p.length < headerV3 || p.length%8 != 0 {
		return bad("its header claims %d bytes", p.length)
	}
	if order := p.u32(96); order > 6 {
		return bad("its refcounts have 2^%d bits", order)
	}
	f := p.u64(72)
	h.Dirty, h.Corrupt, h.DataFile = f&featDirty != 0, f&featCorrupt != 0, f&featDataFile != 0
	h.Unknown = f &^ (featDirty | featCorrupt | featDataFile | featCompression | featExtendedL2)
	return nil
}

// inside checks that a table lies in the file. Length zero is no table.
func (p *parser) inside(what string, at uint64, length, limit int64) error {
	switch {
	case length > limit:
		return bad("its %s has %d bytes", what, length)
	case length == 0:
		return nil
	case at < uint64(p.length) || at > uint64(p.size) || int64(at)+length > p.size:
		return bad("its %s is not inside the file", what)
	default:
		return nil
	}
}

// extensions reads what follows the fixed part, up to the end of the first cluster.
func (p *parser) extensions(h *Header) error {
	end := h.ClusterSize
	if p.backingAt != 0 {
		end = int64(min(p.backingAt, uint64(end)))
	}
	head := make([]byte, 8)
	at := p.length
	for range maxExtra {
		if at+8 > min(end, p.size) {
			return nil
		}
		if _, err := p.r.ReadAt(head, at); err != nil {
			return bad("it ends inside its header")
		}
		kind, n := binary.BigEndian.Uint32(head), int64(binary.BigEndian.Uint32(head[4:]))
		at += 8
		if kind == extEnd {
			return nil
		}
		if n > end-at {
			return bad("a header extension claims %d bytes", n)
		}
		switch kind {
		case extBackingFormat:
			b := make([]byte, min(n, 16))
			if _, err := p.r.ReadAt(b, at); err != nil {
				return bad("it ends inside its header")
			}
			h.BackingFormat = string(b)
		case extDataFile:
			h.DataFile = true
		case extEncryption:
			h.Encrypted = true
		}
		at += (n + 7) &^ 7
	}
	return bad("it has more than %d header extensions", maxExtra)
}

func (p *parser) backing(h *Header) error {
	if p.backingAt == 0 {
		return nil
	}
	n := int64(p.backingLength)
	if n > maxBacking || p.backingAt > uint64(h.ClusterSize) || int64(p.backingAt)+n > h.ClusterSize {
		return bad("the name of its backing file is not inside its first cluster")
	}
	b := make([]byte, n)
	if _, err := p.r.ReadAt(b, int64(p.backingAt)); err != nil {
		return bad("it ends inside its header")
	}
	h.BackingFile = string(b)
	if n == 0 || slices.Contains(b, 0) {
		return bad("the name of its backing file is broken")
	}
	return nil
}

// Standalone returns why the image cannot be used by itself, as an Invalid problem that says what to do, or nil.
func (h *Header) Standalone() error {
	refuse := func(why, fix string) error {
		return problem.New(problem.Invalid, "the image cannot be taken").Because("%s", why).Try("%s", fix)
	}
	const flatten = "flatten it where its files are: `qemu-img convert -O qcow2 IMAGE NEW`"
	switch {
	case h.BackingFile != "" || h.BackingFormat != "":
		return refuse("it has a backing file, so it would read whatever has that name on this machine", flatten)
	case h.DataFile:
		return refuse("its data is in another file", flatten)
	case h.Encrypted:
		return refuse("it is encrypted", "decrypt it: `qemu-img convert --object secret,... -O qcow2 IMAGE NEW`")
	case h.Corrupt:
		return refuse("it is marked as corrupt", "repair it: `qemu-img check -r all IMAGE`")
	case h.Dirty:
		return refuse("it was not closed properly", "repair it: `qemu-img check -r all IMAGE`")
	case h.Unknown != 0:
		return refuse("it uses features that are not known here", flatten)
	case h.Snapshots != 0:
		return refuse("it has internal snapshots, which no VM could use", flatten)
	default:
		return nil
	}
}
