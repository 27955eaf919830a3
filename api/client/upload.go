package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Uploaded is what the server has received.
type Uploaded struct {
	ID     string `json:"id"`
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// uploadState is what the server has of an upload.
type uploadState struct {
	Size   int64  `json:"size"` // bytes
	Whole  bool   `json:"whole"`
	SHA256 string `json:"sha256"` // of a whole one
}

// Upload sends a file to the server's disk under a new ID, which is what api.ImageCreate.Upload names then. A size below 0 is not
// known. After a lost connection it goes on where it was, if the file is an io.ReadSeeker. Progress, unless nil, is told how many
// bytes are gone. What arrived is compared with what was read.
func (c *Client) Upload(ctx context.Context, file io.Reader, size int64, progress func(sent int64)) (*Uploaded, error) {
	if seeker, ok := file.(io.ReadSeeker); ok {
		if _, err := seeker.Seek(0, io.SeekCurrent); err == nil { // else it is a pipe, say
			return c.UploadAs(ctx, api.NewID(), seeker, size, progress)
		}
	}
	body := newMeter(file, sha256.New(), 0, progress)
	sent := false
	r := &request{method: http.MethodPut, path: uploadPath(api.NewID())}
	r.source = func() (io.ReadCloser, int64, error) {
		if sent {
			return nil, 0, problem.New(problem.Unavailable, "the connection was lost during the upload").
				Because("what is read from a pipe cannot be sent again").Try("run it again, or upload from a file")
		}
		sent = true
		return body, size, nil
	}
	var out Uploaded
	if err := c.call(ctx, r, &out); err != nil {
		return nil, err
	}
	return body.compare(&out)
}

// uploadTries is how many connections in a row may bring nothing.
const uploadTries = 5

// UploadAs is Upload under an ID that the caller has chosen. What is there under it already, from an earlier call with the same file
// that did not come to its end, is not sent again.
func (c *Client) UploadAs(ctx context.Context, id string, file io.ReadSeeker, size int64, progress func(sent int64)) (*Uploaded, error) {
	return c.uploadTo(ctx, uploadPath(id), id, file, size, progress)
}

func (c *Client) uploadTo(ctx context.Context, path, id string, file io.ReadSeeker, size int64, progress func(sent int64)) (*Uploaded, error) {
	begin, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, problem.Wrap(err, problem.Invalid, "cannot read what should be uploaded")
	}
	known := int64(-1)
	for tries := 0; ; tries++ {
		var there uploadState
		err := c.call(ctx, &request{method: http.MethodGet, path: path}, &there)
		if err != nil && !problem.Is(err, problem.NotFound) {
			return nil, err
		}
		if there.Size > known {
			tries = 0
		}
		known = there.Size
		out, err := c.rest(ctx, path, id, file, begin, size, there, progress)
		var away *awayError
		switch {
		case err == nil:
			return out, nil
		case ctx.Err() != nil || !errors.As(err, &away):
			return nil, err
		case tries >= uploadTries:
			return nil, away.problem
		}
		c.config.Trace("the upload goes on after: %v", err)
	}
}

// rest sends what is not there yet, over one connection.
func (c *Client) rest(ctx context.Context, path, id string, file io.ReadSeeker, begin, size int64, there uploadState, progress func(int64)) (*Uploaded, error) {
	if _, err := file.Seek(begin, io.SeekStart); err != nil {
		return nil, problem.Wrap(err, problem.Internal, "cannot read the file from its beginning again")
	}
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(file, there.Size))
	if err != nil {
		return nil, problem.Wrap(err, problem.Invalid, "cannot read what should be uploaded")
	}
	body := newMeter(file, sum, n, progress)
	if there.Whole && n == there.Size && (size < 0 || n == size) && hex.EncodeToString(sum.Sum(nil)) == there.SHA256 {
		return &Uploaded{ID: id, Size: n, SHA256: there.SHA256}, nil // the answer was lost
	}
	if there.Whole || n < there.Size { // it is another file
		n = 0
		sum.Reset()
		if _, err := file.Seek(begin, io.SeekStart); err != nil {
			return nil, problem.Wrap(err, problem.Internal, "cannot read the file from its beginning again")
		}
		body = newMeter(file, sum, 0, progress)
	}
	r := &request{method: http.MethodPut, path: path, query: url.Values{"offset": {strconv.FormatInt(n, 10)}}, once: true}
	r.source = func() (io.ReadCloser, int64, error) {
		if size < 0 {
			return body, -1, nil
		}
		return body, size - n, nil
	}
	var out Uploaded
	err = c.call(ctx, r, &out)
	body.wait() // the transport may read on for a moment after it has given up
	if err != nil {
		return nil, err
	}
	return body.compare(&out)
}

func uploadPath(id string) string { return "/v1/uploads/" + url.PathEscape(id) }

// DeleteUpload removes an upload that no image was made of.
func (c *Client) DeleteUpload(ctx context.Context, id string) error {
	return c.call(ctx, &request{method: http.MethodDelete, path: uploadPath(id)}, nil)
}

// meter counts and sums what is read through it.
type meter struct {
	from     io.Reader
	sum      hash.Hash
	sent     int64 // with what was sent before
	progress func(int64)
	closed   chan struct{}
	once     sync.Once
}

func newMeter(from io.Reader, sum hash.Hash, before int64, progress func(int64)) *meter {
	return &meter{from: from, sum: sum, sent: before, progress: progress, closed: make(chan struct{})}
}

// Read implements io.Reader. An error of the file is a problem, so that it is not taken for one of the connection.
func (m *meter) Read(b []byte) (int, error) {
	n, err := m.from.Read(b)
	m.sum.Write(b[:n])
	m.sent += int64(n)
	if m.progress != nil && n > 0 {
		m.progress(m.sent)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = problem.Wrap(err, problem.Invalid, "cannot read what should be uploaded")
	}
	return n, err
}

// Close implements io.Closer: nothing is read after it. The file stays open.
func (m *meter) Close() error {
	m.once.Do(func() { close(m.closed) })
	return nil
}

// wait returns when nothing is read any more.
func (m *meter) wait() { <-m.closed }

// compare compares what arrived with what was read.
func (m *meter) compare(out *Uploaded) (*Uploaded, error) {
	m.wait()
	if sum := hex.EncodeToString(m.sum.Sum(nil)); out.Size != m.sent || out.SHA256 != sum {
		return nil, problem.New(problem.Internal, "the upload arrived damaged").
			Because("%d bytes with SHA-256 %s were sent, %d bytes with %s arrived", m.sent, sum, out.Size, out.SHA256).Try("run it again")
	}
	return out, nil
}
