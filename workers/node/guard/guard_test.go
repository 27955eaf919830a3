package guard

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// TestMain lets the test program be the guardian, and an agent that renews a lease, too.
func TestMain(m *testing.M) {
	if len(os.Args) < 5 {
		os.Exit(m.Run())
	}
	role, dir, runDir, build := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	switch role {
	case "guard":
		if err := Run(context.Background(), Config{DataDir: dir, RunDir: runDir, Build: build, Log: NewLog(os.Stderr)}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "agent":
		k := keeper(dir, runDir, build)
		go k.Run(context.Background())
		for pause(context.Background(), testLease/10) {
			_ = k.Renew(context.Background(), Boottime()+testLease) // the guardian may not be there yet
		}
	default:
		os.Exit(m.Run())
	}
}

const testLease = 3 * time.Second

func keeper(dir, runDir, build string) *Keeper {
	return &Keeper{DataDir: dir, Build: build, Log: slog.New(slog.DiscardHandler), Command: []string{os.Args[0], "guard", dir, runDir, build}}
}

// node is a node of stand-ins: guests are processes with a UUID in their command line, and libvirt is the files that it leaves, and
// removes when it notices that a guest has ended.
type node struct {
	t           *testing.T
	dir, runDir string
	late        bool // libvirt notices nothing of guests that begin now, but by notice
}

func (n *node) notice(s *standIn) { _ = os.Remove(filepath.Join(n.runDir, "ns-"+s.vm+".xml")) }

func newNode(t *testing.T) *node {
	// A long path, as sockets do not like it.
	n := &node{t: t, dir: filepath.Join(t.TempDir(), strings.Repeat("long", 30)), runDir: t.TempDir()}
	require.NoError(t, os.MkdirAll(n.dir, 0o711))
	t.Cleanup(func() {
		if s, err := n.keeper("").Status(context.Background()); err == nil {
			_ = syscall.Kill(s.PID, syscall.SIGKILL)
		}
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(dirOf(n.dir), "log"))
			t.Log(string(b))
		}
	})
	return n
}

func (n *node) keeper(build string) *Keeper { return keeper(n.dir, n.runDir, build) }

// status is what a libvirt status file looks like, as far as it matters.
const status = `<!-- do not edit -->
<domstatus state='running' reason='booted' pid='%d'>
  <monitor path='/x' type='unix'/>
  <domain type='qemu' id='1'>
    <name>%s</name>
    <uuid>%s</uuid>
    <metadata><nextstack:vm xmlns:nextstack="https://nextstack.io/domain/1" id="%s" project="p" name="web"%s/></metadata>
    <devices/>
  </domain>
</domstatus>`

type standIn struct {
	vm   string
	cmd  *exec.Cmd
	gone chan struct{}
}

func (s *standIn) runs() bool {
	select {
	case <-s.gone:
		return false
	default:
		return true
	}
}

// guest starts a guest. What its command line says may be something else than its status.
func (n *node) guest(ha bool, says string) *standIn {
	n.t.Helper()
	s := &standIn{vm: api.NewID(), gone: make(chan struct{})}
	if says == "" {
		says = s.vm
	}
	sleep, err := exec.LookPath("sleep")
	require.NoError(n.t, err)
	s.cmd = &exec.Cmd{Path: sleep, Args: []string{"qemu-system-x86_64 -uuid " + says, "600"}}
	require.NoError(n.t, s.cmd.Start())
	late := n.late
	go func() {
		_ = s.cmd.Wait()
		if !late {
			n.notice(s)
		}
		close(s.gone)
	}()
	n.t.Cleanup(func() { _ = s.cmd.Process.Kill(); <-s.gone })
	mark := ""
	if ha {
		mark = ` ha="yes"`
	}
	name := "ns-" + s.vm
	require.NoError(n.t, os.WriteFile(filepath.Join(n.runDir, name+".pid"), []byte(strconv.Itoa(s.cmd.Process.Pid)), 0o600))
	require.NoError(n.t, os.WriteFile(filepath.Join(n.runDir, name+".xml"), fmt.Appendf(nil, status, s.cmd.Process.Pid, name, s.vm, s.vm, mark), 0o600))
	return s
}

// agent starts an agent that keeps a guardian and renews its lease, and waits until it is armed.
func (n *node) agent(build string) *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command(os.Args[0], "agent", n.dir, n.runDir, build)
	require.NoError(n.t, cmd.Start())
	n.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	n.wait("armed", func(s State) bool { return s.Armed && s.Build == build })
	return cmd
}

