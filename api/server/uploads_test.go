package server

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
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

func TestUploadThatGoesOn(t *testing.T) {
	k := newKit(t, func(o *Options) { o.MaxUpload = 1 << 20 })
	id, path := api.NewID(), filepath.Join(k.dir, "uploads")
	url := "/v1/uploads/" + id
	data := make([]byte, 300_000)
	_, _ = rand.Read(data)
	sum := sha256.Sum256(data)
	state := func() (out UploadState) {
		k.call(k.admin, http.MethodGet, url, nil, 200, &out)
		return out
	}
	k.call(k.admin, http.MethodGet, url, nil, 404, nil)
	part := func(offset int64, body io.Reader) error {
		_, err := k.server.uploads.take(id, offset, &patientReader{Reader: body, control: http.NewResponseController(httptest.NewRecorder())})
		return err
	}
	require.Error(t, part(0, io.MultiReader(bytes.NewReader(data[:1000]), iotest.ErrReader(errors.New("gone")))))
	require.Equal(t, UploadState{ID: id, Size: 1000}, state())
	require.True(t, problem.Is(part(2000, bytes.NewReader(nil)), problem.Conflict))
	require.Error(t, part(1000, io.MultiReader(bytes.NewReader(data[1000:5000]), iotest.ErrReader(errors.New("gone")))))
	require.EqualValues(t, 5000, state().Size)

	// A client whose dead connection the server still believes in comes back.
	r, w := io.Pipe()
	defer w.Close()
	old := make(chan error)
	blocked := &stoppable{Reader: r, w: w}
	go func() {
		_, err := k.server.uploads.take(id, 5000, &patientReader{Reader: blocked, control: http.NewResponseController(blocked)})
		old <- err
	}()
	_, err := w.Write(data[5000:6000])
	require.NoError(t, err)
	var got Uploaded
	k.call(k.admin, http.MethodPut, url+"?offset=5000", bytes.NewReader(data[5000:]), 200, &got)
	require.Error(t, <-old)
	require.Equal(t, Uploaded{ID: id, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}, got)
	require.Equal(t, UploadState{ID: id, Size: int64(len(data)), Whole: true, SHA256: got.SHA256}, state())
	stored, err := os.ReadFile(filepath.Join(path, id))
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, stored))

	res := k.send(k.admin, http.MethodPut, url+"?offset=1048576", bytes.NewReader([]byte("x")))
	require.Equal(t, problem.TooLarge, res.problem(t).Code)
	res = k.send(k.admin, http.MethodPut, url+"?offset=-5", bytes.NewReader([]byte("x")))
	require.Equal(t, 422, res.StatusCode)
	require.Error(t, part(0, io.MultiReader(bytes.NewReader(data), iotest.ErrReader(errors.New("gone")))))
	k.call(k.admin, http.MethodDelete, url, nil, 204, nil)
	left, err := os.ReadDir(path)
	require.NoError(t, err)
	require.Empty(t, left, "the part goes, too")
}

// stoppable is a connection that ends when its read deadline is over.
type stoppable struct {
	io.Reader
	http.ResponseWriter
	w *io.PipeWriter
}

func (s *stoppable) SetReadDeadline(t time.Time) error {
	if t.Before(time.Now()) {
		s.w.CloseWithError(os.ErrDeadlineExceeded)
	}
	return nil
}

// TestAgentsSendWhatImagesAreMadeOf: and nothing else.
func TestAgentsSendWhatImagesAreMadeOf(t *testing.T) {
	k := newKit(t)
	agent, other := k.join("node-1"), k.join("node-2")
	of := func(name, source string, phase api.Phase) *api.Image {
		return &api.Image{Meta: api.Meta{ID: api.NewID(), Name: name, Project: "default"}, Spec: api.ImageSpec{Source: source}, Status: api.ImageStatus{Phase: phase}}
	}
	img, done, path := of("a", "volume:"+api.NewID(), api.PhaseCreating), of("b", "volume:"+api.NewID(), api.PhaseReady), of("c", "/a", api.PhaseCreating)
	k.put(img, done, path)
	url := func(i *api.Image) string { return "/v1/agents/" + agent.ID + "/images/" + i.ID + "/upload" }
	k.call(agent.Credential, http.MethodGet, url(img), nil, 404, nil)
	var got Uploaded
	k.call(agent.Credential, http.MethodPut, url(img)+"?offset=0", bytes.NewReader([]byte("half")), 200, nil)
	k.call(agent.Credential, http.MethodPut, url(img)+"?offset=0", bytes.NewReader([]byte("whole")), 200, &got)
	require.Equal(t, img.ID, got.ID)
	var state UploadState
	k.call(agent.Credential, http.MethodGet, url(img), nil, 200, &state)
	require.True(t, state.Whole)
	require.EqualValues(t, 5, state.Size)
	for _, i := range []*api.Image{done, path} {
		k.call(agent.Credential, http.MethodPut, url(i)+"?offset=0", bytes.NewReader([]byte("x")), 409, nil)
	}
	k.call(other.Credential, http.MethodPut, url(img)+"?offset=0", bytes.NewReader([]byte("x")), 403, nil)
	k.call(k.admin, http.MethodPut, url(img)+"?offset=0", bytes.NewReader([]byte("x")), 403, nil)
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
	k.server.o.ExportFile = func(id, format string) (string, string, error) {
		return filepath.Join(k.dir, "images", id), "sum of " + format, nil
	}
	r = k.call(k.admin, http.MethodGet, user+"?format=vmdk", nil, 200, nil)
	require.Equal(t, `"sum of vmdk"`, r.Header.Get("ETag"))

	k.call(agent.Credential, http.MethodGet, path(half.ID), nil, 409, nil)
	r = k.call(agent.Credential, http.MethodGet, path(lost.ID), nil, 404, nil)
	require.NotContains(t, string(r.body), k.dir, "a path of the server was shown")
	k.call(agent.Credential, http.MethodGet, path(api.NewID()), nil, 404, nil)
	k.call(agent.Credential, http.MethodGet, path("..%2f..%2fkeys"), nil, 422, nil)
}
