// Package activities is where steps meet the world. Its sub-packages each do one outside system's work; here is what they
// share: how a step's implementation is registered, fenced against late attempts, and made to report that it is alive.
package activities

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Registry is the part of a Temporal worker, or of a test environment, that takes implementations.
type Registry interface {
	RegisterActivityWithOptions(a any, options activity.RegisterOptions)
}

// Hook is called around every attempt of every step; an error from it takes the place of the step's own. Fault injection
// and crash tests use it; in production there is none.
type Hook interface {
	// Before runs first. A non-nil error: the step does not run.
	Before(ctx context.Context, t steps.Token) error
	// After runs when the step has run, with its error. What it returns is the answer.
	After(ctx context.Context, t steps.Token, err error) error
	// Repeat says how many times the step should really be run: 1 but for those who test that twice is as good as once.
	Repeat(t steps.Token) int
}

// Host is what the implementations of one worker share.
type Host struct {
	Log   *slog.Logger
	Hook  Hook // may be nil
	fence fence
}

// fenced inputs are ordered by the resource that they touch.
type fenced interface{ FenceKey() string }

// Implement registers do as the implementation of step in reg. Do must be idempotent: it may be run again after any
// interruption, and an attempt may find the work of an earlier one done, half-done or undone.
func Implement[In, Out any](reg Registry, h *Host, step steps.Step[In, Out], do func(context.Context, steps.Token, In) (Out, error)) {
	run := func(ctx context.Context, env steps.Envelope[In]) (Out, error) {
		if step.Where != steps.Local && activity.IsActivity(ctx) { // simulated runs have nobody to tell
			var stop func()
			ctx, stop = heartbeat(ctx)
			defer stop()
		}
		out, err := attempt(ctx, h, env, do)
		err = cutOff(ctx, err)
		if err != nil {
			h.Log.Warn("step failed", "step", step.Name, "operation", env.Token.Operation, "undo", env.Token.Undo, "error", err)
		}
		return out, steps.ToActivity(err)
	}
	reg.RegisterActivityWithOptions(run, activity.RegisterOptions{Name: step.Name})
}

// cutOff tells an operation that was cancelled from a step that was cut off, because its process ends or has not reached Temporal
// for so long that nobody waits for its answer any more. Only the first is a wish; the second is tried again.
func cutOff(ctx context.Context, err error) error {
	if ctx.Err() == nil || !problem.Is(err, problem.Cancelled) || temporal.IsCanceledError(context.Cause(ctx)) {
		return err
	}
	return problem.New(problem.Unavailable, "the step was cut off").Because("%s", err.Error())
}

func attempt[In, Out any](ctx context.Context, h *Host, env steps.Envelope[In], do func(context.Context, steps.Token, In) (Out, error)) (out Out, err error) {
	if f, ok := any(env.In).(fenced); ok {
		leave, ferr := h.fence.enter(ctx, f.FenceKey(), env.Token)
		if ferr != nil {
			return out, ferr
		}
		defer leave()
	}
	repeat := 1
	if h.Hook != nil {
		if err := h.Hook.Before(ctx, env.Token); err != nil {
			return out, err
		}
		repeat = h.Hook.Repeat(env.Token)
	}
	for range repeat {
		out, err = guarded(ctx, h, env, do)
	}
	if h.Hook != nil {
		err = h.Hook.After(ctx, env.Token, err)
	}
	return out, err
}

// guarded turns a panic of one step into its failure: the other operations of this process have done nothing wrong.
func guarded[In, Out any](ctx context.Context, h *Host, env steps.Envelope[In], do func(context.Context, steps.Token, In) (Out, error)) (out Out, err error) {
	defer func() {
		if p := recover(); p != nil {
			h.Log.Error("step panicked", "step", env.Token.Step, "operation", env.Token.Operation, "panic", p, "stack", string(debug.Stack()))
			err = problem.New(problem.Internal, "step %s panicked", env.Token.Step).Because("%s", fmt.Sprint(p)).Try("the stack is in the log of the process that ran it")
		}
	}()
	return do(ctx, env.Token, env.In)
}

// told is what a running step last told of itself.
type told struct{ progress atomic.Pointer[api.Progress] }

type toldKey struct{}

