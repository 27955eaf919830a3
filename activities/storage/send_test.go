package storage_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// receiver is a server that takes files.
type receiver struct {
	*server
	got map[string][]byte
}

func (r *receiver) TakeImage(_ context.Context, image string, file io.ReadSeeker, size int64, progress func(int64)) (string, error) {
	b, err := io.ReadAll(file)
	if err != nil || int64(len(b)) != size {
		return "", problem.New(problem.Internal, "%d of %d bytes: %v", len(b), size, err)
	}
	progress(size)
	r.got[image] = b
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// TestAVolumeIsSent: what a volume shows, whatever it is made on, is in the file that the server gets.
func TestAVolumeIsSent(t *testing.T) {
	w := newWorld(t, storage.NewDir(nil))
	_, err := w.Prepare(t.Context(), w.pool)
	require.NoError(t, err)
	node, to := byName{}, &receiver{w.src, map[string][]byte{}}
	storage.RegisterNode(node, &activities.Host{Log: slog.New(slog.DiscardHandler)}, w.Pool, to, &storage.Exchange{})

	v := steps.VolumePlan{Volume: api.NewID(), Name: "data", Pool: w.pool, Size: 4 * api.MiB}
	_, err = run(t, node, steps.MakeVolume, v)
	require.NoError(t, err)
	file := filepath.Join(w.pool.Path, "volumes", v.Volume+".qcow2")
	out, err := exec.Command("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 64k", file).CombinedOutput()
	require.NoError(t, err, "%s", out)

	image := api.NewID()
	c := steps.VolumePlan{Volume: image, Name: "image", Pool: w.pool, Size: v.Size, From: &steps.VolumeFrom{Volume: v.Volume}}
	_, err = run(t, node, steps.SendVolume, steps.VolumeSend{Volume: c, Image: image})
	is(t, problem.NotFound, err)
	_, err = run(t, node, steps.MakeVolume, c)
	require.NoError(t, err)
	sent, err := run(t, node, steps.SendVolume, steps.VolumeSend{Volume: c, Image: image})
	require.NoError(t, err)
	require.EqualValues(t, len(to.got[image]), sent.Size)
	_, err = run(t, node, steps.RemoveVolume, c)
	require.NoError(t, err)

	got := filepath.Join(t.TempDir(), "got")
	require.NoError(t, os.WriteFile(got, to.got[image], 0o600))
	raw := filepath.Join(t.TempDir(), "raw")
	out, err = exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", got, raw).CombinedOutput()
	require.NoError(t, err, "%s", out)
	b, err := os.ReadFile(raw)
	require.NoError(t, err)
	want := make([]byte, v.Size)
	copy(want[api.MiB:], bytes.Repeat([]byte{0x5a}, 64<<10))
	require.True(t, bytes.Equal(want, b))
	require.Equal(t, map[string]int{storage.KindVolume: 1}, w.kinds(t))

	// A volume that is made on something is not sent: it would be of no use.
	child := steps.VolumePlan{Volume: api.NewID(), Name: "child", Pool: w.pool, Size: 4 * api.MiB, Image: &steps.CachedImage{Image: w.img, SHA256: w.sha, Pool: w.pool.Pool, PoolPath: w.pool.Path}}
	_, err = run(t, node, steps.MakeVolume, child)
	require.NoError(t, err)
	_, err = run(t, node, steps.SendVolume, steps.VolumeSend{Volume: child, Image: image})
	require.Error(t, err)
}
