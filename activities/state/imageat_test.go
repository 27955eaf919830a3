package state_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// TestAnotherNodeWithTheImageIsNamed: if it can give the image away, and the VM's node has none.
func TestAnotherNodeWithTheImageIsNamed(t *testing.T) {
	w := base(t)
	image, pool := get[api.Image](t, w, opts.Project, "cirros"), get[api.Pool](t, w, "", "vms")
	has := func(node int, images ...string) {
		change(t, w, get[api.Agent](t, w, "", w.Nodes[node].Name), func(a *api.Agent) {
			a.Status.Inventory.Pools = []api.PoolUsage{{Pool: pool.ID, Capacity: api.TiB, Free: api.TiB, Images: images}}
		})
	}
	place := func(name string) steps.Placement {
		op := accept(t, w, name)
		out, err := call(newCentral(w), steps.PlaceVM, steps.Token{Operation: op.ID}, steps.VMOrder{VMRef: steps.VMRef{Project: opts.Project, VM: op.Target.ID}})
		require.NoError(t, err)
		return out
	}
	// The first node has so much more room that all VMs go there.
	room(t, w, 1)
	change(t, w, get[api.Agent](t, w, "", w.Nodes[0].Name), func(a *api.Agent) { a.Status.Inventory.Memory = 64 * api.GiB })
	require.Nil(t, place("web1").ImageAt, "nobody has it")
	has(1, "another", image.Status.SHA256)
	got := place("web2")
	require.Equal(t, w.Nodes[0].ID, got.Plan.Agent)
	require.Equal(t, &steps.ImageAt{Agent: w.Nodes[1].ID, Copy: steps.CachedImage{
		Image: image.ID, SHA256: image.Status.SHA256, Pool: pool.ID, PoolPath: pool.Spec.Path,
	}}, got.ImageAt)
	change(t, w, get[api.Agent](t, w, "", w.Nodes[1].Name), func(a *api.Agent) { a.Status.Inventory.Peer.Transfer = "" })
	require.Nil(t, place("web3").ImageAt, "it gives nothing away")
	change(t, w, get[api.Agent](t, w, "", w.Nodes[1].Name), func(a *api.Agent) {
		a.Status.Inventory.Peer.Transfer, a.Status.Phase = "there:1", api.PhaseUnavailable
	})
	require.Nil(t, place("web4").ImageAt, "it is away")
	change(t, w, get[api.Agent](t, w, "", w.Nodes[1].Name), func(a *api.Agent) { a.Status.Phase = api.PhaseReady })
	require.NotNil(t, place("web5").ImageAt)
	has(0, image.Status.SHA256)
	require.Nil(t, place("web6").ImageAt, "the VM's node has it")
	has(0)
	change(t, w, get[api.Pool](t, w, "", "vms"), func(p *api.Pool) { p.Spec.Shared = true })
	require.Nil(t, place("web7").ImageAt, "of a shared pool all nodes have it")
}
