package command

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
)

var checkpoints = &noun[*api.Checkpoint]{
	columns: []column[*api.Checkpoint]{
		nameCol[*api.Checkpoint](),
		refCol("VM", api.KindVM, func(c *api.Checkpoint) string { return c.Spec.VM }),
		refCol("PARENT", api.KindCheckpoint, func(c *api.Checkpoint) string { return c.Spec.Parent }),
		col("MEMORY", func(c *api.Checkpoint) cell { return size(c.Status.Memory) }),
		col("DISKS", func(c *api.Checkpoint) cell { return text(strings.Join(devicesOf(c), ",")) }),
		col("PHASE", func(c *api.Checkpoint) cell { return phase(c.Status.Phase) }),
		ageCol[*api.Checkpoint](), idCol[*api.Checkpoint](),
	},
	more: []column[*api.Checkpoint]{
		col("REASON", func(c *api.Checkpoint) cell { return text(c.Status.Reason) }),
		col("PAUSE", func(c *api.Checkpoint) cell { return pause(c.Status.Pause) }),
		refCol("POOL", api.KindPool, func(c *api.Checkpoint) string { return c.Status.Pool }),
		{"SNAPSHOTS", func(ctx context.Context, a *app, c *api.Checkpoint) cell {
			var names []string
			for _, d := range c.Status.Disks {
				names = append(names, a.nameOf(ctx, api.KindSnapshot, d.Snapshot))
			}
			return text(strings.Join(names, ","))
		}},
	},
}

func devicesOf(c *api.Checkpoint) (out []string) {
	for _, d := range c.Status.Disks {
		out = append(out, d.Device)
	}
	return out
}

var checkpointTrees = &trees[*api.Checkpoint, *api.VM]{
	noun:    checkpoints,
	owner:   func(c *api.Checkpoint) string { return c.Spec.VM },
	parent:  func(c *api.Checkpoint) string { return c.Spec.Parent },
	current: func(vm *api.VM) string { return vm.Status.Checkpoint },
	columns: checkpoints.columns,
}

func (a *app) cpCmd() *cobra.Command {
	return a.group(&cobra.Command{Use: "cp", Short: "Checkpoint management"}, a.cpAddCmd(), checkpoints.getCmd(a), checkpointTrees.listCmd(a, "vm", "only those of this VM"), checkpoints.delCmd(a), a.cpSwitchCmd())
}

func (a *app) cpAddCmd() *cobra.Command {
	var r api.CheckpointCreate
	add := addCmd(a, checkpoints, "Keep a VM as it is now, with its memory and all its disks, while its guest runs on", &r, &r.Name, &r.Labels)
	add.Example = "  gnext cp add before-upgrade --vm web1"
	a.refFlag(add, &r.VM, "vm", api.KindVM, "VM to keep")
	return add
}

func (a *app) cpSwitchCmd() *cobra.Command {
	var uuid []string
	var revision int64
	cmd := &cobra.Command{
		Use: "switch NAME|UUID", Aliases: []string{"revert"}, Short: "Have a VM go on from the moment of a checkpoint",
		Long: "Have a VM go on from the moment of a checkpoint, with the memory and the disks that it had then, whether it runs now or not.\n\n" +
			"What it has in memory now is lost, and what was written since its last checkpoint or snapshot: take a checkpoint first if it is needed. " +
			"Checkpoints that were taken since stay.",
		Example:           "  gnext cp switch before-upgrade",
		ValidArgsFunction: a.completeArgs(api.KindCheckpoint, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := oneRef(api.KindCheckpoint, args, uuid)
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), []string{ref}, revision, func(c *client.Client, ref string, w client.Write) (*api.Operation, error) {
				return c.RevertCheckpoint(cmd.Context(), a.project, ref, w)
			}, func(op *api.Operation) error { return showTarget(cmd.Context(), a, checkpoints, op) })
		},
	}
	cmd.Flags().SortFlags = false
	a.uuidFlag(cmd, api.KindCheckpoint, &uuid)
	revisionFlag(cmd, &revision)
	return a.writes(cmd)
}
