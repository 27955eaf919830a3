package storage

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api/problem"
)

// Timing of locks that several nodes may want. They are held for moments.
const (
	lockTick = 20 * time.Millisecond
	lockWait = 15 * time.Second
)

// together is for making a volume the child of an image's copy: others may do the same meanwhile, but nobody takes a copy
// away. Leave must be called. A pool that was released meanwhile is not_found.
func (d *Dir) together(ctx context.Context, root *os.Root, path string) (leave func(), err error) {
	turn := d.turn(path)
	turn.RLock()
	f, err := lockMarker(ctx, root, path, unix.LOCK_SH)
	if err != nil {
		turn.RUnlock()
		return nil, err
	}
	return func() {
		f.Close() //nolint:errcheck // ends the lock
		turn.RUnlock()
	}, nil
}

// alone is for taking away or replacing what volumes may be children of.
func (d *Dir) alone(ctx context.Context, root *os.Root, path string) (leave func(), err error) {
	turn := d.turn(path)
	turn.Lock()
	f, err := lockMarker(ctx, root, path, unix.LOCK_EX)
	if err != nil {
		turn.Unlock()
		return nil, err
	}
	return func() {
		f.Close() //nolint:errcheck // ends the lock
		turn.Unlock()
	}, nil
}

// turn is the lock among those who use the pool in this process: fair, which that of the file is not.
func (d *Dir) turn(path string) *sync.RWMutex {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.turns[path]
	if t == nil {
		t = &sync.RWMutex{}
		d.turns[path] = t
	}
	return t
}

// lockMarker takes the lock on the pool's marker, which is that among nodes that share the directory. Where the file system
// has no locks, a pool that is not shared needs none.
func lockMarker(ctx context.Context, root *os.Root, path string, how int) (*os.File, error) {
	limit := time.NewTimer(lockWait)
	defer limit.Stop()
	t := time.NewTicker(lockTick)
	defer t.Stop()
	for {
		f, err := root.OpenFile(markerName, os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, problem.New(problem.NotFound, "%s is not a pool on this node any more", path)
		}
		if err != nil {
			return nil, problem.Wrap(err, problem.Unavailable, "the marker of %s cannot be opened", path)
		}
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if errors.Is(err, unix.ESTALE) {
			err = unix.EINTR // a network file system has opened what another node has just removed
		}
		if err == nil {
			if same(root, markerName, f) {
				return f, nil
			}
			err = unix.EINTR // the pool was released, and perhaps made anew: look again
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			var m marker
			if jerr := json.NewDecoder(io.LimitReader(f, 1<<16)).Decode(&m); jerr == nil && !m.Shared {
				return f, nil
			}
			return nil, errors.Join(problem.Wrap(err, problem.Unavailable, "the marker of shared pool %s cannot be locked", path), f.Close())
		}
		f.Close() //nolint:errcheck // nothing was written
		select {
		case <-t.C:
		case <-limit.C:
			return nil, problem.New(problem.Unavailable, "pool %s is busy", path).Because("another node has held its lock for %s", lockWait).
				Try("see whether all nodes of the pool are alive; the file server drops the lock of one that is dead after a while")
		case <-ctx.Done():
			return nil, problem.New(problem.Cancelled, "waiting for pool %s was cancelled", path)
		}
	}
}
