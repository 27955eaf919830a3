package client_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

// shop sells one image, and breaks off after so many bytes of each answer.
type shop struct {
	content []byte
	tag     string
	breaks  int
	ranges  []string
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.ranges = append(s.ranges, r.Header.Get("Range"))
	w.Header().Set("ETag", `"`+s.tag+`"`)
	if s.breaks == 0 {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.content))
		return
	}
	from, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-"))
	w.Header().Set("Content-Length", strconv.Itoa(len(s.content)-from))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(s.content[from:min(from+s.breaks, len(s.content))])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func TestDownload(t *testing.T) {
	content := bytes.Repeat([]byte("image "), 50000)
	sum := sha256.Sum256(content)
	want := client.Download{Image: "debian", SHA256: hex.EncodeToString(sum[:]), Size: int64(len(content))}
	s := &shop{content: content, tag: want.SHA256}
	srv := httptest.NewServer(s)
	defer srv.Close()
	u, err := url.Parse(srv.URL)
	require.NoError(t, err)
	port, err := strconv.Atoi(u.Port())
	require.NoError(t, err)
	c, err := client.New(client.Config{Host: u.Hostname(), Port: port})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "file")
	read := func() []byte {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoFileExists(t, path+".part")
		require.NoError(t, os.Remove(path))
		return b
	}

	require.NoError(t, c.DownloadImage(t.Context(), "", want, path, nil))
	require.True(t, bytes.Equal(content, read()))

	s.breaks, s.ranges = 110000, nil
	var last int64
	require.NoError(t, c.DownloadImage(t.Context(), "", want, path, func(have int64) { last = have }))
	require.True(t, bytes.Equal(content, read()))
	require.EqualValues(t, len(content), last)
	require.Equal(t, []string{"bytes=0-", "bytes=110000-", "bytes=220000-"}, s.ranges)

	// What an earlier run has left is gone on with.
	s.breaks, s.ranges = 0, nil
	require.NoError(t, os.WriteFile(path+".part", content[:1234], 0o600))
	require.NoError(t, c.DownloadImage(t.Context(), "", want, path, nil))
	require.True(t, bytes.Equal(content, read()))
	require.Equal(t, []string{"bytes=1234-"}, s.ranges)

	// If it is of something else, the next run begins anew.
	require.NoError(t, os.WriteFile(path+".part", []byte("something else"), 0o600))
	err = c.DownloadImage(t.Context(), "", want, path, nil)
	require.Equal(t, problem.Conflict, problem.KindOf(err), "%v", err)
	require.NoFileExists(t, path)
	require.NoError(t, c.DownloadImage(t.Context(), "", want, path, nil))
	err = c.DownloadImage(t.Context(), "", want, path, nil)
	require.Equal(t, problem.Conflict, problem.KindOf(err), "nothing is overwritten")
	read()

	s.tag = strings.Repeat("0", 64)
	err = c.DownloadImage(t.Context(), "", want, path, nil)
	require.Equal(t, problem.Conflict, problem.KindOf(err), "%v", err)
}
