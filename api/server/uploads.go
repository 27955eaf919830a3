package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Uploaded is the answer to an upload.
type Uploaded struct {
	ID     string `json:"id"`
	Size   int64  `json:"size" doc:"Bytes"`
	SHA256 string `json:"sha256"`
}

// partSuffix marks an upload that has not ended; renaming is what ends it.
const partSuffix = ".part"

// uploads keeps what was sent, until an image is made from it or it is too old.
type uploads struct {
	dir   string // uploads are in dir/uploads
	limit int64  // bytes of one upload

	mu   sync.Mutex
	busy map[string]*writing // by the ID that is being written now
}

// writing is a request that writes an upload.
type writing struct {
	stop func()        // nil: it cannot be stopped
	done chan struct{} // closed when it is over
}

func (u *uploads) path(id string) string { return filepath.Join(u.dir, "uploads", id) }

// uploadInput is a file that is sent.
type uploadInput struct {
	ID string `path:"id" doc:"UUID, chosen by the client"`
	FileBody
}

// FileBody takes the body as it comes, without reading it into memory.
type FileBody struct {
	Offset int64 `query:"offset" default:"-1" minimum:"-1" doc:"Byte of the file that the body begins with; -1: the body is the whole file, and is thrown away if the connection is lost"`

	r *http.Request
	w http.ResponseWriter
}

// Resolve implements huma.Resolver.
func (in *FileBody) Resolve(ctx huma.Context) []error {
	in.r, in.w = humachi.Unwrap(ctx)
	return nil
}

// takeUpload keeps what is sent.
func (s *Server) takeUpload(id string, in FileBody) (*struct{ Body *Uploaded }, error) {
	offset := in.Offset
	if offset > s.uploads.limit || in.r.ContentLength > s.uploads.limit-max(0, offset) {
		return nil, s.uploads.tooLarge()
	}
	body := &patientReader{Reader: in.r.Body, control: http.NewResponseController(in.w)}
	got, err := s.uploads.take(id, offset, body)
	_ = body.control.SetWriteDeadline(time.Now().Add(answerWithin))
	return &struct{ Body *Uploaded }{got}, err
}

func (s *Server) routeUploads() {
	handle(s, huma.Operation{
		OperationID: "put-upload", Method: http.MethodPut, Path: "/v1/uploads/{id}", Tags: []string{"images"}, Summary: "Send a file",
		Description: "The body is the file itself. Then make an image of it. Sent again, it replaces what was sent before. With an offset, what arrives before the connection is lost is kept, " +
			"and a request with a later offset goes on from there: GET tells where.",
		RequestBody: &huma.RequestBody{Required: true, Content: binaryContent()},
	}, func(ctx context.Context, in *uploadInput) (*struct{ Body *Uploaded }, error) {
		if err := uploadAllowed(ctx, in.ID); err != nil {
			return nil, err
		}
		return s.takeUpload(in.ID, in.FileBody)
	})
	handle(s, huma.Operation{
		OperationID: "get-upload", Method: http.MethodGet, Path: "/v1/uploads/{id}", Tags: []string{"images"}, Summary: "Tell how much of a file has arrived",
	}, func(ctx context.Context, in *uploadID) (*struct{ Body *UploadState }, error) {
		if err := uploadAllowed(ctx, in.ID); err != nil {
			return nil, err
		}
		state, err := s.uploads.state(in.ID)
		return &struct{ Body *UploadState }{state}, err
	})
	handle(s, huma.Operation{
		OperationID: "delete-upload", Method: http.MethodDelete, Path: "/v1/uploads/{id}", Tags: []string{"images"}, Summary: "Throw an upload away",
		Description: "It is content if there is none.",
	}, func(ctx context.Context, in *uploadID) (*nothing, error) {
		if err := uploadAllowed(ctx, in.ID); err != nil {
			return nil, err
		}
		return nil, s.uploads.remove(in.ID)
	})
}

type uploadID struct {
	ID string `path:"id" doc:"UUID"`
}

func uploadAllowed(ctx context.Context, id string) error {
	if err := mayUpload(handleOf(ctx)); err != nil {
		return err
	}
	if !api.IsUUID(id) {
		return wrong("path.id", clip(id), "must be a UUID")
	}
	return nil
}

// patientReader moves the deadlines along while a long body makes progress.
type patientReader struct {
	io.Reader
	control *http.ResponseController

	mu   sync.Mutex
	over bool
}

var errOvertaken = errors.New("another request goes on with it")

func (p *patientReader) Read(b []byte) (int, error) {
	if !p.wait() {
		return 0, errOvertaken
	}
	n, err := p.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) && !p.wait() {
		err = errOvertaken
	}
	return n, err
}

