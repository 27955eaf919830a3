//go:build ceph && cgo

package rbd

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ceph/go-ceph/rados"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// maxCalls is how many calls may be inside librados at a time for one pool: those that hang end by its timeouts, and until then
// no others pile up behind them.
const maxCalls = 16

// cluster is a connection to the Ceph cluster of one pool.
type cluster struct {
	on    string // what it was made with, but for the key
	conn  *rados.Conn
	io    *rados.IOContext
	users sync.WaitGroup
}

// connecting is a connection, or the attempt to have one; it is shared by all who need it.
type connecting struct {
	done chan struct{}
	c    *cluster
	err  error
}

// call runs f on a goroutine of its own, because librados waits by itself and for nobody's context. It runs alone among those of the
// same pool and turn, "" for any. When ctx ends first, f is left to its end, which librados' timeouts bring about, and what
// it works on stays taken until then; f is to look at ctx between two things that it does.
func (d *Driver) call(ctx context.Context, p steps.PoolOnNode, turn, what string, f func(ctx context.Context, io *rados.IOContext) error) error {
	leave := func() {}
	if turn != "" {
		var err error
		if leave, err = d.turns.enter(ctx, p.Pool+"/"+turn); err != nil {
			return late(ctx, p, what)
		}
	}
	slots := d.slots(p.Pool)
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		leave()
		return late(ctx, p, what)
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-slots; leave() }()
		done <- d.within(ctx, p, what, f)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return late(ctx, p, what)
	}
}

func (d *Driver) within(ctx context.Context, p steps.PoolOnNode, what string, f func(ctx context.Context, io *rados.IOContext) error) error {
	c, err := d.connect(ctx, p)
	if err != nil {
		return err
	}
	defer c.users.Done()
	err = f(ctx, c.io)
	switch code(err) {
	case unix.ESHUTDOWN, unix.ENOTCONN, unix.EACCES, unix.EPERM: // fenced off, or the key has changed: the next one begins anew
		d.drop(p.Pool, c)
	}
	return explain(err, p, what)
}

// connection says by what a connection is made. Of the key it tells which one it is.
func connection(p steps.PoolOnNode) string {
	return p.Source.User + "#" + strconv.Itoa(p.Source.KeyVersion) + "@" + strings.Join(p.Source.Hosts, ",") + "/" + p.Source.Name
}

// connect returns the connection to the pool's cluster, whose users it has joined.
func (d *Driver) connect(ctx context.Context, p steps.PoolOnNode) (*cluster, error) {
	on := connection(p)
	for {
		d.mu.Lock()
		at := d.clusters[p.Pool]
		if at == nil {
			at = &connecting{done: make(chan struct{})}
			d.clusters[p.Pool] = at
			go d.dial(p, on, at)
		}
		d.mu.Unlock()
		select {
		case <-at.done:
		case <-ctx.Done():
			return nil, late(ctx, p, "connect")
		}
		if at.err != nil {
			return nil, at.err
		}
		d.mu.Lock()
		if d.clusters[p.Pool] == at && at.c.on == on {
			at.c.users.Add(1)
			d.used[p.Pool] = time.Now()
			d.mu.Unlock()
			return at.c, nil
		}
		d.mu.Unlock()
		d.drop(p.Pool, at.c) // it was dropped meanwhile, or leads elsewhere
	}
}

// drop gives a connection up once nobody uses it.
func (d *Driver) drop(pool string, c *cluster) {
	d.mu.Lock()
	at := d.clusters[pool]
	if at == nil || at.c != c {
		d.mu.Unlock()
		return
	}
	delete(d.clusters, pool)
	d.mu.Unlock()
	go func() {
		c.users.Wait()
		c.io.Destroy()
		c.conn.Shutdown()
	}()
}

