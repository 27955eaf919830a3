package guard

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// notes are what a guardian must not forget when it dies: until when the lease is, and which guests it has stopped. They are
// written by a goroutine of their own, so that a disk that hangs holds up nobody.
type notes struct {
	dir string
	log *slog.Logger

	mu      sync.Mutex
	now     noted
	waiting []chan struct{} // closed when what is now is written
	dirty   chan struct{}
	end     chan struct{}
	ended   chan struct{}
}

// noted is the file.
type noted struct {
	Boot    string        `json:"boot"` // Boottime means something within one boot only
	Until   time.Duration `json:"until"`
	Stopped []string      `json:"stopped,omitempty"`
}

func openNotes(dir string, log *slog.Logger) *notes {
	n := &notes{dir: dir, log: log, dirty: make(chan struct{}, 1), end: make(chan struct{}), ended: make(chan struct{})}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		log.Error("this boot cannot be told from others, so a lease is forgotten with the guardian", "error", err)
	}
	b, err := os.ReadFile(n.file())
	if err == nil {
		err = json.Unmarshal(b, &n.now)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Error("the guardian's notes cannot be read", "file", n.file(), "error", err)
	}
	if id := strings.TrimSpace(string(boot)); id == "" || n.now.Boot != id {
		n.now.Boot, n.now.Until = id, 0
	}
	go n.write()
	return n
}

func (n *notes) file() string { return filepath.Join(n.dir, "notes.json") }

func (n *notes) until() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.now.Until
}

func (n *notes) list() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.now.Stopped)
}

// renewed notes the end of the lease.
func (n *notes) renewed(until time.Duration) {
	n.change(func(now *noted) { now.Until = max(now.Until, until) })
}

// add notes guests as stopped. The channel is closed when that is on the disk.
func (n *notes) add(vms []string) <-chan struct{} {
	return n.change(func(now *noted) {
		for _, vm := range vms {
			if !slices.Contains(now.Stopped, vm) {
				now.Stopped = append(now.Stopped, vm)
			}
		}
	})
}

// drop forgets guests of which the server has taken note.
func (n *notes) drop(vms []string) {
	n.change(func(now *noted) {
		now.Stopped = slices.DeleteFunc(slices.Clone(now.Stopped), func(vm string) bool { return slices.Contains(vms, vm) })
	})
}

func (n *notes) change(f func(*noted)) <-chan struct{} {
	done := make(chan struct{})
	n.mu.Lock()
	f(&n.now)
	n.waiting = append(n.waiting, done)
	n.mu.Unlock()
	select {
	case n.dirty <- struct{}{}:
	default: // it will be written with what is about to be
	}
	return done
}

func (n *notes) write() {
	defer close(n.ended)
	synced := ""
	for {
		select {
		case <-n.dirty:
		case <-n.end:
			return
		}
		n.mu.Lock()
		b, err := json.Marshal(n.now)
		stopped := strings.Join(n.now.Stopped, " ")
		waiting := n.waiting
		n.waiting = nil
		n.mu.Unlock()
		// A lease need not outlast a power cut: nor do the guests.
		if err == nil {
			err = replace(n.file(), b, stopped != synced)
		}
		if err != nil {
			n.log.Error("the guardian's notes cannot be written", "file", n.file(), "error", err)
		} else {
			synced = stopped
		}
		for _, done := range waiting {
			close(done)
		}
	}
}

// replace replaces a file; sync: so that it is there after a power cut.
func replace(path string, b []byte, sync bool) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if sync {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// close ends the writing, when all is written or the disk hangs.
func (n *notes) close() {
	select {
	case <-n.change(func(*noted) {}):
	case <-time.After(time.Second):
	}
	close(n.end)
	select {
	case <-n.ended:
	case <-time.After(time.Second):
	}
}
