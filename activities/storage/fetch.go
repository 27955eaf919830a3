package storage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// letPassFor is how long a node waits for another that fetches the same image and makes no progress.
const letPassFor = 20 * time.Second

// fetch is one download, shared by all who need the image.
type fetch struct {
	done   chan struct{}
	err    error // valid once done is closed
	bytes  atomic.Int64
	total  int64
	users  int // under Dir.mu
	cancel context.CancelFunc
}

// image returns the path of the image's copy in the pool, fetching it if need be.
func (d *Dir) image(ctx context.Context, root *os.Root, plan steps.VMPlan, src Source, progress func(string)) (string, error) {
	p := plan.Disk
	if !isSHA256(p.ImageSHA256) {
		return "", problem.New(problem.Invalid, "the checksum of image %s is %q", p.Image, p.ImageSHA256)
	}
	name := backingDir + "/" + p.ImageSHA256
	path := inPool(p.PoolPath, name)
	for {
		if copied(root, p) {
			used(root, name)
			return path, nil
		}
		f := d.join(path, p.ImageSize, func(ctx context.Context, f *fetch) error { return d.download(ctx, plan, src, f) })
		err := d.wait(ctx, path, f, progress)
		if problem.Is(err, problem.Cancelled) && ctx.Err() == nil {
			continue // those who began it gave it up just when we came
		}
		if err != nil {
			return "", err
		}
		if _, err := root.Lstat(name); err != nil {
			return "", problem.Wrap(err, problem.Unavailable, "the copy of image %s is gone again", p.Image)
		}
		return path, nil
	}
}

// join returns the download under way to path, or begins it.
func (d *Dir) join(path string, total int64, run func(context.Context, *fetch) error) *fetch {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.fetches[path]
	if f == nil {
		ctx, cancel := context.WithCancel(context.Background())
		f = &fetch{done: make(chan struct{}), total: total, cancel: cancel}
		d.fetches[path] = f
		go func() {
			err := run(ctx, f)
			d.mu.Lock()
			if d.fetches[path] == f {
				delete(d.fetches, path)
			}
			f.err = err
			d.mu.Unlock()
			cancel()
			close(f.done)
		}()
	}
	f.users++
	return f
}

// fetched says how far a download is; the total is not always known.
func fetched(done, total int64) string {
	mib := func(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/float64(api.MiB)) }
	if total <= 0 {
		return "fetching the image: " + mib(done)
	}
	return fmt.Sprintf("fetching the image: %s of %s", mib(done), mib(total))
}

// wait waits for the download's end. The last one who loses interest ends it.
func (d *Dir) wait(ctx context.Context, path string, f *fetch, progress func(string)) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-f.done:
			return f.err
		case <-t.C:
			if progress != nil {
				progress(fetched(f.bytes.Load(), f.total))
			}
		case <-ctx.Done():
			d.mu.Lock()
			f.users--
			if f.users == 0 { // who comes now must not join what is ending
				f.cancel()
				if d.fetches[path] == f {
					delete(d.fetches, path)
				}
			}
			d.mu.Unlock()
			return problem.New(problem.Cancelled, "fetching image file %s was cancelled", path)
		}
	}
}

// download makes the image's copy. Nodes that share the directory each write a file of their own, and take turns as far as
// its file system has locks.
func (d *Dir) download(ctx context.Context, plan steps.VMPlan, src Source, f *fetch) error {
	p := plan.Disk
	root, err := openRoot(p.PoolPath)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // a directory that was only read
	name := backingDir + "/" + p.ImageSHA256
	tmp := name + tempExt
	if api.IsUUID(plan.Agent) {
		tmp = name + "." + plan.Agent + tempExt
	}
	out, err := lockedTemp(ctx, root, tmp)
	if err != nil {
		return err
	}
	defer out.Close() //nolint:errcheck // synced below where it counts; ends the lock
	if err := letPass(ctx, root, p, tmp); err != nil {
		return errors.Join(err, removeFile(root, tmp))
	}
	if copied(root, p) {
		return removeFile(root, tmp) // somebody else was faster
	}
	d.makeRoom(ctx, root, p.PoolPath, p.ImageSize)
	if err := d.receive(ctx, out, p, src, f); err != nil {
		return errors.Join(err, removeFile(root, tmp))
	}
	err = out.Sync()
	if err == nil {
		err = d.publish(ctx, root, p, tmp)
	}
	return problem.Wrap(err, problem.Internal, "the copy of image %s cannot be finished", p.Image)
}

