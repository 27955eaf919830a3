package computetest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/activities/compute/libvirt"
	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// watchDisks makes a guest tell on its console which disks it sees besides root disk and seed, and write to each of them: sector
// N gets the number N, and once a second it tells how far it is, how many writes it did in a second, and how long it waited for
// the slowest, in hundredths of a second.
const watchDisks = `#!/bin/sh
echo on >/proc/sys/kernel/printk_devkmsg
say() { echo "<1>disks: $*" >/dev/kmsg; } # one line at a time, whoever talks
now() { read -r u _ </proc/uptime; N=${u%.*}${u#*.}; }
writer() {
  i=0; worst=0; k=0; now; s=$N
  [ -b /dev/$1 ] && exec 4<>/dev/$1 || return  # by its name dd would make a file of it once it is gone
  while :; do
    while [ -e /run/frozen ]; do sleep 0.01; done
    now; a=$N; i=$((i+1))
    printf '%0512d' $i | dd of=/proc/self/fd/4 bs=512 seek=$i conv=notrunc,fsync 2>/dev/null || break
    now; g=$((N-a)); [ $g -le $worst ] || worst=$g
    k=$((k+1))
    [ $((N-s)) -lt 100 ] || { say "$1 wrote $i rate $((k*100/(N-s))) worst $worst"; s=$N; k=0; worst=0; }
  done
}
(say sees; old=; turn=0
while :; do
  cur=
  for f in /run/serial-*; do
    [ -e /sys/block/${f#*-}/size ] || rm -f $f
  done
  for d in /sys/block/vd[c-z]; do
    n=${d##*/}
    read -r z 2>/dev/null <$d/size || continue
    [ -s /run/serial-$n ] || cat $d/serial >/run/serial-$n  # once: a disk that is just going never answers
    cur="$cur $n:$(cat /run/serial-$n):$((z*512))"
  done
  [ "$cur" = "$old" ] || {
    say "sees$cur"
    for d in /sys/block/vd[c-z]; do
      n=${d##*/}
      case "$old" in *" $n:"*) ;; *) [ ! -e $d ] || writer $n & ;; esac
    done
    old=$cur
  }
  turn=$((turn+1)); [ $((turn%10)) != 0 ] || say "sees$cur"  # writers may have talked at the same time
  sleep 0.2
done) >/dev/null 2>&1 &
`

// agentScript is as much of a guest's agent as it takes to bring file systems to rest. The writer above is the file system.
const agentScript = `
(while [ ! -e /dev/vport0p1 ]; do sleep 0.1; done
exec 3<>/dev/vport0p1
while :; do
  read -r line <&3 || { sleep 0.1; continue; }  # nobody has connected yet
  case $line in
  *guest-sync*) echo "{\"return\": $(echo "$line" | sed 's/.*"id": *\([0-9]*\).*/\1/')}" >&3 ;;
  *fsfreeze-freeze*) : >/run/frozen; sleep 0.05; echo '{"return": 1}' >&3 ;;
  *fsfreeze-thaw*) rm -f /run/frozen; echo '{"return": 1}' >&3 ;;
  *execute*) echo '{"error": {"class": "CommandNotFound", "desc": "unknown"}}' >&3 ;;
  esac
done) >/dev/null 2>&1 &
`

// observed is a driver that knows from where on the console is of the guest that runs now.
type observed struct {
	*libvirt.Driver
	console func(vm string) []byte
	mu      sync.Mutex
	from    map[string]int
	anew    map[string]int
}

func (o *observed) mark(vm string) {
	size := len(o.console(vm))
	o.mu.Lock()
	o.from[vm] = size
	o.mu.Unlock()
}

// Start implements compute.Power.
func (o *observed) Start(ctx context.Context, vm string) (api.Phase, error) {
	o.mark(vm)
	return o.Driver.Start(ctx, vm)
}

