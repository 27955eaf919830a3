package guard

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api/problem"
)

// Timing of a guardian.
const (
	// tick is how often it looks at the clock: so late at most is the end of a lease noticed, and a guest that begins without one.
	tick = 500 * time.Millisecond
	// lookEvery is how often it looks at the guests while there is a lease, to be sure that it could.
	lookEvery = 10 * time.Second
	// hold is how long it waits for killed guests before it looks again; noteWithin is how long it waits for a disk to take
	// down which guests it kills. It kills them in any case.
	hold       = 2 * time.Second
	noteWithin = 300 * time.Millisecond
	// asleep is how long it may not have looked and still counts as awake.
	asleep = 5 * time.Second
	// succession is how long the one before may take to leave.
	succession = 5 * time.Second
)

// Config is what a guardian needs to know.
type Config struct {
	DataDir string // of the agent; there is one guardian for each
	RunDir  string // libvirt's status files; empty: /run/libvirt/qemu
	Build   string // of the program; one of another build is replaced
	Log     *slog.Logger
}

// State is what a guardian says of itself.
type State struct {
	PID     int           `json:"pid"`
	Build   string        `json:"build"`
	Until   time.Duration `json:"until"`             // end of the lease, by Boottime; 0: there never was one
	Armed   bool          `json:"armed"`             // there is a lease, and it could and would do what it is for
	Stopped []string      `json:"stopped,omitempty"` // VMs that it has stopped and that nobody has taken note of
	Blind   bool          `json:"blind,omitempty"`   // it does not see a guest that was said to run
	Error   string        `json:"error,omitempty"`   // why it is not armed, or why it does not do what it was asked for
}

// guardian is a running guardian.
type guardian struct {
	cfg   Config
	dir   string
	notes *notes
	clock func() time.Duration
	kill  func(dying) error

	mu      sync.Mutex
	promise Promise
	awake   time.Duration // when it last looked at the clock
	trouble error         // of the last look at the guests
	dying   []dying       // guests that were killed and have not gone yet
	leaving bool
	leave   context.CancelFunc
}

// Run guards until ctx is done, or until somebody takes over or has it stop. If there is a guardian already, its lease is taken
// over before it leaves.
func Run(ctx context.Context, cfg Config) error {
	if cfg.RunDir == "" {
		cfg.RunDir = "/run/libvirt/qemu"
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g := &guardian{cfg: cfg, dir: dirOf(cfg.DataDir), clock: Boottime, kill: func(d dying) error { return d.held.kill() }, leave: cancel}
	if err := os.MkdirAll(g.dir, 0o700); err != nil {
		return problem.Wrap(err, problem.Invalid, "the guardian's directory cannot be made")
	}
	harden(cfg.Log)
	g.notes = openNotes(g.dir, cfg.Log)
	g.promise.Renew(g.notes.until())
	watching := make(chan struct{})
	go func() { defer close(watching); g.watch(ctx) }() // from here on it guards, whoever else does
	defer func() { cancel(); <-watching; g.notes.close() }()
	lock, err := g.succeed(ctx)
	if err != nil {
		return err
	}
	defer lock.Close() // last: then the next one may begin
	l, err := listen(g.dir)
	if err != nil {
		return problem.Wrap(err, problem.Internal, "the guardian cannot be spoken to")
	}
	cfg.Log.Info("guardian guards", "pid", os.Getpid(), "build", cfg.Build, "guests", cfg.RunDir)
	go func() { <-ctx.Done(); l.Close() }()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return problem.Wrap(err, problem.Internal, "the guardian cannot be spoken to")
		}
		go g.serve(c)
	}
}

