package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// Timing of a keeper.
const (
	keepEvery  = time.Second
	startsIn   = 10 * time.Second // how long a guardian may take to begin
	logAtMost  = 1 << 20          // bytes of the guardian's log, before it begins anew
	startAgain = 5 * time.Second  // between two tries to start one
)

// Build tells one build of this program from another.
func Build() string {
	info, err := os.Stat("/proc/self/exe")
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d/%d/%d", st.Ino, info.Size(), info.ModTime().UnixNano())
}

// Keeper is the agent's hand on the guardian: it sees to it that there is one, of this build, and tells it of the lease.
type Keeper struct {
	DataDir string
	Command []string // starts a guardian: the program and its arguments
	Build   string
	Log     *slog.Logger

	mu    sync.Mutex
	until time.Duration
	said  string
}

// Renew tells the guardian that the lease goes on. If that fails, it is told again as soon as there is one.
func (k *Keeper) Renew(ctx context.Context, until time.Duration) error {
	k.mu.Lock()
	k.until = max(k.until, until)
	until = k.until
	k.mu.Unlock()
	s, err := ask(ctx, dirOf(k.DataDir), request{Op: opRenew, Until: until})
	if err == nil && s.Until < until {
		err = problem.New(problem.Unavailable, "the guardian has not taken the lease").Because("%s", s.Error)
	}
	return err
}

// Status asks the guardian how it is, and whether it sees the guests that are known to run.
func (k *Keeper) Status(ctx context.Context, running ...string) (State, error) {
	return ask(ctx, dirOf(k.DataDir), request{Op: opStatus, VMs: running})
}

// Noted has the guardian forget VMs that it has stopped.
func (k *Keeper) Noted(ctx context.Context, vms []string) error {
	_, err := ask(ctx, dirOf(k.DataDir), request{Op: opNoted, VMs: vms})
	return err
}

// Run sees to it that there is a guardian, until ctx is done. The guardian stays.
func (k *Keeper) Run(ctx context.Context) {
	for {
		wait := keepEvery
		s, err := k.Status(ctx)
		if err != nil || s.Build != k.Build {
			if err = k.start(ctx); err != nil {
				wait = startAgain
			}
		}
		k.mu.Lock()
		until := k.until
		k.mu.Unlock()
		if err == nil && s.Until < until {
			err = k.Renew(ctx, until)
		}
		if ctx.Err() != nil {
			return
		}
		k.say(err)
		if !pause(ctx, wait) {
			return
		}
	}
}

func (k *Keeper) say(err error) {
	now := ""
	if err != nil {
		now = err.Error()
	}
	if now != "" && now != k.said {
		k.Log.Error("NOTHING GUARDS THIS NODE'S LEASE: its HA VMs are not restarted elsewhere if it dies", "error", err)
	} else if now == "" && k.said != "" {
		k.Log.Info("the lease is guarded")
	}
	k.said = now
}

// start starts a guardian and waits until it answers.
func (k *Keeper) start(ctx context.Context) error {
	if len(k.Command) == 0 {
		return problem.New(problem.Unsupported, "this program cannot start a guardian")
	}
	dir := dirOf(k.DataDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return problem.Wrap(err, problem.Invalid, "the guardian's directory cannot be made")
	}
	name := filepath.Join(dir, "log")
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if info, err := os.Stat(name); err == nil && info.Size() > logAtMost {
		flags |= os.O_TRUNC
	}
	log, err := os.OpenFile(name, flags, 0o600) // not ours: it must be able to speak when we are gone
	if err != nil {
		return problem.Wrap(err, problem.Internal, "the guardian's log cannot be opened")
	}
	defer log.Close()
	cmd := exec.Command(k.Command[0], k.Command[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it outlives us, and what is sent to our group
	if err := cmd.Start(); err != nil {
		return problem.Wrap(err, problem.Internal, "the guardian cannot be started")
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	late := time.NewTimer(startsIn)
	defer late.Stop()
	for {
		if s, err := k.Status(ctx); err == nil && s.PID == cmd.Process.Pid {
			return nil
		}
		select {
		case err := <-ended:
			return problem.Wrap(errors.Join(errors.New("see "+name), err), problem.Unavailable, "the guardian has ended as soon as it began")
		case <-late.C:
			return problem.New(problem.Timeout, "the guardian does not answer").Because("it was started as process %d", cmd.Process.Pid).Try("see %s", name)
		case <-time.After(keepEvery / 50):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
