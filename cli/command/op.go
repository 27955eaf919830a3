package command

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

var operations = &noun[*api.Operation]{
	columns: []column[*api.Operation]{
		idCol[*api.Operation](),
		col("KIND", func(o *api.Operation) cell { return text(o.Kind) }),
		col("TARGET", func(o *api.Operation) cell { return cell{target(o), o.Target.ID} }),
		col("STATE", func(o *api.Operation) cell { return text(string(o.State)) }),
		col("BY", func(o *api.Operation) cell { return text(o.Requester) }),
		ageCol[*api.Operation](),
		col("TOOK", func(o *api.Operation) cell {
			if o.Ended.IsZero() {
				return cell{}
			}
			d := o.Ended.Sub(o.Created)
			return cell{shortDuration(d), strconv.FormatFloat(d.Seconds(), 'f', 3, 64)}
		}),
	},
}

func (a *app) opCmd() *cobra.Command {
	return a.group(&cobra.Command{Use: "op", Short: "Operations: what is being changed, and what became of it"},
		a.opListCmd(), a.opShowCmd(),
		a.opVerbCmd("cancel", "Undo a running operation", (*client.Client).Cancel, a.sawCancel),
		a.opVerbCmd("retry", "Do a failed operation again", (*client.Client).Retry, a.sawSuccess),
		a.opVerbCmd("resume", "Make a stuck operation go on now", (*client.Client).Resume, a.sawSuccess),
	)
}

