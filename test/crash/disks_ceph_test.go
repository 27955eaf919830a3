package crash

import (
	"bytes"
	"context"
	"testing"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/test/stack"
)

// TestCeph has data volumes in a Ceph cluster go through a life, of which checkpoints and moves to other pools are no part: in
// pools of files they are seen. The VMs are in Ceph, too.
func TestCeph(t *testing.T) {
	w := &world{Stack: stack.Up(t, stack.Options{Ceph: true})}
	all := w.lanes(t, 2, stack.Ceph)
	w.clean(t)
	life := []deed{createVolume(stack.Ceph), attachVolume, createSnapshot, revertSnapshot, deleteSnapshot, detachVolume, purgeVolume}
	for i, v := range []victim{killControl, killAgent} {
		w.live(t, all, onTheNode(life), v, i)
	}
	w.forget(t, all)
	w.clean(t)
}

// revertSnapshot has the VM stopped and started for it. What was in its memory is gone then, also when all is undone.
var revertSnapshot = deed{
	kind: api.OpSnapshotRevert,
	at: []boundary{
		{"revert", stack.Before, true},
		{"revert", stack.After, true},
		{"start", stack.After, true},
	},
	ask: func(ctx context.Context, l *lane, w client.Write) (*api.Operation, error) {
		return l.w.Client.RevertSnapshot(ctx, project, l.name("snap"), api.SnapshotRevert{Restart: true, Force: true}, w)
	},
	after: func(ctx context.Context, l *lane, done bool) error {
		if done {
			l.content = bytes.Clone(l.kept)
		}
		l.mark = ""
		return first(l.boots(ctx), l.sees(ctx), l.keeps(ctx), l.remember(ctx, "went-back"))
	},
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
