package qcow2

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// sound is a valid, empty image of 1 MiB.
func sound() []byte {
	b := make([]byte, 4*65536)
	copy(b, Magic)
	put := func(at int, v uint64, n int) {
		if n == 4 {
			binary.BigEndian.PutUint32(b[at:], uint32(v))
		} else {
			binary.BigEndian.PutUint64(b[at:], v)
		}
	}
	put(4, 3, 4)
	put(20, 16, 4)
	put(24, uint64(api.MiB), 8)
	put(36, 1, 4)
	put(40, 3*65536, 8)
	put(48, 65536, 8)
	put(56, 1, 4)
	put(96, 4, 4)
	put(100, headerV3, 4)
	return b
}

func read(b []byte) (*Header, error) { return Read(bytes.NewReader(b), int64(len(b))) }

func TestSoundImage(t *testing.T) {
	h, err := read(sound())
	require.NoError(t, err)
	require.Equal(t, Header{Version: 3, VirtualSize: api.MiB, ClusterSize: 65536}, *h)
	require.NoError(t, h.Standalone())
}

func TestWhatQEMUMakesIsUnderstood(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("SKIPPED, NOT TESTED: images made by QEMU. Install qemu-utils")
	}
	dir := t.TempDir()
	make := func(args ...string) *Header {
		out, err := exec.Command("qemu-img", append([]string{"create", "-q", "-f", "qcow2"}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		f, err := os.Open(args[len(args)-2])
		require.NoError(t, err)
		defer f.Close()
		info, err := f.Stat()
		require.NoError(t, err)
		h, err := Read(f, info.Size())
		require.NoError(t, err)
		return h
	}
	base, over := filepath.Join(dir, "base"), filepath.Join(dir, "over")
	require.NoError(t, make(base, "10M").Standalone())
	require.NoError(t, make("-o", "compat=0.10", filepath.Join(dir, "old"), "10M").Standalone())
	require.NoError(t, make("-o", "extended_l2=on,cluster_size=128k,compression_type=zstd", filepath.Join(dir, "new"), "1T").Standalone())
	h := make("-b", base, "-F", "qcow2", over, "20M")
	require.Equal(t, base, h.BackingFile)
	require.Equal(t, "qcow2", h.BackingFormat)
	require.Equal(t, 20*api.MiB, h.VirtualSize)
	require.Equal(t, problem.Invalid, problem.KindOf(h.Standalone()))
	h = make("-o", "data_file="+filepath.Join(dir, "data"), filepath.Join(dir, "ext"), "1M")
	require.True(t, h.DataFile)
	require.Error(t, h.Standalone())
}

func TestHostileImagesAreRefused(t *testing.T) {
	u32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint32(b[at:], v); return b }
	}
	u64 := func(at int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint64(b[at:], v); return b }
	}
	for what, change := range map[string]func([]byte) []byte{
		"empty":                   func([]byte) []byte { return nil },
		"truncated header":        func(b []byte) []byte { return b[:50] },
		"truncated v3 header":     func(b []byte) []byte { return b[:80] },
		"other magic":             func(b []byte) []byte { b[0] = 'X'; return b },
		"version 1":               u32(4, 1),
		"version 4":               u32(4, 4),
		"tiny clusters":           u32(20, 8),
		"huge clusters":           u32(20, 63),
		"no size":                 u64(24, 0),
		"huge size":               u64(24, 1<<62),
		"negative size":           u64(24, 1<<63),
		"encrypted":               u32(32, 1),
		"huge L1":                 u32(36, 1<<30),
		"L1 outside":              u64(40, 1<<40),
		"L1 offset overflows":     u64(40, 1<<63),
		"L1 in the header":        u64(40, 8),
		"refcount table outside":  u64(48, 1<<50),
		"huge refcount table":     u32(56, 1<<31),
		"refcount order":          u32(96, 7),
		"short header":            u32(100, 72),
		"endless header":          u32(100, 1<<31),
		"dirty":                   u64(72, featDirty),
		"corrupt":                 u64(72, featCorrupt),
		"data file":               u64(72, featDataFile),
		"unknown feature":         u64(72, 1<<40),
		"snapshots":               func(b []byte) []byte { return u64(64, 65536)(u32(60, 1)(b)) },
		"snapshots outside":       u32(60, 1),
		"backing name overflows":  func(b []byte) []byte { return u64(8, 1<<63)(u32(16, 8)(b)) },
		"backing name too long":   func(b []byte) []byte { return u64(8, 512)(u32(16, 1<<31)(b)) },
		"backing file":            func(b []byte) []byte { copy(b[512:], "/etc/shadow"); return u64(8, 512)(u32(16, 11)(b)) },
		"backing name with zero":  func(b []byte) []byte { return u64(8, 512)(u32(16, 8)(b)) },
		"extension without end":   func(b []byte) []byte { return u32(headerV3, 0x11223344)(u32(headerV3+4, 1<<31)(b)) },
		"data file by extension":  u32(headerV3, extDataFile),
		"encryption by extension": u32(headerV3, extEncryption),
	} {
		t.Run(what, func(t *testing.T) {
			h, err := read(change(sound()))
			if err == nil {
				err = h.Standalone()
			}
			require.Equal(t, problem.Invalid, problem.KindOf(err), "%v", err)
		})
	}
}

func FuzzRead(f *testing.F) {
	f.Add(sound())
	f.Add(sound()[:104])
	f.Add([]byte(Magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := read(b)
		if err != nil {
			if problem.KindOf(err) != problem.Invalid {
				t.Fatalf("bytes can only be invalid: %v", err)
			}
			return
		}
		if h.VirtualSize <= 0 || h.VirtualSize > api.MaxDisk || h.ClusterSize < 512 {
			t.Fatalf("accepted nonsense: %+v", h)
		}
	})
}
