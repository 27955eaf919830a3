package command

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

func (a *app) migrateCmd() *cobra.Command {
	var uuid []string
	var revision int64
	var how api.VMMigrate
	var downtime, timeout time.Duration
	var dry bool
	cmd := &cobra.Command{
		Use: "migrate NAME|UUID...", Short: "Move VMs to another node",
		Long: "Move VMs to another node. A VM that runs goes on running, unless --cold is given; a stopped one stays stopped.\n" +
			"Whatever happens, it is on one node.",
		Example: "  gnext vm migrate web1\n  gnext vm migrate web1 --to node-2 --copy-storage --bandwidth 100MiB\n" +
			"  gnext vm migrate db --to node-2 --max-downtime 500ms --auto-converge --timeout 20m",
		ValidArgsFunction: a.completeArgs(api.KindVM, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := someRefs(api.KindVM, args, uuid)
			if err != nil {
				return err
			}
			if how.MaxDowntime, err = whole(downtime, time.Millisecond, "max-downtime"); err != nil {
				return err
			}
			if how.Timeout, err = whole(timeout, time.Second, "timeout"); err != nil {
				return err
			}
			if dry {
				return a.planMigrate(cmd.Context(), refs, how)
			}
			return a.each(cmd.Context(), refs, revision, func(c *client.Client, ref string, w client.Write) (*api.Operation, error) {
				return c.MigrateVM(cmd.Context(), a.project, ref, how, w)
			}, func(op *api.Operation) error { return showTarget(cmd.Context(), a, vms, op) })
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	a.refFlag(cmd, &how.To, "to", api.KindAgent, "node to move to (default: the best one)")
	fl.BoolVar(&how.Cold, "cold", false, "stop the guest, move it and start it again")
	fl.BoolVar(&how.CopyStorage, "copy-storage", false, "copy the disks whose pools are not shared")
	fl.Var(sizeFlag{&how.Bandwidth}, "bandwidth", "bytes per second at most, like 100MiB (default: no limit)")
	fl.DurationVar(&downtime, "max-downtime", 0, "how long the guest may stand still, like 300ms (default 300ms)")
	fl.BoolVar(&how.AutoConverge, "auto-converge", false, "slow the guest down if it changes memory faster than it can be sent")
	fl.BoolVar(&how.PostCopy, "post-copy", false, "if it does not converge, let it go on at the target and fetch its memory from there")
	fl.DurationVar(&timeout, "timeout", 0, "when to give up a move that does not converge, like 20m (default 1h)")
	fl.BoolVar(&dry, "dry-run", false, "show where it would go and why, and do nothing")
	a.uuidFlag(cmd, api.KindVM, &uuid)
	revisionFlag(cmd, &revision)
	return a.writes(cmd)
}

// whole returns d as a number of units, of which the API has no fractions.
func whole(d, unit time.Duration, flag string) (int, error) {
	if d < 0 || d%unit != 0 {
		return 0, problem.New(problem.Invalid, "--%s cannot be %s", flag, d).Try("give a positive number of units of %s", unit)
	}
	return int(d / unit), nil
}

func (a *app) planMigrate(ctx context.Context, refs []string, how api.VMMigrate) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	for _, ref := range refs {
		d, err := c.PlanMigrate(ctx, a.project, ref, how)
		if err != nil {
			return err
		}
		if err := a.printDry(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) vmUpdateCmd() *cobra.Command {
	var ha, noHA, noGroup, noNode, noNodeLabels, noPlacement bool
	var group, node, placement string
	var nodeLabels []string
	cmd := updateCmd(a, vms, "Change what is written about a VM, which goes on running", func(*cobra.Command) (*api.VMUpdate, error) {
		var r api.VMUpdate
		if ha || noHA {
			r.HA = &ha
		}
		if group != "" || noGroup {
			r.Group = &group
		}
		if node != "" || noNode {
			r.NodeID = &node
		}
		if placement != "" || noPlacement {
			r.Placement = &placement
		}
		if len(nodeLabels) > 0 || noNodeLabels {
			l, err := parseLabels(nodeLabels)
			if err != nil {
				return nil, err
			}
			if l == nil {
				l = map[string]string{}
			}
			r.NodeLabels = &l
		}
		return &r, nil
	}, func(r *api.VMUpdate, l *map[string]string) { r.Labels = l })
	fl := cmd.Flags()
	fl.BoolVar(&ha, "ha", false, "restart it on another node when its own is dead")
	fl.BoolVar(&noHA, "no-ha", false, "do not")
	a.refFlag(cmd, &group, "group", api.KindVMGroup, "VM group it belongs to; it must be where a hard rule of the group would have it")
	fl.BoolVar(&noGroup, "no-group", false, "it belongs to no group")
	a.refFlag(cmd, &node, "node", api.KindAgent, "pin it to the node that it is on")
	fl.BoolVar(&noNode, "no-node", false, "do not pin it")
	fl.StringArrayVar(&nodeLabels, "node-label", nil, "label that its node must have, as KEY=VALUE, in place of those asked for before (repeatable)")
	fl.BoolVar(&noNodeLabels, "no-node-labels", false, "its node needs no labels")
	placementFlag(cmd, &placement, "spread or pack; counts from the next move on")
	fl.BoolVar(&noPlacement, "no-placement", false, "what the server does by default")
	for _, pair := range [][2]string{{"ha", "no-ha"}, {"group", "no-group"}, {"node", "no-node"}, {"node-label", "no-node-labels"}, {"placement", "no-placement"}} {
		cmd.MarkFlagsMutuallyExclusive(pair[0], pair[1])
	}
	return cmd
}

// vmGroups are the groups of VMs that are kept together or apart.
var vmGroups = &noun[*api.VMGroup]{
	columns: []column[*api.VMGroup]{
		nameCol[*api.VMGroup](),
		col("POLICY", func(g *api.VMGroup) cell { return text(g.Spec.Policy) }),
		col("SOFT", func(g *api.VMGroup) cell { return yes(g.Spec.Soft) }),
		col("PHASE", func(g *api.VMGroup) cell { return phase(g.Status.Phase) }),
		ageCol[*api.VMGroup](), idCol[*api.VMGroup](),
	},
	more: []column[*api.VMGroup]{
		col("REASON", func(g *api.VMGroup) cell { return text(g.Status.Reason) }),
		{"MEMBERS", func(ctx context.Context, a *app, g *api.VMGroup) cell { return words(a.membersOf(ctx, g)) }},
	},
}

// membersOf returns the names of the VMs of a group; none if they cannot be listed.
func (a *app) membersOf(ctx context.Context, g *api.VMGroup) []string {
	c, err := a.client()
	if err != nil {
		return nil
	}
	members := map[string]bool{}
	for vm, err := range client.All[*api.VM](ctx, c, g.Project, client.ListOptions{PageSize: 1000}) {
		if err != nil {
			return nil
		}
		if vm.Spec.Group == g.ID {
			members[vm.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(members))
}

func (a *app) groupCmd() *cobra.Command {
	var r api.VMGroupCreate
	add := addCmd(a, vmGroups, "Make a group that keeps its VMs together or apart", &r, &r.Name, &r.Labels)
	add.Example = "  gnext group add db --policy anti-affinity\n  gnext group add cache --policy affinity --soft"
	add.Flags().StringVar(&r.Policy, "policy", "", "affinity: on one node; anti-affinity: each on another")
	add.Flags().BoolVar(&r.Soft, "soft", false, "a wish rather than a rule")
	must(add.RegisterFlagCompletionFunc("policy", cobra.FixedCompletions([]string{api.Affinity, api.AntiAffinity}, cobra.ShellCompDirectiveNoFileComp)))
	return a.group(&cobra.Command{Use: "group", Short: "VM group management"}, add, vmGroups.getCmd(a), vmGroups.listCmd(a), vmGroups.delCmd(a))
}