// copied reports whether the pool has a whole copy of the image: it has its name only since its checksum was right.
func copied(root *os.Root, p steps.DiskPlan) bool {
	info, err := root.Lstat(backingDir + "/" + p.ImageSHA256)
	return err == nil && info.Mode().IsRegular() && (p.ImageSize <= 0 || info.Size() == p.ImageSize)
}

// letPass waits while another node fetches the same image into the directory: of several that began, the one whose file's
// name comes first goes on. One whose file does not grow is not waited for.
func letPass(ctx context.Context, root *os.Root, p steps.DiskPlan, mine string) error {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	var size int64
	moved := time.Now()
	for {
		ahead := ""
		for _, name := range halfFetched(root, p.ImageSHA256) {
			if name < mine && busy(root, name) {
				ahead = name
				break
			}
		}
		if ahead == "" || copied(root, p) {
			return nil
		}
		if info, err := root.Lstat(ahead); err == nil && info.Size() != size {
			size, moved = info.Size(), time.Now()
		}
		if time.Since(moved) > letPassFor {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return problem.New(problem.Cancelled, "waiting for another node to fetch image %s was cancelled", p.Image)
		}
	}
}

// halfFetched returns the files into which nodes fetch, or have fetched, an image.
func halfFetched(root *os.Root, sha string) (names []string) {
	entries, err := fs.ReadDir(root.FS(), backingDir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), sha+".") && strings.HasSuffix(e.Name(), tempExt) && e.Type().IsRegular() {
			names = append(names, backingDir+"/"+e.Name())
		}
	}
	return names
}

// publish gives a whole copy its name, unless there is one. It never replaces a good one: a guest on another node may have
// that open, and would lose it.
func (d *Dir) publish(ctx context.Context, root *os.Root, p steps.DiskPlan, tmp string) error {
	leave, err := d.alone(ctx, root, p.PoolPath)
	if err != nil {
		return err
	}
	defer leave()
	name := backingDir + "/" + p.ImageSHA256
	switch err := root.Link(tmp, name); { // unlike a rename it replaces nothing, whether or not the lock is one among nodes
	case err == nil, copied(root, p):
		err = removeFile(root, tmp)
		if err != nil {
			return err
		}
	default: // what is there is not whole, or the file system has no links
		if err := root.Rename(tmp, name); err != nil {
			return err
		}
	}
	return syncDir(root, backingDir)
}

// lockedTemp opens the file empty, once nobody else writes it.
func lockedTemp(ctx context.Context, root *os.Root, name string) (*os.File, error) {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		f, err := root.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, problem.Wrap(err, problem.Internal, "file %s cannot be made", name)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			if same(root, name, f) {
				return f, problem.Wrap(f.Truncate(0), problem.Internal, "file %s cannot be emptied", name)
			}
			err = unix.EWOULDBLOCK // its owner has just renamed or removed it: begin anew
		}
		f.Close() //nolint:errcheck // nothing was written
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, problem.Wrap(err, problem.Internal, "file %s cannot be locked", name)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, problem.New(problem.Cancelled, "waiting for file %s was cancelled", name)
		}
	}
}

// same reports whether f still has its name.
func same(root *os.Root, name string, f *os.File) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := root.Lstat(name)
	return err == nil && os.SameFile(a, b)
}

