package storage_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// guest is what a hand is, too, that can do what a guest's hypervisor does with a volume.
type guest interface {
	// open has a volume open for writing, until closed is called: write writes to a slot of it, and grow makes it larger.
	open(t *testing.T, v steps.VolumePlan) (write func(at int, b byte), grow func(size int64), closed func())
}

// counter is what a hand is, too, if what volumes take can be counted. It cannot of what is in memory, whose hand is that of a twin: what
// a twin says was held against the driver that it stands for.
type counter interface {
	// uses returns how much space a volume takes, without what it is made on.
	uses(t *testing.T, v steps.VolumePlan) int64
	// discard says that the first slots of a volume are not needed.
	discard(t *testing.T, v steps.VolumePlan, slots int)
}

// open implements guest: qemu-io has it open as QEMU does.
func (files) open(t *testing.T, v steps.VolumePlan) (write func(int, byte), grow func(int64), closed func()) {
	t.Helper()
	s, err := (&storage.Dir{}).LocateVolume(v)
	require.NoError(t, err)
	return qemuIO(t, exec.Command("qemu-io", opening(s.File, s.Format)...))
}

// opening is what qemu-io opens a volume with. What is raw may be open elsewhere.
func opening(file, format string) []string {
	locking := "on"
	if format == api.FormatRaw {
		locking = "off" // as when a hypervisor is told that others write as well
	}
	return []string{"--image-opts", fmt.Sprintf("driver=%s,discard=unmap,file.driver=file,file.locking=%s,file.filename=%s", format, locking, file)}
}

// open implements guest.
func (m memory) open(t *testing.T, v steps.VolumePlan) (write func(int, byte), grow func(int64), closed func()) {
	t.Helper()
	s, err := m.LocateVolume(v)
	require.NoError(t, err)
	return func(at int, b byte) { m.write(t, v, at, b) }, func(size int64) { require.NoError(t, m.GrowLayer(s, size)) }, func() {}
}

// qemuIO starts qemu-io, and gives it one command after the other.
func qemuIO(t *testing.T, cmd *exec.Cmd) (write func(int, byte), grow func(int64), closed func()) {
	t.Helper()
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer w.Close()
	cmd.Stdout, cmd.Stderr = w, w
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = r.Close() })
	said, n := "", 0
	do := func(command string) { // and waits until it is done, which is when the next one is asked for
		_, err := io.WriteString(in, command+"\n")
		require.NoError(t, err)
		n++
		for b := make([]byte, 4096); strings.Count(said, "qemu-io> ") <= n; {
			n, err := r.Read(b)
			require.NoError(t, err, said)
			said += string(b[:n])
		}
		require.NotContains(t, said, "failed")
		require.NotContains(t, said, "rror")
	}
	return func(at int, b byte) { do(fmt.Sprintf("write -q -P %d %d %d", b, at*slot, slot)) },
		func(size int64) { do(fmt.Sprintf("truncate %d", size)) },
		func() {
			require.NoError(t, in.Close())
			require.NoError(t, cmd.Wait())
		}
}

// uses implements counter.
func (files) uses(t *testing.T, v steps.VolumePlan) int64 {
	t.Helper()
	s, err := (&storage.Dir{}).LocateVolume(v)
	require.NoError(t, err)
	return blocks(t, program(t, "stat", "-c", "%b", s.File))
}

func blocks(t *testing.T, said string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(said), 10, 64)
	require.NoError(t, err)
	return n * 512
}

// discard implements counter.
func (files) discard(t *testing.T, v steps.VolumePlan, slots int) {
	t.Helper()
	s, err := (&storage.Dir{}).LocateVolume(v)
	require.NoError(t, err)
	program(t, "qemu-io", append([]string{"-c", fmt.Sprintf("discard 0 %d", slots*slot), "-c", "flush"}, opening(s.File, s.Format)...)...)
}
