package storage

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api/problem"
)

// Timing of file systems that may not answer.
const (
	// lookEvery is how often a file system is looked at while calls wait for it.
	lookEvery = 2 * time.Second
	// patienceWithServer is how long it may be silent. Whoever waits for it then gives up.
	patienceWithServer = 15 * time.Second
	// tidyUpFor is how long a call that was cancelled may take to clean up before it is given up.
	tidyUpFor = 10 * time.Second
)

// gate keeps those who use a file system that may not answer from waiting for ever. A call into the kernel cannot be broken off:
// it goes on in a goroutine, and a thread, of its own when it was given up. Until all that were given up have come back, nobody
// new is let in: what hangs stays bounded, and what was given up cannot do its work after what came later.
type gate struct {
	look  func() error // what is tried to see whether the file system answers
	every time.Duration
	limit time.Duration
	tidy  time.Duration

	mu      sync.Mutex
	given   int           // calls that were given up and have not come back
	running int           // calls
	asked   time.Time     // when the look that is under way began; zero: none is
	answer  chan struct{} // closed when it has
	last    time.Time     // when the last call ended
	err     error         // what the last look said
}

func newGate(look func() error) *gate {
	return &gate{look: look, every: lookEvery, limit: patienceWithServer, tidy: tidyUpFor}
}

// idle reports whether nobody uses the file system, and nobody has for a while.
func (g *gate) idle(while time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running == 0 && g.given == 0 && time.Since(g.last) > while
}

// ask looks at the file system unless somebody does. The channel is closed when it has answered.
func (g *gate) ask() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asked.IsZero() {
		g.asked, g.answer = time.Now(), make(chan struct{})
		go func(done chan struct{}) {
			err := g.look()
			g.mu.Lock()
			defer g.mu.Unlock()
			g.asked, g.err = time.Time{}, err
			close(done)
		}(g.answer)
	}
	return g.answer
}

// silent reports whether the file system has not answered for too long.
func (g *gate) silent() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.asked.IsZero() && time.Since(g.asked) > g.limit
}

// enter lets a call in, unless one that was given up may come back yet.
func (g *gate) enter(name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.given > 0 || !g.asked.IsZero() && time.Since(g.asked) > g.limit {
		return unanswered(name)
	}
	g.running++
	return nil
}

func unanswered(name string) error {
	return problem.New(problem.Unavailable, "%s does not answer", name).Because("calls to it have not come back").
		Try("see whether its servers run and can be reached from this node; it goes on by itself when they answer")
}

// through makes a call that may never come back. Name says what does not answer then.
func through[T any](ctx context.Context, g *gate, name string, do func(context.Context) (T, error)) (T, error) {
	var none T
	if err := g.enter(name); err != nil {
		g.ask()
		return none, err
	}
	type result struct {
		value T
		err   error
	}
	cctx, cancel := context.WithCancel(ctx)
	done := make(chan result, 1)
	var gone bool // under g.mu
	go func() {
		defer cancel()
		v, err := do(cctx)
		g.mu.Lock()
		defer g.mu.Unlock()
		if gone {
			g.given--
		} else {
			g.running--
		}
		g.last = time.Now()
		done <- result{v, err}
	}()
	giveUp := func() (T, error) {
		cancel()
		g.mu.Lock()
		defer g.mu.Unlock()
		select {
		case r := <-done: // just now
			return r.value, r.err
		default:
		}
		gone = true
		g.running--
		g.given++
		return none, unanswered(name)
	}
	t := time.NewTicker(g.every)
	defer t.Stop()
	var tidied <-chan time.Time
	over := ctx.Done()
	for {
		select {
		case r := <-done:
			return r.value, r.err
		case <-t.C:
			g.ask()
			if g.silent() {
				return giveUp()
			}
		case <-over: // who was cancelled may tidy up
			over = nil
			timer := time.NewTimer(g.tidy)
			defer timer.Stop()
			tidied = timer.C
		case <-tidied:
			return giveUp()
		}
	}
}

// away reports whether an error is that of a file system whose servers are away.
func away(err error) bool {
	for _, e := range []unix.Errno{unix.ENOTCONN, unix.ESTALE, unix.ETIMEDOUT, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ECONNREFUSED, unix.ECONNRESET, unix.ECONNABORTED, unix.ESHUTDOWN, unix.EIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
