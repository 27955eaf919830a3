package nodes

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
)

// talker sends numbered lines over one TCP connection to the echo service at $1, and expects each back before the next. It
// notes in the file $2 when each came, until there is a file $3.
const talker = `
exec 3<>"/dev/tcp/$1/7" || exit 2
n=0
while [ ! -e "$3" ]; do
  n=$((n + 1))
  echo "line $n" >&3 || { echo "line $n could not be sent" >&2; exit 3; }
  IFS= read -r -t 60 -u 3 answer || { echo "line $n was not answered" >&2; exit 4; }
  [ "$answer" = "line $n" ] || { echo "line $n was answered $answer" >&2; exit 5; }
  echo "$EPOCHREALTIME $n" >> "$2"
  sleep 0.05
done`

// talk is one TCP connection to a guest, on which something is said all the time.
type talk struct {
	notes, stop string // files
	ended       chan struct{}
	err         error // how it ended; valid once ended is closed
}

// echo is the security group of guests that are talked to.
const echo = "echo"

func (w *world) allowEcho(t *testing.T) {
	t.Helper()
	w.succeed(t, ask(t, w, &api.SecurityGroupCreate{Name: echo, Rules: []api.Rule{
		{Direction: api.Ingress, Protocol: api.TCP, PortMin: 7, PortMax: 7, CIDR: "0.0.0.0/0"},
	}}, ""))
}

// talk connects to the guest from a port on the first node, and returns when the guest has answered on the connection.
func (w *world) talk(t *testing.T, g *guest) *talk {
	t.Helper()
	name := g.vm.Name + "-talk"
	w.succeed(t, ask(t, w, &api.PortCreate{Name: name, Subnet: stack.Subnet}, ""))
	port, err := client.Get[*api.Port](t.Context(), w.Client, project, name)
	require.NoError(t, err)
	dir := t.TempDir()
	k := &talk{notes: filepath.Join(dir, "notes"), stop: filepath.Join(dir, "stop"), ended: make(chan struct{})}
	// Its echo service is the last thing that a guest starts, after it answers pings.
	require.NoError(t, stack.Poll(within(t, bootTime), 500*time.Millisecond, func() error {
		_, err := w.Probe(t.Context(), port, 22, "bash", "-c", `exec 3<>"/dev/tcp/$1/7"`, "try", g.vm.Status.Addresses[0])
		return err
	}))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, k.err = w.Probe(ctx, port, 22, "bash", "-c", talker, "talk", g.vm.Status.Addresses[0], k.notes, k.stop)
		close(k.ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-k.ended
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := w.RemoveProbe(ctx, port); err != nil {
			t.Error(err)
		}
		if op, err := w.Client.Delete(ctx, api.KindPort, project, name, client.Write{}); err != nil {
			t.Error(err)
		} else if _, err := w.Ended(ctx, op.ID); err != nil {
			t.Error(err)
		}
	})
	k.goesOn(t, "at first")
	return k
}

// said is what has come back so far: how many lines, and the longest time without one.
func (k *talk) said() (lines int, gap time.Duration, err error) {
	f, err := os.Open(k.notes)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close() //nolint:errcheck // was only read
	last := 0.0
	for s := bufio.NewScanner(f); s.Scan(); lines++ {
		when, number, _ := strings.Cut(s.Text(), " ")
		at, err := strconv.ParseFloat(when, 64)
		if err != nil || number != strconv.Itoa(lines+1) {
			return lines, gap, fmt.Errorf("note %d is %q (%w)", lines+1, s.Text(), err)
		}
		if lines > 0 {
			gap = max(gap, time.Duration((at-last)*float64(time.Second)))
		}
		last = at
	}
	return lines, gap, nil
}

// goesOn fails t unless more is said on the connection.
func (k *talk) goesOn(t *testing.T, when string) {
	t.Helper()
	before := -1
	ctx, cancel := context.WithCancelCause(within(t, time.Minute))
	defer cancel(nil)
	require.NoError(t, stack.Poll(ctx, 50*time.Millisecond, func() error {
		select {
		case <-k.ended:
			cancel(errors.New("the connection has ended"))
			return k.err
		default:
		}
		lines, _, err := k.said()
		if err != nil {
			return err
		}
		if before < 0 {
			before = lines
		}
		if lines < before+3 {
			return fmt.Errorf("nothing more is said than %d lines", lines)
		}
		return nil
	}), "the guest's connection, %s", when)
}

// end ends the connection in order and fails t unless all of it was good.
func (k *talk) end(t *testing.T) {
	t.Helper()
	require.NoError(t, os.WriteFile(k.stop, nil, 0o600))
	select {
	case <-k.ended:
		require.NoError(t, k.err, "the guest's connection")
	case <-time.After(90 * time.Second):
		t.Fatal("the guest's connection does not end")
	}
	lines, gap, err := k.said()
	require.NoError(t, err)
	t.Logf("%d lines were said on one connection, longest gap %s", lines, gap.Round(time.Millisecond))
}