func (n *node) wait(what string, ok func(State) bool) (s State) {
	n.t.Helper()
	require.Eventually(n.t, func() bool {
		var err error
		s, err = n.keeper("").Status(n.t.Context())
		return err == nil && ok(s)
	}, 20*time.Second, 20*time.Millisecond, what)
	return s
}

func TestGuardianOutlivesTheAgentAndKeepsItsPromise(t *testing.T) {
	n := newNode(t)
	ha, other := n.guest(true, ""), n.guest(false, "")
	stranger := n.guest(true, api.NewID()) // the number in libvirt's file came to be somebody else's
	require.NoError(t, os.WriteFile(filepath.Join(n.runDir, "broken.xml"), []byte("<domstatus"), 0o600))
	agent := n.agent("1")
	guardian := n.wait("its number", func(s State) bool { return s.PID != 0 })
	require.NotEqual(t, agent.Process.Pid, guardian.PID)

	require.NoError(t, agent.Process.Kill())
	until := n.wait("its lease", func(State) bool { return true }).Until
	<-ha.gone
	late := Boottime() - until
	require.Positive(t, late, "not before the lease is over")
	require.Less(t, late, 2*time.Second)
	s := n.wait("what it has stopped", func(s State) bool { return len(s.Stopped) > 0 })
	require.Equal(t, []string{ha.vm}, s.Stopped)
	require.Equal(t, guardian.PID, s.PID)
	require.False(t, s.Armed)
	require.True(t, other.runs(), "what is not HA goes on")
	require.True(t, stranger.runs(), "and so does what is no guest")

	again := n.guest(true, "") // somebody starts one although there is no lease
	<-again.gone
	n.wait("both", func(s State) bool { return len(s.Stopped) == 2 })

	// It dies itself, and the next one has not forgotten: neither whom it has stopped, nor that there is no lease.
	require.NoError(t, syscall.Kill(guardian.PID, syscall.SIGKILL))
	third := n.guest(true, "")
	ctx, cancel := context.WithCancel(t.Context())
	k := n.keeper("1")
	done := make(chan struct{})
	go func() { defer close(done); k.Run(ctx) }()
	<-third.gone
	n.wait("all", func(s State) bool { return len(s.Stopped) == 3 && s.PID != guardian.PID })
	require.NoError(t, k.Noted(t.Context(), []string{ha.vm, again.vm, third.vm}))
	n.wait("nothing", func(s State) bool { return len(s.Stopped) == 0 })

	// With a lease it lets guests be.
	require.NoError(t, k.Renew(t.Context(), Boottime()+time.Hour))
	n.wait("armed", func(s State) bool { return s.Armed })
	fourth := n.guest(true, "")
	require.Never(t, func() bool { return !fourth.runs() }, 4*tick, tick/2)
	s, err := k.Status(t.Context(), fourth.vm, other.vm)
	require.NoError(t, err)
	require.False(t, s.Blind, "%s", s.Error)
	unseen := api.NewID()
	s, err = k.Status(t.Context(), fourth.vm, unseen)
	require.NoError(t, err)
	require.True(t, s.Blind)
	require.Contains(t, s.Error, unseen)
	require.Equal(t, problem.Conflict, problem.KindOf(Stop(t.Context(), n.dir)), "it stays while there are HA guests")
	cancel()
	<-done
	require.NoError(t, os.RemoveAll(n.runDir))
	require.NoError(t, Stop(t.Context(), n.dir))
	require.Eventually(t, func() bool { _, err := k.Status(t.Context()); return err != nil }, 10*time.Second, 20*time.Millisecond)
	require.NoError(t, Stop(t.Context(), n.dir), "none is fine")
}

func TestAnotherBuildTakesOverWithoutAGap(t *testing.T) {
	n := newNode(t)
	ha := n.guest(true, "")
	first := n.agent("1")
	was := n.wait("first", func(s State) bool { return s.Armed })
	require.NoError(t, first.Process.Kill())
	_ = first.Wait()

	// The next agent is of another build, and the server does not answer it: it has no lease but the one that there is.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go n.keeper("2").Run(ctx)
	now := n.wait("second", func(s State) bool { return s.Build == "2" })
	require.NotEqual(t, was.PID, now.PID)
	require.GreaterOrEqual(t, now.Until, was.Until, "with the lease of the one before")
	require.Eventually(t, func() bool { return syscall.Kill(was.PID, 0) != nil }, 10*time.Second, 20*time.Millisecond)
	<-ha.gone
	require.Greater(t, Boottime(), was.Until)
}

