package command

import (
	"cmp"
	"context"
	"slices"
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

// cpBranch is a checkpoint in the tree of its VM.
type cpBranch struct {
	*api.Checkpoint
	depth   int
	current bool // its VM goes on from it
}

// cpBranches are the columns of a list of checkpoints, which shows trees.
var cpBranches = []column[cpBranch]{
	{"NAME", func(_ context.Context, _ *app, m cpBranch) cell {
		return cell{strings.Repeat("  ", m.depth) + m.Name, m.Name}
	}},
	ofCpBranch(checkpoints.columns[1]),
	ofCpBranch(checkpoints.columns[2]),
	col("CURRENT", func(m cpBranch) cell { return map[bool]cell{true: {"*", "yes"}, false: {"", "no"}}[m.current] }),
	ofCpBranch(checkpoints.columns[3]), ofCpBranch(checkpoints.columns[4]), ofCpBranch(checkpoints.columns[5]), ofCpBranch(checkpoints.columns[6]), ofCpBranch(checkpoints.columns[7]),
}

func ofCpBranch(c column[*api.Checkpoint]) column[cpBranch] {
	return column[cpBranch]{c.title, func(ctx context.Context, a *app, m cpBranch) cell { return c.of(ctx, a, m.Checkpoint) }}
}

// cpTree puts checkpoints into the order of their trees, VM by VM.
func cpTree(all []*api.Checkpoint, vms map[string]*api.VM) []cpBranch {
	known, children := map[string]bool{}, map[string][]*api.Checkpoint{}
	for _, c := range all {
		known[c.ID] = true
	}
	for _, c := range all {
		parent := c.Spec.Parent
		if !known[parent] {
			parent = ""
		}
		children[parent] = append(children[parent], c)
	}
	name := func(c *api.Checkpoint) string {
		if vm := vms[c.Spec.VM]; vm != nil {
			return vm.Name
		}
		return c.Spec.VM
	}
	var out []cpBranch
	var walk func(parent string, depth int)
	walk = func(parent string, depth int) {
		here := children[parent]
		slices.SortFunc(here, func(x, y *api.Checkpoint) int {
			return cmp.Or(cmp.Compare(name(x), name(y)), x.Created.Compare(y.Created), cmp.Compare(x.ID, y.ID))
		})
		for _, c := range here {
			vm := vms[c.Spec.VM]
			out = append(out, cpBranch{Checkpoint: c, depth: depth, current: vm != nil && vm.Status.Checkpoint == c.ID})
			walk(c.ID, depth+1)
		}
	}
	walk("", 0)
	return out
}

func (a *app) cpCmd() *cobra.Command {
	return a.group(&cobra.Command{Use: "cp", Short: "Checkpoint management"}, a.cpAddCmd(), checkpoints.getCmd(a), a.cpListCmd(), checkpoints.delCmd(a), a.cpSwitchCmd())
}

func (a *app) cpAddCmd() *cobra.Command {
	var r api.CheckpointCreate
	add := addCmd(a, checkpoints, "Keep a VM as it is now, with its memory and all its disks, while its guest runs on", &r, &r.Name, &r.Labels)
	add.Example = "  gnext cp add before-upgrade --vm web1"
	a.refFlag(add, &r.VM, "vm", api.KindVM, "VM to keep")
	return add
}

func (a *app) cpListCmd() *cobra.Command {
	var flags listFlags
	var vm string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List checkpoints, as the trees that they are", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := flags.options()
			if err != nil {
				return err
			}
			return a.listCheckpoints(cmd.Context(), o, vm)
		},
	}
	flags.add(cmd)
	a.refFlag(cmd, &vm, "vm", api.KindVM, "only those of this VM")
	return cmd
}

func (a *app) listCheckpoints(ctx context.Context, o client.ListOptions, vm string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	only := ""
	if vm != "" {
		v, err := client.Get[*api.VM](ctx, c, a.project, vm)
		if err != nil {
			return err
		}
		only = v.ID
	}
	vms := map[string]*api.VM{}
	for v, err := range client.All[*api.VM](ctx, c, a.project, client.ListOptions{PageSize: 1000}) {
		if err != nil {
			return err
		}
		vms[v.ID] = v
	}
	var all []*api.Checkpoint
	for cp, err := range client.All[*api.Checkpoint](ctx, c, a.project, o) {
		if err != nil {
			return err
		}
		if only == "" || cp.Spec.VM == only {
			all = append(all, cp)
		}
	}
	found := cpTree(all, vms)
	if a.output == formatJSON || a.output == formatYAML {
		return printList(ctx, a, checkpoints.columns, mapped(found, func(m cpBranch) *api.Checkpoint { return m.Checkpoint }))
	}
	columns := cpBranches
	if a.output == formatTable { // the indentation says what the parent is
		columns = slices.DeleteFunc(slices.Clone(columns), func(c column[cpBranch]) bool { return c.title == "PARENT" })
	}
	return printList(ctx, a, columns, found)
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
