package store

// SetPage makes an etcd store list that many entries at a time.
func SetPage(kv KV, entries int64) { kv.(*etcd).page = entries }

// SetRing makes a cache that does not run yet remember that many changes.
func SetRing(c *Cache, size int) { c.ring.buf = make([]Change, 0, size) }

// RingSize and BatchSize are what subscribers get.
const (
	RingSize  = ringSize
	BatchSize = batchSize
)
