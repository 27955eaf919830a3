package images_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage/images"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

type fixture struct {
	*images.Store
	data, allowed string
}

func open(t *testing.T) *fixture {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("SKIPPED, NOT TESTED: the image store. Install qemu-utils")
	}
	dir := t.TempDir()
	f := &fixture{data: filepath.Join(dir, "data"), allowed: filepath.Join(dir, "allowed")}
	require.NoError(t, os.Mkdir(f.allowed, 0o755))
	s, err := images.Open(f.data, images.Options{Dirs: []string{f.allowed}})
	require.NoError(t, err)
	f.Store = s
	return f
}

func qemu(t *testing.T, args ...string) {
	t.Helper()
	for {
		out, err := exec.Command("qemu-img", args...).CombinedOutput()
		// An encrypted image is made by measuring the processor first, which some machines do too coarsely for it at times.
		if t.Context().Err() == nil && strings.Contains(string(out), "Unable to get accurate CPU usage") {
			continue
		}
		require.NoError(t, err, "%s", out)
		return
	}
}

// clean checks that a failed import left nothing.
func (f *fixture) clean(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(f.data, "images"))
	require.NoError(t, err)
	require.Empty(t, entries)
}

func sha(t *testing.T, path string) string {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func TestImportQcow2FromUpload(t *testing.T) {
	f := open(t)
	up := api.NewID()
	src := filepath.Join(f.Uploads(), up)
	qemu(t, "create", "-q", "-f", "qcow2", src, "10M")
	want := sha(t, src)
	in := steps.ImageImport{Image: api.NewID(), Format: api.FormatQCOW2, Upload: up, SHA256: want}
	out, err := f.Import(t.Context(), in, nil)
	require.NoError(t, err)
	require.Equal(t, want, out.SHA256, "a sound qcow2 image is stored as it is")
	require.Equal(t, 10*api.MiB, out.VirtualSize)
	require.NoError(t, f.RemoveUpload(up))
	require.NoError(t, f.RemoveUpload(up))

	again, err := f.Import(t.Context(), in, nil)
	require.NoError(t, err, "the answer was lost, and the upload is gone")
	require.Equal(t, out, again)

	file, size, err := f.OpenImage(in.Image)
	require.NoError(t, err)
	require.Equal(t, out.Size, size)
	require.NoError(t, file.Close())
	list, err := f.List()
	require.NoError(t, err)
	require.Equal(t, []string{in.Image}, list)
	for range 2 {
		require.NoError(t, f.Remove(t.Context(), in.Image))
	}
	f.clean(t)
	_, _, err = f.OpenImage(in.Image)
	require.Equal(t, problem.NotFound, problem.KindOf(err))
}

func TestImportRawIsConverted(t *testing.T) {
	f := open(t)
	src := filepath.Join(f.allowed, "disk.raw")
	b := bytes.Repeat([]byte("disk"), 256*1024)
	require.NoError(t, os.WriteFile(src, b, 0o644))
	in := steps.ImageImport{Image: api.NewID(), Format: api.FormatRaw, Path: src, SHA256: sha(t, src)}
	var said []string
	out, err := f.Import(t.Context(), in, func(p api.Progress) { said = append(said, p.Text) })
	require.NoError(t, err)
	require.EqualValues(t, len(b), out.VirtualSize)
	require.Contains(t, said, "converting: 100%")
	back := filepath.Join(t.TempDir(), "back")
	qemu(t, "convert", "-f", "qcow2", "-O", "raw", filepath.Join(f.data, "images", in.Image), back)
	require.Equal(t, in.SHA256, sha(t, back))
	entries, err := os.ReadDir(filepath.Join(f.data, "images"))
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.FileExists(t, src, "a file on the server stays")
}

func TestHostileSourcesAreRefused(t *testing.T) {
	f := open(t)
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, bytes.Repeat([]byte("s"), 4096), 0o600))
	at := func(name string) string { return filepath.Join(f.allowed, name) }
	qemu(t, "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", at("backing"), "1M")
	qemu(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+at("data"), at("external"), "1M")
	qemu(t, "create", "-q", "-f", "qcow2", at("sound"), "1M")
	qemu(t, "create", "-q", "-f", "vmdk", at("vmdk"), "1M")
	sound, err := os.ReadFile(at("sound"))
	require.NoError(t, err)
	change := func(name string, do func(b []byte) []byte) {
		require.NoError(t, os.WriteFile(at(name), do(bytes.Clone(sound)), 0o644))
	}
	change("huge", func(b []byte) []byte { binary.BigEndian.PutUint64(b[24:], 1<<60); return b })
	change("short", func(b []byte) []byte { return b[:60] })
	change("half", func(b []byte) []byte { return b[:70000] })
	change("feature", func(b []byte) []byte { b[72] = 0x80; return b })
	change("refcounts", func(b []byte) []byte { binary.BigEndian.PutUint64(b[0x10000:], 0x7fff0000); return b })
	change("empty", func([]byte) []byte { return nil })
	change("gzip", func([]byte) []byte { return []byte("\x1f\x8b and so on") })
	require.NoError(t, os.Symlink(secret, at("link")))
	require.NoError(t, os.Symlink(filepath.Dir(secret), at("dir")))
	require.NoError(t, unix.Mkfifo(at("pipe"), 0o644))

	for what, c := range map[string]struct {
		in   steps.ImageImport
		kind problem.Kind
	}{
		"backing file":            {steps.ImageImport{Format: "qcow2", Path: at("backing")}, problem.Invalid},
		"external data file":      {steps.ImageImport{Format: "qcow2", Path: at("external")}, problem.Invalid},
		"huge virtual size":       {steps.ImageImport{Format: "qcow2", Path: at("huge")}, problem.Invalid},
		"truncated header":        {steps.ImageImport{Format: "qcow2", Path: at("short")}, problem.Invalid},
		"truncated tables":        {steps.ImageImport{Format: "qcow2", Path: at("half")}, problem.Invalid},
		"unknown feature":         {steps.ImageImport{Format: "qcow2", Path: at("feature")}, problem.Invalid},
		"damaged refcounts":       {steps.ImageImport{Format: "qcow2", Path: at("refcounts")}, problem.Invalid},
		"raw that is qcow2":       {steps.ImageImport{Format: "raw", Path: at("sound")}, problem.Invalid},
		"raw that is vmdk":        {steps.ImageImport{Format: "raw", Path: at("vmdk")}, problem.Invalid},
		"qcow2 that is vmdk":      {steps.ImageImport{Format: "qcow2", Path: at("vmdk")}, problem.Invalid},
		"raw that is compressed":  {steps.ImageImport{Format: "raw", Path: at("gzip")}, problem.Invalid},
		"empty raw":               {steps.ImageImport{Format: "raw", Path: at("empty")}, problem.Invalid},
		"empty qcow2":             {steps.ImageImport{Format: "qcow2", Path: at("empty")}, problem.Invalid},
		"format that is guessed":  {steps.ImageImport{Format: "", Path: at("sound")}, problem.Invalid},
		"unknown format":          {steps.ImageImport{Format: "vhd", Path: at("vmdk")}, problem.Invalid},
		"json for a path":         {steps.ImageImport{Format: "raw", Path: `json:{"driver":"raw","file.filename":"/etc/passwd"}`}, problem.Invalid},
		"wrong checksum":          {steps.ImageImport{Format: "qcow2", Path: at("sound"), SHA256: hex.EncodeToString(make([]byte, 32))}, problem.Invalid},
		"path outside":            {steps.ImageImport{Format: "raw", Path: secret}, problem.Forbidden},
		"path outside, not there": {steps.ImageImport{Format: "raw", Path: secret + "x"}, problem.Forbidden},
		"link that leads out":     {steps.ImageImport{Format: "raw", Path: at("link")}, problem.Forbidden},
		"directory link":          {steps.ImageImport{Format: "raw", Path: at("dir/secret")}, problem.Forbidden},
		"dots":                    {steps.ImageImport{Format: "raw", Path: f.allowed + "/../secret"}, problem.Invalid},
		"directory":               {steps.ImageImport{Format: "raw", Path: f.allowed}, problem.Forbidden},
		"pipe":                    {steps.ImageImport{Format: "raw", Path: at("pipe")}, problem.Invalid},
		"not there":               {steps.ImageImport{Format: "raw", Path: at("nothing")}, problem.NotFound},
		"upload not there":        {steps.ImageImport{Format: "raw", Upload: api.NewID()}, problem.NotFound},
		"upload with dots":        {steps.ImageImport{Format: "raw", Upload: "../images/x"}, problem.Invalid},
		"both sources":            {steps.ImageImport{Format: "raw", Upload: api.NewID(), Path: at("sound")}, problem.Invalid},
	} {
		t.Run(what, func(t *testing.T) {
			c.in.Image = api.NewID()
			_, err := f.Import(t.Context(), c.in, nil)
			require.Equal(t, c.kind, problem.KindOf(err), "%v", err)
			require.NotContains(t, err.Error(), "internal")
			f.clean(t)
		})
	}
	_, err = f.Import(t.Context(), steps.ImageImport{Image: "../x", Format: "raw", Path: at("sound")}, nil)
	require.Equal(t, problem.Invalid, problem.KindOf(err))
}

