//go:build unix

package command

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAFileIsSentByOneGnextAtATime(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(file, []byte("disk"), 0o400))
	is, leave := alone(file)
	require.True(t, is)
	again, leaveAgain := alone(file)
	require.False(t, again)
	leaveAgain()
	again, leaveAgain = alone(file)
	require.False(t, again, "it is the first who holds it")
	leaveAgain()
	leave()
	is, leave = alone(file)
	require.True(t, is)
	leave()

	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for _, name := range []string{"-", pipe, filepath.Dir(file), file + ".none"} {
		is, leave := alone(name)
		require.True(t, is, name)
		leave()
	}
}
