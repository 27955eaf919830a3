package fence

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

const (
	simUser     = "fence"
	simPassword = "open-sesame"
)

// powerScript is what the simulated device does: the node is a process group, whose leader's ID is in a file. While there is a
// file named jam it accepts orders and does nothing.
const powerScript = `#!/bin/sh
dir=%s
pid=$(cat "$dir/node.pid" 2>/dev/null)
case "$1" in
get)
  if [ -n "$pid" ] && kill -s 0 -- "-$pid" 2>/dev/null; then echo power:1; else echo power:0; fi ;;
set)
  shift
  while [ $# -ge 2 ]; do
    case "$1=$2" in
    power=0) [ -e "$dir/jam" ] || [ -z "$pid" ] || kill -s KILL -- "-$pid" ;;
    esac
    shift 2
  done ;;
esac
`

// sim is a real IPMI simulator, and the node that it switches: a process group of a shell and its child.
type sim struct {
	dir, address string
	kill         func()
	node         *exec.Cmd
	over         chan struct{}
}

func newSim(t *testing.T) *sim {
	t.Helper()
	program, err := exec.LookPath("ipmi_sim")
	if err != nil {
		t.Skip("there is no ipmi_sim (package openipmi)")
	}
	s := &sim{dir: t.TempDir(), over: make(chan struct{})}
	port := freePort(t)
	s.address = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	power, state := filepath.Join(s.dir, "power"), filepath.Join(s.dir, "state")
	require.NoError(t, os.WriteFile(power, fmt.Appendf(nil, powerScript, s.dir), 0o700))
	require.NoError(t, os.Mkdir(state, 0o700))
	conf := fmt.Sprintf("name \"node\"\nset_working_mc 0x20\nstartlan 1\n  addr 127.0.0.1 %d\n  priv_limit admin\n  allowed_auths_admin md5\n  guid a123456789abcdefa123456789abcdef\nendlan\n"+
		"chassis_control %q\nuser 2 true %q %q admin 10 md5\n", port, power, simUser, simPassword)
	commands := "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n"
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "lan.conf"), []byte(conf), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "commands"), []byte(commands), 0o600))
	cmd := exec.Command(program, "-n", "-c", filepath.Join(s.dir, "lan.conf"), "-f", filepath.Join(s.dir, "commands"), "-s", state)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	require.NoError(t, cmd.Start())
	s.kill = sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Log(said.String())
		}
		if s.node != nil {
			_ = syscall.Kill(-s.node.Process.Pid, syscall.SIGKILL)
			<-s.over
		}
	})
	require.Eventually(t, func() bool { return listens(port) }, 3*time.Second, 20*time.Millisecond)
	return s
}

func freePort(t *testing.T) int {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).Port
}

// listens reports whether somebody has the UDP port.
func listens(port int) bool {
	b, err := os.ReadFile("/proc/net/udp")
	return err == nil && strings.Contains(string(b), fmt.Sprintf(":%04X ", port))
}

func (s *sim) start(t *testing.T) {
	s.node = exec.Command("sh", "-c", "sleep 600 & wait")
	s.node.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, s.node.Start())
	go func() { _ = s.node.Wait(); close(s.over) }()
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "node.pid"), fmt.Append(nil, s.node.Process.Pid), 0o600))
}

func (s *sim) runs() bool { return s.node != nil && syscall.Kill(-s.node.Process.Pid, 0) == nil }

func (s *sim) driver(t *testing.T, change func(*Device)) Driver {
	d := Device{Driver: api.FenceIPMI, Address: s.address, User: simUser, Password: simPassword}
	if change != nil {
		change(&d)
	}
	driver, err := Open(d)
	require.NoError(t, err)
	return driver
}

func TestIPMI(t *testing.T) {
	conformance(t, func(t *testing.T) bench {
		s := newSim(t)
		return bench{Driver: s.driver(t, nil), runs: s.runs, on: func() { s.start(t) }, kill: s.kill}
	})
}

func TestIPMITellsWhatIsWrong(t *testing.T) {
	s := newSim(t)
	s.start(t)
	for what, change := range map[string]func(*Device){
		"wrong password": func(d *Device) { d.Password = "wrong" },
		"unknown user":   func(d *Device) { d.User = "nobody" },
	} {
		began := time.Now()
		err := s.driver(t, change).PowerOff(t.Context())
		require.Equal(t, problem.Unauthenticated, problem.KindOf(err), "%s: %v", what, err)
		require.NotContains(t, err.Error(), simPassword)
		require.Less(t, time.Since(began), giveUp, what)
		require.True(t, s.runs())
	}

	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "jam"), nil, 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	err := s.driver(t, nil).PowerOff(ctx)
	require.Equal(t, problem.Timeout, problem.KindOf(err), "%v", err)
	require.True(t, s.runs(), "an order that is not carried out proves nothing")

	_, err = Open(Device{Driver: api.FenceIPMI, Address: "10.0.0.1:x"})
	require.Equal(t, problem.Invalid, problem.KindOf(err))
	_, err = Open(Device{Driver: "hammer"})
	require.Equal(t, problem.Unsupported, problem.KindOf(err))
}
