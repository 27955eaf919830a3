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

// trees says how resources of a kind are trees: those of an owner go on from each other, and the owner from one of them.
type trees[R, O api.Resource] struct {
	noun    *noun[R]
	owner   func(R) string // ID
	parent  func(R) string // ID; empty: it is the first
	current func(O) string // ID of the one that the owner goes on from
	// columns are those of a list, of which the first is shown by its depth in the tree.
	columns []column[R]
}

// branch is a resource in its tree.
type branch[R any] struct {
	r       R
	depth   int
	current bool // its owner goes on from it
}

// listed are the columns of a list, which shows trees. It tells after the parent what the owner goes on from.
func (t *trees[R, O]) listed() []column[branch[R]] {
	var out []column[branch[R]]
	for i, c := range t.columns {
		next := column[branch[R]]{c.title, func(ctx context.Context, a *app, b branch[R]) cell { return c.of(ctx, a, b.r) }}
		if i == 0 {
			next.of = func(_ context.Context, _ *app, b branch[R]) cell {
				name := b.r.GetMeta().Name
				return cell{strings.Repeat("  ", b.depth) + name, name}
			}
		}
		out = append(out, next)
		if c.title == "PARENT" {
			out = append(out, col("CURRENT", func(b branch[R]) cell { return map[bool]cell{true: {"*", "yes"}, false: {"", "no"}}[b.current] }))
		}
	}
	return out
}

// order puts resources into the order of their trees, owner by owner.
func (t *trees[R, O]) order(all []R, owners map[string]O) []branch[R] {
	known, children := map[string]bool{}, map[string][]R{}
	for _, r := range all {
		known[r.GetMeta().ID] = true
	}
	for _, r := range all {
		parent := t.parent(r)
		if !known[parent] {
			parent = ""
		}
		children[parent] = append(children[parent], r)
	}
	name := func(r R) string {
		if o, there := owners[t.owner(r)]; there {
			return o.GetMeta().Name
		}
		return t.owner(r)
	}
	var out []branch[R]
	var walk func(parent string, depth int)
	walk = func(parent string, depth int) {
		here := children[parent]
		slices.SortFunc(here, func(x, y R) int {
			a, b := x.GetMeta(), y.GetMeta()
			return cmp.Or(cmp.Compare(name(x), name(y)), a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
		})
		for _, r := range here {
			id := r.GetMeta().ID
			o, there := owners[t.owner(r)]
			out = append(out, branch[R]{r: r, depth: depth, current: there && t.current(o) == id})
			walk(id, depth+1)
		}
	}
	walk("", 0)
	return out
}

// listCmd makes the command that lists them, all or those of one owner, which flag names.
func (t *trees[R, O]) listCmd(a *app, flag, usage string) *cobra.Command {
	var flags listFlags
	var owner string
	var o O
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List " + string(t.noun.kind()) + ", as the trees that they are", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := flags.options()
			if err != nil {
				return err
			}
			return t.list(cmd.Context(), a, o, owner)
		},
	}
	flags.add(cmd)
	a.refFlag(cmd, &owner, flag, o.ResourceKind(), usage)
	return cmd
}

func (t *trees[R, O]) list(ctx context.Context, a *app, o client.ListOptions, owner string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	only := ""
	if owner != "" {
		v, err := client.Get[O](ctx, c, a.project, owner)
		if err != nil {
			return err
		}
		only = v.GetMeta().ID
	}
	owners := map[string]O{}
	for v, err := range client.All[O](ctx, c, a.project, client.ListOptions{PageSize: 1000}) {
		if err != nil {
			return err
		}
		owners[v.GetMeta().ID] = v
	}
	var all []R
	for r, err := range client.All[R](ctx, c, a.project, o) {
		if err != nil {
			return err
		}
		if only == "" || t.owner(r) == only {
			all = append(all, r)
		}
	}
	found := t.order(all, owners)
	if a.output == formatJSON || a.output == formatYAML {
		return printList(ctx, a, t.columns, mapped(found, func(b branch[R]) R { return b.r }))
	}
	columns := t.listed()
	if a.output == formatTable { // the indentation says what the parent is
		columns = slices.DeleteFunc(columns, func(c column[branch[R]]) bool { return c.title == "PARENT" })
	}
	return printList(ctx, a, columns, found)
}
