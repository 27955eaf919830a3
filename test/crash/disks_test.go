package crash

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
)

// diskGuest makes a guest do what it is asked for over the channel of guest agents: tell the checksum of its data disk, past its
// caches, and what it remembers, which is in its memory; write a block; remember something. It has no network: when guests with
// connections went back to checkpoints, the connection tracking of Open vSwitch 3.1.0 was seen to fail an assertion
// (conn_update_state), and the node was left without a switch.
const diskGuest = `#!/bin/sh
answer() {
exec 3<>$(ls /dev/vport*p1) || return
while :; do
  read -r line <&3 || { sleep 0.1; continue; }  # nobody has connected yet
  case $line in *guest-sync*) echo "{\"return\": $(echo "$line" | sed 's/.*"id": *\([0-9]*\).*/\1/')}" >&3; continue ;; esac
  set -- $(echo "$line" | sed -n 's/.*"execute": *"\([^"]*\)".*/\1/p')
  answer=done
  case $1 in
  look)
    sum=none
    if [ -b /dev/vdc ]; then  # it may be coming or going just now, and then is short
      if dd if=/dev/vdc of=/run/disk iflag=direct bs=1M status=none && [ -s /run/disk ]; then sum=$(sha256sum </run/disk); else sum=unreadable; fi
    fi
    answer="${sum%% *} $(cat /run/remembered)" ;;
  put) yes "$3" | head -c 4096 | dd of=/dev/vdc oflag=direct bs=4096 seek="$2" conv=notrunc,fsync status=none || answer=failed ;;
  remember) echo "$2" >/run/remembered ;;
  guest-fsfreeze-freeze | guest-fsfreeze-thaw) echo '{"return": 1}' >&3; continue ;;
  *) echo '{"error": {"class": "CommandNotFound", "desc": "unknown"}}' >&3; continue ;;
  esac
  echo "{\"return\": \"$answer\"}" >&3
done
}
(while :; do (answer); sleep 0.5; done) >/dev/null 2>&1 &  # the channel is there a little later
`

// What every data volume is made of, and how big it is.
const (
	pattern = "pattern" // an image of random bytes
	block   = 4 << 10
	diskMiB = 4
)

// lane is a VM whose data volume goes through a life, and what must be on that.
type lane struct {
	w       *world
	num     int
	vm      *api.VM
	content []byte // of the volume
	kept    []byte // by the snapshot
	then    []byte // by the checkpoint
	mark    string // that the guest remembers
	back    string // that it remembered at the checkpoint
	writes  int

	attached bool // as it was last seen
	starts   int  // how often the guest has come up
}

