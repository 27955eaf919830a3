package nodes

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
)

// tallySector is where on its disk a tally begins: behind the system. tallyMost is how many records there may be.
const (
	tallySector = 70 << 11
	tallyMost   = 8192
	sector      = 512
)

// tallyScript counts on the raw disk, for ever: one sector for each number, with the life of the guest that wrote it. A life
// goes on where the one before ended. Two lives at a time would write the same sectors, and the order of lives would show it.
var tallyScript = fmt.Sprintf(`#!/bin/sh
(
disk=/dev/vda
set -- $(dd if=$disk bs=%[1]d skip=%[2]d count=%[3]d 2>/dev/null | tr -d '\000' | tail -n 1)
n=${1:-0} life=$((${2:-0} + 1))
while :; do
  echo "$n $life" | dd of=$disk bs=%[1]d seek=$((%[2]d + n)) conv=notrunc,sync,fsync 2>/dev/null || break
  n=$((n + 1))
  sleep 0.05
done
) &
`, sector, tallySector, tallyMost)

// tally is an HA guest that counts on its disk in the shared pool.
type tally struct {
	name string
	vm   string
	from *stack.Host // from which it is asked
	port *api.Port
}

// startTally makes it, on a node that the cloud chooses, and returns when it counts.
func (d *dying) startTally(t *testing.T, from *stack.Host) *tally {
	t.Helper()
	const name = "tally"
	d.succeed(t, ask(t, d.world, &api.VMCreate{
		Name: name, VCPUs: 1, Memory: 128 * api.MiB, Image: stack.Tiny, RootDisk: 96 * api.MiB, Pool: stack.Shared,
		NICs: []api.NICRequest{{Subnet: stack.Subnet}}, SecurityGroups: []string{stack.Web}, UserData: tallyScript, HA: true,
	}, ""), ask(t, d.world, &api.PortCreate{Name: name + "-probe", Subnet: stack.Subnet}, ""))
	port, err := client.Get[*api.Port](t.Context(), d.Client, project, name+"-probe")
	require.NoError(t, err)
	ta := &tally{name: name, vm: d.vm(t, name).ID, from: from, port: port}
	t.Logf("%s answered after %s", name, ta.answers(t, d, time.Now()))
	ta.counts(t, d, 0)
	return ta
}

// answers waits until the guest answers a ping, and returns how long after since that was.
func (ta *tally) answers(t *testing.T, d *dying, since time.Time) time.Duration {
	t.Helper()
	p, err := d.StartPings(within(t, bootTime), ta.from, ta.port, 22, d.vm(t, ta.name).Status.Addresses[0])
	if err != nil {
		t.Log(d.DescribeNetwork(t.Context(), d.vm(t, ta.name).Spec.NICs[0].Port, ta.port.ID))
	}
	require.NoError(t, err)
	took := time.Since(since).Round(100 * time.Millisecond)
	_, err = p.Stop()
	require.NoError(t, err)
	return took
}

// volume returns the disk that it counts on.
func (ta *tally) volume(t *testing.T, d *dying) *api.Volume {
	t.Helper()
	v, err := client.Get[*api.Volume](t.Context(), d.Client, project, d.vm(t, ta.name).Status.Volumes[0])
	require.NoError(t, err)
	return v
}

// records returns how many records there are and in which life the last was written. It fails t if the tally shows two writers.
func (ta *tally) records(t *testing.T, d *dying) (n, life int) {
	t.Helper()
	v := ta.volume(t, d)
	pool, err := client.Get[*api.Pool](t.Context(), d.Client, "", v.Spec.Pool)
	require.NoError(t, err)
	return recordsIn(t, d.Path(pool.Name, "volumes", cmp.Or(v.Status.Layer, v.ID)+".qcow2"))
}

