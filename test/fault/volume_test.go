package fault

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/steps"
)

// TestTheSuiteBitesOnVolumes takes the undo of steps on volumes away, one at a time.
func TestTheSuiteBitesOnVolumes(t *testing.T) {
	ctx := t.Context()
	base, err := Base(ctx)
	require.NoError(t, err)
	attaching, taking, going := workflows.VolumeAttach, workflows.SnapshotCreate, workflows.SnapshotRevert
	bites := func(kind string, take func(w *World)) {
		t.Helper()
		take(base)
		s := Scenarios()[kind][0]
		s.First = true
		report, err := s.Run(ctx, base)
		require.NoError(t, err)
		require.Equal(t, 1, report.Leaks, "%s: %v", kind, report.Details)
	}
	bites(api.OpVolumeAttach, func(w *World) {
		attaching.Steps = append(attaching.Steps[:0:0], attaching.Steps...)
		attaching.Steps[1].Undo = nil
		w.Tables[attaching.Kind] = attaching
	})
	w, err := Base(ctx)
	require.NoError(t, err)
	base = w
	bites(api.OpSnapshotCreate, func(w *World) {
		taking.Steps = append(taking.Steps[:0:0], taking.Steps...)
		taking.Steps[1].Undo = nil
		w.Tables[taking.Kind] = taking
	})
	w, err = Base(ctx)
	require.NoError(t, err)
	base = w
	bites(api.OpSnapshotRevert, func(w *World) { // what was written is removed before the VM runs again
		s := append(going.Steps[:0:0], going.Steps...)
		s[4], s[5] = s[5], s[4]
		s[4].Commit = false
		going.Steps = s
		w.Tables[going.Kind] = going
	})
}

// TestAnAuditKnowsTheLayersOfVolumes loses one, and leaves one that is nobody's, in each kind of pool.
func TestAnAuditKnowsTheLayersOfVolumes(t *testing.T) {
	ctx := t.Context()
	base, err := Base(ctx)
	require.NoError(t, err)
	for _, pool := range []string{"vms", "shared"} {
		t.Run(pool, func(t *testing.T) {
			w, err := base.Clone(ctx, nil)
			require.NoError(t, err)
			for _, accept := range []Accept{createVM, makeVolume("data", pool, nil), attach("data", "web1"), snap("s1", "data"), snap("s2", "data")} {
				_, err := w.Do(ctx, accept)
				require.NoError(t, err)
			}
			findings, err := w.Audit(ctx)
			require.NoError(t, err)
			require.Empty(t, findings)
			clean, err := w.Dump(ctx)
			require.NoError(t, err)

			v, err := store.Find[api.Volume](ctx, w.KV, w.User, api.DefaultProject, "data")
			require.NoError(t, err)
			node, plan, err := w.find(ctx, v)
			require.NoError(t, err)
			plan.Size = v.Spec.Size
			stray := api.NewID()
			require.NoError(t, node.disks.AddSnapshot(ctx, steps.SnapshotPlan{Volume: plan, Layer: stray}))
			findings, err = w.Audit(ctx)
			require.NoError(t, err)
			require.Len(t, findings, 1)
			require.True(t, findings[0].Extra)
			require.Equal(t, stray, findings[0].ID)
			_, err = w.Do(ctx, Repair())
			require.NoError(t, err)
			now, err := w.Dump(ctx)
			require.NoError(t, err)
			require.Empty(t, Diff(clean, now))

			s2, err := store.Find[api.Snapshot](ctx, w.KV, w.User, api.DefaultProject, "s2")
			require.NoError(t, err)
			plan.Layer = s2.Status.Layer
			require.NoError(t, node.disks.RetireLayer(plan))
			findings, err = w.Audit(ctx)
			require.NoError(t, err)
			require.Len(t, findings, 1)
			require.False(t, findings[0].Extra)
			require.Contains(t, findings[0].Problem, "the layer of volume data that snapshot s2 keeps is missing")
		})
	}
}

// TestVolumesKeepTheirVMWhereTheyAre drains a node, and asks what a move would do.
func TestVolumesKeepTheirVMWhereTheyAre(t *testing.T) {
	ctx := t.Context()
	w, err := Base(ctx)
	require.NoError(t, err)
	for _, accept := range []Accept{
		makeVM("web1", nil), makeVolume("data", "vms", nil), attach("data", "web1"), snap("s0", "data"), makeVM("web2", local), root("web2", func(v string) Accept { return snap("s1", v) }),
	} {
		_, err := w.Do(ctx, accept)
		require.NoError(t, err)
	}
	op, err := w.Do(ctx, drain(api.HostDrain{CopyStorage: true}))
	require.NoError(t, err)
	require.Contains(t, string(op.Result), "volume data is in pool vms, which is not shared, and has snapshots, which cannot be copied")
	require.Contains(t, string(op.Result), "and has snapshots, which cannot be copied")
	for _, vm := range []string{"web1", "web2"} {
		what, err := is(vm, "a1", api.PhaseRunning)(ctx, w)
		require.NoError(t, err)
		require.Empty(t, what)
		_, err = migrate(vm, api.VMMigrate{CopyStorage: true})(ctx, w, w.User)
		require.ErrorContains(t, err, "cannot be moved")
	}
}
