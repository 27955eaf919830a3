package crash

import (
	"bytes"
	"context"
	"fmt"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/test/stack"
)

// otherPool is where volumes go to.
const otherPool = "other"

// boundary is where an operation stands when something dies.
type boundary struct {
	step, at string
	onNode   bool
}

// around returns the boundaries of an operation that decides or reads something first, and then does one step on the node.
func around(first, step string) []boundary {
	return []boundary{
		{"accept", stack.After, false},
		{first, stack.Before, false},
		{first, stack.After, false},
		{step, stack.Before, true},
		{step, stack.After, true},
		{"settle", stack.Before, false},
	}
}

// deed is one operation in the life of a data volume.
type deed struct {
	kind string
	at   []boundary // one for each lane
	ask  func(ctx context.Context, l *lane, w client.Write) (*api.Operation, error)
	// before is what is done before, and writes says that the guest writes while the operation stands.
	before func(ctx context.Context, l *lane) error
	writes bool
	files  bool // libvirt has no part in it
	// after checks what is when it has ended, done or undone.
	after func(ctx context.Context, l *lane, done bool) error
}

// life returns what data volumes go through in a pool of files, in this order. Each operation stands at as many boundaries as
// there are lanes: at all of what it does on the node but for what it does there last, and as many others as fit.
func life(pool string) []deed {
	return []deed{
		createVolume(pool), attachVolume, migrateVolume, createSnapshot, createCheckpoint, revertCheckpoint, deleteCheckpoint,
		deleteSnapshot, detachVolume, purgeVolume,
	}
}

// has looks whether there is a resource of the lane, as there should be or not.
func has[R api.Resource](ctx context.Context, l *lane, what string, want bool) (R, error) {
	r, err := client.Get[R](ctx, l.w.Client, project, l.name(what))
	switch {
	case want:
		return r, err
	case err == nil:
		return r, fmt.Errorf("there is a %s, and there should be none", l.name(what))
	case problem.Is(err, problem.NotFound):
		return r, nil
	default:
		return r, err
	}
}

// first returns the first error that there is.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// keeps checks that the snapshot is still what it was.
func (l *lane) keeps(ctx context.Context) error {
	s, err := has[*api.Snapshot](ctx, l, "snap", true)
	if err != nil {
		return err
	}
	v, err := has[*api.Volume](ctx, l, "data", true)
	if err != nil {
		return err
	}
	layer := s.Status.Layer
	if layer == "" {
		layer = s.ID
	}
	return l.holds(ctx, v, layer, l.kept)
}

func createVolume(pool string) deed {
	return deed{
		kind: api.OpVolumeCreate, files: true, at: around("place", "make"),
		ask: func(ctx context.Context, l *lane, w client.Write) (*api.Operation, error) {
			return client.Create(ctx, l.w.Client, project, &api.VolumeCreate{
				Name: l.name("data"), Size: diskMiB * api.MiB, Pool: pool, Image: pattern, VM: l.vm.Name,
			}, w)
		},
		after: func(ctx context.Context, l *lane, done bool) error {
			v, err := has[*api.Volume](ctx, l, "data", done)
			if err == nil && done {
				err = l.holds(ctx, v, v.LayerName(), l.content)
			}
			return first(err, l.seesNone(ctx))
		},
	}
}

var attachVolume = deed{
	kind: api.OpVolumeAttach, at: around("load", "attach"),
	ask: func(ctx context.Context, l *lane, w client.Write) (*api.Operation, error) {
		return l.w.Client.AttachVolume(ctx, project, l.name("data"), api.VolumeAttach{VM: l.vm.Name}, w)
	},
	after: func(ctx context.Context, l *lane, done bool) error {
		if done {
			return l.sees(ctx)
		}
		return l.seesNone(ctx)
	},
}

var migrateVolume = deed{
	kind: api.OpVolumeMigrate, writes: true,
	at: []boundary{
		{"place", stack.After, false},
		{"make", stack.Before, true},
		{"make", stack.After, true},
		{"copy", stack.Before, true},
		{"copy", stack.After, true},
		{"clean", stack.Before, true},
	},
	ask: func(ctx context.Context, l *lane, w client.Write) (*api.Operation, error) {
		return l.w.Client.MigrateVolume(ctx, project, l.name("data"), api.VolumeMigrate{Pool: otherPool}, w)
	},
	after: func(ctx context.Context, l *lane, done bool) error {
		v, err := has[*api.Volume](ctx, l, "data", true)
		if err != nil {
			return err
		}
		p, err := client.Get[*api.Pool](ctx, l.w.Client, "", otherPool)
		if err == nil && (v.Spec.Pool == p.ID) != done {
			err = fmt.Errorf("its volume is in pool %s; it is in the other one: %s; it should be: %t", v.Spec.Pool, p.ID, done)
		}
		return first(err, l.sees(ctx))
	},
}

