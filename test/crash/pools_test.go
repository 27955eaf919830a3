package crash

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/test/stack"
)

// outage is a way in which a pool goes away and comes back.
type outage struct {
	name, pool string
	gone, back func(stack.Server, context.Context) error
}

// TestPools has the servers of pools freeze and die under a cloud that goes on. A guest has a volume there, another volume is nobody's,
// one is just being made, and one removed. What is away is said to be, and nothing else; when it is back all goes on by itself, and the
// volumes are what they were.
func TestPools(t *testing.T) {
	w := &world{Stack: stack.Up(t, stack.Options{Ceph: true, Gluster: true})}
	all := w.lanes(t, 1, stack.Pool)
	for _, o := range []outage{
		{"GlusterFrozen", stack.Gluster, stack.Server.Freeze, stack.Server.Thaw},
		{"GlusterKilled", stack.Gluster, stack.Server.Kill, stack.Server.Start},
		// An OSD of Ceph 16 that was frozen for more than 16 seconds, and has no others, answers nobody until it is started anew: it
		// waits for a lease that nobody renews ("laggy").
		{"CephFrozenAndStarted", stack.Ceph, stack.Server.Freeze, func(p stack.Server, ctx context.Context) error {
			if err := p.Kill(ctx); err != nil {
				return err
			}
			return p.Start(ctx)
		}},
	} {
		if !t.Run(o.name, func(t *testing.T) { testOutage(t, w, all[0], o) }) {
			return
		}
	}
	w.forget(t, all)
	w.clean(t)
}

func testOutage(t *testing.T, w *world, l *lane, o outage) {
	begun := time.Now()
	fresh := append([]byte{}, l.content...)
	for _, d := range []deed{createVolume(o.pool), attachVolume} {
		require.NoError(t, w.peacefully(t, l, d))
	}
	require.NoError(t, l.write(t.Context()))
	volume := func(name, key string) {
		t.Helper()
		op, err := client.Create(t.Context(), w.Client, project, &api.VolumeCreate{Name: name, Size: diskMiB * api.MiB, Pool: o.pool, Image: pattern}, client.Write{Key: key})
		require.NoError(t, err)
		if key == "" {
			w.succeed(t, op.ID)
		}
	}
	volume("kept", "")
	volume("doomed", "")

	// Two operations are about to do something in the pool when it goes away.
	point := func(kind, step string) stack.Point {
		p := stack.Point{Kind: kind, Step: step, At: stack.Before, Operation: admission.OperationID(project, "admin", o.name+kind)}
		require.NoError(t, w.Faults.Arm(p))
		return p
	}
	create, purge := point(api.OpVolumeCreate, "make"), point(api.OpVolumePurge, "remove")
	volume("new", o.name+api.OpVolumeCreate)
	_, err := w.Client.DeleteVolume(t.Context(), project, "doomed", api.VolumeDelete{Now: true}, client.Write{Key: o.name + api.OpVolumePurge})
	require.NoError(t, err)
	require.NoError(t, w.Faults.Await(within(t, time.Minute), create, purge))
	server, away := w.Server(o.pool), true
	t.Cleanup(func() {
		if away {
			_ = o.back(server, context.Background())
		}
	})
	gone := time.Now()
	require.NoError(t, o.gone(server, t.Context()))
	for _, p := range []stack.Point{create, purge} {
		require.NoError(t, w.Faults.Release(p))
		killPoints.Add(1)
	}
	require.NoError(t, w.isAway(within(t, patience), o.pool, "kept", l.name("data")))
	t.Logf("seen to be away after %s", time.Since(gone).Round(100*time.Millisecond))
	w.audited(t, o.pool)
	_, err = client.Create(t.Context(), w.Client, project, &api.VolumeCreate{Name: "late", Size: api.MiB, Pool: o.pool}, client.Write{})
	require.Equal(t, problem.Conflict, problem.KindOf(err), "%v", err)
	require.ErrorContains(t, err, "it is unavailable")
	for _, p := range []stack.Point{create, purge} {
		require.NoError(t, w.troubled(within(t, patience), p))
	}
	op, err := w.Client.Operation(t.Context(), purge.Operation)
	require.NoError(t, err)
	require.False(t, op.State.Ended(), "it cannot know that it is done: %s", stack.Describe(op))

	away = false
	back := time.Now()
	require.NoError(t, o.back(server, t.Context()))
	ops, err := w.Ended(within(t, 2*patience), create.Operation, purge.Operation)
	require.NoError(t, err)
	t.Logf("all had ended %s after it was back: %s; %s", time.Since(back).Round(100*time.Millisecond),
		stack.Describe(ops[create.Operation]), stack.Describe(ops[purge.Operation]))
	require.Equal(t, api.OpSucceeded, ops[purge.Operation].State)
	require.NoError(t, w.isBack(within(t, patience), "kept", l.name("data")))
	_, err = client.Get[*api.Volume](t.Context(), w.Client, project, "doomed")
	require.Equal(t, problem.NotFound, problem.KindOf(err), "%v", err)
	names := []string{"kept"}
	if ops[create.Operation].State == api.OpSucceeded {
		names = append(names, "new")
	} else {
		require.NotNil(t, ops[create.Operation].Error)
		_, err = client.Get[*api.Volume](t.Context(), w.Client, project, "new")
		require.Equal(t, problem.NotFound, problem.KindOf(err), "it was undone: %v", err)
	}
	for _, name := range names {
		v, err := client.Get[*api.Volume](t.Context(), w.Client, project, name)
		require.NoError(t, err)
		require.NoError(t, l.holds(t.Context(), v, v.LayerName(), fresh))
	}
	require.NoError(t, l.sees(t.Context()))
	require.NoError(t, l.write(t.Context()))
	require.NoError(t, l.sees(t.Context()))
	w.clean(t)

	for _, d := range []deed{detachVolume, purgeVolume} {
		require.NoError(t, w.peacefully(t, l, d))
	}
	l.content = fresh
	for _, name := range names {
		op, err := w.Client.DeleteVolume(t.Context(), project, name, api.VolumeDelete{Now: true}, client.Write{})
		require.NoError(t, err)
		w.succeed(t, op.ID)
	}
	w.clean(t)
	t.Logf("%s took %s", o.name, time.Since(begun).Round(100*time.Millisecond))
}

