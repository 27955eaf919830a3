//go:build ceph && cgo

package storage_test

import (
	"bytes"
	"context"
	"fmt"
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

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/activities/storage/rbd"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
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
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "timeout", append([]string{"60", "ceph", "-c", filepath.Join(c.dir, "ceph.conf")}, args...)...).Output()
	require.NoError(t, err, "ceph %v", args)
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
	conformOn(t, fresh, func(t *testing.T) steps.PoolOnNode {
		c.wipe(t, p.Source.Name)
		return p
	})
}

func TestRBDNodesShareOneImport(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "nodes")
	node := func() storage.Pool {
		return rbd.New(rbd.Config{Key: key, TempDir: t.TempDir(), WatchPatience: 2 * time.Second})
	}
	a, b := node(), node()
	w := newWorldOn(t, a, func(*testing.T) steps.PoolOnNode { return p }, empty)
	first := w.pool
	first.Agent = api.NewID()
	_, err := a.Prepare(t.Context(), first)
	require.NoError(t, err)
	second := first
	second.Agent, second.Join = api.NewID(), true
	_, err = b.Prepare(t.Context(), second)
	require.NoError(t, err)
	other := second
	other.Pool = api.NewID()
	_, err = b.Prepare(t.Context(), other)
	is(t, problem.Conflict, err)

	var plans []steps.VMPlan
	errs := make(chan error, 6)
	w.src.gate = make(chan struct{})
	for i := range cap(errs) {
		plan := w.plan()
		plans = append(plans, plan)
		go func() {
			errs <- []storage.Pool{a, b}[i%2].MakeDisk(context.WithoutCancel(t.Context()), plan, w.src, nil)
		}()
	}
	require.Eventually(t, func() bool { return w.src.opened.Load() > 0 }, 20*time.Second, 10*time.Millisecond)
	is(t, problem.InUse, c.other(t, p, key).EvictImage(t.Context(), w.cached()))
	close(w.src.gate)
	for range cap(errs) {
		require.NoError(t, <-errs)
	}
	require.EqualValues(t, 1, w.src.opened.Load(), "one node brings the image in, and all others wait for it")
	for i, plan := range plans {
		require.NoError(t, []storage.Pool{b, a}[i%2].RemoveDisk(t.Context(), plan), "by the other node")
	}
	require.NoError(t, b.EvictImage(t.Context(), w.cached()))
	require.NoError(t, b.Release(t.Context(), first))
}

// other is a node of its own.
func (c *ceph) other(t *testing.T, _ steps.PoolOnNode, key func(context.Context, string) (string, error)) storage.Pool {
	return rbd.New(rbd.Config{Key: key, TempDir: t.TempDir(), WatchPatience: time.Second})
}

func TestRBDHasWhatTheImageHas(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "content")
	d := c.other(t, p, key)
	w := newWorldOn(t, d, func(*testing.T) steps.PoolOnNode { return p }, func(path string) {
		program(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4096", "-c", "write -P 9 900k 64k", path)
	})
	_, err := d.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	plan := w.plan()
	require.NoError(t, d.MakeDisk(t.Context(), plan, w.src, nil))
	got := filepath.Join(t.TempDir(), "raw")
	program(t, "rbd", "-c", filepath.Join(c.dir, "ceph.conf"), "--no-progress", "export", p.Source.Name+"/disk-"+plan.Disk.Volume, got)
	b, err := os.ReadFile(got)
	require.NoError(t, err)
	want := make([]byte, plan.Disk.Size)
	for i := range 4096 {
		want[i] = 7
	}
	for i := range 64 << 10 {
		want[900<<10+i] = 9
	}
	require.Equal(t, want, b)

	t.Run("a device that somebody has open stays", func(t *testing.T) {
		io, err := c.conn.OpenIOContext(p.Source.Name)
		require.NoError(t, err)
		defer io.Destroy()
		img, err := cephrbd.OpenImage(io, "disk-"+plan.Disk.Volume, cephrbd.NoSnapshot)
		require.NoError(t, err)
		err = d.RemoveDisk(t.Context(), plan)
		is(t, problem.InUse, err)
		require.ErrorContains(t, err, "a client at")
		require.NoError(t, img.Close())
		require.NoError(t, d.RemoveDisk(t.Context(), plan))
	})

	t.Run("another disk of the name is a conflict", func(t *testing.T) {
		plan := w.plan()
		require.NoError(t, d.MakeDisk(t.Context(), plan, w.src, nil))
		plan.Disk.Size *= 2
		is(t, problem.Conflict, d.MakeDisk(t.Context(), plan, w.src, nil))
		require.NoError(t, d.RemoveDisk(t.Context(), plan))
	})

	t.Run("the trash is told of and emptied, what is not ours is not", func(t *testing.T) {
		io, err := c.conn.OpenIOContext(p.Source.Name)
		require.NoError(t, err)
		defer io.Destroy()
		require.NoError(t, cephrbd.CreateImage(io, "vm-100-disk-0", 1<<20, cephrbd.NewRbdImageOptions()))
		plan := w.plan()
		require.NoError(t, d.MakeDisk(t.Context(), plan, w.src, nil))
		require.NoError(t, cephrbd.GetImage(io, "disk-"+plan.Disk.Volume).Trash(time.Hour))
		require.NoError(t, d.RemoveDisk(t.Context(), plan))
		require.Equal(t, map[string]int{storage.KindBacking: 1, storage.KindOther: 1}, w.kinds(t))
		list, err := d.List(t.Context(), w.pool)
		require.NoError(t, err)
		for _, f := range list {
			if f.Kind == storage.KindOther {
				require.NoError(t, d.Remove(t.Context(), w.pool, f))
			}
		}
		require.Equal(t, map[string]int{storage.KindBacking: 1}, w.kinds(t))
		is(t, problem.Invalid, d.Remove(t.Context(), w.pool, steps.FileFound{Pool: w.pool.Pool, Path: w.pool.Path + "/vm-100-disk-0"}))
		require.NoError(t, cephrbd.RemoveImage(io, "vm-100-disk-0"))
	})
}

