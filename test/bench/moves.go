package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
)

// moved is what one live move was like.
type moved struct{ total, downtime, gap time.Duration }

type moves []moved

func (m moves) of(pick func(moved) time.Duration) (s sample) {
	for _, x := range m {
		s = append(s, pick(x))
	}
	return s
}

// migrations moves a guest to and fro between two nodes through the API, and another one of the same kind with virsh, taking
// turns, while both are pinged every 20 ms. It needs a sandbox of several nodes.
func (b *bench) migrations() error {
	nodes, err := b.movable()
	if err != nil {
		return err
	}
	if len(nodes) < 2 {
		fmt.Printf("\nMoves are not measured: this sandbox has one node (make up NODES=2).\n")
		return nil
	}
	b.node = nodes[0].Name
	if err := b.templateOn("shared", b.node); err != nil {
		return err
	}
	defer b.sweep() //nolint:errcheck // the next run sweeps too
	vm, err := client.Get[*api.VM](b.ctx, b.c, api.DefaultProject, "bench-template")
	if err != nil {
		return err
	}
	if _, err := b.script("create", "0"); err != nil {
		return err
	}
	bare, err := b.sandbox(b.node, "ids", "0")
	if err != nil || len(bare) != 4 {
		return errors.Join(err, fmt.Errorf("bare.sh ids: %v", bare))
	}
	at := 0 // of the bare guest
	defer func() {
		_, _ = b.sandbox(nodes[at].Name, "away", bare[0])
		_, _ = b.script("remove", "0")
	}()
	for _, address := range []string{vm.Status.Addresses[0], bare[3]} {
		if err := b.awaitPing(address); err != nil {
			return err
		}
	}
	var ours, theirs moves
	for i := range b.n {
		to := nodes[1-i%2]
		steps := []func() error{
			func() error {
				m, err := b.move(to.Name, vm.Status.Addresses[0])
				ours = append(ours, m)
				return err
			},
			func() error {
				m, err := b.bareMove(nodes[at].Name, bare[0], to, bare[3])
				theirs, at = append(theirs, m), 1-at
				return err
			},
		}
		if i%2 == 1 {
			steps[0], steps[1] = steps[1], steps[0]
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
	}
	fmt.Printf("\n| live move on shared storage, %d times, in turns | NextStack p50 / p95 | bare virsh p50 / p95 | ratio at p50 | goal |\n|---|---|---|---|---|\n", b.n)
	row("downtime, as libvirt tells it", ours.of(func(m moved) time.Duration { return m.downtime }), theirs.of(func(m moved) time.Duration { return m.downtime }), "<= 1.1")
	row("from the request to the end of the operation; from virsh's start to its end", ours.of(func(m moved) time.Duration { return m.total }), theirs.of(func(m moved) time.Duration { return m.total }), "")
	row("longest gap of a ping every 20 ms", ours.of(func(m moved) time.Duration { return m.gap }), theirs.of(func(m moved) time.Duration { return m.gap }), "")
	return nil
}

// movable returns the agents that guests can be moved to while they run.
func (b *bench) movable() (out []*api.Agent, err error) {
	for a, err := range client.All[*api.Agent](b.ctx, b.c, "", client.ListOptions{}) {
		if err != nil {
			return nil, err
		}
		if a.Status.Phase == api.PhaseReady && a.Status.Inventory.Peer.Libvirt != "" {
			out = append(out, a)
		}
	}
	return out, nil
}

// templateOn prepares the bare script with a VM in a pool and on a node.
func (b *bench) templateOn(pool, node string) error {
	b.pool, b.pin = pool, node
	defer func() { b.pool, b.pin = "", "" }()
	if err := b.template(); err != nil {
		return err
	}
	// The pin was for the beginning only.
	none := ""
	op, err := client.Change(b.ctx, b.c, api.DefaultProject, "bench-template", &api.VMUpdate{NodeID: &none}, client.Write{Wait: time.Minute})
	if err != nil {
		return err
	}
	_, err = b.done(time.Now(), op)
	return err
}

// sandbox runs a function of the bare script on a node and returns what it prints.
func (b *bench) sandbox(node string, args ...string) ([]string, error) {
	cmd := exec.CommandContext(b.ctx, filepath.Join(b.root, "deploy/dev/sandbox.sh"), append([]string{"exec", node, "bash", filepath.Join(b.root, "test/bench/bare.sh")}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("bare.sh %s on %s: %w: %s", strings.Join(args, " "), node, err, stderr.String())
	}
	return strings.Fields(string(out)), nil
}

func (b *bench) move(to, address string) (m moved, err error) {
	ping := b.startPing(address)
	start := time.Now()
	op, err := b.c.MigrateVM(b.ctx, api.DefaultProject, "bench-template", api.VMMigrate{To: to}, client.Write{Wait: time.Minute})
	if err != nil {
		return m, err
	}
	if m.total, err = b.done(start, op); err != nil {
		return m, err
	}
	if op, err = b.c.Operation(b.ctx, op.ID); err != nil {
		return m, err
	}
	for _, s := range op.Steps {
		if s.Name == "move" {
			var detail struct {
				Downtime time.Duration `json:"downtime"`
			}
			if err := json.Unmarshal(s.Detail, &detail); err != nil {
				return m, err
			}
			m.downtime = detail.Downtime
		}
	}
	m.gap, err = ping()
	return m, err
}

func (b *bench) bareMove(from, guest string, to *api.Agent, address string) (m moved, err error) {
	ping := b.startPing(address)
	peer := to.Status.Inventory.Peer
	out, err := b.sandbox(from, "move", guest, peer.Libvirt, peer.Address)
	if err != nil || len(out) != 2 {
		return m, errors.Join(err, fmt.Errorf("bare.sh move: %v", out))
	}
	for i, to := range []*time.Duration{&m.total, &m.downtime} {
		ns, err := strconv.ParseInt(out[i], 10, 64)
		if err != nil {
			return m, err
		}
		*to = time.Duration(ns)
	}
	m.gap, err = ping()
	return m, err
}

// probe runs a command on the demo subnet, from the first node.
func (b *bench) probe(args ...string) ([]byte, error) {
	port, err := client.Get[*api.Port](b.ctx, b.c, api.DefaultProject, "probe")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(b.ctx, filepath.Join(b.root, "deploy/dev/probe.sh"), append([]string{b.node, port.ID, port.Spec.MAC, port.Spec.Address + "/24"}, args...)...)
	return cmd.Output()
}

func (b *bench) awaitPing(address string) error {
	for deadline := time.Now().Add(time.Minute); ; {
		_, err := b.probe("ping", "-c1", "-W1", address)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// pingFor is how long a guest is pinged around its move.
const pingFor = 8 * time.Second

// startPing pings a guest every 20 ms until some seconds after the returned function is called for the longest gap.
func (b *bench) startPing(address string) (gap func() (time.Duration, error)) {
	const every = 20 * time.Millisecond
	type result struct {
		out []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := b.probe("ping", "-D", "-i", "0.02", "-c", strconv.Itoa(int(pingFor/every)), "-w", strconv.Itoa(int(pingFor.Seconds())+2), address)
		done <- result{out, err}
	}()
	return func() (time.Duration, error) {
		r := <-done
		var last, longest float64
		for line := range strings.Lines(string(r.out)) {
			stamp, _, ok := strings.Cut(strings.TrimPrefix(line, "["), "]")
			at, err := strconv.ParseFloat(stamp, 64)
			if !ok || err != nil || !strings.Contains(line, "bytes from") {
				continue
			}
			if last > 0 {
				longest = max(longest, at-last)
			}
			last = at
		}
		if last == 0 {
			return 0, errors.Join(r.err, fmt.Errorf("%s did not answer one ping", address))
		}
		return time.Duration(longest * float64(time.Second)), nil
	}
}
