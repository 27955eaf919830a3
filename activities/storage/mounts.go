package storage

import (
	"context"
	"errors"
	"io"
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

// Readier is what a Pool is, too, if something has to be done on a node before a hypervisor can use what is in its pools.
type Readier interface {
	// Ready does it. It may be called at any time, and again.
	Ready(ctx context.Context, p steps.PoolOnNode) error
}

// Checker is what a Pool is, too, if how its pools are reached can change.
type Checker interface {
	// CheckSource makes sure, by using it, that a pool is at the plan's source, and is the same one. The key is the pool's own, or that
	// which is kept under an operation's ID. It changes nothing.
	CheckSource(ctx context.Context, p steps.PoolOnNode, secret string) error
}

// Keeper is what a Pool is, too, if its pools leave something on a node that has to be taken away when the node does not have
// them any more.
type Keeper interface {
	// Keep takes away what belongs to other pools than these.
	Keep(ctx context.Context, pools []steps.PoolOnNode) error
}

// Mounts is pools of files on file systems that are mounted for them: NFS and GlusterFS. Each is mounted before it is used, in
// its own directory below api.MountDir, and again when the mount is gone. What is in it is left to the driver of directories.
//
// That a pool was prepared here is noted on the node: one that could not even be mounted then has nothing to be released.
//
// No call waits for ever: see gate. A file system that does not answer is unavailable, as is one that cannot be mounted.
type Mounts struct {
	files Pool
	log   *slog.Logger
	dir   string // for what is to outlive a reboot: notes, and logs of what mounts
	mount map[string]mounter

	mu    sync.Mutex
	known map[string]*mounted // by path
}

// mounted is one file system and what is known of it.
type mounted struct {
	gate *gate

	mu     sync.Mutex // one at a time mounts
	failed error      // what the last attempt said
	again  time.Time  // when the next one may be
}

// Timing of mounts.
const (
	mountTimeout = 60 * time.Second
	// mountPause must pass after an attempt that failed, or as much time as that took. Who comes meanwhile gets the answer of that.
	mountPause = 3 * time.Second
	// keptFor is how long a mount that nobody asks for is kept after its last use: a pool may be on its way to become one.
	keptFor = 2 * time.Minute
)

var (
	_ Pool    = (*Mounts)(nil)
	_ Readier = (*Mounts)(nil)
	_ Keeper  = (*Mounts)(nil)
)

// NewMounts returns the driver of pools that are mounted, which keeps files as the driver of directories does. Dir is a
// directory of the node for what it has to remember, and for the logs of what mounts them.
func NewMounts(files Pool, dir string, log *slog.Logger) *Mounts {
	if log == nil {
		log = slog.Default()
	}
	return &Mounts{
		files: files, log: log, dir: dir, known: map[string]*mounted{},
		mount: map[string]mounter{api.PoolGluster: gluster{}, api.PoolNFS: nfs{}},
	}
}

// at returns what is known of the file system of a pool.
func (m *Mounts) at(p steps.PoolOnNode) *mounted {
	m.mu.Lock()
	defer m.mu.Unlock()
	fs := m.known[p.Path]
	if fs == nil {
		fs = &mounted{gate: newGate(func() error { var st unix.Statfs_t; return unix.Statfs(p.Path, &st) })}
		m.known[p.Path] = fs
	}
	return fs
}

// use mounts the pool if it is not, and does something with its files.
func use[T any](ctx context.Context, m *Mounts, p steps.PoolOnNode, do func(context.Context) (T, error)) (T, error) {
	var none T
	if err := m.check(p); err != nil {
		return none, err
	}
	fs := m.at(p)
	v, err := through(ctx, fs.gate, "pool "+from(p), func(ctx context.Context) (T, error) {
		if err := m.ensure(ctx, fs, p); err != nil {
			return none, err
		}
		if ctx.Err() != nil { // nobody waits any more: what is made now would be left behind
			return none, problem.New(problem.Cancelled, "waiting for pool %s was cancelled", from(p))
		}
		v, err := do(ctx)
		return v, m.whose(p, err)
	})
	return v, err
}

// check refuses what is not a pool of this driver: a mount covers what was in a directory before.
func (m *Mounts) check(p steps.PoolOnNode) error {
	if err := checkPool(p); err != nil {
		return err
	}
	var v problem.Validation
	v.Check(m.mount[p.Type] != nil, "type", p.Type, "must be a file system that is mounted")
	v.Check(p.Path == filepath.Join(api.MountDir, p.Pool), "path", p.Path, "must be %s", filepath.Join(api.MountDir, p.Pool))
	v.Check(len(p.Source.Hosts) > 0, "source.hosts", nil, "is missing")
	v.Check(p.Source.Name != "", "source.name", nil, "is missing")
	return v.Err("pool")
}

// whose finds out whether an error is that of a file system which has gone away meanwhile.
func (m *Mounts) whose(p steps.PoolOnNode, err error) error {
	if err == nil {
		return nil
	}
	switch problem.KindOf(err) {
	case problem.Internal, problem.Invalid, problem.Conflict, problem.NotFound:
	default:
		return err
	}
	var st unix.Statfs_t
	lost := unix.Statfs(p.Path, &st)
	if lost == nil && !away(err) {
		if is, merr := isMounted(p.Path); merr == nil && is.path != "" {
			return err
		}
		lost = errors.New("it is not mounted any more")
	}
	return problem.New(problem.Unavailable, "pool %s is away", from(p)).Because("%s", errors.Join(lost, err)).
		Try("see whether its servers run and can be reached from this node; it goes on by itself when they answer")
}

// ensure sees that the file system is mounted.
func (m *Mounts) ensure(ctx context.Context, fs *mounted, p steps.PoolOnNode) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	how := m.mount[p.Type]
	is, err := isMounted(p.Path)
	if err != nil {
		return problem.Wrap(err, problem.Unavailable, "it cannot be found out what is mounted")
	}
	switch {
	case is.path != "" && is.source != how.source(p):
		return problem.New(problem.Conflict, "something else is mounted at %s", p.Path).Because("%s, of type %s", is.source, is.fsType).Try("unmount it")
	case is.path != "" && how.works(p):
		return nil
	case time.Now().Before(fs.again) && fs.failed != nil:
		return fs.failed
	case is.path != "": // whoever stood for it has died, and what was opened through it is lost in any case
		m.log.Warn("what has mounted a pool is gone, mounting it anew", "pool", p.Pool, "path", p.Path)
		if err := unix.Unmount(p.Path, unix.MNT_DETACH); err != nil {
			return problem.Wrap(err, problem.Unavailable, "the dead mount at %s cannot be taken away", p.Path)
		}
	}
	begun := time.Now()
	fs.failed = m.mountNow(ctx, how, p)
	fs.again = time.Now().Add(max(mountPause, time.Since(begun)))
	return fs.failed
}

