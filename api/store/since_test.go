package store_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

func TestSinceTellsWhatLeadsToTheRevisionShown(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	kv := store.NewMemory()
	cache := store.NewCache(kv, "/")
	_, _, err := cache.Since(1)
	require.Equal(t, problem.Unavailable, problem.KindOf(err), "nobody has filled it")
	wg.Go(func() { cache.Run(ctx) })
	require.NoError(t, cache.WaitFor(ctx, 1))
	begin := cache.Revision()
	write := func(from, to int) (last int64) {
		for i := from; i < to; i++ {
			last, err = kv.Commit(ctx, store.Tx{Puts: []store.Put{{Key: fmt.Sprint("/a", i), Value: []byte("x")}, {Key: fmt.Sprint("/b", i), Value: []byte("x")}}})
			require.NoError(t, err)
		}
		require.NoError(t, cache.WaitFor(ctx, last))
		return last
	}
	last := write(0, 600) // more than a subscriber gets at once
	changes, revision, err := cache.Since(begin)
	require.NoError(t, err)
	require.Equal(t, last, revision)
	require.Len(t, changes, 1200)
	require.Equal(t, "/a0", changes[0].Key)
	require.Equal(t, "/b599", changes[1199].Key)

	changes, revision, err = cache.Since(last)
	require.NoError(t, err)
	require.Equal(t, last, revision)
	require.Empty(t, changes)

	_, _, err = cache.Since(last + 1)
	require.Equal(t, problem.Precondition, problem.KindOf(err), "that is another store's")
	write(600, 3000) // more than it remembers
	_, _, err = cache.Since(begin)
	require.Equal(t, problem.Precondition, problem.KindOf(err))
}
