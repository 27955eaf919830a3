package network

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api/problem"
)

func TestConnectsLate(t *testing.T) {
	s, o := newTestOVN(t)
	s.stop()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	err := o.WireVPC(ctx, aWorld().vpc)
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
	require.NoError(t, ctx.Err(), "the answer came after the caller had gone")

	done := make(chan error, 1)
	go func() { done <- o.WireVPC(testContext(t), aWorld().vpc) }()
	s.start()
	require.NoError(t, <-done, "a call that waits goes on when the server comes")
}

func TestServerRestarts(t *testing.T) {
	for name, end := range map[string]func(*server){"stopped": (*server).stop, "killed": (*server).kill} {
		t.Run(name, func(t *testing.T) {
			s, o := newTestOVN(t)
			ctx := testContext(t)
			w := aWorld()
			require.NoError(t, o.WireVPC(ctx, w.vpc))
			end(s)
			s.start()
			require.NoError(t, o.WireSubnet(ctx, w.subnets[0]), "the first call after a restart works")
			end(s)
			short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			err := o.UnwireSubnet(short, uid(11))
			cancel()
			require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
			s.start()
			w.wire(ctx, t, o)
			settled(ctx, t, o, w)
		})
	}
}

// TestServerHangs stops the server's process: it keeps its connections, and answers nothing.
func TestServerHangs(t *testing.T) {
	s, o := newTestOVN(t)
	ctx := testContext(t)
	w := aWorld()
	w.wire(ctx, t, o)
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGSTOP))
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	err := o.UnwirePorts(short, []string{uid(31)})
	require.True(t, problem.Is(err, problem.Timeout), "%v", err) // it was sent, so nobody knows
	require.Less(t, time.Since(begin), 2*time.Second)
	again, cancel2 := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel2()
	err = o.UnwirePorts(again, []string{uid(32)})
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err) // it never was
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGCONT))
	w.wire(ctx, t, o)
	settled(ctx, t, o, w)
}

func TestTCP(t *testing.T) {
	s, o := newTestOVN(t)
	ctx := testContext(t)
	require.NoError(t, o.WireVPC(ctx, aWorld().vpc))
	port := s.tcpPort()
	p := NewOVN(fmt.Sprintf("tcp:127.0.0.1:%d", port), nil)
	defer p.Close()
	require.Len(t, list(ctx, t, p).Items, 1)
	p.Close()
	require.Len(t, list(ctx, t, p).Items, 1, "a closed driver connects again")
}
