package state

import (
	"maps"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// known returns the volume that a file belongs to, unless there is none, or an operation may be changing it.
func (c *comparison) known(f steps.FileFound) *api.Volume {
	l, ok := c.layers[f.ID]
	if f.Kind != "volume" || !ok || l.volume.Spec.Pool != f.Pool || c.moving[f.ID] || c.layerMoving(f.ID, l) {
		return nil
	}
	return l.volume
}

// disks looks whether what a node has of volumes can be opened: the files themselves, and the copies of images that they are made on.
func (c *comparison) disks(n steps.NodeWorld) {
	copies, lost := map[string]bool{}, map[copied][]string{}
	for _, f := range n.Files {
		if f.Kind == "backing" {
			copies[f.Pool+"/"+f.ID] = true
		}
	}
	for _, f := range n.Files {
		v := c.known(f)
		if v == nil {
			continue
		}
		if f.Defect != "" && c.first(f) {
			c.find(api.Finding{
				Side: sidePool, Kind: "volume", ID: f.ID, Node: n.Agent, Path: f.Path, Problem: f.Path + " of volume " + v.Name + " cannot be opened: " + f.Defect,
				Fix: "nothing: what was lost must be restored or deleted by a person",
			})
		}
		if f.On != "" && !copies[f.Pool+"/"+f.On] {
			key := copied{f.Pool, f.On}
			if !slices.Contains(lost[key], v.Name) {
				lost[key] = append(lost[key], v.Name)
			}
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(lost), func(a, b copied) int { return strings.Compare(a.pool+a.sha, b.pool+b.sha) }) {
		if c.first(steps.FileFound{Pool: key.pool, Path: key.sha}) {
			slices.Sort(lost[key])
			c.find(c.lostCopy(n, key, strings.Join(lost[key], ", ")))
		}
	}
}

// copied is an image's copy in a pool.
type copied struct{ pool, sha string }

// lostCopy: a copy is the same wherever and whenever it is made, so that volumes made on files are whole again with the next one.
func (c *comparison) lostCopy(n steps.NodeWorld, of copied, volumes string) api.Finding {
	image := "an image"
	for _, img := range c.images {
		if img.Status.SHA256 == of.sha {
			image = "image " + img.Name
		}
	}
	f := api.Finding{
		Side: sidePool, Kind: "backing", ID: of.sha, Node: n.Agent, Problem: "the copy of " + image + " that volumes are made on is missing on " + n.AgentName + ": " + volumes,
		Fix: "nothing: what was lost must be restored or deleted by a person",
	}
	if p := c.pools[of.pool]; p != nil && p.Spec.Type != api.PoolRBD && image != "an image" {
		f.Fix = "nothing: a new volume of that image, in this pool and on this node, brings the copy back"
	}
	return f
}

// watch is somebody who has a volume open.
type watch struct{ volume, addr string }

// watched looks for volumes that somebody has open who should not. Nodes look one after the other: who is seen by the first and not by
// the last has let go.
func (c *comparison) watched(nodes []steps.NodeWorld) {
	by, last, at := map[watch]bool{}, map[watch]int{}, map[watch]steps.FileFound{}
	readers, first := map[string]int{}, map[watch]string{}
	asked := map[string]bool{} // pools, by node, of which something was seen
	for _, n := range nodes {
		for _, f := range n.Files {
			if f.Kind != "volume" {
				continue
			}
			asked[n.Agent+"/"+f.Pool] = true
			readers[f.ID]++
			for _, w := range f.Watchers {
				key := watch{f.ID, w.Addr}
				if last[key]++; last[key] == 1 {
					at[key], first[key] = f, n.Agent
				}
				by[key] = by[key] || w.Here && c.runsOn(f.ID, n.Agent)
			}
		}
	}
	keys := slices.SortedFunc(maps.Keys(at), func(a, b watch) int { return strings.Compare(a.volume+a.addr, b.volume+b.addr) })
	for _, key := range keys {
		f := at[key]
		v := c.known(f)
		if v == nil || by[key] || last[key] < readers[f.ID] {
			continue
		}
		users, sure := c.users(v, func(agent string) bool { return asked[agent+"/"+f.Pool] })
		if !sure {
			continue
		}
		what := "volume " + v.Name + " is open, and no vm that runs has it"
		if len(users) > 0 {
			what = "volume " + v.Name + " is open on another node than that of vm " + strings.Join(users, ", ")
		}
		c.find(api.Finding{
			Side: sidePool, Kind: "watcher", ID: v.ID, Node: first[key], Path: f.Path, Problem: what + ": by a client at " + key.addr,
			Fix: "nothing: see what it is; a client that has died is forgotten by the cluster within a minute",
		})
	}
}

// runs reports whether the guest of a VM may have its disks open.
func runs(vm *api.VM) bool { return vm != nil && vm.Status.Phase != api.PhaseStopped }

func (c *comparison) runsOn(volume, agent string) bool {
	v := c.volumes[volume]
	return v != nil && slices.ContainsFunc(v.VMs(), func(id string) bool { return runs(c.vms[id]) && c.vms[id].Status.Agent == agent })
}

// users returns the names of the VMs that may have a volume open. Sure: none of them is on its way, or on a node that could not say
// whether it is the one.
func (c *comparison) users(v *api.Volume, asked func(agent string) bool) (names []string, sure bool) {
	for _, id := range v.VMs() {
		vm := c.vms[id]
		if c.moving[id] {
			return nil, false
		}
		if !runs(vm) {
			continue
		}
		if !asked(vm.Status.Agent) {
			return nil, false
		}
		names = append(names, vm.Name)
	}
	slices.Sort(names)
	return names, true
}
