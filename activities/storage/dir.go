package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Dir keeps volumes as qcow2 files in directories. Below the directory of a pool there are
//
//	.nextstack-pool       which pool it is
//	volumes/ID.qcow2      root disks, children of
//	backing/SHA256        copies of images, read-only
//	seeds/VM.iso          cloud-init seeds
//	checkpoints/ID.memory the memory of guests, as their hypervisor has written it
//
// Files that are being made are called NAME.tmp until they are whole. Nothing but these names is ever touched. The directory itself
// goes with the pool if it was made for it, as do those above it, once they are empty.
//
// The directory may be that of a network file system which several nodes see. They take turns by locks (flock) on files in
// it, and never replace a file that another node may have open.
type Dir struct {
	log *slog.Logger

	mu      sync.Mutex
	fetches map[string]*fetch        // by path
	turns   map[string]*sync.RWMutex // by pool directory

	patience time.Duration                   // with another node that sends nothing
	room     func(path string) api.PoolUsage // of a pool
}

var _ Pool = (*Dir)(nil)

// NewDir returns the driver of directory pools.
func NewDir(log *slog.Logger) *Dir {
	if log == nil {
		log = slog.Default()
	}
	return &Dir{log: log, fetches: map[string]*fetch{}, turns: map[string]*sync.RWMutex{}, patience: peerPatience, room: roomIn}
}

// Prepare implements Pool.
func (d *Dir) Prepare(_ context.Context, p steps.PoolOnNode) (api.PoolUsage, error) {
	if err := checkPool(p); err != nil {
		return api.PoolUsage{}, err
	}
	made := 0
	if !p.Join {
		var err error
		if made, err = makeDirs(p.Path); err != nil {
			return api.PoolUsage{}, unusable(p.Path, err)
		}
	}
	root, err := openRoot(p.Path)
	if p.Join && problem.Is(err, problem.NotFound) {
		return api.PoolUsage{}, notJoined(p, "there is no such directory")
	}
	if errors.Is(err, errShut) { // waiting does not help
		no := *problem.From(err)
		no.Kind = problem.Invalid
		return api.PoolUsage{}, &no
	}
	if err != nil {
		return api.PoolUsage{}, err
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	if err := claim(root, p, made); err != nil {
		removeDirs(p.Path, made)
		return api.PoolUsage{}, err
	}
	for _, name := range poolDirs {
		if err := ensureDir(root, name); err != nil {
			return api.PoolUsage{}, unusable(p.Path, err)
		}
	}
	if err := tryOut(root, p); err != nil {
		return api.PoolUsage{}, unusable(p.Path, err)
	}
	u := usage(p.Pool, p.Path)
	if u.Error != "" {
		return u, problem.New(problem.Unavailable, "pool directory %s cannot be measured", p.Path).Because("%s", u.Error)
	}
	return u, nil
}

func unusable(path string, err error) error {
	return problem.Wrap(err, problem.Invalid, "%s cannot be a pool", path)
}

// errShut says that a directory, or the marker in it, may not be read. The agent is root: it is the file system that refuses it.
var errShut = errors.New("the agent may not read it")

func shut(path string, err error) error {
	return problem.Caused(fmt.Errorf("%w: %w", errShut, err), problem.Unavailable, "pool directory %s cannot be used", path).
		Try("let root of this node read and write it; of an NFS export: no_root_squash")
}

// openRoot opens a directory such that nothing below it can lead out of it again. What can be no directory is invalid.
func openRoot(path string) (*os.Root, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, problem.New(problem.NotFound, "there is no pool in %s on this node", path)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return nil, unusable(path, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, shut(path, err)
	case err != nil:
		return nil, problem.Wrap(err, problem.Unavailable, "pool directory %s cannot be read", path)
	case info.Mode()&fs.ModeSymlink != 0:
		return nil, problem.New(problem.Invalid, "%s cannot be a pool", path).Because("it is a symbolic link").Try("give the directory that it points to")
	case !info.IsDir():
		return nil, problem.New(problem.Invalid, "%s cannot be a pool", path).Because("it is not a directory")
	}
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, shut(path, err)
	}
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "pool directory %s cannot be opened", path)
	}
	return root, nil
}

// writeFile writes a small file such that it is whole or not there, also after a power cut.
func writeFile(root *os.Root, name string, b []byte) error {
	tmp := name + tempExt
	if err := writeTemp(root, tmp, b); err != nil {
		return err
	}
	if err := root.Rename(tmp, name); err != nil {
		return errors.Join(err, root.Remove(tmp))
	}
	return syncDir(root, ".")
}

