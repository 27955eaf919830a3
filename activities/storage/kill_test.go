package storage_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A process is killed in the middle of what it does as a debugger would do it: it is stopped at each call of the kernel that changes
// something that outlives it, and is killed before the one that is wanted, with all that it has started.

// Where changes are looked for: below a directory, or on the network.
const network = "socket:"

// killed is what became of a process.
type killed struct {
	Changes int    `json:"changes"` // that it made, or was about to make
	Died    bool   `json:"died"`    // false: it came to its end
	Said    string `json:"said,omitempty"`
}

// killAt runs a program until it is about to make its nth change since it has sent itself no signal, and kills it. 0: it comes to its end.
func killAt(env, where string, n int) (out killed, err error) {
	self, err := os.Executable()
	if err != nil {
		return out, err
	}
	said, err := os.CreateTemp("", "killed")
	if err != nil {
		return out, err
	}
	defer func() { _ = said.Close(); _ = os.Remove(said.Name()) }()
	cmd := exec.Command(self)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env), said, said
	cmd.SysProcAttr = &unix.SysProcAttr{Ptrace: true, Setpgid: true}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // it is the thread that traces, and it ends with this
		err := cmd.Start()
		if err == nil {
			tr := tracing{pid: cmd.Process.Pid, where: where, last: n}
			err = tr.run()
			out.Changes, out.Died = tr.changes, tr.died
			err = errors.Join(err, cmd.Process.Release())
		}
		done <- err
	}()
	err = <-done
	b, rerr := os.ReadFile(said.Name())
	out.Said = string(b)
	return out, errors.Join(err, rerr)
}

// tracing is a process that is traced, with all that it starts.
type tracing struct {
	pid     int // and the process group
	where   string
	last    int // change before which it dies
	begun   bool
	changes int
	died    bool
}

func (tr *tracing) run() error {
	var ws unix.WaitStatus
	if _, err := unix.Wait4(tr.pid, &ws, unix.WALL, nil); err != nil {
		return err
	}
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL
	if err := errors.Join(unix.PtraceSetOptions(tr.pid, options), unix.PtraceSyscall(tr.pid, 0)); err != nil {
		return err
	}
	known := map[int]bool{tr.pid: true}
	for {
		tid, err := unix.Wait4(-tr.pid, &ws, unix.WALL|unix.WNOTHREAD, nil) // none of those that others run
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return nil // all have ended
		case err != nil:
			return err
		case !ws.Stopped():
			continue
		}
		deliver := 0
		switch sig := ws.StopSignal(); {
		case sig == unix.SIGTRAP|0x80:
			if tr.changing(tid) && !tr.died {
				tr.changes++
				if tr.changes == tr.last {
					tr.died = true
					if err := unix.Kill(-tr.pid, unix.SIGKILL); err != nil {
						return err
					}
				}
			}
		case sig == unix.SIGTRAP: // it has started something
		case sig == unix.SIGSTOP && !known[tid]: // it was started
		default:
			deliver = int(sig)
		}
		known[tid] = true
		if err := unix.PtraceSyscall(tid, deliver); err != nil && !errors.Is(err, unix.ESRCH) { // it may have been killed
			return err
		}
	}
}

// call is what the kernel tells of a call (struct ptrace_syscall_info).
type call struct {
	op     uint8 // 1: it begins
	_      [3]uint8
	_      uint32
	_, _   uint64
	number uint64
	args   [6]uint64
	_      uint64
}

// changing reports whether a thread has stopped at the beginning of a call that counts.
func (tr *tracing) changing(tid int) bool {
	const getSyscallInfo = 0x420e
	var c call
	if _, _, no := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(tid), unsafe.Sizeof(c), uintptr(unsafe.Pointer(&c)), 0, 0); no != 0 || c.op != 1 {
		return false
	}
	switch c.number {
	case unix.SYS_KILL:
		tr.begun = tr.begun || int(c.args[0]) == tr.pid && c.args[1] == 0
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_WRITEV, unix.SYS_PWRITEV, unix.SYS_PWRITEV2, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_FSYNC,
		unix.SYS_FDATASYNC, unix.SYS_FCHMOD, unix.SYS_COPY_FILE_RANGE, unix.SYS_SENDMSG:
		fd := c.args[0]
		if c.number == unix.SYS_COPY_FILE_RANGE {
			fd = c.args[2]
		}
		return tr.begun && tr.counts(tr.opened(tid, fd))
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_UNLINKAT, unix.SYS_LINKAT, unix.SYS_MKDIRAT:
		return tr.begun && tr.where != network
	case unix.SYS_OPENAT:
		return tr.begun && c.args[2]&unix.O_CREAT != 0 && (tr.counts(tr.opened(tid, c.args[0])) || tr.counts(text(tid, c.args[1])))
	}
	return false
}

func (tr *tracing) counts(path string) bool { return strings.HasPrefix(path, tr.where) }

// opened is what a thread has open under a number; empty: nothing.
func (tr *tracing) opened(tid int, fd uint64) string {
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, int32(fd))) //nolint:gosec // it is one of 32 bits, with a sign
	return path
}

// text is a text in the memory of a thread that has stopped.
func text(tid int, at uint64) string {
	b := make([]byte, 1024)
	n, _ := unix.PtracePeekData(tid, uintptr(at), b)
	b, _, _ = bytes.Cut(b[:n], []byte{0})
	return string(b)
}

func TestKilledWhereItIsWanted(t *testing.T) {
	d := dirStand(t)
	run := func(n int) (killed, deed) {
		v := d.volume()
		do := deed{Kind: "create", Volume: &v}
		return runDeed(t, do, d.pool.Path+"/", n), do
	}
	whole, do := run(0)
	require.False(t, whole.Died, whole.Said)
	require.Greater(t, whole.Changes, 5)
	d.shows(t, *do.Volume, shown{})
	first, _ := run(1)
	require.Equal(t, killed{Changes: 1, Died: true}, first)
	require.Equal(t, map[string]int{"volume": 1}, d.kinds(t), "it was killed before its first change")
	last, do := run(whole.Changes)
	require.Equal(t, killed{Changes: whole.Changes, Died: true}, last)
	d.shows(t, *do.Volume, shown{}) // the last one makes it durable
	_, err := os.Stat(filepath.Join(d.pool.Path, "volumes"))
	require.NoError(t, err)
}
