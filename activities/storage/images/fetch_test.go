package images_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage/images"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// mirror is a server that has an image, and breaks off.
type mirror struct {
	mu      sync.Mutex
	content []byte
	tag     string
	breaks  []int               // bytes after which the next answers break off
	asked   []string            // Range of each request
	hold    chan struct{}       // if there is one, answers wait for it once they have broken off
	paths   map[string]string   // redirects
	status  int                 // of all answers, if it is one
	header  func(h http.Header) // more of it
}

func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	to := m.paths[r.URL.Path]
	m.asked = append(m.asked, r.Header.Get("Range"))
	content, tag, status := m.content, m.tag, m.status
	limit := -1
	if len(m.breaks) > 0 && to == "" {
		limit, m.breaks = m.breaks[0], m.breaks[1:]
	}
	m.mu.Unlock()
	switch {
	case to != "":
		http.Redirect(w, r, to, http.StatusFound)
		return
	case status != 0:
		w.WriteHeader(status)
		return
	}
	if tag != "" {
		w.Header().Set("ETag", tag)
	}
	if m.header != nil {
		m.header(w.Header())
	}
	if limit >= 0 {
		from := 0
		if n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")); err == nil && (r.Header.Get("If-Range") == "" || r.Header.Get("If-Range") == tag) {
			from = n
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(content)-from))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(content[from:min(from+limit, len(content))])
		_ = http.NewResponseController(w).Flush()
		if m.hold != nil {
			<-m.hold
		}
		panic(http.ErrAbortHandler)
	}
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(content)))
}

func (m *mirror) requests() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.asked...)
}

// fetching returns a store that may fetch from a mirror, and the mirror, which has a sound image.
func fetching(t *testing.T) (*fixture, *mirror, string) {
	t.Helper()
	f := open(t)
	src := filepath.Join(f.allowed, "image")
	qemu(t, "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", src, "64M")
	content, err := os.ReadFile(src)
	require.NoError(t, err)
	content = append(content, make([]byte, 1<<20)...) // so that there is something to break off
	m := &mirror{content: content[:len(content)/65536*65536], tag: `"one"`, paths: map[string]string{}}
	srv := httptest.NewServer(m)
	t.Cleanup(srv.Close)
	f.Store, err = images.Open(f.data, images.Options{URLs: []string{srv.URL + "/images/"}})
	require.NoError(t, err)
	return f, m, srv.URL
}

func (m *mirror) image(url string) steps.ImageImport {
	return steps.ImageImport{Image: api.NewID(), Format: api.FormatQCOW2, URL: url}
}

func TestImportFromURL(t *testing.T) {
	f, m, base := fetching(t)
	in := m.image(base + "/images/a.qcow2")
	var last api.Progress
	out, err := f.Import(t.Context(), in, func(p api.Progress) {
		if p.Total > 0 {
			last = p
		}
	})
	require.NoError(t, err)
	require.EqualValues(t, len(m.content), out.Size)
	require.EqualValues(t, len(m.content), last.Done)
	require.Equal(t, last.Done, last.Total)
	entries, err := os.ReadDir(filepath.Join(f.data, "images"))
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.NoError(t, f.Remove(t.Context(), in.Image))

	m.mu.Lock()
	m.header, m.paths["/images/there"] = func(h http.Header) { h.Set("Content-Length", "") }, base+"/images/a.qcow2"
	m.mu.Unlock()
	in = m.image(base + "/images/there")
	in.SHA256 = out.SHA256
	again, err := f.Import(t.Context(), in, nil)
	require.NoError(t, err, "a redirect to what is allowed")
	require.Equal(t, out, again)
}

// TestBrokenTransferGoesOn: with what it has, not from the beginning.
func TestBrokenTransferGoesOn(t *testing.T) {
	f, m, base := fetching(t)
	m.breaks = []int{200000, 0, 300000}
	in := m.image(base + "/images/a")
	out, err := f.Import(t.Context(), in, nil)
	require.NoError(t, err)
	require.EqualValues(t, len(m.content), out.Size)
	require.Equal(t, []string{"", "bytes=200000-", "bytes=200000-", "bytes=500000-"}, m.requests())
}

// TestTransferGoesOnAfterARestart: what has come is kept when the step is cut off, and found by the next attempt, of another
// process.
func TestTransferGoesOnAfterARestart(t *testing.T) {
	f, m, base := fetching(t)
	m.breaks, m.hold = []int{300000}, make(chan struct{})
	in := m.image(base + "/images/a")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			if b, err := os.Stat(filepath.Join(f.data, "images", in.Image+".src.tmp")); err == nil && b.Size() >= 300000 {
				cancel()
			}
		}
	}()
	_, err := f.Import(ctx, in, nil)
	require.Equal(t, problem.Cancelled, problem.KindOf(err), "%v", err)
	close(m.hold)
	list, err := f.List()
	require.NoError(t, err)
	require.Equal(t, []string{in.Image}, list, "an audit knows of it")

	f.Store, err = images.Open(f.data, images.Options{URLs: []string{base}})
	require.NoError(t, err)
	out, err := f.Import(t.Context(), in, nil)
	require.NoError(t, err)
	require.EqualValues(t, len(m.content), out.Size)
	require.Equal(t, []string{"", "bytes=300000-"}, m.requests())
	require.NoError(t, f.Remove(t.Context(), in.Image))
	f.clean(t)
}

