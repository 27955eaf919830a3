// Package libvirt is the real compute.Driver: libvirt with QEMU, on the machine that the agent runs on.
package libvirt

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/api/problem"
)

// Limits of the conversation with libvirtd.
const (
	// callTimeout bounds a call whose context has no deadline of its own.
	callTimeout = 30 * time.Second
	// keepalive finds a dead or frozen libvirtd: so often it is asked, and so many answers may be missing.
	keepaliveInterval = 5
	keepaliveCount    = 3
	// maxAbandoned is how many calls may hang inside libvirt, each with a thread of ours, before no more are made.
	maxAbandoned = 64
)

// eventLoop runs libvirt's event loop, of which a process has one and for ever.
var eventLoop = sync.OnceValue(func() error {
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return err
	}
	go func() {
		for {
			if err := libvirt.EventRunDefaultImpl(); err != nil {
				time.Sleep(100 * time.Millisecond) //nolint:forbidigo // the loop must not spin should poll(2) fail again and again
			}
		}
	}()
	return nil
})

// link is the one connection to libvirtd. It is made when it is first needed and again when it was lost.
type link struct {
	uri    string
	log    *slog.Logger
	onLink func(*libvirt.Connect) (callbacks []int, err error) // subscribes to events on a new connection
	onLoss func()

	mu      sync.Mutex
	conn    *libvirt.Connect // nil: none
	events  []int            // callbacks of conn
	dialing chan struct{}    // closed when the attempt under way is over; nil: none
	dialErr error            // of the last attempt
	closed  bool

	abandoned atomic.Int32
}

// call runs f on the connection. When ctx ends first, f is left to itself: libvirt's calls cannot be interrupted, but their
// callers must be. F must not touch anything that its caller reads after an error.
func (l *link) call(ctx context.Context, what string, f func(*libvirt.Connect) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := l.get(ctx)
	if err != nil {
		return err
	}
	if l.abandoned.Load() >= maxAbandoned {
		conn.Close() //nolint:errcheck // the count is of no use here
		return problem.New(problem.Unavailable, "libvirt at %s does not answer: %d calls hang", l.uri, maxAbandoned).Try("restart libvirtd on this node; virtual machines go on running")
	}
	done := make(chan error, 1)
	go func() {
		defer conn.Close() //nolint:errcheck // the count is of no use here
		done <- f(conn)
	}()
	select {
	case err = <-done:
		if lost(err) {
			l.drop(conn)
		}
		return explain(err, what, l.uri)
	case <-ctx.Done():
		l.abandoned.Add(1)
		go func() {
			if lost(<-done) {
				l.drop(conn)
			}
			l.abandoned.Add(-1)
		}()
		return overdue(ctx, what, l.uri)
	}
}

func overdue(ctx context.Context, what, uri string) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return problem.New(problem.Cancelled, "cannot %s: it was cancelled", what)
	}
	return problem.New(problem.Unavailable, "cannot %s: libvirt at %s does not answer", what, uri).Try("restart libvirtd on this node if this goes on; virtual machines go on running")
}

// get returns the connection with a reference of its own, which the caller must close.
func (l *link) get(ctx context.Context) (*libvirt.Connect, error) {
	for {
		l.mu.Lock()
		switch {
		case l.closed:
			l.mu.Unlock()
			return nil, problem.New(problem.Unavailable, "the connection to libvirt was closed")
		case l.conn != nil:
			defer l.mu.Unlock()
			if err := l.conn.Ref(); err != nil {
				return nil, explain(err, "use the connection", l.uri)
			}
			return l.conn, nil
		case l.dialing == nil:
			l.dialing = make(chan struct{})
			go l.dial(l.dialing)
		}
		wait := l.dialing
		l.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, overdue(ctx, "connect", l.uri)
		}
		l.mu.Lock()
		err := l.dialErr
		ok := l.conn != nil
		l.mu.Unlock()
		if !ok && err != nil {
			return nil, err
		}
	}
}

// dial connects. It may hang as long as libvirtd does; whoever waits for it has a deadline.
func (l *link) dial(over chan struct{}) {
	conn, events, err := l.connect()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dialing, l.dialErr = nil, nil
	switch {
	case err != nil:
		l.dialErr = problem.New(problem.Unavailable, "cannot connect to libvirt at %s", l.uri).Because("%s", err).
			Try("see that libvirtd runs on this node and that the agent may use its socket")
	case l.closed:
		go hangUp(conn, events)
	default:
		l.conn, l.events = conn, events
	}
	close(over)
}

func (l *link) connect() (conn *libvirt.Connect, events []int, err error) {
	if err := eventLoop(); err != nil {
		return nil, nil, err
	}
	if conn, err = libvirt.NewConnect(l.uri); err != nil {
		return nil, nil, err
	}
	err = conn.SetKeepAlive(keepaliveInterval, keepaliveCount)
	if err == nil {
		err = conn.RegisterCloseCallback(func(*libvirt.Connect, libvirt.ConnectCloseReason) { go l.drop(conn) })
	}
	if err == nil {
		events, err = l.onLink(conn)
	}
	if err != nil {
		hangUp(conn, events)
		return nil, nil, err
	}
	l.log.Info("connected to libvirt", "uri", l.uri)
	return conn, events, nil
}

// hangUp closes conn. Callbacks hold references to a connection, which would never be freed with them.
func hangUp(conn *libvirt.Connect, events []int) {
	for _, id := range events {
		conn.DomainEventDeregister(id) //nolint:errcheck // libvirtd may be gone; what is here is freed in any case
	}
	conn.UnregisterCloseCallback() //nolint:errcheck // as above
	conn.Close()                   //nolint:errcheck // as above
}

// drop forgets conn if it is the current connection. The next call makes a new one.
func (l *link) drop(conn *libvirt.Connect) {
	l.mu.Lock()
	mine, events := l.conn == conn, l.events
	if mine {
		l.conn, l.events = nil, nil
	}
	l.mu.Unlock()
	if mine {
		l.log.Warn("lost the connection to libvirt", "uri", l.uri)
		go hangUp(conn, events)
		l.onLoss()
	}
}

// close ends the connection for good.
func (l *link) close() {
	l.mu.Lock()
	conn, events := l.conn, l.events
	l.conn, l.events, l.closed = nil, nil, true
	l.mu.Unlock()
	if conn != nil {
		go hangUp(conn, events) // a frozen libvirtd must not hold up the end of this process
	}
}