func (a *app) opListCmd() *cobra.Command {
	var flags listFlags
	var state, kind, about, parent string
	var limit int
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List operations", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := flags.options()
			if err != nil {
				return err
			}
			o.State, o.Kind, o.Target = api.OperationState(state), kind, about
			o.Parent = parent
			if cmd.Flags().Changed("project") || a.Getenv("GNEXT_PROJECT") != "" {
				o.Project = a.project
			}
			return operations.list(cmd.Context(), a, o, limit)
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&state, "state", "", "only those in this state: accepted, running, undoing, stuck, succeeded, failed or cancelled")
	cmd.Flags().StringVar(&kind, "kind", "", "only those of this kind, like vm.create")
	cmd.Flags().StringVar(&about, "target", "", "only those about the resource of this name or UUID")
	cmd.Flags().StringVar(&parent, "parent", "", "only those that the operation of this UUID asked for")
	cmd.Flags().IntVar(&limit, "limit", 100, "at most this many, the newest; 0 is all")
	must(cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(
		[]string{"accepted", "running", "undoing", "stuck", "succeeded", "failed", "cancelled"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (a *app) opShowCmd() *cobra.Command {
	var uuid []string
	cmd := &cobra.Command{
		Use: "show UUID", Aliases: []string{"get"}, Short: "Show an operation and its steps, on a terminal until it has ended",
		ValidArgsFunction: a.completeArgs(api.KindOperation, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := oneRef(api.KindOperation, args, uuid)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			op, err := c.Operation(cmd.Context(), id)
			if err != nil {
				return err
			}
			if width, tty := terminalWidth(a.Stdout); tty && a.output == formatTable && !a.noWait && !op.State.Ended() {
				l := &live{out: a.Stdout, width: width}
				if op, err = c.Wait(cmd.Context(), id, client.WaitOptions{Observe: l.observe}); err != nil {
					return err
				}
			}
			return a.printOperation(cmd.Context(), op)
		},
	}
	a.uuidFlag(cmd, api.KindOperation, &uuid)
	return cmd
}

// printOperation prints everything about an operation.
func (a *app) printOperation(ctx context.Context, op *api.Operation) error {
	stamp := func(t time.Time) cell {
		if t.IsZero() {
			return cell{}
		}
		return text(t.UTC().Format("2006-01-02 15:04:05.000 UTC"))
	}
	more := []column[*api.Operation]{
		col("CREATED", func(o *api.Operation) cell { return stamp(o.Created) }),
		col("STARTED", func(o *api.Operation) cell { return stamp(o.Started) }),
		col("ENDED", func(o *api.Operation) cell { return stamp(o.Ended) }),
		col("WARNINGS", func(o *api.Operation) cell { return text(strings.Join(o.Warnings, "\n")) }),
		col("PROGRESS", func(o *api.Operation) cell { return text(strings.Join(progressLines(o.Progress), "\n")) }),
		col("PARENT", func(o *api.Operation) cell { return text(o.Parent) }),
		col("RETRY OF", func(o *api.Operation) cell { return text(o.RetryOf) }),
		col("URL", func(o *api.Operation) cell { return text(o.URL) }),
	}
	if err := printItem(ctx, a, operations.columns, more, op); err != nil || a.output != formatTable {
		return err
	}
	var b strings.Builder
	if len(op.Steps) > 0 {
		rows := [][]string{{"STEP", "STATE", "WHERE", "ATTEMPTS", "TIME"}}
		for _, s := range op.Steps {
			rows = append(rows, []string{s.Name, string(s.State), s.Where, strconv.Itoa(s.Attempts), dash(stepTime(s, time.Now()))})
		}
		b.WriteByte('\n')
		if err := writeTable(&b, rows); err != nil {
			return writeError(err)
		}
		for _, s := range op.Steps {
			if s.Error != nil && (op.Error == nil || s.Error.Error() != op.Error.Error()) {
				fmt.Fprintf(&b, "\n%s: %s\n", s.Name, s.Error.What)
				writeReasons(&b, "  ", s.Error)
			}
		}
		for _, s := range op.Steps {
			if err := writeDetail(&b, s.Name, s.Detail); err != nil {
				return writeError(err)
			}
		}
		if undone := undoneSteps(op); undone != "" {
			fmt.Fprintf(&b, "\nUndone: %s\n", undone)
		}
	}
	if op.Error != nil {
		fmt.Fprintf(&b, "\nError: %s\n", op.Error.What)
		writeReasons(&b, "  ", op.Error)
	}
	if len(op.Result) > 0 && string(op.Result) != "null" && !movesVMs(op) { // else the last step has told already
		fmt.Fprintf(&b, "\nResult: %s\n", op.Result)
	}
	if _, err := fmt.Fprint(a.Stdout, b.String()); err != nil {
		return writeError(err)
	}
	return a.printChildren(ctx, op)
}

// movesVMs reports whether an operation asks for others that move VMs.
func movesVMs(op *api.Operation) bool {
	return op.Kind == api.OpHostDrain || op.Kind == api.OpHostBalance || op.Kind == api.OpHostRecover
}

// printChildren prints the operations that op has asked for.
func (a *app) printChildren(ctx context.Context, op *api.Operation) error {
	if !movesVMs(op) {
		return nil
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	var children []*api.Operation
	for child, err := range client.All[*api.Operation](ctx, c, "", client.ListOptions{Parent: op.ID}) {
		if err != nil {
			return err
		}
		children = append(children, child)
	}
	if len(children) == 0 {
		return nil
	}
	slices.SortStableFunc(children, func(x, y *api.Operation) int { return x.Created.Compare(y.Created) })
	if _, err := fmt.Fprintln(a.Stdout, "\nOperations:"); err != nil {
		return writeError(err)
	}
	return printList(ctx, a, operations.columns, children)
}

func undoneSteps(op *api.Operation) string {
	var names []string
	for _, s := range op.Steps {
		if s.State == api.StepUndone {
			names = append(names, s.Name)
		}
	}
	return strings.Join(names, ", ")
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

type operationVerb func(*client.Client, context.Context, string, client.Write) (*api.Operation, error)

func (a *app) opVerbCmd(use, short string, ask operationVerb, saw func(context.Context, *api.Operation) error) *cobra.Command {
	var uuid []string
	cmd := &cobra.Command{
		Use: use + " UUID", Short: short,
		ValidArgsFunction: a.completeArgs(api.KindOperation, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := oneRef(api.KindOperation, args, uuid)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			op, err := ask(c, cmd.Context(), id, a.write(0))
			if err != nil {
				return err
			}
			if a.noWait || !a.wait {
				return a.printAccepted(op)
			}
			if op, err = a.await(cmd.Context(), c, op.ID); err != nil {
				return err
			}
			return saw(cmd.Context(), op)
		},
	}
	a.uuidFlag(cmd, api.KindOperation, &uuid)
	return a.writes(cmd)
}

func (a *app) sawSuccess(ctx context.Context, op *api.Operation) error {
	if op.State != api.OpSucceeded {
		return failure(op)
	}
	return printList(ctx, a, operations.columns, []*api.Operation{op})
}

// sawCancel is content with an operation that is undone, whatever undid it.
func (a *app) sawCancel(ctx context.Context, op *api.Operation) error {
	if op.State == api.OpSucceeded {
		return problem.New(problem.Conflict, "%s of %s was done before it could be cancelled", op.Kind, target(op)).
			Try("undo it with the opposite command")
	}
	return printList(ctx, a, operations.columns, []*api.Operation{op})
}

var findings = []column[api.Finding]{
	col("SIDE", func(f api.Finding) cell { return text(f.Side) }),
	col("KIND", func(f api.Finding) cell { return text(f.Kind) }),
	col("ID", func(f api.Finding) cell { return text(f.ID) }),
	refCol("NODE", api.KindAgent, func(f api.Finding) string { return f.Node }),
	col("PROBLEM", func(f api.Finding) cell { return text(f.Problem) }),
	col("FIX", func(f api.Finding) cell {
		if f.Repaired {
			return text("repaired")
		}
		return text(f.Fix)
	}),
}

func (a *app) auditCmd() *cobra.Command {
	var r api.AuditRequest
	cmd := &cobra.Command{
		Use: "audit", Short: "Compare what should be with what is; exit code 0 only if they agree", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			op, err := c.Audit(cmd.Context(), r, a.write(0))
			if err != nil {
				return err
			}
			return a.finish(cmd.Context(), c, op, func(op *api.Operation) error { return a.printAudit(cmd.Context(), op) })
		},
	}
	cmd.Flags().BoolVar(&r.Repair, "repair", false, "also remove what nobody owns")
	return a.writes(cmd)
}

func (a *app) printAudit(ctx context.Context, op *api.Operation) error {
	var report api.AuditReport
	if err := json.Unmarshal(op.Result, &report); err != nil {
		return problem.Wrap(err, problem.Internal, "the report of audit %s cannot be read", op.ID)
	}
	var err error
	if a.output == formatJSON || a.output == formatYAML {
		err = a.printValue(report)
	} else if len(report.Findings) > 0 || a.output == formatCSV {
		err = printList(ctx, a, findings, report.Findings)
	}
	if err != nil {
		return err
	}
	total := 0
	for _, n := range report.Checked {
		total += n
	}
	if !a.quiet {
		for _, s := range report.Skipped {
			fmt.Fprintf(a.Stderr, "not looked at: %s\n", s)
		}
		fmt.Fprintf(a.Stderr, "%d things checked, %d findings, %d not looked at\n", total, len(report.Findings), len(report.Skipped))
	}
	if !report.Clean() {
		return exitStatus(1)
	}
	return nil
}
