package command

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

// noun is a kind of resource as the command line knows it.
type noun[T api.Resource] struct {
	columns []column[T] // of a list
	more    []column[T] // what get shows besides
}

func (*noun[T]) kind() api.Kind {
	var zero T
	return zero.ResourceKind()
}

// listFlags are the flags that choose what a list holds.
type listFlags struct {
	labels   []string
	abnormal bool
}

func (f *listFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&f.labels, "label", "l", nil, "only those with this label, as KEY=VALUE (repeatable; all must match)")
	cmd.Flags().BoolVar(&f.abnormal, "abnormal", false, "only those that somebody should look at")
}

func (f *listFlags) options() (client.ListOptions, error) {
	l, err := parseLabels(f.labels)
	return client.ListOptions{Labels: l, Abnormal: f.abnormal}, err
}

// listCmd makes "list".
func (n *noun[T]) listCmd(a *app) *cobra.Command {
	return n.listWith(a, func(*client.ListOptions) {})
}

// listWith makes "list" of a kind that can be chosen by more than labels.
func (n *noun[T]) listWith(a *app, choose func(*client.ListOptions)) *cobra.Command {
	var flags listFlags
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List " + strings.ReplaceAll(string(n.kind()), "-", " "), Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := flags.options()
			if err != nil {
				return err
			}
			choose(&o)
			return n.list(cmd.Context(), a, o, 0)
		},
	}
	flags.add(cmd)
	return cmd
}

// list prints what o chooses, at most limit of it unless that is 0.
func (n *noun[T]) list(ctx context.Context, a *app, o client.ListOptions, limit int) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	if limit > 0 {
		o.PageSize = min(limit+1, 500)
	}
	var items []T
	for r, err := range client.All[T](ctx, c, a.project, o) {
		if err != nil {
			return err
		}
		if limit > 0 && len(items) == limit {
			if !a.quiet {
				fmt.Fprintf(a.Stderr, "the first %d are shown; --limit 0 shows all\n", limit)
			}
			break
		}
		items = append(items, r)
	}
	// Operations come with the newest first. The order of all else, by ID, means nothing to people: names do.
	if n.kind() != api.KindOperation {
		slices.SortStableFunc(items, func(x, y T) int { return cmp.Compare(x.GetMeta().Name, y.GetMeta().Name) })
	}
	return printList(ctx, a, n.columns, items)
}

// getCmd makes "get".
func (n *noun[T]) getCmd(a *app) *cobra.Command {
	var uuid []string
	cmd := &cobra.Command{
		Use: "get NAME|UUID", Aliases: []string{"show"}, Short: "Show one " + n.kind().Singular(),
		ValidArgsFunction: a.completeArgs(n.kind(), 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := oneRef(n.kind(), args, uuid)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := client.Get[T](cmd.Context(), c, a.project, ref)
			if err != nil {
				return err
			}
			more := append(append([]column[T]{}, n.more...), metaColumns[T]()...)
			return printItem(cmd.Context(), a, n.columns, more, r)
		},
	}
	a.uuidFlag(cmd, n.kind(), &uuid)
	return cmd
}

// delCmd makes "del", which takes several names.
func (n *noun[T]) delCmd(a *app) *cobra.Command {
	return n.delWith(a, func(cmd *cobra.Command, c *client.Client, ref string, w client.Write) (*api.Operation, error) {
		return c.Delete(cmd.Context(), n.kind(), a.project, ref, w)
	})
}

// delWith makes "del" of how one of the kind is deleted.
func (n *noun[T]) delWith(a *app, del func(*cobra.Command, *client.Client, string, client.Write) (*api.Operation, error)) *cobra.Command {
	var uuid []string
	var revision int64
	cmd := &cobra.Command{
		Use: "del NAME|UUID...", Aliases: []string{"delete", "rm"}, Short: "Delete " + strings.ReplaceAll(string(n.kind()), "-", " "),
		ValidArgsFunction: a.completeArgs(n.kind(), -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := someRefs(n.kind(), args, uuid)
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), refs, revision, func(c *client.Client, ref string, w client.Write) (*api.Operation, error) {
				return del(cmd, c, ref, w)
			}, a.showGone)
		},
	}
	a.uuidFlag(cmd, n.kind(), &uuid)
	revisionFlag(cmd, &revision)
	return a.writes(cmd)
}

// each asks for the same change of every ref, one after the other, and stops at the first that fails.
func (a *app) each(ctx context.Context, refs []string, revision int64,
	ask func(*client.Client, string, client.Write) (*api.Operation, error), done func(*api.Operation) error,
) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	if len(refs) > 1 && (a.key != "" || revision != 0) {
		return problem.New(problem.Invalid, "--idempotency-key and --revision are for one resource, and %d are given", len(refs)).
			Try("give one, or leave the flag out")
	}
	for _, ref := range refs {
		op, err := ask(c, ref, a.write(revision))
		if err != nil {
			return err
		}
		if err := a.finish(ctx, c, op, done); err != nil {
			return err
		}
	}
	return nil
}

// metaColumns are what every resource has and no list shows.
func metaColumns[T api.Resource]() []column[T] {
	meta := func(title string, of func(*api.Meta) cell) column[T] {
		return col(title, func(t T) cell { return of(t.GetMeta()) })
	}
	return []column[T]{
		meta("PROJECT", func(m *api.Meta) cell { return text(m.Project) }),
		meta("LABELS", func(m *api.Meta) cell { return labels(m.Labels) }),
		meta("CREATED", func(m *api.Meta) cell { return text(m.Created.UTC().Format("2006-01-02 15:04:05 UTC")) }),
		meta("REVISION", func(m *api.Meta) cell { return number(int(m.Revision)) }),
		meta("OPERATION", func(m *api.Meta) cell { return text(m.Operation) }),
	}
}

func nameCol[T api.Resource]() column[T] {
	return col("NAME", func(t T) cell { return text(t.GetMeta().Name) })
}

func idCol[T api.Resource]() column[T] {
	return col("ID", func(t T) cell { return text(t.GetMeta().ID) })
}

func ageCol[T api.Resource]() column[T] {
	return col("AGE", func(t T) cell { return age(t.GetMeta().Created) })
}

// refCol shows the name of the resource that a T refers to, and its ID to programs.
func refCol[T any](title string, kind api.Kind, of func(T) string) column[T] {
	return column[T]{title, func(ctx context.Context, a *app, t T) cell {
		id := of(t)
		if a.output != formatTable {
			return text(id)
		}
		return cell{a.nameOf(ctx, kind, id), id}
	}}
}

// refsCol is refCol for several.
func refsCol[T any](title string, kind api.Kind, of func(T) []string) column[T] {
	return column[T]{title, func(ctx context.Context, a *app, t T) cell {
		ids := of(t)
		if a.output != formatTable {
			return words(ids)
		}
		names := make([]string, len(ids))
		for i, id := range ids {
			names[i] = a.nameOf(ctx, kind, id)
		}
		return words(names)
	}}
}