func TestAGuardianThatSleepsIsReplaced(t *testing.T) {
	n := newNode(t)
	n.agent("1")
	was := n.wait("first", func(s State) bool { return s.Armed })
	require.NoError(t, syscall.Kill(was.PID, syscall.SIGSTOP))
	n.wait("another", func(s State) bool { return s.Armed && s.PID != was.PID })
}

// TestWhoIsBeingKilledIsNotStoppedYet: it would seem to run again already. One that SIGKILL does not end at once, because it waits
// for its disk, stays one that is being killed, also when the lease has begun again.
func TestWhoIsBeingKilledIsNotStoppedYet(t *testing.T) {
	n := newNode(t)
	slow, quick := n.guest(true, ""), n.guest(true, "")
	log := slog.New(slog.DiscardHandler)
	killed := 0
	g := &guardian{
		cfg: Config{RunDir: n.runDir, Log: log}, notes: openNotes(t.TempDir(), log), clock: Boottime,
		kill: func(d dying) error {
			if d.vm == slow.vm {
				killed++
				return nil
			}
			return d.held.kill()
		},
	}
	defer g.notes.close()
	defer g.letGo(true)
	g.notes.add([]string{"a"})
	for i := range 2 {
		g.keep()
		require.Equal(t, i+1, killed, "it is told again")
		<-quick.gone
		require.ElementsMatch(t, []string{"a", quick.vm}, g.status(nil).Stopped)
		require.ElementsMatch(t, []string{"a", slow.vm, quick.vm}, g.state().Stopped, "who takes over must know of all")
		require.Len(t, g.dying, 1)
	}
	require.NoError(t, slow.cmd.Process.Kill())
	<-slow.gone
	require.ElementsMatch(t, []string{"a", slow.vm, quick.vm}, g.status(nil).Stopped)
	g.keep()
	require.Empty(t, g.dying)
}

// TestWhomLibvirtHasNotMissedIsNotStoppedYet: it tells for a moment longer that such a guest runs.
func TestWhomLibvirtHasNotMissedIsNotStoppedYet(t *testing.T) {
	n := newNode(t)
	n.late = true
	dead := n.guest(true, "")
	log := slog.New(slog.DiscardHandler)
	g := &guardian{cfg: Config{RunDir: n.runDir, Log: log}, notes: openNotes(t.TempDir(), log), clock: Boottime, kill: func(d dying) error { return d.held.kill() }}
	defer g.notes.close()
	defer g.letGo(true)
	g.keep()
	<-dead.gone
	require.Empty(t, g.dying, "its process is gone")
	require.Empty(t, g.status(nil).Stopped)
	require.Empty(t, g.status([]string{dead.vm}).Stopped)
	n.notice(dead)
	require.Equal(t, []string{dead.vm}, g.status(nil).Stopped)
	back := n.guest(true, "")
	g.notes.add([]string{back.vm})
	require.ElementsMatch(t, []string{dead.vm, back.vm}, g.status(nil).Stopped, "who runs again is told of, so that it is forgotten")
}

func TestPromise(t *testing.T) {
	var p Promise
	require.False(t, p.Valid(5))
	require.False(t, p.Broken(5), "what was never given cannot be broken")
	p.Renew(10)
	require.True(t, p.Valid(9))
	require.False(t, p.Valid(10))
	require.True(t, p.Broken(10))
	p.Renew(7)
	require.Equal(t, time.Duration(10), p.Until, "a late answer takes nothing back")
}

func TestGuardianIsSmall(t *testing.T) {
	n := newNode(t)
	n.agent("1")
	s := n.wait("armed", func(s State) bool { return s.Armed })
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID))
	require.NoError(t, err)
	for _, line := range bytes.Split(b, []byte("\n")) {
		if bytes.HasPrefix(line, []byte("VmRSS")) || bytes.HasPrefix(line, []byte("VmLck")) {
			t.Log(string(line))
		}
	}
	// Where that is not permitted, as in most containers, it goes without.
	if permitted := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0o644); permitted == nil {
		score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", s.PID))
		require.NoError(t, err)
		require.Equal(t, "-1000", strings.TrimSpace(string(score)))
	}
}
