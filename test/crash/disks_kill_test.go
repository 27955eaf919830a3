package crash

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
)

// testDisks has data volumes go through their lives, once for everything that may die.
func testDisks(t *testing.T, w *world) {
	dir := w.Path("other")
	require.NoError(t, os.Mkdir(dir, 0o755))
	op, err := client.Create(t.Context(), w.Client, "", &api.PoolCreate{Name: otherPool, Type: api.PoolDir, Path: dir}, client.Write{})
	require.NoError(t, err)
	w.succeed(t, op.ID)
	all := w.lanes(t, 6, stack.Pool)
	w.clean(t)
	w.leaksShow(t, all[0].vm)
	for i, v := range []victim{killControl, killAgent, killLibvirtd} {
		if !t.Run(v.name, func(t *testing.T) { w.live(t, all, life(stack.Pool), v, i) }) {
			return
		}
	}
	w.forget(t, all)
	w.removeAll(t, api.KindPool, otherPool)
}

// leaksShow puts something into the pool that is nobody's, and takes something away: it must be found.
func (w *world) leaksShow(t *testing.T, vm *api.VM) {
	stray := w.Path("pool", "checkpoints", api.NewID()+".memory")
	require.NoError(t, os.WriteFile(stray, nil, 0o600))
	seed := w.Path("pool", "seeds", vm.ID+".iso")
	require.NoError(t, os.Rename(seed, seed+".tmp"))
	found, err := w.Leaks(t.Context())
	require.NoError(t, err)
	require.Len(t, found, 3, "%v", found) // the seed is missing under one name and nobody's under another
	require.NoError(t, os.Rename(seed+".tmp", seed))
	require.NoError(t, os.Remove(stray))
}

// live takes the data volumes of all lanes through a life. In each operation the victim is killed, once, while each lane stands at
// another boundary.
func (w *world) live(t *testing.T, all []*lane, deeds []deed, v victim, turn int) {
	t.Helper()
	begun := time.Now()
	fresh := bytes.Clone(all[0].content)
	killed := 0
	for _, d := range deeds {
		if d.files && v.name == killLibvirtd.name {
			onAll(t, all, func(l *lane) error { return w.peacefully(t, l, d) })
			continue
		}
		killed += w.disturb(t, all, d, v, turn)
	}
	w.clean(t)
	for _, l := range all { // the next volume
		l.content = bytes.Clone(fresh)
	}
	t.Logf("%s was killed at %d boundaries of data volumes, in %s", v.name, killed, time.Since(begun).Round(100*time.Millisecond))
}

// disturb does one deed in all lanes, and compares afterwards. It returns at how many boundaries one stood when the victim was killed.
func (w *world) disturb(t *testing.T, all []*lane, d deed, v victim, turn int) (killed int) {
	t.Helper()
	ctx := within(t, 3*patience)
	if d.before != nil {
		onAll(t, all, func(l *lane) error { return d.before(ctx, l) })
	}
	begun := time.Now()
	points := w.stand(t, all, d, v.name, turn)
	if d.writes {
		onAll(t, all, func(l *lane) error { return l.write(ctx) })
	}
	var ids []string
	for _, p := range points {
		ids = append(ids, p.Operation)
		if w.Faults.Held(p) {
			killed++
		} else {
			t.Logf("%s was not held long enough", p) // central steps have ten seconds
		}
	}
	stood := time.Since(begun)
	require.Greater(t, killed, len(all)/2)
	require.NoError(t, v.kill(within(t, time.Minute), w))
	killPoints.Add(int64(killed))
	for _, p := range points {
		require.NoError(t, w.Faults.Release(p))
	}
	begun = time.Now()
	ops, err := w.Ended(within(t, patience), ids...)
	require.NoError(t, err)
	took := time.Since(begun)
	begun = time.Now()
	done := func(l *lane) bool { return ops[points[l.num-1].Operation].State == api.OpSucceeded }
	undone := 0
	for i, l := range all {
		if op := ops[ids[i]]; !done(l) {
			undone++
			t.Logf("%s: %s", points[i], stack.Describe(op))
			require.NotNil(t, op.Error, "it does not say why it was undone")
		}
	}
	onAll(t, all, func(l *lane) error { return d.after(ctx, l, done(l)) })
	require.NoError(t, w.ready(within(t, time.Minute)))
	// What was undone is done while nobody dies, so that this life goes on.
	onAll(t, all, func(l *lane) error {
		if done(l) {
			return nil
		}
		return w.peacefully(t, l, d)
	})
	// The next operation finds something else.
	onAll(t, all, func(l *lane) error {
		if !l.attached {
			return nil
		}
		return l.write(ctx)
	})
	t.Logf("%s: %d stood after %s when %s was killed; they ended %s later, %d undone; compared in %s", d.kind, killed,
		stood.Round(100*time.Millisecond), v.name, took.Round(100*time.Millisecond), undone, time.Since(begun).Round(100*time.Millisecond))
	return killed
}

// ready waits until the node and its pools are seen to be of use again, without which the next request would be refused.
func (w *world) ready(ctx context.Context) error {
	return stack.Poll(ctx, 50*time.Millisecond, func() error {
		a, err := w.Hosts[0].Record(ctx)
		if err == nil && a.Status.Phase != api.PhaseReady {
			err = fmt.Errorf("the agent is %s: %s", a.Status.Phase, a.Status.Reason)
		}
		if err != nil {
			return err
		}
		for p, err := range client.All[*api.Pool](ctx, w.Client, "", client.ListOptions{}) {
			if err == nil && p.Status.Phase != api.PhaseReady {
				err = fmt.Errorf("pool %s is %s: %s", p.Name, p.Status.Phase, p.Status.Reason)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// peacefully does a deed in a lane, and nobody dies.
func (w *world) peacefully(t *testing.T, l *lane, d deed) error {
	ctx := within(t, patience)
	op, err := d.ask(ctx, l, client.Write{})
	if err == nil {
		op, err = w.Client.Wait(ctx, op.ID, client.WaitOptions{})
	}
	if err == nil && op.State != api.OpSucceeded {
		err = fmt.Errorf("it did not succeed, and nobody died: %s", stack.Describe(op))
	}
	return first(err, d.after(ctx, l, true))
}

// stand asks for the deed in all lanes, and returns when each stands at its boundary.
func (w *world) stand(t *testing.T, all []*lane, d deed, who string, turn int) []stack.Point {
	t.Helper()
	points := make([]stack.Point, len(all))
	key := func(l *lane) string { return fmt.Sprintf("%s %s %s", who, d.kind, l.vm.Name) }
	at := func(i int) boundary { return d.at[(i+turn)%len(d.at)] }
	for i, l := range all {
		points[i] = stack.Point{Kind: d.kind, Step: at(i).step, At: at(i).at, Operation: admission.OperationID(project, "admin", key(l))}
		require.NoError(t, w.Faults.Arm(points[i]))
	}
	for _, early := range []bool{true, false} { // those that may stand for long first
		var wg sync.WaitGroup
		var these []stack.Point
		for i, l := range all {
			if at(i).onNode != early {
				continue
			}
			these = append(these, points[i])
			wg.Go(func() {
				if _, err := d.ask(t.Context(), l, client.Write{Key: key(l)}); err != nil {
					t.Errorf("%s: %v", points[i], err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
		require.NoError(t, w.Faults.Await(within(t, time.Minute), these...))
	}
	return points
}
