package storage_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Tests of pools on a real NFS server, which the kernel mounts. deploy/dev/test.sh runs them in a machine with a kernel that can.

// nfsNodes are nodes a and b, on directories of the export of a real NFS server, or the test is skipped. Each has a network of its
// own and so a client of its own.
func nfsNodes(t *testing.T, options string) (a, b *farNode) {
	t.Helper()
	box := realServers(t, "ganesha", "pools on a real NFS server")
	out, err := box.run("exec", "a", "sh", "-c", "d=$(mktemp -d) && mount -t nfs -o retry=0 "+box.net+".1:/vms $d && umount $d; r=$?; rmdir $d; exit $r")
	if strings.Contains(out, "unknown filesystem type") || strings.Contains(out, "No such device") {
		t.Skipf("SKIPPED, NOT TESTED: pools on a real NFS server. The kernel of this machine has no NFS client: %s", out)
	}
	require.NoError(t, err, "%s", out)
	source := func(path string) api.PoolSource {
		sum := sha256.Sum256([]byte(path))
		dir := filepath.Join("vms", "t-"+hex.EncodeToString(sum[:8]))
		require.NoError(t, os.MkdirAll(filepath.Join(box.dir, "nfs", dir), 0o755))
		name := "/" + dir
		if strings.Contains(options, "vers=3") { // it knows the names that the server's own file system has
			name = filepath.Join(box.dir, "nfs", dir)
		}
		return api.PoolSource{Hosts: []string{box.net + ".1"}, Name: name, Options: options}
	}
	return box.start(t, "a", api.PoolNFS, source), box.start(t, "b", api.PoolNFS, source)
}

func TestNFSPoolConforms(t *testing.T) {
	a, _ := nfsNodes(t, "")
	conform(t, func() storage.Pool { return a })
}

func TestNFSPoolVolumesConform(t *testing.T) {
	a, _ := nfsNodes(t, "")
	conformVolumes(t, func() storage.Pool { return a })
}

func TestNFSPoolCapabilities(t *testing.T) {
	a, b := nfsNodes(t, "vers=4.2")
	conformCapabilities(t, func(t *testing.T) twins { return twinsOf(t, a, b, true) })
}

func TestNFSPoolKilled(t *testing.T) {
	a, _ := nfsNodes(t, "")
	a.leaks = true
	killAnywhere(t, newStand(t, a), 1, 1)
}

func TestNFSPoolNodesConform(t *testing.T) {
	a, b := nfsNodes(t, "")
	conformShared(t, func(t *testing.T) nodes { return nodes{a: a, b: b, net: t.TempDir(), rounds: 5} })
}

// TestNFSPoolGoneAndBack stops and kills the server.
func TestNFSPoolGoneAndBack(t *testing.T) {
	a, b := nfsNodes(t, "")
	w := on(t, a)
	other := w.as(b)
	other.pool.Join = true
	_, err := other.Prepare(t.Context(), other.pool)
	require.NoError(t, err)
	p := w.plan()
	require.NoError(t, w.MakeDisk(t.Context(), p, w.src, nil))

	away := func(t *testing.T) {
		t.Helper()
		begun := time.Now()
		var wg sync.WaitGroup
		for _, w := range []*world{w, other} {
			wg.Go(func() {
				assert.NotEmpty(t, w.Usage(t.Context(), w.pool).Error)
				for what, err := range map[string]error{
					"making":    w.MakeDisk(t.Context(), w.plan(), w.src, nil),
					"removing":  w.RemoveDisk(t.Context(), p),
					"releasing": w.Release(t.Context(), w.pool),
				} {
					assert.Equal(t, problem.Unavailable, problem.KindOf(err), "%s on %s: %v", what, w.Pool.(*farNode).name, err)
				}
			})
		}
		wg.Wait()
		require.Less(t, time.Since(begun), 2*time.Minute, "nobody waits for ever")
	}
	back := func(t *testing.T) {
		t.Helper()
		for _, w := range []*world{w, other} {
			require.Eventually(t, func() bool { return w.Usage(t.Context(), w.pool).Error == "" }, 2*time.Minute, 200*time.Millisecond)
			require.Equal(t, 1, w.kinds(t)[storage.KindVolume], "nothing was lost")
			require.Zero(t, w.kinds(t)[storage.KindOther])
		}
		q := w.plan()
		require.NoError(t, w.MakeDisk(t.Context(), q, w.src, nil))
		require.NoError(t, other.RemoveDisk(t.Context(), q))
	}

	t.Run("a server that is silent", func(t *testing.T) {
		a.box.signal(t, "ganesha", unix.SIGSTOP)
		defer a.box.signal(t, "ganesha", unix.SIGCONT)
		away(t)
		a.box.signal(t, "ganesha", unix.SIGCONT)
		back(t)
	})
	t.Run("a server that has died", func(t *testing.T) {
		a.box.do(t, "file-kill", "ganesha")
		defer a.box.do(t, "ganesha")
		away(t)
		a.box.do(t, "ganesha")
		back(t)
	})
	t.Run("somebody unmounts it", func(t *testing.T) {
		a.program(t, "umount", filepath.Join(api.MountDir, w.pool.Pool))
		back(t)
	})
	t.Run("a node that has lost its mount, and the server is away", func(t *testing.T) {
		a.box.do(t, "file-kill", "ganesha")
		defer a.box.do(t, "ganesha")
		// The kernel wants to tell the server that its client goes. This has been seen to wait for it for ever.
		_, err := a.ask(t.Context(), "detach", question{Pool: a.there(w.pool)})
		require.NoError(t, err)
		require.NotContains(t, a.program(t, "cat", "/proc/mounts"), w.pool.Pool)
		away(t)
		a.box.do(t, "ganesha")
		back(t)
	})
}

