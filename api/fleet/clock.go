package fleet

import (
	"time"

	"github.com/nextstack/nextstack/api"
)

// Clock is the clock that leases are judged by. It is the wall clock as it was when this life of the server began, and from
// then on it only runs: somebody who sets the machine's clock must not end leases by it.
type Clock struct {
	life  string
	began time.Time
	now   func() time.Time
}

// NewClock begins a life by a source of time; time.Now, but in tests.
func NewClock(now func() time.Time) *Clock {
	return &Clock{life: api.NewID(), began: now(), now: now}
}

var process = NewClock(time.Now)

// ProcessClock is the clock of this process. All its parts share it, so that they agree on which leases are their own.
func ProcessClock() *Clock { return process }

// Now returns the time, in UTC.
func (c *Clock) Now() time.Time { return c.At(c.now()) }

// At returns what Now returned, or will return, when the source says t.
func (c *Clock) At(t time.Time) time.Time { return c.began.Round(0).Add(t.Sub(c.began)).UTC() }

// Began returns when this life began.
func (c *Clock) Began() time.Time { return c.began.Round(0).UTC() }

// Life tells this life of the server from all others.
func (c *Clock) Life() string { return c.life }
