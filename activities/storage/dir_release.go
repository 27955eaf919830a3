package storage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Release implements Pool. What cannot be a pool was never one, so that there is nothing to be released: else a mistake in a
// path could not be taken back.
func (d *Dir) Release(ctx context.Context, p steps.PoolOnNode) error {
	if err := checkPool(p); err != nil {
		return err
	}
	root, err := d.open(p.Pool, p.Path)
	if problem.Is(err, problem.NotFound) || problem.Is(err, problem.Conflict) || problem.Is(err, problem.Invalid) || errors.Is(err, errNoMarker) {
		return nil // not ours, or not any more
	}
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	leave, err := d.alone(ctx, root, p.Path)
	if problem.Is(err, problem.NotFound) {
		return nil // another agent was faster
	}
	if errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.ENOTSUP) {
		// For want of locks it was refused, so nobody has made anything in it, which is seen below.
		leave, err = func() {}, nil
	}
	if err != nil {
		return err
	}
	defer leave()
	m, err := readMarker(root)
	if err != nil {
		return problem.Wrap(err, problem.Unavailable, "the marker of %s cannot be read", p.Path)
	}
	for _, dir := range []string{volumesDir, checkpointsDir} {
		files, err := entries(root, dir)
		if err != nil {
			return problem.Wrap(err, problem.Unavailable, "pool %s cannot be read", p.Path)
		}
		if len(files) > 0 {
			return problem.New(problem.InUse, "pool %s is not empty", p.Path).Because("%s has %d files, the first is %s", dir, len(files), files[0].Name()).
				Try("delete the VMs in it, or run an audit with repair if nobody owns them")
		}
		if err := removeEmpty(root, dir); err != nil { // never with what has just come into it
			return problem.Wrap(err, problem.InUse, "%s of pool %s cannot be removed", dir, p.Path)
		}
	}
	for _, dir := range []string{backingDir, seedsDir} {
		err := removeOurs(root, dir)
		if err == nil {
			err = removeEmpty(root, dir)
		}
		if err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) { // what others have put there stays
			return problem.Wrap(err, problem.Internal, "%s of pool %s cannot be removed", dir, p.Path)
		}
	}
	// The marker goes last, so that an interrupted release can be done again.
	if err := root.Remove(markerName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return problem.Wrap(err, problem.Internal, "the marker of pool %s cannot be removed", p.Path)
	}
	removeDirs(p.Path, m.Made)
	return nil
}

// entries lists a directory of a pool; what is none, or not there, has nothing of ours in it.
func entries(root *os.Root, dir string) ([]fs.DirEntry, error) {
	info, err := root.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return fs.ReadDir(root.FS(), dir)
}

// removeOurs removes the files in a directory that have names which this driver gives.
func removeOurs(root *os.Root, dir string) error {
	files, err := entries(root, dir)
	if err != nil {
		return err
	}
	for _, e := range files {
		if !ours(dir, e) {
			continue
		}
		name := dir + "/" + e.Name()
		if e.IsDir() {
			err = root.RemoveAll(name)
		} else {
			err = root.Remove(name)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// ours reports whether a file in a directory of a pool is called as one that this driver makes, whole or half-made.
func ours(dir string, e fs.DirEntry) bool {
	name, half := strings.CutSuffix(e.Name(), tempExt)
	switch {
	case dir == seedsDir && e.IsDir():
		id, work := strings.CutSuffix(e.Name(), workExt)
		return work && api.IsUUID(id)
	case !e.Type().IsRegular():
		return false
	case dir == backingDir && half: // SHA256.tmp, SHA256.AGENT.tmp, or what tryOut leaves when it is interrupted
		sha, _, _ := strings.Cut(name, ".")
		return isSHA256(sha) || strings.HasPrefix(name, probeName)
	case dir == backingDir && strings.HasPrefix(name, probeName):
		return true
	}
	kind, _ := classify(dir, name)
	return kind != KindOther
}

// removeEmpty removes a directory of a pool that is empty, and leaves what somebody has put in its place.
func removeEmpty(root *os.Root, dir string) error {
	info, err := root.Lstat(dir)
	if err == nil && !info.IsDir() {
		return nil
	}
	if err == nil {
		err = root.Remove(dir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
