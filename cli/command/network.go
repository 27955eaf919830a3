package command

import (
	"context"
	"maps"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

var vpcs = &noun[*api.VPC]{
	columns: []column[*api.VPC]{
		nameCol[*api.VPC](),
		col("CIDR", func(v *api.VPC) cell { return text(v.Spec.CIDR) }),
		col("PHASE", func(v *api.VPC) cell { return phase(v.Status.Phase) }),
		ageCol[*api.VPC](), idCol[*api.VPC](),
	},
	more: []column[*api.VPC]{col("REASON", func(v *api.VPC) cell { return text(v.Status.Reason) })},
}

var subnets = &noun[*api.Subnet]{
	columns: []column[*api.Subnet]{
		nameCol[*api.Subnet](),
		refCol("VPC", api.KindVPC, func(s *api.Subnet) string { return s.Spec.VPC }),
		col("CIDR", func(s *api.Subnet) cell { return text(s.Spec.CIDR) }),
		col("GATEWAY", func(s *api.Subnet) cell { return text(s.Spec.Gateway) }),
		col("PHASE", func(s *api.Subnet) cell { return phase(s.Status.Phase) }),
		ageCol[*api.Subnet](), idCol[*api.Subnet](),
	},
	more: []column[*api.Subnet]{
		col("REASON", func(s *api.Subnet) cell { return text(s.Status.Reason) }),
		col("DNS", func(s *api.Subnet) cell { return words(s.Spec.DNS) }),
	},
}

var ports = &noun[*api.Port]{
	columns: []column[*api.Port]{
		nameCol[*api.Port](),
		refCol("SUBNET", api.KindSubnet, func(p *api.Port) string { return p.Spec.Subnet }),
		col("ADDRESS", func(p *api.Port) cell { return text(p.Spec.Address) }),
		col("MAC", func(p *api.Port) cell { return text(p.Spec.MAC) }),
		refCol("VM", api.KindVM, func(p *api.Port) string { return p.Spec.VM }),
		col("PHASE", func(p *api.Port) cell { return phase(p.Status.Phase) }),
		ageCol[*api.Port](), idCol[*api.Port](),
	},
	more: []column[*api.Port]{
		col("REASON", func(p *api.Port) cell { return text(p.Status.Reason) }),
		refsCol("GROUPS", api.KindSecurityGroup, func(p *api.Port) []string { return p.Spec.SecurityGroups }),
		col("HOSTNAME", func(p *api.Port) cell { return text(p.Spec.Hostname) }),
	},
}

var groups = &noun[*api.SecurityGroup]{
	columns: []column[*api.SecurityGroup]{
		nameCol[*api.SecurityGroup](),
		col("RULES", func(g *api.SecurityGroup) cell { return number(len(g.Spec.Rules)) }),
		col("PHASE", func(g *api.SecurityGroup) cell { return phase(g.Status.Phase) }),
		ageCol[*api.SecurityGroup](), idCol[*api.SecurityGroup](),
	},
	more: []column[*api.SecurityGroup]{
		col("REASON", func(g *api.SecurityGroup) cell { return text(g.Status.Reason) }),
		col("ALLOWS", func(g *api.SecurityGroup) cell {
			return text(strings.Join(mapped(g.Spec.Rules, api.Rule.String), "\n"))
		}),
	},
}

func (a *app) vpcCmd() *cobra.Command {
	var r api.VPCCreate
	add := addCmd(a, vpcs, "Make a private network", &r, &r.Name, &r.Labels)
	add.Example = "  gnext vpc add demo --cidr 10.1.0.0/16"
	add.Flags().StringVar(&r.CIDR, "cidr", "", "IPv4 prefix that all its subnets lie in, like 10.1.0.0/16")
	update := updateCmd(a, vpcs, "Change the labels of a VPC", func(*cobra.Command) (*api.VPCUpdate, error) { return &api.VPCUpdate{}, nil },
		func(u *api.VPCUpdate, l *map[string]string) { u.Labels = l })
	return a.group(&cobra.Command{Use: "vpc", Short: "VPC management"}, add, vpcs.getCmd(a), vpcs.listCmd(a), update, vpcs.delCmd(a))
}

func (a *app) subnetCmd() *cobra.Command {
	var r api.SubnetCreate
	add := addCmd(a, subnets, "Make a subnet of a VPC", &r, &r.Name, &r.Labels)
	add.Example = "  gnext subnet add demo-a --vpc demo --cidr 10.1.0.0/24"
	a.refFlag(add, &r.VPC, "vpc", api.KindVPC, "VPC that it is part of")
	add.Flags().StringVar(&r.CIDR, "cidr", "", "IPv4 prefix inside the VPC's, like 10.1.0.0/24")
	add.Flags().StringSliceVar(&r.DNS, "dns", nil, "name server told to the VMs (repeatable; default: the gateway)")

	var dns []string
	update := updateCmd(a, subnets, "Change the name servers or labels of a subnet", func(cmd *cobra.Command) (*api.SubnetUpdate, error) {
		u := &api.SubnetUpdate{}
		if cmd.Flags().Changed("dns") {
			u.DNS = ptr(withoutEmpty(dns))
		}
		return u, nil
	}, func(u *api.SubnetUpdate, l *map[string]string) { u.Labels = l })
	update.Flags().StringSliceVar(&dns, "dns", nil, "name servers, in place of those there are; empty: the gateway")
	return a.group(&cobra.Command{Use: "subnet", Short: "Subnet management"}, add, subnets.getCmd(a), subnets.listCmd(a), update, subnets.delCmd(a))
}

func (a *app) portCmd() *cobra.Command {
	var r api.PortCreate
	add := addCmd(a, ports, "Make a port that belongs to no VM", &r, &r.Name, &r.Labels)
	add.Example = "  gnext port add probe --subnet demo-a"
	a.refFlag(add, &r.Subnet, "subnet", api.KindSubnet, "subnet that it is in")
	add.Flags().StringVar(&r.Address, "ip", "", "fixed address (default: the next free one)")
	a.refsFlag(add, &r.SecurityGroups, "sg", api.KindSecurityGroup, "security group (repeatable)")

	var sg []string
	update := updateCmd(a, ports, "Change the security groups or labels of a port", func(cmd *cobra.Command) (*api.PortUpdate, error) {
		u := &api.PortUpdate{}
		if cmd.Flags().Changed("sg") {
			u.SecurityGroups = ptr(withoutEmpty(sg))
		}
		return u, nil
	}, func(u *api.PortUpdate, l *map[string]string) { u.Labels = l })
	a.refsFlag(update, &sg, "sg", api.KindSecurityGroup, "security groups, in place of those there are; empty: none")
	return a.group(&cobra.Command{Use: "port", Short: "Port management"}, add, ports.getCmd(a), ports.listCmd(a), update, ports.delCmd(a))
}

func (a *app) sgCmd() *cobra.Command {
	const usage = `what may pass, as "DIRECTION PROTOCOL [PORT[-PORT]] [CIDR]" (repeatable`
	var r api.SecurityGroupCreate
	var rules []string
	add := addCmd(a, groups, "Make a security group", &r, &r.Name, &r.Labels)
	add.Example = `  gnext sg add web --rule "ingress tcp 80 0.0.0.0/0" --rule "egress any"`
	add.Flags().StringArrayVar(&rules, "rule", nil, usage+")")
	add.PreRunE = func(*cobra.Command, []string) (err error) {
		r.Rules, err = parseRules(rules)
		return err
	}

	var replacement []string
	update := updateCmd(a, groups, "Change the rules or labels of a security group", func(cmd *cobra.Command) (*api.SecurityGroupUpdate, error) {
		u := &api.SecurityGroupUpdate{}
		if cmd.Flags().Changed("rule") {
			rules, err := parseRules(withoutEmpty(replacement))
			if err != nil {
				return nil, err
			}
			u.Rules = ptr(rules)
		}
		return u, nil
	}, func(u *api.SecurityGroupUpdate, l *map[string]string) { u.Labels = l })
	update.Flags().StringArrayVar(&replacement, "rule", nil, usage+"; they replace all that there are; empty: none)")
	return a.group(&cobra.Command{Use: "sg", Short: "SG management"}, add, groups.getCmd(a), groups.listCmd(a), update, groups.delCmd(a))
}

func parseRules(in []string) ([]api.Rule, error) {
	out := make([]api.Rule, 0, len(in))
	for _, s := range in {
		r, err := api.ParseRule(s)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func ptr[T any](t T) *T { return &t }

func withoutEmpty(in []string) []string {
	out := make([]string, 0, len(in))
	for _, s := range in {
		if strings.TrimSpace(s) != "" {
			out = append(out, s)
		}
	}
	return out
}

// addCmd makes "add" for a request whose flags the caller binds to body.
func addCmd[T api.Resource, B client.Creation](a *app, n *noun[T], short string, body B, name *string, labels *map[string]string) *cobra.Command {
	var pairs []string
	cmd := &cobra.Command{
		Use: "add NAME", Aliases: []string{"create"}, Short: short,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if *name, err = oneName(n.kind(), args); err != nil {
				return err
			}
			if *labels, err = parseLabels(pairs); err != nil {
				return err
			}
			return create(cmd, a, n, body)
		},
	}
	cmd.Flags().SortFlags = false
	labelsFlag(cmd, &pairs)
	return a.writes(cmd)
}

// updateCmd makes "update". Body reads the flags of the kind; labels are added to those there are, which needs a look at
// the resource first, and the revision of that look so that nobody's change in between is lost.
func updateCmd[T api.Resource, B client.Update](a *app, n *noun[T], short string,
	body func(*cobra.Command) (B, error), setLabels func(B, *map[string]string),
) *cobra.Command {
	var uuid, add, remove []string
	var revision int64
	cmd := &cobra.Command{
		Use: "update NAME|UUID", Aliases: []string{"modify"}, Short: short,
		ValidArgsFunction: a.completeArgs(n.kind(), 1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, err := oneRef(n.kind(), args, uuid)
		if err != nil {
			return err
		}
		if !changes(cmd) {
			return nothingToChange(cmd)
		}
		b, err := body(cmd)
		if err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		w := a.write(revision)
		if anyChanged(cmd, "label", "unlabel") {
			l, seen, err := mergedLabels[T](cmd.Context(), c, a.project, ref, add, remove)
			if err != nil {
				return err
			}
			if setLabels(b, &l); w.IfMatch == 0 && w.Key == "" {
				w.IfMatch = seen
			}
		}
		op, err := client.Change(cmd.Context(), c, a.project, ref, b, w)
		if err != nil {
			return err
		}
		return a.finish(cmd.Context(), c, op, func(op *api.Operation) error { return showTarget(cmd.Context(), a, n, op) })
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringArrayVarP(&add, "label", "l", nil, "label to set, as KEY=VALUE (repeatable)")
	cmd.Flags().StringSliceVar(&remove, "unlabel", nil, "key of a label to remove (repeatable)")
	a.uuidFlag(cmd, n.kind(), &uuid)
	revisionFlag(cmd, &revision)
	return a.writes(cmd)
}

// changes reports whether a flag was given that says what to change, rather than of what or how.
func changes(cmd *cobra.Command) bool {
	found := false
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		switch f.Name {
		case "uuid", "revision", "idempotency-key":
		default:
			found = found || f.Changed
		}
	})
	return found
}

func nothingToChange(cmd *cobra.Command) error {
	return problem.New(problem.Invalid, "nothing to change").Try("see `%s --help` for what can be changed", cmd.CommandPath())
}

func anyChanged(cmd *cobra.Command, flags ...string) bool {
	for _, f := range flags {
		if cmd.Flags().Changed(f) {
			return true
		}
	}
	return false
}

func mergedLabels[T api.Resource](ctx context.Context, c *client.Client, project, ref string, add, remove []string) (map[string]string, int64, error) {
	set, err := parseLabels(add)
	if err != nil {
		return nil, 0, err
	}
	r, err := client.Get[T](ctx, c, project, ref)
	if err != nil {
		return nil, 0, err
	}
	l := maps.Clone(r.GetMeta().Labels)
	if l == nil {
		l = map[string]string{}
	}
	maps.Copy(l, set)
	for _, k := range remove {
		delete(l, k)
	}
	return l, r.GetMeta().Revision, nil
}
