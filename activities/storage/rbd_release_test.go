//go:build ceph && cgo

package storage_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/rbd"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

type keyOf = func(context.Context, string) (string, error)

// node is the driver of a node that keeps its notes in a directory.
func (c *ceph) node(t *testing.T, notes string, key keyOf) storage.Pool {
	return rbd.New(rbd.Config{Key: key, TempDir: t.TempDir(), NoteDir: notes, OpTimeout: 3 * time.Second, WatchPatience: time.Second})
}

// TestRBDAMistakeInAPoolIsTakenBack: what was never reached is released at once, though it still cannot be, and nothing of it is in the
// way of the right command.
func TestRBDAMistakeInAPoolIsTakenBack(t *testing.T) {
	c := needCeph(t)
	right, key := c.pool(t, "mistake")
	c.cli(t, "auth", "get-or-create", "client.reader", "mon", "profile rbd", "osd", "profile rbd-read-only pool=mistake")
	c.cli(t, "auth", "get-or-create", "client.stranger", "mon", "profile rbd", "osd", "profile rbd pool=vms")
	t.Cleanup(func() { c.cli(t, "auth", "rm", "client.reader"); c.cli(t, "auth", "rm", "client.stranger") })
	readers, strangers := c.cli(t, "auth", "print-key", "client.reader"), c.cli(t, "auth", "print-key", "client.stranger")
	is := func(key string) keyOf { return func(context.Context, string) (string, error) { return key, nil } }
	for name, m := range map[string]struct {
		source func(s *api.PoolSource)
		key    keyOf
		kind   problem.Kind
		says   string
	}{
		"a user that is none":         {func(s *api.PoolSource) { s.User = "nobody" }, key, problem.Invalid, "does not take user nobody"},
		"another key":                 {func(*api.PoolSource) {}, is("AQAAAAAAAAAAABAAYSBrZXkgb2Ygbm8gdXNlcg=="), problem.Invalid, "does not take user mistake"},
		"a key that is none":          {func(*api.PoolSource) {}, is("hunter2"), problem.Invalid, "not one of Ceph"},
		"no key":                      {func(*api.PoolSource) {}, func(context.Context, string) (string, error) { return "", problem.New(problem.Unavailable, "away") }, problem.Unavailable, "cannot be fetched"},
		"a name that is none":         {func(s *api.PoolSource) { s.Hosts = []string{"mon.invalid"} }, key, "", "the monitor mon.invalid of Ceph pool mistake cannot be found"},
		"a name that is none, a port": {func(s *api.PoolSource) { s.Hosts = []string{"mon.invalid:6789"} }, key, "", "the monitor mon.invalid of"},
		"an address of nobody":        {func(s *api.PoolSource) { s.Hosts = []string{"192.0.2.1"} }, key, problem.Unavailable, "cannot connect"},
		"another port":                {func(s *api.PoolSource) { s.Hosts = []string{s.Hosts[0] + ":1"} }, key, problem.Unavailable, "cannot connect"},
		"another pool":                {func(s *api.PoolSource) { s.Name = "nosuchpool" }, key, problem.Invalid, "there is no Ceph pool nosuchpool"},
		"a user of another pool":      {func(s *api.PoolSource) { s.User = "stranger" }, is(strangers), problem.Invalid, "may not work with pool mistake"},
		"a user who only reads":       {func(s *api.PoolSource) { s.User = "reader" }, is(readers), problem.Invalid, "may not work with pool mistake"},
	} {
		t.Run(name, func(t *testing.T) {
			notes := t.TempDir()
			p := right
			p.Pool, p.Agent = api.NewID(), api.NewID()
			m.source(&p.Source)
			d := c.node(t, notes, m.key)
			_, err := d.Prepare(t.Context(), p)
			require.ErrorContains(t, err, m.says)
			if m.kind != "" { // else it depends on who is asked for names
				require.Equal(t, m.kind, problem.KindOf(err), "%v", err)
			}
			for _, d := range []storage.Pool{d, d, c.node(t, notes, m.key)} {
				begun := time.Now()
				require.NoError(t, d.Release(t.Context(), p))
				require.Less(t, time.Since(begun), 15*time.Second)
			}
			left, err := os.ReadDir(notes)
			require.NoError(t, err)
			require.Empty(t, left)

			again := right
			again.Pool, again.Agent = api.NewID(), p.Agent
			d = c.node(t, notes, key)
			_, err = d.Prepare(t.Context(), again)
			require.NoError(t, err)
			require.NoError(t, d.Release(t.Context(), again))
		})
	}
}

// TestRBDAPoolThatWasReachedIsNotForgotten, however the way to it is lost, and whatever the node has been through.
func TestRBDAPoolThatWasReachedIsNotForgotten(t *testing.T) {
	c := needCeph(t)
	p, key := c.pool(t, "reached")
	p.Pool, p.Agent = api.NewID(), api.NewID()
	notes := t.TempDir()
	_, err := c.node(t, notes, key).Prepare(t.Context(), p)
	require.NoError(t, err)
	bad := func(context.Context, string) (string, error) { return "AQAAAAAAAAAAABAAYSBrZXkgb2Ygbm8gdXNlcg==", nil }
	is(t, problem.Invalid, c.node(t, notes, bad).Release(t.Context(), p))
	gone := p
	gone.Source.Hosts = []string{"192.0.2.1"}
	is(t, problem.Unavailable, c.node(t, notes, key).Release(t.Context(), gone))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	is(t, problem.Cancelled, c.node(t, t.TempDir(), key).Release(cancelled, p))

	// Who joins, and who has lost the notes and uses it, know it as well.
	for name, use := range map[string]func(d storage.Pool) error{
		"joins": func(d storage.Pool) error {
			there := p
			there.Join, there.Agent = true, api.NewID()
			_, err := d.Prepare(t.Context(), there)
			return err
		},
		"uses": func(d storage.Pool) error { _, err := d.List(t.Context(), p); return err },
	} {
		t.Run("who "+name, func(t *testing.T) {
			notes := t.TempDir()
			require.NoError(t, use(c.node(t, notes, key)))
			is(t, problem.Unavailable, c.node(t, notes, key).Release(t.Context(), gone))
		})
	}
	t.Run("who has the pool no more", func(t *testing.T) {
		notes := t.TempDir()
		d := c.node(t, notes, key)
		keep := func(want int, pools ...steps.PoolOnNode) {
			t.Helper()
			require.NoError(t, d.(storage.Keeper).Keep(t.Context(), pools))
			left, err := os.ReadDir(notes)
			require.NoError(t, err)
			require.Len(t, left, want)
		}
		_, err := d.List(t.Context(), p)
		require.NoError(t, err)
		keep(1) // it may be on its way to become one
		keep(1, p)
		keep(0)
	})
	v := steps.VolumePlan{Volume: api.NewID(), Name: "v", Pool: p, Size: api.MiB}
	require.NoError(t, c.node(t, notes, key).CreateVolume(t.Context(), v, nil, nil))
	lost := c.node(t, t.TempDir(), key)
	is(t, problem.InUse, lost.Release(t.Context(), p))
	require.NoError(t, lost.RemoveVolume(t.Context(), v))
	require.NoError(t, lost.Release(t.Context(), p))
	require.NoError(t, c.node(t, notes, key).Release(t.Context(), p))
	left, err := os.ReadDir(notes)
	require.NoError(t, err)
	require.Empty(t, left)
}