// TestNFSPoolThatIsNone: what cannot be mounted is said, and leaves nothing behind.
func TestNFSPoolThatIsNone(t *testing.T) {
	a, b := nfsNodes(t, "")
	for name, s := range map[string]api.PoolSource{
		"no such export":  {Hosts: []string{a.box.net + ".1"}, Name: "/none"},
		"no server there": {Hosts: []string{a.box.net + ".12"}, Name: "/vms"},
	} {
		t.Run(name, func(t *testing.T) {
			p := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolNFS, Source: s, Shared: true}
			p.Path = filepath.Join(api.MountDir, p.Pool)
			_, err := a.ask(t.Context(), "prepare", question{Pool: p})
			is(t, problem.Unavailable, err)
			t.Log(err)
			_, err = a.ask(t.Context(), "release", question{Pool: p})
			require.NoError(t, err, "an undo of what never began")
			require.NotContains(t, a.program(t, "cat", "/proc/mounts"), p.Pool)
		})
	}
	t.Run("who joins another one", func(t *testing.T) {
		w := on(t, a)
		p := b.there(w.pool)
		p.Source, p.Join = b.source(t.TempDir()), true
		_, err := b.ask(t.Context(), "prepare", question{Pool: p})
		is(t, problem.Conflict, err)
	})
}

// TestNFSPoolLocks: who has a lock on one node has it on all, until that node lets go of it.
func TestNFSPoolLocks(t *testing.T) {
	a, b := nfsNodes(t, "")
	conformLocks(t, a, b)
}

// TestNFSPoolVersion3: its locks are a service of its own, which is there when rpc.statd is, on nodes and server.
func TestNFSPoolVersion3(t *testing.T) {
	a, b := nfsNodes(t, "vers=3")
	a.box.do(t, "server-statd")
	t.Cleanup(func() { a.box.do(t, "file-kill", "statd") })
	conformLocks(t, a, b)
	w := on(t, a)
	require.Contains(t, a.program(t, "grep", w.pool.Pool, "/proc/mounts"), "vers=3")
	s := handed(w)
	v := s.volume()
	s.make(t, v)
	s.write(t, v, 3, 'a')
	other := handed(w.as(b))
	other.pool.Join = true
	_, err := other.Prepare(t.Context(), other.pool)
	require.NoError(t, err)
	other.shows(t, v, shown{3: 'a'})
	write, _, closed := a.open(t, v)
	write(4, 'b')
	is(t, problem.InUse, other.RemoveVolume(t.Context(), v)) // QEMU's locks hold among nodes, too
	closed()
	other.shows(t, v, shown{3: 'a', 4: 'b'})
	require.NoError(t, other.RemoveVolume(t.Context(), v))
}

