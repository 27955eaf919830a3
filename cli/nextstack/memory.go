package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Bounds of the memory limit's steps.
const (
	memoryLook = 500 * time.Millisecond
	// busyCollecting is the share of the processors' time, of what this process used, above which collecting garbage costs
	// more than the memory that it saves.
	busyCollecting = 0.15
	memoryStep     = 1.25
	// memoryCalm is how long collecting must cost little before memory is given back.
	memoryCalm = 30 * time.Second
)

// followMemory keeps the process small while little is to be done, and lets it grow when that would cost time: a fixed limit
// does only one of the two, since at the limit the collector takes up to half of the processors. It begins with limit bytes
// and comes back to it.
func followMemory(ctx context.Context, limit int64) {
	debug.SetMemoryLimit(limit)
	m := &memory{base: limit, limit: limit, set: func(n int64) { debug.SetMemoryLimit(n) }}
	samples := []metrics.Sample{{Name: "/cpu/classes/gc/total:cpu-seconds"}, {Name: "/cpu/classes/user:cpu-seconds"}, {Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	tick := time.NewTicker(memoryLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			// The classes of processor time are brought up to date by each collection only, so an idle process shows no change.
			metrics.Read(samples)
			m.see(now, samples[0].Value.Float64(), samples[1].Value.Float64(), int64(samples[2].Value.Uint64()-samples[3].Value.Uint64()))
		}
	}
}

// memory is the limit as it is now, and what was seen last.
type memory struct {
	base, limit int64
	set         func(int64)
	gc, user    float64 // seconds of processor time since the start
	calm        time.Time
}

// see looks at what was used since the last time, and moves the limit. Held is what the limit applies to, in bytes.
func (m *memory) see(now time.Time, gc, user float64, held int64) {
	dgc, duser := gc-m.gc, user-m.user
	m.gc, m.user = gc, user
	switch {
	case dgc > 0 && dgc > busyCollecting*(dgc+duser):
		m.calm = now
		if held > m.limit*8/10 { // else it was not for want of room
			m.move(int64(float64(m.limit) * memoryStep))
		}
	case m.limit > m.base && now.Sub(m.calm) > memoryCalm:
		m.calm = now
		m.move(max(m.base, int64(float64(m.limit)/memoryStep)))
	}
}

func (m *memory) move(limit int64) {
	m.limit = limit
	m.set(limit)
}
