package placement_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/placement"
)

func TestAVolumeGoesWhereTheMostSpaceIs(t *testing.T) {
	nodes := []placement.Node{
		{ID: "1", Name: "small", Ready: true, Pools: map[string]int64{"p": 10 * api.GiB}},
		{ID: "2", Name: "large", Ready: true, Cordoned: true, Pools: map[string]int64{"p": 90 * api.GiB}},
		{ID: "3", Name: "away", Phase: api.PhaseSuspect, Reason: "it is silent", Pools: map[string]int64{"p": 99 * api.GiB}},
		{ID: "4", Name: "other", Ready: true, Pools: map[string]int64{"q": 99 * api.GiB}},
		{ID: "5", Name: "new", Ready: true, Pools: map[string]int64{"p": placement.UnknownSpace}},
	}
	d, err := placement.PlaceVolume(nodes, placement.VolumeRequest{Volume: "data", Pool: "p", Space: api.GiB})
	require.NoError(t, err)
	require.Equal(t, "large", d.Name, "a node that takes no VMs takes volumes")
	require.Equal(t, []string{"large", "small", "new"}, []string{d.Ranked[0].Name, d.Ranked[1].Name, d.Ranked[2].Name})
	require.Equal(t, []api.Refusal{
		{Node: "3", Name: "away", Reason: "suspect: it is silent"}, {Node: "4", Name: "other", Reason: "does not have the pool"},
	}, d.Refused)
	d, err = placement.PlaceVolume(nodes, placement.VolumeRequest{Volume: "data", Pool: "p", NodeID: "1"})
	require.NoError(t, err)
	require.Equal(t, "small", d.Name)
	_, err = placement.PlaceVolume(nodes, placement.VolumeRequest{Volume: "data", Pool: "p", NodeID: "1", Space: 20 * api.GiB})
	require.True(t, problem.Is(err, problem.NoCapacity))
	require.ErrorContains(t, err, "small: the pool has 10 GiB free, 20 GiB needed")
	_, err = placement.PlaceVolume(nil, placement.VolumeRequest{Volume: "data", Pool: "p"})
	require.ErrorContains(t, err, "there are no nodes")
}

func TestANodeWithoutThePoolOfAVolumeIsRefused(t *testing.T) {
	node := placement.Node{ID: "1", Name: "a", Ready: true, Cores: 4, Memory: api.GiB, CPURatio: 1, Pools: map[string]int64{"p": api.GiB}}
	req := placement.Request{VM: "web", Amount: api.Amount{VCPUs: 1, Memory: api.MiB}, Pool: "p", Also: []placement.Pool{{ID: "p"}, {ID: "q", Name: "fast"}}}
	_, err := placement.Place([]placement.Node{node}, req)
	require.ErrorContains(t, err, "does not have pool fast, which a volume of the VM is in")
	node.Pools["q"] = 0
	_, err = placement.Place([]placement.Node{node}, req)
	require.NoError(t, err)
}
