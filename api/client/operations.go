package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/nextstack/nextstack/api"
)

// longPoll is how long one request of Wait is held by the server.
const longPoll = 30 * time.Second

// WaitOptions say how to wait.
type WaitOptions struct {
	// Observe, if set, is given the operation as it is, again and again, the ended one last.
	Observe func(*api.Operation)
	// Every is how often Observe wants to hear; default 0.5 s. Without Observe nobody hears before the end.
	Every time.Duration
}

// Wait returns the operation when it has ended. It outlives restarts of the server: it asks until ctx is done, then it
// returns the operation as it was seen last, if ever, and a problem. That an operation failed is not an error of Wait.
func (c *Client) Wait(ctx context.Context, id string, o WaitOptions) (*api.Operation, error) {
	hold := longPoll
	if o.Observe != nil {
		if hold = o.Every; hold <= 0 {
			hold = 500 * time.Millisecond
		}
	}
	var last *api.Operation
	for {
		begun := time.Now()
		r := &request{method: http.MethodGet, path: item(api.KindOperation, "", id), wait: hold, forever: true}
		r.query = url.Values{"wait": {hold.String()}}
		if last == nil && o.Observe != nil {
			r.query, r.wait = nil, 0 // the first look is at once
		}
		var op api.Operation
		if err := c.call(ctx, r, &op); err != nil {
			return last, err
		}
		last = &op
		if o.Observe != nil {
			o.Observe(last)
		}
		if op.State.Ended() {
			return last, nil
		}
		// A server that answers sooner than it was asked to must not be hammered.
		if pause := min(hold, 200*time.Millisecond) - time.Since(begun); r.wait > 0 && pause > 0 && !sleep(ctx, pause) {
			return last, interrupted(ctx, nil)
		}
	}
}

// Operation returns the operation as it is now.
func (c *Client) Operation(ctx context.Context, id string) (*api.Operation, error) {
	return Get[*api.Operation](ctx, c, "", id)
}

// Cancel asks for the operation to be undone.
func (c *Client) Cancel(ctx context.Context, id string, w Write) (*api.Operation, error) {
	return c.operationVerb(ctx, id, "cancel", w)
}

// Retry starts a failed operation again from its input; the new operation is returned.
func (c *Client) Retry(ctx context.Context, id string, w Write) (*api.Operation, error) {
	return c.operationVerb(ctx, id, "retry", w)
}

// Resume makes a stuck operation try again now.
func (c *Client) Resume(ctx context.Context, id string, w Write) (*api.Operation, error) {
	return c.operationVerb(ctx, id, "resume", w)
}

func (c *Client) operationVerb(ctx context.Context, id, verb string, w Write) (*api.Operation, error) {
	return c.write(ctx, w, http.MethodPost, item(api.KindOperation, "", id)+"/"+verb, nil)
}

// Audit asks for a comparison of the store with the world. The result of the operation is an api.AuditReport.
func (c *Client) Audit(ctx context.Context, a api.AuditRequest, w Write) (*api.Operation, error) {
	return c.write(ctx, w, http.MethodPost, "/v1/audit", a)
}

// Noop asks for an operation that does nothing, which proves that operations work.
func (c *Client) Noop(ctx context.Context, w Write) (*api.Operation, error) {
	return c.write(ctx, w, http.MethodPost, "/v1/noop", nil)
}

// Login trades a password for a token. The client does not take the token for itself: see SetToken.
func (c *Client) Login(ctx context.Context, l api.Login) (*api.LoggedIn, error) {
	var out api.LoggedIn
	if err := c.call(ctx, &request{method: http.MethodPost, path: "/v1/login", body: l}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Logout makes the client's token worthless.
func (c *Client) Logout(ctx context.Context) error {
	return c.call(ctx, &request{method: http.MethodDelete, path: "/v1/login"}, nil)
}