// RestoreGuest implements compute.Checkpoints. What the guest has said before may be of a time that never was.
func (o *observed) RestoreGuest(ctx context.Context, r compute.Restore, tell func(api.Progress)) error {
	phase, err := o.State(ctx, r.Plan.VM)
	if err != nil || phase != api.PhaseRunning {
		o.mark(r.Plan.VM)
		o.mu.Lock()
		o.anew[r.Plan.VM] = o.from[r.Plan.VM]
		o.mu.Unlock()
	}
	return o.Driver.RestoreGuest(ctx, r, tell)
}

// counted returns what the guest has said since it began to count, or went on counting from another number.
func (o *observed) counted(vm string) []byte {
	b := o.console(vm)
	o.mu.Lock()
	defer o.mu.Unlock()
	return b[min(o.anew[vm], len(b)):]
}

// says returns what the guest has said since its start.
func (o *observed) says(vm string) []byte {
	b := o.console(vm)
	o.mu.Lock()
	defer o.mu.Unlock()
	return b[min(o.from[vm], len(b)):]
}

// Bench returns the first of the nodes as a bench.
func (n *Nodes) Bench(t *testing.T) Bench {
	t.Helper()
	opt := n.Options(t, 0)
	opt.LiveTCG = false // what such a guest writes meanwhile must not be lost here
	driver := libvirt.New(opt)
	t.Cleanup(driver.Close)
	o := &observed{Driver: driver, from: map[string]int{}, anew: map[string]int{}, console: func(vm string) []byte {
		b, _ := os.ReadFile(domain.ConsoleLog(filepath.Join(n.Dir, "consoles-"+n.Names[0]), vm))
		return b
	}}
	return Bench{
		Driver: o,
		Boot:   func(t *testing.T, agent bool) BenchGuest { return n.benchGuest(t, o, agent) },
		Empty:  n.empty,
		Memory: func(*testing.T) string { return filepath.Join(n.Dir, api.NewID()+".memory") },
		Begun: func(t *testing.T, memory string) {
			begun(t, func() bool { _, err := os.Stat(memory); return err == nil })
		},
		Layer: func(t *testing.T, below compute.DiskSource) compute.DiskSource {
			info, err := qemuimg.InspectOpen(t.Context(), below.File, api.FormatQCOW2)
			require.NoError(t, err)
			path := filepath.Join(n.Dir, api.NewID()+".qcow2")
			require.NoError(t, qcow2.Create(path, info.VirtualSize, below.File))
			return compute.QCOW2(path)
		},
		Stubborn: func(t *testing.T) BenchGuest {
			g := n.benchPlan(t, o)
			require.NoError(t, o.Create(t.Context(), g.Plan, compute.DomainFiles{Disk: n.empty(t, api.MiB)}), "its firmware finds nothing to start")
			return g
		},
	}
}

func (n *Nodes) benchPlan(t *testing.T, o *observed) BenchGuest {
	vm := api.NewID()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", o.console(vm))
		}
		require.NoError(t, o.Remove(context.Background(), vm))
		require.Zero(t, Processes(t, vm))
	})
	return BenchGuest{Plan: steps.VMPlan{
		VM: vm, Name: "bench", Project: "default", VCPUs: 1, Memory: 160 * api.MiB,
		Disk: steps.DiskPlan{Volume: api.NewID(), Size: 128 * api.MiB, Pool: n.Pool.Pool, PoolPath: n.Pool.Path, Type: n.Pool.Type, Source: n.Pool.Source, Shared: n.Pool.Shared},
	}}
}

const watchEvery = 50 * time.Millisecond

// Patience is how long a guest may take for anything.
const Patience = 2 * time.Minute

