package api

import (
	"encoding/base64"
	"encoding/binary"
	"path"
	"slices"
	"strings"
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
