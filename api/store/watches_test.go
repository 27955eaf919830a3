package store_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api/store"
)

// TestWatchesDoNotHoldEachOtherUp begins and ends many watches while much changes, on the client of an embedded server, which
// hands every message over in person. A watch that was there before must see every change.
func TestWatchesDoNotHoldEachOtherUp(t *testing.T) {
	s, err := sharedEtcd()
	require.NoError(t, err)
	kv, p := store.NewEtcd(s.inProcess), freshPrefix()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const writers, each, others = 8, 1500, 200
	_, since, err := kv.List(ctx, p)
	require.NoError(t, err)
	seen := make(chan struct{})
	go func() {
		n := 0
		for range kv.Watch(ctx, p, since) {
			if n++; n == writers*each {
				close(seen)
			}
		}
	}()
	busy, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i := range others {
		wg.Go(func() {
			for k := 0; busy.Err() == nil; k++ {
				short, end := context.WithCancel(busy)
				changes := kv.Watch(short, fmt.Sprintf("%s%d/", p, i%writers), since)
				<-changes
				end()
				for range changes { //nolint:revive // until it has ended
				}
			}
		})
	}
	for i := range writers {
		wg.Go(func() {
			for k := range each {
				_, err := kv.Commit(ctx, store.Tx{Puts: []store.Put{{Key: fmt.Sprintf("%s%d/%d", p, i, k), Value: []byte("x")}}})
				if !assertNoError(t, err) {
					return
				}
			}
		})
	}
	select {
	case <-seen:
	case <-ctx.Done():
		require.Fail(t, "the watch stands still")
	}
	stop()
	wg.Wait()
}

func assertNoError(t *testing.T, err error) bool {
	if err != nil {
		t.Error(err)
	}
	return err == nil
}
