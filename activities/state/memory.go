package state

import (
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// kindMemory is what nodes call a file with the memory of a guest.
const kindMemory = "memory"

// memoryAgent returns the node that must have the file with the memory of a checkpoint; "": any that has its pool.
func (b *books) memoryAgent(cp *api.Checkpoint) string {
	if p := b.pools[cp.Status.Pool]; p != nil && p.Spec.Shared {
		return ""
	}
	if vm := b.vms[cp.Spec.VM]; vm != nil {
		return vm.Status.Agent
	}
	return ""
}

// memories looks for files with the memory of guests that are missing on a node, in pools that only it has.
func (c *comparison) memories(n steps.NodeWorld, unread map[string]bool) {
	for id, cp := range c.checkpoints {
		if c.memoryAgent(cp) == n.Agent && !c.seenIn[cp.Status.Pool+"/"+id] && !c.moving[id] && !unread[cp.Status.Pool] {
			c.missing(sidePool, kindMemory, id, n.Agent, "the file with the memory of checkpoint "+cp.Name)
		}
	}
}

// sharedMemories looks for those that are missing in pools that several nodes see: looked is one that would have seen them, by pool.
func (c *comparison) sharedMemories(looked map[string]*steps.NodeWorld) {
	for id, cp := range c.checkpoints {
		if n := looked[cp.Status.Pool]; n != nil && !c.seenIn[cp.Status.Pool+"/"+id] && !c.moving[id] {
			c.missing(sidePool, kindMemory, id, n.Agent, "the file with the memory of checkpoint "+cp.Name)
		}
	}
}

// checkpointed checks that a checkpoint has the snapshots that it is made of.
func (c *comparison) checkpointed() {
	for id, cp := range c.checkpoints {
		for _, d := range cp.Status.Disks {
			if s := c.snaps[d.Snapshot]; (s == nil || s.Spec.Checkpoint != id) && !c.moving[id] && !c.moving[cp.Spec.VM] {
				c.find(api.Finding{
					Side: sideStore, Kind: "checkpoint", ID: id, Problem: "checkpoint " + cp.Name + " has lost the snapshot of its disk " + d.Device,
					Fix: "nothing: tell the developers how it came to this",
				})
			}
		}
	}
}
