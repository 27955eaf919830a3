//go:build ceph

package storage_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	cephrbd "github.com/ceph/go-ceph/rbd"
	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/rbd"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// ceph is a real cluster, that of a sandbox, as its administrator sees it.
type ceph struct {
	dir  string
	conn *rados.Conn
}

var theCeph = sync.OnceValue(func() *ceph {
	c := &ceph{dir: os.Getenv("NEXTSTACK_TEST_CEPH")}
	conn, err := rados.NewConnWithUser("admin")
	if err == nil {
		err = conn.ReadConfigFile(filepath.Join(c.dir, "ceph.conf"))
	}
	if err == nil {
		err = conn.Connect()
	}
	if err != nil {
		panic(err)
	}
	c.conn = conn
	return c
})

func needCeph(t *testing.T) *ceph {
	if os.Getenv("NEXTSTACK_TEST_CEPH") == "" {
		t.Skip("SKIPPED, NOT TESTED: Ceph. Set NEXTSTACK_TEST_CEPH to the directory of a sandbox's Ceph, or run make test")
	}
	return theCeph()
}

func (c *ceph) cli(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "timeout", append([]string{"60", "ceph", "-c", filepath.Join(c.dir, "ceph.conf")}, args...)...).CombinedOutput()
	require.NoError(t, err, "ceph %v: %s", args, out)
	return strings.TrimSpace(string(out))
}

// pool makes an empty Ceph pool, with a user of its own who may use that one alone.
func (c *ceph) pool(t *testing.T, name string) (steps.PoolOnNode, func(context.Context, string) (string, error)) {
	c.cli(t, "osd", "pool", "create", name, "4")
	c.cli(t, "osd", "pool", "application", "enable", name, "rbd")
	c.cli(t, "auth", "get-or-create", "client."+name, "mon", "profile rbd", "osd", "profile rbd pool="+name, "mgr", "profile rbd")
	key := c.cli(t, "auth", "print-key", "client."+name)
	t.Cleanup(func() {
		c.cli(t, "osd", "pool", "rm", name, name, "--yes-i-really-really-mean-it")
		c.cli(t, "auth", "rm", "client."+name)
	})
	require.Eventually(t, func() bool { return strings.Contains(c.cli(t, "df", "-f", "json"), `"`+name+`"`) }, 30*time.Second, 200*time.Millisecond)
	p := steps.PoolOnNode{Type: api.PoolRBD, Shared: true, Source: api.PoolSource{Hosts: []string{c.monitor(t)}, Name: name, User: name}}
	p.Path = "/ceph/" + p.Source.Hosts[0] + "/" + name
	return p, func(context.Context, string) (string, error) { return key, nil }
}

// monitor is the address of the cluster's monitor.
func (c *ceph) monitor(t *testing.T) string {
	b, err := os.ReadFile(filepath.Join(c.dir, "ceph.conf"))
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(b), "v2:")
	require.True(t, ok)
	host, _, ok := strings.Cut(rest, ":")
	require.True(t, ok)
	return host
}

// wipe makes a Ceph pool empty, whatever is in it.
func (c *ceph) wipe(t *testing.T, name string) {
	io, err := c.conn.OpenIOContext(name)
	require.NoError(t, err)
	defer io.Destroy()
	require.Eventually(t, func() bool {
		trash, err := cephrbd.GetTrashList(io)
		require.NoError(t, err)
		for _, i := range trash {
			_ = cephrbd.TrashRemove(io, i.Id, true)
		}
		names, err := cephrbd.GetImageNames(io)
		require.NoError(t, err)
		for _, n := range names {
			img, err := cephrbd.OpenImage(io, n, cephrbd.NoSnapshot)
			if err != nil {
				continue
			}
			snaps, _ := img.GetSnapshotNames()
			for _, s := range snaps {
				_ = img.GetSnapshot(s.Name).Unprotect()
				_ = img.GetSnapshot(s.Name).Remove()
			}
			_ = img.Close()
			_ = cephrbd.RemoveImage(io, n)
		}
		names, err = cephrbd.GetImageNames(io)
		require.NoError(t, err)
		return len(names) == 0
	}, time.Minute, 100*time.Millisecond, "Ceph pool %s does not become empty", name)
	_ = io.Delete("nextstack-pool")
}

func TestRBDConforms(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "conform")
	fresh := func() storage.Pool {
		return rbd.New(rbd.Config{Key: key, TempDir: t.TempDir(), WatchPatience: time.Second})
	}
	conform(t, fresh, func(t *testing.T) steps.PoolOnNode {
		c.wipe(t, p.Source.Name)
		return p
	})
}
