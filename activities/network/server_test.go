package network

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"
	"github.com/stretchr/testify/require"
)

const (
	northboundSchema = "/usr/share/ovn/ovn-nb.ovsschema"
	switchSchema     = "/usr/share/openvswitch/vswitch.ovsschema"
)

// server is a real ovsdb-server, a child of the test.
type server struct {
	t         testing.TB
	dir, sock string
	bin       string
	cmd       *exec.Cmd
}

func newServer(t testing.TB, schema string) *server {
	t.Helper()
	find := func(name string) string {
		for _, p := range []string{name, "/usr/sbin/" + name, "/usr/bin/" + name} {
			if found, err := exec.LookPath(p); err == nil {
				return found
			}
		}
		t.Skipf("NOT TESTED: there is no %s; install the packages openvswitch-common and ovn-common", name)
		return ""
	}
	if _, err := os.Stat(schema); err != nil {
		t.Skipf("NOT TESTED: there is no %s; install the packages openvswitch-common and ovn-common", schema)
	}
	dir, err := os.MkdirTemp("", "ovsdb") // not t.TempDir: a socket's path must be short
	require.NoError(t, err)
	s := &server{t: t, dir: dir, sock: filepath.Join(dir, "db.sock"), bin: find("ovsdb-server")}
	out, err := exec.Command(find("ovsdb-tool"), "create", filepath.Join(dir, "db"), schema).CombinedOutput()
	require.NoError(t, err, string(out))
	t.Cleanup(func() {
		s.kill()
		_ = os.RemoveAll(dir)
	})
	s.start()
	return s
}

func (s *server) endpoint() string { return "unix:" + s.sock }

func (s *server) start() {
	s.t.Helper()
	s.cmd = exec.Command(s.bin, filepath.Join(s.dir, "db"), "--remote=punix:"+s.sock, "--remote=ptcp:0:127.0.0.1",
		"--unixctl="+filepath.Join(s.dir, "ctl"), "--no-chdir", "--log-file="+filepath.Join(s.dir, "log"), "-vconsole:off")
	require.NoError(s.t, s.cmd.Start())
	require.Eventually(s.t, func() bool {
		c, err := net.Dial("unix", s.sock)
		if err != nil {
			return false
		}
		return c.Close() == nil
	}, 10*time.Second, 5*time.Millisecond, "ovsdb-server does not listen")
}

// kill ends the server as a power cut does, and waits until it is gone.
func (s *server) kill() { s.end(syscall.SIGKILL) }

// stop ends the server in good order.
func (s *server) stop() { s.end(syscall.SIGTERM) }

func (s *server) end(sig syscall.Signal) {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(sig)
	_ = s.cmd.Wait()
	s.cmd = nil
}

// dump reads all rows of a table from the server itself, by UUID.
func dump(t testing.TB, o *OVN, table string) map[string]ovsdb.Row {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := o.link.session(ctx)
	require.NoError(t, err)
	res, err := s.transact(ctx, []ovsdb.Operation{{Op: ovsdb.OperationSelect, Table: table}})
	require.NoError(t, err)
	require.Empty(t, res[0].Error, res[0].Details)
	out := map[string]ovsdb.Row{}
	for _, r := range res[0].Rows {
		out[r["_uuid"].(ovsdb.UUID).GoUUID] = r
	}
	return out
}

// dumpAll reads all rows of all our tables.
func dumpAll(t testing.TB, o *OVN) map[string]map[string]ovsdb.Row {
	t.Helper()
	out := map[string]map[string]ovsdb.Row{}
	for _, r := range tables() {
		rows := dump(t, o, r.table())
		for _, row := range rows {
			delete(row, "_version") // changes with every touch
		}
		out[r.table()] = rows
	}
	return out
}

// byHand carries operations out as somebody would who knows nothing of us, over a connection of his own.
func byHand(t testing.TB, endpoint string, todo ...ovsdb.Operation) {
	t.Helper()
	other := NewOVN(endpoint, nil)
	defer other.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := other.link.session(ctx)
	require.NoError(t, err)
	require.NoError(t, s.commit(ctx, todo))
}

// tcpPort returns the port that the kernel chose for the server, as its log tells it.
func (s *server) tcpPort() (port int) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		b, err := os.ReadFile(filepath.Join(s.dir, "log"))
		if err != nil {
			return false
		}
		_, rest, found := strings.Cut(string(b), "listening on port ")
		if !found {
			return false
		}
		_, err = fmt.Sscanf(rest, "%d", &port)
		return err == nil
	}, 10*time.Second, 10*time.Millisecond, "ovsdb-server tells no port")
	return port
}
