//go:build ceph && cgo

package rbd

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// examiners is how many devices are looked at in the same moment.
const examiners = 8

// examine tells more of the devices that were found, and of their snapshots. They are opened such that nobody sees a watcher more.
func (d *Driver) examine(ctx context.Context, io *rados.IOContext, p steps.PoolOnNode, found []steps.FileFound) ([]steps.FileFound, error) {
	here, err := d.address(ctx, p)
	if err != nil {
		return nil, err
	}
	snaps, gone := make([][]steps.FileFound, len(found)), make([]bool, len(found))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(examiners)
	for i := range found {
		f := &found[i]
		if f.Kind == storage.KindOther {
			continue
		}
		group.Go(func() (err error) {
			if gctx.Err() != nil {
				return nil // another one has failed, or nobody waits any more
			}
			snaps[i], gone[i], err = examineDevice(io, f, strings.TrimPrefix(f.Path, p.Path+"/"), here)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, late(ctx, p, "list it")
	}
	var out []steps.FileFound
	for i, f := range found {
		if !gone[i] {
			out = append(append(out, f), snaps[i]...)
		}
	}
	return out, nil
}

func examineDevice(io *rados.IOContext, f *steps.FileFound, name, here string) (snaps []steps.FileFound, gone bool, err error) {
	img, err := rbd.OpenImageReadOnly(io, name, rbd.NoSnapshot)
	if code(err) == unix.ENOENT { // either it has gone meanwhile, or something that belongs to it is lost
		names, lerr := rbd.GetImageNames(io)
		if lerr != nil || !slices.Contains(names, name) {
			return nil, lerr == nil, lerr
		}
	}
	if err != nil {
		return nil, false, unopened(f, err)
	}
	defer img.Close() //nolint:errcheck // was only read
	names, err := img.GetSnapshotNames()
	if err != nil {
		return nil, false, unopened(f, err)
	}
	going, err := half(img)
	if err != nil {
		return nil, false, unopened(f, err)
	}
	for _, s := range names {
		kind, id := storage.KindForeign, ""
		if name, is := going[s.Id]; is { // it is told of by the name that it had, by which it can be removed
			s.Name = name
		}
		switch {
		case f.Kind == storage.KindBacking && s.Name == baseSnap:
			continue
		case f.Kind == storage.KindVolume:
			kind, id = storage.ClassifyRBDSnap(s.Name)
		}
		snap := steps.FileFound{Pool: f.Pool, Path: f.Path + "@" + s.Name, Kind: kind, ID: id}
		if f.Kind == storage.KindVolume {
			snap.Of = f.ID
		}
		snaps = append(snaps, snap)
	}
	if f.Kind != storage.KindVolume {
		return snaps, false, nil
	}
	if f.On, err = madeOn(img); err != nil {
		return nil, false, unopened(f, err)
	}
	watchers, err := img.ListWatchers()
	if err != nil {
		return nil, false, unopened(f, err)
	}
	for _, w := range watchers {
		f.Watchers = append(f.Watchers, steps.Watch{Addr: w.Addr, Here: here == "" || hostOf(w.Addr) == here})
	}
	return snaps, false, nil
}

// unopened notes on a device why it cannot be looked at. It returns an error if that is not for the device's sake.
func unopened(f *steps.FileFound, why error) error {
	switch code(why) {
	case unix.ETIMEDOUT, unix.ESHUTDOWN, unix.ENOTCONN, unix.EACCES, unix.EPERM:
		return why
	}
	f.Defect = why.Error()
	return nil
}

// madeOn returns the SHA-256 of the image whose copy a device is a child of, by what was written down when it was made: the copy may
// have another name now, or be in the trash.
func madeOn(img *rbd.Image) (sha string, err error) {
	parent, err := img.GetParent()
	if code(err) == unix.ENOENT {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	name := parent.Image.ImageName
	origin, err := img.GetMetadata(wholeKey)
	if err == nil {
		name, _, _ = strings.Cut(origin, "@")
	} else if code(err) != unix.ENOENT {
		return "", err
	}
	if kind, id := storage.ClassifyRBD(name); kind == storage.KindBacking {
		return id, nil
	}
	return "", nil
}

// address is the host by which the cluster knows this node. Empty: that is not known, and who has something open may be here.
func (d *Driver) address(ctx context.Context, p steps.PoolOnNode) (string, error) {
	c, err := d.connect(ctx, p)
	if err != nil {
		return "", err
	}
	defer c.users.Done()
	addrs, err := c.conn.GetAddrs()
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(strings.Trim(addrs, "[]"), ",")
	return hostOf(first), nil
}

// hostOf takes the host out of what Ceph writes as [v2:]HOST:PORT/NONCE.
func hostOf(addr string) string {
	addr, _, _ = strings.Cut(addr, "/")
	for _, version := range []string{"v1:", "v2:", "any:"} {
		addr = strings.TrimPrefix(addr, version)
	}
	host, _, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err != nil || ip == nil || ip.IsUnspecified() {
		return ""
	}
	return host
}

// removeSnap removes a snapshot of a volume that is ours by its name. None is fine.
func removeSnap(io *rados.IOContext, p steps.PoolOnNode, device, name string) error {
	kind, _ := storage.ClassifyRBD(device)
	if snap, _ := storage.ClassifyRBDSnap(name); kind != storage.KindVolume || snap == storage.KindForeign {
		return problem.New(problem.Invalid, "%s@%s is not a snapshot of ours", device, name)
	}
	img, err := rbd.OpenImage(io, device, rbd.NoSnapshot)
	if code(err) == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(unsnap(img, p, device, name), img.Close())
}
