package server

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// overtakeWithin is how long a request that was overtaken may take to notice.
const overtakeWithin = 10 * time.Second

// UploadState is how much of a file has arrived.
type UploadState struct {
	ID     string `json:"id"`
	Size   int64  `json:"size" doc:"Bytes that are there; a PUT with this offset goes on"`
	Whole  bool   `json:"whole" doc:"It has come to its end"`
	SHA256 string `json:"sha256,omitempty" doc:"Of a whole one"`
}

// overtake begins to write an upload that can be gone on with. Who writes it already has lost its client, who is back here: a
// connection that is dead can look alive for a while.
func (u *uploads) overtake(id string, stop func()) error {
	limit := time.NewTimer(overtakeWithin)
	defer limit.Stop()
	for {
		w := u.enter(id, stop)
		if w == nil {
			return nil
		}
		if w.stop == nil {
			return problem.New(problem.Conflict, "upload %s is being written", id).Because("another request is sending it").Try("use another ID")
		}
		w.stop()
		select {
		case <-w.done:
		case <-limit.C:
			return problem.New(problem.Unavailable, "upload %s is being written", id).Because("another request is sending it").Try("try again")
		}
	}
}

// resume writes body to what is there, from an offset on. What comes is kept, whatever becomes of the connection.
func (u *uploads) resume(id string, offset int64, body io.Reader) (*Uploaded, error) {
	path := u.path(id)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, diskProblem(err)
	}
	f, err := os.OpenFile(path+partSuffix, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, diskProblem(err)
	}
	defer f.Close() //nolint:errcheck // synced below where it counts
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, diskProblem(err)
	case info.Size() < offset:
		return nil, problem.New(problem.Conflict, "upload %s has %d bytes", id, info.Size()).Because("it cannot go on at %d", offset).Try("ask how much is there: GET /v1/uploads/%s", id)
	}
	if err := f.Truncate(offset); err != nil {
		return nil, diskProblem(err)
	}
	src := &failing{Reader: io.LimitReader(body, u.limit-offset+1)}
	n, err := io.CopyBuffer(io.NewOffsetWriter(f, offset), src, make([]byte, 1<<20))
	switch {
	case offset+n > u.limit:
		_ = f.Truncate(0)
		return nil, u.tooLarge()
	case src.err != nil:
		return nil, problem.New(problem.Invalid, "the upload broke off after %d bytes", offset+n).Because("%v", src.err).Try("go on with the rest")
	case err != nil:
		return nil, diskProblem(err)
	}
	sum, err := sumFile(f)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(path+partSuffix, path)
	}
	if err != nil {
		return nil, diskProblem(err)
	}
	return &Uploaded{ID: id, Size: offset + n, SHA256: sum}, nil
}

func sumFile(f *os.File) (string, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	sum := sha256.New()
	_, err := io.Copy(sum, f)
	return hex.EncodeToString(sum.Sum(nil)), err
}

// state tells how much of an upload is there. One that is not there at all is not_found.
func (u *uploads) state(id string) (*UploadState, error) {
	out := &UploadState{ID: id, Whole: true}
	f, err := os.Open(u.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		out.Whole = false
		f, err = os.Open(u.path(id) + partSuffix)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, problem.New(problem.NotFound, "there is no upload %s", id).Try("send it from its beginning")
	}
	if err != nil {
		return nil, diskProblem(err)
	}
	defer f.Close() //nolint:errcheck // was only read
	info, err := f.Stat()
	if err == nil && out.Whole {
		out.SHA256, err = sumFile(f)
	}
	if err != nil {
		return nil, diskProblem(err)
	}
	out.Size = info.Size()
	return out, nil
}