// writeNew is writeFile for a file that must not be there yet, else it is fs.ErrExist. Who is one of several that may try it in
// the same moment; on a file system without hard links, which no two nodes have in common, the last of them wins.
func writeNew(root *os.Root, name, who string, b []byte) error {
	tmp := name + "-" + who + tempExt
	if err := writeTemp(root, tmp, b); err != nil {
		return err
	}
	err := root.Link(tmp, name)
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrPermission) {
		if err = root.Rename(tmp, name); err == nil {
			return syncDir(root, ".")
		}
	}
	if err = errors.Join(err, root.Remove(tmp)); err != nil {
		return err
	}
	return syncDir(root, ".")
}

func writeTemp(root *os.Root, tmp string, b []byte) error {
	f, err := root.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, root.Remove(tmp))
	}
	return nil
}

func syncDir(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func ensureDir(root *os.Root, name string) error {
	if err := root.Mkdir(name, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := root.Lstat(name)
	if err == nil && !info.IsDir() {
		err = errors.New(name + " in it is not a directory")
	}
	return err
}

// makeDirs makes a directory, and those above it that are missing. It returns how many were made, those at the path's end. What
// is there already may be anything.
func makeDirs(path string) (made int, err error) {
	// The hypervisor may run as somebody else: it must be able to pass through, but nobody needs to list.
	err = os.Mkdir(path, 0o711)
	if up := filepath.Dir(path); errors.Is(err, fs.ErrNotExist) && up != path {
		if made, err = makeDirs(up); err == nil {
			err = os.Mkdir(path, 0o711)
		}
	}
	switch {
	case err == nil:
		return made + 1, nil
	case errors.Is(err, fs.ErrExist):
		return 0, nil
	}
	removeDirs(filepath.Dir(path), made)
	return 0, err
}

// removeDirs removes the last directories of a path, as many, as long as they are empty: others may use them by now.
func removeDirs(path string, count int) {
	for ; count > 0 && unix.Rmdir(path) == nil; count-- {
		path = filepath.Dir(path)
	}
}

// open returns the prepared pool, after a look at its marker: a file system that is not mounted must not be mistaken for an
// empty pool.
func (d *Dir) open(pool, path string) (*os.Root, error) {
	if err := checkPool(steps.PoolOnNode{Pool: pool, Type: api.PoolDir, Path: path}); err != nil {
		return nil, err
	}
	root, err := openRoot(path)
	if err != nil {
		return nil, err
	}
	m, err := readMarker(root)
	switch {
	case err == nil && m.Pool == pool:
		return root, nil
	case err == nil:
		err = problem.New(problem.Conflict, "%s is pool %s, not %s", path, m.Pool, pool)
	case errors.Is(err, fs.ErrNotExist):
		err = problem.New(problem.NotFound, "%s is not a pool on this node", path).Because("its marker %s is missing", markerName).Try("see that its file system is mounted, or add the pool again")
	case errors.Is(err, fs.ErrPermission):
		err = shut(path, err)
	default:
		err = problem.Wrap(err, problem.Unavailable, "the marker of %s cannot be read", path)
	}
	return nil, errors.Join(err, root.Close())
}

// Usage implements Pool.
func (d *Dir) Usage(_ context.Context, p steps.PoolOnNode) api.PoolUsage {
	root, err := d.open(p.Pool, p.Path)
	if err != nil {
		return api.PoolUsage{Pool: p.Pool, Error: err.Error()}
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	u := usage(p.Pool, p.Path)
	u.Images = cached(root)
	return u
}

// cached returns the checksums of the images that have a copy in the pool. That some cannot be listed costs a download.
func cached(root *os.Root) []string {
	entries, err := fs.ReadDir(root.FS(), backingDir) // sorted
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if isSHA256(e.Name()) && e.Type().IsRegular() && len(out) < api.MaxPoolImages {
			out = append(out, e.Name())
		}
	}
	return out
}

func usage(pool, path string) api.PoolUsage {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return api.PoolUsage{Pool: pool, Error: err.Error()}
	}
	return api.PoolUsage{Pool: pool, Capacity: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize}
}

// inPool returns the absolute path of a file of the pool, for programs that take nothing else.
func inPool(path string, elem ...string) string {
	return filepath.Join(append([]string{path}, elem...)...)
}
