package storage

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Copies is what a pool can do that keeps copies of images as files.
type Copies interface {
	// OpenCopy opens an image's copy, to be given to another node. One that is not there is not_found.
	OpenCopy(ctx context.Context, c steps.CachedImage) (Disk, error)
}

// The copies of images in a pool are a cache. When room gets short, those that no volume needs go, those first that were used
// longest ago; those that were used just now stay, because a volume may be about to be made on them.
const (
	keepFree   = 10 // of a hundred parts of the pool
	justUsed   = 10 * time.Minute
	copyCalled = "the copy of image %s"
)

// OpenCopy implements Copies.
func (d *Dir) OpenCopy(_ context.Context, c steps.CachedImage) (Disk, error) {
	if !isSHA256(c.SHA256) {
		return nil, problem.New(problem.Invalid, "the checksum of image %s is %q", c.Image, c.SHA256)
	}
	root, err := d.open(c.Pool, c.PoolPath)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	name := backingDir + "/" + c.SHA256
	if info, err := root.Lstat(name); err != nil || !info.Mode().IsRegular() {
		return nil, problem.New(problem.NotFound, copyCalled+" is not here", c.Image)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, copyCalled+" cannot be opened", c.Image)
	}
	used(root, name)
	disk, err := openDisk(f)
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, copyCalled+" cannot be looked at", c.Image)
	}
	return disk, nil
}

// used notes that a copy is used now. That it cannot be noted may cost a download later.
func used(root *os.Root, name string) {
	if info, err := root.Lstat(name); err == nil {
		_ = root.Chtimes(name, time.Now(), info.ModTime())
	}
}

// makeRoom removes copies that no volume needs, until there is room for so many bytes besides what is to be kept free. That it is
// not enough is seen by those who need the room.
func (d *Dir) makeRoom(ctx context.Context, root *os.Root, path string, need int64) {
	enough := func() bool {
		u := d.room(path)
		return u.Error != "" || u.Free-need >= u.Capacity*keepFree/100
	}
	if enough() {
		return
	}
	for _, c := range idle(root, time.Now().Add(-justUsed)) {
		err := d.evict(ctx, root, path, c)
		switch {
		case err == nil:
			d.log.Info("an image's copy was removed: the pool is short of room", "pool", path, "sha256", c)
		case !problem.Is(err, problem.InUse):
			d.log.Warn("an image's copy cannot be removed", "pool", path, "sha256", c, "error", err)
			return
		}
		if enough() {
			return
		}
	}
}

// idle returns the checksums of the copies that were not used since, those that were used longest ago first.
func idle(root *os.Root, since time.Time) []string {
	entries, err := fs.ReadDir(root.FS(), backingDir)
	if err != nil {
		return nil
	}
	type copied struct {
		sha  string
		used time.Time
	}
	var all []copied
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !isSHA256(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		if at := accessed(info); at.Before(since) {
			all = append(all, copied{e.Name(), at})
		}
	}
	slices.SortFunc(all, func(a, b copied) int { return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.sha, b.sha)) })
	out := make([]string, len(all))
	for i, c := range all {
		out[i] = c.sha
	}
	return out
}

// backingHeader reads the header of an image's copy, which may have been taken away since it was found.
func backingHeader(root *os.Root, name, image string) (*qcow2.Header, error) {
	h, err := header(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, problem.New(problem.Unavailable, copyCalled+" is gone again", image).Try("try again")
	}
	return h, problem.Wrap(err, problem.Internal, copyCalled+" cannot be read", image)
}

// roomIn says how much room there is for a pool.
func roomIn(path string) api.PoolUsage { return usage("", path) }
