package storage

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// helped is a source of images that asks another node first, which has been asked to give its copy away. It counts what it brings.
type helped struct {
	Source
	peers Peers
	offer *steps.DiskOffer // nil: there is none

	bytes atomic.Int64
	mu    sync.Mutex
	from  string
}

// PeerImage opens the copy of another node, byte by byte as the file is; nil: there is none.
func (h *helped) PeerImage(ctx context.Context) (io.ReadCloser, error) {
	if h.offer == nil {
		return nil, nil
	}
	in, err := h.peers.Fetch(ctx, *h.offer)
	if err != nil {
		return nil, err
	}
	return h.count(h.offer.Address, flat(in)), nil
}

// OpenImage implements Source.
func (h *helped) OpenImage(ctx context.Context, image string) (io.ReadCloser, int64, error) {
	in, n, err := h.Source.OpenImage(ctx, image)
	if err != nil {
		return nil, 0, err
	}
	return h.count("", in), n, nil
}

func (h *helped) count(from string, in io.ReadCloser) io.ReadCloser {
	h.mu.Lock()
	h.from = from
	h.mu.Unlock()
	return struct {
		io.Reader
		io.Closer
	}{alive{in, func(n int) { h.bytes.Add(int64(n)) }}, in}
}

// made says what it took to make a disk.
func (h *helped) made(began time.Time) steps.DiskMade {
	h.mu.Lock()
	defer h.mu.Unlock()
	return steps.DiskMade{Fetched: h.bytes.Load(), Peer: h.from, Took: time.Since(began)}
}

// fromPeer is what a source can do that knows another node with a copy.
type fromPeer interface {
	PeerImage(ctx context.Context) (io.ReadCloser, error)
}

// flat makes a file again of the stream of a disk, holes and all.
func flat(in io.ReadCloser) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		to := &flatSink{w: w}
		err := readDisk(in, to)
		if err == nil {
			err = to.zeros(to.size)
		}
		w.CloseWithError(err) //nolint:errcheck // it never fails
	}()
	return flatStream{r, in}
}

type flatStream struct {
	*io.PipeReader
	in io.Closer
}

func (f flatStream) Close() error { return errors.Join(f.PipeReader.Close(), f.in.Close()) }

// flatSink writes what comes one after the other.
type flatSink struct {
	w        io.Writer
	at, size int64
}

func (s *flatSink) begin(size, _ int64) error {
	s.size = size
	return nil
}

func (s *flatSink) put(at int64, b []byte) error {
	if err := s.zeros(at); err != nil {
		return err
	}
	n, err := s.w.Write(b)
	s.at += int64(n)
	return err
}

var nothingAtAll [64 << 10]byte

// zeros writes zeros up to an offset.
func (s *flatSink) zeros(to int64) error {
	for s.at < to {
		n, err := s.w.Write(nothingAtAll[:min(to-s.at, int64(len(nothingAtAll)))])
		s.at += int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// offerImage offers an image's copy after a look at whether it is there.
func offerImage(ctx context.Context, pool Pool, peers Peers, c steps.CachedImage) (steps.DiskOffer, error) {
	copies, ok := pool.(Copies)
	if !ok {
		return steps.DiskOffer{}, problem.New(problem.Unsupported, "this node keeps no copies of images that it could give away")
	}
	d, err := copies.OpenCopy(ctx, c)
	if err != nil {
		return steps.DiskOffer{}, err
	}
	size := d.Size()
	if err := d.Close(); err != nil {
		return steps.DiskOffer{}, err
	}
	// Each offer is one of its own: several nodes may fetch the same image.
	offer, err := peers.Offer(ctx, api.NewID(), func(ctx context.Context) (Disk, error) { return copies.OpenCopy(ctx, c) })
	offer.Size = size
	return offer, err
}
