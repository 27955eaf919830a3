package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"github.com/nextstack/nextstack/api/problem"
)

const (
	patience    = 3 * time.Second // how long a call waits for a server that is away
	answerTime  = 5 * time.Second // how long a server that is there may take for one transaction
	firstRetry  = 10 * time.Millisecond
	slowestPoll = 250 * time.Millisecond
)

// errLost means that the connection is gone, and with it perhaps an answer: nobody knows whether it happened.
var errLost = errors.New("the connection to the database was lost")

// staleError means that the database is not as our copy showed it. Nothing happened.
type staleError struct{ why string }

func (e *staleError) Error() string { return e.why }

// link keeps one connection to a database, made when it is needed.
type link struct {
	endpoint, database string
	describe           func() (model.ClientDBModel, error)
	log                *slog.Logger
	turn               chan struct{} // holds one token: who has it may look at or change current
	current            *session
	away               bool // the last attempt to connect failed; only for the log
}

// session is one connection with the copy of the database that it feeds. Both end together.
type session struct {
	link   *link
	client client.Client
	tables *cache.TableCache
	gone   chan struct{} // closed when the connection has ended, or is not to be used any more
	once   sync.Once
}

func (s *session) end() { s.once.Do(func() { close(s.gone) }) }

func newLink(endpoint, database string, describe func() (model.ClientDBModel, error), log *slog.Logger) *link {
	l := &link{endpoint: endpoint, database: database, describe: describe, log: log, turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	return l
}

func checkEndpoint(e string) error {
	scheme, rest, _ := strings.Cut(e, ":")
	switch scheme {
	case "unix":
		if strings.HasPrefix(rest, "/") {
			return nil
		}
	case "tcp":
		if host, port, err := net.SplitHostPort(rest); err == nil && host != "" && port != "" {
			return nil
		}
	}
	return problem.New(problem.Invalid, "%q is no OVSDB endpoint", e).Try("write unix:/absolute/path or tcp:HOST:PORT")
}

// session returns the current connection, made anew if need be. It tries until the server is there, patience has run out or
// the caller's time has; a bit of that is left, so that the caller gets to hear why.
func (l *link) session(ctx context.Context) (*session, error) {
	if err := checkEndpoint(l.endpoint); err != nil {
		return nil, err
	}
	limit := patience
	if t, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(t)*9/10)
	}
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case <-l.turn:
		defer func() { l.turn <- struct{}{} }()
	case <-wait.Done():
		return nil, l.unavailable(ctx, errors.New("others are still trying to connect"))
	}
	if s := l.current; s != nil {
		select {
		case <-s.gone:
			l.current = nil
		default:
			return s, nil
		}
	}
	var err error
	for delay := firstRetry; ; delay = min(delay*2, slowestPoll) {
		s, cerr := l.connect(wait)
		if cerr == nil {
			if l.away {
				l.log.Info("the database is back", "database", l.database, "endpoint", l.endpoint)
			}
			l.current, l.away = s, false
			return s, nil
		}
		if err == nil || wait.Err() == nil { // an attempt that our own time cut short tells nothing
			err = cerr
		}
		if !l.away {
			l.log.Warn("the database is away", "database", l.database, "endpoint", l.endpoint, "error", cerr)
			l.away = true
		}
		pause(wait, delay)
		if wait.Err() != nil {
			return nil, l.unavailable(ctx, err)
		}
	}
}

func (l *link) unavailable(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ended(ctx)
	}
	return problem.New(problem.Unavailable, "the database %s at %s cannot be reached", l.database, l.endpoint).
		Because("%v", err).Try("see that its ovsdb-server runs, and try again")
}

