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

// Upload sends a file to the server's disk under a new ID, which is what api.ImageCreate.Upload names then. A size below 0 is not
// known. After a lost connection the file is sent again from its beginning, if it is an io.Seeker. Progress, unless nil, is
// told how many bytes are gone. What arrived is compared with what was read.
func (c *Client) Upload(ctx context.Context, file io.Reader, size int64, progress func(sent int64)) (*Uploaded, error) {
	seeker, _ := file.(io.Seeker)
	var begin int64
	if seeker != nil {
		var err error
		if begin, err = seeker.Seek(0, io.SeekCurrent); err != nil {
			seeker = nil // a pipe, say
		}
	}
	var body *meter
	r := &request{method: http.MethodPut}
	r.source = func() (io.ReadCloser, int64, error) {
		if body != nil {
			if seeker == nil {
				return nil, 0, problem.New(problem.Unavailable, "the connection was lost during the upload").
					Because("what is read from a pipe cannot be sent again").Try("run it again, or upload from a file")
			}
			<-body.closed // the transport may read on for a moment after it has given up
			if _, err := seeker.Seek(begin, io.SeekStart); err != nil {
				return nil, 0, problem.Wrap(err, problem.Internal, "cannot read the file from its beginning again")
			}
		}
		// A new ID for every attempt: the server may not have noticed yet that the one before is dead.
		r.path = "/v1/uploads/" + api.NewID()
		body = &meter{from: file, sum: sha256.New(), progress: progress, closed: make(chan struct{})}
		return body, size, nil
	}
	var out Uploaded
	if err := c.call(ctx, r, &out); err != nil {
		return nil, err
	}
	<-body.closed
	if sum := hex.EncodeToString(body.sum.Sum(nil)); out.Size != body.sent || out.SHA256 != sum {
		return nil, problem.New(problem.Internal, "the upload arrived damaged").
			Because("%d bytes with SHA-256 %s were sent, %d bytes with %s arrived", body.sent, sum, out.Size, out.SHA256).Try("run it again")
	}
	return &out, nil
}

// DeleteUpload removes an upload that no image was made of.
func (c *Client) DeleteUpload(ctx context.Context, id string) error {
	return c.call(ctx, &request{method: http.MethodDelete, path: "/v1/uploads/" + url.PathEscape(id)}, nil)
}

// meter counts and sums what is read through it.
type meter struct {
	from     io.Reader
	sum      hash.Hash
	sent     int64
	progress func(int64)
	closed   chan struct{}
	once     sync.Once
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
