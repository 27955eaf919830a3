//go:build unix

package command

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// lockPID writes the ID of this process to file and holds a lock on it until it is closed. The lock, which dies with the
// process, tells whether the agent runs; the number alone could belong to anybody by now.
func lockPID(file string) (io.Closer, error) {
	// By default this is the data directory, which the hypervisor must be able to pass through.
	if err := os.MkdirAll(filepath.Dir(file), 0o711); err != nil {
		return nil, problem.Wrap(err, problem.Invalid, "cannot make the directory of %s", file)
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, problem.Wrap(err, problem.Invalid, "cannot write %s", file)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, problem.New(problem.Conflict, "an agent runs already").Because("it holds %s", file).
				Try("stop it with `gnext service stop`, or give this one another --data-dir")
		}
		return nil, problem.Wrap(err, problem.Internal, "cannot lock %s", file)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, problem.Wrap(err, problem.Internal, "cannot write %s", file)
	}
	return f, nil
}

// stopPID asks the process that holds file to end and waits until it has. It returns the process ID.
func stopPID(ctx context.Context, file string) (int, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, noRunningAgent(file)
	}
	if err != nil {
		return 0, problem.Wrap(err, problem.Invalid, "cannot read %s", file)
	}
	defer f.Close()
	if lockedBySelf(f) {
		return 0, noRunningAgent(file)
	}
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, problem.Wrap(err, problem.Invalid, "cannot read %s", file)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, problem.New(problem.Conflict, "%s is locked and holds no process ID", file).Try("try again")
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return 0, problem.Wrap(err, problem.Forbidden, "cannot stop process %d", pid)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !lockedBySelf(f) {
		select {
		case <-ctx.Done():
			return 0, problem.New(problem.Timeout, "process %d has been asked to stop and still runs", pid).Try("look at the log of the agent")
		case <-tick.C:
		}
	}
	return pid, nil
}

// lockedBySelf reports whether f could be locked, which means that nobody else holds it.
func lockedBySelf(f *os.File) bool {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil
}