func TestCancelledImportLeavesNothing(t *testing.T) {
	f := open(t)
	src := filepath.Join(f.allowed, "disk.raw")
	file, err := os.Create(src)
	require.NoError(t, err)
	require.NoError(t, file.Truncate(512*api.MiB))
	require.NoError(t, file.Close())
	ctx, cancel := context.WithCancel(t.Context())
	_, err = f.Import(ctx, steps.ImageImport{Image: api.NewID(), Format: api.FormatRaw, Path: src}, func(api.Progress) { cancel() })
	require.Equal(t, problem.Cancelled, problem.KindOf(err), "%v", err)
	f.clean(t)
}

func TestHalfMadeImportIsMadeAnew(t *testing.T) {
	f := open(t)
	src := filepath.Join(f.allowed, "disk")
	qemu(t, "create", "-q", "-f", "qcow2", src, "1M")
	id := api.NewID()
	for _, ext := range []string{".tmp", ".src.tmp"} {
		require.NoError(t, os.WriteFile(filepath.Join(f.data, "images", id+ext), []byte("half"), 0o600))
	}
	_, err := f.Import(t.Context(), steps.ImageImport{Image: id, Format: api.FormatQCOW2, Path: src}, nil)
	require.NoError(t, err)
	require.NoError(t, f.Remove(t.Context(), id))
	f.clean(t)
}
