package server

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func TestUpload(t *testing.T) {
	k := newKit(t, func(o *Options) { o.MaxUpload = 5 << 20 })
	id := api.NewID()
	data := make([]byte, 3<<20)
	_, _ = rand.Read(data)
	sum := sha256.Sum256(data)
	var got Uploaded
	k.call(k.admin, http.MethodPut, "/v1/uploads/"+id, bytes.NewReader(data), 200, &got, "Content-Type", "application/octet-stream")
	require.Equal(t, Uploaded{ID: id, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}, got)
	file := filepath.Join(k.dir, "uploads", id)
	stored, err := os.ReadFile(file)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, stored))

	// Without a length, and sent again: it is replaced.
	k.call(k.admin, http.MethodPut, "/v1/uploads/"+id, struct{ io.Reader }{bytes.NewReader([]byte("new"))}, 200, &got)
	require.EqualValues(t, 3, got.Size)

	for range 2 {
		k.call(k.admin, http.MethodDelete, "/v1/uploads/"+id, nil, 204, nil)
		require.NoFileExists(t, file)
	}
}

func TestUploadThatFails(t *testing.T) {
	k := newKit(t, func(o *Options) { o.MaxUpload = 1000 })
	id := api.NewID()
	dir := filepath.Join(k.dir, "uploads")
	r := k.send(k.admin, http.MethodPut, "/v1/uploads/"+id, bytes.NewReader(make([]byte, 1001)))
	require.Equal(t, 413, r.StatusCode)
	r.problem(t)
	r = k.send(k.admin, http.MethodPut, "/v1/uploads/"+id, struct{ io.Reader }{bytes.NewReader(make([]byte, 1001))})
	require.Equal(t, problem.TooLarge, r.problem(t).Code)
	k.call(k.admin, http.MethodPut, "/v1/uploads/"+id, bytes.NewReader(make([]byte, 1000)), 200, nil)
	before, err := os.ReadFile(filepath.Join(dir, id))
	require.NoError(t, err)

	_, err = k.server.uploads.receive(id, io.MultiReader(bytes.NewReader([]byte("half")), iotest.ErrReader(errors.New("gone"))))
	require.True(t, problem.Is(err, problem.Invalid), "%v", err)
	after, err := os.ReadFile(filepath.Join(dir, id))
	require.NoError(t, err)
	require.Equal(t, before, after, "what broke off must not touch what is there")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
}

func TestUploadTwiceAtOnce(t *testing.T) {
	k := newKit(t)
	id := api.NewID()
	r, w := io.Pipe()
	done := make(chan error)
	go func() {
		_, err := k.server.uploads.receive(id, r)
		done <- err
	}()
	_, err := w.Write([]byte("a")) // it is being read from here on
	require.NoError(t, err)
	res := k.send(k.admin, http.MethodPut, "/v1/uploads/"+id, "b")
	require.Equal(t, problem.Conflict, res.problem(t).Code)
	res = k.send(k.admin, http.MethodDelete, "/v1/uploads/"+id, nil)
	require.Equal(t, problem.Conflict, res.problem(t).Code)
	require.NoError(t, w.Close())
	require.NoError(t, <-done)
}

func TestAbandonedUploadsAreCleaned(t *testing.T) {
	k := newKit(t)
	n, err := k.server.CleanUploads(time.Now(), time.Hour)
	require.NoError(t, err)
	require.Zero(t, n)
	old, young := api.NewID(), api.NewID()
	for _, id := range []string{old, young} {
		k.call(k.admin, http.MethodPut, "/v1/uploads/"+id, "x", 200, nil)
	}
	dir := filepath.Join(k.dir, "uploads")
	for _, name := range []string{api.NewID() + partSuffix, "not-ours"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	past := time.Now().Add(-2 * time.Hour)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		if e.Name() != young {
			require.NoError(t, os.Chtimes(filepath.Join(dir, e.Name()), past, past))
		}
	}
	n, err = k.server.CleanUploads(time.Now(), time.Hour)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.FileExists(t, filepath.Join(dir, young))
	require.FileExists(t, filepath.Join(dir, "not-ours"))
}

func TestImageContent(t *testing.T) {
	k := newKit(t)
	agent := k.join("node-1")
	data := make([]byte, 4<<20+17)
	_, _ = rand.Read(data)
	img := &api.Image{Meta: api.Meta{ID: api.NewID(), Name: "debian", Project: "default"}, Status: api.ImageStatus{Phase: api.PhaseReady, SHA256: "abc", Size: int64(len(data))}}
	half := &api.Image{Meta: api.Meta{ID: api.NewID(), Name: "half", Project: "default"}, Status: api.ImageStatus{Phase: api.PhaseCreating}}
	lost := &api.Image{Meta: api.Meta{ID: api.NewID(), Name: "lost", Project: "default"}, Status: api.ImageStatus{Phase: api.PhaseReady}}
	k.put(img, half, lost)
	require.NoError(t, os.MkdirAll(filepath.Join(k.dir, "images"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(k.dir, "images", img.ID), data, 0o600))
	path := func(id string) string { return "/v1/agents/" + agent.ID + "/images/" + id + "/content" }

	r := k.call(agent.Credential, http.MethodGet, path(img.ID), nil, 200, nil)
	require.True(t, bytes.Equal(data, r.body))
	require.Equal(t, "application/octet-stream", r.Header.Get("Content-Type"))
	require.EqualValues(t, len(data), r.ContentLength)
	r = k.call(agent.Credential, http.MethodGet, path(img.ID), nil, 206, nil, "Range", "bytes=4194304-", "If-Range", `"abc"`)
	require.True(t, bytes.Equal(data[4194304:], r.body))

	user := "/v1/projects/default/images/debian/content"
	r = k.call(k.admin, http.MethodGet, user, nil, 206, nil, "Range", "bytes=4194304-", "If-Range", `"abc"`)
	require.True(t, bytes.Equal(data[4194304:], r.body))
	require.Equal(t, `"abc"`, r.Header.Get("ETag"))
	k.call(k.admin, http.MethodGet, "/v1/projects/default/images/half/content", nil, 409, nil)
	k.call(k.admin, http.MethodGet, user+"?format=vmdk", nil, 501, nil)
	k.call(k.admin, http.MethodGet, user+"?format=passwd", nil, 422, nil)
	k.call(agent.Credential, http.MethodGet, user, nil, 403, nil)
	k.server.o.ExportFile = func(i *api.Image, format string) (string, string, error) {
		return filepath.Join(k.dir, "images", i.ID), "sum of " + format, nil
	}
	r = k.call(k.admin, http.MethodGet, user+"?format=vmdk", nil, 200, nil)
	require.Equal(t, `"sum of vmdk"`, r.Header.Get("ETag"))

	k.call(agent.Credential, http.MethodGet, path(half.ID), nil, 409, nil)
	r = k.call(agent.Credential, http.MethodGet, path(lost.ID), nil, 404, nil)
	require.NotContains(t, string(r.body), k.dir, "a path of the server was shown")
	k.call(agent.Credential, http.MethodGet, path(api.NewID()), nil, 404, nil)
	k.call(agent.Credential, http.MethodGet, path("..%2f..%2fkeys"), nil, 422, nil)
}
