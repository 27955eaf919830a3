package images_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// sparse returns a VMDK image of one file with this descriptor, and no data.
func sparse(capacity uint64, descriptor string) []byte {
	b := make([]byte, 64<<10)
	copy(b, "KDMV")
	le := binary.LittleEndian
	le.PutUint32(b[4:], 1)
	le.PutUint32(b[8:], 3)
	le.PutUint64(b[12:], capacity)
	le.PutUint64(b[20:], 128) // grain
	le.PutUint64(b[28:], 1)   // descriptor, in sectors
	le.PutUint64(b[36:], 20)
	le.PutUint32(b[44:], 512)
	le.PutUint64(b[48:], 21)
	le.PutUint64(b[56:], 26)
	le.PutUint64(b[64:], 128)
	copy(b[73:], "\n \r\n")
	copy(b[512:], descriptor)
	return b
}

func descriptor(kind, parent, extents string) string {
	return "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=" + parent + "\ncreateType=\"" + kind + "\"\n\n# Extent description\n" + extents + "\n\n# The Disk Data Base\n#DDB\n"
}

// streamed returns a VMDK image as it is written by those who know only at the end where everything is.
func streamed(b []byte) []byte {
	footer := make([]byte, 3*512)
	binary.LittleEndian.PutUint64(footer, 1)
	binary.LittleEndian.PutUint32(footer[12:], 3)
	copy(footer[512:], b[:512])
	binary.LittleEndian.PutUint64(b[56:], ^uint64(0))
	b = append(b, make([]byte, max(0, 128*512-len(b)))...) // what it says that its tables take
	return append(b, footer...)
}