func (l *lane) name(what string) string { return fmt.Sprintf("%s-%d", what, l.num) }

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// onAll does something with all lanes at once.
func onAll(t *testing.T, lanes []*lane, do func(l *lane) error) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, len(lanes))
	for i, l := range lanes {
		wg.Go(func() {
			if err := do(l); err != nil {
				errs[i] = fmt.Errorf("%s: %w", l.name("guest"), err)
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
}

// lanes makes an image of random bytes, and that many VMs, whose guests answer.
func (w *world) lanes(t *testing.T, n int, pool string) []*lane {
	t.Helper()
	random := make([]byte, diskMiB<<20/2)
	_, _ = rand.Read(random)
	path := w.Path("images", "pattern.raw")
	require.NoError(t, os.WriteFile(path, random, 0o600))
	var ids []string
	asked := func(op *api.Operation, err error) {
		t.Helper()
		require.NoError(t, err)
		ids = append(ids, op.ID)
	}
	asked(client.Create(t.Context(), w.Client, project, &api.ImageCreate{Name: pattern, Format: api.FormatRaw, Path: path}, client.Write{}))
	var all []*lane
	for i := range n {
		l := &lane{w: w, num: i + 1}
		r := small(l.name("guest"))
		r.Memory, r.Image, r.Pool, r.NICs, r.UserData = 128*api.MiB, stack.Tiny, pool, nil, diskGuest
		asked(client.Create(t.Context(), w.Client, project, r, client.Write{}))
		all = append(all, l)
	}
	w.succeed(t, ids...)
	for _, l := range all {
		var err error
		l.vm, err = client.Get[*api.VM](t.Context(), w.Client, project, l.name("guest"))
		require.NoError(t, err)
		l.content = append(bytes.Clone(random), make([]byte, diskMiB<<20-len(random))...)
	}
	begun := time.Now()
	onAll(t, all, func(l *lane) error {
		if err := l.boots(t.Context()); err != nil {
			return err
		}
		return l.remember(t.Context(), "beginning")
	})
	t.Logf("%d guests answered after %s", n, time.Since(begun).Round(100*time.Millisecond))
	return all
}

// boots waits until the guest has started once more. Its console is asked, which takes nothing from guests that are emulated.
func (l *lane) boots(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*bootTime) // all start at once
	defer cancel()
	return stack.Poll(ctx, 100*time.Millisecond, func() error {
		console, err := l.w.Hosts[0].Console(l.vm.ID)
		starts := strings.Count(console, "tiny: READY")
		if err == nil && starts <= l.starts {
			err = fmt.Errorf("its console ends: %s", tail(console, 200))
		}
		if err == nil {
			l.starts = starts
		}
		return err
	})
}

// forget removes what lanes made, but for what they did with their volumes.
func (w *world) forget(t *testing.T, all []*lane) {
	t.Helper()
	var vms []string
	for _, l := range all {
		vms = append(vms, l.vm.Name)
	}
	w.remove(t, vms...)
	w.removeAll(t, api.KindImage, pattern)
}

// ask has the guest do something, as soon as it can, and returns its answer.
func (l *lane) ask(ctx context.Context, words ...string) (answer string, err error) {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	command := `{"execute": "` + strings.Join(words, " ") + `"}`
	err = stack.Poll(ctx, 300*time.Millisecond, func() error {
		out, err := l.w.InNode(ctx, "virsh", "-q", "-c", "qemu:///system", "qemu-agent-command", l.vm.ID, command, "--timeout", "20")
		if err != nil {
			return err
		}
		var said struct{ Return string }
		if err := json.Unmarshal([]byte(out), &said); err != nil {
			return fmt.Errorf("%s says %q to %s: %w", l.vm.Name, out, words, err)
		}
		answer = said.Return
		return nil
	})
	return answer, err
}

func (l *lane) remember(ctx context.Context, mark string) error {
	l.mark = mark
	_, err := l.ask(ctx, "remember", mark)
	return err
}

// write has the guest write another block, of those that came from the image and those that did not in turn.
func (l *lane) write(ctx context.Context) error {
	l.writes++
	at := l.writes * 37 % (len(l.content) / block)
	text := fmt.Sprintf("lane-%d-wrote-%d", l.num, l.writes)
	answer, err := l.ask(ctx, "put", fmt.Sprint(at), text)
	if err == nil && answer != "done" {
		err = fmt.Errorf("%s did not write: %q", l.vm.Name, answer)
	}
	copy(l.content[at*block:], bytes.Repeat([]byte(text+"\n"), block)[:block])
	return err
}

// sees compares what the guest reads from its disk, and what it remembers, with what must be.
func (l *lane) sees(ctx context.Context) error { return l.looks(ctx, sum(l.content)) }

// seesNone checks that the guest has no data disk.
func (l *lane) seesNone(ctx context.Context) error { return l.looks(ctx, none) }

// What a guest says of a disk that it has not, or that it cannot read.
const none, unreadable = "none", "unreadable"

func (l *lane) looks(ctx context.Context, disk string) error {
	soon, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var wrong error
	err := stack.Poll(soon, 300*time.Millisecond, func() error {
		answer, err := l.ask(soon, "look")
		if err != nil {
			return err
		}
		got, mark, _ := strings.Cut(answer, " ")
		if (got == none) != (disk == none) || got == unreadable {
			return fmt.Errorf("its disk reads as %s", got) // a guest takes a moment to see that a disk has come or gone
		}
		if got != disk || mark != l.mark {
			wrong = fmt.Errorf("its disk reads as %s, and should as %s after %d writes; it remembers %q, and should %q", got, disk, l.writes, mark, l.mark)
		}
		return nil
	})
	l.attached = err == nil && disk != none
	return errors.Join(err, wrong)
}

// holds compares what a layer of a volume shows with what must be. Of a pool without layers it is a snapshot, or the volume's ID.
func (l *lane) holds(ctx context.Context, v *api.Volume, layer string, want []byte) error {
	pool, err := client.Get[*api.Pool](ctx, l.w.Client, "", v.Spec.Pool)
	if err != nil {
		return err
	}
	raw := l.w.Path("images", l.name("shown")+".raw")
	defer os.Remove(raw) //nolint:errcheck // in a directory that goes, too
	if pool.Spec.Files() {
		_, err = l.w.InNode(ctx, "qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", pool.Spec.Path+"/volumes/"+layer+".qcow2", raw)
	} else {
		snapshot := layer
		if layer == v.ID {
			snapshot = ""
		}
		err = l.w.ExportRBD(ctx, pool, v.ID, snapshot, raw)
	}
	if err != nil {
		return err
	}
	got, err := os.ReadFile(raw)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("layer %s of volume %s has changed: %s, not %s", layer, v.Name, sum(got), sum(want))
	}
	return err
}
