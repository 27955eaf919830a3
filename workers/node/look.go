package node

import (
	"context"
	"errors"
	"sync"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// look lists what is on this node. The parts that cannot be asked make it fail: an audit of half a node would call the other
// half missing. A pool that cannot be read is said to be so, whatever the reason: its servers may be away for days, or its key be
// a wrong one, and the rest should be audited.
func (a *agent) look(ctx context.Context, _ steps.Token, q steps.NodeQuestion) (w steps.NodeWorld, err error) {
	if w.Domains, err = a.driver.List(ctx); err != nil {
		return w, problem.Wrap(err, problem.Internal, "the domains of this node cannot be listed")
	}
	files, errs := make([][]steps.FileFound, len(q.Pools)), make([]error, len(q.Pools))
	var wg sync.WaitGroup
	for i, p := range q.Pools {
		wg.Go(func() { files[i], errs[i] = a.pools.List(ctx, p) })
	}
	wg.Wait()
	for i, p := range q.Pools {
		switch {
		case ctx.Err() != nil:
			return w, problem.Wrap(ctx.Err(), problem.Cancelled, "listing the pools was cancelled")
		case errs[i] != nil:
			w.Unread = append(w.Unread, steps.PoolUnread{Pool: p.Pool, Why: errs[i].Error()})
		}
		w.Files = append(w.Files, files[i]...)
	}
	if w.Secrets, err = a.driver.ListSecrets(ctx); err != nil {
		return w, problem.Wrap(err, problem.Internal, "the keys that the hypervisor knows cannot be listed")
	}
	if w.OVSPorts, err = a.sw.ListPorts(ctx); err != nil {
		return w, problem.Wrap(err, problem.Internal, "the switch ports of this node cannot be listed")
	}
	return w, nil
}

// repair removes what an audit found to be nobody's: first what uses, then what is used. What cannot be removed does not
// keep the rest.
func (a *agent) repair(ctx context.Context, _ steps.Token, r steps.NodeRepair) (steps.Nothing, error) {
	var errs []error
	for _, id := range r.Domains {
		errs = append(errs, a.driver.Remove(ctx, id))
	}
	for _, id := range r.Secrets {
		errs = append(errs, a.driver.DropSecret(ctx, id))
	}
	for _, name := range r.OVSPorts {
		errs = append(errs, a.sw.RemovePort(ctx, name))
	}
	pools := map[string]steps.PoolOnNode{}
	for _, p := range r.Pools {
		pools[p.Pool] = p
	}
	return steps.Nothing{}, joined(append(errs, a.removeFiles(ctx, r.Files, pools)...))
}

// removeFiles removes files of pools. One that another is made on may be removed after that.
func (a *agent) removeFiles(ctx context.Context, files []steps.FileFound, pools map[string]steps.PoolOnNode) (errs []error) {
	for {
		var needed []steps.FileFound
		var why []error
		for _, f := range files {
			p, ok := pools[f.Pool]
			if !ok {
				errs = append(errs, problem.New(problem.Invalid, "file %s is in no known pool", f.Path))
				continue
			}
			if err := a.pools.Remove(ctx, p, f); problem.Is(err, problem.InUse) {
				needed, why = append(needed, f), append(why, err)
			} else {
				errs = append(errs, err)
			}
		}
		if len(needed) == 0 || len(needed) == len(files) {
			return append(errs, why...)
		}
		files = needed
	}
}

// joined makes one problem of several errors: of the kind of the first, with the words of all.
func joined(errs []error) error {
	var left []error
	for _, err := range errs {
		if err != nil {
			left = append(left, err)
		}
	}
	if len(left) <= 1 {
		return errors.Join(left...)
	}
	return problem.New(problem.KindOf(left[0]), "%d things could not be removed", len(left)).Because("%s", errors.Join(left...))
}
