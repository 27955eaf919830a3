//go:build ceph && cgo

package storage_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	cephrbd "github.com/ceph/go-ceph/rbd"
	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/rbd"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// signal sends a signal to a daemon of the cluster: mon.a, mgr.x or osd.0.
func (c *ceph) signal(t *testing.T, daemon string, s syscall.Signal) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, "run", daemon+".pid"))
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(pid, s))
}

func TestRBDServerGoneAndBack(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "outage")
	d := rbd.New(rbd.Config{Key: key, TempDir: t.TempDir(), OpTimeout: 2 * time.Second, WatchPatience: time.Second})
	w := newWorldOn(t, d, func(*testing.T) steps.PoolOnNode { return p }, empty)
	_, err := d.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	before := w.plan()
	require.NoError(t, d.MakeDisk(t.Context(), before, w.src, nil))
	calls := runtime.NumGoroutine()

	for _, daemon := range []string{"osd.0", "mon.a"} {
		t.Run(daemon, func(t *testing.T) {
			back := false
			resume := func() {
				if !back {
					c.signal(t, daemon, syscall.SIGCONT)
					back = true
				}
			}
			defer resume()
			c.signal(t, daemon, syscall.SIGSTOP)
			require.Eventually(t, func() bool { return d.Usage(t.Context(), w.pool).Error != "" }, 20*time.Second, 100*time.Millisecond)
			plan := w.plan()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			begun := time.Now()
			var errs []error
			for range 40 { // far more than may hang
				short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
				errs = append(errs, d.RemoveDisk(short, plan))
				cancel()
			}
			if daemon == "osd.0" { // the monitors are not needed for what is under way
				for _, err := range errs {
					is(t, problem.Unavailable, err)
				}
			}
			require.Less(t, time.Since(begun), 20*time.Second)
			require.Less(t, runtime.NumGoroutine(), calls+60, "calls do not pile up")
			fresh := rbd.New(rbd.Config{Key: key, TempDir: t.TempDir(), OpTimeout: 2 * time.Second})
			is(t, problem.Unavailable, fresh.MakeDisk(t.Context(), plan, w.src, nil))
			u := d.Usage(t.Context(), w.pool)
			require.NotEmpty(t, u.Error)
			require.Equal(t, w.pool.Pool, u.Pool)

			resume()
			require.Eventually(t, func() bool { return d.MakeDisk(t.Context(), plan, w.src, nil) == nil }, time.Minute, 200*time.Millisecond)
			require.NoError(t, d.MakeDisk(t.Context(), before, w.src, nil), "what was there is there")
			require.NoError(t, d.RemoveDisk(t.Context(), plan))
			require.Empty(t, d.Usage(t.Context(), w.pool).Error)
		})
	}
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= calls+2 }, 30*time.Second, 100*time.Millisecond, "nothing is left of the calls that hung")
}

func TestRBDPoolFull(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "full")
	d := rbd.New(rbd.Config{Key: key, TempDir: t.TempDir(), WatchPatience: time.Second})
	w := newWorldOn(t, d, func(*testing.T) steps.PoolOnNode { return p }, func(path string) {
		program(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", path)
	})
	_, err := d.Prepare(t.Context(), w.pool)
	require.NoError(t, err)

	c.cli(t, "osd", "pool", "set-quota", p.Source.Name, "max_bytes", strconv.Itoa(512<<10))
	require.Eventually(t, func() bool { return d.Usage(t.Context(), w.pool).Capacity == 512<<10 }, 30*time.Second, 100*time.Millisecond)
	is(t, problem.NoCapacity, d.MakeDisk(t.Context(), w.plan(), w.src, nil))
	require.Empty(t, w.kinds(t), "it was not begun")

	// Full while it is written to: what the cluster says counts, not what it said before.
	c.cli(t, "osd", "pool", "set-quota", p.Source.Name, "max_bytes", "0")
	plan := w.plan()
	require.NoError(t, d.MakeDisk(t.Context(), plan, w.src, nil))
	c.cli(t, "osd", "pool", "set-quota", p.Source.Name, "max_bytes", strconv.Itoa(512<<10))
	require.Eventually(t, func() bool { return strings.Contains(c.cli(t, "osd", "pool", "ls", "detail"), "full_quota") }, 60*time.Second, 200*time.Millisecond)
	next := w.plan()
	var got error
	require.Eventually(t, func() bool { // the OSD learns of it a moment later
		got = d.MakeDisk(t.Context(), next, w.src, nil)
		return got != nil
	}, 60*time.Second, 200*time.Millisecond)
	is(t, problem.NoCapacity, got)
	require.NoError(t, d.RemoveDisk(t.Context(), next), "room can be made in a full pool")
	require.NoError(t, d.RemoveDisk(t.Context(), plan))
	require.NoError(t, d.EvictImage(t.Context(), w.cached()))
	c.cli(t, "osd", "pool", "set-quota", p.Source.Name, "max_bytes", "0")
	require.Eventually(t, func() bool { return d.MakeDisk(t.Context(), plan, w.src, nil) == nil }, 60*time.Second, 200*time.Millisecond)
}