// dial connects. One that fails is forgotten, so that the next who comes tries again.
func (d *Driver) dial(p steps.PoolOnNode, on string, at *connecting) {
	ctx, cancel := context.WithTimeout(context.Background(), d.cfg.OpTimeout)
	defer cancel()
	var key string
	if key, at.err = d.key(ctx, p); at.err == nil {
		at.c, at.err = d.open(p, key)
	}
	if at.err != nil {
		d.mu.Lock()
		if d.clusters[p.Pool] == at {
			delete(d.clusters, p.Pool)
		}
		d.mu.Unlock()
	} else {
		at.c.on = on
	}
	close(at.done)
}

func (d *Driver) open(p steps.PoolOnNode, key string) (*cluster, error) {
	conn, err := rados.NewConnWithUser(p.Source.User)
	if err != nil {
		return nil, explain(err, p, "connect")
	}
	secs := strconv.Itoa(max(1, int(d.cfg.OpTimeout/time.Second)))
	for _, o := range [][2]string{
		// First: what librados does not like it would write to stderr, keys among it.
		{"log_to_stderr", "false"},
		{"err_to_stderr", "false"},
		{"log_file", ""},
		{"admin_socket", ""},
		{"mon_host", strings.Join(p.Source.Hosts, ",")},
		{"key", key},
		{"keyring", ""},
		{"client_mount_timeout", secs},
		{"rados_mon_op_timeout", secs},
		{"rados_osd_op_timeout", secs},
		{"rbd_cache", "false"},
		// Of clones of the first format, snapshots with children are protected, and an image's copy cannot be taken away.
		{"rbd_default_clone_format", "1"},
	} {
		if err := conn.SetConfigOption(o[0], o[1]); err != nil {
			conn.Shutdown()
			return nil, problem.New(problem.Internal, "librados does not take its option %s", o[0]) // the value may be the key
		}
	}
	if err := conn.Connect(); err != nil {
		conn.Shutdown()
		return nil, refused(err, p)
	}
	io, err := conn.OpenIOContext(p.Source.Name)
	if err == nil { // what writes to a full pool is told so, and does not wait until there is room
		if err = io.SetPoolFullTry(); err != nil {
			io.Destroy()
		}
	}
	if err != nil {
		conn.Shutdown()
		if code(err) == unix.ENOENT {
			return nil, problem.New(problem.NotFound, "there is no Ceph pool %s", p.Source.Name).Because("the cluster at %s has none of this name", strings.Join(p.Source.Hosts, ", ")).
				Try("make it: ceph osd pool create %s; ceph osd pool application enable %s rbd", p.Source.Name, p.Source.Name)
		}
		return nil, explain(err, p, "open")
	}
	return &cluster{conn: conn, io: io}, nil
}

// slots are the calls that may be inside librados for a pool.
func (d *Driver) slots(pool string) chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.calls[pool]
	if s == nil {
		s = make(chan struct{}, maxCalls)
		d.calls[pool] = s
	}
	return s
}

// code returns the error number of what librados or librbd says; 0 if there is none.
func code(err error) unix.Errno {
	var e interface{ ErrorCode() int }
	if err == nil || !errors.As(err, &e) {
		return 0
	}
	return unix.Errno(max(e.ErrorCode(), -e.ErrorCode()))
}

// late says that ctx ended before the cluster answered, or before it was asked.
func late(ctx context.Context, p steps.PoolOnNode, what string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return away(p, what).Because("the cluster did not answer in time")
	}
	return problem.New(problem.Cancelled, "work on Ceph pool %s was cancelled: %s", p.Source.Name, what)
}

func away(p steps.PoolOnNode, what string) *problem.Problem {
	return problem.New(problem.Unavailable, "Ceph pool %s cannot be used: cannot %s", p.Source.Name, what).
		Try("see whether the cluster is well (ceph -s), and whether this node reaches its monitors and OSDs: %s", strings.Join(p.Source.Hosts, ", "))
}

