package libvirt

import (
	"context"
	"sync"

	"github.com/nextstack/nextstack/activities/compute"
)

// locks lets one caller at a time work on a thing.
type locks struct {
	mu    sync.Mutex
	taken map[string]chan struct{} // closed when the thing is free again
}

// enter waits until nobody has key. Leave may be called once or more.
func (l *locks) enter(ctx context.Context, key string) (leave func(), err error) {
	for {
		l.mu.Lock()
		wait, busy := l.taken[key]
		if !busy {
			if l.taken == nil {
				l.taken = map[string]chan struct{}{}
			}
			free := make(chan struct{})
			l.taken[key] = free
			l.mu.Unlock()
			return sync.OnceFunc(func() {
				l.mu.Lock()
				delete(l.taken, key)
				l.mu.Unlock()
				close(free)
			}), nil
		}
		l.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// broadcast gives events to all who listen. An event is dropped for a listener that has eventsKept others to read: it will
// look again after those.
type broadcast struct {
	mu   sync.Mutex
	subs map[chan compute.Event]bool
}

const eventsKept = 16

func (b *broadcast) listen(ctx context.Context) <-chan compute.Event {
	ch := make(chan compute.Event, eventsKept)
	b.mu.Lock()
	if b.subs == nil {
		b.subs = map[chan compute.Event]bool{}
	}
	b.subs[ch] = true
	b.mu.Unlock()
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.subs, ch)
		close(ch)
	})
	return ch
}

func (b *broadcast) send(e compute.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch := range b.subs {
		select {
		case ch <- e:
		default:
		}
	}
}