// crash is what a process is told that is to die while it makes a disk.
type crash struct {
	At, Key, Image string
	Plan           steps.VMPlan
	Memory         *steps.MemoryFile // to be sealed and kept instead
	Memories       string            // directory
}

const crashEnv = "NEXTSTACK_TEST_CRASH"

func TestRBDCrashHelper(t *testing.T) {
	var c crash
	if os.Getenv(crashEnv) == "" {
		t.Skip("it is run by TestRBDCrashes")
	}
	require.NoError(t, json.Unmarshal([]byte(os.Getenv(crashEnv)), &c))
	b, err := os.ReadFile(c.Image)
	require.NoError(t, err)
	die := func(at string) {
		if at == c.At {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	d := rbd.New(rbd.Config{Key: func(context.Context, string) (string, error) { return c.Key, nil }, TempDir: filepath.Dir(c.Image), MemoryDir: c.Memories, Step: die})
	src := &server{images: map[string][]byte{c.Plan.Disk.Image: b}}
	switch {
	case c.Memory != nil:
		m, err := storage.MemoriesOf(d, c.Memory.Pool.Type)
		require.NoError(t, err)
		require.NoError(t, m.SealMemory(t.Context(), *c.Memory))
		_, err = m.KeepMemory(t.Context(), *c.Memory, nil)
		t.Fatal(err)
	default:
		t.Fatal(d.MakeDisk(t.Context(), c.Plan, src, nil))
	}
}

// happen runs a process that dies.
func (c crash) happen(t *testing.T) {
	t.Helper()
	env, err := json.Marshal(c)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0], "-test.run", "^TestRBDCrashHelper$", "-test.v")
	cmd.Env = append(os.Environ(), crashEnv+"="+string(env))
	out, err := cmd.CombinedOutput()
	require.ErrorContains(t, err, "killed", "%s", out)
}

// impatient has the cluster take those for dead after 5 s who do not answer, which is half a minute otherwise.
func (c *ceph) impatient(t *testing.T) {
	c.cli(t, "config", "set", "osd", "osd_client_watch_timeout", "5")
	t.Cleanup(func() { c.cli(t, "config", "rm", "osd", "osd_client_watch_timeout") })
}

func TestRBDCrashes(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "crash")
	c.impatient(t)
	for _, at := range []string{"written", "snapshot", "begun", "seed"} {
		t.Run(at, func(t *testing.T) {
			c.wipe(t, p.Source.Name)
			d := rbd.New(rbd.Config{Key: key, TempDir: t.TempDir()})
			w := newWorldOn(t, d, func(*testing.T) steps.PoolOnNode { return p }, empty)
			_, err := d.Prepare(t.Context(), w.pool)
			require.NoError(t, err)
			plan := w.plan()
			k, err := key(t.Context(), "")
			require.NoError(t, err)
			file := filepath.Join(t.TempDir(), "image")
			require.NoError(t, os.WriteFile(file, w.src.images[w.img], 0o600))
			crash{At: at, Key: k, Image: file, Plan: plan}.happen(t)

			begun := time.Now()
			require.NoError(t, d.MakeDisk(t.Context(), plan, w.src, nil))
			t.Logf("done %s after the death at %q", time.Since(begun).Round(time.Millisecond), at)
			require.Equal(t, map[string]int{"backing": 1, "volume": 1, "seed": 1}, w.kinds(t))
			io, err := c.conn.OpenIOContext(p.Source.Name)
			require.NoError(t, err)
			defer io.Destroy()
			img, err := cephrbd.OpenImageReadOnly(io, "image-"+w.sha, cephrbd.NoSnapshot)
			require.NoError(t, err)
			safe, err := img.GetSnapshot("base").IsProtected()
			require.NoError(t, err)
			require.True(t, safe)
			require.NoError(t, img.Close())
			left, err := filepath.Glob(filepath.Join(filepath.Dir(file), "nextstack-*"))
			require.NoError(t, err)
			rbd.New(rbd.Config{Key: key, TempDir: filepath.Dir(file)})
			now, err := filepath.Glob(filepath.Join(filepath.Dir(file), "nextstack-*"))
			require.NoError(t, err)
			require.Empty(t, now, "what the dead one has left in its directory (%v) is cleared away by the next", left)

			require.NoError(t, d.RemoveDisk(t.Context(), plan))
			require.NoError(t, d.EvictImage(t.Context(), w.cached()))
			require.NoError(t, d.Release(t.Context(), w.pool))
		})
	}
}