// wait gives the sender some more time, unless somebody else has overtaken it.
func (p *patientReader) wait() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over {
		deadline := time.Now().Add(idle)
		_ = p.control.SetReadDeadline(deadline) // not every connection has them
		_ = p.control.SetWriteDeadline(deadline.Add(answerWithin))
	}
	return !p.over
}

// stop makes Read return.
func (p *patientReader) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	_ = p.control.SetReadDeadline(time.Unix(1, 0))
}

// take receives a body: the whole file, or, from an offset of 0 or more, what comes from there on.
func (u *uploads) take(id string, offset int64, body *patientReader) (*Uploaded, error) {
	if offset < 0 {
		return u.receive(id, body)
	}
	if err := u.overtake(id, body.stop); err != nil {
		return nil, err
	}
	defer u.finish(id)
	return u.resume(id, offset, body)
}

// receive writes body to disk under id. Only a body that came whole is ever seen under that name.
func (u *uploads) receive(id string, body io.Reader) (*Uploaded, error) {
	if !u.begin(id) {
		return nil, problem.New(problem.Conflict, "upload %s is being written", id).Because("another request is sending it").Try("use another ID")
	}
	defer u.finish(id)
	path := u.path(id)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, diskProblem(err)
	}
	f, err := os.OpenFile(path+partSuffix, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, diskProblem(err)
	}
	got, err := u.copy(f, body)
	if cerr := f.Close(); err == nil && cerr != nil {
		err = diskProblem(cerr)
	}
	if err == nil {
		if rerr := os.Rename(path+partSuffix, path); rerr != nil {
			err = diskProblem(rerr)
		}
	}
	if err != nil {
		_ = os.Remove(path + partSuffix) // Clean takes it otherwise
		return nil, err
	}
	got.ID = id
	return got, nil
}

func (u *uploads) copy(f *os.File, body io.Reader) (*Uploaded, error) {
	sum := sha256.New()
	src := &failing{Reader: io.LimitReader(body, u.limit+1)}
	n, err := io.CopyBuffer(io.MultiWriter(f, sum), src, make([]byte, 1<<20))
	switch {
	case n > u.limit:
		return nil, u.tooLarge()
	case src.err != nil:
		return nil, problem.New(problem.Invalid, "the upload broke off after %d bytes", n).Because("%v", src.err).Try("send it again")
	case err != nil:
		return nil, diskProblem(err)
	}
	if err := f.Sync(); err != nil {
		return nil, diskProblem(err)
	}
	return &Uploaded{Size: n, SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}

// failing tells whether it was the reading that failed.
type failing struct {
	io.Reader
	err error
}

func (f *failing) Read(b []byte) (int, error) {
	n, err := f.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

func (u *uploads) tooLarge() error {
	return problem.New(problem.TooLarge, "the upload is too large").Because("at most %d bytes are taken", u.limit).Try("make the image smaller, or import it from a path on the server")
}

func diskProblem(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return problem.New(problem.NoCapacity, "the server has no room for uploads").Try("make room in its data directory")
	}
	return hidden(err, problem.Unavailable, "look into the server's log", "the upload cannot be stored")
}

func (u *uploads) remove(id string) error {
	if !u.begin(id) {
		return problem.New(problem.Conflict, "upload %s is being written", id).Try("wait until it has ended")
	}
	defer u.finish(id)
	for _, path := range []string{u.path(id), u.path(id) + partSuffix} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return diskProblem(err)
		}
	}
	return nil
}

func (u *uploads) begin(id string) bool { return u.enter(id, nil) == nil }

// enter begins to write an upload, or returns who does so already.
func (u *uploads) enter(id string, stop func()) *writing {
	id = strings.ToLower(id)
	u.mu.Lock()
	defer u.mu.Unlock()
	if w := u.busy[id]; w != nil {
		return w
	}
	u.busy[id] = &writing{stop: stop, done: make(chan struct{})}
	return nil
}

func (u *uploads) finish(id string) {
	id = strings.ToLower(id)
	u.mu.Lock()
	defer u.mu.Unlock()
	close(u.busy[id].done)
	delete(u.busy, id)
}

// CleanUploads removes the uploads, whole and broken ones, that nobody has written to for age, and returns how many.
func (s *Server) CleanUploads(now time.Time, age time.Duration) (int, error) {
	u := &s.uploads
	entries, err := os.ReadDir(filepath.Join(u.dir, "uploads"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, diskProblem(err)
	}
	n := 0
	for _, e := range entries {
		id := strings.TrimSuffix(e.Name(), partSuffix)
		info, err := e.Info()
		if err != nil || !api.IsUUID(id) || now.Sub(info.ModTime()) < age || !u.begin(id) {
			continue
		}
		if os.Remove(u.path(e.Name())) == nil {
			n++
		}
		u.finish(id)
	}
	return n, nil
}
