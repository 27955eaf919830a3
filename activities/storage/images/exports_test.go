package images_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage/images"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// stored returns a store with an image of this content, and its ID.
func stored(t *testing.T, content []byte) (*fixture, string) {
	f := open(t)
	src := filepath.Join(f.allowed, "disk")
	require.NoError(t, os.WriteFile(src, content, 0o644))
	id := api.NewID()
	_, err := f.Import(t.Context(), steps.ImageImport{Image: id, Format: api.FormatRaw, Path: src}, nil)
	require.NoError(t, err)
	return f, id
}

func TestExport(t *testing.T) {
	content := make([]byte, 10<<20)
	copy(content[5<<20:], "something")
	f, id := stored(t, content)
	for _, format := range api.ImageFormats()[1:] {
		t.Run(format, func(t *testing.T) {
			in := steps.ImageExport{Image: id, Format: format}
			_, _, err := f.ExportFile(id, format)
			require.Equal(t, problem.NotFound, problem.KindOf(err))
			out, err := f.Export(t.Context(), in, nil)
			require.NoError(t, err)
			path, sum, err := f.ExportFile(id, format)
			require.NoError(t, err)
			require.Equal(t, sum, out.SHA256)
			require.Equal(t, sum, sha(t, path))
			info, err := os.Stat(path)
			require.NoError(t, err)
			require.Equal(t, info.Size(), out.Size)
			again, err := f.Export(t.Context(), in, nil)
			require.NoError(t, err)
			require.Equal(t, out, again)

			// What was exported can be imported again, and is what it was.
			copied := filepath.Join(f.allowed, "back")
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(copied, b, 0o644))
			back := steps.ImageImport{Image: api.NewID(), Format: format, Path: copied, SHA256: out.SHA256}
			made, err := f.Import(t.Context(), back, nil)
			require.NoError(t, err)
			require.EqualValues(t, len(content), made.VirtualSize)
			qemu(t, "compare", "-f", "raw", "-F", "qcow2", filepath.Join(f.allowed, "disk"), filepath.Join(f.data, "images", back.Image))
			require.NoError(t, f.Remove(t.Context(), back.Image))

			for range 2 {
				require.NoError(t, f.RemoveExport(t.Context(), in))
			}
			require.NoFileExists(t, path)
		})
	}
	_, err := f.Export(t.Context(), steps.ImageExport{Image: id, Format: api.FormatVDI}, nil)
	require.NoError(t, err)
	n, err := f.CleanExports(time.Now(), time.Hour)
	require.NoError(t, err)
	require.Zero(t, n)
	n, err = f.CleanExports(time.Now().Add(2*time.Hour), time.Hour)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	_, err = f.Export(t.Context(), steps.ImageExport{Image: id, Format: api.FormatVDI}, nil)
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(f.data, "images", id)))
	list, err := f.List()
	require.NoError(t, err)
	require.Equal(t, []string{id}, list, "an audit sees exports that are left")
	require.NoError(t, f.Remove(t.Context(), id))
	left, err := os.ReadDir(filepath.Join(f.data, "exports"))
	require.NoError(t, err)
	require.Empty(t, left, "exports go with their image")
}

func TestExportsThatAreRefused(t *testing.T) {
	f, id := stored(t, make([]byte, 1<<20))
	small, err := images.Open(f.data, images.Options{MaxSize: 1000})
	require.NoError(t, err)
	for what, c := range map[string]struct {
		store *images.Store
		in    steps.ImageExport
		kind  problem.Kind
	}{
		"no such image":  {f.Store, steps.ImageExport{Image: api.NewID(), Format: api.FormatRaw}, problem.NotFound},
		"dots":           {f.Store, steps.ImageExport{Image: "../x", Format: api.FormatRaw}, problem.Invalid},
		"unknown format": {f.Store, steps.ImageExport{Image: id, Format: "../../x"}, problem.Invalid},
		"as it is":       {f.Store, steps.ImageExport{Image: id, Format: api.FormatQCOW2}, problem.Invalid},
		"too large":      {small, steps.ImageExport{Image: id, Format: api.FormatRaw}, problem.TooLarge},
	} {
		_, err := c.store.Export(t.Context(), c.in, nil)
		require.Equal(t, c.kind, problem.KindOf(err), "%s: %v", what, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = f.Export(ctx, steps.ImageExport{Image: id, Format: api.FormatVMDK}, func(p api.Progress) {
		if strings.HasPrefix(p.Text, "converting") {
			cancel()
		}
	})
	require.Equal(t, problem.Cancelled, problem.KindOf(err), "%v", err)
	left, err := os.ReadDir(filepath.Join(f.data, "exports"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// TestUploadsOfVolumesAreExported: what is made of them is no image in the end.
func TestUploadsOfVolumesAreExported(t *testing.T) {
	f := open(t)
	raw := filepath.Join(f.allowed, "disk")
	content := make([]byte, 10<<20)
	copy(content[5<<20:], "something")
	require.NoError(t, os.WriteFile(raw, content, 0o644))
	send := func(id string, spoil bool) string {
		path := filepath.Join(f.Uploads(), id)
		qemu(t, "convert", "-f", "raw", "-O", "qcow2", raw, path)
		sum := sha(t, path)
		if spoil {
			require.NoError(t, os.WriteFile(path, []byte("hostile"), 0o600))
			sum = sha(t, path)
		}
		return sum
	}
	for _, format := range api.ImageFormats() {
		t.Run(format, func(t *testing.T) {
			in := api.UploadExport{ID: api.NewID(), Format: format}
			in.SHA256 = send(in.ID, false)
			out, err := f.ExportUpload(t.Context(), in, nil)
			require.NoError(t, err)
			require.NoError(t, f.RemoveUpload(in.ID))
			again, err := f.ExportUpload(t.Context(), in, nil)
			require.NoError(t, err)
			require.Equal(t, out, again)
			path, sum, err := f.ExportFile(in.ID, format)
			require.NoError(t, err)
			require.Equal(t, []string{out.SHA256, out.SHA256}, []string{sum, sha(t, path)})
			qemu(t, "compare", "-f", "raw", "-F", format, raw, path)
			require.NoFileExists(t, filepath.Join(f.data, "images", in.ID))
			require.NoError(t, f.Remove(t.Context(), in.ID))
			require.NoFileExists(t, path)
		})
	}
	// An attempt that died after it had made an image of it.
	in := api.UploadExport{ID: api.NewID(), Format: api.FormatVDI}
	in.SHA256 = send(in.ID, false)
	_, err := f.Import(t.Context(), steps.ImageImport{Image: in.ID, Format: api.FormatQCOW2, Upload: in.ID, SHA256: in.SHA256}, nil)
	require.NoError(t, err)
	require.NoError(t, f.RemoveUpload(in.ID))
	_, err = f.ExportUpload(t.Context(), in, nil)
	require.NoError(t, err)
	require.NoFileExists(t, filepath.Join(f.data, "images", in.ID))
	require.NoError(t, f.Remove(t.Context(), in.ID))

	bad := api.UploadExport{ID: api.NewID(), Format: api.FormatQCOW2}
	bad.SHA256 = send(bad.ID, true)
	_, err = f.ExportUpload(t.Context(), bad, nil)
	require.Equal(t, problem.Invalid, problem.KindOf(err), "%v", err)
	require.NoError(t, f.Remove(t.Context(), bad.ID))
	left, err := f.List()
	require.NoError(t, err)
	require.Empty(t, left)
}
