package control

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/saga"
)

// starter sees to it that every accepted operation has a workflow. It is the only one who starts workflows: the server
// accepts, the starter sees the record and acts, now or when it can. What was accepted is therefore never lost.
type starter struct {
	c     *Control
	queue chan store.Entry
	mu    sync.Mutex
	tries map[string]int         // operations in hand, and how often starting them has failed
	open  map[string]store.Entry // operations that have not ended, by key, as they were last seen
}

const (
	starters = 16 // operations that are started at the same time

	// lostAfter is how long an operation may stand still before it is checked that its workflow still exists. A workflow is
	// lost only if somebody terminates it by hand or Temporal's database is gone.
	lostAfter  = 30 * time.Second
	checkEvery = 30 * time.Second
)

func newStarter(c *Control) *starter {
	return &starter{c: c, queue: make(chan store.Entry, 1024), tries: map[string]int{}, open: map[string]store.Entry{}}
}

func (s *starter) run(ctx context.Context) {
	for range starters {
		go func() {
			for {
				select {
				case e := <-s.queue:
					s.handle(ctx, e)
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	go s.checkAll(ctx)
	for ctx.Err() == nil {
		s.follow(ctx)
		wait(ctx, time.Second)
	}
}

// follow lists the operations and then watches them, until the store cannot tell any more.
func (s *starter) follow(ctx context.Context) {
	prefix := store.KindPrefix(api.KindOperation)
	entries, revision, err := s.c.KV.List(ctx, prefix)
	if err != nil {
		s.c.Log.Warn("the operations cannot be listed; trying again", "error", err)
		return
	}
	s.mu.Lock()
	clear(s.open)
	s.mu.Unlock()
	for _, e := range entries {
		if s.note(e, false) {
			s.offer(ctx, e)
		}
	}
	for ch := range s.c.KV.Watch(ctx, prefix, revision) {
		// Only a new record is news: every later change of it was written by its own workflow.
		if s.note(ch.Entry, ch.Deleted) && ch.Created == ch.Revision {
			s.offer(ctx, ch.Entry)
		}
	}
}

// note remembers an operation as long as it has not ended, and reports whether that is so.
func (s *starter) note(e store.Entry, deleted bool) bool {
	var op struct {
		State api.OperationState `json:"state"`
	}
	open := !deleted && json.Unmarshal(e.Value, &op) == nil && !op.State.Ended()
	s.mu.Lock()
	defer s.mu.Unlock()
	if open {
		s.open[e.Key] = e
	} else {
		delete(s.open, e.Key)
	}
	return open
}

// offer hands an operation to a starter if it has not ended and is in nobody's hand.
func (s *starter) offer(ctx context.Context, e store.Entry) {
	var op api.Operation
	if err := store.Decode(e, &op); err != nil {
		s.c.Log.Error("an operation cannot be read", "error", err)
		return
	}
	if op.State.Ended() || op.State != api.OpAccepted && op.Started.After(time.Now().Add(-lostAfter)) {
		return
	}
	s.mu.Lock()
	_, known := s.tries[op.ID]
	if !known {
		s.tries[op.ID] = 0
	}
	s.mu.Unlock()
	if known {
		return
	}
	select {
	case s.queue <- e:
	case <-ctx.Done():
	}
}

// handle starts one operation, or offers it again later if that fails: one bad operation must not hold up the others.
func (s *starter) handle(ctx context.Context, e store.Entry) {
	var op api.Operation
	err := store.Decode(e, &op)
	if err == nil {
		err = s.act(ctx, &op, e)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil || ctx.Err() != nil {
		delete(s.tries, op.ID)
		return
	}
	s.tries[op.ID]++
	pause := min(5*time.Second, 100*time.Millisecond<<min(s.tries[op.ID], 6))
	s.c.Log.Warn("an operation cannot be started; trying again", "operation", op.ID, "kind", op.Kind, "in", pause, "error", err)
	time.AfterFunc(pause, func() {
		select {
		case s.queue <- e:
		case <-ctx.Done():
		}
	})
}

func (s *starter) act(ctx context.Context, op *api.Operation, e store.Entry) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if op.State == api.OpAccepted && s.attempts(op.ID) == 0 {
		return s.c.start(ctx, op, e.Created, nil, false)
	}
	// It was begun before, or an attempt to begin it gave no clear answer: look first.
	lost, err := s.c.lost(ctx, op)
	if err != nil || !lost {
		return err
	}
	fresh, err := s.c.KV.Get(ctx, e.Key)
	if err != nil {
		return err
	}
	if err := store.Decode(fresh, op); err != nil || op.State.Ended() {
		return err
	}
	if op.State == api.OpAccepted && len(op.Steps) == 0 {
		return s.c.start(ctx, op, e.Created, nil, true)
	}
	s.c.Log.Warn("the workflow of an operation was lost; taking it up from its journal", "operation", op.ID, "kind", op.Kind)
	d := s.c.definitions[op.Kind]
	if d == nil {
		return noWorkflow(op.Kind)
	}
	return s.c.start(ctx, op, e.Created, saga.RecoveryOf(d, op, e.Created), true)
}

func (s *starter) attempts(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tries[id]
}

// checkAll looks from time to time whether some operation has lost its workflow.
func (s *starter) checkAll(ctx context.Context) {
	for ctx.Err() == nil {
		wait(ctx, checkEvery)
		s.mu.Lock()
		open := slices.Collect(maps.Values(s.open))
		s.mu.Unlock()
		for _, e := range open {
			s.offer(ctx, e)
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
