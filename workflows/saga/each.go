package saga

import (
	"go.temporal.io/sdk/workflow"

	"github.com/nextstack/nextstack/api/problem"
)

// Each calls do for 0 to count-1, in this order, and up to most of them at a time. It returns when none of them runs any more.
//
// On the way forward none is begun once one has failed: the step will be undone, or made again. On the way back all are
// called, whatever the others say, so that what can be undone does not wait for what cannot. The error is the first one that
// will not pass, or else the first. Calls of one attempt share a token, so they must go to different nodes, or be about
// different resources.
func (r *Run) Each(count, most int, do func(r *Run, i int) error) error {
	errs := make([]error, count)
	next, failed := 0, false
	wg := workflow.NewWaitGroup(r.ctx)
	for range min(count, most) {
		wg.Add(1)
		workflow.Go(r.ctx, func(ctx workflow.Context) {
			defer wg.Done()
			mine := *r
			mine.ctx = ctx
			for next < count && (r.undo || !failed) {
				i := next
				next++
				errs[i] = do(&mine, i)
				failed = failed || errs[i] != nil
			}
		})
	}
	wg.Wait(r.ctx)
	return worst(errs)
}

// worst returns the first error that will not pass by itself, or else the first.
func worst(errs []error) (first error) {
	for _, err := range errs {
		if err == nil {
			continue
		}
		if !problem.TraitsOf(problem.KindOf(err)).Retry {
			return err
		}
		if first == nil {
			first = err
		}
	}
	return first
}
