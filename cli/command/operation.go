package command

import (
	"context"
	"fmt"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

// finish sees an accepted operation through: it waits for its end, showing the steps, and then calls done. With --no-wait it
// prints the operation instead.
func (a *app) finish(ctx context.Context, c *client.Client, op *api.Operation, done func(*api.Operation) error) error {
	for _, w := range op.Warnings {
		if !a.quiet {
			fmt.Fprintf(a.Stderr, "warning: %s\n", w)
		}
	}
	if a.noWait || !a.wait {
		return a.printAccepted(op)
	}
	ended, err := a.await(ctx, c, op.ID)
	if err != nil {
		return err
	}
	if ended.State != api.OpSucceeded {
		return failure(ended)
	}
	return done(ended)
}

// await waits for the end of an operation and shows its steps on stderr.
func (a *app) await(ctx context.Context, c *client.Client, id string) (*api.Operation, error) {
	var o client.WaitOptions
	if !a.quiet {
		o.Observe = newLive(a.Stderr).observe
	}
	op, err := c.Wait(ctx, id, o)
	if err != nil && ctx.Err() != nil {
		return nil, problem.New(problem.Cancelled, "stopped waiting for operation %s, which goes on", id).
			Try("`gnext op show %s` follows it, `gnext op cancel %s` undoes it", id, id)
	}
	return op, err
}

// printAccepted prints an operation that nobody waits for: its bare ID in a table, for scripts.
func (a *app) printAccepted(op *api.Operation) error {
	if a.output != formatTable {
		return printItem(context.Background(), a, operations.columns, nil, op)
	}
	if !a.quiet {
		fmt.Fprintf(a.Stderr, "%s of %s is %s; `gnext op show %s` follows it\n", op.Kind, target(op), op.State, op.ID)
	}
	_, err := fmt.Fprintln(a.Stdout, op.ID)
	return writeError(err)
}

// showTarget prints the resource that an ended operation made or changed.
func showTarget[T api.Resource](ctx context.Context, a *app, n *noun[T], op *api.Operation) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	r, err := client.Get[T](ctx, c, op.Target.Project, op.Target.ID)
	if err != nil {
		return err
	}
	if a.output == formatTable {
		return printList(ctx, a, n.columns, []T{r})
	}
	return printItem(ctx, a, n.columns, n.more, r)
}

// showGone says that an ended operation removed its target.
func (a *app) showGone(op *api.Operation) error {
	if a.output != formatTable {
		return printItem(context.Background(), a, operations.columns, nil, op)
	}
	_, err := fmt.Fprintf(a.Stdout, "%s deleted\n", target(op))
	return writeError(err)
}
