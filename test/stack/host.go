package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
)

// Host is a node of a stack: namespaces with its own libvirtd, Open vSwitch and agent. Its methods are for one goroutine at a
// time.
type Host struct {
	Name  string
	Agent *Process // gnext agent run

	stack *Stack
	num   int // last byte of its addresses
}

// firstHost is the number of the first node; the one below it is that of OVN's databases, if they have a node of their own.
const firstHost = 11

// boot starts the node with its daemons, but for the agent. What was there before a power cut is found again, as on a disk.
func (h *Host) boot(ctx context.Context) error {
	steps := [][]string{{"node-up", h.Name, strconv.Itoa(h.num)}, {"ovs", h.Name}}
	if h.stack.central == h.Name {
		steps = append(steps, []string{"ovn-central", h.Name})
	}
	for _, args := range append(steps, []string{"libvirtd", h.Name}, []string{"ovn-chassis", h.Name}) {
		if _, err := h.stack.sandboxDo(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// Do runs a program in the node and returns what it wrote.
func (h *Host) Do(ctx context.Context, argv ...string) (string, error) {
	return h.verb(ctx, "exec", argv...)
}

// verb runs a verb of sandbox.sh on the node.
func (h *Host) verb(ctx context.Context, verb string, args ...string) (string, error) {
	return h.stack.sandboxDo(ctx, append([]string{verb, h.Name}, args...)...)
}

// KillLibvirtd is kill -9; virtual machines go on. It returns when the daemon is gone.
func (h *Host) KillLibvirtd(ctx context.Context) error {
	_, err := h.verb(ctx, "kill-libvirtd")
	return err
}

// StartLibvirtd starts it, and returns when it answers.
func (h *Host) StartLibvirtd(ctx context.Context) error {
	_, err := h.verb(ctx, "libvirtd")
	return err
}

// FreezeLibvirtd has libvirtd do nothing any more: its connections stand, and nobody answers. Virtual machines go on.
func (h *Host) FreezeLibvirtd(ctx context.Context) error {
	return h.signalLibvirtd(ctx, syscall.SIGSTOP)
}

// ThawLibvirtd ends that.
func (h *Host) ThawLibvirtd(ctx context.Context) error { return h.signalLibvirtd(ctx, syscall.SIGCONT) }

func (h *Host) signalLibvirtd(ctx context.Context, sig syscall.Signal) error {
	out, err := h.verb(ctx, "libvirtd-pid")
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		return err
	}
	return syscall.Kill(pid, sig)
}

// StartAgent starts the agent; binary, if it is given, is another program for it from now on.
func (h *Host) StartAgent(binary string) error {
	if binary != "" {
		h.Agent.argv[h.Agent.program] = binary
	}
	return h.Agent.Start()
}

// AwaitReport waits until the agent, which was just started, has reported that the node works.
func (h *Host) AwaitReport(ctx context.Context, since time.Time) error {
	return h.stack.await(ctx, "a report of the agent of "+h.Name, h.Agent, func() error {
		a, err := h.Record(ctx)
		if err != nil {
			return err
		}
		if a.Status.Phase != api.PhaseReady || a.Status.Observed.Before(since) {
			return fmt.Errorf("the agent is %s, last seen %s: %s", a.Status.Phase, a.Status.Observed, a.Status.Reason)
		}
		return nil
	})
}

// Record returns what the control plane knows of the node.
func (h *Host) Record(ctx context.Context) (*api.Agent, error) {
	return client.Get[*api.Agent](ctx, h.stack.Client, "", h.Name)
}

// PowerCut takes the power away: its links are dead at once, then all of its processes. It returns when all are gone.
func (h *Host) PowerCut(ctx context.Context) error {
	_, err := h.verb(ctx, "node-kill")
	return err
}

// PowerOn starts the node with its daemons after a power cut; the agent is for StartAgent.
func (h *Host) PowerOn(ctx context.Context) error { return h.boot(ctx) }

// Powered reports whether the node has power.
func (h *Host) Powered() bool { return h.mounts() != "" }

// Cut takes the management network away: agent and OVN hear nothing of the control plane and cannot be heard. Guests, their
// network and their disks go on.
func (h *Host) Cut(ctx context.Context) error {
	_, err := h.verb(ctx, "node-cut")
	return err
}

// Heal ends that.
func (h *Host) Heal(ctx context.Context) error {
	_, err := h.verb(ctx, "node-heal")
	return err
}

// Fence is the IPMI device of the node, if the stack has them. Its power-off is PowerCut.
func (h *Host) Fence() *api.Fence {
	return &api.Fence{Driver: api.FenceIPMI, Address: h.stack.address(6200 + h.num), User: "fence", Password: "sandbox"}
}

// StartIPMI starts the device.
func (h *Host) StartIPMI(ctx context.Context) error {
	_, err := h.verb(ctx, "ipmi")
	return err
}

// KillIPMI has the device die: it answers nobody any more.
func (h *Host) KillIPMI(ctx context.Context) error {
	_, err := h.verb(ctx, "ipmi-kill")
	return err
}

// Domains returns the IDs of the domains that the node's own libvirt has, and whether they run.
func (h *Host) Domains(ctx context.Context) (map[string]bool, error) {
	domains := map[string]bool{}
	for _, q := range []struct {
		flag    string
		running bool
	}{{"--all", false}, {"--state-running", true}} {
		out, err := h.Do(ctx, "virsh", "-q", "-c", "qemu:///system", "list", q.flag, "--uuid")
		if err != nil {
			return nil, err
		}
		for _, id := range strings.Fields(out) {
			domains[id] = q.running
		}
	}
	return domains, nil
}

// Console returns what a VM wrote on its console while it was on this node.
func (h *Host) Console(vm string) (string, error) {
	files, err := filepath.Glob(filepath.Join(h.dataDir(), "consoles", "*"+vm+"*"))
	if err != nil || len(files) == 0 {
		return "", errors.Join(err, fmt.Errorf("%s has no console of vm %s", h.Name, vm))
	}
	slices.Sort(files)
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		all.Write(b)
	}
	return all.String(), nil
}

// Path returns a file of the directory in which the node's own disks are, on this machine: in the node it is Stack.Path("s/disks").
func (h *Host) Path(parts ...string) string {
	return h.stack.path(append([]string{"s", h.Name, "disks"}, parts...)...)
}

func (h *Host) dataDir() string {
	if len(h.stack.Hosts) == 1 {
		return h.stack.path("agent")
	}
	return h.stack.path("agent-" + h.Name)
}

// mounts returns the mount namespace of the node, "" while it has no power. What is in it is the node's.
func (h *Host) mounts() string {
	b, err := os.ReadFile(h.stack.path("s", h.Name, "holder.pid"))
	if err != nil {
		return ""
	}
	ns, err := os.Readlink("/proc/" + strings.TrimSpace(string(b)) + "/ns/mnt")
	if err != nil {
		return ""
	}
	return ns
}