func conformLocks(t *testing.T, a, b *farNode) {
	t.Helper()
	w := on(t, a)
	other := w.as(b)
	other.pool.Join = true
	_, err := other.Prepare(t.Context(), other.pool)
	require.NoError(t, err)
	p := w.plan()
	require.NoError(t, w.MakeDisk(t.Context(), p, w.src, nil))
	marker := filepath.Join(api.MountDir, w.pool.Pool, ".nextstack-pool")
	_, err = a.ask(t.Context(), "run", question{Args: []string{"flock", "-s", marker, "true"}})
	require.NoError(t, err)
	held := make(chan error, 1)
	go func() {
		_, err := a.ask(t.Context(), "run", question{Args: []string{"flock", marker, "sh", "-c", "echo > " + marker + ".held; sleep 3"}})
		held <- err
	}()
	require.Eventually(t, func() bool {
		_, err := b.ask(t.Context(), "run", question{Args: []string{"test", "-e", marker + ".held"}})
		return err == nil
	}, time.Minute, 100*time.Millisecond)
	_, err = b.ask(t.Context(), "run", question{Args: []string{"flock", "-n", marker, "true"}})
	require.Error(t, err, "another node has it")
	require.NoError(t, other.RemoveDisk(t.Context(), p), "which needs no lock")
	require.NoError(t, other.MakeDisk(t.Context(), p, w.src, nil), "it waits for the lock")
	require.NoError(t, <-held)
	b.program(t, "rm", marker+".held")
}

// TestNFSPoolWithoutLocks: locks of version 3 are a service of its own, which needs another one on the server, and the sandbox's server
// is without that. What can be mounted and not be locked is no pool.
func TestNFSPoolWithoutLocks(t *testing.T) {
	a, _ := nfsNodes(t, "vers=3")
	_, err := a.box.run("file-pid", "statd")
	require.Error(t, err)
	w := newWorld(t, a)
	w.pool.Shared, w.pool.Agent = true, api.NewID()
	_, err = w.Prepare(t.Context(), w.pool)
	require.ErrorContains(t, err, "cannot be a shared pool: its file system has no file locks")
	require.Contains(t, a.program(t, "cat", "/proc/mounts"), "vers=3")
	require.NoError(t, w.Release(t.Context(), w.pool))
	require.NotContains(t, a.program(t, "cat", "/proc/mounts"), "vers=3")
}

// TestNFSPoolFull fills the server: its clients learn of that when they have written already.
func TestNFSPoolFull(t *testing.T) {
	a, _ := nfsNodes(t, "")
	w := on(t, a)
	var st unix.Statfs_t
	dir := filepath.Join(a.box.dir, "nfs/vms")
	require.NoError(t, unix.Statfs(dir, &st))
	if size := int64(st.Blocks) * st.Bsize; size > api.GiB {
		t.Skipf("SKIPPED, NOT TESTED: pools on a real NFS server that are full. %s is on a file system of %d bytes, which is too much to fill", dir, size)
	}
	u := w.Usage(t.Context(), w.pool)
	require.Equal(t, int64(st.Blocks)*st.Bsize, u.Capacity, "what the server has")
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	require.NoError(t, err)
	defer os.Remove(ballast.Name()) //nolint:errcheck // it may be gone
	for _, part := range []int64{api.MiB, 4096} {
		for err = nil; err == nil; {
			_, err = ballast.Write(make([]byte, part))
		}
		require.ErrorIs(t, err, unix.ENOSPC)
	}
	p := w.plan()
	is(t, problem.NoCapacity, w.MakeDisk(t.Context(), p, w.src, nil))
	require.NoError(t, w.RemoveDisk(t.Context(), p))
	require.Zero(t, w.kinds(t)[storage.KindVolume])
	require.NoError(t, ballast.Close())
	require.NoError(t, os.Remove(ballast.Name()))
	require.NoError(t, w.MakeDisk(t.Context(), p, w.src, nil))
	require.NoError(t, w.RemoveDisk(t.Context(), p))
	require.NoError(t, w.EvictImage(t.Context(), w.cachedImage()))
	require.NoError(t, w.Release(t.Context(), w.pool))
}