func (n *Nodes) benchGuest(t *testing.T, o *observed, agent bool) BenchGuest {
	t.Helper()
	g := n.benchPlan(t, o)
	vm, script := g.Plan.VM, watchDisks
	if agent {
		script += agentScript
	}
	g.Files = compute.DomainFiles{Disk: compute.QCOW2(n.disk(t, g.Plan.Disk.Volume)), Seed: compute.Raw(n.seed(t, vm, script))}
	if n.Elsewhere != nil {
		g.Files = n.Elsewhere(t, g.Plan, g.Files)
	}
	until := func(t *testing.T, what string, ok func() bool) {
		t.Helper()
		require.Eventually(t, ok, Patience, watchEvery, what)
	}
	g.Sees = func(t *testing.T, volume string, size int64) {
		t.Helper()
		until(t, fmt.Sprintf("the guest does not see volume %s with %d bytes", volume, size), func() bool {
			all := seesRE.FindAllSubmatch(o.says(vm), -1)
			if len(all) == 0 {
				return false
			}
			last := string(all[len(all)-1][1])
			if size == 0 {
				return !strings.Contains(last, domain.Serial(volume))
			}
			return strings.Contains(last, fmt.Sprintf("%s:%d", domain.Serial(volume), size))
		})
	}
	news := func(t *testing.T, device string) []wrote {
		before := len(wrotes(o.says(vm), device))
		var all []wrote
		until(t, "the guest does not write to "+device, func() bool {
			all = wrotes(o.says(vm), device)
			return len(all) >= before+2
		})
		return all[max(before-1, 0):]
	}
	g.Rate = func(t *testing.T, device string) int {
		t.Helper()
		all := news(t, device)
		return all[len(all)-1].rate
	}
	g.Steady = func(t *testing.T, device string) (worst time.Duration) {
		t.Helper()
		for _, w := range news(t, device) {
			worst = max(worst, w.worst)
		}
		return worst
	}
	g.Intact = func(t *testing.T, device string, s compute.DiskSource) {
		t.Helper()
		intact(t, device, s, wrotes(o.counted(vm), device))
	}
	g.Counts = func(t *testing.T, device string) int {
		t.Helper()
		before := len(wrotes(o.says(vm), device))
		var all []wrote
		until(t, "the guest does not count", func() bool {
			all = wrotes(o.says(vm), device)
			return len(all) > before
		})
		return all[before].n
	}
	require.NoError(t, o.Create(t.Context(), g.Plan, g.Files))
	until(t, "the guest does not come up", func() bool { return bytes.Contains(o.says(vm), []byte("tiny: READY")) })
	if agent {
		until(t, "the guest's agent does not come up", func() bool {
			xml, err := o.LiveXML(t.Context(), vm)
			return err == nil && domain.Listens(xml)
		})
	}
	return g
}

// wrote is a line of a writer.
type wrote struct {
	n, rate int
	worst   time.Duration
}

var (
	seesRE  = regexp.MustCompile(`disks: sees([^\r\n]*)\r?\n`)
	wroteRE = regexp.MustCompile(`disks: (vd[a-z]+) wrote (\d+) rate (\d+) worst (\d+)\r?\n`)
)

func wrotes(console []byte, device string) (out []wrote) {
	for _, m := range wroteRE.FindAllSubmatch(console, -1) {
		if string(m[1]) != device {
			continue
		}
		n, _ := strconv.Atoi(string(m[2]))
		rate, _ := strconv.Atoi(string(m[3]))
		worst, _ := strconv.Atoi(string(m[4]))
		out = append(out, wrote{n, rate, time.Duration(worst) * 10 * time.Millisecond})
	}
	return out
}

// intact checks the numbers that a guest has written.
func intact(t *testing.T, device string, s compute.DiskSource, told []wrote) {
	t.Helper()
	last := 0
	for _, w := range told {
		last = max(last, w.n)
	}
	require.Positive(t, last, "the guest has written nothing to %s", device)
	const size = 128 * api.MiB
	require.NoError(t, qemuimg.Check(t.Context(), s.File, size))
	raw := filepath.Join(t.TempDir(), "raw")
	require.NoError(t, qemuimg.ConvertTo(t.Context(), s.File, s.Format, raw, api.FormatRaw, size, nil))
	b, err := os.ReadFile(raw)
	require.NoError(t, err)
	for i := 1; i <= last; i++ {
		require.Equal(t, fmt.Sprintf("%0512d", i), string(b[i*512:(i+1)*512]), "sector %d of %d", i, last)
	}
}