func TestRBDRefusesWhatIsNotItsOwn(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "strange")
	p.Pool = api.NewID()
	d := c.other(t, p, key)
	io, err := c.conn.OpenIOContext(p.Source.Name)
	require.NoError(t, err)
	defer io.Destroy()
	require.NoError(t, cephrbd.CreateImage(io, "precious", 1<<20, cephrbd.NewRbdImageOptions()))
	_, err = d.Prepare(t.Context(), p)
	is(t, problem.Conflict, err)
	require.ErrorContains(t, err, "precious")
	require.NoError(t, cephrbd.RemoveImage(io, "precious"))
	missing := p
	missing.Source.Name = "nosuchpool"
	_, err = d.Prepare(t.Context(), missing)
	is(t, problem.Invalid, err)
	foreign := p
	foreign.Source.Name = "vms" // there is such a pool, and the user may not use it
	_, err = d.Prepare(t.Context(), foreign)
	is(t, problem.Invalid, err)
	for _, bad := range []string{"", "hunter2", "AQAAAAAAAAAAABAAYSBrZXkgb2Ygbm8gdXNlcg=="} {
		d := rbd.New(rbd.Config{Key: func(context.Context, string) (string, error) { return bad, nil }, TempDir: t.TempDir()})
		_, err = d.Prepare(t.Context(), p)
		is(t, problem.Invalid, err)
		if bad != "" {
			require.NotContains(t, err.Error(), bad)
		}
	}
	nobody := p
	nobody.Source.User = "nobody"
	_, err = d.Prepare(t.Context(), nobody)
	is(t, problem.Invalid, err)
}

func TestRBDHypervisorKnowsTheKeyAsLongAsThePoolIsHere(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "secrets")
	hv := &compute.Fake{}
	d := rbd.New(rbd.Config{Key: key, Secrets: hv, TempDir: t.TempDir()})
	w := newWorldOn(t, d, func(*testing.T) steps.PoolOnNode { return p }, empty)
	known := func() []string {
		t.Helper()
		list, err := hv.ListSecrets(t.Context())
		require.NoError(t, err)
		return list
	}
	ready := func() error { return d.(storage.Readier).Ready(t.Context(), w.pool) }
	keep := func(pools ...steps.PoolOnNode) {
		t.Helper()
		require.NoError(t, d.(storage.Keeper).Keep(t.Context(), pools))
	}
	is(t, problem.NotFound, ready())
	require.Empty(t, known(), "what is no pool needs no key")
	_, err := d.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, ready())
	}
	require.Equal(t, []string{w.pool.Pool}, known())
	keep()
	require.Equal(t, []string{w.pool.Pool}, known(), "it may be on its way to become one")
	keep(w.pool)
	require.Equal(t, []string{w.pool.Pool}, known())
	require.NoError(t, hv.SetSecret(t.Context(), api.NewID(), "of a pool that was here before the agent was started"))
	require.NoError(t, ready())
	keep(w.pool)
	require.Equal(t, []string{w.pool.Pool}, known())
	keep()
	require.Empty(t, known())
	require.NoError(t, ready())
	require.NoError(t, d.Release(t.Context(), w.pool))
	require.Empty(t, known())
}

