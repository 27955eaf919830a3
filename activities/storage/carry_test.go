package storage_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// carry has to take what open opens.
func carry(t *testing.T, to *world, v steps.VolumePlan, open storage.OpenDisk) error {
	t.Helper()
	var x storage.Exchange
	o, err := x.Offer(t.Context(), v.Volume, open)
	require.NoError(t, err)
	b := storage.ByType{api.PoolDir: to.Pool}
	return b.TakeVolume(t.Context(), v, to.src, func(ctx context.Context) (io.ReadCloser, error) { return x.Fetch(ctx, o) }, nil)
}

func (w *world) giver(v steps.VolumePlan) storage.OpenDisk {
	return func(ctx context.Context) (storage.Disk, error) {
		return storage.ByType{api.PoolDir: w.Pool}.GiveVolume(ctx, v)
	}
}

// TestVolumesArriveAsTheyWere: empty ones that were written to, children of images, and raw ones.
func TestVolumesArriveAsTheyWere(t *testing.T) {
	for name, change := range map[string]func(w *world, v *steps.VolumePlan){
		"of its own": func(*world, *steps.VolumePlan) {},
		"layer":      func(_ *world, v *steps.VolumePlan) { v.Layer = api.NewID() },
		"raw":        func(_ *world, v *steps.VolumePlan) { v.Shareable = true },
		"image": func(w *world, v *steps.VolumePlan) {
			c := w.cached()
			v.Image = &c
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, _, _ := pair(t)
			v := steps.VolumePlan{Volume: api.NewID(), Name: "data", Pool: a.pool, Size: 64 * api.MiB}
			change(a, &v)
			require.NoError(t, a.CreateVolume(t.Context(), v, a.src, nil))
			where, err := a.LocateVolume(v)
			require.NoError(t, err)
			qemu(t, "qemu-io", "-f", where.Format, "-c", "write -P 7 0 3M", "-c", "write -P 9 60M 1M", where.File)
			require.NoError(t, carry(t, b, v, a.giver(v)))
			was, err := os.ReadFile(where.File)
			require.NoError(t, err)
			now, err := os.ReadFile(onB(where.File))
			require.NoError(t, err)
			require.Equal(t, was, now)

			// What there is of an earlier stay is replaced.
			qemu(t, "qemu-io", "-f", where.Format, "-c", "write -P 5 0 3M", where.File)
			require.NoError(t, carry(t, b, v, a.giver(v)))
			qemu(t, "qemu-io", "-f", where.Format, "-c", "read -P 5 0 3M", "-c", "read -P 9 60M 1M", onB(where.File))
			left, err := filepath.Glob(filepath.Join(filepath.Dir(onB(where.File)), "*.tmp"))
			require.NoError(t, err)
			require.Empty(t, left)
			require.FileExists(t, where.File, "whoever gives it removes it when it is told to")
		})
	}
}

// TestWhatIsNotTheVolumeIsNeitherGivenNorTaken: one that somebody writes to, has snapshots or is of another size, and files that lead
// elsewhere.
func TestWhatIsNotTheVolumeIsNeitherGivenNorTaken(t *testing.T) {
	a, b, _, _ := pair(t)
	fresh := func() (steps.VolumePlan, string) {
		v := steps.VolumePlan{Volume: api.NewID(), Name: "data", Pool: a.pool, Size: 64 * api.MiB}
		require.NoError(t, a.CreateVolume(t.Context(), v, a.src, nil))
		where, err := a.LocateVolume(v)
		require.NoError(t, err)
		return v, where.File
	}
	give := func(v steps.VolumePlan) error {
		d, err := a.giver(v)(t.Context())
		if err == nil {
			require.NoError(t, d.Close())
		}
		return err
	}
	v, file := fresh()
	guest := exec.Command("qemu-io", "-f", "qcow2", file)
	in, err := guest.StdinPipe()
	require.NoError(t, err)
	out, err := guest.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, guest.Start())
	_, err = io.WriteString(in, "write -P 1 0 1M\n")
	require.NoError(t, err)
	_, err = out.Read(make([]byte, 64)) // it has the lock
	require.NoError(t, err)
	is(t, problem.InUse, give(v))
	require.NoError(t, in.Close())
	_, _ = io.Copy(io.Discard, out)
	require.NoError(t, guest.Wait())
	require.NoError(t, give(v))

	gone := v
	gone.Volume = api.NewID()
	is(t, problem.NotFound, give(gone))
	larger := v
	larger.Size *= 2
	is(t, problem.Conflict, give(larger))
	is(t, problem.Conflict, carry(t, b, larger, a.giver(v)))
	require.NoFileExists(t, onB(file))

	top := v
	top.Layer = api.NewID()
	require.NoError(t, a.AddSnapshot(t.Context(), steps.SnapshotPlan{Snapshot: api.NewID(), Volume: v, Layer: top.Layer}))
	err = give(top)
	is(t, problem.Conflict, err)
	require.ErrorContains(t, err, "snapshots")

	hostile := filepath.Join(t.TempDir(), "hostile")
	qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/passwd", hostile, "64M")
	is(t, problem.Conflict, carry(t, b, v, func(context.Context) (storage.Disk, error) { return storage.OpenFile(hostile) }))
	require.NoFileExists(t, onB(file))

	other := storage.ByType{api.PoolRBD: plainPool{}}
	v.Pool.Type = api.PoolRBD
	_, err = other.GiveVolume(t.Context(), v)
	is(t, problem.Unsupported, err)
	is(t, problem.Unsupported, other.TakeVolume(t.Context(), v, a.src, nil, nil))
}

// GiveVolume implements storage.Carrier.
func (l local) GiveVolume(ctx context.Context, v steps.VolumePlan) (storage.Disk, error) {
	defer l.show()()
	return l.Pool.(storage.Carrier).GiveVolume(ctx, v)
}

// TakeVolume implements storage.Carrier.
func (l local) TakeVolume(ctx context.Context, v steps.VolumePlan, src storage.Source, fetch func(context.Context) (io.ReadCloser, error), tell func(api.Progress)) error {
	defer l.show()()
	return l.Pool.(storage.Carrier).TakeVolume(ctx, v, src, fetch, tell)
}
