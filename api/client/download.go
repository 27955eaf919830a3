package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Download says what of an image is wanted, and what it must be.
type Download struct {
	Image  string // name or ID
	Format string // one that it was exported to; empty: qcow2, as it is kept
	// Volume and Export are, for a volume, its name or ID and the operation that has exported it. Then there is no Image.
	Volume, Export string
	SHA256         string // that it must have
	Size           int64  // bytes
}

// PartExt is what a file is called behind its name until all of it is there.
const PartExt = ".part"

// DownloadImage writes an image, or an exported volume, to the new file path. What an earlier download has left there, in path.part, is gone on with, and
// so is a transfer that breaks. Progress, unless nil, is told how many bytes are there. Only what has the checksum gets the name.
func (c *Client) DownloadImage(ctx context.Context, project string, d Download, path string, progress func(have int64)) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return problem.New(problem.Conflict, "%s is there already", path).Try("give another name, or remove it first")
	}
	if d.Format == "" {
		d.Format = api.FormatQCOW2
	}
	part := path + PartExt
	f, err := os.OpenFile(part, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return problem.Wrap(err, problem.Invalid, "cannot write %s", part)
	}
	err = c.fill(ctx, project, d, f, progress)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
		if err == nil {
			err = os.Rename(part, path)
		}
		return problem.Wrap(err, problem.Internal, "cannot write %s", path)
	}
	f.Close() //nolint:errcheck // what is in it counts only once its checksum is right
	if problem.Is(err, problem.Conflict) {
		_ = os.Remove(part) // it is of no use
	}
	return err
}

// fill brings f to what d says, beginning with what it has.
func (c *Client) fill(ctx context.Context, project string, d Download, f *os.File, progress func(int64)) error {
	sum := sha256.New()
	have, err := io.Copy(sum, f)
	if err == nil && have > d.Size {
		have, err = 0, f.Truncate(0)
		sum.Reset()
	}
	if err != nil {
		return problem.Wrap(err, problem.Invalid, "cannot read %s", f.Name())
	}
	for idle := 0; have < d.Size; idle++ {
		to := &filler{out: f, sum: sum, have: have, progress: progress}
		if err := c.piece(ctx, project, d, to); err != nil {
			return err
		}
		if to.have > have {
			idle = 0
		}
		if have = to.have; idle >= 3 {
			return problem.New(problem.Unavailable, "the connection to %s is lost again and again", c.base).Try("run it again: it goes on where it was")
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != d.SHA256 {
		return problem.New(problem.Conflict, "the download arrived damaged").Because("its SHA-256 is %s, expected was %s", got, d.SHA256).Try("run it again")
	}
	return nil
}

// piece brings what one connection gives. That it is lost is no error.
func (c *Client) piece(ctx context.Context, project string, d Download, to *filler) error {
	path, query := item(api.KindImage, project, d.Image)+"/content", url.Values{"format": {d.Format}}
	if d.Volume != "" {
		path, query = item(api.KindVolume, project, d.Volume)+"/exports/"+url.PathEscape(d.Export), nil
	}
	resp, err := c.open(ctx, &request{
		method: http.MethodGet, path: path, query: query,
		header: http.Header{"Accept": {"application/octet-stream, application/problem+json"}, "If-Range": {etagOf(d.SHA256)}, "Range": {fmt.Sprintf("bytes=%d-", to.have)}},
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if to.have > 0 && resp.StatusCode != http.StatusPartialContent || resp.Header.Get("ETag") != etagOf(d.SHA256) {
		return problem.New(problem.Conflict, "the image on the server is not the one that was asked for").Because("its ETag is %s", resp.Header.Get("ETag")).Try("run it again")
	}
	_, _ = io.Copy(to, io.LimitReader(resp.Body, d.Size-to.have))
	if ctx.Err() != nil {
		return interrupted(ctx, nil)
	}
	return problem.Wrap(to.err, problem.Invalid, "cannot write %s", to.out.Name())
}

func etagOf(sum string) string { return `"` + sum + `"` }

// filler writes what comes, and sums it.
type filler struct {
	out      *os.File
	sum      hash.Hash
	have     int64
	progress func(int64)
	err      error // of the file
}

func (f *filler) Write(b []byte) (int, error) {
	n, err := f.out.WriteAt(b, f.have)
	f.sum.Write(b[:n])
	f.have += int64(n)
	f.err = err
	if f.progress != nil {
		f.progress(f.have)
	}
	return n, err
}
