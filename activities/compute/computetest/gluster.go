package computetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
)

// SharedMove moves a guest whose disk both nodes see, while it runs: nothing of it is copied.
func SharedMove(t *testing.T, r Rig) { moves(t, r, true) }

// OnGluster puts the files of the guests on the sandbox's GlusterFS, which each node mounts for itself, and this process, too. It
// skips the test if the sandbox has none.
func (n *Nodes) OnGluster(t *testing.T) {
	t.Helper()
	server := n.Gluster(t)
	dir, err := os.MkdirTemp("", "nst")
	require.NoError(t, err)
	mount := []string{
		"glusterfs", "--volfile-server=" + server, "--volfile-id=gv0", "--log-level=NONE", "--attribute-timeout=0", "--entry-timeout=0",
		"--xlator-option=*open-behind.pass-through=true", "--xlator-option=*md-cache.pass-through=true", dir,
	}
	// The nodes see the mounts of the host, and mount over them: first the host, or they would see two of them.
	run(t, mount[0], mount[1:]...)
	t.Cleanup(func() { run(t, "umount", dir); run(t, "rmdir", dir) })
	n.Dir = filepath.Join(dir, filepath.Base(dir))
	require.NoError(t, os.Mkdir(n.Dir, 0o755))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(n.Dir)) })
	for _, name := range n.Names {
		out, err := n.sandbox(append([]string{"exec", name}, mount...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		t.Cleanup(func() {
			out, err := n.sandbox("exec", name, "umount", dir).CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
}

// insideEnv is set for a test that runs on a node.
const insideEnv = "NEXTSTACK_TEST_INSIDE"

// Inside runs the test once more on the first node, as its agent would: what is mounted there is what its guests see. It reports
// whether this is that run; else it has ended, and the test as it did.
func (n *Nodes) Inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideEnv) == n.Names[0] {
		return true
	}
	cmd := n.sandbox("exec", n.Names[0], "env", insideEnv+"="+n.Names[0], os.Args[0], "-test.run", "^"+regexp.QuoteMeta(t.Name())+"$", "-test.v", "-test.count=1")
	out, err := cmd.CombinedOutput()
	t.Logf("on node %s:\n%s", n.Names[0], out)
	require.NoError(t, err)
	require.NotContains(t, string(out), "--- SKIP: "+t.Name())
	return false
}

// Gluster returns the address of the sandbox's GlusterFS, or skips the test. From inside a node it cannot be seen whether it is there.
func (n *Nodes) Gluster(t *testing.T) string {
	t.Helper()
	if out, err := n.sandbox("file-pid", "gv0").CombinedOutput(); err != nil && os.Getenv(insideEnv) == "" {
		t.Skipf("SKIPPED, NOT TESTED: guests with disks on GlusterFS. It does not run in the sandbox %s (install glusterfs-server; deploy/dev/sandbox.sh gluster): %s", n.dir, out)
	}
	env, err := os.ReadFile(filepath.Join(n.dir, "sandbox.env"))
	require.NoError(t, err)
	return strings.Fields(string(env))[1] + ".1"
}

// GlusterDirectory makes a directory of a volume of the sandbox's GlusterFS that is the test's own: it goes with it.
func (n *Nodes) GlusterDirectory(t *testing.T, volume string) api.PoolSource {
	t.Helper()
	server := n.Gluster(t)
	base := t.TempDir()
	run(t, "glusterfs", "--volfile-server="+server, "--volfile-id="+volume, "--log-level=NONE", base)
	t.Cleanup(func() { run(t, "umount", base) })
	dir, err := os.MkdirTemp(base, "nst")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return api.PoolSource{Hosts: []string{server}, Name: volume + "/" + filepath.Base(dir)}
}

func (n *Nodes) sandbox(args ...string) *exec.Cmd {
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.Command(filepath.Join(filepath.Dir(here), "../../../deploy/dev/sandbox.sh"), args...)
	cmd.Env = append(os.Environ(), "SANDBOX_DIR="+n.dir)
	return cmd
}
