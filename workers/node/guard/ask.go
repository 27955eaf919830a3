package guard

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api/problem"
)

// answerWithin is how long a question to a guardian may take.
const answerWithin = time.Second

// What can be asked of a guardian. One connection is one question and one State.
const (
	opStatus = "status" // how it is, and whether it sees these guests
	opRenew  = "renew"  // the lease goes on until
	opNoted  = "noted"  // forget these stopped VMs
	opLeave  = "leave"  // somebody else guards from here on, with the lease that the answer tells
	opStop   = "stop"   // nobody guards from here on; refused while there are HA guests
)

type request struct {
	Op    string        `json:"op"`
	Until time.Duration `json:"until,omitempty"`
	VMs   []string      `json:"vms,omitempty"`
}

func dirOf(dataDir string) string { return filepath.Join(dataDir, "guard") }

// via calls f with a path of the socket that is short enough for one, however long the directory's is.
func via(dir string, f func(path string) error) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f("/proc/self/fd/" + strconv.Itoa(fd) + "/socket")
}

func listen(dir string) (l *net.UnixListener, err error) {
	if err := os.Remove(filepath.Join(dir, "socket")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	err = via(dir, func(path string) (err error) {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		return err
	})
	if err == nil {
		l.SetUnlinkOnClose(false) // by then it may be another's
	}
	return l, err
}

func ask(ctx context.Context, dir string, r request) (s State, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	err = via(dir, func(path string) error {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return err
		}
		defer c.Close()
		deadline, _ := ctx.Deadline()
		if err := errors.Join(c.SetDeadline(deadline), json.NewEncoder(c).Encode(r)); err != nil {
			return err
		}
		return json.NewDecoder(c).Decode(&s)
	})
	return s, problem.Wrap(err, problem.Unavailable, "the guardian does not answer")
}

// Stop has the guardian of a node's agent end for good, which it refuses while there are HA guests on the node. It is content
// if there is none.
func Stop(ctx context.Context, dataDir string) error {
	s, err := ask(ctx, dirOf(dataDir), request{Op: opStop})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	if err == nil && s.Error != "" {
		return problem.New(problem.Conflict, "the guardian goes on").Because("%s", s.Error).Try("drain the node: gnext host drain NODE")
	}
	return err
}
