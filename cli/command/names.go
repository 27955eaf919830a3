package command

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

// completionTime is what somebody who pressed Tab is willing to wait.
const completionTime = 2 * time.Second

// nameOf returns the name of a resource, or its ID if the name cannot be found out: a table is not worth an error.
func (a *app) nameOf(ctx context.Context, kind api.Kind, id string) string {
	if id == "" {
		return ""
	}
	names, ok := a.names[kind]
	if !ok {
		if c, err := a.client(); err == nil {
			names, _ = listNames(ctx, c, kind, a.project)
		}
		a.names[kind] = names
	}
	if name := names[id]; name != "" {
		return name
	}
	return id
}

// listNames returns the names of all resources of a kind, by ID.
func listNames(ctx context.Context, c *client.Client, kind api.Kind, project string) (map[string]string, error) {
	switch kind {
	case api.KindVM:
		return collectNames[*api.VM](ctx, c, project)
	case api.KindImage:
		return collectNames[*api.Image](ctx, c, project)
	case api.KindVolume:
		return collectNames[*api.Volume](ctx, c, project)
	case api.KindSnapshot:
		return collectNames[*api.Snapshot](ctx, c, project)
	case api.KindCheckpoint:
		return collectNames[*api.Checkpoint](ctx, c, project)
	case api.KindPool:
		return collectNames[*api.Pool](ctx, c, project)
	case api.KindVPC:
		return collectNames[*api.VPC](ctx, c, project)
	case api.KindSubnet:
		return collectNames[*api.Subnet](ctx, c, project)
	case api.KindPort:
		return collectNames[*api.Port](ctx, c, project)
	case api.KindSecurityGroup:
		return collectNames[*api.SecurityGroup](ctx, c, project)
	case api.KindVMGroup:
		return collectNames[*api.VMGroup](ctx, c, project)
	case api.KindAgent:
		return collectNames[*api.Agent](ctx, c, project)
	case api.KindProject:
		return collectNames[*api.Project](ctx, c, project)
	case api.KindOperation:
		return collectNames[*api.Operation](ctx, c, project)
	default:
		return nil, problem.New(problem.Internal, "%s cannot be listed", kind)
	}
}

func collectNames[T api.Resource](ctx context.Context, c *client.Client, project string) (map[string]string, error) {
	out := map[string]string{}
	for r, err := range client.All[T](ctx, c, project, client.ListOptions{PageSize: 1000}) {
		if err != nil {
			return nil, err
		}
		m := r.GetMeta()
		if out[m.ID] = m.Name; m.Name == "" {
			out[m.ID] = m.ID
		}
	}
	return out, nil
}

// oneRef takes the one name or UUID that was given, as an argument or with -U.
func oneRef(kind api.Kind, args, uuid []string) (string, error) {
	refs, err := someRefs(kind, args, uuid)
	if err != nil {
		return "", err
	}
	if len(refs) > 1 {
		return "", problem.New(problem.Invalid, "%d resources are given, and one is wanted: %s", len(refs), strings.Join(refs, ", ")).
			Try("give one name or UUID")
	}
	return refs[0], nil
}

// someRefs takes the names and UUIDs that were given, as arguments or with -U.
func someRefs(kind api.Kind, args, uuid []string) ([]string, error) {
	refs := slices.Concat(args, uuid)
	if len(refs) == 0 {
		return nil, problem.New(problem.Invalid, "no %s is named", kind.Singular()).Try("give its name or UUID, as an argument or with -U")
	}
	var v problem.Validation
	for _, r := range refs {
		api.CheckRef(&v, kind.Singular(), r)
	}
	return refs, v.Err(kind.Singular() + " reference")
}

// oneName takes the name of a new resource.
func oneName(kind api.Kind, args []string) (string, error) {
	switch len(args) {
	case 1:
		return args[0], nil
	case 0:
		return "", problem.New(problem.Invalid, "the new %s has no name", kind.Singular()).Try("give a name as the first argument")
	default:
		return "", problem.New(problem.Invalid, "unexpected argument %q", args[1]).Try("give one name; everything else is a flag")
	}
}

func (a *app) uuidFlag(cmd *cobra.Command, kind api.Kind, uuid *[]string) {
	cmd.Flags().StringSliceVarP(uuid, "uuid", "U", nil, "UUID (or name), in place of the argument")
	must(cmd.RegisterFlagCompletionFunc("uuid", a.completeFlag(kind)))
}

func revisionFlag(cmd *cobra.Command, revision *int64) {
	cmd.Flags().Int64Var(revision, "revision", 0, "only if this is still the revision of the resource")
}

// refFlag adds a flag that names a resource.
func (a *app) refFlag(cmd *cobra.Command, p *string, name string, kind api.Kind, usage string) {
	cmd.Flags().StringVar(p, name, "", usage)
	must(cmd.RegisterFlagCompletionFunc(name, a.completeFlag(kind)))
}

// refsFlag adds a flag that names several resources.
func (a *app) refsFlag(cmd *cobra.Command, p *[]string, name string, kind api.Kind, usage string) {
	cmd.Flags().StringSliceVar(p, name, nil, usage)
	must(cmd.RegisterFlagCompletionFunc(name, a.completeFlag(kind)))
}

// completeArgs completes up to most arguments (-1: any number) with names of resources.
func (a *app) completeArgs(kind api.Kind, most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.complete(cmd.Context(), kind, args, prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) completeFlag(kind api.Kind) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return a.complete(cmd.Context(), kind, nil, prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

// complete asks the server. If it does not answer there is nothing to complete, and nothing to say about it.
func (a *app) complete(ctx context.Context, kind api.Kind, taken []string, prefix string) []string {
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	c, err := a.client()
	if err != nil {
		return nil
	}
	names, err := listNames(ctx, c, kind, a.project)
	if err != nil {
		return nil
	}
	var out []string
	for _, name := range slices.Sorted(maps.Values(names)) {
		if strings.HasPrefix(name, prefix) && !slices.Contains(taken, name) {
			out = append(out, name)
		}
	}
	return out
}

// parseLabels reads KEY=VALUE.
func parseLabels(pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, problem.New(problem.Invalid, "%q is not a label", p).Try("write KEY=VALUE, like --label tier=web")
		}
		if old, twice := out[k]; twice && old != v {
			return nil, problem.New(problem.Invalid, "label %q is given twice, as %q and %q", k, old, v).Try("give each key once")
		}
		out[k] = v
	}
	return out, nil
}

func labelsFlag(cmd *cobra.Command, p *[]string) {
	cmd.Flags().StringArrayVarP(p, "label", "l", nil, "label as KEY=VALUE (repeatable)")
}
