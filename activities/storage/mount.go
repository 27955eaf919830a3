package storage

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// mounter mounts file systems of one type.
type mounter interface {
	// source is what the table of mounts calls it.
	source(p steps.PoolOnNode) string
	// mount mounts it at the pool's path, which is an empty directory. When ctx ends, it gives up.
	mount(ctx context.Context, p steps.PoolOnNode, logs string) error
	// works reports whether what serves a mount is alive, without touching the file system. That its servers are away is no
	// reason to mount it again.
	works(p steps.PoolOnNode) bool
}

// gluster mounts volumes of GlusterFS: a process (glusterfs) that the kernel asks by FUSE. It outlives the agent.
type gluster struct{}

func (gluster) source(p steps.PoolOnNode) string {
	return p.Source.Hosts[0] + ":" + p.Source.Name
}

// pidFile is beside the mount point: it ends with the mounts when the node does.
func (gluster) pidFile(p steps.PoolOnNode) string { return p.Path + pidExt }

func (g gluster) mount(ctx context.Context, p steps.PoolOnNode, logs string) error {
	volume, dir, _ := strings.Cut(p.Source.Name, "/")
	log := filepath.Join(logs, p.Pool+logExt)
	begin := length(log)
	var args []string
	for _, h := range p.Source.Hosts {
		args = append(args, "--volfile-server="+h)
	}
	args = append(args, "--volfile-id="+volume, "--process-name=fuse", "--log-file="+log, "--log-level=WARNING", "--pid-file="+g.pidFile(p),
		// Nodes take turns by locks and by names that appear and go: none may be remembered. To open a file that another node has
		// removed must fail at once, and not when it is locked: the client has been seen to lose a request then.
		"--attribute-timeout=0", "--entry-timeout=0")
	for _, cache := range []string{"open-behind", "md-cache", "nl-cache", "quick-read", "io-cache", "read-ahead", "readdir-ahead"} {
		args = append(args, "--xlator-option=*"+cache+".pass-through=true")
	}
	if dir != "" {
		args = append(args, "--subdir-mount=/"+dir)
	}
	_, err := command(ctx, "glusterfs", append(args, p.Path)...)
	if err == nil { // it says so before it has tried
		err = g.try(p)
	}
	if err != nil {
		_ = unix.Unmount(p.Path, unix.MNT_DETACH)
		why := complaint(log, begin)
		if why == "" {
			why = "no server answers; see " + log
		}
		return problem.New(problem.Unavailable, "GlusterFS volume %s cannot be mounted", from(p)).Because("%s", why).
			Try("see whether its servers run and can be reached from this node, and know the volume: gluster volume info %s", volume)
	}
	return nil
}

func (g gluster) works(p steps.PoolOnNode) bool {
	b, err := os.ReadFile(g.pidFile(p))
	if err != nil {
		return false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return false
	}
	cmdline, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return err == nil && bytes.HasSuffix(bytes.TrimRight(cmdline, "\x00"), []byte("\x00"+p.Path))
}

// try waits for the first answer. Who is refused by the servers ends, and the mount with it.
func (g gluster) try(p steps.PoolOnNode) error {
	var st unix.Statfs_t
	if err := unix.Statfs(p.Path, &st); err != nil {
		return err
	}
	if is, err := isMounted(p.Path); err != nil || is.path == "" || !g.works(p) {
		return errors.Join(err, errors.New("it was refused"))
	}
	return nil
}

func length(file string) int64 {
	if info, err := os.Stat(file); err == nil {
		return info.Size()
	}
	return 0
}

const maxSaid = 300 // bytes

// complaint returns why the client of GlusterFS has failed, by what it has written to its log after an offset.
func complaint(log string, offset int64) string {
	f, err := os.Open(log)
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // was only read
	b, _ := io.ReadAll(io.NewSectionReader(f, offset, 64<<10))
	said := ""
	for line := range strings.Lines(string(b)) {
		// [time] E [MSGID: number] [file:line:function] 0-name: what
		if _, what, ok := strings.Cut(line, "] E ["); ok {
			if at := strings.LastIndex(what, "] 0-"); at >= 0 {
				what = what[at+2:]
			}
			what = strings.TrimSpace(what)
			if _, reason, told := strings.Cut(what, "remote-error="); told {
				reason, _, _ = strings.Cut(reason, "}")
				return reason[:min(len(reason), maxSaid)]
			}
			if said == "" && !strings.Contains(what, "unmount") { // the first is the cause
				said = what
			}
		}
	}
	return said[:min(len(said), maxSaid)]
}

