package fault

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// TestAnAuditKnowsTheSnapshotsOfCeph: several nodes see the same pool, and it is told of once.
func TestAnAuditKnowsTheSnapshotsOfCeph(t *testing.T) {
	ctx := t.Context()
	w, err := Base(ctx)
	require.NoError(t, err)
	for _, accept := range []Accept{cephOn(), createVM, makeVolume("data", "fast", nil), attach("data", "web1"), snap("s1", "data"), snap("s2", "data")} {
		_, err := w.Do(ctx, accept)
		require.NoError(t, err)
	}
	audit := func(n int) []api.Finding {
		t.Helper()
		findings, err := w.Audit(ctx)
		require.NoError(t, err)
		require.Len(t, findings, n, "%+v", findings)
		return findings
	}
	audit(0)
	clean, err := w.Dump(ctx)
	require.NoError(t, err)
	v, err := store.Find[api.Volume](ctx, w.KV, w.User, api.DefaultProject, "data")
	require.NoError(t, err)
	node, plan, err := w.find(ctx, v)
	require.NoError(t, err)

	id := api.NewID()
	for _, name := range []string{storage.RBDSnap + id, storage.RBDKept + id, storage.RBDCopy + id} {
		require.NoError(t, node.disks.Snap(plan, name))
		f := audit(1)[0]
		require.True(t, f.Extra)
		require.Equal(t, id, f.ID)
		require.Contains(t, f.Problem, "@"+name+" exists, and no record asks for it")
		_, err = w.Do(ctx, Repair())
		require.NoError(t, err)
		now, err := w.Dump(ctx)
		require.NoError(t, err)
		require.Empty(t, Diff(clean, now))
	}

	require.NoError(t, node.disks.Snap(plan, "stranger"))
	f := audit(1)[0]
	require.False(t, f.Extra, "it is not for us to remove")
	require.Contains(t, f.Problem, "@stranger is a snapshot that was not made here")
	_, err = w.Do(ctx, Repair())
	require.NoError(t, err)
	audit(1)
	require.NoError(t, node.disks.Unsnap(plan, "stranger"))

	s1, err := store.Find[api.Snapshot](ctx, w.KV, w.User, api.DefaultProject, "s1")
	require.NoError(t, err)
	require.NoError(t, node.disks.Unsnap(plan, storage.RBDSnap+s1.ID))
	f = audit(1)[0]
	require.False(t, f.Extra)
	require.Equal(t, s1.ID, f.ID)
	require.Contains(t, f.Problem, "snapshot s1 of volume data is missing")

	op, err := w.Do(ctx, revert("s1", api.SnapshotRevert{Restart: true}))
	require.Error(t, err)
	require.Equal(t, api.OpFailed, op.State)
	require.Equal(t, problem.NotFound, op.Error.Kind)
	i := slices.IndexFunc(op.Steps, func(s api.StepRecord) bool { return s.Name == "stop" })
	require.Equal(t, api.StepPending, op.Steps[i].State, "no guest is stopped for what is not there")

	// A snapshot of one volume is none of another.
	_, err = w.Do(ctx, makeVolume("other", "fast", nil))
	require.NoError(t, err)
	other, err := store.Find[api.Volume](ctx, w.KV, w.User, api.DefaultProject, "other")
	require.NoError(t, err)
	_, elsewhere, err := w.find(ctx, other)
	require.NoError(t, err)
	require.NoError(t, node.disks.Snap(elsewhere, storage.RBDSnap+s1.ID))
	audit(2)
}

// TestAnAuditMissesTheCopiesThatVolumesAreMadeOn in each kind of pool.
func TestAnAuditMissesTheCopiesThatVolumesAreMadeOn(t *testing.T) {
	ctx := t.Context()
	base, err := Base(ctx)
	require.NoError(t, err)
	for _, pool := range []string{"vms", "shared", "fast"} {
		t.Run(pool, func(t *testing.T) {
			w, err := base.Clone(ctx, nil)
			require.NoError(t, err)
			image := func(r *api.VolumeCreate) { r.Image = "cirros" }
			for _, accept := range []Accept{cephOn(), makeVolume("one", pool, image), makeVolume("two", pool, image), makeVolume("three", pool, nil)} {
				_, err := w.Do(ctx, accept)
				require.NoError(t, err)
			}
			findings, err := w.Audit(ctx)
			require.NoError(t, err)
			require.Empty(t, findings)
			img, err := store.Find[api.Image](ctx, w.KV, w.User, api.DefaultProject, "cirros")
			require.NoError(t, err)
			for _, n := range w.Nodes {
				n.Lose(ctx, storage.KindBacking, img.Status.SHA256)
			}
			findings, err = w.Audit(ctx)
			require.NoError(t, err)
			require.Len(t, findings, 1, "%+v", findings)
			require.False(t, findings[0].Extra)
			require.Equal(t, img.Status.SHA256, findings[0].ID)
			require.Contains(t, findings[0].Problem, "the copy of image cirros that volumes are made on is missing on")
			require.Contains(t, findings[0].Problem, ": one, two")

			if pool == "fast" {
				return
			}
			one, err := store.Find[api.Volume](ctx, w.KV, w.User, api.DefaultProject, "one")
			require.NoError(t, err)
			again := func(r *api.VolumeCreate) { image(r); r.Node = one.Status.Agent }
			_, err = w.Do(ctx, makeVolume("four", pool, again))
			require.NoError(t, err)
			findings, err = w.Audit(ctx)
			require.NoError(t, err)
			require.Empty(t, findings, "it is what the fix has said")
		})
	}
}