// isAway waits until the pool, and these of its volumes, are said to be unavailable, with the reason.
func (w *world) isAway(ctx context.Context, pool string, volumes ...string) error {
	return stack.Poll(ctx, 200*time.Millisecond, func() error {
		p, err := client.Get[*api.Pool](ctx, w.Client, "", pool)
		if err == nil && (p.Status.Phase != api.PhaseUnavailable || p.Status.Reason == "") {
			err = fmt.Errorf("pool %s is %s: %q", pool, p.Status.Phase, p.Status.Reason)
		}
		for _, name := range volumes {
			if err != nil {
				return err
			}
			var v *api.Volume
			if v, err = client.Get[*api.Volume](ctx, w.Client, project, name); err == nil &&
				(v.Status.Phase != api.PhaseUnavailable || !strings.Contains(v.Status.Reason, p.Status.Reason)) {
				err = fmt.Errorf("volume %s is %s: %q", name, v.Status.Phase, v.Status.Reason)
			}
		}
		return err
	})
}

// isBack waits until all pools and these volumes are ready.
func (w *world) isBack(ctx context.Context, volumes ...string) error {
	if err := w.ready(ctx); err != nil {
		return err
	}
	return stack.Poll(ctx, 200*time.Millisecond, func() error {
		for _, name := range volumes {
			v, err := client.Get[*api.Volume](ctx, w.Client, project, name)
			if err == nil && (v.Status.Phase != api.PhaseReady || v.Status.Reason != "") {
				err = fmt.Errorf("volume %s is %s: %q", name, v.Status.Phase, v.Status.Reason)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// audited checks that an audit says that it could not look into the pool, and takes nothing of it for lost.
func (w *world) audited(t *testing.T, pool string) {
	t.Helper()
	r := w.Audit(t)
	require.Empty(t, r.Findings)
	require.Condition(t, func() bool {
		for _, s := range r.Skipped {
			if strings.Contains(s, "pool "+pool) {
				return true
			}
		}
		return false
	}, "not asked: %v", r.Skipped)
}

// troubled waits until a step of the operation has failed because the pool is away, or the operation has ended, which it must not do
// as if nothing were.
func (w *world) troubled(ctx context.Context, p stack.Point) error {
	return stack.Poll(ctx, 200*time.Millisecond, func() error {
		op, err := w.Client.Operation(ctx, p.Operation)
		if err != nil {
			return err
		}
		if op.State == api.OpSucceeded {
			return fmt.Errorf("the pool is away, and yet: %s", stack.Describe(op))
		}
		for _, s := range op.Steps {
			if s.Error != nil && s.Error.Kind == problem.Unavailable {
				return nil
			}
		}
		return fmt.Errorf("it says nothing: %s", stack.Describe(op))
	})
}