func TestRBDIsReachedInAnotherWay(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "rotated")
	c.cli(t, "auth", "get-or-create", "client.rotated2", "mon", "profile rbd", "osd", "profile rbd pool=rotated", "mgr", "profile rbd")
	c.cli(t, "auth", "get-or-create", "client.useless", "mon", "profile rbd", "osd", "profile rbd-read-only pool=rotated", "mgr", "profile rbd")
	t.Cleanup(func() { c.cli(t, "auth", "rm", "client.rotated2"); c.cli(t, "auth", "rm", "client.useless") })
	keys := map[string]string{}
	for _, user := range []string{"rotated2", "useless"} {
		keys[user] = c.cli(t, "auth", "print-key", "client."+user)
	}
	old, err := key(t.Context(), "")
	require.NoError(t, err)
	hv, counts := &hypervisor{Fake: &compute.Fake{}, keys: map[string]string{}}, old
	d := rbd.New(rbd.Config{
		Key: func(context.Context, string) (string, error) { return counts, nil }, Secrets: hv, TempDir: t.TempDir(), OpTimeout: 3 * time.Second,
		NewKey: func(_ context.Context, _, operation string) (string, error) { return keys[operation], nil },
	})
	w := newWorldOn(t, d, func(*testing.T) steps.PoolOnNode { return p }, empty)
	check := d.(storage.Checker).CheckSource
	is(t, problem.Conflict, check(t.Context(), w.pool, "")) // it is no pool yet
	_, err = d.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	require.NoError(t, d.(storage.Readier).Ready(t.Context(), w.pool))
	require.NoError(t, d.(storage.Keeper).Keep(t.Context(), []steps.PoolOnNode{w.pool}))
	require.Equal(t, old, hv.keys[w.pool.Pool])
	require.NoError(t, check(t.Context(), w.pool, ""))
	next := w.pool
	next.Source.User = "rotated2"
	is(t, problem.Invalid, check(t.Context(), next, "")) // with the old key
	require.NoError(t, check(t.Context(), next, "rotated2"))
	weak := next
	weak.Source.User = "useless"
	is(t, problem.Invalid, check(t.Context(), weak, "useless"))
	other := next
	other.Pool = api.NewID()
	is(t, problem.Conflict, check(t.Context(), other, "rotated2"))
	nowhere := next
	nowhere.Source.Hosts = []string{"127.0.0.1:9"}
	is(t, problem.Unavailable, check(t.Context(), nowhere, "rotated2"))
	require.Equal(t, old, hv.keys[w.pool.Pool], "a try changes nothing")
	require.Empty(t, w.kinds(t))

	// It counts, and the old user goes.
	next.Source.KeyVersion, counts = 1, keys["rotated2"]
	require.NoError(t, d.(storage.Keeper).Keep(t.Context(), []steps.PoolOnNode{next}))
	require.Equal(t, counts, hv.keys[w.pool.Pool])
	c.cli(t, "auth", "rm", "client.rotated")
	t.Cleanup(func() { c.cli(t, "auth", "get-or-create", "client.rotated") })
	v := steps.VolumePlan{Volume: api.NewID(), Name: "data", Pool: next, Size: api.MiB}
	require.NoError(t, d.CreateVolume(t.Context(), v, w.src, nil))
	require.NoError(t, d.RemoveVolume(t.Context(), v))
}

// hypervisor remembers which keys it was told.
type hypervisor struct {
	*compute.Fake
	keys map[string]string
}

func (h *hypervisor) SetSecret(ctx context.Context, pool, key string) error {
	h.keys[pool] = key
	return h.Fake.SetSecret(ctx, pool, key)
}

// devices is a hand for pools of Ceph.
type devices struct{ *ceph }

func (d devices) on(t *testing.T, v steps.VolumePlan, f func(*cephrbd.Image)) {
	t.Helper()
	io, err := d.conn.OpenIOContext(v.Pool.Source.Name)
	require.NoError(t, err)
	defer io.Destroy()
	img, err := cephrbd.OpenImage(io, "disk-"+v.Volume, cephrbd.NoSnapshot)
	require.NoError(t, err)
	f(img)
	require.NoError(t, img.Close())
}

func (d devices) write(t *testing.T, v steps.VolumePlan, at int, b byte) {
	t.Helper()
	d.on(t, v, func(img *cephrbd.Image) {
		_, err := img.WriteAt(bytes.Repeat([]byte{b}, slot), int64(at)*slot)
		require.NoError(t, err)
	})
}