// Tell says how far a running step is. It can be called as often as one likes: what is sent is the last that was told, every
// second or so. Users see it in the operation. Outside a step it does nothing.
func Tell(ctx context.Context, p api.Progress) {
	if t, ok := ctx.Value(toldKey{}).(*told); ok {
		t.progress.Store(&p)
	}
}

// Telling returns Tell for those who only have a sentence to tell.
func Telling(ctx context.Context) func(string) {
	return func(text string) { Tell(ctx, api.Progress{Text: text}) }
}

// Reporting returns Tell for those who tell how far they are.
func Reporting(ctx context.Context) func(api.Progress) {
	return func(p api.Progress) { Tell(ctx, p) }
}

// heartbeat tells Temporal every second or so that the step's process lives, and what it told last, until stop is called. It
// also is how the step's context learns that the operation was cancelled.
func heartbeat(ctx context.Context) (telling context.Context, stop func()) {
	news := &told{}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(steps.Heartbeat / 5)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				if p := news.progress.Load(); p != nil {
					activity.RecordHeartbeat(ctx, *p)
				} else {
					activity.RecordHeartbeat(ctx)
				}
			case <-done:
				return
			}
		}
	})
	return context.WithValue(ctx, toldKey{}, news), func() { close(done); wg.Wait() }
}

// Alone does something to a resource that no step has asked for, if no step works on the resource or has come to since a moment.
// Steps that come meanwhile wait. It reports whether it did.
func (h *Host) Alone(resource string, since time.Time, do func() error) (did bool, err error) {
	leave, ok := h.fence.enterAlone(resource, since)
	if !ok {
		return false, nil
	}
	defer leave()
	return true, do()
}

// fence orders the attempts on one resource: one at a time, and never an older one after a newer. Without it a delayed
// "start" could follow its own undo and leave a domain that nobody knows.
type fence struct {
	mu     sync.Mutex
	res    map[string]*gate
	forgot time.Time // when gates were last forgotten
}

type gate struct {
	turn   chan struct{} // holds one token: who has it may work
	newest steps.Token
	users  int
	came   time.Time // when the last attempt came
}

// gatesKept bounds the memory of a long-lived agent. Forgetting an idle gate is safe once its operation has ended, and
// there are far fewer operations in flight on one node than this.
const gatesKept = 10000

func (f *fence) enter(ctx context.Context, key string, t steps.Token) (leave func(), err error) {
	g := f.gate(key, t)
	select {
	case <-g.turn:
	case <-ctx.Done():
		f.put(g)
		return nil, problem.New(problem.Cancelled, "step %s was cancelled while it waited for its turn", t.Step)
	}
	f.mu.Lock()
	newest := g.newest
	f.mu.Unlock()
	leave = func() { g.turn <- struct{}{}; f.put(g) }
	if t.Before(newest) {
		leave()
		return nil, problem.New(problem.Stale, "attempt %d of step %s came too late", t.Seq, t.Step).Because("attempt %d of operation %s came before it", newest.Seq, newest.Operation)
	}
	return leave, nil
}

// gate returns the gate of key and notes at once that t is here, so that attempts already waiting learn that they are late.
func (f *fence) gate(key string, t steps.Token) *gate {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.at(key)
	g.users++
	g.came = time.Now()
	if g.newest.Before(t) {
		g.newest = t
	}
	return g
}

// at returns the gate of key. It is called with the lock held.
func (f *fence) at(key string) *gate {
	if f.res == nil {
		f.res = map[string]*gate{}
	}
	g := f.res[key]
	if g == nil {
		f.forget()
		g = &gate{turn: make(chan struct{}, 1)}
		g.turn <- struct{}{}
		f.res[key] = g
	}
	return g
}

// enterAlone enters if nobody is there, and nobody has come since a moment.
func (f *fence) enterAlone(key string, since time.Time) (leave func(), ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.at(key)
	if g.users > 0 || !g.came.Before(since) || !f.forgot.Before(since) {
		return nil, false
	}
	<-g.turn // there is no user, so it is there
	g.users++
	return func() { g.turn <- struct{}{}; f.put(g) }, true
}

func (f *fence) forget() {
	if len(f.res) < gatesKept {
		return
	}
	f.forgot = time.Now()
	for k, g := range f.res {
		if g.users == 0 {
			delete(f.res, k)
		}
	}
}

func (f *fence) put(g *gate) {
	f.mu.Lock()
	g.users--
	f.mu.Unlock()
}
