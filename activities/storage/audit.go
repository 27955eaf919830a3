package storage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// List implements Pool.
func (d *Dir) List(_ context.Context, p steps.PoolOnNode) ([]steps.FileFound, error) {
	root, err := d.open(p.Pool, p.Path)
	if problem.Is(err, problem.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	var out []steps.FileFound
	for _, dir := range poolDirs {
		entries, err := fs.ReadDir(root.FS(), dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, problem.Wrap(err, problem.Unavailable, "%s of pool %s cannot be listed", dir, p.Path)
		}
		for _, e := range entries {
			f := steps.FileFound{Pool: p.Pool, Path: inPool(p.Path, dir, e.Name()), Kind: KindOther}
			if e.Type().IsRegular() {
				f.Kind, f.ID = classify(dir, e.Name())
			}
			out = append(out, f)
		}
	}
	return out, nil
}

// classify says what a file is by where it lies and what it is called.
func classify(dir, name string) (kind, id string) {
	switch dir {
	case volumesDir:
		for _, ext := range []string{volumeExt, rawExt} {
			if id, ok := strings.CutSuffix(name, ext); ok && api.IsUUID(id) {
				return KindVolume, id
			}
		}
	case seedsDir:
		if id, ok := strings.CutSuffix(name, seedExt); ok && api.IsUUID(id) {
			return KindSeed, id
		}
	case backingDir:
		if isSHA256(name) {
			return KindBacking, name
		}
	case checkpointsDir:
		if id, ok := strings.CutSuffix(name, memoryExt); ok && api.IsUUID(id) {
			return KindMemory, id
		}
	}
	return KindOther, ""
}

// Remove implements Pool.
func (d *Dir) Remove(ctx context.Context, p steps.PoolOnNode, f steps.FileFound) error {
	if f.Pool != p.Pool {
		return problem.New(problem.Invalid, "file %s is said to be in another pool", f.Path)
	}
	root, err := d.open(p.Pool, p.Path)
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	dir, name, err := inside(p.Path, f.Path)
	if err != nil {
		return err
	}
	rel := dir + "/" + name
	info, err := root.Lstat(rel)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return problem.Wrap(err, problem.Unavailable, "file %s cannot be looked at", f.Path)
	}
	switch {
	case dir == backingDir && isSHA256(name):
		return d.evict(ctx, root, p.Path, name)
	case info.IsDir():
		if !strings.HasSuffix(name, workExt) || dir != seedsDir {
			return problem.New(problem.InUse, "%s is a directory that is not ours", f.Path).Try("look at it and remove it by hand")
		}
		return problem.Wrap(root.RemoveAll(rel), problem.Internal, "directory %s cannot be removed", f.Path)
	case info.Mode().IsRegular() && (busy(root, rel) || opened(root, rel)):
		return problem.New(problem.InUse, "file %s is being written", f.Path)
	}
	if kind, id := classify(dir, name); kind == KindVolume {
		leave, err := d.alone(ctx, root, p.Path)
		if err != nil {
			return err
		}
		defer leave()
		return removeLayer(root, steps.VolumePlan{Volume: id, Name: id, Pool: p, Shareable: strings.HasSuffix(name, rawExt)})
	}
	return removeFile(root, rel)
}

// inside takes a path apart that must be exactly POOL/DIRECTORY/NAME.
func inside(pool, path string) (dir, name string, err error) {
	rest, ok := strings.CutPrefix(path, pool+"/")
	dir, name, two := strings.Cut(rest, "/")
	known := dir == volumesDir || dir == backingDir || dir == seedsDir || dir == checkpointsDir
	if !ok || !two || !known || name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || filepath.Clean(path) != path {
		return "", "", problem.New(problem.Invalid, "%q is not a file of pool %s", path, pool)
	}
	return dir, name, nil
}

// EvictImage implements Pool.
func (d *Dir) EvictImage(ctx context.Context, c steps.CachedImage) error {
	if !isSHA256(c.SHA256) {
		return problem.New(problem.Invalid, "the checksum of image %s is %q", c.Image, c.SHA256)
	}
	root, err := d.open(c.Pool, c.PoolPath)
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	for _, tmp := range halfFetched(root, c.SHA256) {
		if !busy(root, tmp) {
			if err := removeFile(root, tmp); err != nil {
				return err
			}
		}
	}
	return d.evict(ctx, root, c.PoolPath, c.SHA256)
}

// evict removes an image's copy that no volume is a child of.
func (d *Dir) evict(ctx context.Context, root *os.Root, pool, sha string) error {
	leave, err := d.alone(ctx, root, pool)
	if problem.Is(err, problem.NotFound) {
		return nil // the pool was released meanwhile, and its copies with it
	}
	if err != nil {
		return err
	}
	defer leave()
	entries, err := fs.ReadDir(root.FS(), volumesDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return problem.Wrap(err, problem.Unavailable, "the volumes of pool %s cannot be listed", pool)
	}
	path := inPool(pool, backingDir, sha)
	for _, e := range entries {
		h, err := header(root, volumesDir+"/"+e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		// A volume that cannot be read might be a child: better an image too many than a VM without its disk.
		if err != nil && strings.HasSuffix(e.Name(), volumeExt) {
			return problem.Wrap(err, problem.InUse, "image copy %s may be needed by volume file %s, which cannot be read", sha, e.Name())
		}
		if err == nil && (h.BackingFile == path || filepath.Base(h.BackingFile) == sha) {
			return problem.New(problem.InUse, "image copy %s is needed by volume file %s", sha, e.Name())
		}
	}
	return removeFile(root, backingDir+"/"+sha)
}
