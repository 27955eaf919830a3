package command

import (
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
)

var snapshots = &noun[*api.Snapshot]{
	columns: []column[*api.Snapshot]{
		nameCol[*api.Snapshot](),
		refCol("VOLUME", api.KindVolume, func(s *api.Snapshot) string { return s.Spec.Volume }),
		refCol("PARENT", api.KindSnapshot, func(s *api.Snapshot) string { return s.Spec.Parent }),
		col("SIZE", func(s *api.Snapshot) cell { return size(s.Status.Size) }),
		col("PHASE", func(s *api.Snapshot) cell { return phase(s.Status.Phase) }),
		ageCol[*api.Snapshot](), idCol[*api.Snapshot](),
	},
	more: []column[*api.Snapshot]{
		col("REASON", func(s *api.Snapshot) cell { return text(s.Status.Reason) }),
		refCol("CHECKPOINT", api.KindCheckpoint, func(s *api.Snapshot) string { return s.Spec.Checkpoint }),
		col("FROZEN", func(s *api.Snapshot) cell { return yes(s.Status.Frozen) }),
		col("PAUSE", func(s *api.Snapshot) cell { return pause(s.Status.Pause) }),
	},
}

// pause shows for how long a guest could not write.
func pause(d time.Duration) cell {
	if d == 0 {
		return cell{}
	}
	return text(d.Round(100 * time.Microsecond).String())
}

var snapshotTrees = &trees[*api.Snapshot, *api.Volume]{
	noun:    snapshots,
	owner:   func(s *api.Snapshot) string { return s.Spec.Volume },
	parent:  func(s *api.Snapshot) string { return s.Spec.Parent },
	current: func(v *api.Volume) string { return v.Status.Snapshot },
	columns: slices.Concat(snapshots.columns[:5], []column[*api.Snapshot]{col("FROZEN", func(s *api.Snapshot) cell { return yes(s.Status.Frozen) })}, snapshots.columns[5:]),
}

func (a *app) snapCmd() *cobra.Command {
	return a.group(&cobra.Command{Use: "snap", Short: "Snap management"}, a.snapAddCmd(), snapshots.getCmd(a), snapshotTrees.listCmd(a, "volume", "only those of this volume"), snapshots.delCmd(a), a.snapSwitchCmd(), a.snapExportCmd())
}

func (a *app) snapAddCmd() *cobra.Command {
	var r api.SnapshotCreate
	add := addCmd(a, snapshots, "Keep a volume as it is now, while its guest runs on", &r, &r.Name, &r.Labels)
	add.Example = "  gnext snap add before-upgrade --volume data"
	a.refFlag(add, &r.Volume, "volume", api.KindVolume, "volume to keep")
	add.Flags().BoolVar(&r.NoFreeze, "no-freeze", false, "do not ask the guest to bring its file systems to rest for the moment")
	return add
}

func (a *app) snapSwitchCmd() *cobra.Command {
	var uuid []string
	var revision int64
	var how api.SnapshotRevert
	cmd := &cobra.Command{
		Use: "switch NAME|UUID", Aliases: []string{"revert"}, Short: "Make a volume again what it was",
		Long: "Make a volume again what it was when the snapshot was taken.\n\n" +
			"What was written since the last snapshot is lost: take one first if it is needed. Snapshots that were taken since stay.",
		Example:           "  gnext snap switch before-upgrade --restart",
		ValidArgsFunction: a.completeArgs(api.KindSnapshot, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := oneRef(api.KindSnapshot, args, uuid)
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), []string{ref}, revision, func(c *client.Client, ref string, w client.Write) (*api.Operation, error) {
				return c.RevertSnapshot(cmd.Context(), a.project, ref, how, w)
			}, func(op *api.Operation) error { return showTarget(cmd.Context(), a, snapshots, op) })
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().BoolVar(&how.Restart, "restart", false, "stop the VM that has the volume, and start it again")
	cmd.Flags().BoolVar(&how.Force, "force", false, "cut its power instead of asking the guest")
	cmd.Flags().IntVar(&how.Timeout, "timeout", 0, "seconds to wait for the guest before the power is cut (default 60)")
	a.uuidFlag(cmd, api.KindSnapshot, &uuid)
	revisionFlag(cmd, &revision)
	return a.writes(cmd)
}
