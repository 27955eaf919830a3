package guard

import (
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// What a guardian may have.
const (
	memoryLimit = 16 << 20 // of the heap, soft
	niceness    = -10
	threads     = 2
)

// harden makes a guardian a process that goes on when the node is in trouble: short of memory, of processor time, or of the
// disk that its program is on. What is not permitted is told of and done without.
func harden(log *slog.Logger) {
	runtime.GOMAXPROCS(min(threads, runtime.NumCPU()))
	debug.SetMemoryLimit(memoryLimit)
	debug.SetGCPercent(50)
	if os.Geteuid() != 0 {
		return
	}
	told := func(what string, err error) {
		if err != nil {
			log.Warn("the guardian does without", "what", what, "error", err)
		}
	}
	told("being spared when memory runs out", os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0o644))
	told("going before others", unix.Setpriority(unix.PRIO_PROCESS, 0, niceness))
	// Only what it has touched and will touch stays in memory. All of its program would be many times that.
	told("holding on to processes", rehearse())
	told("staying in memory", unix.Mlockall(unix.MCL_CURRENT|unix.MCL_FUTURE|unix.MCL_ONFAULT))
}

// rehearse does what is done to a guest, to itself and without a signal: so that the code for it is in memory when the disk that
// it is on may not be there.
func rehearse() error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err
	}
	p := &process{fd}
	defer p.close()
	p.gone(0)
	return unix.PidfdSendSignal(fd, 0, nil, 0)
}

// NewLog returns a log that never waits for w: what w does not take in time is left out.
func NewLog(w io.Writer) *slog.Logger {
	lines := make(chan []byte, 256)
	go func() {
		for b := range lines {
			_, _ = w.Write(b) // there is nobody left to tell
		}
	}()
	return slog.New(slog.NewTextHandler(lossy(lines), nil))
}

type lossy chan []byte

func (l lossy) Write(b []byte) (int, error) {
	select {
	case l <- append([]byte(nil), b...):
	default:
	}
	return len(b), nil
}
