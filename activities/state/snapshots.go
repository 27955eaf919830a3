package state

import (
	"fmt"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// What nodes call the snapshots of a pool that keeps them under names.
const (
	kindSnapshot = "snapshot"
	kindKept     = "kept"    // as long as an operation needs it
	kindForeign  = "foreign" // not made by us
)

// named reports whether a file is a snapshot that its pool keeps under a name.
func named(f steps.FileFound) bool {
	return f.Kind == kindSnapshot || f.Kind == kindKept || f.Kind == kindForeign
}

// snapshot looks at one that a node has found.
func (c *comparison) snapshot(n steps.NodeWorld, f steps.FileFound) {
	if f.Kind == kindSnapshot {
		c.seenIn[f.Pool+"/"+f.Of+"@"+f.ID] = true
		s, v := c.snaps[f.ID], c.volumes[f.Of]
		if s != nil && v != nil && s.Spec.Volume == v.ID && v.Spec.Pool == f.Pool {
			return
		}
	}
	if c.moving[f.ID] || !c.first(f) { // operations name all snapshots that they make, also those that they need for themselves
		return
	}
	if f.Kind == kindForeign {
		c.find(api.Finding{
			Side: sidePool, Kind: kindForeign, ID: f.Path, Node: n.Agent, Path: f.Path, Problem: f.Path + " is a snapshot that was not made here, and what it is of cannot be removed",
			Fix: "nothing: whoever made it must remove it",
		})
		return
	}
	c.extra(sidePool, f.Kind, f.ID, n.Agent, f.Path, fmt.Sprintf("snapshot %s exists", f.Path))
}

// first reports whether a file was not told of by another node that sees the same pool.
func (c *comparison) first(f steps.FileFound) bool {
	if !c.sharedPool(f.Pool) {
		return true
	}
	told := c.told[f.Pool+f.Path]
	c.told[f.Pool+f.Path] = true
	return !told
}

// lostSnapshots looks for those that are missing in pools that keep them under names: looked is one node that would have seen them, by
// pool. Those of a volume that is missing itself are not told of.
func (c *comparison) lostSnapshots(looked map[string]*steps.NodeWorld) {
	for id, s := range c.snaps {
		v := c.volumes[s.Spec.Volume]
		if v == nil || s.Status.Layer != "" {
			continue
		}
		pool := v.Spec.Pool
		if p := c.pools[pool]; p == nil || p.Spec.Type != api.PoolRBD || looked[pool] == nil || !c.seenIn[pool+"/"+v.ID] {
			continue
		}
		if !c.seenIn[pool+"/"+v.ID+"@"+id] && !c.moving[id] && !c.moving[v.ID] {
			c.missing(sidePool, kindSnapshot, id, looked[pool].Agent, "snapshot "+s.Name+" of volume "+v.Name)
		}
	}
}
