// Package images is the server's image store: a directory with one qcow2 file per image, called by the image's ID. What
// comes in is checked as if it were made to do harm, because it may be.
package images

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Store is the image store below one data directory:
//
//	images/ID         a stored image, complete and checked
//	images/ID.tmp     one that is being imported
//	images/ID.src.tmp what it is made of, and
//	images/ID.src.json what is known of that while it is fetched from elsewhere
//	uploads/ID        what a client sent, until it is imported
//	exports/ID.FORMAT.SHA256 an image in another format, for a while
type Store struct {
	images, uploads, exports string

	allowed   []string
	maxSize   int64
	remote    remote
	fetchTime time.Duration
	unpacked  int64 // bytes that an image may have unpacked, however small it is

	mu   sync.Mutex
	busy map[string]chan struct{} // image ID -> closed when its import or removal is over
}

var _ storage.ImageStore = (*Store)(nil)

// Options says what may be imported.
type Options struct {
	// Dirs are the directories that files on the server can be imported from; none: from none.
	Dirs []string
	// MaxSize bounds the bytes of an image, as it comes and as it is kept; 0: 256 GiB.
	MaxSize int64
	// URLs are the beginnings of URLs, like https://HOST/DIRECTORY/, that images can be fetched from; none: from nowhere.
	URLs []string
	// FetchTime bounds how long an image may take to come from there, with all pauses; 0: 6 hours.
	FetchTime time.Duration
}

// Open returns the store in the directory data, which it makes if need be.
func Open(data string, o Options) (*Store, error) {
	s := &Store{
		images: filepath.Join(data, "images"), uploads: filepath.Join(data, "uploads"), exports: filepath.Join(data, "exports"),
		busy:    map[string]chan struct{}{},
		maxSize: o.MaxSize, unpacked: unpackedAlways, fetchTime: o.FetchTime,
	}
	if s.fetchTime == 0 {
		s.fetchTime = 6 * time.Hour
	}
	var err error
	if s.remote, err = newRemote(o.URLs); err != nil {
		return nil, err
	}
	if s.maxSize == 0 {
		s.maxSize = 256 * api.GiB
	}
	for _, d := range []string{s.images, s.uploads, s.exports} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, problem.Wrap(err, problem.Internal, "the image store cannot be made")
		}
	}
	for _, a := range o.Dirs {
		if !filepath.IsAbs(a) {
			return nil, problem.New(problem.Invalid, "image directory %q is not an absolute path", a)
		}
		s.allowed = append(s.allowed, filepath.Clean(a))
	}
	return s, nil
}

// Uploads is the directory in which uploads are kept, each called by its ID.
func (s *Store) Uploads() string { return s.uploads }

// RemoveUpload removes an upload; none is fine.
func (s *Store) RemoveUpload(id string) error {
	if !api.IsUUID(id) {
		return problem.New(problem.Invalid, "%q is not the ID of an upload", id)
	}
	return remove(filepath.Join(s.uploads, id))
}

// OpenImage opens a stored image for reading and says how many bytes it has.
func (s *Store) OpenImage(id string) (*os.File, int64, error) {
	path, err := s.path(id)
	if err != nil {
		return nil, 0, err
	}
	f, size, err := openRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, problem.New(problem.NotFound, "image %s has no file", id).Because("%s is missing", path)
	}
	return f, size, problem.Wrap(err, problem.Internal, "image %s cannot be opened", id)
}

func (s *Store) path(id string) (string, error) {
	if !api.IsUUID(id) {
		return "", problem.New(problem.Invalid, "%q is not the ID of an image", id)
	}
	return filepath.Join(s.images, id), nil
}

// List returns the IDs of the images that have a file, whole or half-made.
func (s *Store) List() ([]string, error) {
	var entries []os.DirEntry
	for _, dir := range []string{s.images, s.exports} {
		e, err := os.ReadDir(dir)
		if err != nil {
			return nil, problem.Wrap(err, problem.Internal, "the image store cannot be listed")
		}
		entries = append(entries, e...)
	}
	seen := map[string]bool{}
	var out []string
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), ".")
		if api.IsUUID(id) && !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	return out, nil
}

// Remove implements storage.ImageStore.
func (s *Store) Remove(ctx context.Context, id string) error {
	path, err := s.path(id)
	if err != nil {
		return err
	}
	leave, err := s.enter(ctx, id)
	if err != nil {
		return err
	}
	defer leave()
	return errors.Join(remove(path), remove(path+madeExt), remove(path+sourceExt), remove(path+notesExt), remove(path+notesExt+madeExt), removeAll(filepath.Join(s.exports, id+".")))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return problem.Wrap(err, problem.Internal, "file %s cannot be removed", path)
	}
	return nil
}

// enter waits until nobody else works on the image: an attempt that was given up may still be at it.
func (s *Store) enter(ctx context.Context, id string) (leave func(), err error) {
	for {
		s.mu.Lock()
		wait, taken := s.busy[id]
		if !taken {
			done := make(chan struct{})
			s.busy[id] = done
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.busy, id)
				s.mu.Unlock()
				close(done)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, problem.New(problem.Cancelled, "work on image %s was cancelled", id)
		}
	}
}
