package network

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// The test below passes real packets through a sandbox (deploy/dev/sandbox.sh) with OVN central and at least one chassis. A
// guest is a network namespace with one leg in br-int. What a guest does, it does as this test binary run again inside.
const (
	sandboxEnv = "NEXTSTACK_TEST_SANDBOX" // the sandbox's directory
	guestEnv   = "NEXTSTACK_TEST_GUEST"   // what to do in the guest
)

func TestMain(m *testing.M) {
	if what := os.Getenv(guestEnv); what != "" {
		if err := inGuest(strings.Fields(what)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// inGuest does "serve WORD PORT...", "dial ADDRESS" or "rarp".
func inGuest(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	var d net.Dialer
	switch args[0] {
	case "serve":
		for _, port := range args[2:] {
			l, err := net.Listen("tcp4", ":"+port)
			if err != nil {
				return err
			}
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					fmt.Fprintln(c, args[1], "from", port)
					_ = c.Close()
				}
			}()
		}
		fmt.Println("ready")
		_, err := os.Stdin.Read(make([]byte, 1)) // until the test closes it
		_ = err
		return nil
	case "rarp":
		return rarp()
	case "dial":
		c, err := d.DialContext(ctx, "tcp4", args[1])
		if err != nil {
			return err
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		fmt.Print(line)
		return err
	}
	return fmt.Errorf("what is %q?", args)
}

type guest struct {
	t          *testing.T
	node, name string
	port       steps.PortWiring
}

func sandboxDo(node string, env []string, args ...string) *exec.Cmd {
	c := exec.Command("../../deploy/dev/sandbox.sh", append([]string{"exec", node}, args...)...)
	c.Env = append(append(os.Environ(), "SANDBOX_DIR="+os.Getenv(sandboxEnv)), env...)
	return c
}

func (g *guest) run(args ...string) (string, error) {
	out, err := sandboxDo(g.node, nil, append([]string{"ip", "netns", "exec", g.name}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (g *guest) self(what string) *exec.Cmd {
	self, err := os.Executable()
	require.NoError(g.t, err)
	return sandboxDo(g.node, []string{guestEnv + "=" + what}, "ip", "netns", "exec", g.name, self)
}

func (g *guest) do(what string) (string, error) {
	out, err := g.self(what).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// serve answers "WORD from PORT" on these ports until the test ends.
func (g *guest) serve(word string, ports ...string) {
	g.t.Helper()
	serve := g.self("serve " + word + " " + strings.Join(ports, " "))
	hold, err := serve.StdinPipe()
	require.NoError(g.t, err)
	said, err := serve.StdoutPipe()
	require.NoError(g.t, err)
	require.NoError(g.t, serve.Start())
	g.t.Cleanup(func() { _ = hold.Close(); _ = serve.Wait() })
	line, err := bufio.NewReader(said).ReadString('\n')
	require.NoError(g.t, err)
	require.Equal(g.t, "ready\n", line)
}

// plug makes the namespace and puts its leg into br-int, bound to the logical port.
func (g *guest) plug() {
	script := `set -e; n=$1 mac=$2 id=$3
ip netns add $n; ip link add $n type veth peer name $n-g; ip link set $n-g netns $n
ip netns exec $n ip link set $n-g name eth0; ip netns exec $n ip link set lo up
ip netns exec $n ip link set eth0 address $mac mtu 1442 up; ip netns exec $n ethtool -K eth0 tx off >/dev/null
ethtool -K $n tx off >/dev/null; ip link set $n up
ovs-vsctl --timeout=20 add-port br-int $n -- set interface $n external_ids:iface-id=$id`
	out, err := sandboxDo(g.node, nil, "bash", "-c", script, "plug", g.name, g.port.MAC, g.port.Port).CombinedOutput()
	require.NoError(g.t, err, string(out))
	g.t.Cleanup(func() {
		_ = sandboxDo(g.node, nil, "bash", "-c", "ovs-vsctl --timeout=20 --if-exists del-port br-int $1; ip netns del $1; ip link del $1 2>/dev/null", "unplug", g.name).Run()
	})
}

// lease asks for an address with DHCP and configures what it is told; it returns that.
func (g *guest) lease() map[string]string {
	script := filepath.Join(g.t.TempDir(), "told")
	require.NoError(g.t, os.WriteFile(script, []byte(`#!/bin/sh
[ "$1" = bound ] || exit 0
echo "ip=$ip/$mask|router=$router|dns=$dns|domain=$domain|mtu=$mtu|lease=$lease"
ip addr add $ip/$mask dev $interface; ip route add default via $router
`), 0o755))
	var told map[string]string
	require.Eventually(g.t, func() bool {
		out, err := g.run("busybox", "udhcpc", "-f", "-q", "-n", "-t", "3", "-T", "1", "-i", "eth0", "-O", "mtu", "-s", script)
		if err != nil {
			return false
		}
		told = map[string]string{}
		for line := range strings.SplitSeq(out, "\n") {
			if !strings.HasPrefix(line, "ip=") {
				continue
			}
			for pair := range strings.SplitSeq(line, "|") {
				k, v, _ := strings.Cut(pair, "=")
				told[k] = v
			}
		}
		return len(told) > 0
	}, 30*time.Second, 100*time.Millisecond, "no DHCP answer")
	return told
}

// TestPackets is the proof that what we write means what we think: DHCP, DNS, routing and security groups with real packets.
func TestPackets(t *testing.T) {
	dir := os.Getenv(sandboxEnv)
	if dir == "" {
		t.Skipf("NOT TESTED: no packet was sent; set %s to the directory of a sandbox with OVN (deploy/dev/sandbox.sh)", sandboxEnv)
	}
	central, err := os.ReadFile(filepath.Join(dir, "central"))
	require.NoError(t, err, "the sandbox has no OVN central")
	nodes, err := filepath.Glob(filepath.Join(dir, "*", "run", "ovn", "ovn-controller.pid"))
	require.NoError(t, err)
	require.NotEmpty(t, nodes, "the sandbox has no OVN chassis")
	node := func(i int) string {
		return filepath.Base(strings.TrimSuffix(nodes[i%len(nodes)], "/run/ovn/ovn-controller.pid"))
	}
	ctx := testContext(t)
	o := NewOVN("unix:"+filepath.Join(dir, strings.TrimSpace(string(central)), "run/ovn/ovnnb_db.sock"), nil)
	defer o.Close()

	w := aWorld()
	w.subnets[1].DNS = nil
	open := steps.SecurityGroupWiring{SecurityGroup: uid(23), Name: "client", Project: "default", Rules: []api.Rule{{Direction: api.Egress, Protocol: api.AnyIP}}}
	w.groups[0].Rules = []api.Rule{{Direction: api.Ingress, Protocol: api.TCP, PortMin: 80}}
	w.groups = append(w.groups, open)
	w.ports[0].SecurityGroups = []string{uid(21)} // the server, on the first node: tcp 80 in, nothing out
	w.ports[1].SecurityGroups = []string{uid(23)} // a client beside it on the other node: all out, nothing in
	w.ports[2].SecurityGroups = nil               // a client in the other subnet, open
	w.ports[2].Hostname = "vm3"
	t.Cleanup(func() {
		clean := context.Background()
		require.NoError(t, o.UnwireVPC(clean, uid(1)))
		for _, g := range w.groups {
			require.NoError(t, o.UnwireSecurityGroup(clean, g.SecurityGroup))
		}
		noneLeft(t, o)
	})
	w.wire(ctx, t, o)
	server, beside, routed := &guest{t, node(0), "g1", w.ports[0]}, &guest{t, node(1), "g2", w.ports[1]}, &guest{t, node(0), "g3", w.ports[2]}
	for _, g := range []*guest{server, beside, routed} {
		g.plug()
	}
	for _, g := range []*guest{server, beside, routed} {
		told := g.lease()
		gateway := map[string]string{uid(11): "10.1.0.1", uid(12): "10.1.1.1"}[g.port.Subnet]
		require.Equal(t, map[string]string{
			"ip": g.port.Address + "/24", "router": gateway, "dns": gateway, "domain": "blue.internal", "mtu": "1442", "lease": "3600",
		}, told)
	}
	resolves := func(g *guest, name, want string) {
		t.Helper()
		gateway := map[string]string{uid(11): "10.1.0.1", uid(12): "10.1.1.1"}[g.port.Subnet]
		var got string
		// Not Go's resolver: it adds EDNS options, which OVN 23.03 does not answer.
		require.Eventually(t, func() bool {
			got, _ = g.run("timeout", "3", "busybox", "nslookup", "-type=a", name+".", gateway)
			return strings.Contains(got, "Name:\t"+name+"\nAddress: "+want)
		}, 20*time.Second, 50*time.Millisecond, "%s does not resolve %s", g.name, name)
	}
	resolves(server, "vm2", "10.1.0.12") // although its group lets nothing out
	resolves(beside, "vm1.blue.internal", "10.1.0.11")
	resolves(routed, "vm1", "10.1.0.11")

	server.serve("hello", "80", "7")

	reaches := func(g *guest, port string) {
		t.Helper()
		require.Eventually(t, func() bool {
			got, err := g.do("dial 10.1.0.11:" + port)
			return err == nil && got == "hello from "+port
		},
			20*time.Second, 50*time.Millisecond, "%s does not reach port %s", g.name, port)
	}
	dropped := func(g *guest, port string) {
		t.Helper()
		got, err := g.do("dial 10.1.0.11:" + port)
		require.Error(t, err, got)
		require.Contains(t, got, "timeout", "dropped, not refused")
	}
	pings := func(g *guest, address string) error {
		_, err := g.run("ping", "-c", "2", "-i", "0.2", "-W", "1", address)
		return err
	}
	reaches(beside, "80")
	reaches(routed, "80")
	dropped(beside, "7")
	dropped(routed, "7")
	require.NoError(t, pings(beside, "10.1.1.13"), "an open port answers over the router")
	require.NoError(t, pings(beside, "10.1.0.1"), "the gateway answers")
	require.Error(t, pings(routed, "10.1.0.11"), "no rule allows ICMP to the server")
	require.Error(t, pings(server, "10.1.1.13"), "no rule lets the server out")

	// Changed rules hold at once, for ports that are plugged in.
	w.groups[0].Rules = []api.Rule{{Direction: api.Ingress, Protocol: api.TCP, PortMin: 7}, {Direction: api.Ingress, Protocol: api.ICMP, CIDR: "10.1.1.0/24"}}
	require.NoError(t, o.WireSecurityGroup(ctx, w.groups[0]))
	reaches(routed, "7")
	dropped(routed, "80")
	require.NoError(t, pings(routed, "10.1.0.11"), "now ICMP from there is allowed")
	require.Error(t, pings(beside, "10.1.0.11"), "and only from there")

	w.ports[0].SecurityGroups = nil // in no group: open
	require.NoError(t, o.WirePorts(ctx, w.ports[:1]))
	reaches(beside, "80")
	reaches(beside, "7")

	// The node's view of the same.
	found, err := ListPorts(ctx, "unix:"+filepath.Join(dir, node(0), "run/openvswitch/db.sock"))
	require.NoError(t, err)
	require.Subset(t, found, []steps.PortFound{{Name: "g1", Port: uid(31)}})
	info, err := Local(ctx, "unix:"+filepath.Join(dir, node(0), "run/openvswitch/db.sock"))
	require.NoError(t, err)
	require.True(t, info.UserspaceDatapath)
	require.Equal(t, node(0), info.ChassisID)
}

// TestChurnUnderNorthd makes and removes the same rows again and again while northd and the chassis follow: rows that come
// back under the same UUID must not confuse them.
func TestChurnUnderNorthd(t *testing.T) {
	dir := os.Getenv(sandboxEnv)
	if dir == "" {
		t.Skipf("NOT TESTED: set %s to the directory of a sandbox with OVN", sandboxEnv)
	}
	central, err := os.ReadFile(filepath.Join(dir, "central"))
	require.NoError(t, err, "the sandbox has no OVN central")
	name := strings.TrimSpace(string(central))
	ctx := testContext(t)
	o := NewOVN("unix:"+filepath.Join(dir, name, "run/ovn/ovnnb_db.sock"), nil)
	defer o.Close()
	w := aWorld()
	for range 100 {
		w.wire(ctx, t, o)
		require.NoError(t, o.UnwirePorts(ctx, []string{uid(31), uid(32)}))
		require.NoError(t, o.UnwireVPC(ctx, uid(1)))
		require.NoError(t, o.UnwireSecurityGroup(ctx, uid(21)))
		require.NoError(t, o.UnwireSecurityGroup(ctx, uid(22)))
	}
	w.wire(ctx, t, o)
	settled(ctx, t, o, w)
	out, err := sandboxDo(name, nil, "ovn-nbctl", "--timeout=20", "--wait=hv", "sync").CombinedOutput()
	require.NoError(t, err, string(out))
	out, err = sandboxDo(name, nil, "ovn-sbctl", "--timeout=20", "--columns=logical_port", "--bare", "find", "port_binding", "type=\"\"").CombinedOutput()
	require.NoError(t, err, string(out))
	bound := strings.Fields(string(out))
	slices.Sort(bound)
	require.Equal(t, []string{uid(31), uid(32), uid(33)}, bound, "northd has followed")
	require.NoError(t, o.UnwireVPC(ctx, uid(1)))
	require.NoError(t, o.UnwireSecurityGroup(ctx, uid(21)))
	require.NoError(t, o.UnwireSecurityGroup(ctx, uid(22)))
	noneLeft(t, o)
}
