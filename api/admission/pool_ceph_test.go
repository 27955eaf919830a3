package admission_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

func cephPool() api.PoolCreate {
	return api.PoolCreate{
		Name: "ceph1", Type: api.PoolRBD, Key: "AQAAAAAAAAAAABAAYSBrZXkgb2Ygbm8gdXNlcg==",
		Source: api.PoolSource{Hosts: []string{"10.0.0.2", "10.0.0.1:6789"}, Name: "vms", User: "libvirt"},
	}
}

func TestTheKeyOfAPoolIsSealedAndGoesWithIt(t *testing.T) {
	d := newDesk(t)
	req := cephPool()
	op := d.ask(d.Admission.CreatePool(ctx, d.User, nowhere, req))
	pool := find[api.Pool](d, "", "ceph1")
	require.True(t, pool.Spec.Shared, "it is, whether it was said or not")
	require.Equal(t, "/ceph/10.0.0.1:6789+10.0.0.2/vms", pool.Spec.Path)
	require.Equal(t, req.Source, decoded[api.PoolWork](d, op.Plan.Input).Pool.Source)
	entries, _, err := d.KV.List(ctx, store.Root)
	require.NoError(t, err)
	for _, e := range entries {
		require.NotContains(t, string(e.Value), req.Key, e.Key)
	}
	kept := func() bool {
		_, err := d.KV.Get(ctx, store.SecretKey(pool.ID))
		return err == nil
	}
	require.True(t, kept())
	d.settle(op, api.OpFailed)
	require.False(t, kept(), "a pool that is not made has no key")
	none, err := d.Admission.Retry(ctx, d.User, nowhere, op.ID)
	require.Contains(t, d.refuse(problem.Unsupported, none, err).Why, "secret")

	d.done(d.Admission.CreatePool(ctx, d.User, nowhere, req))
	pool = find[api.Pool](d, "", "ceph1")
	require.True(t, kept())
	same := req
	same.Name, same.Source.Hosts = "ceph2", []string{"10.0.0.1:6789", "10.0.0.2"}
	none, err = d.Admission.CreatePool(ctx, d.User, nowhere, same)
	require.Contains(t, d.refuse(problem.Conflict, none, err).What, "Ceph pool vms", "in another order it is the same pool")
	d.done(d.Admission.DeletePool(ctx, d.User, nowhere, "ceph1"))
	require.False(t, kept())
	d.clean()
}

func TestAllThatIsWrongWithAPoolOfCephIsSaidAtOnce(t *testing.T) {
	d := newDesk(t)
	none, err := d.Admission.CreatePool(ctx, d.User, nowhere, api.PoolCreate{
		Name: "ceph1", Type: api.PoolRBD, Path: "/vms", Key: "hunter2",
		Source: api.PoolSource{Hosts: []string{"10.0.0.1", "bad host", "fd00::1", "10.0.0.1"}, Name: "a/b", User: "client.admin", Options: "ro"},
	})
	p := d.refuse(problem.Invalid, none, err)
	var paths []string
	for _, f := range p.Fields {
		paths = append(paths, f.Path)
	}
	require.ElementsMatch(t, []string{"path", "source.hosts[1]", "source.hosts[2]", "source.hosts[3]", "source.name", "source.user", "source.options", "key"}, paths)
	require.False(t, strings.Contains(p.Error(), "hunter2"))
	none, err = d.Admission.CreatePool(ctx, d.User, nowhere, api.PoolCreate{Name: "x", Type: api.PoolDir, Path: "/vms", Key: "hunter2"})
	require.Equal(t, "key", d.refuse(problem.Invalid, none, err).Fields[0].Path)
	require.Equal(t, "/ceph/a+b/p", api.CephPath(api.PoolSource{Hosts: []string{"b", "a"}, Name: "p"}))
}