// resum writes the checksum of a part of a VHDX image.
func resum(b []byte) {
	clear(b[4:8])
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// footing writes the checksum of a VHD footer or header.
func footing(b []byte, at int) {
	var sum uint32
	clear(b[at : at+4])
	for _, c := range b {
		sum += uint32(c)
	}
	binary.BigEndian.PutUint32(b[at:], ^sum)
}

// hostile are images that were made to do harm, or that somebody has to be told about. Each is made of a sound one, or by hand.
var hostile = []struct {
	name, format string
	create       []string // options of a sound image of 10 MiB; nil: there is none to begin with
	change       func(b []byte) []byte
	why          string // in the problem
}{
	{"qcow2 on /etc/passwd", "qcow2", []string{"-b", "/etc/passwd", "-F", "raw"}, nil, "backing file"},
	{"qcow2 on json:", "qcow2", []string{"-u", "-F", "raw", "-b", `json:{"driver":"file","filename":"/etc/passwd"}`}, nil, "backing file"},
	{"qcow2 with a data file", "qcow2", []string{"-o", "data_file=DATA"}, nil, "data is in another file"},
	{"qcow2 with a data file in its bits only", "qcow2", []string{}, func(b []byte) []byte { b[79] |= 4; return b }, "data is in another file"},
	{"qcow2, encrypted", "qcow2", []string{}, func(b []byte) []byte { binary.BigEndian.PutUint32(b[32:], 1); return b }, "encrypted"},
	{"qcow2, encrypted with LUKS", "qcow2", []string{"--object", "secret,id=s,data=secret", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"}, nil, "encrypted"},
	{"qcow2 with snapshots", "qcow2", []string{}, func(b []byte) []byte {
		binary.BigEndian.PutUint32(b[60:], 1)
		binary.BigEndian.PutUint64(b[64:], 0x10000)
		return b
	}, "internal snapshots"},
	{"qcow2, cut off", "qcow2", []string{}, func(b []byte) []byte { return b[:0x20000] }, "L1 table is not inside"},
	{"qcow2, huge L1 table", "qcow2", []string{}, func(b []byte) []byte { binary.BigEndian.PutUint32(b[36:], 1<<30); return b }, "L1 table has"},
	{"qcow2, L1 table too small", "qcow2", []string{}, func(b []byte) []byte { binary.BigEndian.PutUint64(b[24:], uint64(64*api.TiB)); return b }, "L1 table is too small"},
	{"qcow2, huge refcount table", "qcow2", []string{}, func(b []byte) []byte { binary.BigEndian.PutUint32(b[56:], 1<<31); return b }, "refcount table has"},
	{"qcow2, L2 table on the L1 table", "qcow2", []string{"preallocation=metadata"}, func(b []byte) []byte {
		l1 := binary.BigEndian.Uint64(b[40:])
		binary.BigEndian.PutUint64(b[l1:], l1|1<<63)
		return b
	}, "damaged"},
	{"qcow2, L2 table on the refcounts", "qcow2", []string{"preallocation=metadata"}, func(b []byte) []byte {
		l1, refs := binary.BigEndian.Uint64(b[40:]), binary.BigEndian.Uint64(b[48:])
		binary.BigEndian.PutUint64(b[l1:], refs|1<<63)
		return b
	}, "damaged"},
	{"qcow2, two clusters in one place", "qcow2", []string{"preallocation=metadata"}, func(b []byte) []byte {
		l2 := binary.BigEndian.Uint64(b[binary.BigEndian.Uint64(b[40:]):]) &^ (1 << 63)
		copy(b[l2+8:l2+16], b[l2:])
		return b
	}, "damaged"},
	{"qcow2, a cluster beyond the end", "qcow2", []string{"preallocation=metadata"}, func(b []byte) []byte {
		l2 := binary.BigEndian.Uint64(b[binary.BigEndian.Uint64(b[40:]):]) &^ (1 << 63)
		binary.BigEndian.PutUint64(b[l2:], 1<<63|1<<40)
		return b
	}, "damaged"},

	{"vmdk, descriptor only", "vmdk", nil, func([]byte) []byte {
		return []byte(descriptor("monolithicFlat", "ffffffff", `RW 20480 FLAT "/etc/passwd" 0`))
	}, "only a descriptor"},
	{"vmdk, descriptor with json:", "vmdk", nil, func([]byte) []byte {
		return []byte(descriptor("monolithicFlat", "ffffffff", `RW 20480 FLAT "json:{\"driver\":\"raw\"}" 0`))
	}, "only a descriptor"},
	{"vmdk, descriptor in a sparse file", "vmdk", nil, func([]byte) []byte {
		return sparse(0, descriptor("monolithicFlat", "ffffffff", `RW 20480 FLAT "/etc/passwd" 0`))
	}, "only a descriptor"},
	{"vmdk, extent outside", "vmdk", nil, func([]byte) []byte {
		return sparse(20480, descriptor("monolithicSparse", "ffffffff", `RW 20480 SPARSE "../../etc/passwd"`))
	}, "data is in another file"},
	{"vmdk, flat extent", "vmdk", nil, func([]byte) []byte {
		return sparse(20480, descriptor("monolithicSparse", "ffffffff", `RW 20480 FLAT "passwd" 0`))
	}, "data is in another file"},
	{"vmdk, several extents", "vmdk", nil, func([]byte) []byte {
		return sparse(20480, descriptor("monolithicSparse", "ffffffff", "RW 20480 SPARSE \"a\"\nRW 20480 FLAT \"/etc/passwd\" 0"))
	}, "several files"},
	{"vmdk, split", "vmdk", nil, func([]byte) []byte {
		return sparse(20480, descriptor("twoGbMaxExtentSparse", "ffffffff", `RW 20480 SPARSE "a"`))
	}, "twoGbMaxExtentSparse"},
	{"vmdk with a parent", "vmdk", nil, func([]byte) []byte {
		return sparse(20480, descriptor("monolithicSparse", "123", `RW 20480 SPARSE "a"`)+"parentFileNameHint=\"/etc/passwd\"\n")
	}, "parent"},
	{"vmdk with a parent's ID", "vmdk", nil, func([]byte) []byte {
		return sparse(20480, descriptor("monolithicSparse", "123", `RW 20480 SPARSE "a"`))
	}, "parent"},
	{"vmdk with a parent where QEMU looks for it", "vmdk", nil, func([]byte) []byte {
		b := sparse(20480, "parentFileNameHint=\"/etc/passwd\"\n")
		binary.LittleEndian.PutUint64(b[28:], 40)
		copy(b[40*512:], descriptor("monolithicSparse", "ffffffff", `RW 20480 SPARSE "a"`))
		return b
	}, "parent"},
	{"vmdk of two sizes", "vmdk", []string{}, func(b []byte) []byte {
		binary.LittleEndian.PutUint64(b[12:], 40960)
		return b
	}, "two sizes"},
	{"vmdk, huge", "vmdk", []string{}, func(b []byte) []byte { binary.LittleEndian.PutUint64(b[12:], 1<<60); return b }, "largest disk"},
	{"vmdk, no descriptor", "vmdk", []string{}, func(b []byte) []byte { clear(b[28:44]); return b }, "no descriptor"},
	{"vmdk, cut off", "vmdk", []string{}, func(b []byte) []byte { return b[:11*1024] }, "grain directory"},
	{"vmdk, ESX", "vmdk", nil, func([]byte) []byte { return append([]byte("COWD"), make([]byte, 4096)...) }, "several files"},
	{"vmdk stream, cut off", "vmdk", []string{"-o", "subformat=streamOptimized"}, func(b []byte) []byte { b = streamed(b); return b[:len(b)-512] }, "footer"},
	{"vmdk stream, another footer", "vmdk", []string{"-o", "subformat=streamOptimized"}, func(b []byte) []byte {
		b = streamed(b)
		binary.LittleEndian.PutUint64(b[len(b)-1024+12:], 1<<50)
		return b
	}, "footer"},

	{"vdi difference", "vdi", []string{}, func(b []byte) []byte { b[0x4c] = 4; return b }, "difference"},
	{"vdi with a parent", "vdi", []string{}, func(b []byte) []byte { b[0x1b8] = 1; return b }, "difference"},
	{"vdi, huge", "vdi", []string{}, func(b []byte) []byte { binary.LittleEndian.PutUint64(b[0x170:], 1<<60); return b }, "largest disk"},
	{"vdi, cut off", "vdi", []string{"-o", "static=on"}, func(b []byte) []byte { return b[:len(b)/2] }, "not whole"},
	{"vdi, two blocks in one place", "vdi", []string{"-o", "static=on"}, func(b []byte) []byte {
		table := binary.LittleEndian.Uint32(b[0x154:])
		clear(b[table : table+8])
		return b
	}, "two of its blocks"},
	{"vdi, a block outside", "vdi", []string{}, func(b []byte) []byte {
		binary.LittleEndian.PutUint32(b[binary.LittleEndian.Uint32(b[0x154:]):], 5)
		return b
	}, "at place 5"},

	{"vhdx with a parent", "vhdx", []string{}, func(b []byte) []byte { item(b, vhdxParams)[4] |= 2; return b }, "difference"},
	{"vhdx with a parent locator", "vhdx", []string{}, func(b []byte) []byte {
		m := metadata(b)
		n := binary.LittleEndian.Uint16(m[10:])
		copy(m[32+32*int(n):], vhdxLocator)
		binary.LittleEndian.PutUint32(m[32+32*int(n)+16:], 0x10100)
		binary.LittleEndian.PutUint32(m[32+32*int(n)+20:], 64)
		binary.LittleEndian.PutUint16(m[10:], n+1)
		return b
	}, "difference"},
	{"vhdx that was not closed", "vhdx", []string{}, func(b []byte) []byte {
		for _, at := range []int{64 << 10, 128 << 10} {
			b[at+48] = 1
			resum(b[at : at+4096])
		}
		return b
	}, "not closed"},
	{"vhdx, huge", "vhdx", []string{}, func(b []byte) []byte { binary.LittleEndian.PutUint64(item(b, vhdxSize), 1<<62); return b }, "largest disk"},
	{"vhdx, cut off", "vhdx", []string{}, func(b []byte) []byte { return b[:192<<10] }, "region table"},
	{"vhdx, damaged", "vhdx", []string{}, func(b []byte) []byte { b[192<<10+9] = 1; return b }, "region table"},

	{"vpc difference", "vpc", []string{}, func(b []byte) []byte {
		for _, f := range [][]byte{b[:512], b[len(b)-512:]} {
			f[63] = 4
			footing(f, 64)
		}
		return b
	}, "difference"},
	{"vpc with a parent's name", "vpc", []string{}, func(b []byte) []byte {
		copy(b[512+64:], "/etc/passwd")
		footing(b[512:512+1024], 36)
		return b
	}, "parent"},
	{"vpc, cut off", "vpc", []string{}, func(b []byte) []byte { return b[:len(b)-512] }, "no footer"},
	{"vpc, fixed, cut off", "vpc", []string{"-o", "subformat=fixed"}, func(b []byte) []byte { return append(b[:1024], b[len(b)-512:]...) }, "claims a size"},
	{"vpc of two sizes", "vpc", []string{}, func(b []byte) []byte { b[50]++; footing(b[:512], 64); return b }, "not what its header is"},
	{"vpc, a block outside", "vpc", []string{}, func(b []byte) []byte { binary.BigEndian.PutUint32(b[1536:], 1<<20); return b }, "not inside the file"},
	{"vpc, not one", "vpc", nil, func([]byte) []byte { return bytes.Repeat([]byte("root:x:0:0\n"), 1000) }, "VHD"},
	{"raw that is vdi", "raw", nil, func([]byte) []byte { return []byte("<<< QEMU VM Virtual Disk Image >>>\n") }, "VDI"},
	{"vmdk that is qcow2", "vmdk", nil, func([]byte) []byte { return []byte("QFI\xfb") }, "qcow2"},
}

// What the parts of a VHDX image are called, as it stands in the file.
const (
	vhdxParams  = "\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b"
	vhdxSize    = "\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8"
	vhdxLocator = "\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c"
)

func metadata(b []byte) []byte { return b[bytes.Index(b[:4<<20], []byte("metadata")):] }

func item(b []byte, id string) []byte {
	m := metadata(b)
	return m[binary.LittleEndian.Uint32(m[bytes.Index(m, []byte(id))+16:]):]
}

// TestHostileImages: each is refused with a reason and a way out, and leaves nothing.
func TestHostileImages(t *testing.T) {
	for _, h := range hostile {
		t.Run(h.name, func(t *testing.T) {
			f := open(t)
			path := filepath.Join(f.allowed, "hostile")
			if h.create != nil {
				args := append([]string{"create", "-q", "-f", h.format}, h.create...)
				for i := range args {
					args[i] = strings.ReplaceAll(args[i], "DATA", filepath.Join(t.TempDir(), "data"))
					if strings.HasPrefix(args[i], "preallocation=") {
						args[i] = "-o" + args[i]
					}
				}
				qemu(t, append(args, path, "10M")...)
			}
			if h.change != nil {
				b, err := os.ReadFile(path)
				if h.create != nil {
					require.NoError(t, err)
				}
				require.NoError(t, os.WriteFile(path, h.change(b), 0o644))
			}
			_, err := f.Import(t.Context(), steps.ImageImport{Image: api.NewID(), Format: h.format, Path: path}, nil)
			require.Equal(t, problem.Invalid, problem.KindOf(err), "%v", err)
			p := problem.From(err)
			require.Contains(t, p.Error(), h.why)
			require.NotEmpty(t, p.Why, "it says why")
			f.clean(t)
		})
	}
}

// TestForeignFormatsAreConverted: what is in a sound image is in what is made of it.
func TestForeignFormatsAreConverted(t *testing.T) {
	f := open(t)
	raw := filepath.Join(t.TempDir(), "disk")
	content := make([]byte, 8<<20)
	for i := range 1000 {
		copy(content[i*7001:], fmt.Sprintf("this is part %d", i))
	}
	require.NoError(t, os.WriteFile(raw, content, 0o644))
	for _, c := range []struct{ name, format, options string }{
		{"vmdk", "vmdk", "subformat=monolithicSparse"},
		{"vmdk stream", "vmdk", "subformat=streamOptimized"},
		{"vmdk stream with a footer", "vmdk", "subformat=streamOptimized"},
		{"vdi", "vdi", "static=off"},
		{"vdi fixed", "vdi", "static=on"},
		{"vhdx", "vhdx", "subformat=dynamic"},
		{"vhdx fixed", "vhdx", "subformat=fixed"},
		{"vpc", "vpc", "subformat=dynamic,force_size=on"},
		{"vpc fixed", "vpc", "subformat=fixed,force_size=on"},
		{"vpc, size by geometry", "vpc", "subformat=dynamic"},
		{"qcow2, compressed", "qcow2", "compat=1.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := filepath.Join(f.allowed, "disk")
			args := []string{"convert", "-f", "raw", "-O", c.format, "-o", c.options}
			if c.format == "qcow2" {
				args = append(args, "-c")
			}
			qemu(t, append(args, raw, src)...)
			if strings.HasSuffix(c.name, "footer") {
				b, err := os.ReadFile(src)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(src, streamed(b), 0o644))
			}
			in := steps.ImageImport{Image: api.NewID(), Format: c.format, Path: src, SHA256: sha(t, src)}
			out, err := f.Import(t.Context(), in, nil)
			require.NoError(t, err)
			back := filepath.Join(t.TempDir(), "back")
			qemu(t, "convert", "-f", "qcow2", "-O", "raw", filepath.Join(f.data, "images", in.Image), back)
			got, err := os.ReadFile(back)
			require.NoError(t, err)
			require.GreaterOrEqual(t, len(got), len(content), "VHD may round it up")
			require.EqualValues(t, len(got), out.VirtualSize)
			require.True(t, bytes.Equal(content, got[:len(content)]))
			require.Empty(t, bytes.Trim(got[len(content):], "\x00"))
			require.NoError(t, f.Remove(t.Context(), in.Image))
			f.clean(t)
		})
	}
}

// TestBombsAreRefused: images that are small and unpack to much.
func TestBombsAreRefused(t *testing.T) {
	f := open(t)
	f.Unpack(api.MiB)
	raw := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(raw, bytes.Repeat([]byte{0xaa}, 64<<20), 0o644))
	for format, options := range map[string]string{"qcow2": "cluster_size=64k", "vmdk": "subformat=streamOptimized"} {
		t.Run(format, func(t *testing.T) {
			src := filepath.Join(f.allowed, "bomb")
			args := []string{"convert", "-f", "raw", "-O", format, "-o", options}
			if format == "qcow2" {
				args = append(args, "-c")
			}
			qemu(t, append(args, raw, src)...)
			info, err := os.Stat(src)
			require.NoError(t, err)
			require.Less(t, info.Size(), int64(2<<20), "it is a bomb")
			_, err = f.Import(t.Context(), steps.ImageImport{Image: api.NewID(), Format: format, Path: src}, nil)
			require.Equal(t, problem.Invalid, problem.KindOf(err), "%v", err)
			require.Contains(t, err.Error(), "as if it was made to fill")
			f.clean(t)
		})
	}
	t.Run("huge and empty is fine", func(t *testing.T) {
		for _, format := range []string{"qcow2", "vmdk", "vhdx"} {
			src := filepath.Join(f.allowed, "huge")
			qemu(t, "create", "-q", "-f", format, src, "32G")
			id := api.NewID()
			out, err := f.Import(t.Context(), steps.ImageImport{Image: id, Format: format, Path: src}, nil)
			require.NoError(t, err, format)
			require.Equal(t, 32*api.GiB, out.VirtualSize)
			require.NoError(t, f.Remove(t.Context(), id))
		}
	})
}
