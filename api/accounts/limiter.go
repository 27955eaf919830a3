package accounts

import (
	"sync"
	"time"
)

// Wrong passwords are forgiven one by one: after maxFailures of them in a row, another try is allowed every forgiveOne.
const (
	maxFailures = 5
	forgiveOne  = 15 * time.Second
	limiterSize = 8192
)

// limiter counts failures by key. It is a leaky bucket that only failures fill.
type limiter struct {
	mu      sync.Mutex
	buckets map[string]bucket
}

type bucket struct {
	failures float64
	at       time.Time
}

func newLimiter() *limiter { return &limiter{buckets: map[string]bucket{}} }

// try counts an attempt as a failure, which it is until forget is called, and returns 0; or, if there were too many, it
// counts nothing and returns how long to wait. Counting first is what keeps a burst of parallel attempts in bounds.
func (l *limiter) try(key string, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	level := l.buckets[key].level(now)
	if level > maxFailures-1 {
		return time.Duration((level - (maxFailures - 1)) * float64(forgiveOne))
	}
	if len(l.buckets) >= limiterSize {
		l.shrink(now)
	}
	l.buckets[key] = bucket{failures: level + 1, at: now}
	return 0
}

func (l *limiter) forget(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.buckets, key)
}

// shrink drops the buckets that have run dry, and if there are none, all: remembering is bounded, whoever floods us.
func (l *limiter) shrink(now time.Time) {
	for k, b := range l.buckets {
		if b.level(now) == 0 {
			delete(l.buckets, k)
		}
	}
	if len(l.buckets) >= limiterSize {
		clear(l.buckets)
	}
}

func (b bucket) level(now time.Time) float64 {
	return max(0, b.failures-float64(now.Sub(b.at))/float64(forgiveOne))
}
