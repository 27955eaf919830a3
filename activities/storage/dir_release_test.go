package storage_test

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// tree lists what is below a directory.
func tree(t *testing.T, dir string) (out []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir {
			out = append(out, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	}))
	return out
}

// TestAMistakeInThePathOfAPoolIsTakenBack: what cannot be prepared is released at once, and is as it was.
func TestAMistakeInThePathOfAPoolIsTakenBack(t *testing.T) {
	base := t.TempDir()
	at := func(elem ...string) string { return filepath.Join(append([]string{base}, elem...)...) }
	require.NoError(t, os.WriteFile(at("file"), []byte("precious"), 0o600))
	require.NoError(t, os.Symlink(base, at("link")))
	require.NoError(t, os.Symlink(at("nowhere"), at("dangling")))
	require.NoError(t, os.Symlink(at("loop"), at("loop")))
	for _, dir := range []string{"odd", "none", "damaged", "marked", "linked", "taken/volumes/x"} {
		require.NoError(t, os.MkdirAll(at(dir), 0o700))
	}
	require.NoError(t, os.Symlink("/", at("odd", "volumes")))
	require.NoError(t, os.WriteFile(at("none", "seeds"), nil, 0o600))
	require.NoError(t, os.WriteFile(at("damaged", ".nextstack-pool"), []byte("not JSON"), 0o600))
	require.NoError(t, os.Mkdir(at("marked", ".nextstack-pool"), 0o700))
	require.NoError(t, os.Symlink("/dev/null", at("linked", ".nextstack-pool")))
	before := tree(t, base)
	d := storage.NewDir(nil)
	for _, path := range []string{
		"/dev/null", "/etc/passwd/x", "/etc/passwd/x/y", "/proc/sys/nextstack/pool", at("file"), at("file", "x"), at("link"), at("dangling"), at("dangling", "x"), at("loop", "x"),
		at(strings.Repeat("a", 300)), at("new", strings.Repeat("a", 300)), at("odd"), at("none"), at("damaged"), at("marked"), at("linked"), at("taken"),
	} {
		p := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: path, Agent: api.NewID()}
		_, err := d.Prepare(t.Context(), p)
		require.Contains(t, []problem.Kind{problem.Invalid, problem.Conflict}, problem.KindOf(err), "trying again does not help: %s: %v", path, err)
		for range 2 {
			require.NoError(t, d.Release(t.Context(), p), path)
		}
		require.NotEmpty(t, d.Usage(t.Context(), p).Error)
		require.Equal(t, before, tree(t, base), path)
	}
	p := steps.PoolOnNode{Pool: "x", Type: api.PoolDir, Path: at("new")}
	is(t, problem.Invalid, d.Release(t.Context(), p))
}

// TestAPoolTakesItsDirectoriesWithIt, but only those that it has made, and that nobody else uses by now.
func TestAPoolTakesItsDirectoriesWithIt(t *testing.T) {
	base := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(base, "mine"), 0o700))
	d := storage.NewDir(nil)
	pool := func(path string) steps.PoolOnNode {
		p := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: filepath.Join(base, path), Agent: api.NewID()}
		for range 2 {
			_, err := d.Prepare(t.Context(), p)
			require.NoError(t, err)
		}
		return p
	}
	release := func(p steps.PoolOnNode) {
		t.Helper()
		for range 2 {
			require.NoError(t, d.Release(t.Context(), p))
		}
	}
	release(pool("mine"))
	require.Equal(t, []string{"mine"}, tree(t, base))
	release(pool("mine/a/b/c"))
	require.Equal(t, []string{"mine"}, tree(t, base))
	first, second := pool("new/a/b"), pool("new/c")
	release(first)
	require.NoDirExists(t, filepath.Join(base, "new/a"))
	require.Empty(t, d.Usage(t.Context(), second).Error)
	release(second)
	require.Equal(t, []string{"mine", "new"}, tree(t, base), "which was not made by the second")
	p := pool("mine/x/y")
	require.NoError(t, os.WriteFile(filepath.Join(base, "mine/x/notes"), nil, 0o600))
	release(p)
	require.Equal(t, []string{"mine", "mine/x", "mine/x/notes", "new"}, tree(t, base))
}

// TestAPoolInsideAnotherIsRefused by what is there, whatever the two are called.
func TestAPoolInsideAnotherIsRefused(t *testing.T) {
	w := preparedDir(t)
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(w.pool.Path, link))
	before := tree(t, w.pool.Path)
	for _, path := range []string{
		w.pool.Path + "/backing", w.pool.Path + "/volumes", w.pool.Path + "/volumes/a/b", w.pool.Path + "/seeds/x", w.pool.Path + "/checkpoints", w.pool.Path + "/other",
		link + "/backing", link + "/volumes/x",
	} {
		p := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: path, Agent: api.NewID()}
		_, err := w.Prepare(t.Context(), p)
		is(t, problem.Conflict, err)
		require.ErrorContains(t, err, "inside "+w.pool.Path)
		require.NoError(t, w.Release(t.Context(), p))
		require.Equal(t, before, tree(t, w.pool.Path))
	}
	for _, dir := range []string{"volumes", "backing", "seeds", "checkpoints"} {
		base := t.TempDir()
		inner := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: filepath.Join(base, dir), Agent: api.NewID()}
		_, err := w.Prepare(t.Context(), inner)
		require.NoError(t, err)
		outer := steps.PoolOnNode{Pool: api.NewID(), Type: api.PoolDir, Path: base, Agent: api.NewID()}
		_, err = w.Prepare(t.Context(), outer)
		is(t, problem.Conflict, err)
		require.ErrorContains(t, err, dir+" in it is a pool")
		require.NoError(t, w.Release(t.Context(), outer))
		require.Empty(t, w.Usage(t.Context(), inner).Error)
		require.NoError(t, w.Release(t.Context(), inner))
	}
}

