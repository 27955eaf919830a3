package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Event is one change of one resource.
type Event struct {
	Kind     api.Kind        `json:"kind"`
	ID       string          `json:"id"`
	Name     string          `json:"name"`
	Project  string          `json:"project,omitempty"`
	Revision int64           `json:"revision"`
	Deleted  bool            `json:"deleted"`
	Resource json.RawMessage `json:"resource,omitempty"` // as GET would show it; empty if it was deleted
}

// EventOptions choose events.
type EventOptions struct {
	Since   int64      // the revision after which to begin; 0: from now on
	Kinds   []api.Kind // none: all
	Project string     // empty: all
}

// Events goes through changes as they happen, until ctx is done. A lost connection is taken up again where it broke. The
// last thing it gives is the error that ended it: a conflict problem means that the events since then are no longer kept,
// and the caller should list again.
func (c *Client) Events(ctx context.Context, o EventOptions) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		var at position
		var wait backoff
		for {
			more, err := c.stream(ctx, o, &at, func(e Event) bool {
				wait = backoff{}
				return yield(e, nil)
			})
			if err == nil && !more {
				return // the caller has enough
			}
			if ctx.Err() != nil {
				err = interrupted(ctx, nil)
			}
			if err != nil {
				yield(Event{}, err)
				return
			}
			if !sleep(ctx, wait.next()) {
				yield(Event{}, interrupted(ctx, nil))
				return
			}
		}
	}
}

// position is how far a reader of events has come.
type position struct {
	lastID    string
	connected bool // there was a connection, so that a missing server will be back
}

// stream reads events over one connection. It reports whether another connection should go on.
func (c *Client) stream(ctx context.Context, o EventOptions, at *position, give func(Event) bool) (more bool, err error) {
	r := &request{method: http.MethodGet, path: "/v1/events", query: url.Values{}, header: http.Header{"Accept": {"text/event-stream"}}}
	r.forever = at.connected
	if at.lastID != "" {
		r.header.Set("Last-Event-ID", at.lastID)
	}
	if o.Since > 0 {
		r.query.Set("since", strconv.FormatInt(o.Since, 10))
	}
	if o.Project != "" {
		r.query.Set("project", o.Project)
	}
	if len(o.Kinds) > 0 {
		kinds := make([]string, len(o.Kinds))
		for i, k := range o.Kinds {
			kinds[i] = string(k)
		}
		r.query.Set("kinds", strings.Join(kinds, ","))
	}
	resp, err := c.open(ctx, r)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	at.connected = true
	frames := newFrameReader(resp.Body)
	frames.id = at.lastID
	for {
		f, err := frames.next()
		at.lastID = frames.lastID()
		switch {
		case errors.Is(err, errEventTooLong):
			return false, problem.Wrap(err, problem.Internal, "the events of %s cannot be read", c.base)
		case err != nil:
			if !errors.Is(err, io.EOF) {
				c.config.Trace("events: %v", err)
			}
			return true, nil
		}
		switch f.event {
		case "put", "delete":
			var e Event
			if err := json.Unmarshal([]byte(f.data), &e); err != nil {
				return false, problem.Wrap(err, problem.Internal, "an event of %s cannot be read", c.base)
			}
			if !give(e) {
				return false, nil
			}
		case "problem", "error":
			var d problem.Document
			if err := json.Unmarshal([]byte(f.data), &d); err != nil || d.Code == "" {
				return false, problem.New(problem.Internal, "the server ended the events").Because("%s", f.data)
			}
			return false, d.Problem()
		}
	}
}
