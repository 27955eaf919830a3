// Package stack runs the real thing for tests: a sandbox with libvirtd, Open vSwitch and OVN, the control plane and an agent,
// each a process of its own that a test can kill at exactly the boundary of a step that it wants. Nothing is faked.
package stack

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nextstack/nextstack/api/client"
)

// Options say what a stack is to be like. The zero value is a good one.
type Options struct {
	// External makes etcd and Temporal processes of their own, Stack.Etcd and Stack.Temporal.
	External bool
	// Nodes is how many nodes there are; 0: one. Of several, each keeps the pool Pool in a directory that only it sees, and
	// OVN's databases are in a node of their own, so that each can be lost.
	Nodes int
	// Shared adds the pool Shared, a directory that all nodes see.
	Shared bool
	// Ceph adds a Ceph cluster, and the pool Ceph in it.
	Ceph bool
	// Gluster adds a GlusterFS, and the pool Gluster on it.
	Gluster bool
	// IPMI gives every node a fence device, see Host.Fence. No agent's record says so yet.
	IPMI bool
}

// Node is the name of the first node.
const Node = "node1"

// Stack is a running cloud. Its fields are there for tests to use; its methods fail the test they are given.
type Stack struct {
	Client *client.Client // logged in as admin
	Token  string         // of Client
	HTTP   *http.Client   // for requests that Client would not make
	Faults Faults

	Hosts    []*Host  // the nodes: node1, node2...
	Control  *Process // nextstack
	Agent    *Process // of the first node
	Etcd     *Process // if it is external
	Temporal *Process // if it is external

	dir     string // of everything
	central string // the node with OVN's databases
	net     string // first three bytes of the management network
	data    string // first three bytes of the data network
	sandbox []string
	begun   time.Time
}

// passwordLine is how the control plane tells the password of the administrator that it made.
const passwordLine = "admin password: "

// Up brings a stack up, with an image, a pool and a network (see the names in this package). The stack goes down when t ends,
// and t fails if something is left then. Where a real stack cannot be, t is skipped.
func Up(t testing.TB, o Options) *Stack {
	t.Helper()
	requireParts(t, o)
	bins, err := built()
	if err != nil {
		t.Fatalf("the programs cannot be built: %v", err)
	}
	s := &Stack{begun: time.Now()}
	// Short, because the paths of unix sockets must be.
	if s.dir, err = os.MkdirTemp(os.Getenv("NEXTSTACK_TEST_DIR"), "nst"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.down(t) })
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	t.Cleanup(func() { signal.Stop(interrupted) })
	go func() {
		if _, ok := <-interrupted; ok {
			_, _ = s.sandboxDo(context.Background(), "down", "--purge")
			os.Exit(130)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	if err := s.up(ctx, bins, o); err != nil {
		t.Fatalf("the stack does not come up: %v", err)
	}
	t.Logf("the stack is up in %s, in %s", time.Since(s.begun).Round(100*time.Millisecond), s.dir)
	return s
}

// requireParts skips t where there is no root, or a program is missing.
func requireParts(t testing.TB, o Options) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED, NOT TESTED: the real stack. It needs root, for namespaces")
	}
	programs := []string{"libvirtd", "ovs-vswitchd", "ovn-northd", "qemu-img", "virsh", "ip"}
	if o.IPMI {
		programs = append(programs, "ipmi_sim")
	}
	if o.Gluster {
		programs = append(programs, "glusterd")
	}
	if o.Ceph {
		programs = append(programs, "ceph-osd", "rbd")
		if !withCeph() {
			t.Skip("SKIPPED, NOT TESTED: the real stack on Ceph. librbd's headers are not here: run make deps")
		}
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if _, err = os.Stat("/usr/sbin/" + p); err != nil {
				t.Skipf("SKIPPED, NOT TESTED: the real stack. There is no %s: run make deps", p)
			}
		}
	}
}