// busy reports whether somebody writes the file, here or in another process.
func busy(root *os.Root, name string) bool {
	f, err := root.OpenFile(name, os.O_RDWR, 0) // on NFS only who may write may lock
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close() //nolint:errcheck // was only read; ends the lock
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}

// receive fetches an image, from another node if one has offered its copy, or else, and if that fails, from the server.
func (d *Dir) receive(ctx context.Context, out *os.File, p steps.DiskPlan, src Source, f *fetch) error {
	if peer, ok := src.(fromPeer); ok {
		in, err := peer.PeerImage(ctx)
		if in != nil && err == nil {
			err = d.receiveFrom(ctx, out, p, in, -1, f)
		}
		switch {
		case in == nil && err == nil:
		case err == nil, ctx.Err() != nil, errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
			return err
		default:
			d.log.Info("an image does not come from another node; the server is asked", "image", p.Image, "error", err)
			f.bytes.Store(0)
			if _, err := out.Seek(0, io.SeekStart); err != nil {
				return problem.Wrap(err, problem.Internal, "the copy of image %s cannot be begun anew", p.Image)
			}
			if err := out.Truncate(0); err != nil {
				return problem.Wrap(err, problem.Internal, "the copy of image %s cannot be begun anew", p.Image)
			}
		}
	}
	in, length, err := src.OpenImage(ctx, p.Image)
	if ctx.Err() != nil {
		if err == nil {
			in.Close() //nolint:errcheck // nothing was read
		}
		return problem.New(problem.Cancelled, "fetching image %s was cancelled", p.Image)
	}
	if err != nil {
		return problem.Wrap(err, problem.Unavailable, "image %s cannot be fetched", p.Image)
	}
	return d.receiveFrom(ctx, out, p, in, length, f)
}

// receiveFrom writes an image as it comes, and checks it. Whoever sends nothing for a while is given up.
func (d *Dir) receiveFrom(ctx context.Context, out *os.File, p steps.DiskPlan, in io.ReadCloser, length int64, f *fetch) error {
	closed := sync.OnceValue(in.Close)
	defer closed() //nolint:errcheck // was only read
	silent := time.AfterFunc(d.patience, func() { _ = closed() })
	defer silent.Stop()
	stop := context.AfterFunc(ctx, func() { _ = closed() }) // ends a read that waits
	defer stop()
	if p.ImageSize > 0 && length >= 0 && length != p.ImageSize {
		return problem.New(problem.Conflict, "image %s has %d bytes on the server, expected were %d", p.Image, length, p.ImageSize)
	}
	var st unix.Statfs_t
	if unix.Fstatfs(int(out.Fd()), &st) == nil && p.ImageSize > int64(st.Bavail)*st.Bsize {
		return unix.ENOSPC // better before the pool is full than after
	}
	limit := p.ImageSize
	if limit <= 0 {
		limit = api.MaxDisk
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(out, sum, counter{&f.bytes}), io.LimitReader(reader{ctx, alive{in, func(int) { silent.Reset(d.patience) }}}, limit+1))
	switch {
	case ctx.Err() != nil:
		return problem.New(problem.Cancelled, "fetching image %s was cancelled", p.Image)
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return err
	case err != nil:
		return problem.Wrap(err, problem.Unavailable, "image %s broke off after %d bytes", p.Image, n)
	case p.ImageSize > 0 && n != p.ImageSize:
		return problem.New(problem.Unavailable, "image %s broke off: %d bytes came, expected were %d", p.Image, n, p.ImageSize)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != p.ImageSHA256 {
		return problem.New(problem.Unavailable, "image %s came damaged", p.Image).Because("its checksum is %s, expected was %s", got, p.ImageSHA256)
	}
	return nil
}

// counter counts what is written to it.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// reader stops when its context does.
type reader struct {
	ctx context.Context
	io.Reader
}

func (r reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(b)
}