var createSnapshot = deed{
	kind: api.OpSnapshotCreate, at: around("load", "take"),
	before: func(_ context.Context, l *lane) error {
		l.kept = bytes.Clone(l.content)
		return nil
	},
	ask: func(ctx context.Context, l *lane, w client.Write) (*api.Operation, error) {
		return client.Create(ctx, l.w.Client, project, &api.SnapshotCreate{Name: l.name("snap"), Volume: l.name("data")}, w)
	},
	after: func(ctx context.Context, l *lane, done bool) error {
		_, err := has[*api.Snapshot](ctx, l, "snap", done)
		if err == nil && done {
			err = l.keeps(ctx)
		}
		return first(err, l.sees(ctx))
	},
}

var createCheckpoint = deed{
	kind: api.OpCheckpointCreate, at: around("load", "take"),
	before: func(ctx context.Context, l *lane) error {
		err := l.remember(ctx, fmt.Sprintf("checkpoint-%d", l.writes))
		l.then, l.back = bytes.Clone(l.content), l.mark
		return err
	},
	ask: func(ctx context.Context, l *lane, w client.Write) (*api.Operation, error) {
		return client.Create(ctx, l.w.Client, project, &api.CheckpointCreate{Name: l.name("cp"), VM: l.vm.Name}, w)
	},
	after: func(ctx context.Context, l *lane, done bool) error {
		_, err := has[*api.Checkpoint](ctx, l, "cp", done)
		return first(err, l.sees(ctx), l.keeps(ctx))
	},
}

var revertCheckpoint = deed{
	kind: api.OpCheckpointRevert,
	at: []boundary{
		{"save", stack.Before, true},
		{"save", stack.After, true},
		{"switch", stack.Before, true},
		{"switch", stack.After, true},
		{"forget", stack.Before, true},
		{"forget", stack.After, true},
	},
	before: func(ctx context.Context, l *lane) error { return l.remember(ctx, fmt.Sprintf("later-%d", l.writes)) },
	ask: func(ctx context.Context, l *lane, w client.Write) (*api.Operation, error) {
		return l.w.Client.RevertCheckpoint(ctx, project, l.name("cp"), w)
	},
	after: func(ctx context.Context, l *lane, done bool) error {
		if done { // it is in that very moment again; else it is in this one
			l.content, l.mark = bytes.Clone(l.then), l.back
		}
		return first(l.sees(ctx), l.keeps(ctx))
	},
}

var deleteCheckpoint = deed{
	kind: api.OpCheckpointDelete, writes: true,
	at: []boundary{
		{"load", stack.After, false},
		{"forget", stack.Before, true},
		{"forget", stack.After, true},
		{"drop", stack.Before, true},
		{"drop", stack.After, true},
		{"settle", stack.Before, false},
	},
	ask: func(ctx context.Context, l *lane, w client.Write) (*api.Operation, error) {
		return l.w.Client.Delete(ctx, api.KindCheckpoint, project, l.name("cp"), w)
	},
	after: func(ctx context.Context, l *lane, done bool) error {
		_, err := has[*api.Checkpoint](ctx, l, "cp", !done)
		return first(err, l.sees(ctx), l.keeps(ctx))
	},
}

var deleteSnapshot = deed{
	kind: api.OpSnapshotDelete, at: around("load", "drop"), writes: true,
	ask: func(ctx context.Context, l *lane, w client.Write) (*api.Operation, error) {
		return l.w.Client.Delete(ctx, api.KindSnapshot, project, l.name("snap"), w)
	},
	after: func(ctx context.Context, l *lane, done bool) error {
		_, err := has[*api.Snapshot](ctx, l, "snap", !done)
		return first(err, l.sees(ctx))
	},
}

var detachVolume = deed{
	kind: api.OpVolumeDetach, at: around("load", "detach"),
	ask: func(ctx context.Context, l *lane, w client.Write) (*api.Operation, error) {
		return l.w.Client.DetachVolume(ctx, project, l.name("data"), api.VolumeDetach{}, w)
	},
	after: func(ctx context.Context, l *lane, done bool) error {
		v, err := has[*api.Volume](ctx, l, "data", true)
		if err != nil || !done {
			return first(err, l.sees(ctx))
		}
		return first(l.seesNone(ctx), l.holds(ctx, v, v.LayerName(), l.content))
	},
}

var purgeVolume = deed{
	kind: api.OpVolumePurge, files: true, at: around("load", "remove"),
	ask: func(ctx context.Context, l *lane, w client.Write) (*api.Operation, error) {
		return l.w.Client.DeleteVolume(ctx, project, l.name("data"), api.VolumeDelete{Now: true}, w)
	},
	after: func(ctx context.Context, l *lane, done bool) error {
		_, err := has[*api.Volume](ctx, l, "data", !done)
		return first(err, l.seesNone(ctx))
	},
}
