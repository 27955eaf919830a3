package state

import (
	"fmt"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// layer is a file, or whatever a pool has, of a volume.
type layer struct {
	volume   *api.Volume
	snapshot *api.Snapshot // that keeps it; nil: the volume is written to it
}

func (l layer) what() string {
	if l.snapshot != nil {
		return fmt.Sprintf("the layer of volume %s that snapshot %s keeps", l.volume.Name, l.snapshot.Name)
	}
	return "the file of volume " + l.volume.Name
}

// layers returns all that records say that there is of volumes, by name.
func (b *books) layers() map[string]layer {
	out := map[string]layer{}
	for _, v := range b.volumes {
		out[v.LayerName()] = layer{volume: v}
	}
	for _, s := range b.snaps {
		if v := b.volumes[s.Spec.Volume]; v != nil && s.Status.Layer != "" {
			out[s.Status.Layer] = layer{volume: v, snapshot: s}
		}
	}
	return out
}

// layerMoving reports whether an operation may be making or removing a layer.
func (c *comparison) layerMoving(name string, l layer) bool {
	return c.moving[name] || c.moving[l.volume.ID] || l.snapshot != nil && c.moving[l.snapshot.ID]
}

// sharedVolumes looks for what is missing in shared pools, which every node that has such a pool sees.
func (c *comparison) sharedVolumes(nodes []steps.NodeWorld) {
	looked := map[string]*steps.NodeWorld{} // by pool: one that would have seen it
	for i := range nodes {
		for id, p := range c.pools {
			if p.Spec.Shared && p.Takes(nodes[i].Agent) && !c.notRead[id+"/"+nodes[i].Agent] && looked[id] == nil {
				looked[id] = &nodes[i]
			}
		}
	}
	for name, l := range c.layers {
		pool := l.volume.Spec.Pool
		if n := looked[pool]; n != nil && !c.seenIn[pool+"/"+name] && !c.layerMoving(name, l) {
			c.missing(sidePool, "volume", name, n.Agent, l.what())
		}
	}
	c.sharedMemories(looked)
	c.lostSnapshots(looked)
}
