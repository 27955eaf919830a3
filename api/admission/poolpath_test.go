package admission_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

func TestNoPoolIsInsideAnother(t *testing.T) {
	d := newDesk(t).pool(false, "a1")
	add := func(name, path string, agents ...string) (*api.Operation, error) {
		return d.Admission.CreatePool(ctx, d.User, nowhere, api.PoolCreate{Name: name, Type: api.PoolDir, Path: path, Agents: agents})
	}
	before := claims(d)
	for _, path := range []string{"/p/backing", "/p/volumes", "/p/volumes/x/y", "/p/x"} {
		none, err := add("q", path, "a2", "a1")
		p := d.refuse(problem.Conflict, none, err)
		require.Contains(t, p.What, "agent a1")
		require.Equal(t, "it is inside /p, which is pool p", p.Why)
		require.NotEmpty(t, p.Fix)
	}
	none, err := add("q", "/p")
	_ = d.refuse(problem.Conflict, none, err)
	for _, path := range []string{"/p/", "/p/../p/x", "/x/./p", "//p/x", "/p/x/..", "p/x", "/"} {
		none, err = add("q", path)
		require.Equal(t, "path", d.refuse(problem.Invalid, none, err).Fields[0].Path, "it is to be told apart by what it is called")
	}
	require.Equal(t, before, claims(d))

	d.done(add("elsewhere", "/p/backing", "a2"))
	d.done(add("beside", "/px", "a1", "a2"))
	d.done(add("deep", "/a/b/c", "a1"))
	for _, path := range []string{"/a", "/a/b"} {
		none, err = add("q", path, "a1")
		require.Equal(t, "/a/b/c is inside it, which is pool deep", d.refuse(problem.Conflict, none, err).Why)
	}
	// What mounts itself is no directory, and what names a Ceph pool is none either.
	d.done(d.Admission.CreatePool(ctx, d.User, nowhere, cephPool()))
	d.done(add("named", "/ceph", "a1"))
	d.done(d.Admission.CreatePool(ctx, d.User, nowhere, api.PoolCreate{Name: "g", Type: api.PoolGluster, Source: api.PoolSource{Hosts: []string{"h"}, Name: "gv0"}, Agents: []string{"a1"}}))
	none, err = add("q", api.MountDir, "a1")
	require.Contains(t, d.refuse(problem.Conflict, none, err).Why, "which is pool g")

	// Nor does a node bring one into another.
	none, err = d.update(api.PoolUpdate{AddAgents: []string{"a3", "a2"}})
	p := d.refuse(problem.Conflict, none, err)
	require.Equal(t, "directory /p cannot be pool p on agent a2", p.What)
	require.Equal(t, "/p/backing is inside it, which is pool elsewhere", p.Why)
	op := d.ask(d.update(api.PoolUpdate{AddAgents: []string{"a3"}}))
	none, err = add("q", "/p/x", "a3")
	_ = d.refuse(problem.Conflict, none, err)
	d.settle(op, api.OpFailed)
	d.done(add("q", "/p/x", "a3"))
	d.done(d.Admission.DeletePool(ctx, d.User, nowhere, "p"))
	d.done(add("free", "/p/backing", "a1"))
	d.clean()
}

// TestOfTwoPoolsOneInsideTheOtherOnlyOneIsWritten is about two that are thought out in the same moment.
func TestOfTwoPoolsOneInsideTheOtherOnlyOneIsWritten(t *testing.T) {
	d := newDesk(t)
	ledger, err := store.Ledger(ctx, d.KV, store.PoolPaths)
	require.NoError(t, err)
	d.pool(false, "a1")
	draft := store.NewDraft(d.User)
	draft.Touch(store.PoolPaths, ledger.Revision)
	_, err = draft.Commit(ctx, d.KV)
	require.True(t, problem.Is(err, problem.Conflict), "%v", err)
}