func (d devices) read(t *testing.T, v steps.VolumePlan) (shown, int64) {
	t.Helper()
	out, size := shown{}, uint64(0)
	d.on(t, v, func(img *cephrbd.Image) {
		var err error
		size, err = img.GetSize()
		require.NoError(t, err)
		all := make([]byte, size)
		_, err = img.ReadAt(all, 0)
		require.NoError(t, err)
		for i := 0; i*slot < len(all); i++ {
			part := all[i*slot : (i+1)*slot]
			require.Equal(t, len(part), bytes.Count(part, part[:1]), "slot %d is neither old nor new", i)
			if part[0] != 0 {
				out[i] = part[0]
			}
		}
	})
	return out, int64(size)
}

func TestRBDVolumesConform(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "volumes")
	conformNamed(t, func(t *testing.T) *stand {
		c.wipe(t, p.Source.Name)
		d := rbd.New(rbd.Config{Key: key, TempDir: t.TempDir(), WatchPatience: time.Second})
		w := newWorldOn(t, d, func(*testing.T) steps.PoolOnNode { return p }, func(path string) {
			program(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d 0 %d", imageByte, slot), path)
		})
		_, err := w.Prepare(t.Context(), w.pool)
		require.NoError(t, err)
		return &stand{world: w, hand: devices{c}}
	})
}

// TestRBDCopiesVolumes: into Ceph, out of it, and from one of its pools to another.
func TestRBDCopiesVolumes(t *testing.T) {
	c := needCeph(t)
	stands := map[string]*stand{}
	drivers := map[string]storage.Pool{}
	for _, name := range []string{"copies", "copies2"} {
		p, key := c.pool(t, name)
		d := rbd.New(rbd.Config{Key: key, TempDir: t.TempDir(), WatchPatience: time.Second})
		w := newWorldOn(t, d, func(*testing.T) steps.PoolOnNode { return p }, func(path string) {
			program(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d 0 %d", imageByte, slot), path)
		})
		_, err := w.Prepare(t.Context(), w.pool)
		require.NoError(t, err)
		stands[name], drivers[w.pool.Pool] = &stand{world: w, hand: devices{c}}, d
	}
	dir := storage.NewDir(nil)
	here := newStand(t, dir)
	b := storage.ByType{api.PoolDir: dir, api.PoolRBD: stands["copies"].Pool}
	t.Run("dir to rbd", func(t *testing.T) { conformCopies(t, b, here, stands["copies"]) })
	t.Run("rbd to dir", func(t *testing.T) { conformCopies(t, b, stands["copies"], here) })
	t.Run("rbd to rbd", func(t *testing.T) {
		conformCopies(t, storage.ByType{api.PoolRBD: byPool{b[api.PoolRBD], drivers}}, stands["copies"], stands["copies2"])
	})
	t.Run("seeds", func(t *testing.T) {
		s := stands["copies2"]
		require.NoError(t, s.EvictImage(t.Context(), s.world.cached()))
		conformSeeds(t, s.world)
	})
	t.Run("a volume is sent as a file", func(t *testing.T) {
		s := stands["copies"]
		v := s.volume()
		s.make(t, v)
		s.write(t, v, 3, 'a')
		var sums []string
		for range 2 { // what is sent a second time is the same, so that it can be gone on with
			disk, err := s.Pool.(storage.Opened).OpenVolume(t.Context(), v)
			require.NoError(t, err)
			b := make([]byte, disk.Size())
			_, err = disk.ReadAt(b, 0)
			require.NoError(t, err)
			require.NoError(t, disk.Close())
			sums = append(sums, string(b))
		}
		require.Equal(t, sums[0], sums[1])
		file := filepath.Join(t.TempDir(), "sent")
		require.NoError(t, os.WriteFile(file, []byte(sums[0]), 0o600))
		raw := filepath.Join(t.TempDir(), "raw")
		program(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", file, raw)
		got, size := shows(t, raw)
		require.Equal(t, shown{3: 'a'}, got)
		require.Equal(t, v.Size, size)
	})
}

// byPool is a driver of two pools, each with a key of its own.
type byPool struct {
	storage.Pool
	drivers map[string]storage.Pool
}

// Lend implements storage.Contents.
func (b byPool) Lend(ctx context.Context, v steps.VolumePlan, use func(context.Context, qemuimg.Disk) error) error {
	return b.of(v.Pool.Pool).Lend(ctx, v, use)
}

// Fill implements storage.Contents.
func (b byPool) Fill(ctx context.Context, v steps.VolumePlan, from qemuimg.Disk, progress func(float64)) error {
	return b.of(v.Pool.Pool).Fill(ctx, v, from, progress)
}

func (b byPool) of(pool string) storage.Contents {
	if d := b.drivers[pool]; d != nil {
		return d.(storage.Contents)
	}
	for _, d := range b.drivers { // which refuses it
		return d.(storage.Contents)
	}
	return nil
}
