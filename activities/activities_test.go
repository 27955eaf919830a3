package activities_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// thing is an input that is ordered by what it is about.
type thing struct{ Name string }

func (t thing) FenceKey() string { return t.Name }

type run func(context.Context, steps.Envelope[thing]) (string, error)

// catcher is a registry that keeps the one implementation it is given.
type catcher struct{ run run }

func (c *catcher) RegisterActivityWithOptions(a any, _ activity.RegisterOptions) {
	c.run = a.(func(context.Context, steps.Envelope[thing]) (string, error))
}

func implement(hook activities.Hook, do func(context.Context, steps.Token, thing) (string, error)) run {
	return implementOn(&activities.Host{Log: slog.New(slog.DiscardHandler), Hook: hook}, do)
}

func implementOn(host *activities.Host, do func(context.Context, steps.Token, thing) (string, error)) run {
	var c catcher
	activities.Implement(&c, host, steps.Step[thing, string]{Name: "test.do", Where: steps.Local, Timeout: time.Second}, do)
	return c.run
}

func at(epoch int64, seq int) steps.Token {
	return steps.Token{Operation: "op", Step: "do", Epoch: epoch, Seq: seq}
}

func call(r run, t steps.Token, name string) (string, error) {
	out, err := r(context.Background(), steps.Envelope[thing]{Token: t, In: thing{name}})
	return out, steps.FromActivity("test.do", "", err)
}

func TestALateAttemptIsRefused(t *testing.T) {
	ran := []steps.Token{}
	r := implement(nil, func(_ context.Context, t steps.Token, _ thing) (string, error) {
		ran = append(ran, t)
		return "done", nil
	})
	for _, c := range []struct {
		token steps.Token
		thing string
		late  bool
	}{
		{at(10, 3), "a", false},
		{at(10, 3), "a", false}, // the same attempt, delivered twice
		{at(10, 2), "a", true},
		{at(9, 7), "a", true}, // of an operation that was accepted before
		{at(9, 7), "b", false},
		{at(11, 1), "a", false},
		{at(10, 9), "a", true},
	} {
		out, err := call(r, c.token, c.thing)
		if c.late {
			require.True(t, problem.Is(err, problem.Stale), "%+v: %v", c, err)
			require.Empty(t, out)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, "done", out)
	}
	require.Len(t, ran, 4)
}

// TestTheNewestAttemptHasTheLastWord starts attempts in any order, some while others run: one runs at a time, and none after
// a newer one.
func TestTheNewestAttemptHasTheLastWord(t *testing.T) {
	var mu sync.Mutex
	var inside, last int
	r := implement(nil, func(_ context.Context, tok steps.Token, _ thing) (string, error) {
		mu.Lock()
		inside++
		require.Equal(t, 1, inside)
		require.LessOrEqual(t, last, tok.Seq)
		last = tok.Seq
		mu.Unlock()
		defer func() { mu.Lock(); inside--; mu.Unlock() }()
		return "", nil
	})
	const n = 200
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			_, err := call(r, at(1, 1+i*37%n), "a")
			require.True(t, err == nil || problem.Is(err, problem.Stale), "%v", err)
		})
	}
	wg.Wait()
	require.Equal(t, n, last)
}

// TestWaitingAttemptsLearnThatTheyAreLate blocks one attempt, and lets two more wait behind it.
func TestWaitingAttemptsLearnThatTheyAreLate(t *testing.T) {
	entered, leave := make(chan struct{}, 1), make(chan struct{})
	var ran []int
	r := implement(nil, func(_ context.Context, tok steps.Token, _ thing) (string, error) {
		ran = append(ran, tok.Seq)
		if tok.Seq == 1 {
			entered <- struct{}{}
			<-leave
		}
		return "", nil
	})
	results := map[int]chan error{}
	start := func(seq int) {
		results[seq] = make(chan error, 1)
		go func() {
			_, err := call(r, at(1, seq), "a")
			results[seq] <- err
		}()
	}
	start(1)
	<-entered
	_, err := call(r, at(1, 2), "another thing") // does not wait for anybody
	require.NoError(t, err)
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(temporal.NewCanceledError())
	_, err = r(ctx, steps.Envelope[thing]{Token: at(1, 9), In: thing{"a"}})
	require.True(t, problem.Is(steps.FromActivity("", "", err), problem.Cancelled), "%v", err)
	start(5) // older than the one that has just given up: it is late, too
	close(leave)
	require.NoError(t, <-results[1])
	require.True(t, problem.Is(<-results[5], problem.Stale))
	require.Equal(t, []int{1, 2}, ran, "5 never ran")
}

