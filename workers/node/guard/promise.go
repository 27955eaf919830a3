// Package guard is the guardian of a node: a small process beside the agent that stops the node's HA VMs when nobody has
// renewed the node's lease in time. The control plane counts on it: when a guarded lease is over, and a margin, it may start
// those VMs elsewhere, on the same disks. So the guardian depends on as little as possible. It outlives the agent, asks
// neither libvirt nor the network, and reckons by a clock that nobody can set.
package guard

import (
	"time"

	"golang.org/x/sys/unix"
)

// Boottime returns the time since the machine has booted, its sleep included. Nobody can set this clock.
func Boottime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // every Linux of the last decade has it, and without it nothing here holds
	}
	return time.Duration(t.Nano())
}

// Promise is until when a node's HA VMs may run, by the node's Boottime. The zero Promise is one that was never given: then
// there is no lease, and nothing that one has ended.
type Promise struct {
	Until time.Duration `json:"until"` // 0: never given
}

// Renew moves the end of the lease. It never comes nearer: answers may overtake one another.
func (p *Promise) Renew(until time.Duration) { p.Until = max(p.Until, until) }

// Valid reports whether HA VMs may run at now.
func (p Promise) Valid(now time.Duration) bool { return now < p.Until }

// Broken reports whether there was a lease and it is over, so that no HA VM may run.
func (p Promise) Broken(now time.Duration) bool { return p.Until != 0 && !p.Valid(now) }
