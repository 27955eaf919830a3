package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMemoryGrowsWhileCollectingCostsMuchAndComesBack(t *testing.T) {
	const base = 100 << 20
	var set int64
	m := &memory{base: base, limit: base, set: func(n int64) { set = n }}
	now, gc, user := time.Unix(0, 0), 0.0, 0.0
	for range 8 { // half of the time goes into collecting
		now, gc, user = now.Add(memoryLook), gc+0.4, user+0.4
		m.see(now, gc, user, m.limit*9/10)
	}
	require.Greater(t, set, int64(4*base))
	grown := set
	for range 8 { // there is room enough, so that more would not help
		now, gc, user = now.Add(memoryLook), gc+0.4, user+0.4
		m.see(now, gc, user, m.limit/10)
	}
	require.Equal(t, grown, set)
	for range 1000 {
		now, user = now.Add(memoryLook), user+0.1
		m.see(now, gc, user, base/2)
	}
	require.Equal(t, int64(base), set)
}