// TestAReleaseTakesOnlyWhatThePoolHasMade, even where somebody has a pool inside, as older versions allowed, or keeps notes.
func TestAReleaseTakesOnlyWhatThePoolHasMade(t *testing.T) {
	w := preparedDir(t)
	p := w.plan()
	require.NoError(t, w.MakeDisk(t.Context(), p, w.src, nil))
	require.NoError(t, w.RemoveDisk(t.Context(), p))
	at := func(name string) string { return filepath.Join(w.pool.Path, name) }
	inner := api.NewID()
	for name, content := range map[string]string{
		"backing/.nextstack-pool":                       fmt.Sprintf(`{"pool":%q,"type":"dir"}`, inner),
		"backing/volumes/" + api.NewID() + ".qcow2":     "precious",
		"backing/backing/" + w.sha:                      "precious",
		"backing/" + w.sha[1:]:                          "no checksum",
		"seeds/notes.txt":                               "precious",
		"seeds/" + api.NewID() + "/x":                   "precious",
		"backing/" + w.sha + "." + api.NewID() + ".tmp": "ours, half-made",
		"backing/" + strings.Repeat("0", 64) + ".tmp":   "likewise",
		"backing/.probe-" + api.NewID() + ".tmp":        "likewise",
		"seeds/" + api.NewID() + ".iso":                 "ours",
		"seeds/" + api.NewID() + ".iso.tmp":             "ours, half-made",
		"seeds/" + api.NewID() + ".work/user-data":      "likewise",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(at(name)), 0o700))
		require.NoError(t, os.WriteFile(at(name), []byte(content), 0o600))
	}
	require.NoError(t, os.Symlink("/etc/passwd", at("backing/"+strings.Repeat("1", 64))))
	for range 2 {
		require.NoError(t, w.Release(t.Context(), w.pool))
	}
	require.NotEmpty(t, w.Usage(t.Context(), w.pool).Error)
	left := tree(t, w.pool.Path)
	require.Len(t, left, 12, "%v", left)
	for _, name := range left {
		require.NotContains(t, name, ".probe")
		require.NotContains(t, name, ".iso")
		require.NotContains(t, name, ".tmp")
		require.NotContains(t, name, ".work")
	}
	require.NoFileExists(t, at("backing/"+w.sha))
	require.FileExists(t, at("backing/backing/"+w.sha))
	there := w.pool
	there.Pool, there.Path = inner, at("backing")
	require.Empty(t, w.Usage(t.Context(), there).Error)
	_, err := w.Prepare(t.Context(), w.pool)
	is(t, problem.Conflict, err)
}

// TestADirectoryThatMayNotBeRead: an export of NFS that takes root for nobody is one. What was to become a pool and could not be
// read has nothing to be released, and its undo does not wait for somebody to open it; what was one is not called removed.
func TestADirectoryThatMayNotBeRead(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED, NOT TESTED: a directory that may not be read. Run as root, which can be somebody else")
	}
	w := newWorld(t, storage.NewDir(nil))
	require.NoError(t, os.MkdirAll(w.pool.Path, 0o700))
	for dir := filepath.Dir(w.pool.Path); dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o711)) //nolint:gosec // nobody passes through
	}
	reg := byName{}
	storage.RegisterNode(reg, &activities.Host{Log: slog.New(slog.DiscardHandler)}, w.Pool, w.src, nil)
	release := reg[steps.ReleasePool.Name].(func(context.Context, steps.Envelope[steps.PoolOnNode]) (steps.Nothing, error))
	seq := 0
	undo := func(is bool) error {
		seq++
		token := steps.Token{Operation: "op", Step: "prepare", Epoch: 1, Seq: seq, Undo: is}
		_, err := release(t.Context(), steps.Envelope[steps.PoolOnNode]{Token: token, In: w.pool})
		return steps.FromActivity("prepare", "", err)
	}
	asNobody(func() {
		_, err := w.Prepare(t.Context(), w.pool)
		assert.Equal(t, problem.Invalid, problem.KindOf(err), "%v: trying again does not help", err)
		assert.ErrorContains(t, err, "no_root_squash")
		assert.NoError(t, undo(true))
		assert.Equal(t, problem.Unavailable, problem.KindOf(undo(false)))
	})
	require.NoFileExists(t, filepath.Join(w.pool.Path, ".nextstack-pool"))
	_, err := w.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	require.NoError(t, undo(true))
}

// asNobody runs f on a thread to which the file system gives no more rights than to nobody; the thread ends with it.
func asNobody(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSGID, 65534, 0, 0)
		_, _, _ = unix.RawSyscall(unix.SYS_SETFSUID, 65534, 0, 0)
		f()
	}()
	<-done
}
