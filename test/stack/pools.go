package stack

import (
	"context"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Server is what a pool of the stack cannot do without: a brick of GlusterFS, or the OSD of Ceph.
type Server struct {
	stack       *Stack
	pid         func(ctx context.Context) (string, error)
	kill, start []string // verbs of sandbox.sh
}

// Server returns the one of a pool: Gluster or Ceph.
func (s *Stack) Server(pool string) Server {
	if pool == Ceph {
		return Server{s, func(context.Context) (string, error) {
			b, err := os.ReadFile(s.path("s", "ceph", "run", "osd.0.pid"))
			return string(b), err
		}, []string{"ceph-kill", "osd.0"}, []string{"ceph"}}
	}
	return Server{s, func(ctx context.Context) (string, error) {
		return s.sandboxDo(ctx, "file-pid", glusterVolume)
	}, []string{"file-kill", glusterVolume}, []string{"gluster"}}
}

// Freeze has the server do nothing any more: its connections stand, and nobody answers.
func (p Server) Freeze(ctx context.Context) error { return p.signal(ctx, syscall.SIGSTOP) }

// Thaw ends that.
func (p Server) Thaw(ctx context.Context) error { return p.signal(ctx, syscall.SIGCONT) }

func (p Server) signal(ctx context.Context, sig syscall.Signal) error {
	out, err := p.pid(ctx)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		return err
	}
	return syscall.Kill(pid, sig)
}

// Kill is kill -9. It returns when the server is gone.
func (p Server) Kill(ctx context.Context) error {
	_, err := p.stack.sandboxDo(ctx, p.kill...)
	return err
}

// Start starts it again, and returns when it answers.
func (p Server) Start(ctx context.Context) error {
	_, err := p.stack.sandboxDo(ctx, p.start...)
	return err
}
