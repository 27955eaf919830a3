package guard

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// namespace is that of the element by which domains are marked as ours, and as HA.
const namespace = "https://nextstack.io/domain/1"

// guest is a running guest of ours, as libvirt's status files tell of it.
type guest struct {
	vm  string // UUID
	pid int
	ha  bool
}

// haGuests returns the guests that a lease is about.
func haGuests(dir string) ([]guest, error) {
	all, err := guests(dir)
	return slices.DeleteFunc(all, func(g guest) bool { return !g.ha }), err
}

// guests returns our guests on a node, from the files that libvirt keeps of running domains: each is replaced in one piece,
// and written before its guest is let run. What cannot be read is told of, and does not hide the rest.
func guests(dir string) ([]guest, error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // libvirt has not run a guest since the machine booted
	}
	if err != nil {
		return nil, err
	}
	var out []guest
	var errs []error
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".xml")
		if !ok || f.IsDir() {
			continue
		}
		g, ours, err := read(dir, name)
		if err != nil {
			errs = append(errs, err)
		} else if ours {
			out = append(out, g)
		}
	}
	return out, errors.Join(errs...)
}

// read reads the status of one domain.
func read(dir, name string) (g guest, ours bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, name+".xml"))
	if errors.Is(err, fs.ErrNotExist) {
		return g, false, nil // it ended in this moment
	}
	if err != nil || !bytes.Contains(b, []byte(namespace)) {
		return g, false, err
	}
	var status struct {
		PID    int `xml:"pid,attr"`
		Domain struct {
			UUID     string `xml:"uuid"`
			Metadata struct {
				VM struct {
					HA string `xml:"ha,attr"`
				} `xml:"https://nextstack.io/domain/1 vm"`
			} `xml:"metadata"`
		} `xml:"domain"`
	}
	if err := xml.Unmarshal(b, &status); err != nil {
		return g, false, errors.Join(errors.New("status of "+name), err)
	}
	g = guest{vm: strings.ToLower(strings.TrimSpace(status.Domain.UUID)), pid: status.PID, ha: status.Domain.Metadata.VM.HA == "yes"}
	// The number in the status is from when it was written; the file of its own is there from the guest's first moment.
	if b, err := os.ReadFile(filepath.Join(dir, name+".pid")); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			g.pid = pid
		}
	}
	return g, true, nil
}

// process is a process that is held on to, so that its number cannot come to mean another.
type process struct{ fd int }

// open takes hold of a guest's process; nil if it does not run any more. That the process is that guest is read from its
// command line, which names the UUID.
func (g guest) open() (*process, error) {
	if g.pid <= 1 {
		return nil, nil // it has not begun, or no longer runs
	}
	fd, err := unix.PidfdOpen(g.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p := &process{fd}
	line, err := os.ReadFile("/proc/" + strconv.Itoa(g.pid) + "/cmdline")
	gone := p.gone(0)
	switch {
	case gone, err == nil && !bytes.Contains(bytes.ToLower(line), []byte(g.vm)):
		p.close()
		return nil, nil
	case err != nil: // it may be the guest: who cannot be told apart is not spared
		return p, nil
	}
	return p, nil
}

// unnoticed reports whether the guest's process has ended, and libvirt does not know it yet.
func (g guest) unnoticed() bool {
	p, err := g.open()
	if p != nil {
		p.close()
	}
	return p == nil && err == nil && g.pid > 1
}

// kill ends the process. It is gone when gone says so: a guest with much memory, or with a disk that does not answer, takes time.
func (p *process) kill() error {
	err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// gone waits up to d for the end of the process, and reports whether it came.
func (p *process) gone(d time.Duration) bool {
	until := time.Now().Add(d)
	for {
		left := max(0, time.Until(until))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, int(left/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0 && err == nil
	}
}

func (p *process) close() { _ = unix.Close(p.fd) }
