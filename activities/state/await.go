package state

import (
	"context"
	"slices"
	"time"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

// awaitAtMost is how long one attempt waits; whoever still wants to know asks again.
const awaitAtMost = 30 * time.Second

// orderMove accepts the operation of one move, under a key that makes two orders of one parent for one VM the same.
func (s *State) orderMove(ctx context.Context, _ steps.Token, in steps.MoveOrder) (string, error) {
	vm := in.Move.VM
	o := admission.Options{Project: vm.Project, Parent: in.Parent, IdempotencyKey: in.Parent + "/" + vm.ID}
	if before := in.Move.Operation; before != "" {
		o.IdempotencyKey += "/" + before // that one was in vain
	}
	var op *api.Operation
	var err error
	if in.Move.Kind == api.MoveRestart {
		op, err = s.settle.RecoverVM(ctx, s.h, o, vm.ID)
	} else {
		op, err = s.settle.MigrateVM(ctx, s.h, o, vm.ID, in.Request)
	}
	if err != nil {
		return "", err
	}
	return op.ID, nil
}

// awaitOperations waits until one of them has ended, and tells meanwhile how all of them are.
func (s *State) awaitOperations(ctx context.Context, _ steps.Token, in steps.Watched) ([]steps.OperationEnd, error) {
	deadline := time.NewTimer(awaitAtMost)
	defer deadline.Stop()
	for {
		ends, revision, err := s.ends(ctx, in.Operations)
		if err != nil {
			return nil, err
		}
		activities.Tell(ctx, api.Progress{Moves: fresh(in, ends)})
		if len(ends) == 0 || slices.ContainsFunc(ends, func(e steps.OperationEnd) bool { return e.State.Ended() }) {
			return ends, nil
		}
		more, err := s.change(ctx, in.Operations, revision, deadline.C)
		if err != nil || !more {
			return ends, err
		}
	}
}

// ends reads how the operations are, and the revision from which on changes of all of them are to come. An operation that is
// not there counts as failed: nothing will become of it.
func (s *State) ends(ctx context.Context, ids []string) (out []steps.OperationEnd, since int64, err error) {
	for i, id := range ids {
		if i == 0 { // the oldest state that is read, so that no change is missed
			if _, since, err = s.kv.List(ctx, store.Key(api.KindOperation, "", id)); err != nil {
				return nil, 0, err
			}
		}
		op, err := store.Get[api.Operation](ctx, s.kv, s.h, "", id)
		switch {
		case problem.Is(err, problem.NotFound):
			out = append(out, steps.OperationEnd{State: api.OpFailed, Error: problem.From(err)})
		case err != nil:
			return nil, 0, err
		default:
			out = append(out, steps.OperationEnd{State: op.State, Error: op.Error})
		}
	}
	return out, since, nil
}

// change waits for a change of one of the operations after a revision, and reports whether there was one before the deadline.
func (s *State) change(ctx context.Context, ids []string, since int64, deadline <-chan time.Time) (bool, error) {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	changed := make(chan bool, len(ids)) // false: the store can tell no more
	for _, id := range ids {
		go func() {
			_, ok := <-s.kv.Watch(watching, store.Key(api.KindOperation, "", id), since)
			changed <- ok
		}()
	}
	select {
	case ok := <-changed:
		if !ok && ctx.Err() == nil {
			return false, problem.New(problem.Unavailable, "the operations cannot be watched").Because("the store stopped to tell of changes").Try("ask again")
		}
	case <-deadline:
		return false, nil
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return false, problem.Wrap(ctx.Err(), problem.Cancelled, "waiting for operations was given up")
	}
	return true, nil
}

// fresh returns the moves with the states that their operations have now.
func fresh(in steps.Watched, ends []steps.OperationEnd) []api.Move {
	moves := slices.Clone(in.Moves)
	for i := range moves {
		if k := slices.Index(in.Operations, moves[i].Operation); k >= 0 && moves[i].Operation != "" {
			moves[i].State, moves[i].Error = ends[k].State, ends[k].Error
		}
	}
	return moves
}
