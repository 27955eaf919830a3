package network

import (
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/workflows/steps"
)

// rarp sends the packet from eth0 by which QEMU makes a guest known that goes on at the target of its move.
func rarp() error {
	nic, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	const etherRARP, reverseRequest = 0x8035, 3
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, nic.HardwareAddr...)
	frame = append(frame, etherRARP>>8, etherRARP&0xff, 0, 1, 8, 0, 6, 4, 0, reverseRequest)
	frame = append(frame, nic.HardwareAddr...)
	frame = append(frame, 0, 0, 0, 0)
	frame = append(frame, nic.HardwareAddr...)
	frame = append(frame, 0, 0, 0, 0)
	frame = append(frame, make([]byte, 60-len(frame))...)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // the process ends
	if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: nic.Index, Halen: 6}); err != nil {
		return fmt.Errorf("cannot send %s: %w", hex.EncodeToString(frame), err)
	}
	return nil
}

// TestMoveOfABinding moves a port from one chassis to another as a live migration does, with real packets. The guest is
// there twice meanwhile, as it is while QEMU at the target waits for its memory: one leg on each node, with one MAC.
func TestMoveOfABinding(t *testing.T) {
	dir := os.Getenv(sandboxEnv)
	if dir == "" {
		t.Skipf("NOT TESTED: no port was moved; set %s to the directory of a sandbox with OVN", sandboxEnv)
	}
	central, err := os.ReadFile(filepath.Join(dir, "central"))
	require.NoError(t, err, "the sandbox has no OVN central")
	name := strings.TrimSpace(string(central))
	nodes, err := filepath.Glob(filepath.Join(dir, "*", "run", "ovn", "ovn-controller.pid"))
	require.NoError(t, err)
	if len(nodes) < 2 {
		t.Skip("NOT TESTED: no port was moved; the sandbox has only one chassis")
	}
	from, to := filepath.Base(strings.TrimSuffix(nodes[0], "/run/ovn/ovn-controller.pid")), filepath.Base(strings.TrimSuffix(nodes[1], "/run/ovn/ovn-controller.pid"))
	ctx := testContext(t)
	o := NewOVN("unix:"+filepath.Join(dir, name, "run/ovn/ovnnb_db.sock"), nil)
	defer o.Close()

	w := aWorld()
	w.groups = nil
	for i := range w.ports {
		w.ports[i].SecurityGroups = nil
	}
	t.Cleanup(func() {
		require.NoError(t, o.UnwireVPC(testContext(t), uid(1)))
		noneLeft(t, o)
	})
	w.ports[0].Chassis = []string{from}
	w.wire(ctx, t, o)

	binding := func(column string) string { // of the port, as the nodes see it: names of chassis
		t.Helper()
		out, err := sandboxDo(name, nil, "ovn-sbctl", "--timeout=20", "--bare", "--columns="+column, "find", "port_binding", "logical_port="+uid(31)).CombinedOutput()
		require.NoError(t, err, string(out))
		var names []string
		for id := range strings.FieldsSeq(string(out)) {
			got, err := sandboxDo(name, nil, "ovn-sbctl", "--timeout=20", "get", "chassis", id, "name").CombinedOutput()
			require.NoError(t, err, string(got))
			names = append(names, strings.Trim(strings.TrimSpace(string(got)), `"`))
		}
		return strings.Join(names, " ")
	}
	becomes := func(column, want string) {
		t.Helper()
		var got string
		require.Eventually(t, func() bool { got = binding(column); return got == want }, 20*time.Second, 50*time.Millisecond, "%s is not %q", column, want)
	}
	synced := func() { // every node has done what the database says
		t.Helper()
		out, err := sandboxDo(name, nil, "ovn-nbctl", "--timeout=20", "--wait=hv", "sync").CombinedOutput()
		require.NoError(t, err, string(out))
	}
	configure := func(g *guest) {
		t.Helper()
		for _, args := range [][]string{{"addr", "add", g.port.Address + "/24", "dev", "eth0"}, {"route", "add", "default", "via", "10.1.0.1"}} {
			out, err := g.run(append([]string{"ip"}, args...)...)
			require.NoError(t, err, out)
		}
	}
	shout := func(g *guest) {
		t.Helper()
		out, err := g.do("rarp")
		require.NoError(t, err, out)
	}
	received := func(g *guest) string { // IPv4 packets, as the guest has counted them; in IPv6 there is talk about the leg itself
		t.Helper()
		out, err := g.run("awk", "$1 == \"Ip:\" && $4 ~ /^[0-9]+$/ { print $4 }", "/proc/net/snmp")
		require.NoError(t, err, out)
		require.NotEmpty(t, out)
		return out
	}
	at := func(g *guest) string { // which of the guests answers to the address
		got, _ := g.do("dial 10.1.0.11:80")
		return got
	}
	answers := func(g *guest, want string) {
		t.Helper()
		var got string
		require.Eventually(t, func() bool { got = at(g); return got == want }, 20*time.Second, 50*time.Millisecond, "%s reaches %q, not %q", g.name, got, want)
	}

	source, target := &guest{t, from, "m1", w.ports[0]}, &guest{t, to, "m2", w.ports[0]}
	beside, remote := &guest{t, from, "m3", w.ports[1]}, &guest{t, to, "m4", w.ports[1]}
	remote.port = steps.PortWiring{Port: uid(34), Project: "default", Subnet: uid(11), MAC: "52:54:00:00:00:04", Address: "10.1.0.14"}
	require.NoError(t, o.WirePorts(ctx, []steps.PortWiring{remote.port}))
	for _, g := range []*guest{source, beside, remote} {
		g.plug()
		configure(g)
	}
	becomes("chassis", from)
	source.serve("source", "80")
	answers(beside, "source from 80")
	answers(remote, "source from 80")

	// The target's interface appears. It does not get the port.
	target.plug()
	configure(target)
	target.serve("target", "80")
	shout(target) // not even if it speaks
	synced()
	require.Never(t, func() bool { return binding("chassis") != from }, 2*time.Second, 20*time.Millisecond, "a chassis that was not asked has taken the port, for a moment at least")
	require.Empty(t, binding("additional_chassis"))
	answers(beside, "source from 80")
	answers(remote, "source from 80")

	// Both may have it; the source still is the guest.
	require.NoError(t, o.BindPorts(ctx, []string{uid(31)}, []string{from, to}))
	becomes("chassis", from)
	becomes("additional_chassis", to)
	synced()
	heard := received(target)
	for range 5 {
		answers(beside, "source from 80")
		answers(remote, "source from 80")
	}
	require.Equal(t, heard, received(target), "packets reach the target before it is let in")

	// The guest goes on at the target and says so.
	out, err := source.run("ip", "link", "set", "eth0", "down") // QEMU at the source has stopped
	require.NoError(t, err, out)
	shout(target)
	answers(beside, "target from 80")
	answers(remote, "target from 80")
	require.Equal(t, from, binding("chassis"), "it is let in before anybody decides")

	require.NoError(t, o.BindPorts(ctx, []string{uid(31)}, []string{to}))
	becomes("chassis", to)
	becomes("additional_chassis", "")
	synced()
	answers(beside, "target from 80")
	answers(remote, "target from 80")

	// An update of the port, which knows nothing of chassis, leaves it there.
	w.ports[0].Chassis, w.ports[0].Hostname = nil, "renamed"
	require.NoError(t, o.WirePorts(ctx, w.ports[:1]))
	synced()
	require.Equal(t, to, binding("chassis"))
}