// TestChangedFileBeginsAnew: two halves of different files are no image.
func TestChangedFileBeginsAnew(t *testing.T) {
	for name, change := range map[string]func(m *mirror){
		"another tag": func(m *mirror) { m.tag = `"two"` },
		"no tag":      func(*mirror) {},
	} {
		t.Run(name, func(t *testing.T) {
			f, m, base := fetching(t)
			if name == "no tag" {
				m.tag = ""
			}
			m.breaks = []int{200000, 100}
			in := m.image(base + "/images/a")
			_, err := f.Import(t.Context(), in, func(p api.Progress) {
				if p.Done >= 200000 {
					m.mu.Lock()
					change(m)
					m.mu.Unlock()
				}
			})
			require.NoError(t, err)
			want := filepath.Join(t.TempDir(), "want")
			require.NoError(t, os.WriteFile(want, m.content, 0o600))
			require.Equal(t, sha(t, want), sha(t, filepath.Join(f.data, "images", in.Image)))
		})
	}
}

func TestURLsThatAreRefused(t *testing.T) {
	f, m, base := fetching(t)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(m.content) }))
	defer other.Close()
	for from, to := range map[string]string{
		"/images/out": other.URL + "/images/a", "/images/up": "/secret", "/images/loop": "/images/loop", "/images/file": "file:///etc/passwd",
		"/images/password": strings.Replace(base, "http://", "http://user:pass@", 1) + "/images/a",
	} {
		m.paths[from] = to
	}
	small, err := images.Open(f.data, images.Options{URLs: []string{base}, MaxSize: 1000})
	require.NoError(t, err)
	late, err := images.Open(f.data, images.Options{URLs: []string{base}, FetchTime: 1})
	require.NoError(t, err)
	for what, c := range map[string]struct {
		url    string
		kind   problem.Kind
		store  *images.Store
		status int
		sha    string
	}{
		"another server":            {url: other.URL + "/images/a", kind: problem.Forbidden},
		"another path":              {url: base + "/secret", kind: problem.Forbidden},
		"path that looks alike":     {url: base + "/images-secret/a", kind: problem.Forbidden},
		"dots":                      {url: base + "/images/../secret", kind: problem.Forbidden},
		"encoded dots":              {url: base + "/images/%2e%2e/secret", kind: problem.Forbidden},
		"another scheme":            {url: strings.Replace(base, "http", "https", 1) + "/images/a", kind: problem.Forbidden},
		"file":                      {url: "file:///etc/passwd", kind: problem.Forbidden},
		"password":                  {url: strings.Replace(base, "http://", "http://user:pass@", 1) + "/images/a", kind: problem.Invalid},
		"redirect to another":       {url: base + "/images/out", kind: problem.Forbidden},
		"redirect to another path":  {url: base + "/images/up", kind: problem.Forbidden},
		"redirect to a file":        {url: base + "/images/file", kind: problem.Forbidden},
		"redirect with a password":  {url: base + "/images/password", kind: problem.Invalid},
		"redirects without end":     {url: base + "/images/loop", kind: problem.Invalid},
		"too large":                 {url: base + "/images/a", kind: problem.TooLarge, store: small},
		"too slow":                  {url: base + "/images/a", kind: problem.Timeout, store: late},
		"not there":                 {url: base + "/images/a", kind: problem.NotFound, status: 404},
		"not for us":                {url: base + "/images/a", kind: problem.Invalid, status: 403},
		"broken":                    {url: base + "/images/a", kind: problem.Unavailable, status: 500},
		"wrong checksum":            {url: base + "/images/a", kind: problem.Invalid, sha: strings.Repeat("0", 64)},
		"localhost, not named":      {url: strings.Replace(base, "127.0.0.1", "localhost", 1) + "/images/a", kind: problem.Forbidden},
		"path and url at once":      {url: base + "/images/a", kind: problem.Invalid, sha: "both"},
		"what is there is no image": {url: base + "/images/a", kind: problem.Invalid, sha: "raw"},
	} {
		t.Run(what, func(t *testing.T) {
			store := f.Store
			if c.store != nil {
				store = c.store
			}
			m.mu.Lock()
			m.status = c.status
			m.mu.Unlock()
			in := m.image(c.url)
			switch c.sha {
			case "both":
				in.Path = "/etc/passwd"
			case "raw":
				in.Format = api.FormatRaw
			default:
				in.SHA256 = c.sha
			}
			_, err := store.Import(t.Context(), in, nil)
			require.Equal(t, c.kind, problem.KindOf(err), "%v", err)
			require.NotContains(t, err.Error(), "pass@")
			require.NoError(t, store.Remove(t.Context(), in.Image)) // the undo
			f.clean(t)
		})
	}
	_, err = images.Open(f.data, images.Options{URLs: []string{"ftp://host/"}})
	require.Equal(t, problem.Invalid, problem.KindOf(err))
}

func TestAddressesThatNamesMustNotLeadTo(t *testing.T) {
	for address, public := range map[string]bool{
		"127.0.0.1:80": false, "127.8.0.1:80": false, "[::1]:80": false, "169.254.169.254:80": false, "[fe80::1%25eth0]:80": false, "[fe80::1]:80": false,
		"0.0.0.0:80": false, "[::]:80": false, "224.0.0.1:80": false, "[::ffff:127.0.0.1]:80": false, "[::ffff:169.254.169.254]:80": false, "nonsense": false,
		"192.0.2.1:80": true, "10.1.2.3:443": true, "[2001:db8::1]:443": true,
	} {
		require.Equal(t, public, images.Public(address), address)
	}
}