func (m *Mounts) mountNow(ctx context.Context, how mounter, p steps.PoolOnNode) error {
	// The hypervisor may run as somebody else: it must be able to pass through.
	for _, dir := range []string{filepath.Dir(api.MountDir), api.MountDir, p.Path} {
		err := os.Mkdir(dir, 0o711)
		if err == nil {
			err = os.Chmod(dir, 0o711) // whatever the umask is
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return problem.Wrap(err, problem.Unavailable, "the mount point %s cannot be made", p.Path)
		}
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return problem.Wrap(err, problem.Unavailable, "there is no place for the logs of mounts")
	}
	ctx, cancel := context.WithTimeout(ctx, mountTimeout)
	defer cancel()
	if err := how.mount(ctx, p, m.dir); err != nil {
		return errors.Join(err, removed(p.Path))
	}
	m.log.Info("pool mounted", "pool", p.Pool, "source", how.source(p), "path", p.Path)
	return nil
}

// from is the source of a pool, for people.
func from(p steps.PoolOnNode) string {
	host := ""
	if len(p.Source.Hosts) > 0 {
		host = p.Source.Hosts[0]
	}
	return host + ":" + p.Source.Name
}

// unmount takes the mount away, if there is one.
func (m *Mounts) unmount(p string) error {
	fs := m.at(steps.PoolOnNode{Path: p})
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for { // what was mounted over it goes, too
		is, err := isMounted(p)
		if err != nil {
			return problem.Wrap(err, problem.Unavailable, "it cannot be found out what is mounted")
		}
		if is.path == "" {
			break
		}
		if err := m.detach(p); err != nil {
			k := problem.Unavailable
			if errors.Is(err, unix.EBUSY) {
				k = problem.InUse
			}
			return problem.New(k, "%s cannot be unmounted", p).Because("%s", err).Try("see who uses it: fuser -vm %s", p)
		}
		m.log.Info("unmounted", "path", p)
	}
	id := filepath.Base(p)
	return errors.Join(removed(p), removed(p+pidExt), removed(filepath.Join(m.dir, id+noteExt)), removed(filepath.Join(m.dir, id+logExt)))
}

