//go:build ceph && cgo

package rbd

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// A node notes of which pools it has seen the marker, or was about to write it. A pool that was never noted has nothing of this node in
// it, so that there is nothing to release: else a mistake in how its cluster is reached would be in the way of taking it back, too.

func (d *Driver) noteFile(pool string) string { return filepath.Join(d.cfg.NoteDir, pool) }

// note makes a note that outlives a power cut, before anything is written to the pool.
func (d *Driver) note(p steps.PoolOnNode) error {
	d.mu.Lock()
	known := d.noted[p.Pool]
	d.mu.Unlock()
	if known || d.cfg.NoteDir == "" {
		return nil
	}
	err := os.MkdirAll(d.cfg.NoteDir, 0o700)
	if err == nil {
		err = touch(d.noteFile(p.Pool))
	}
	if err != nil {
		return problem.Wrap(err, problem.Unavailable, "pool %s cannot be noted on this node", p.Pool)
	}
	d.mu.Lock()
	d.noted[p.Pool] = true
	d.mu.Unlock()
	return nil
}

func touch(file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return err
	}
	return durable(file)
}

// touched reports whether there may be something of this node in the pool. Without a place for notes, or when it cannot be read, there may.
func (d *Driver) touched(p steps.PoolOnNode) bool {
	if d.cfg.NoteDir == "" {
		return true
	}
	_, err := os.Lstat(d.noteFile(p.Pool))
	return !errors.Is(err, fs.ErrNotExist)
}

// unnote forgets a pool that was released, or is not this node's any more.
func (d *Driver) unnote(pool string) error {
	if d.cfg.NoteDir == "" {
		return nil
	}
	d.mu.Lock()
	delete(d.noted, pool)
	d.mu.Unlock()
	if err := os.Remove(d.noteFile(pool)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return problem.Wrap(err, problem.Internal, "the note of pool %s cannot be removed", pool)
	}
	return nil
}
