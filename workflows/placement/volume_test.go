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

// TestThePoolsOfVolumesHaveRoomForAllThatComes: what comes into the pool of the root disk counts with that.
func TestThePoolsOfVolumesHaveRoomForAllThatComes(t *testing.T) {
	nodes := []placement.Node{
		{ID: "1", Name: "here", Ready: true, Cores: 4, Memory: 4 * api.GiB, CPURatio: 1, Pools: map[string]int64{"p": 0, "q": 0}},
		{ID: "2", Name: "there", Ready: true, Cores: 4, Memory: 4 * api.GiB, CPURatio: 1, Pools: map[string]int64{"p": 10 * api.GiB, "q": 5 * api.GiB}},
	}
	req := func(disk, p, q int64) placement.Request {
		return placement.Request{
			VM: "web", Amount: api.Amount{VCPUs: 1, Memory: api.MiB}, Pool: "p", Disk: disk, Also: []placement.Pool{{ID: "p", Name: "own", Space: p}, {ID: "q", Name: "fast", Space: q}},
		}
	}
	_, err := placement.Place(nodes[1:], req(6*api.GiB, 4*api.GiB, 5*api.GiB))
	require.NoError(t, err)
	_, err = placement.Place(nodes[1:], req(6*api.GiB, 5*api.GiB, 0))
	require.ErrorContains(t, err, "pool own has 10 GiB free, 11 GiB needed")
	_, err = placement.Place(nodes[1:], req(0, 0, 6*api.GiB))
	require.ErrorContains(t, err, "pool fast has 5 GiB free, 6 GiB needed")
	_, err = placement.Place(nodes[1:], req(-1, 0, 0))
	require.True(t, problem.Is(err, problem.Invalid))
	_, err = placement.Place(nodes[1:], req(0, 0, -1))
	require.True(t, problem.Is(err, problem.Invalid))
	nodes[1].Pools["q"] = placement.UnknownSpace
	_, err = placement.Place(nodes[1:], req(0, 0, 6*api.GiB))
	require.NoError(t, err)
	nodes[1].Pools["q"] = 5 * api.GiB

	vm := func(name string) placement.VM {
		return placement.VM{ID: name, Name: name, Node: "1", Amount: api.Amount{VCPUs: 1, Memory: api.MiB}, Request: req(api.GiB, 2*api.GiB, 2*api.GiB), Copy: true}
	}
	out := placement.Drain(nodes, []placement.VM{vm("a"), vm("b"), vm("c")}, "1")
	require.Nil(t, out[0].Problem)
	require.Nil(t, out[1].Problem)
	require.ErrorContains(t, out[2].Problem, "pool fast has 1 GiB free, 2 GiB needed")
}