// recordsIn is records of a disk that the tally may have.
func recordsIn(t *testing.T, disk string) (n, life int) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "disk.raw")
	// Without its lock: a guest may be writing.
	out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-U", "-O", "raw", disk, raw).CombinedOutput()
	require.NoError(t, err, string(out))
	f, err := os.Open(raw)
	require.NoError(t, err)
	defer f.Close()
	all := make([]byte, tallyMost*sector)
	_, err = f.ReadAt(all, tallySector*sector)
	require.NoError(t, err)
	require.NoError(t, os.Remove(raw))
	for ; n < tallyMost; n++ {
		record := strings.Fields(strings.TrimRight(string(all[n*sector:(n+1)*sector]), "\x00"))
		if len(record) == 0 {
			break
		}
		require.Len(t, record, 2, "record %d", n)
		require.Equal(t, strconv.Itoa(n), record[0])
		wrote, err := strconv.Atoi(record[1])
		require.NoError(t, err)
		require.GreaterOrEqual(t, wrote, life, "record %d is of a life that was over: TWO WROTE AT A TIME", n)
		require.LessOrEqual(t, wrote, life+1, "record %d", n)
		life = wrote
	}
	return n, life
}

// counts waits until the tally is longer than it was, in a life after the given one, and returns its life.
func (ta *tally) counts(t *testing.T, d *dying, after int) int {
	t.Helper()
	was, _ := ta.records(t, d)
	now := 0
	require.NoError(t, stack.Poll(within(t, time.Minute), 200*time.Millisecond, func() error {
		n, life := ta.records(t, d)
		if now = life; n <= was+5 || life <= after {
			return fmt.Errorf("%d records after %d, the last of life %d", n, was, life)
		}
		return nil
	}), "it does not count")
	return now
}

// check fails t unless the tally goes on, and is one that only one guest at a time wrote.
func (ta *tally) check(t *testing.T, d *dying) {
	t.Helper()
	ta.counts(t, d, 0)
	n, life := ta.records(t, d)
	t.Logf("%s: %d records by %d lives, one after the other", ta.name, n, life)
}

// watch looks 20 times a second which processes run a VM, anywhere.
type watch struct {
	stop func() // may be called again

	mu    sync.Mutex
	looks int
	gap   time.Duration // the longest between two looks
	turns []turn
	err   error
}

// turn is a moment at which the processes of a VM were others than before.
type turn struct {
	at    time.Time
	qemus []stack.QEMU
}

// watch begins to watch a VM, until never2 or the end of the test.
func (d *dying) watch(t *testing.T, vm string) *watch {
	t.Helper()
	w := &watch{}
	end, ended := make(chan struct{}), make(chan struct{})
	w.stop = sync.OnceFunc(func() { close(end); <-ended })
	t.Cleanup(w.stop)
	go func() {
		defer close(ended)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for last := time.Now(); ; {
			w.look(d, vm, &last)
			select {
			case <-tick.C:
			case <-end:
				return
			}
		}
	}()
	return w
}

func (w *watch) look(d *dying, vm string, last *time.Time) {
	now := time.Now()
	q, err := d.QEMUs(vm)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks, w.gap = w.looks+1, max(w.gap, now.Sub(*last))
	*last = now
	if err != nil {
		w.err = err
	} else if n := len(w.turns); n == 0 || fmt.Sprint(w.turns[n-1].qemus) != fmt.Sprint(q) {
		w.turns = append(w.turns, turn{now, q})
	}
}

// gone waits until no process runs the VM, and returns when that was first so after since.
func (w *watch) gone(t *testing.T, since time.Time) time.Time {
	t.Helper()
	var at time.Time
	require.NoError(t, stack.Poll(within(t, time.Minute), 20*time.Millisecond, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, turn := range w.turns {
			if turn.at.After(since) && len(turn.qemus) == 0 {
				at = turn.at
				return nil
			}
		}
		return errNotYet
	}), "it still runs")
	return at
}

// never2 ends the watch, and fails t if there were two processes at a time.
func (w *watch) never2(t *testing.T) {
	t.Helper()
	w.stop()
	require.NoError(t, w.err)
	var text []string
	for i, turn := range w.turns {
		require.LessOrEqual(t, len(turn.qemus), 1, "TWO RAN AT A TIME: %+v", w.turns)
		where := "nowhere"
		if len(turn.qemus) == 1 {
			where = turn.qemus[0].Host
			if where == "" {
				where = "a node without power"
			}
		}
		if i > 0 {
			where = fmt.Sprintf("%s at %s", where, turn.at.Sub(w.turns[0].at).Round(10*time.Millisecond))
		}
		text = append(text, where)
	}
	t.Logf("%d looks, at most %s apart: it ran on %s", w.looks, w.gap.Round(time.Millisecond), strings.Join(text, ", "))
}
