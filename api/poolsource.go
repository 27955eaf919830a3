package api

import (
	"cmp"
	"net/netip"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api/problem"
)

// PoolSource says where the storage of a pool is that does not belong to its nodes. Secrets are not in it.
type PoolSource struct {
	Hosts []string `json:"hosts,omitempty" doc:"Servers, as HOST or HOST:PORT: Ceph monitors, the NFS server, GlusterFS servers"`
	Name  string   `json:"name,omitempty" doc:"Ceph pool, GlusterFS volume (and a directory in it), or exported path of the NFS server"`
	User  string   `json:"user,omitempty" doc:"User of the Ceph cluster, without client."`
	// KeyVersion has agents notice that there is another key.
	KeyVersion int    `json:"keyVersion,omitempty" doc:"How often the key of the Ceph user was changed. Not asked for"`
	Options    string `json:"options,omitempty" doc:"Mount options of NFS, as of mount.nfs: vers=4.2,nconnect=4"`
}

// MountDir is where agents mount the file systems of pools, each in a directory that is called by the pool's ID. It is the same
// on all nodes, so that what names a file names it everywhere, and is empty after a reboot.
const MountDir = "/run/gnext/pools"

// Mounted reports whether agents mount what a pool of this type is in. Such pools are shared.
func Mounted(poolType string) bool { return poolType == PoolNFS || poolType == PoolGluster }

// OnNode is the pool as nodes are asked about it.
func (v *Pool) OnNode() PoolOnNode {
	return PoolOnNode{Pool: v.ID, Name: v.Name, Type: v.Spec.Type, Path: v.Spec.Path, Shared: v.Spec.Shared, Source: v.Spec.Source}
}

// Where is where a pool is, for people: its directory, or its servers and what it is there.
func (p PoolOnNode) Where() string {
	if len(p.Source.Hosts) == 0 {
		return p.Path
	}
	return strings.Join(p.Source.Hosts, ",") + ":" + p.Source.Name
}

// Called is what people call the pool, or where it is if that is not known.
func (p PoolOnNode) Called() string { return cmp.Or(p.Name, p.Where()) }

// Copy names the pool's copy of an image.
func (v *Pool) Copy(img *Image) CachedImage {
	return CachedImage{Image: img.ID, SHA256: img.Status.SHA256, Pool: v.ID, PoolPath: v.Spec.Path, PoolType: v.Spec.Type, PoolSource: v.Spec.Source}
}

// OnNode is the pool that an image's copy is in.
func (c CachedImage) OnNode() PoolOnNode {
	return PoolOnNode{Pool: c.Pool, Type: c.PoolType, Path: c.PoolPath, Source: c.PoolSource, Shared: Mounted(c.PoolType) || c.PoolType == PoolRBD}
}

// Limits of sources.
const (
	maxHosts   = 16
	maxOptions = 512
)

// checkWhere checks what a request says of where a pool is.
func (r *PoolCreate) checkWhere(v *problem.Validation) {
	s := r.Source
	switch r.Type {
	case PoolDir:
		r.checkDirectory(v)
		v.Check(len(s.Hosts) == 0, "source.hosts", s.Hosts, "a directory has no servers")
		v.Check(s.Name == "", "source.name", s.Name, "a directory has no source")
	case PoolNFS, PoolGluster:
		v.Check(r.Path == "", "path", r.Path, "must be empty: agents mount it in a directory of their own")
		v.Check(len(s.Hosts) > 0, "source.hosts", nil, "is missing: say which server has it")
		v.Check(len(s.Hosts) <= maxHosts, "source.hosts", len(s.Hosts), "at most %d", maxHosts)
		for i, h := range s.Hosts {
			v.Check(isHost(h), pathIndex("source.hosts", i), h, "must be a host name or an IP address")
			v.Check(!slices.Contains(s.Hosts[:i], h), pathIndex("source.hosts", i), h, "is there twice")
		}
		if r.Type == PoolNFS {
			s.checkNFS(v)
		} else {
			s.checkGluster(v)
		}
	case PoolRBD:
		r.checkCeph(v)
	default:
		if r.Path != "" {
			r.checkDirectory(v)
		}
		v.Add("type", r.Type, "must be %s, %s, %s or %s", PoolDir, PoolNFS, PoolGluster, PoolRBD)
	}
	v.Check(s.KeyVersion == 0, "source.keyVersion", s.KeyVersion, "is not asked for")
	v.Check(r.Type == PoolNFS || s.Options == "", "source.options", s.Options, "only NFS has them")
	v.Check(r.Type == PoolRBD || s.User == "", "source.user", s.User, "there is none for this type")
	v.Check(r.Type == PoolRBD || r.Key == "", "key", "", "there is none for this type")
}

func (r *PoolCreate) checkDirectory(v *problem.Validation) {
	v.Check(filepath.IsAbs(r.Path) && filepath.Clean(r.Path) == r.Path && r.Path != "/" && !strings.ContainsAny(r.Path, "\n\r\x00,"), "path", r.Path,
		"must be an absolute, clean directory path, like /vms")
}

func (s PoolSource) checkNFS(v *problem.Validation) {
	v.Check(len(s.Hosts) <= 1, "source.hosts", s.Hosts, "an NFS export has one server")
	v.Check(path.IsAbs(s.Name) && path.Clean(s.Name) == s.Name && isPlain(s.Name), "source.name", s.Name, "must be the absolute path of an export, like /srv/vms")
	v.Check(len(s.Options) <= maxOptions && nfsOptions.MatchString(s.Options), "source.options", s.Options, "must be mount options of NFS, like vers=4.2,nconnect=4")
	for _, o := range strings.Split(s.Options, ",") {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "nolock", "local_lock":
			v.Check(name == "local_lock" && value == "none", "source.options", o, "must not be there: nodes take turns by locks of the server")
		case "ro":
			v.Add("source.options", o, "must not be there: a pool is written to")
		case "soft", "softerr":
			v.Add("source.options", o, "must not be there: guests would lose what they write while the server is away")
		}
	}
}

func (s PoolSource) checkGluster(v *problem.Validation) {
	volume, dir, has := strings.Cut(s.Name, "/")
	v.Check(glusterVolume.MatchString(volume) && (!has || dir != "" && path.Clean("/"+dir) == "/"+dir && isPlain(dir)), "source.name", s.Name,
		"must be a GlusterFS volume, like gv0, or a directory in one, like gv0/vms")
	for i, h := range s.Hosts {
		a, err := netip.ParseAddr(h)
		v.Check(err != nil || a.Is4(), pathIndex("source.hosts", i), h, "must be a name: IPv6 addresses are not supported for GlusterFS")
	}
}

var (
	nfsOptions    = regexp.MustCompile(`^([a-z0-9_]+(=[A-Za-z0-9_.:/@-]+)?(,[a-z0-9_]+(=[A-Za-z0-9_.:/@-]+)?)*)?$`)
	glusterVolume = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]{0,254}$`)
	hostName      = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	plainPath     = regexp.MustCompile(`^[A-Za-z0-9_.@+/-]+$`)
)

// isPlain is for what becomes part of a command line, an address or a table of mounts.
func isPlain(s string) bool { return len(s) <= 1024 && plainPath.MatchString(s) }

func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return !strings.Contains(s, "%")
	}
	return len(s) <= 253 && hostName.MatchString(s)
}
