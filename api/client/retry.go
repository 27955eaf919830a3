package client

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// awayError is a failure that may be over soon: nobody answered, the connection was lost, or the server said that it is
// unavailable.
type awayError struct {
	problem *problem.Problem
	dial    bool          // there was no connection at all
	after   time.Duration // what the server asked us to wait
}

func (e *awayError) Error() string { return e.problem.Error() }
func (e *awayError) Unwrap() error { return e.problem }

// again calls try until it succeeds, fails for good, or patience is over.
func (c *Client) again(ctx context.Context, r *request, try func() error) error {
	begun := time.Now()
	patience, dial := c.config.Patience, c.config.DialPatience
	if r.forever {
		patience, dial = math.MaxInt64, math.MaxInt64
	}
	var wait backoff
	var limit time.Duration
	for {
		err := try()
		var away *awayError
		if !errors.As(err, &away) || r.once {
			return err
		}
		// Once there has been a connection, a server that does not answer is restarting rather than not there.
		if limit = max(limit, dial); !away.dial {
			limit = max(limit, patience)
		}
		d := max(wait.next(), away.after)
		if left := limit - time.Since(begun); left < d {
			return away.problem
		}
		c.config.Trace("trying again in %s", d.Round(time.Millisecond))
		if !sleep(ctx, d) {
			return interrupted(ctx, away.problem)
		}
	}
}

// backoff grows from 0.1 s to 2 s, with jitter so that many clients do not come back at once.
type backoff struct{ step int }

func (b *backoff) next() time.Duration {
	d := min(100*time.Millisecond<<b.step, 2*time.Second)
	if b.step < 5 {
		b.step++
	}
	return d/2 + rand.N(d/2)
}

// sleep waits for d and reports whether ctx was not done before.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// interrupted is the problem of a caller who did not want to wait any longer; last is what was in the way, if anything.
func interrupted(ctx context.Context, last *problem.Problem) error {
	p := problem.New(problem.Cancelled, "interrupted")
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		p = problem.New(problem.Timeout, "the time is over")
	}
	if last != nil {
		p = p.Because("%s", last.Error())
	}
	return p
}

// transportProblem says what became of a request that got no answer; ctx is the caller's own.
func (c *Client) transportProblem(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return interrupted(ctx, nil)
	}
	var p *problem.Problem
	if errors.As(err, &p) {
		return p
	}
	cause := unwrapURL(err)
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return &awayError{dial: true, problem: problem.New(problem.Unavailable, "cannot reach the server at %s", c.base).
			Because("%v", op.Err).
			Try("start it, or say where it is with --host and --port (or GNEXT_HOST and GNEXT_PORT)")}
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return &awayError{problem: problem.New(problem.Timeout, "the server at %s does not answer in time", c.base).
			Because("nothing came within %s", c.config.Timeout).Try("try again; look at the log of the server if it persists")}
	}
	return &awayError{problem: problem.New(problem.Unavailable, "the connection to %s was lost", c.base).
		Because("%v", cause).Try("try again; look at the log of the server if it persists")}
}

// unwrapURL takes off the wrapping that repeats method and address.
func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// retryAfter reads the header of that name, in seconds; more than half a minute is not believed.
func retryAfter(resp *http.Response) time.Duration {
	n, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return min(time.Duration(n)*time.Second, 30*time.Second)
}
