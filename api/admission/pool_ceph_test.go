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