// detach unmounts what is on top. A part of it is to give the server back what it keeps for its client: when that does not answer,
// it goes on in the background, after the mount has gone from the table.
func (m *Mounts) detach(path string) error {
	before, err := countMounts(path)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- unix.Unmount(path, unix.UMOUNT_NOFOLLOW) }()
	t := time.NewTimer(patienceWithServer)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		m.log.Warn("the server of a mount that goes away does not answer", "path", path)
		if now, err := countMounts(path); err != nil || now < before {
			return err
		}
		return unix.ETIMEDOUT
	}
}

// What the names of files end with that are kept for a pool.
const (
	pidExt  = ".pid"
	noteExt = ".prepared"
	logExt  = ".log"
)

// removed removes a file or an empty directory; none is fine.
func removed(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return problem.Wrap(err, problem.Internal, "%s cannot be removed", path)
	}
	return nil
}

// note writes down that something may be made in the pool from here.
func (m *Mounts) note(p steps.PoolOnNode) error {
	err := os.WriteFile(filepath.Join(m.dir, p.Pool+noteExt), nil, 0o600)
	return problem.Wrap(err, problem.Unavailable, "pool %s cannot be noted on this node", p.Pool)
}

func (m *Mounts) noted(p steps.PoolOnNode) bool {
	_, err := os.Lstat(filepath.Join(m.dir, p.Pool+noteExt))
	return !errors.Is(err, os.ErrNotExist)
}

// touched reports whether there is anything of the pool on this node, or may be something of it in the pool.
func (m *Mounts) touched(p steps.PoolOnNode) (bool, error) {
	if m.noted(p) {
		return true, nil
	}
	is, err := isMounted(p.Path)
	return is.path != "", problem.Wrap(err, problem.Unavailable, "it cannot be found out what is mounted")
}

// Keep implements Keeper.
func (m *Mounts) Keep(_ context.Context, pools []steps.PoolOnNode) error {
	wanted := map[string]bool{}
	for _, p := range pools {
		wanted[p.Path] = true
	}
	all, err := mountsBelow(api.MountDir)
	if err != nil {
		return err
	}
	var errs []error
	for _, is := range all {
		if wanted[is.path] || !api.IsUUID(filepath.Base(is.path)) {
			continue
		}
		if fs := m.at(steps.PoolOnNode{Path: is.path}); fs.gate.idle(keptFor) {
			errs = append(errs, m.unmount(is.path))
		}
	}
	return errors.Join(errs...)
}

// Ready implements Readier.
func (m *Mounts) Ready(ctx context.Context, p steps.PoolOnNode) error {
	_, err := use(ctx, m, p, func(context.Context) (struct{}, error) {
		root, err := openRoot(p.Path)
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, root.Close()
	})
	return err
}

// Prepare implements Pool.
func (m *Mounts) Prepare(ctx context.Context, p steps.PoolOnNode) (api.PoolUsage, error) {
	return use(ctx, m, p, func(ctx context.Context) (api.PoolUsage, error) {
		if err := m.note(p); err != nil {
			return api.PoolUsage{}, err
		}
		return m.files.Prepare(ctx, p)
	})
}

