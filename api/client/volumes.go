package client

import (
	"context"
	"net/http"

	"github.com/nextstack/nextstack/api"
)

// AttachVolume asks for a volume to be given to a VM.
func (c *Client) AttachVolume(ctx context.Context, project, ref string, how api.VolumeAttach, w Write) (*api.Operation, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.write(ctx, w, http.MethodPost, item(api.KindVolume, project, ref)+"/attach", how)
}

// DetachVolume asks for a volume to be taken from a VM.
func (c *Client) DetachVolume(ctx context.Context, project, ref string, how api.VolumeDetach, w Write) (*api.Operation, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.write(ctx, w, http.MethodPost, item(api.KindVolume, project, ref)+"/detach", how)
}

// ResizeVolume asks for a volume to become bigger.
func (c *Client) ResizeVolume(ctx context.Context, project, ref string, how api.VolumeResize, w Write) (*api.Operation, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.write(ctx, w, http.MethodPost, item(api.KindVolume, project, ref)+"/resize", how)
}

// FlattenVolume asks for a volume to become independent of its image.
func (c *Client) FlattenVolume(ctx context.Context, project, ref string, w Write) (*api.Operation, error) {
	return c.write(ctx, w, http.MethodPost, item(api.KindVolume, project, ref)+"/flatten", nil)
}

// MigrateVolume asks for a volume to be brought into another pool.
func (c *Client) MigrateVolume(ctx context.Context, project, ref string, how api.VolumeMigrate, w Write) (*api.Operation, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.write(ctx, w, http.MethodPost, item(api.KindVolume, project, ref)+"/migrate", how)
}

// PlanMigrateVolume asks how a volume would go to another pool, and what is in the way, without moving it.
func (c *Client) PlanMigrateVolume(ctx context.Context, project, ref string, how api.VolumeMigrate) (*api.DryRun, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.dry(ctx, item(api.KindVolume, project, ref)+"/migrate", how)
}

// ExportVolume asks for a file of a volume, to download. The result of the operation is an api.ImageExported.
func (c *Client) ExportVolume(ctx context.Context, project, ref string, how api.VolumeExport, w Write) (*api.Operation, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.write(ctx, w, http.MethodPost, item(api.KindVolume, project, ref)+"/export", how)
}

// DeleteVM asks for the end of a VM. Client.Delete does, too, unless its root disk has snapshots.
func (c *Client) DeleteVM(ctx context.Context, project, ref string, how api.VMDelete, w Write) (*api.Operation, error) {
	return c.remove(ctx, api.KindVM, project, ref, map[string]bool{"snapshots": how.Snapshots}, w)
}

// remove asks for the end of something, with the flags that are set.
func (c *Client) remove(ctx context.Context, kind api.Kind, project, ref string, flags map[string]bool, w Write) (*api.Operation, error) {
	r := w.request(http.MethodDelete, item(kind, project, ref), nil)
	for name, set := range flags {
		if set {
			r.query.Set(name, "true")
		}
	}
	var op api.Operation
	if err := c.call(ctx, r, &op); err != nil {
		return nil, err
	}
	return &op, nil
}

// DeleteVolume asks for a volume to be put into the recycle bin, or to be removed for good.
func (c *Client) DeleteVolume(ctx context.Context, project, ref string, how api.VolumeDelete, w Write) (*api.Operation, error) {
	return c.remove(ctx, api.KindVolume, project, ref, map[string]bool{"now": how.Now, "snapshots": how.Snapshots}, w)
}

// RestoreVolume asks for a volume to be brought back from the recycle bin.
func (c *Client) RestoreVolume(ctx context.Context, project, ref string, w Write) (*api.Operation, error) {
	return c.write(ctx, w, http.MethodPost, item(api.KindVolume, project, ref)+"/restore", nil)
}

// RevertSnapshot asks for a volume to become again what it was when the snapshot was taken.
func (c *Client) RevertSnapshot(ctx context.Context, project, ref string, how api.SnapshotRevert, w Write) (*api.Operation, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.write(ctx, w, http.MethodPost, item(api.KindSnapshot, project, ref)+"/revert", how)
}

// RevertCheckpoint asks for a VM to go back to the moment of a checkpoint.
func (c *Client) RevertCheckpoint(ctx context.Context, project, ref string, w Write) (*api.Operation, error) {
	return c.write(ctx, w, http.MethodPost, item(api.KindCheckpoint, project, ref)+"/revert", nil)
}
