package crash

import (
	"testing"

	"github.com/nextstack/nextstack/test/stack"
)

// TestCeph has data volumes in a Ceph cluster go through a life, of which checkpoints and moves to other pools are no part: in
// pools of files they are seen. The VMs are in Ceph, too.
func TestCeph(t *testing.T) {
	w := &world{Stack: stack.Up(t, stack.Options{Ceph: true})}
	all := w.lanes(t, 2, stack.Ceph)
	w.clean(t)
	life := []deed{createVolume(stack.Ceph), attachVolume, createSnapshot, deleteSnapshot, detachVolume, purgeVolume}
	for i, v := range []victim{killControl, killAgent} {
		w.live(t, all, onTheNode(life), v, i)
	}
	w.forget(t, all)
	w.clean(t)
}

// onTheNode leaves of the boundaries at which operations stand those on the node.
func onTheNode(deeds []deed) (out []deed) {
	for _, d := range deeds {
		var at []boundary
		for _, b := range d.at {
			if b.onNode {
				at = append(at, b)
			}
		}
		d.at = at
		out = append(out, d)
	}
	return out
}
