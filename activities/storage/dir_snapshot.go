package storage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/activities/storage/qemuimg"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// AddSnapshot implements Snapshots. The new layer has the size that the volume has, which may be another one than in the plan.
func (d *Dir) AddSnapshot(ctx context.Context, s steps.SnapshotPlan) error {
	top, err := newLayer(s.Volume, s.Layer)
	if err != nil {
		return err
	}
	return d.layerOn(ctx, top, s.Volume, func(h *qcow2.Header) int64 { return h.VirtualSize })
}

// RevertVolume implements Snapshots. A volume that has grown since stays as large as it is.
func (d *Dir) RevertVolume(ctx context.Context, r steps.VolumeRevert) error {
	top, err := newLayer(r.Volume, r.Layer)
	if err != nil {
		return err
	}
	return d.layerOn(ctx, top, at(r.Volume, r.Frozen), func(h *qcow2.Header) int64 { return max(h.VirtualSize, r.Volume.Size) })
}

// CheckRevert implements Snapshots.
func (d *Dir) CheckRevert(_ context.Context, r steps.VolumeRevert) error {
	frozen := at(r.Volume, r.Frozen)
	return d.onVolume(frozen, func(root *os.Root) error {
		_, err := header(root, layerFile(frozen))
		if errors.Is(err, fs.ErrNotExist) {
			return noLayer(frozen)
		}
		return problem.Wrap(err, problem.Conflict, "volume %s cannot be read", frozen.Name)
	})
}

// UndoRevert implements Snapshots.
func (d *Dir) UndoRevert(ctx context.Context, r steps.VolumeRevert) error {
	top, err := newLayer(r.Volume, r.Layer)
	if err != nil {
		return err
	}
	return d.RemoveVolume(ctx, top)
}

// layerOn makes a layer on another, unless it is there.
func (d *Dir) layerOn(ctx context.Context, top, below steps.VolumePlan, size func(*qcow2.Header) int64) error {
	err := d.onVolume(top, func(root *os.Root) error {
		leave, err := d.together(ctx, root, top.Pool.Path)
		if err != nil {
			return err
		}
		defer leave()
		under, err := header(root, layerFile(below))
		if errors.Is(err, fs.ErrNotExist) {
			return noLayer(below)
		}
		if err != nil {
			return problem.Wrap(err, problem.Conflict, "volume %s cannot be read", below.Name)
		}
		name := layerFile(top)
		h, err := header(root, name)
		switch {
		case err == nil && h.BackingFile != layerPath(below):
			return otherVolume(top, h.VirtualSize, h.BackingFile)
		case err == nil:
			return nil
		case !errors.Is(err, fs.ErrNotExist):
			return problem.Wrap(err, problem.Conflict, "volume file %s exists and cannot be read", layerPath(top))
		}
		tmp := name + tempExt
		if err := removeFile(root, tmp); err != nil {
			return err
		}
		if err := qcow2.Create(inPool(top.Pool.Path, tmp), size(under), layerPath(below)); err != nil {
			return errors.Join(err, removeFile(root, tmp))
		}
		return finish(root, tmp, name, volumesDir)
	})
	return full(err, top.Pool, api.MiB)
}

// UndoSnapshot implements Snapshots.
func (d *Dir) UndoSnapshot(ctx context.Context, s steps.SnapshotPlan) error {
	return d.DropSnapshot(ctx, undoing(s), false, nil)
}

// DropSnapshot implements Snapshots. What a killed merge has brought into the lower layer is hidden by the upper one, so that all
// that is made on it shows the same at any moment, and merging once more makes it whole. The upper one goes last.
func (d *Dir) DropSnapshot(ctx context.Context, s steps.SnapshotDrop, merged bool, tell func(api.Progress)) error {
	frozen := at(s.Volume, s.Frozen)
	if s.Child == "" {
		return d.RemoveVolume(ctx, frozen)
	}
	child, err := newLayer(s.Volume, s.Child)
	if err != nil {
		return err
	}
	err = d.onVolume(frozen, func(root *os.Root) error {
		if _, err := header(root, layerFile(frozen)); errors.Is(err, fs.ErrNotExist) {
			return noLayer(frozen)
		}
		top, err := header(root, layerFile(child))
		switch {
		case errors.Is(err, fs.ErrNotExist): // it was merged, or never made
			return removeFile(root, layerFile(child)+tempExt)
		case err != nil:
			return problem.Wrap(err, problem.Conflict, "volume file %s cannot be read", layerPath(child))
		case top.BackingFile != layerPath(frozen):
			return otherVolume(child, top.VirtualSize, top.BackingFile)
		}
		if !merged {
			if err := commit(ctx, root, frozen, child, top.VirtualSize, tell); err != nil {
				return err
			}
		}
		leave, err := d.alone(ctx, root, s.Volume.Pool.Path)
		if err != nil {
			return err
		}
		defer leave()
		return replant(ctx, root, frozen, child)
	})
	return full(err, s.Volume.Pool, api.MiB)
}

// commit brings what is in child into frozen. What else is made on frozen would change with it: that must not be, unless nothing
// changes, because it was done already and what was made on child is made on frozen now.
func commit(ctx context.Context, root *os.Root, frozen, child steps.VolumePlan, size int64, tell func(api.Progress)) error {
	all, err := madeOn(root, frozen)
	if err != nil {
		return err
	}
	if others := slices.DeleteFunc(all, func(name string) bool { return name == layer(child) }); len(others) > 0 {
		same, err := qemuimg.Same(ctx, layerPath(frozen), layerPath(child), size)
		if err != nil {
			return err
		}
		if !same {
			return stillNeeded(frozen, others[0])
		}
	}
	err = qemuimg.Commit(ctx, layerPath(child), size, func(percent float64) {
		if tell != nil {
			tell(api.Progress{Text: "merging layers", Done: int64(percent), Total: 100})
		}
	})
	if err != nil {
		return err
	}
	return syncFile(root, layerFile(frozen))
}

// replant has what was made on child be made on frozen, which shows the same, and removes child.
func replant(ctx context.Context, root *os.Root, frozen, child steps.VolumePlan) error {
	names, err := madeOn(root, child)
	if err != nil {
		return err
	}
	for _, name := range names {
		g := at(child, name)
		if err := qemuimg.Rebase(ctx, layerPath(g), layerPath(frozen)); err != nil {
			return err
		}
		if err := syncFile(root, layerFile(g)); err != nil {
			return err
		}
	}
	return removeLayer(root, child)
}

// RetireLayer implements Snapshots. The file loses its name at once, and its blocks when there is time.
func (d *Dir) RetireLayer(v steps.VolumePlan) error {
	if _, err := newLayer(v, v.Layer); err != nil {
		return err
	}
	return d.onVolume(v, func(root *os.Root) error {
		name := layerFile(v)
		err := root.Rename(name, name+tempExt)
		if err == nil {
			err = syncDir(root, volumesDir)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return problem.Wrap(err, problem.Internal, "volume file %s cannot be retired", layerPath(v))
	})
}
