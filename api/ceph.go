package api

import (
	"encoding/base64"
	"encoding/binary"
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nextstack/nextstack/api/problem"
)

// CephPath is what stands for the path of a pool that is in a Ceph cluster: it is the same for the same pool of the same monitors, in
// whatever order they were given.
func CephPath(s PoolSource) string {
	hosts := slices.Clone(s.Hosts)
	slices.Sort(hosts)
	return path.Join("/ceph", strings.Join(hosts, "+"), s.Name)
}

// IsCephKey reports whether a text is a key of a Ceph user, as `ceph auth print-key` prints it.
func IsCephKey(key string) bool {
	b, err := base64.StdEncoding.DecodeString(key)
	const header = 12 // type, time in seconds and nanoseconds, length
	return err == nil && len(b) > header && len(key) <= maxCephKey && binary.LittleEndian.Uint16(b[0:]) == 1 && int(binary.LittleEndian.Uint16(b[10:])) == len(b)-header
}

const maxCephKey = 256

// PoolKey is what an agent gets to use a pool with.
type PoolKey struct {
	Key string `json:"key" doc:"Of the Ceph user"`
}

// cephWord is what Ceph itself takes for names of pools and users; some more characters would do, but not in all programs.
var cephWord = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

func (r *PoolCreate) checkCeph(v *problem.Validation) {
	s := r.Source
	v.Check(r.Path == "", "path", r.Path, "must be empty: the pool is in a Ceph cluster")
	v.Check(len(s.Hosts) > 0, "source.hosts", nil, "is missing: name the monitors of the cluster")
	checkMonitors(v, "source.hosts", s.Hosts)
	v.Check(cephWord.MatchString(s.Name), "source.name", s.Name, "must be the name of a Ceph pool")
	checkCephUser(v, "source.user", s.User)
	v.Check(IsCephKey(r.Key), "key", "", "must be the key of the user: ceph auth print-key client.%s", s.User)
}

func checkMonitors(v *problem.Validation, path string, hosts []string) {
	v.Check(len(hosts) <= maxHosts, path, len(hosts), "at most %d", maxHosts)
	for i, h := range hosts {
		v.Check(isMonitor(h), pathIndex(path, i), h, "must be a monitor: HOST, HOST:PORT, or [ADDRESS]:PORT")
		v.Check(!slices.Contains(hosts[:i], h), pathIndex(path, i), h, "is there twice")
	}
}

func checkCephUser(v *problem.Validation, path, user string) {
	v.Check(cephWord.MatchString(user) && !strings.HasPrefix(user, "client."), path, user, "must be a user of the Ceph cluster, without client.")
}

func isMonitor(h string) bool {
	host, port, err := net.SplitHostPort(h)
	if err != nil {
		return isHost(h) && !strings.Contains(h, ":") // an IPv6 address needs its brackets, and so its port
	}
	n, err := strconv.Atoi(port)
	return isHost(host) && err == nil && n > 0 && n < 1<<16
}

// SplitMonitor returns host and port of a monitor, which is HOST or HOST:PORT; port is empty if none is said.
func SplitMonitor(m string) (host, port string) {
	host, port, err := net.SplitHostPort(m)
	if err != nil {
		return strings.Trim(m, "[]"), ""
	}
	return host, port
}
