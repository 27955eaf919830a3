package qcow2

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func headerOf(t *testing.T, path string) *Header {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	h, err := Read(f, info.Size())
	require.NoError(t, err)
	return h
}

func TestWhatIsMadeIsSound(t *testing.T) {
	for _, size := range []int64{api.MiB, mappedByL1, mappedByL1 + api.MiB, 5 * api.TiB, api.MaxDisk} {
		path := filepath.Join(t.TempDir(), "it")
		require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600), "what is there is overwritten")
		require.NoError(t, Create(path, size, ""))
		require.Equal(t, Header{Version: 3, VirtualSize: size, ClusterSize: cluster}, *headerOf(t, path))
		below := "/" + strings.Repeat("b", maxBacking-1)
		require.NoError(t, Create(path, size, below))
		require.Equal(t, Header{Version: 3, VirtualSize: size, ClusterSize: cluster, BackingFile: below, BackingFormat: "qcow2"}, *headerOf(t, path))
	}
}

func TestWhatCannotBeMade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "it")
	require.Equal(t, problem.Invalid, problem.KindOf(Create(path, 0, "")))
	require.Equal(t, problem.Invalid, problem.KindOf(Create(path, api.MaxDisk+1, "")))
	require.Equal(t, problem.Invalid, problem.KindOf(Create(path, api.MiB, strings.Repeat("b", maxBacking+1))))
	require.NoFileExists(t, path)
	require.Error(t, Create(filepath.Join(path, "deeper"), api.MiB, ""))
	require.NoError(t, os.Symlink(filepath.Join(t.TempDir(), "elsewhere"), path))
	require.Error(t, Create(path, api.MiB, ""), "a link leads out of the pool")
}

// TestQEMUTakesWhatIsMade: QEMU finds no fault in it, sees what is below, and can write to its end and make it larger.
func TestQEMUTakesWhatIsMade(t *testing.T) {
	for _, tool := range []string{"qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED, NOT TESTED: what QEMU makes of our images. Install qemu-utils, for %s", tool)
		}
	}
	run := func(tool string, args ...string) []byte {
		t.Helper()
		out, err := exec.Command(tool, args...).Output()
		require.NoError(t, err, "%s %v: %s", tool, args, out)
		require.NotContains(t, string(out), "failed")
		return out
	}
	io := func(path, what string) { run("qemu-io", "-f", "qcow2", "-c", what, path) }
	for _, size := range []int64{api.MiB, 5 * api.TiB, api.MaxDisk} {
		dir := t.TempDir()
		below, above := filepath.Join(dir, "below"), filepath.Join(dir, "above")
		require.NoError(t, Create(below, api.MiB, ""))
		io(below, "write -P 7 64k 64k")
		require.NoError(t, Create(above, size, below))
		var info struct {
			Size    int64  `json:"virtual-size"`
			Backing string `json:"full-backing-filename"`
			Format  string `json:"backing-filename-format"`
		}
		require.NoError(t, json.Unmarshal(run("qemu-img", "info", "--output=json", "-f", "qcow2", above), &info))
		require.Equal(t, size, info.Size)
		require.Equal(t, below, info.Backing)
		require.Equal(t, "qcow2", info.Format)
		io(above, "read -P 7 64k 64k")
		io(above, "read -P 0 0 64k")
		run("qemu-img", "check", "-f", "qcow2", above) // before anything was written; it fails for leaks as well
		io(above, "write -P 9 "+strconv.FormatInt(size-64*1024, 10)+" 64k")
		io(above, "read -P 9 "+strconv.FormatInt(size-64*1024, 10)+" 64k")
		if size < api.MaxDisk {
			run("qemu-img", "resize", "-q", "-f", "qcow2", above, strconv.FormatInt(size+api.GiB, 10))
		}
		run("qemu-img", "check", "-f", "qcow2", above)
		require.Equal(t, api.MiB, headerOf(t, below).VirtualSize)
	}
}
