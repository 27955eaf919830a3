package fault

import (
	"context"
	"fmt"
	"sync"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

// orders are the operations that operations have ordered, which run one at a time: one whenever somebody waits for some, and
// all that are left when the operation that ordered them has ended.
type orders struct {
	mu        sync.Mutex
	cancelled map[string]bool // that are to be cancelled; by ID
}

// cancelOrder notes that an operation is to go back. It is cancelled when it runs: one as soon as it begins, the next one while
// it moves its VM, and so on.
func (w *World) cancelOrder(id string) {
	w.orders.mu.Lock()
	defer w.orders.mu.Unlock()
	if w.orders.cancelled == nil {
		w.orders.cancelled = map[string]bool{}
	}
	w.orders.cancelled[id] = true
}

// heard returns the injector that an ordered operation runs with.
func (w *World) heard(id string) *injector {
	w.orders.mu.Lock()
	defer w.orders.mu.Unlock()
	j := newInjector(nil)
	if w.orders.cancelled[id] {
		late := len(w.orders.cancelled)%2 == 0
		j.cancelAt = func(c Call) bool {
			return !late || c.Activity == steps.MigrateDomain.Name || c.Activity == steps.CreateDomain.Name || c.Activity == steps.DefineDomain.Name
		}
	}
	return j
}

// runNext runs the first of the operations that has not ended.
func (w *World) runNext(ctx context.Context, ids []string) error {
	for _, id := range ids {
		op, err := store.Get[api.Operation](ctx, w.KV, w.User, "", id)
		if err != nil {
			return err
		}
		if !op.State.Ended() {
			return w.runOrder(ctx, op)
		}
	}
	return nil
}

// runOrders runs the operations that another one has ordered and that have not ended.
func (w *World) runOrders(ctx context.Context, parent string) error {
	ops, err := store.List[api.Operation](ctx, w.KV, w.User, "")
	if err != nil {
		return err
	}
	for _, op := range ops {
		if op.Parent != parent || op.State.Ended() {
			continue
		}
		if err := w.runOrder(ctx, op); err != nil {
			return err
		}
	}
	return nil
}

func (w *World) runOrder(ctx context.Context, op *api.Operation) error {
	op, err := w.run(context.WithoutCancel(ctx), op.ID, w.heard(op.ID))
	if err == nil && !op.State.Ended() {
		err = fmt.Errorf("operation %s of vm %s, which was ordered, is %s for ever: %w", op.Kind, op.Target.Name, op.State, op.Error)
	}
	return err
}
