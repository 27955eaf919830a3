package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/cli/command"
)

// terminal is a pseudo-terminal: what a program writes to inside is collected, and what is typed it can read there.
type terminal struct {
	inside  *os.File
	outside *os.File

	mu   sync.Mutex
	text bytes.Buffer
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	outside, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { outside.Close() })
	raw := func(f func(fd int) error) {
		c, err := outside.SyscallConn()
		require.NoError(t, err)
		var inner error
		require.NoError(t, c.Control(func(fd uintptr) { inner = f(int(fd)) }))
		require.NoError(t, inner)
	}
	var n int
	raw(func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0) })
	raw(func(fd int) (err error) { n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN); return err })
	raw(func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 100}) })
	inside, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { inside.Close() })
	term := &terminal{inside: inside, outside: outside}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := outside.Read(b)
			term.mu.Lock()
			term.text.Write(b[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return term
}

func (t *terminal) screen() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

func (t *terminal) shows(tb testing.TB, s string) {
	tb.Helper()
	require.Eventually(tb, func() bool { return strings.Contains(t.screen(), s) }, 20*time.Second, 5*time.Millisecond, "%q is not shown", s)
}

// gnext runs one command in this process.
func (c *cloud) gnext(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args ...string) int {
	env := c.env()
	return command.Run(ctx, command.Env{Args: args, Stdin: stdin, Stdout: stdout, Stderr: stderr, Getenv: func(k string) string { return env[k] }, Version: "1.0.0"})
}

func TestStepsAreDrawnOnATerminal(t *testing.T) {
	c, term := start(t), newTerminal(t)
	var out bytes.Buffer
	done := make(chan int)
	go func() {
		done <- c.gnext(t.Context(), nil, &out, term.inside, "vpc", "add", "slow-one", "--cidr", "10.1.0.0/16")
	}()
	term.shows(t, "… apply: running")
	require.Contains(t, term.screen(), "vpc.create of vpc slow-one: running")
	term.shows(t, "    3G of 4G (75%), 1G remaining, 100M/s")
	term.shows(t, "\x1b[4A\x1b[J") // drawn again in the same place
	api, err := c.client(c.token)
	require.NoError(t, err)
	require.NoError(t, c.hands.tell(c.operationOf(t, api, "slow-one"), "go on"))
	require.Zero(t, <-done)
	term.shows(t, "✓ apply: done")
	require.Contains(t, out.String(), "slow-one")
}

// operationOf returns the ID of the operation about a target.
func (c *cloud) operationOf(t *testing.T, cl *client.Client, target string) string {
	t.Helper()
	page, err := client.List[*api.Operation](t.Context(), cl, "", client.ListOptions{Target: target})
	require.NoError(t, err)
	require.Len(t, page.Items, 1)
	return page.Items[0].ID
}

func TestOpShowFollowsOnATerminal(t *testing.T) {
	c, term := start(t), newTerminal(t)
	require.Zero(t, c.gnext(t.Context(), nil, io.Discard, io.Discard, "vpc", "add", "stuck-one", "--cidr", "10.1.0.0/16", "--no-wait"))
	cl, err := c.client(c.token)
	require.NoError(t, err)
	id := c.operationOf(t, cl, "stuck-one")
	done := make(chan int)
	go func() { done <- c.gnext(t.Context(), nil, term.inside, io.Discard, "op", "show", id) }()
	term.shows(t, "stuck: node-1 does not answer")
	_, err = cl.Resume(t.Context(), id, client.Write{})
	require.NoError(t, err)
	require.Zero(t, <-done)
	term.shows(t, "STEP ")
	require.Contains(t, term.screen(), "succeeded")
}

func TestWhoeverInterruptsIsToldHowToGoOn(t *testing.T) {
	c := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	var errs lockedBuffer
	done := make(chan int)
	go func() {
		done <- c.gnext(ctx, nil, io.Discard, &errs, "vpc", "add", "slow-one", "--cidr", "10.1.0.0/16")
	}()
	require.Eventually(t, func() bool { return strings.Contains(errs.String(), "apply: running") }, 20*time.Second, 5*time.Millisecond)
	cancel()
	require.Equal(t, 9, <-done)
	require.Contains(t, errs.String(), "which goes on")
	require.Contains(t, errs.String(), "gnext op cancel ")
}

func TestSomebodyElseCancels(t *testing.T) {
	c := start(t)
	var errs lockedBuffer
	done := make(chan int)
	go func() {
		done <- c.gnext(t.Context(), nil, io.Discard, &errs, "vpc", "add", "slow-one", "--cidr", "10.1.0.0/16")
	}()
	require.Eventually(t, func() bool { return strings.Contains(errs.String(), "apply: running") }, 20*time.Second, 5*time.Millisecond)
	cl, err := c.client(c.token)
	require.NoError(t, err)
	_, err = cl.Cancel(t.Context(), c.operationOf(t, cl, "slow-one"), client.Write{})
	require.NoError(t, err)
	require.Equal(t, 9, <-done)
	require.Contains(t, errs.String(), "vpc.create of vpc slow-one cancelled; what it had done is undone")
}

func TestLoginAsksOnATerminal(t *testing.T) {
	c, term := start(t), newTerminal(t)
	var out bytes.Buffer
	done := make(chan int)
	go func() { done <- c.gnext(t.Context(), term.inside, &out, term.inside, "login", "--print-token") }()
	term.shows(t, "User: ")
	fmt.Fprintln(term.outside, "admin")
	term.shows(t, "Password: ")
	fmt.Fprintln(term.outside, c.password)
	require.Zero(t, <-done)
	require.NotContains(t, term.screen(), c.password, "a password is not shown")
	cl, err := c.client(strings.TrimSpace(out.String()))
	require.NoError(t, err)
	_, err = client.List[*api.VM](t.Context(), cl, "", client.ListOptions{})
	require.NoError(t, err)
}

func TestUploadProgressOnATerminal(t *testing.T) {
	c, term := start(t), newTerminal(t)
	file := t.TempDir() + "/disk.raw"
	require.NoError(t, os.WriteFile(file, bytes.Repeat([]byte("x"), 3<<20), 0o600))
	require.Zero(t, c.gnext(t.Context(), nil, io.Discard, term.inside, "img", "add", "tiny", "--file", file, "--format", "raw"))
	term.shows(t, ": 100% (3M of 3M)")
}

// lockedBuffer is written to by a command and read by its test.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestEvents(t *testing.T) {
	c := start(t)
	require.Zero(t, c.gnext(t.Context(), nil, io.Discard, io.Discard, "vpc", "add", "one", "--cidr", "10.1.0.0/16"))
	for format, want := range map[string][]string{
		"table": {" put vpc one: creating\n", " put vpc one: ready\n", " put operation ", "vpc.create of vpc one: succeeded\n", " put vpc two: ready\n", " delete vpc "},
		"json":  {`"kind":"vpcs"`, `"name":"two"`, `"deleted":true`},
		"yaml":  {"---\nkind: operations\n", "name: two\n", "deleted: true\n"},
		"csv":   {",put,vpcs,default,one,", ",delete,vpcs,default,,"},
	} {
		t.Run(format, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			var out, errs lockedBuffer
			done := make(chan int)
			// Revision 1 is before everything, so nothing of what happened is missed.
			go func() {
				done <- c.gnext(ctx, nil, &out, &errs, "events", "--since", "1", "--kinds", "vpcs,operations", "-o", format)
			}()
			require.Zero(t, c.gnext(t.Context(), nil, io.Discard, io.Discard, "vpc", "add", "two", "--cidr", "10.2.0.0/16"))
			require.Zero(t, c.gnext(t.Context(), nil, io.Discard, io.Discard, "vpc", "del", "two"))
			for _, w := range want {
				require.Eventually(t, func() bool { return strings.Contains(out.String(), w) }, 20*time.Second, 5*time.Millisecond, "%q", w)
			}
			cancel()
			require.Zero(t, <-done, errs.String())
			require.Empty(t, errs.String())
		})
	}
	var errs bytes.Buffer
	require.Equal(t, 5, c.gnext(t.Context(), nil, io.Discard, &errs, "events", "--since", "99999999"))
	require.Contains(t, errs.String(), "list again")
	require.Equal(t, 2, c.gnext(t.Context(), nil, io.Discard, &errs, "events", "--kinds", "secrets"))
}
