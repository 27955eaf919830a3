package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/pings"
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
// turns, while both are pinged every 20 ms: on a shared directory, and with make up STORAGE=ceph in Ceph, which copies no disk either.
// It needs a sandbox of several nodes. Emulated guests stand still meanwhile in either way, unless both ways are asked to let them run.
func (b *bench) migrations() error {
	nodes, err := b.movable()
	if err != nil {
		return err
	}
	if len(nodes) < 2 {
		fmt.Printf("\nMoves are not measured: this sandbox has one node (make up NODES=2).\n")
		return nil
	}
	dir, ceph, err := b.pools()
	if err != nil {
		return err
	}
	if dir == nil || !dir.Spec.Shared {
		return errors.New("there is no pool that is a shared directory")
	}
	if err := b.migrationsOf(nodes, dir.Name, "on a shared directory"); err != nil {
		return err
	}
	if ceph == nil {
		fmt.Printf("\nMoves of VMs in Ceph are not measured: this sandbox has none (make up STORAGE=ceph).\n")
		return nil
	}
	return b.migrationsOf(nodes, ceph.Name, "in Ceph")
}

// migrationsOf does that with root disks in a pool.
func (b *bench) migrationsOf(nodes []*api.Agent, pool, where string) error {
	b.node = nodes[0].Name
	if err := b.templateOn(pool, b.node); err != nil {
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
	mode, way := "live", "live"
	if nodes[0].Status.Inventory.Accel == "tcg" && !b.live {
		mode, way = "", "paused"
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
				m, err := b.bareMove(nodes[at].Name, bare[0], to, bare[3], mode)
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
		fmt.Fprintf(os.Stderr, "%d of %d: %+v, bare %+v\n", i+1, b.n, ours[i], theirs[i])
	}
	fmt.Printf("\n| %s move of a VM whose disk is %s, %d times, in turns | NextStack p50 / p95 | bare virsh p50 / p95 | ratio at p50 | goal |\n|---|---|---|---|---|\n", way, where, b.n)
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
	ping, err := b.startPing(address)
	if err != nil {
		return m, err
	}
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

func (b *bench) bareMove(from, guest string, to *api.Agent, address, mode string) (m moved, err error) {
	ping, err := b.startPing(address)
	if err != nil {
		return m, err
	}
	peer := to.Status.Inventory.Peer
	out, err := b.sandbox(from, "move", guest, peer.Libvirt, peer.Address, mode)
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

// probe is a command on the demo subnet, from the first node.
func (b *bench) probe(args ...string) (*exec.Cmd, error) {
	port, err := client.Get[*api.Port](b.ctx, b.c, api.DefaultProject, "probe")
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(b.ctx, filepath.Join(b.root, "deploy/dev/probe.sh"), append([]string{b.node, port.ID, port.Spec.MAC, port.Spec.Address + "/24"}, args...)...), nil
}

// awaitPing waits until a guest answers, which has just been made.
func (b *bench) awaitPing(address string) error {
	for deadline := time.Now().Add(2 * time.Minute); ; {
		cmd, err := b.probe("ping", "-c1", "-W1", address)
		if err == nil {
			err = cmd.Run()
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the guest at %s does not answer pings: %w", address, err)
		}
	}
}

// after is how long a guest is pinged when its move is over.
const after = time.Second

// startPing pings a guest every 20 ms, from the first answer on until the returned function is called, which tells the longest gap.
func (b *bench) startPing(address string) (gap func() (time.Duration, error), err error) {
	cmd, err := b.probe(pings.Args(address)...)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	soon, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	p, err := pings.Start(soon, cmd, dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s does not answer pings: %w", address, err), os.RemoveAll(dir))
	}
	return func() (time.Duration, error) {
		<-time.After(after)
		got, err := p.Stop()
		return got.Gap, errors.Join(err, os.RemoveAll(dir))
	}, nil
}