func TestAPoolOfCephIsReachedInAnotherWay(t *testing.T) {
	d := newDesk(t).cloud()
	a := d.Admission
	d.done(a.CreatePool(ctx, d.User, nowhere, cephPool()))
	before := find[api.Pool](d, "", "ceph1")
	const other = "AQAAAAAAAAAAABAAYSBrZXkgb2Ygbm8gYm9keQ=="
	sealed := func(id string) string {
		e, err := d.KV.Get(ctx, store.SecretKey(id))
		if problem.Is(err, problem.NotFound) {
			return ""
		}
		require.NoError(t, err)
		return string(e.Value)
	}
	old := sealed(before.ID)
	update := func(u api.PoolUpdate) (*api.Operation, error) { return a.UpdatePool(ctx, d.User, nowhere, "ceph1", u) }

	op := d.ask(update(api.PoolUpdate{Monitors: []string{"10.0.0.9"}, User: "libvirt2", Key: other}))
	require.NotContains(t, string(op.Request), other)
	require.NotContains(t, string(op.Plan.Input), other)
	told := decoded[api.PoolChange](d, op.Plan.Input)
	require.Equal(t, before.Spec.Source, told.Pool.Source)
	require.Equal(t, api.PoolSource{Hosts: []string{"10.0.0.9"}, Name: "vms", User: "libvirt2", KeyVersion: 1}, told.Source)
	require.Len(t, told.Check, len(before.Spec.Agents))
	require.Equal(t, op.ID, told.Secret)
	require.NotEmpty(t, sealed(op.ID))
	require.Equal(t, old, sealed(before.ID), "nothing counts yet")
	d.settle(op, api.OpFailed)
	require.Empty(t, sealed(op.ID))
	require.Equal(t, old, sealed(before.ID))
	require.Equal(t, before.Spec, find[api.Pool](d, "", "ceph1").Spec)
	none, err := a.Retry(ctx, d.User, nowhere, op.ID)
	require.Contains(t, d.refuse(problem.Unsupported, none, err).Why, "secret")

	op = d.done(update(api.PoolUpdate{Key: other}))
	require.Empty(t, sealed(op.ID))
	require.Equal(t, old, sealed(before.ID), "here all that is sealed for a pool looks the same; it is no text, and survives")
	require.Equal(t, store.SecretKey(before.ID), op.Plan.PutIfDone[0].Key)
	now := find[api.Pool](d, "", "ceph1")
	require.Equal(t, 1, now.Spec.Source.KeyVersion)
	require.Equal(t, before.Spec.Source.User, now.Spec.Source.User)
	op = d.done(update(api.PoolUpdate{Monitors: []string{"10.0.0.7", "10.0.0.8:3300"}}))
	require.Empty(t, decoded[api.PoolChange](d, op.Plan.Input).Secret, "the key stays")
	now = find[api.Pool](d, "", "ceph1")
	require.Equal(t, []string{"10.0.0.7", "10.0.0.8:3300"}, now.Spec.Source.Hosts)
	require.Equal(t, before.Spec.Path, now.Spec.Path, "it is in the paths of what is there")

	elsewhere := api.PoolUpdate{Monitors: []string{"10.0.0.7"}}
	none, err = a.UpdatePool(ctx, d.User, nowhere, "vms", elsewhere)
	require.Contains(t, d.refuse(problem.Unsupported, none, err).Why, "type dir")
	for _, u := range []api.PoolUpdate{
		{User: "libvirt2"},
		{Key: "hunter2"},
		{Monitors: []string{"bad host"}},
		{Monitors: []string{"a", "a"}},
		{User: "client.x", Key: other},
		{Monitors: []string{"a"}, AddAgents: []string{"a1"}},
	} {
		none, err = update(u)
		_ = d.refuse(problem.Invalid, none, err)
	}
	agent := find[api.Agent](d, "", "a1")
	change[api.Agent](d, "", "a1", func(ag *api.Agent) { ag.Status.Phase = api.PhaseSuspect })
	none, err = update(elsewhere)
	_ = d.refuse(problem.Unavailable, none, err)
	change[api.Agent](d, "", "a1", func(ag *api.Agent) { ag.Status.Phase, ag.Status.Proof = api.PhaseDown, &api.Proof{} })
	op = d.ask(update(elsewhere))
	for _, asked := range decoded[api.PoolChange](d, op.Plan.Input).Check {
		require.NotEqual(t, agent.ID, asked.ID, "who is proven to be down is not asked")
	}
	d.settle(op, api.OpSucceeded)
	d.clean()
}
