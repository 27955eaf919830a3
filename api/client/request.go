package client

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"net/url"
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// maxAnswer bounds what is read of an answer that is decoded in memory.
const maxAnswer = 256 << 20

// request is what all attempts at one request have in common.
type request struct {
	method string
	path   string
	query  url.Values
	header http.Header
	body   any           // sent as JSON, unless nil
	wait   time.Duration // how long the server was asked to hold the answer back
	// source, if set, gives the raw body of one attempt; a negative size is not known.
	source func() (body io.ReadCloser, size int64, err error)
	// forever makes the request be sent until ctx is done, whatever the configured patience.
	forever bool
	// once makes the request be sent once only: a failure that may be over soon is returned as it is.
	once bool
}

// call sends r, again if need be, and decodes the answer into out unless that is nil.
func (c *Client) call(ctx context.Context, r *request, out any) error {
	data, err := r.encode()
	if err != nil {
		return err
	}
	return c.again(ctx, r, func() error {
		timeout := c.config.Timeout + r.wait
		if r.source != nil {
			timeout = 0 // an upload takes as long as it takes
		}
		actx, cancel := ctx, context.CancelFunc(func() {})
		if timeout > 0 {
			actx, cancel = context.WithTimeout(ctx, timeout)
		}
		defer cancel()
		resp, err := c.attempt(actx, r, data)
		if err != nil {
			return c.transportProblem(ctx, err)
		}
		defer resp.Body.Close()
		// The whole answer is read here: a connection that is lost in the middle of it is a lost connection, too.
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if err != nil {
			return c.transportProblem(ctx, err)
		}
		if err := c.statusProblem(resp, body); err != nil {
			return err
		}
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(body, out); err != nil {
			return problem.New(problem.Internal, "the answer of %s to %s %s cannot be read", c.base, r.method, r.path).
				Because("%v", err).Try("check that the server and this program are of the same version (gnext version --server)")
		}
		return nil
	})
}

// open sends r and returns the answer with its body unread, for streams. Only the headers have a deadline.
func (c *Client) open(ctx context.Context, r *request) (*http.Response, error) {
	data, err := r.encode()
	if err != nil {
		return nil, err
	}
	var out *http.Response
	err = c.again(ctx, r, func() error {
		actx, cancel := context.WithCancel(ctx)
		headers := time.AfterFunc(c.config.Timeout, cancel)
		resp, err := c.attempt(actx, r, data)
		if err == nil && !headers.Stop() {
			resp.Body.Close()
			err = context.DeadlineExceeded
		}
		if err != nil {
			cancel()
			return c.transportProblem(ctx, err)
		}
		if resp.StatusCode >= 300 {
			defer cancel()
			defer resp.Body.Close()
			body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
			if err != nil {
				return c.transportProblem(ctx, err)
			}
			return c.statusProblem(resp, body)
		}
		resp.Body = &cancelBody{ReadCloser: resp.Body, cancel: cancel}
		out = resp
		return nil
	})
	return out, err
}

// cancelBody frees the context of a streamed answer when it is closed.
type cancelBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *cancelBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

func (r *request) encode() ([]byte, error) {
	if r.body == nil {
		return nil, nil
	}
	data, err := json.Marshal(r.body)
	if err != nil {
		return nil, problem.Wrap(err, problem.Internal, "the body of %s %s cannot be encoded", r.method, r.path)
	}
	return data, nil
}

// attempt sends r once.
func (c *Client) attempt(ctx context.Context, r *request, data []byte) (*http.Response, error) {
	var body io.Reader
	size := int64(len(data))
	if r.source != nil {
		var err error
		if body, size, err = r.source(); err != nil {
			return nil, err
		}
	} else if data != nil {
		body = bytes.NewReader(data)
	}
	target := c.base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return nil, problem.Wrap(err, problem.Invalid, "%s %s cannot be sent", r.method, r.path)
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if r.source != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
		req.ContentLength = size
	} else if data != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "application/json, application/problem+json")
	}
	req.Header.Set("User-Agent", c.config.UserAgent)
	if t := *c.token.Load(); t != "" {
		req.Header.Set("Authorization", "Bearer "+t)
	}
	begun := time.Now()
	resp, err := c.http.Do(req)
	took := time.Since(begun).Round(time.Millisecond)
	if err != nil {
		c.config.Trace("%s %s: %v (%s)", r.method, target, unwrapURL(err), took)
		return nil, err
	}
	c.config.Trace("%s %s: %s (%s)", r.method, target, resp.Status, took)
	return resp, nil
}

// statusProblem returns nil for an answer that says yes, and what it says otherwise.
func (c *Client) statusProblem(resp *http.Response, body []byte) error {
	if resp.StatusCode < 300 {
		return nil
	}
	p := decodeProblem(resp, body)
	if p == nil {
		p = problem.New(kindOfStatus(resp.StatusCode), "%s answered %s", c.base, resp.Status).
			Because("the answer is not one of a nextstack server").
			Try("check --host and --port (GNEXT_HOST, GNEXT_PORT), and what stands between")
	}
	if p.Lasting {
		return p
	}
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return &awayError{problem: p, after: retryAfter(resp)}
	}
	return p
}

func decodeProblem(resp *http.Response, body []byte) *problem.Problem {
	if t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || t != "application/problem+json" && t != "application/json" {
		return nil
	}
	var d problem.Document
	if err := json.Unmarshal(body, &d); err != nil || d.Detail == "" && d.Title == "" {
		return nil
	}
	if d.Detail == "" {
		d.Detail = d.Title
	}
	if d.Code == "" {
		d.Code = kindOfStatus(resp.StatusCode)
	}
	return d.Problem()
}

// kindOfStatus is for answers without a code, from a proxy, say.
func kindOfStatus(status int) problem.Kind {
	switch {
	case status == http.StatusUnauthorized:
		return problem.Unauthenticated
	case status == http.StatusForbidden:
		return problem.Forbidden
	case status == http.StatusNotFound:
		return problem.NotFound
	case status == http.StatusConflict:
		return problem.Conflict
	case status == http.StatusPreconditionFailed:
		return problem.Precondition
	case status == http.StatusRequestEntityTooLarge:
		return problem.TooLarge
	case status == http.StatusNotImplemented || status == http.StatusMethodNotAllowed:
		return problem.Unsupported
	case status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests:
		return problem.Unavailable
	case status == http.StatusGatewayTimeout:
		return problem.Timeout
	case status >= 400 && status < 500:
		return problem.Invalid
	default:
		return problem.Internal
	}
}
