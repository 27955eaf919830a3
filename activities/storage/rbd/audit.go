//go:build ceph && cgo

package rbd

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

const trashDir = "trash/"

func hexOf(s string) ([]byte, error) { return hex.DecodeString(s) }

func isProbe(name string) bool {
	agent, ok := strings.CutPrefix(name, probeName)
	return ok && (agent == "" || api.IsUUID(agent))
}

// isOurs reports whether a device is one of ours by its name.
func isOurs(name string) bool {
	kind, _ := storage.ClassifyRBD(name)
	return kind != storage.KindOther || isProbe(name)
}

// List implements storage.Pool. Devices that are not ours by their names are not told of, so that no audit finds them to be nobody's.
func (d *Driver) List(ctx context.Context, p steps.PoolOnNode) (out []steps.FileFound, err error) {
	err = d.onPool(ctx, p, "", "list it", func(ctx context.Context, io *rados.IOContext) error {
		names, err := rbd.GetImageNames(io)
		if err != nil {
			return err
		}
		for _, n := range names {
			if isOurs(n) {
				kind, id := storage.ClassifyRBD(n)
				out = append(out, steps.FileFound{Pool: p.Pool, Path: p.Path + "/" + n, Kind: kind, ID: id})
			}
		}
		if out, err = d.examine(ctx, io, p, out); err != nil {
			return err
		}
		trash, err := rbd.GetTrashList(io)
		if err != nil {
			return err
		}
		for _, t := range trash {
			if isOurs(t.Name) {
				out = append(out, steps.FileFound{Pool: p.Pool, Path: p.Path + "/" + trashDir + t.Id, Kind: storage.KindOther})
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	here, err := d.here(p)
	return append(out, here...), err
}

// Remove implements storage.Pool.
func (d *Driver) Remove(ctx context.Context, p steps.PoolOnNode, f steps.FileFound) error {
	name, ok := strings.CutPrefix(f.Path, p.Path+"/")
	if file, here := strings.CutPrefix(name, nodeDir); ok && here && f.Pool == p.Pool {
		return d.removeHere(p, file)
	}
	id, trashed := strings.CutPrefix(name, trashDir)
	device, snap, isSnap := strings.Cut(name, "@")
	if f.Pool != p.Pool || !ok || !trashed && !isOurs(device) || trashed && (id == "" || strings.Contains(id, "/")) {
		return problem.New(problem.Invalid, "%q is not a device of pool %s", f.Path, p.Path)
	}
	err := d.onPool(ctx, p, device, "remove "+name, func(ctx context.Context, io *rados.IOContext) error {
		switch {
		case trashed:
			return d.purge(io, p, id)
		case isSnap:
			return removeSnap(io, p, device, snap)
		}
		if kind, _ := storage.ClassifyRBD(name); kind == storage.KindBacking {
			return d.evict(ctx, io, p, name)
		}
		return d.removeDevice(ctx, io, p, name)
	})
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// purge removes a device of ours from the trash.
func (d *Driver) purge(io *rados.IOContext, p steps.PoolOnNode, id string) error {
	trash, err := rbd.GetTrashList(io)
	if err != nil {
		return err
	}
	for _, t := range trash {
		if t.Id != id || !isOurs(t.Name) {
			continue
		}
		err := rbd.TrashRemove(io, id, true)
		switch code(err) {
		case unix.ENOENT:
			return nil
		case unix.ENOTEMPTY, unix.EBUSY:
			return problem.New(problem.InUse, "%s in the trash of Ceph pool %s has snapshots, or is open", t.Name, p.Source.Name).Try("see: rbd trash ls %s", p.Source.Name)
		}
		return err
	}
	return nil
}

// EvictImage implements storage.Pool.
func (d *Driver) EvictImage(ctx context.Context, c steps.CachedImage) error {
	if b, err := hexOf(c.SHA256); err != nil || len(b) != 32 {
		return problem.New(problem.Invalid, "the checksum of image %s is %q", c.Image, c.SHA256)
	}
	p, name := c.OnNode(), storage.RBDImage(c.SHA256)
	err := d.onPool(ctx, p, name, "remove image "+c.Image, func(ctx context.Context, io *rados.IOContext) error { return d.evict(ctx, io, p, name) })
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	return err
}

// evict removes an image's copy that no volume is a child of. A node that is bringing it in is not disturbed. It is called with the
// image's turn taken.
func (d *Driver) evict(ctx context.Context, io *rados.IOContext, p steps.PoolOnNode, name string) error {
	img, err := rbd.OpenImage(io, name, rbd.NoSnapshot)
	if code(err) == unix.ENOENT {
		return d.removeUnused(ctx, io, p, name) // of one that was half-removed there may be no more than its name
	}
	if err != nil {
		return err
	}
	mine, err := lock(img)
	if err == nil && !mine {
		err = problem.New(problem.InUse, "%s of Ceph pool %s is being brought in by another node", name, p.Source.Name)
	}
	if err == nil {
		err = unbase(img, p, name)
	}
	if err = errors.Join(err, img.Close()); err != nil {
		return err
	}
	return d.removeUnused(ctx, io, p, name)
}

// unbase takes the snapshot away that children are made of.
func unbase(img *rbd.Image, p steps.PoolOnNode, name string) error {
	return unsnap(img, p, name, baseSnap)
}

// unsnap takes a snapshot away unless something is made of it. None is fine.
func unsnap(img *rbd.Image, p steps.PoolOnNode, name, snap string) error {
	s := img.GetSnapshot(snap)
	safe, err := s.IsProtected()
	if code(err) == unix.ENOENT {
		safe, err = false, nil // but it may be half removed
	}
	if err == nil && safe {
		err = s.Unprotect()
		if code(err) == unix.EBUSY {
			return problem.New(problem.InUse, "%s of Ceph pool %s is needed", name, p.Source.Name).Because("%s", childrenOf(img, snap))
		}
	}
	if err != nil {
		return err
	}
	return snapOff(img, snap)
}

// childrenOf says what is made of a snapshot.
func childrenOf(img *rbd.Image, snap string) string {
	if err := img.SetSnapshot(snap); err == nil {
		defer img.SetSnapshot("") //nolint:errcheck // it is closed next
		if _, images, err := img.ListChildren(); err == nil && len(images) > 0 {
			return images[0] + " is made of it"
		}
	}
	return "something is made of it"
}
