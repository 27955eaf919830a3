package state_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/test/fault"
	"github.com/nextstack/nextstack/workflows/steps"
)

// give attaches a new volume of a GiB to web1.
func (c *cloud) give(req api.VolumeCreate) {
	c.Helper()
	req.Size, req.Node = api.GiB, c.here.Name
	for _, accept := range []fault.Accept{
		func(ctx context.Context, w *fault.World, h auth.Handle) (*api.Operation, error) {
			return w.Admission.CreateVolume(ctx, h, opts, req)
		},
		func(ctx context.Context, w *fault.World, h auth.Handle) (*api.Operation, error) {
			return w.Admission.AttachVolume(ctx, h, opts, req.Name, api.VolumeAttach{VM: "web1"})
		},
	} {
		_, err := c.Do(ctx, accept)
		require.NoError(c, err)
	}
}

func (c *cloud) volume(name string) *api.Volume {
	return get[api.Volume](c.T, c.World, opts.Project, name)
}

// TestDisksGoWhereTheirVMGoes: all records change when the VM's does, and those of disks in shared pools stay as they are.
func TestDisksGoWhereTheirVMGoes(t *testing.T) {
	c := newCloud(t, false)
	node := c.vm().Status.Agent
	c.give(api.VolumeCreate{Name: "data", Pool: "vms"})
	c.give(api.VolumeCreate{Name: "blank", Pool: "vms", Image: "cirros"})
	_, err := c.Admission.MigrateVM(ctx, c.User, opts, "web1", api.VMMigrate{})
	require.True(t, problem.Is(err, problem.Conflict))
	require.ErrorContains(t, err, "--copy-storage")
	tok, req := c.migrate(api.VMMigrate{CopyStorage: true})
	m, err := call(c.c, steps.PlaceMove, tok, req)
	require.NoError(t, err)
	require.True(t, m.Copy)
	require.Len(t, m.Volumes, 2, "the root disk is made on its image, and goes by itself")
	require.Equal(t, []string{c.volume("data").ID, c.volume("blank").ID}, []string{m.Volumes[0].Volume, m.Volumes[1].Volume})
	require.Nil(t, m.Volumes[0].Image)
	require.NotNil(t, m.Volumes[1].Image)
	require.NotEmpty(t, m.Target.Data[1].Image)
	require.True(t, m.Target.Data[0].Goes())
	for _, name := range []string{"data", "blank"} {
		require.Equal(t, node, c.volume(name).Status.Agent)
	}
	for range 2 {
		_, err = call(c.c, steps.SwitchVM, tok, steps.MoveEnd{VMRef: c.ref(), Target: m.Target.Agent})
		require.NoError(t, err)
	}
	for _, name := range []string{"data", "blank", c.vm().Status.Volumes[0]} {
		require.Equal(t, c.over.ID, c.volume(name).Status.Agent)
	}
}

// TestAllDisksThatGoNeedRoom: the image and the whole root disk, and the whole of each volume.
func TestAllDisksThatGoNeedRoom(t *testing.T) {
	c := newCloud(t, false)
	c.give(api.VolumeCreate{Name: "data", Pool: "vms"})
	tok, req := c.migrate(api.VMMigrate{CopyStorage: true})
	pool := get[api.Pool](t, c.World, "", "vms").ID
	room := func(free int64) error {
		change(t, c.World, c.agent(c.over), func(a *api.Agent) { a.Status.Inventory.Pools = []api.PoolUsage{{Pool: pool, Free: free}} })
		_, err := call(c.c, steps.PlaceMove, tok, req)
		return err
	}
	image := get[api.Image](t, c.World, opts.Project, "cirros")
	all := c.vm().Spec.RootDisk + image.Status.Size + api.GiB
	err := room(all - 1)
	require.Equal(t, problem.NoCapacity, problem.KindOf(err), "%v", err)
	require.ErrorContains(t, err, "pool vms has")
	require.Empty(t, c.vm().Status.MovingTo)
	require.NoError(t, room(all))
}
