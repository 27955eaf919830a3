package computetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// SharedMove moves a guest whose disk both nodes see, while it runs: nothing of it is copied.
func SharedMove(t *testing.T, r Rig) { moves(t, r, true) }

// OnGluster puts the files of the guests on the sandbox's GlusterFS, which each node mounts for itself, and this process, too. It
// skips the test if the sandbox has none.
func (n *Nodes) OnGluster(t *testing.T) {
	t.Helper()
	env, err := os.ReadFile(filepath.Join(n.dir, "sandbox.env"))
	require.NoError(t, err)
	if out, err := n.sandbox("file-pid", "gv0").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: guests with disks on GlusterFS. It does not run in the sandbox %s: %s", n.dir, out)
	}
	dir, err := os.MkdirTemp("", "nst")
	require.NoError(t, err)
	mount := []string{
		"glusterfs", "--volfile-server=" + strings.Fields(string(env))[1] + ".1", "--volfile-id=gv0", "--log-level=NONE", "--attribute-timeout=0", "--entry-timeout=0",
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

func (n *Nodes) sandbox(args ...string) *exec.Cmd {
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.Command(filepath.Join(filepath.Dir(here), "../../../deploy/dev/sandbox.sh"), args...)
	cmd.Env = append(os.Environ(), "SANDBOX_DIR="+n.dir)
	return cmd
}