func TestAPanicIsAFailureOfItsStepAlone(t *testing.T) {
	r := implement(nil, func(_ context.Context, _ steps.Token, in thing) (string, error) {
		if in.Name == "bad" {
			panic("nobody thought of this")
		}
		return "done", nil
	})
	_, err := call(r, at(1, 1), "bad")
	require.True(t, problem.Is(err, problem.Internal), "%v", err)
	require.Contains(t, err.Error(), "nobody thought of this")
	require.NotContains(t, err.Error(), "activities_test.go", "users are spared the stack; the log has it")
	_, err = call(r, at(1, 2), "bad") // its turn was given back
	require.True(t, problem.Is(err, problem.Internal))
	out, err := call(r, at(1, 1), "good")
	require.NoError(t, err)
	require.Equal(t, "done", out)
}

// script is a hook that does as it is told.
type script struct {
	before, after error
	repeat        int
	saw           []error
}

func (s *script) Before(context.Context, steps.Token) error { return s.before }
func (s *script) After(_ context.Context, _ steps.Token, err error) error {
	s.saw = append(s.saw, err)
	if s.after != nil {
		return s.after
	}
	return err
}
func (s *script) Repeat(steps.Token) int { return s.repeat }

func TestHooks(t *testing.T) {
	away, lost := problem.New(problem.Unavailable, "away"), problem.New(problem.Timeout, "lost")
	for name, c := range map[string]struct {
		hook script
		step error
		runs int
		want problem.Kind
		saw  int
	}{
		"nothing":             {hook: script{repeat: 1}, runs: 1, saw: 1},
		"before fails":        {hook: script{repeat: 1, before: away}, want: problem.Unavailable},
		"after takes over":    {hook: script{repeat: 1, after: lost}, runs: 1, want: problem.Timeout, saw: 1},
		"runs twice":          {hook: script{repeat: 2}, runs: 2, saw: 1},
		"after sees the fail": {hook: script{repeat: 1}, step: away, runs: 1, want: problem.Unavailable, saw: 1},
	} {
		t.Run(name, func(t *testing.T) {
			runs := 0
			r := implement(&c.hook, func(context.Context, steps.Token, thing) (string, error) {
				runs++
				return "done", c.step
			})
			_, err := call(r, at(1, 1), "a")
			require.Equal(t, c.want, problem.KindOf(err), "%v", err)
			require.Equal(t, c.runs, runs)
			require.Len(t, c.hook.saw, c.saw)
			if c.saw > 0 {
				require.Equal(t, c.step != nil, c.hook.saw[0] != nil)
			}
		})
	}
}

func TestProblemsCrossTemporalWhole(t *testing.T) {
	r := implement(nil, func(context.Context, steps.Token, thing) (string, error) {
		return "", problem.New(problem.NoCapacity, "full").Because("no disk").Try("add one")
	})
	_, err := call(r, at(1, 1), "a")
	require.Equal(t, "full: no disk (add one)", err.Error())
	require.Equal(t, problem.NoCapacity, problem.KindOf(err))
}

// TestAloneIsNobodyElse: what no step has asked for waits for none, follows none that has just come, and holds up those that come.
func TestAloneIsNobodyElse(t *testing.T) {
	h := &activities.Host{Log: slog.New(slog.DiscardHandler)}
	entered, leave := make(chan struct{}), make(chan struct{})
	r := implementOn(h, func(context.Context, steps.Token, thing) (string, error) {
		entered <- struct{}{}
		<-leave
		return "", nil
	})
	alone := func(since time.Time, do func()) bool {
		did, err := h.Alone("a", since, func() error { do(); return nil })
		require.NoError(t, err)
		return did
	}
	begin := time.Now()
	require.True(t, alone(begin, func() {}), "nobody was ever here")
	done := make(chan error, 1)
	step := func() { _, err := call(r, at(1, 1), "a"); done <- err }
	go step()
	<-entered
	require.False(t, alone(time.Now(), func() {}), "somebody is at work")
	leave <- struct{}{}
	require.NoError(t, <-done)
	require.False(t, alone(begin, func() {}), "somebody has been at work since")
	require.True(t, alone(time.Now(), func() {
		go step()
		select {
		case <-entered:
			t.Error("somebody else works on it")
		case <-time.After(20 * time.Millisecond):
		}
	}))
	<-entered
	leave <- struct{}{}
	require.NoError(t, <-done)
}

// A step that is run where no Temporal is takes as long as it takes: it has nobody to tell that it lives.
func TestLongStepsNeedNoTemporal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c catcher
		activities.Implement(&c, &activities.Host{Log: slog.New(slog.DiscardHandler)}, steps.Step[thing, string]{Name: "test.do", Where: steps.Node, Timeout: time.Hour},
			func(ctx context.Context, _ steps.Token, _ thing) (string, error) {
				activities.Telling(ctx)("half of it is done")
				<-time.After(2 * steps.Heartbeat) // of the bubble
				return "done", nil
			})
		out, err := call(c.run, at(1, 1), "x")
		require.NoError(t, err)
		require.Equal(t, "done", out)
	})
}
