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

// DeleteVolume asks for a volume to be put into the recycle bin, or to be removed for good.
func (c *Client) DeleteVolume(ctx context.Context, project, ref string, how api.VolumeDelete, w Write) (*api.Operation, error) {
	r := w.request(http.MethodDelete, item(api.KindVolume, project, ref), nil)
	if how.Now {
		r.query.Set("now", "true")
	}
	if how.Snapshots {
		r.query.Set("snapshots", "true")
	}
	var op api.Operation
	if err := c.call(ctx, r, &op); err != nil {
		return nil, err
	}
	return &op, nil
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