// refused says why there is no connection. What librados calls an invalid argument may be a monitor's name that leads nowhere.
func refused(err error, p steps.PoolOnNode) error {
	at := strings.Join(p.Source.Hosts, ", ")
	switch code(err) {
	case unix.EINVAL:
		if unknown := unresolved(p); unknown != nil {
			return unknown
		}
		return problem.New(problem.Invalid, "the Ceph cluster at %s cannot be reached as user %s", at, p.Source.User).Because("%s", err).
			Try("see whether the monitors are right, and their names known on this node, and whether user and key are: ceph mon dump; ceph auth get client.%s", p.Source.User)
	case unix.EACCES, unix.EPERM, unix.ENOENT, unix.EOPNOTSUPP:
		return problem.New(problem.Invalid, "the Ceph cluster at %s does not take user %s", at, p.Source.User).Because("%s", err).
			Try("see whether user and key are right: ceph auth get client.%s", p.Source.User)
	default:
		return away(p, "connect").Because("%s", err)
	}
}

// resolveTimeout is how long names may take that are looked up to explain what has failed already.
const resolveTimeout = 5 * time.Second

// unresolved says which monitor has a name that this node does not know; nil: none.
func unresolved(p steps.PoolOnNode) error {
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	for _, at := range p.Source.Hosts {
		host := at
		if h, _, err := net.SplitHostPort(at); err == nil {
			host = h
		}
		_, err := net.DefaultResolver.LookupHost(ctx, strings.Trim(host, "[]"))
		if err == nil {
			continue
		}
		kind := problem.Unavailable
		if no := new(net.DNSError); errors.As(err, &no) && no.IsNotFound {
			kind = problem.Invalid
		}
		return problem.New(kind, "the monitor %s of Ceph pool %s cannot be found", host, p.Source.Name).Because("%s", err).
			Try("give its address, or see that this node knows the name: getent hosts %s", host)
	}
	return nil
}

// explain makes a problem of an error; one that is a problem stays what it is.
func explain(err error, p steps.PoolOnNode, what string) error {
	var known *problem.Problem
	if err == nil || errors.As(err, &known) {
		return err
	}
	switch code(err) {
	case unix.ENOSPC, unix.EDQUOT:
		return problem.New(problem.NoCapacity, "pool %s is full: cannot %s", p.Called(), what).Because("%s", err).
			Try("delete VMs, volumes or images, raise its quota, or add disks to the cluster; see: ceph df")
	case unix.EACCES, unix.EPERM:
		return problem.New(problem.Invalid, "Ceph user %s may not work with pool %s: cannot %s", p.Source.User, p.Source.Name, what).Because("%s", err).
			Try("ceph auth caps client.%s mon 'profile rbd' osd 'profile rbd pool=%s' mgr 'profile rbd'", p.Source.User, p.Source.Name)
	case unix.EBUSY:
		return problem.New(problem.InUse, "Ceph pool %s: cannot %s", p.Source.Name, what).Because("something has it open")
	default:
		return away(p, what).Because("%s", err)
	}
}

// turns are locks by name, which wait no longer than a context.
type turns struct {
	mu    sync.Mutex
	taken map[string]*turn
}

type turn struct {
	token   chan struct{} // has one while nobody is in
	waiting int
}

func (t *turns) enter(ctx context.Context, name string) (leave func(), err error) {
	t.mu.Lock()
	if t.taken == nil {
		t.taken = map[string]*turn{}
	}
	at := t.taken[name]
	if at == nil {
		at = &turn{token: make(chan struct{}, 1)}
		at.token <- struct{}{}
		t.taken[name] = at
	}
	at.waiting++
	t.mu.Unlock()
	gone := func() {
		t.mu.Lock()
		if at.waiting--; at.waiting == 0 {
			delete(t.taken, name)
		}
		t.mu.Unlock()
	}
	select {
	case <-at.token:
		return func() { at.token <- struct{}{}; gone() }, nil
	case <-ctx.Done():
		gone()
		return nil, ctx.Err()
	}
}
