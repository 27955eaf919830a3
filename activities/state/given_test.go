package state_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/state"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/test/fault"
)

// TestAVMGoesToWhereItsVolumesAre: a plan says so, and the operation does it.
func TestAVMGoesToWhereItsVolumesAre(t *testing.T) {
	c := newCloud(t, false)
	p := state.New(c.KV, c.Admission, none{}, none{}).Planner()
	for _, n := range []*fault.Node{c.here, c.over} {
		_, err := c.Do(ctx, func(ctx context.Context, w *fault.World, h auth.Handle) (*api.Operation, error) {
			return w.Admission.CreateVolume(ctx, h, opts, api.VolumeCreate{Name: "data-" + n.Name, Size: api.GiB, Pool: "vms", Node: n.Name})
		})
		require.NoError(t, err)
	}
	req := api.VMCreate{VCPUs: 1, Memory: api.GiB, Image: "cirros", Pool: "vms", NICs: []api.NICRequest{{Subnet: "front"}}, Volumes: []api.VMVolume{{Size: api.GiB}}}
	for _, n := range []*fault.Node{c.here, c.over} {
		req.Name, req.Attach = "on-"+n.Name, []api.VMAttach{{Volume: "data-" + n.Name}}
		out, err := p.PlanVMCreate(ctx, c.User, opts, req)
		require.NoError(t, err)
		require.Nil(t, out.Error)
		require.Equal(t, n.ID, out.Decision.Node)
		require.Contains(t, out.Decision.Refused[0].Reason, "volume data-"+n.Name+" is on node "+n.Name)
		_, err = c.Do(ctx, func(ctx context.Context, w *fault.World, h auth.Handle) (*api.Operation, error) {
			return w.Admission.CreateVM(ctx, h, opts, req)
		})
		require.NoError(t, err)
		require.Equal(t, n.ID, get[api.VM](t, c.World, opts.Project, req.Name).Status.Agent)
		require.Equal(t, n.ID, get[api.Volume](t, c.World, opts.Project, "data-"+n.Name).Status.Agent)
	}
	req.Name, req.Attach = "both", []api.VMAttach{{Volume: "data-" + c.here.Name, ReadOnly: true}, {Volume: "data-" + c.over.Name, ReadOnly: true}}
	out, err := p.PlanVMCreate(ctx, c.User, opts, req)
	require.NoError(t, err)
	require.Equal(t, problem.Conflict, out.Error.Kind)
}