func (s *Stack) up(ctx context.Context, bins binaries, o Options) error {
	s.Faults = Faults(s.path("faults"))
	s.central = Node
	for i := range max(1, o.Nodes) {
		s.Hosts = append(s.Hosts, &Host{Name: fmt.Sprintf("node%d", i+1), stack: s, num: firstHost + i})
	}
	if o.Nodes > 1 {
		s.central = "ovn"
	}
	for _, d := range []string{"faults", "pool", "shared", "images", "log"} {
		if err := os.MkdirAll(s.path(d), 0o755); err != nil {
			return err
		}
	}
	if err := s.startSandbox(ctx, o); err != nil {
		return err
	}
	s.processes(bins, o)
	for _, step := range []func() error{
		s.Etcd.Start, func() error { return s.awaitPort(ctx, s.Etcd, etcdPort) },
		s.Temporal.Start, func() error { return s.awaitPort(ctx, s.Temporal, temporalPort) },
		s.Control.Start, func() error { return s.AwaitControl(ctx) }, func() error { return s.login(ctx) },
		func() error {
			for _, h := range s.Hosts {
				if err := h.Agent.Start(); err != nil {
					return err
				}
			}
			return nil
		},
		func() error {
			for _, h := range s.Hosts {
				if err := h.AwaitReport(ctx, s.begun); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return s.furnish(ctx, o)
}

// processes says how the programs of the stack are run.
func (s *Stack) processes(bins binaries, o Options) {
	faults := "NEXTSTACK_FAULTPOINTS=" + string(s.Faults)
	process := func(name string, where []string, argv ...string) *Process {
		return &Process{
			name: name, log: s.path("log", name+".log"), env: environment(append(s.sandbox, faults)...),
			argv: append(append([]string{s.script("sandbox.sh")}, where...), argv...), program: 1 + len(where),
		}
	}
	control := []string{
		bins.control, "serve", "--data-dir", s.path("control"), "--listen", s.address(apiPort),
		"--ui-listen", "", "--join-token-file", s.path("join-token"), "--image-dir", s.path("images") + "," + s.guest(),
		"--ovn-nb", "unix:" + s.path("s", s.central, "run/ovn/ovnnb_db.sock"),
		// As many small guests as a test wants, whatever this machine has.
		"--cpu-ratio", "100",
	}
	etcd, temporal := s.address(etcdPort), s.address(temporalPort)
	if o.External {
		s.Etcd = process("etcd", []string{"control"}, bins.engine, "--data-dir", s.path("etcd"), "--etcd-listen", etcd, "--temporal-address", temporal)
		s.Temporal = process("temporal", []string{"control"}, bins.engine, "--data-dir", s.path("temporal"), "--temporal-listen", temporal, "--etcd-endpoint", etcd)
		control = append(control, "--etcd-endpoints", etcd, "--temporal-address", temporal)
	} else {
		control = append(control, "--temporal-listen", temporal)
	}
	s.Control = process("nextstack", []string{"control"}, control...)
	for _, h := range s.Hosts {
		name := "agent"
		if len(s.Hosts) > 1 {
			name += "-" + h.Name
		}
		data := fmt.Sprintf("%s.%d", s.data, h.num)
		h.Agent = process(name, []string{"exec", h.Name}, bins.node, "agent", "run", "--server", "http://"+s.address(apiPort),
			"--join-token-file", s.path("join-token"), "--data-dir", h.dataDir(), "--name", h.Name,
			"--libvirt", "qemu:///system", "--ovs", "unix:/run/openvswitch/db.sock",
			"--peer-libvirt", "qemu+tcp://"+data+"/system", "--peer-address", data, "--peer-listen", data+":8897")
	}
	s.Agent = s.Hosts[0].Agent
}

// Ports of the control plane's address.
const (
	apiPort      = 8899
	etcdPort     = 2379
	temporalPort = 7233
)

// startSandbox makes the nodes with their daemons. The networks are picked at random, until they are nobody's.
func (s *Stack) startSandbox(ctx context.Context, o Options) error {
	var err error
	for range 8 {
		n := 1 + rand.IntN(250)
		s.net, s.data = fmt.Sprintf("10.79.%d", n), fmt.Sprintf("10.80.%d", n)
		s.sandbox = []string{
			"SANDBOX_NAME=t" + strconv.Itoa(n) + "-" + strconv.FormatInt(int64(os.Getpid()), 36), "SANDBOX_DIR=" + s.path("s"),
			"SANDBOX_NET=" + s.net, "SANDBOX_DATA_NET=" + s.data, "SANDBOX_CACHE=" + cache(),
		}
		if _, err = s.sandboxDo(ctx, "net-up"); err == nil || !strings.Contains(err.Error(), "in use on this machine") {
			break
		}
	}
	if err != nil {
		return err
	}
	if _, err := command(ctx, environment(), s.script("guest.sh"), s.guest()); err != nil {
		return err
	}
	for verb, wanted := range map[string]bool{"ceph": o.Ceph, "gluster": o.Gluster} {
		if !wanted {
			continue
		}
		if _, err := s.sandboxDo(ctx, verb); err != nil {
			return err
		}
	}
	if s.central != Node {
		for _, args := range [][]string{{"node-up", s.central, strconv.Itoa(firstHost - 1)}, {"ovn-central", s.central}} {
			if _, err := s.sandboxDo(ctx, args...); err != nil {
				return err
			}
		}
	}
	for _, h := range s.Hosts {
		if err := h.boot(ctx); err != nil {
			return err
		}
		if o.IPMI {
			if err := h.StartIPMI(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// down ends the stack. What does not end as it should, or is left, fails the test.
func (s *Stack) down(t testing.TB) {
	if t.Failed() {
		s.logs(t)
	}
	for _, h := range s.Hosts {
		_ = h.ThawLibvirtd(context.Background()) // or the agent could not end in order; there may be none
	}
	stop := func(p *Process) {
		begun := time.Now()
		err := p.Stop(20 * time.Second)
		if took := time.Since(begun); took > 5*time.Second {
			t.Logf("%s took %s to end", p.name, took.Round(100*time.Millisecond))
		}
		if err != nil {
			t.Error(err)
			t.Logf("last lines of %s:\n%s", p.name, p.Tail(20))
		}
	}
	// The agents first: they would report machines that vanish as failures.
	var agents sync.WaitGroup
	for _, h := range s.Hosts {
		agents.Go(func() { stop(h.Agent) })
	}
	agents.Wait()
	for _, p := range []*Process{s.Control, s.Temporal, s.Etcd} {
		stop(p)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if len(s.sandbox) > 0 {
		// It looks for whatever is left in the namespaces and cgroups, and says so.
		if _, err := s.sandboxDo(ctx, "down", "--purge"); err != nil {
			t.Error(err)
			return
		}
	}
	if keep := os.Getenv("NEXTSTACK_TEST_KEEP_LOGS"); keep != "" {
		_ = os.CopyFS(filepath.Join(keep, filepath.Base(s.dir)), os.DirFS(s.path("log")))
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Error(err)
	}
}

func (s *Stack) logs(t testing.TB) {
	all := []*Process{s.Control, s.Temporal, s.Etcd}
	for _, h := range s.Hosts {
		all = append(all, h.Agent)
	}
	for _, p := range all {
		if p != nil {
			t.Logf("--- last lines of %s:\n%s", p.name, p.Tail(50))
		}
	}
}

// sandboxDo runs a verb of sandbox.sh.
func (s *Stack) sandboxDo(ctx context.Context, args ...string) (string, error) {
	return command(ctx, environment(s.sandbox...), append([]string{s.script("sandbox.sh")}, args...)...)
}

// InNode runs a program in the first node and returns what it wrote.
func (s *Stack) InNode(ctx context.Context, argv ...string) (string, error) {
	return s.Hosts[0].Do(ctx, argv...)
}

func (s *Stack) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}
func (s *Stack) script(name string) string { return filepath.Join(root(), "deploy", "dev", name) }
func (s *Stack) guest() string             { return filepath.Join(cache(), "guest") }
func (s *Stack) address(port int) string   { return s.net + ".1:" + strconv.Itoa(port) }

// URL returns the address of the API.
func (s *Stack) URL() string { return "http://" + s.address(apiPort) }

// Path returns a file of the stack: in the pool of a single node ("pool/..."), in the shared pool ("shared/..."), in what the
// control plane keeps ("control/...") or in the directory that images may be imported from ("images/...").
func (s *Stack) Path(parts ...string) string { return s.path(parts...) }

// cache returns where the guest image and libvirt's knowledge of QEMU are kept, for all sandboxes of the repository.
func cache() string {
	if dir := os.Getenv("SANDBOX_CACHE"); dir != "" {
		return dir
	}
	return filepath.Join(root(), ".dev", "cache")
}

// transport asks no proxy for what is on this machine.
func transport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy, t.MaxIdleConnsPerHost = nil, 64
	return t
}
