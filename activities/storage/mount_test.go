package storage

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// instead puts a shell script in the place of a program.
func instead(t *testing.T, name, script string) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o700))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestNFSIsMountedByTheKernel(t *testing.T) {
	said := filepath.Join(t.TempDir(), "args")
	instead(t, "mount", `echo "$@" > `+said)
	p := steps.PoolOnNode{Path: "/run/gnext/pools/x", Source: api.PoolSource{Hosts: []string{"fd00::1"}, Name: "/srv/vms", Options: "vers=4.2,nconnect=4"}}
	require.NoError(t, nfs{}.mount(t.Context(), p, t.TempDir()))
	b, err := os.ReadFile(said)
	require.NoError(t, err)
	require.Equal(t, "-t nfs -o hard,retry=0,lookupcache=none,actimeo=1,vers=4.2,nconnect=4 [fd00::1]:/srv/vms /run/gnext/pools/x", strings.TrimSpace(string(b)))
	for options, want := range map[string]string{"": "vers=4", "nconnect=4": "vers=4,nconnect=4", "nfsvers=3": "nfsvers=3", "noatime,v4.1": "noatime,v4.1"} {
		p.Source.Options = options
		require.NoError(t, nfs{}.mount(t.Context(), p, t.TempDir()))
		b, err = os.ReadFile(said)
		require.NoError(t, err)
		require.Contains(t, string(b), "actimeo=1,"+want+" ")
	}

	for said, want := range map[string]problem.Kind{
		"mount.nfs: Connection refused for 10.0.0.1:/srv/vms":                                  problem.Unavailable,
		"mount.nfs: mounting 10.0.0.1:/srv/vms failed, reason given by server: No such file":   problem.Unavailable,
		"mount: /x: unknown filesystem type 'nfs'.":                                            problem.Unsupported,
		"mount.nfs: No such device":                                                            problem.Unsupported,
		"mount: /x: bad option; for several filesystems you might need a /sbin/mount.nfs help": problem.Unsupported,
	} {
		instead(t, "mount", "echo \""+said+"\" >&2; exit 32")
		err := nfs{}.mount(t.Context(), p, t.TempDir())
		require.Equal(t, want, problem.KindOf(err), "%v", err)
		require.Contains(t, err.Error(), said)
	}
}

func TestNFSMountsThatTakeTooLong(t *testing.T) {
	alive := filepath.Join(t.TempDir(), "alive")
	require.NoError(t, unix.Mkfifo(alive, 0o600))
	instead(t, "mount", "sleep 600 > "+alive) // a child of the shell
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	p := steps.PoolOnNode{Path: "/x", Source: api.PoolSource{Hosts: []string{"h"}, Name: "/srv"}}
	done := make(chan error, 1)
	go func() { done <- nfs{}.mount(ctx, p, t.TempDir()) }()
	_, err := os.ReadFile(alive) // ends when nobody is left who could write
	require.NoError(t, err)
	err = <-done
	require.Equal(t, problem.Unavailable, problem.KindOf(err))
	require.Contains(t, err.Error(), "the server does not answer")
}

func TestWhatGlusterComplainsOf(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	const old = "[2026-01-01] E [MSGID: 1] [a.c:1:f] 0-gv0: of an earlier attempt\n"
	for text, want := range map[string]string{
		"": "",
		"[2026-01-01] W [a.c:1:f] 0-gv0: a warning\n": "",
		"[2026-01-01] E [name.c:267:f] 0-glusterfs: DNS resolution failed on host x\n[2026-01-01] E [m.c:1:f] 0-fuse: failed to unmount\n":               "0-glusterfs: DNS resolution failed on host x",
		"[2026-01-01] E [a.c:1:f] 0-x: first\n[2026-01-01] E [b.c:2:g] 0-y: SETVOLUME failed [{remote-error=no such directory}, {errno=2}, {error=x}]\n": "no such directory",
	} {
		require.NoError(t, os.WriteFile(log, []byte(old+text), 0o600))
		require.Equal(t, want, complaint(log, int64(len(old))))
	}
	require.Empty(t, complaint(log+"-none", 0))
}

func TestTheTableOfMounts(t *testing.T) {
	is, err := isMounted("/proc")
	require.NoError(t, err)
	require.Equal(t, "proc", is.fsType)
	is, err = isMounted(t.TempDir())
	require.NoError(t, err)
	require.Empty(t, is.path)
	require.Equal(t, `/a b\c`, unescape(`/a\040b\134c`))
}

func TestOnlyMountPointsOfPoolsAreMountedOver(t *testing.T) {
	m := NewMounts(NewDir(nil), t.TempDir(), nil)
	id := api.NewID()
	for _, p := range []steps.PoolOnNode{
		{Pool: id, Type: api.PoolGluster, Path: "/etc", Source: api.PoolSource{Hosts: []string{"h"}, Name: "v"}},
		{Pool: id, Type: api.PoolGluster, Path: filepath.Join(api.MountDir, api.NewID()), Source: api.PoolSource{Hosts: []string{"h"}, Name: "v"}},
		{Pool: id, Type: api.PoolDir, Path: filepath.Join(api.MountDir, id), Source: api.PoolSource{Hosts: []string{"h"}, Name: "v"}},
		{Pool: id, Type: api.PoolNFS, Path: filepath.Join(api.MountDir, id), Source: api.PoolSource{Name: "v"}},
		{Pool: id, Type: api.PoolNFS, Path: filepath.Join(api.MountDir, id), Source: api.PoolSource{Hosts: []string{"h"}}},
	} {
		_, err := m.Prepare(t.Context(), p)
		require.Equal(t, problem.Invalid, problem.KindOf(err), "%+v", p)
		require.Equal(t, problem.Invalid, problem.KindOf(m.Release(t.Context(), p)))
		require.NotEmpty(t, m.Usage(t.Context(), p).Error)
	}
}
