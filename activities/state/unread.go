package state

import (
	"fmt"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// unread returns the pools of which a node cannot tell now what is in them: they were not read, or show something else than they
// did, as an export does whose disk is not mounted on its server. Nothing is missing there, only not seen; the report says so, unless
// the pool is just being made or taken away.
func (c *comparison) unread(n steps.NodeWorld) map[string]bool {
	out := map[string]bool{}
	say := func(pool, why string) {
		if out[pool] {
			return
		}
		out[pool] = true
		if c.moving[pool] {
			return
		}
		name := pool
		if p := c.pools[pool]; p != nil {
			name = p.Name
		}
		c.report.Skipped = append(c.report.Skipped, fmt.Sprintf("pool %s on %s: %s", name, n.AgentName, why))
	}
	for _, u := range n.Unread {
		say(u.Pool, u.Why)
	}
	if a := c.agents[n.Agent]; a != nil {
		for _, u := range a.Status.Inventory.Pools {
			// What all nodes see is in doubt when none can use it; what only this one sees, when it cannot.
			if p := c.pools[u.Pool]; p != nil && u.Error != "" && (!p.Spec.Shared || p.Status.Phase == api.PhaseUnavailable) {
				say(u.Pool, u.Error)
			}
		}
	}
	return out
}