// Release implements Pool. A node that cannot reach the pool can only wait: what it would have to remove is there still. If it
// never could, there is nothing.
func (m *Mounts) Release(ctx context.Context, p steps.PoolOnNode) error {
	if err := m.check(p); err != nil {
		return err
	}
	touched, err := m.touched(p)
	if err != nil {
		return err
	}
	_, err = use(ctx, m, p, func(ctx context.Context) (struct{}, error) {
		if err := m.files.Release(ctx, p); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, m.unmount(p.Path)
	})
	if k := problem.KindOf(err); !touched && (k == problem.Unavailable || k == problem.Unsupported) {
		return nil
	}
	return err
}

// MakeDisk implements Pool.
func (m *Mounts) MakeDisk(ctx context.Context, plan steps.VMPlan, src Source, progress func(string)) error {
	return m.disk(ctx, plan, func(ctx context.Context) error { return m.files.MakeDisk(ctx, plan, src, progress) })
}

// RemoveDisk implements Pool. What has no marker was never a pool here if that was never prepared; otherwise the server shows
// something else than it did, and the disk is there still.
func (m *Mounts) RemoveDisk(ctx context.Context, plan steps.VMPlan) error {
	return m.disk(ctx, plan, func(ctx context.Context) error {
		return m.unlessNone(plan.Disk.OnNode(), m.files.RemoveDisk(ctx, plan))
	})
}

// unlessNone makes nothing of the error of a removal from what was never a pool.
func (m *Mounts) unlessNone(p steps.PoolOnNode, err error) error {
	if !problem.Is(err, problem.Unavailable) || m.noted(p) {
		return err
	}
	if _, merr := os.Lstat(filepath.Join(p.Path, markerName)); errors.Is(merr, os.ErrNotExist) {
		return nil
	}
	return err
}

// ReceiveDisk implements Pool.
func (m *Mounts) ReceiveDisk(ctx context.Context, plan steps.VMPlan, src Source, fetch func(context.Context) (io.ReadCloser, error), tell func(api.Progress)) error {
	return m.disk(ctx, plan, func(ctx context.Context) error { return m.files.ReceiveDisk(ctx, plan, src, fetch, tell) })
}

func (m *Mounts) disk(ctx context.Context, plan steps.VMPlan, do func(context.Context) error) error {
	if err := checkPlan(plan); err != nil {
		return err
	}
	_, err := use(ctx, m, plan.Disk.OnNode(), func(ctx context.Context) (struct{}, error) { return struct{}{}, do(ctx) })
	return err
}

// OpenDisk implements Pool.
func (m *Mounts) OpenDisk(ctx context.Context, plan steps.VMPlan) (Disk, error) {
	if err := checkPlan(plan); err != nil {
		return nil, err
	}
	return use(ctx, m, plan.Disk.OnNode(), func(ctx context.Context) (Disk, error) { return m.files.OpenDisk(ctx, plan) })
}

// EvictImage implements Pool.
func (m *Mounts) EvictImage(ctx context.Context, c steps.CachedImage) error {
	_, err := use(ctx, m, c.OnNode(), func(ctx context.Context) (struct{}, error) { return struct{}{}, m.files.EvictImage(ctx, c) })
	return err
}

// List implements Pool.
func (m *Mounts) List(ctx context.Context, p steps.PoolOnNode) ([]steps.FileFound, error) {
	return use(ctx, m, p, func(ctx context.Context) ([]steps.FileFound, error) { return m.files.List(ctx, p) })
}

// Remove implements Pool.
func (m *Mounts) Remove(ctx context.Context, p steps.PoolOnNode, f steps.FileFound) error {
	_, err := use(ctx, m, p, func(ctx context.Context) (struct{}, error) { return struct{}{}, m.files.Remove(ctx, p, f) })
	return err
}

// Usage implements Pool.
func (m *Mounts) Usage(ctx context.Context, p steps.PoolOnNode) api.PoolUsage {
	u, err := use(ctx, m, p, func(ctx context.Context) (api.PoolUsage, error) { return m.files.Usage(ctx, p), nil })
	if err != nil {
		return api.PoolUsage{Pool: p.Pool, Error: err.Error()}
	}
	return u
}
