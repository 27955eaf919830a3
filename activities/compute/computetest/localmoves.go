package computetest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// markRoot makes a guest write a number to a sector of its root disk that nothing else is in.
const (
	markedSector = 200000
	markRoot     = "printf '%0512d' 4711 | dd of=/dev/vda bs=512 seek=200000 conv=notrunc,fsync 2>/dev/null && say vda marked\n"
)

// LocalMove moves a guest with a root disk and a data disk that only its node sees, while it runs, and compares what is in both
// afterwards. The guest writes to its data disk all the time. If alone, the root disk is made on no image.
func (n *Nodes) LocalMove(t *testing.T, r Rig, alone bool) {
	vm, disk := api.NewID(), dataDisk("vdc")
	disk.Pool.Shared = false
	plan := steps.VMPlan{
		VM: vm, Name: "mover", Project: "default", VCPUs: 1, Memory: 160 * api.MiB, Data: []steps.DataDisk{disk},
		Disk: steps.DiskPlan{Volume: api.NewID(), Size: 128 * api.MiB, Image: api.NewID()},
	}
	console := func(i int) []byte {
		b, _ := os.ReadFile(domain.ConsoleLog(filepath.Join(n.Dir, "consoles-"+n.Names[i]), vm))
		return b
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("consoles:\n%s\n%s", console(0), console(1))
		}
		for _, d := range []compute.Driver{r.A, r.B} {
			require.NoError(t, d.Remove(context.Background(), vm))
		}
		require.Zero(t, Processes(t, vm))
	})
	files := func(side string) compute.DomainFiles {
		root := compute.QCOW2(n.disk(t, plan.Disk.Volume+side))
		if alone {
			root = n.empty(t, 128*api.MiB)
		}
		return compute.DomainFiles{Disk: root, Data: []compute.DiskSource{n.empty(t, 64*api.MiB)}}
	}
	at, to := files("-a"), files("-b")
	if alone {
		plan.Disk.Image = ""
		require.NoError(t, qemuimg.ConvertTo(t.Context(), n.image, api.FormatQCOW2, at.Disk.File, api.FormatQCOW2, 128*api.MiB, nil))
		require.NoError(t, qemuimg.Resize(t.Context(), at.Disk.File, api.FormatQCOW2, 128*api.MiB))
	}
	at.Seed = compute.Raw(n.seed(t, vm, watchDisks+markRoot))
	to.Seed = at.Seed
	require.NoError(t, r.A.Create(t.Context(), plan, at))
	told := func() []wrote { return append(wrotes(console(0), "vdc"), wrotes(console(1), "vdc")...) }
	until := func(what string, ok func() bool) {
		t.Helper()
		require.Eventually(t, ok, Patience, watchEvery, what)
	}
	until("the guest does not write to both disks", func() bool { return len(told()) > 1 && bytes.Contains(console(0), []byte("vda marked")) })

	leaving, err := r.A.Describe(t.Context(), vm)
	require.NoError(t, err)
	req := steps.IncomingRequest{Plan: plan, Leaving: leaving}
	_, err = r.B.CheckIncoming(t.Context(), req, to)
	require.Equal(t, problem.Conflict, problem.KindOf(err), "%v", err)
	req.Copy = true
	in, err := r.B.CheckIncoming(t.Context(), req, to)
	require.NoError(t, err)
	m := steps.MoveDomain{Plan: plan, Incoming: in, Copy: true}
	if alone { // what is below the layer that is written to would not be copied
		top := compute.QCOW2(filepath.Join(n.Dir, api.NewID()+".qcow2"))
		require.NoError(t, qcow2.Create(top.File, 64*api.MiB, at.Data[0].File))
		_, err = r.A.SwitchDisk(t.Context(), vm, disk.Volume, compute.LayerSwitch{To: top})
		require.NoError(t, err)
		_, err = r.A.Migrate(t.Context(), m, nil)
		require.Equal(t, problem.Conflict, problem.KindOf(err), "%v", err)
		require.ErrorContains(t, err, "snapshots")
		r.AtSource(t, vm)
		_, err = r.A.MergeDisk(t.Context(), vm, disk.Volume, compute.Merge{Top: top, Below: at.Data[0]}, nil)
		require.NoError(t, err)
	}
	moved, err := r.A.Migrate(t.Context(), m, nil)
	require.NoError(t, err)
	t.Logf("moved: %+v", moved)
	r.AtTarget(t, vm)
	until("the guest does not write on", func() bool { return len(wrotes(console(1), "vdc")) > 1 })
	_, err = r.B.Stop(t.Context(), vm, true, 0, nil)
	require.NoError(t, err)
	intact(t, "vdc", to.Data[0], told())
	raw := filepath.Join(t.TempDir(), "root")
	require.NoError(t, qemuimg.Check(t.Context(), to.Disk.File, 128*api.MiB))
	require.NoError(t, qemuimg.ConvertTo(t.Context(), to.Disk.File, api.FormatQCOW2, raw, api.FormatRaw, 128*api.MiB, nil))
	b, err := os.ReadFile(raw)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("%0512d", 4711), string(b[markedSector*512:(markedSector+1)*512]))
	before := filepath.Join(t.TempDir(), "image")
	require.NoError(t, qemuimg.ConvertTo(t.Context(), n.image, api.FormatQCOW2, before, api.FormatRaw, 128*api.MiB, nil))
	image, err := os.ReadFile(before)
	require.NoError(t, err)
	require.True(t, bytes.Equal(image[:api.MiB], b[:api.MiB]), "and all that was in it before")
	_, err = r.B.Start(t.Context(), vm)
	require.NoError(t, err, "it is defined there with both disks")
	r.AtTarget(t, vm)
}
