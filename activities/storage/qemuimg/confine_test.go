package qemuimg

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestConfinedProgramsReachNothingElse: were an image to make qemu-img open another file, it could not.
func TestConfinedProgramsReachNothingElse(t *testing.T) {
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION); errno != 0 {
		t.Skip("SKIPPED, NOT TESTED: confinement. This kernel has no Landlock")
	}
	dir := t.TempDir()
	mine, other := filepath.Join(dir, "mine"), filepath.Join(dir, "other")
	for _, p := range []string{mine, other} {
		require.NoError(t, os.WriteFile(p, []byte("text"), 0o644))
	}
	run := func(files access, program string, args ...string) (string, error) {
		cmd := exec.Command(program, args...)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		err := confine(cmd, files)
		return out.String(), err
	}
	out, err := run(access{read: []string{mine}}, "cat", mine)
	require.NoError(t, err)
	require.Equal(t, "text", out)
	for what, args := range map[string][]string{
		"read another": {"cat", other}, "list": {"ls", dir}, "write what is read": {"truncate", "-s", "0", mine},
		"make": {"touch", filepath.Join(dir, "new")}, "remove": {"rm", mine}, "secrets": {"cat", "/etc/passwd"},
	} {
		out, err := run(access{read: []string{mine}}, args[0], args[1:]...)
		require.Error(t, err, what)
		require.Contains(t, out, "denied", what)
	}
	_, err = run(access{write: []string{mine}}, "truncate", "-s", "1", mine)
	require.NoError(t, err)
	require.FileExists(t, other)

	out, err = run(access{read: []string{"/proc"}}, "cat", "/proc/self/status", "/proc/self/net/dev")
	require.NoError(t, err)
	require.Contains(t, out, "NoNewPrivs:\t1")
	require.Contains(t, out, "CapEff:\t0000000000000000")
	if os.Geteuid() == 0 && separable() {
		require.NotContains(t, out, "eth", "there is no network")
	}
	_, err = os.ReadFile(other)
	require.NoError(t, err, "this process has given nothing up")
}
