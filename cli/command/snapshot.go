package command

import (
	"cmp"
	"context"
	"slices"
	"strings"
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
		col("LAYER", func(s *api.Snapshot) cell { return text(s.Status.Layer) }),
	},
}

// pause shows for how long a guest could not write.
func pause(d time.Duration) cell {
	if d == 0 {
		return cell{}
	}
	return text(d.Round(100 * time.Microsecond).String())
}

// branch is a snapshot in the tree of its volume.
type branch struct {
	*api.Snapshot
	depth   int
	current bool // its volume goes on from it
}

// branches are the columns of a list of snapshots, which shows trees.
var branches = []column[branch]{
	{"NAME", func(_ context.Context, _ *app, b branch) cell {
		return cell{strings.Repeat("  ", b.depth) + b.Name, b.Name}
	}},
	ofBranch(snapshots.columns[1]),
	ofBranch(snapshots.columns[2]),
	col("CURRENT", func(b branch) cell { return map[bool]cell{true: {"*", "yes"}, false: {"", "no"}}[b.current] }),
	ofBranch(snapshots.columns[3]), ofBranch(snapshots.columns[4]),
	col("FROZEN", func(b branch) cell { return yes(b.Status.Frozen) }),
	ofBranch(snapshots.columns[5]), ofBranch(snapshots.columns[6]),
}

func ofBranch(c column[*api.Snapshot]) column[branch] {
	return column[branch]{c.title, func(ctx context.Context, a *app, b branch) cell { return c.of(ctx, a, b.Snapshot) }}
}

// tree puts snapshots into the order of their trees, volume by volume.
func tree(all []*api.Snapshot, volumes map[string]*api.Volume) []branch {
	known := map[string]bool{}
	children := map[string][]*api.Snapshot{}
	for _, s := range all {
		known[s.ID] = true
	}
	for _, s := range all {
		parent := s.Spec.Parent
		if !known[parent] {
			parent = ""
		}
		children[parent] = append(children[parent], s)
	}
	name := func(s *api.Snapshot) string {
		if v := volumes[s.Spec.Volume]; v != nil {
			return v.Name
		}
		return s.Spec.Volume
	}
	var out []branch
	var walk func(parent string, depth int)
	walk = func(parent string, depth int) {
		here := children[parent]
		slices.SortFunc(here, func(x, y *api.Snapshot) int {
			return cmp.Or(cmp.Compare(name(x), name(y)), x.Created.Compare(y.Created), cmp.Compare(x.ID, y.ID))
		})
		for _, s := range here {
			v := volumes[s.Spec.Volume]
			out = append(out, branch{Snapshot: s, depth: depth, current: v != nil && v.Status.Snapshot == s.ID})
			walk(s.ID, depth+1)
		}
	}
	walk("", 0)
	return out
}

func (a *app) snapCmd() *cobra.Command {
	return a.group(&cobra.Command{Use: "snap", Short: "Snap management"}, a.snapAddCmd(), snapshots.getCmd(a), a.snapListCmd(), snapshots.delCmd(a), a.snapSwitchCmd(), a.snapExportCmd())
}

func (a *app) snapAddCmd() *cobra.Command {
	var r api.SnapshotCreate
	add := addCmd(a, snapshots, "Keep a volume as it is now, while its guest runs on", &r, &r.Name, &r.Labels)
	add.Example = "  gnext snap add before-upgrade --volume data"
	a.refFlag(add, &r.Volume, "volume", api.KindVolume, "volume to keep")
	add.Flags().BoolVar(&r.NoFreeze, "no-freeze", false, "do not ask the guest to bring its file systems to rest for the moment")
	return add
}

func (a *app) snapListCmd() *cobra.Command {
	var flags listFlags
	var volume string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List snapshots, as the trees that they are", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := flags.options()
			if err != nil {
				return err
			}
			return a.listSnapshots(cmd.Context(), o, volume)
		},
	}
	flags.add(cmd)
	a.refFlag(cmd, &volume, "volume", api.KindVolume, "only those of this volume")
	return cmd
}

func (a *app) listSnapshots(ctx context.Context, o client.ListOptions, volume string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	only := ""
	if volume != "" {
		v, err := client.Get[*api.Volume](ctx, c, a.project, volume)
		if err != nil {
			return err
		}
		only = v.ID
	}
	volumes := map[string]*api.Volume{}
	for v, err := range client.All[*api.Volume](ctx, c, a.project, client.ListOptions{PageSize: 1000}) {
		if err != nil {
			return err
		}
		volumes[v.ID] = v
	}
	var all []*api.Snapshot
	for s, err := range client.All[*api.Snapshot](ctx, c, a.project, o) {
		if err != nil {
			return err
		}
		if only == "" || s.Spec.Volume == only {
			all = append(all, s)
		}
	}
	found := tree(all, volumes)
	if a.output == formatJSON || a.output == formatYAML {
		return printList(ctx, a, snapshots.columns, mapped(found, func(b branch) *api.Snapshot { return b.Snapshot }))
	}
	columns := branches
	if a.output == formatTable { // the indentation says what the parent is
		columns = slices.DeleteFunc(slices.Clone(columns), func(c column[branch]) bool { return c.title == "PARENT" })
	}
	return printList(ctx, a, columns, found)
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