// connect makes a connection and waits until it has fed us the whole database. It does not reconnect by itself: whatever is
// wrong with a connection or a copy, a new one of both is the cure.
func (l *link) connect(ctx context.Context) (*session, error) {
	m, err := l.describe()
	if err != nil {
		return nil, err
	}
	c, err := client.NewOVSDBClient(m, client.WithEndpoint(l.endpoint))
	if err != nil {
		return nil, err
	}
	s := &session{link: l, client: c, gone: make(chan struct{})}
	failed := make(chan struct{})
	go func() { // listens from the start: the client drops a notice that nobody waits for
		select {
		case <-c.DisconnectNotify():
		case <-failed:
		}
		s.end()
	}()
	if err := c.Connect(ctx); err != nil {
		close(failed)
		return nil, err
	}
	if err := s.follow(ctx, m); err != nil {
		go c.Close()
		return nil, err
	}
	s.tables = c.Cache()
	if s.tables == nil {
		return nil, errLost
	}
	return s, nil
}

// follow has the server tell us the columns that we know, now and whenever they change.
func (s *session) follow(ctx context.Context, m model.ClientDBModel) error {
	monitor := s.client.NewMonitor()
	monitor.Method = ovsdb.ConditionalMonitorRPC // with the newer one the client would hide that its copy broke
	for table, t := range m.Types() {
		var columns []string
		for i := range t.Elem().NumField() {
			if c := t.Elem().Field(i).Tag.Get("ovsdb"); c != "_uuid" {
				columns = append(columns, c)
			}
		}
		monitor.Tables = append(monitor.Tables, client.TableMonitor{Table: table, Fields: columns})
	}
	_, err := s.client.Monitor(ctx, monitor)
	return err
}

// drop ends a connection that has shown itself useless.
func (s *session) drop() {
	s.end()
	go s.client.Close() // it waits for calls that are under way
}

func (l *link) close() {
	<-l.turn
	s := l.current
	l.current = nil
	l.turn <- struct{}{}
	if s != nil {
		s.client.Close()
		<-s.gone
	}
}

// sync waits until our copy is as new as the moment of the call: on one connection the server tells every change before it
// answers what was asked after it.
func (s *session) sync(ctx context.Context) error {
	comment := "sync"
	_, err := s.transact(ctx, []ovsdb.Operation{{Op: ovsdb.OperationComment, Comment: &comment}})
	return err
}

// commit carries the operations out as one transaction. When it returns, our copy shows them.
func (s *session) commit(ctx context.Context, todo []ovsdb.Operation) error {
	if len(todo) == 0 {
		return nil
	}
	results, err := s.transact(ctx, todo)
	if err != nil {
		return err
	}
	for i, r := range results {
		if r.Error == "" {
			continue
		}
		at := "at the end"
		if i < len(todo) {
			at = fmt.Sprintf("in %s on %s", todo[i].Op, todo[i].Table)
		}
		why := fmt.Sprintf("%s %s: %s", r.Error, at, r.Details)
		switch r.Error {
		case "timed out", "duplicate uuid", "constraint violation", "referential integrity violation":
			return &staleError{why}
		case "resources exhausted", "I/O error", "not owner", "not allowed":
			return problem.New(problem.Unavailable, "the database %s at %s did not take it", s.link.database, s.link.endpoint).Because("%s", why)
		default:
			return problem.New(problem.Internal, "the database %s did not understand us", s.link.database).Because("%s", why)
		}
	}
	if len(results) < len(todo) {
		return problem.New(problem.Internal, "the database %s answered %d of %d operations", s.link.database, len(results), len(todo))
	}
	return nil
}

func (s *session) transact(ctx context.Context, todo []ovsdb.Operation) ([]ovsdb.OperationResult, error) {
	limited, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	results, err := s.client.Transact(limited, todo...)
	switch {
	case err == nil:
		return results, nil
	case limited.Err() != nil:
		s.drop() // a late answer must not be taken for another's
		if ctx.Err() != nil {
			return nil, ended(ctx)
		}
		return nil, problem.New(problem.Timeout, "the database %s at %s gave no answer within %s", s.link.database, s.link.endpoint, answerTime).Try("try again")
	default:
		return nil, fmt.Errorf("%w: %w", errLost, err)
	}
}