// nfsPatience is how long a server may take until its export is mounted. The kernel would wait for ever: a client that has lost
// its server while it had something there connects again and again before it mounts anything more of that server.
const nfsPatience = 20 * time.Second

// nfs mounts exports of NFS servers by the kernel.
type nfs struct{}

func (nfs) source(p steps.PoolOnNode) string {
	host := p.Source.Hosts[0]
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		host = "[" + host + "]"
	}
	return host + ":" + p.Source.Name
}

func (n nfs) mount(ctx context.Context, p steps.PoolOnNode, _ string) error {
	// Guests must never lose what they have written, whatever a server does: "hard". It is not tried again in the background, nor
	// for long: the agent does that. Attributes that are remembered would hide what other nodes have just made.
	options := "hard,retry=0,lookupcache=none,actimeo=1"
	if !asksForVersion(p.Source.Options) {
		// The best that the server has, but never 3 unasked: that needs services on each node, and mount.nfs would try it
		// whenever 4 fails, and complain of those services, whatever was wrong.
		options += ",vers=4"
	}
	if p.Source.Options != "" {
		options += "," + p.Source.Options
	}
	ctx, cancel := context.WithTimeout(ctx, nfsPatience)
	defer cancel()
	out, err := command(ctx, "mount", "-t", "nfs", "-o", options, n.source(p), p.Path)
	if err != nil {
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			out = "the server does not answer"
		case out == "":
			out = err.Error()
		}
		problems := problem.New(problem.Unavailable, "NFS export %s cannot be mounted", from(p)).Because("%s", out).
			Try("see whether the server runs and can be reached from this node, and exports it to this node: showmount -e %s", p.Source.Hosts[0])
		if strings.Contains(out, "unknown filesystem type") || strings.Contains(out, "No such device") || strings.Contains(out, "need a /sbin/mount") {
			problems.Kind, problems.Fix = problem.Unsupported, "install nfs-common, and see that the kernel has the modules nfs and nfsv4"
		}
		return problems
	}
	return nil
}

// asksForVersion reports whether mount options of NFS name a version of it.
func asksForVersion(options string) bool {
	for o := range strings.SplitSeq(options, ",") {
		switch name, _, _ := strings.Cut(o, "="); name {
		case "vers", "nfsvers", "v3", "v4", "v4.0", "v4.1", "v4.2":
			return true
		}
	}
	return false
}

// works implements mounter: the kernel does not die.
func (nfs) works(steps.PoolOnNode) bool { return true }

// command runs a program that mounts, and returns what it said.
func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	// Not a pipe: what goes on in the background would keep it open, and Wait would wait for it.
	out, err := os.CreateTemp("", "mount")
	if err != nil {
		return "", err
	}
	defer func() { _ = out.Close(); _ = os.Remove(out.Name()) }()
	cmd.Stdout, cmd.Stderr = out, out
	// With what it has started itself: mount.nfs would go on alone, and might mount after all.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	err = cmd.Run()
	said, _ := os.ReadFile(out.Name())
	return strings.Join(strings.Fields(string(said[:min(len(said), 1000)])), " "), err
}

// mountInfo is one line of the table of mounts.
type mountInfo struct{ path, fsType, source string }

// isMounted tells what is mounted at exactly this path, if anything is. It does not touch the file system.
func isMounted(path string) (mountInfo, error) {
	all, err := mountTable()
	var out mountInfo
	for _, m := range all {
		if m.path == path {
			out = m // the last one is on top
		}
	}
	return out, err
}

// countMounts tells how many are mounted at exactly this path, one over another.
func countMounts(path string) (n int, err error) {
	all, err := mountTable()
	for _, m := range all {
		if m.path == path {
			n++
		}
	}
	return n, err
}

func mountsBelow(dir string) (out []mountInfo, err error) {
	all, err := mountTable()
	for _, m := range all {
		if filepath.Dir(m.path) == dir {
			out = append(out, m)
		}
	}
	return out, err
}

// mountTable reads the mounts that this process sees.
func mountTable() ([]mountInfo, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []mountInfo
	for line := range strings.Lines(string(b)) {
		// 36 35 98:0 /root /path options optional... - type source options
		head, tail, ok := strings.Cut(strings.TrimSpace(line), " - ")
		f, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(f) < 5 || len(t) < 2 {
			continue
		}
		out = append(out, mountInfo{path: unescape(f[4]), fsType: t[0], source: unescape(t[1])})
	}
	return out, nil
}

// unescape undoes what the kernel does to blanks in its tables.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