// succeed becomes the one guardian of the directory. The one before tells its lease and leaves; one that does not answer is
// ended, since it might be asleep on a lease.
func (g *guardian) succeed(ctx context.Context) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(g.dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, problem.Wrap(err, problem.Invalid, "the guardian's lock cannot be opened")
	}
	until := time.Now().Add(2 * succession)
	for asked := time.Now(); ; {
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			err = errors.Join(lock.Truncate(0), write(lock, strconv.Itoa(os.Getpid())))
			return lock, problem.Wrap(err, problem.Internal, "the guardian's lock cannot be written")
		}
		state, err := ask(ctx, g.dir, request{Op: opLeave})
		if err == nil {
			g.mu.Lock()
			g.promise.Renew(state.Until)
			g.mu.Unlock()
			g.notes.add(state.Stopped)
		} else if time.Since(asked) > succession {
			g.end(lock)
		}
		if time.Now().After(until) || !pause(ctx, tick/10) {
			lock.Close()
			return nil, problem.New(problem.Conflict, "there is another guardian of %s, and it does not leave", g.cfg.DataDir)
		}
	}
}

func write(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// end kills a guardian that does not answer, if it still is one.
func (g *guardian) end(lock *os.File) {
	b, err := os.ReadFile(lock.Name())
	pid, perr := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || perr != nil || pid <= 1 || pid == os.Getpid() {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil || !slices.Contains(strings.Split(string(line), "\x00"), g.cfg.DataDir) {
		return
	}
	g.cfg.Log.Error("the guardian before does not answer, and is ended", "pid", pid)
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
}

// watch keeps the promise until ctx is done.
func (g *guardian) watch(ctx context.Context) {
	defer g.letGo(true)
	looked := time.Duration(-1)
	for {
		now := g.clock()
		g.mu.Lock()
		g.awake = now
		broken := g.promise.Broken(now)
		g.mu.Unlock()
		switch {
		case broken:
			g.keep()
			looked = now
		case looked < 0 || now-looked >= lookEvery:
			_, err := guests(g.cfg.RunDir)
			g.saw(err)
			looked = now
		}
		if !pause(ctx, tick) {
			return
		}
	}
}

func (g *guardian) saw(err error) {
	g.mu.Lock()
	was := g.trouble
	g.trouble = err
	g.mu.Unlock()
	if err != nil && (was == nil || was.Error() != err.Error()) {
		g.cfg.Log.Error("not all guests can be seen", "error", err)
	}
}

// dying is a guest that has been told to end. It is held until it has: with much memory, or a disk that does not answer, that
// takes time, and meanwhile it is not stopped.
type dying struct {
	guest
	held *process
}

// keep keeps the promise: it ends every HA guest of the node.
func (g *guardian) keep() {
	found, err := haGuests(g.cfg.RunDir)
	g.saw(err)
	all := g.hold(found)
	if len(all) == 0 {
		return
	}
	vms := make([]string, len(all))
	for i, d := range all {
		vms[i] = d.vm
	}
	noted := g.notes.add(vms)
	select {
	case <-noted:
	case <-time.After(noteWithin):
	}
	for _, d := range all {
		if err := g.kill(d); err != nil {
			g.cfg.Log.Error("a guest cannot be killed", "vm", d.vm, "error", err)
		}
	}
	until := time.Now().Add(hold)
	for _, d := range all {
		if d.held.gone(time.Until(until)) {
			g.cfg.Log.Warn("HA guest stopped: the lease of this node is over", "vm", d.vm)
		} else {
			g.cfg.Log.Error("HA guest was killed and has not gone yet", "vm", d.vm)
		}
	}
	g.letGo(false)
}

// hold takes hold of guests, and returns all that are held: those of before that have not gone are among them.
func (g *guardian) hold(found []guest) []dying {
	g.letGo(false)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, x := range found {
		if slices.ContainsFunc(g.dying, func(d dying) bool { return d.guest == x }) {
			continue
		}
		p, err := x.open()
		if err != nil {
			g.cfg.Log.Error("a guest cannot be taken hold of", "vm", x.vm, "pid", x.pid, "error", err)
		}
		if p != nil {
			g.dying = append(g.dying, dying{x, p})
		}
	}
	return slices.Clone(g.dying)
}

// letGo lets go of guests that have gone, or of all. Only who watches may call it: nobody else waits for what is held.
func (g *guardian) letGo(all bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dying = slices.DeleteFunc(g.dying, func(d dying) bool {
		gone := all || d.held.gone(0)
		if gone {
			d.held.close()
		}
		return gone
	})
}

// status answers who asks how it is, and whether it sees guests that are said to run: a guardian that looks in the wrong place
// must not be counted on. Guests that were killed and have not gone, or have and libvirt has not noticed, are not among the stopped
// ones yet: who is told that they are, and sees them, would think that they have been started again.
func (g *guardian) status(running []string) State {
	s := g.state()
	g.mu.Lock()
	s.Stopped = slices.DeleteFunc(s.Stopped, func(vm string) bool {
		return slices.ContainsFunc(g.dying, func(d dying) bool { return d.vm == vm && !d.held.gone(0) })
	})
	g.mu.Unlock()
	if len(running)+len(s.Stopped) == 0 {
		return s
	}
	found, err := guests(g.cfg.RunDir)
	s.Stopped = slices.DeleteFunc(s.Stopped, func(vm string) bool {
		return slices.ContainsFunc(found, func(x guest) bool { return x.vm == vm && x.unnoticed() })
	})
	for _, vm := range running {
		if !slices.ContainsFunc(found, func(g guest) bool { return g.vm == vm }) {
			s.Blind = true
			s.Error = "it does not see guest " + vm + " in " + g.cfg.RunDir + ": is that where libvirt keeps the status of its domains (--libvirt-run-dir)?"
			if err != nil {
				s.Error = err.Error()
			}
			break
		}
	}
	return s
}

func (g *guardian) state() State {
	now := g.clock()
	g.mu.Lock()
	defer g.mu.Unlock()
	s := State{PID: os.Getpid(), Build: g.cfg.Build, Until: g.promise.Until, Stopped: g.notes.list()}
	switch {
	case g.trouble != nil:
		s.Error = g.trouble.Error()
	case now-g.awake > asleep:
		s.Error = "it has not looked for " + (now - g.awake).String()
	default:
		s.Armed = g.promise.Valid(now) && !g.leaving
	}
	return s
}

func (g *guardian) serve(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(answerWithin))
	var r request
	if json.NewDecoder(c).Decode(&r) != nil {
		return
	}
	s, done := g.answer(r)
	_ = json.NewEncoder(c).Encode(s)
	if done {
		g.leave()
	}
}

// answer does what is asked for. Done: it leaves after the answer.
func (g *guardian) answer(r request) (s State, done bool) {
	switch r.Op {
	case opStatus:
		return g.status(r.VMs), false
	case opRenew:
		g.mu.Lock()
		leaving := g.leaving
		if !leaving {
			g.promise.Renew(r.Until)
		}
		p := g.promise
		g.mu.Unlock()
		if leaving {
			return State{Error: "it is leaving"}, false
		}
		g.notes.renewed(p.Until)
	case opNoted:
		g.notes.drop(r.VMs)
	case opLeave:
		g.mu.Lock()
		g.leaving = true // a renewal from here on is for the next one
		g.mu.Unlock()
		return g.state(), true
	case opStop:
		found, err := haGuests(g.cfg.RunDir)
		if err != nil || len(found) > 0 {
			s = g.state()
			s.Error = "there are HA guests on this node: move them away first"
			if err != nil {
				s.Error = "it cannot be seen whether there are HA guests on this node: " + err.Error()
			}
			return s, false
		}
		return g.state(), true
	default:
		s = g.state()
		s.Error = "this guardian does not know " + strconv.Quote(r.Op)
		return s, false
	}
	return g.state(), false
}

// pause waits for d and reports whether ctx is still wanted.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
