package network

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// OVN is the driver for the northbound database of OVN.
//
// There can be no two rows of one thing: the UUID of every row follows from what it is for, and the server takes no second
// row with a UUID that it has. Two callers that wire the same thing at once, from one process or several, before or after a
// reconnect, are told apart by the wait operations of their transactions: one goes through, the other is planned again on
// what the first has left (see view).
type OVN struct{ link *link }

// NewOVN returns a driver for the northbound database at endpoint, "unix:PATH" or "tcp:HOST:PORT". It connects when it is
// first needed, and again whenever the connection was lost; while the database is away, calls wait a few seconds and then
// fail with unavailable. An endpoint that cannot be one fails every call with invalid.
func NewOVN(endpoint string, log *slog.Logger) *OVN {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &OVN{link: newLink(endpoint, "OVN_Northbound", northbound, log)}
}

// Close ends the connection. A later call connects again.
func (o *OVN) Close() { o.link.close() }

// maxTries bounds how often a transaction is planned. Who loses a race loses it to somebody's progress, so only a bug, or a
// row that keeps another from being made, gets there.
const maxTries = 64

// apply plans a transaction and carries it out, again and again until the server agrees that what it was planned on is so.
// A plan may fail for good only on a copy that is known to be no older than the call.
func (o *OVN) apply(ctx context.Context, what string, plan func(view) (ops, error)) error {
	synced := false
	var last error
	for try := range maxTries {
		s, err := o.link.session(ctx)
		if err != nil {
			return problem.Wrap(err, problem.Unavailable, "cannot %s", what)
		}
		todo, err := plan(view{s.tables})
		switch {
		case err != nil && synced:
			return err
		case err != nil:
			if err = s.sync(ctx); err == nil {
				synced = true
				continue
			}
		default:
			err = s.commit(ctx, todo.operations())
		}
		var stale *staleError
		switch {
		case err == nil:
			if notes := todo.notes(); len(notes) > 0 {
				o.link.log.Debug("network changed", "what", what, "changes", notes)
			}
			return nil
		case errors.Is(err, errLost):
			s.drop()
		case errors.As(err, &stale):
			last = err
			if try%8 == 7 { // a copy that does not come right is made anew
				s.drop()
			} else if err := s.sync(ctx); err != nil {
				s.drop()
			}
			synced = try%8 != 7
			pause(ctx, time.Duration(rand.Int64N(int64(time.Millisecond)<<min(try, 5))))
		default:
			return problem.Wrap(err, problem.Internal, "cannot %s", what)
		}
		if ctx.Err() != nil {
			return problem.Wrap(ended(ctx), problem.Timeout, "cannot %s", what)
		}
	}
	p := problem.New(problem.Unavailable, "cannot %s: the database refuses it again and again", what).
		Try("look for rows that are in the way in the northbound database, and try again")
	if last != nil {
		p.Why = last.Error()
	}
	return p
}

// ended says why ctx is over.
func ended(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return problem.New(problem.Cancelled, "the call was cancelled")
	}
	return problem.New(problem.Timeout, "time ran out").Try("try again")
}

// pause keeps two callers that collide from colliding in step.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
