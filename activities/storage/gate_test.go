package storage

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api/problem"
)

// server is a file system that may be made to hang.
type server struct {
	hang   chan struct{}
	looked chan struct{}
}

func (s *server) look() error {
	if s.looked != nil {
		s.looked <- struct{}{}
	}
	if s.hang != nil {
		<-s.hang
	}
	return nil
}

func quickGate(s *server) *gate {
	g := newGate(s.look)
	g.every, g.limit, g.tidy = 5*time.Millisecond, 30*time.Millisecond, 30*time.Millisecond
	return g
}

func TestWhatHangsIsGivenUp(t *testing.T) {
	s := &server{hang: make(chan struct{})}
	g := quickGate(s)
	calls := make(chan struct{}, 10)
	call := func() error {
		_, err := through(t.Context(), g, "pool x", func(context.Context) (int, error) { calls <- struct{}{}; <-s.hang; return 1, nil })
		return err
	}
	for range 5 {
		require.Equal(t, problem.Unavailable, problem.KindOf(call()))
	}
	require.Len(t, calls, 1, "only the first was let in")
	require.False(t, g.idle(0))
	close(s.hang) // the server is back
	require.Eventually(t, func() bool { return call() == nil }, time.Minute, time.Millisecond)
	require.Eventually(t, func() bool { return g.idle(0) }, time.Minute, time.Millisecond)
}

func TestASlowCallIsNotGivenUpWhileTheServerAnswers(t *testing.T) {
	s := &server{looked: make(chan struct{})}
	g := quickGate(s)
	begun := time.Now()
	v, err := through(t.Context(), g, "pool x", func(context.Context) (int, error) {
		for time.Since(begun) < 5*g.limit {
			<-s.looked
		}
		s.looked = nil
		return 7, nil
	})
	require.NoError(t, err)
	require.Equal(t, 7, v)
}

func TestACancelledCallTidiesUp(t *testing.T) {
	g := quickGate(&server{})
	ctx, cancel := context.WithCancel(t.Context())
	tidy := errors.New("tidied up")
	_, err := through(ctx, g, "pool x", func(ctx context.Context) (int, error) { cancel(); <-ctx.Done(); return 0, tidy })
	require.ErrorIs(t, err, tidy)
	// One that does not is given up, and nobody is let in until it has come back.
	ctx, cancel = context.WithCancel(t.Context())
	back := make(chan struct{})
	_, err = through(ctx, g, "pool x", func(context.Context) (int, error) { cancel(); <-back; return 0, nil })
	require.Equal(t, problem.Unavailable, problem.KindOf(err))
	_, err = through(t.Context(), g, "pool x", func(context.Context) (int, error) { return 0, nil })
	require.Equal(t, problem.Unavailable, problem.KindOf(err))
	close(back)
	require.Eventually(t, func() bool { return g.idle(0) }, time.Minute, time.Millisecond)
}
