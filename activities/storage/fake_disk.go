package storage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// contentOf begins the content of a fake volume; something random follows, so that a copy can be told from a new one.
func contentOf(p steps.DiskPlan) string {
	return fmt.Sprintf("a disk of %d bytes from image %s: ", p.Size, p.ImageSHA256)
}

// fakeLocate says where a fake keeps the root disk and the seed of a VM, be their pool one of Ceph.
func fakeLocate(plan steps.VMPlan) (compute.DomainFiles, error) {
	plan.Data = nil
	return Locate(plan)
}

// Content returns what is in the root disk of a VM; empty if there is none.
func (f *Fake) Content(plan steps.VMPlan) string {
	f = f.on(plan.Disk.PoolPath)
	where, err := fakeLocate(plan)
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.pools[plan.Disk.PoolPath]; err == nil && p != nil {
		return p.shows(where.Disk.File)
	}
	return ""
}

// MakeDisk implements Pool.
func (f *Fake) MakeDisk(ctx context.Context, plan steps.VMPlan, src Source, _ func(string)) error {
	return f.on(plan.Disk.PoolPath).build(ctx, plan, src, func(pool *fakePool, path string) error {
		if file := pool.files[path]; len(file.data) == 0 && file.below == "" { // it is not there, or was only put there
			pool.files[path] = fakeFile{kind: KindVolume, id: plan.Disk.Volume, child: plan.Disk.ImageSHA256, virtual: plan.Disk.Size, data: []byte(contentOf(plan.Disk) + api.NewID())}
		}
		return nil
	})
}

// OpenDisk implements Pool.
func (f *Fake) OpenDisk(_ context.Context, plan steps.VMPlan) (Disk, error) {
	where, err := fakeLocate(plan)
	if err != nil {
		return nil, err
	}
	if f.InUse != nil && f.InUse(plan.VM) {
		return nil, problem.New(problem.InUse, "the disk of vm %s is in use", plan.Name)
	}
	f = f.on(plan.Disk.PoolPath)
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(plan.Disk.Pool, plan.Disk.PoolPath)
	if err != nil {
		return nil, err
	}
	file, there := pool.files[where.Disk.File]
	switch {
	case !there:
		return nil, problem.New(problem.NotFound, "vm %s has no disk here", plan.Name)
	case !strings.HasPrefix(string(file.data), contentOf(plan.Disk)):
		return nil, problem.New(problem.Conflict, "volume %s is another one", plan.Disk.Volume)
	}
	return fakeDisk{bytes.NewReader(file.data)}, nil
}

// ReceiveDisk implements Pool.
func (f *Fake) ReceiveDisk(ctx context.Context, plan steps.VMPlan, src Source, fetch func(context.Context) (io.ReadCloser, error), tell func(api.Progress)) error {
	if tell == nil {
		tell = func(api.Progress) {}
	}
	// The image and the seed first, as the real one does.
	if err := f.on(plan.Disk.PoolPath).build(ctx, plan, src, func(*fakePool, string) error { return nil }); err != nil {
		return err
	}
	came, err := swallowDisk(ctx, fetch, tell)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(came), contentOf(plan.Disk)) {
		return problem.New(problem.Conflict, "the disk that came for vm %s cannot be taken", plan.Name)
	}
	return f.on(plan.Disk.PoolPath).build(ctx, plan, src, func(pool *fakePool, path string) error {
		pool.files[path] = fakeFile{kind: KindVolume, id: plan.Disk.Volume, child: plan.Disk.ImageSHA256, virtual: plan.Disk.Size, data: came}
		return nil
	})
}

// build fetches the image if it is not there, makes the seed, and lets volume make the root disk at a path.
func (f *Fake) build(ctx context.Context, plan steps.VMPlan, src Source, volume func(pool *fakePool, path string) error) error {
	where, err := fakeLocate(plan)
	if err != nil {
		return err
	}
	if err := f.fetch(ctx, steps.PoolOnNode{Pool: plan.Disk.Pool, Path: plan.Disk.PoolPath}, plan.Disk, src); err != nil {
		return err
	}
	if _, err := src.Seed(ctx, plan.VM); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(plan.Disk.Pool, plan.Disk.PoolPath)
	if err != nil {
		return err
	}
	if err := volume(pool, where.Disk.File); err != nil {
		return err
	}
	pool.files[where.Seed.File] = fakeFile{kind: KindSeed, id: plan.VM}
	return nil
}

// fetch makes the copy of an image, if there is none.
func (f *Fake) fetch(ctx context.Context, on steps.PoolOnNode, p steps.DiskPlan, src Source) error {
	f.mu.Lock()
	pool, err := f.find(on.Pool, on.Path)
	path, have := filepath.Join(on.Path, backingDir, p.ImageSHA256), false
	if err == nil {
		_, have = pool.files[path]
	}
	f.mu.Unlock()
	if err != nil || have {
		return err
	}
	b, err := swallow(ctx, p, src)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if int64(len(b)) > f.usage(on).Free {
		return problem.New(problem.NoCapacity, "pool %s is full", on.Path)
	}
	pool.files[path] = fakeFile{kind: KindBacking, id: p.ImageSHA256, size: int64(len(b)), data: b}
	return nil
}

// OpenCopy implements Copies.
func (f *Fake) OpenCopy(_ context.Context, c steps.CachedImage) (Disk, error) {
	f = f.on(c.PoolPath)
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(c.Pool, c.PoolPath)
	if err != nil {
		return nil, err
	}
	file, there := pool.files[filepath.Join(c.PoolPath, backingDir, c.SHA256)]
	if !there {
		return nil, problem.New(problem.NotFound, "the copy of image %s is not here", c.Image)
	}
	return fakeDisk{bytes.NewReader(file.data)}, nil
}

// swallow reads an image to its end and checks it, from another node if one has offered it, or else from the server.
func swallow(ctx context.Context, p steps.DiskPlan, src Source) ([]byte, error) {
	if peer, ok := src.(fromPeer); ok {
		if in, err := peer.PeerImage(ctx); in != nil && err == nil {
			if b, err := swallowAll(in, p); err == nil {
				return b, nil
			}
		}
	}
	in, _, err := src.OpenImage(ctx, p.Image)
	if err != nil {
		return nil, err
	}
	return swallowAll(in, p)
}

func swallowAll(in io.ReadCloser, p steps.DiskPlan) ([]byte, error) {
	defer in.Close() //nolint:errcheck // was only read
	b, err := io.ReadAll(in)
	if sum := sha256.Sum256(b); err == nil && hex.EncodeToString(sum[:]) != p.ImageSHA256 {
		err = problem.New(problem.Unavailable, "image %s came damaged", p.Image)
	}
	return b, err
}

// RemoveDisk implements Pool.
func (f *Fake) RemoveDisk(_ context.Context, plan steps.VMPlan) error {
	where, err := fakeLocate(plan)
	if err != nil {
		return err
	}
	f = f.on(plan.Disk.PoolPath)
	f.mu.Lock()
	defer f.mu.Unlock()
	pool, err := f.find(plan.Disk.Pool, plan.Disk.PoolPath)
	if problem.Is(err, problem.Unavailable) {
		return err
	}
	if err == nil {
		delete(pool.files, where.Disk.File)
		delete(pool.files, where.Seed.File)
	}
	return nil
}

// fakeDisk is a Disk without holes.
type fakeDisk struct{ *bytes.Reader }

func (d fakeDisk) Close() error     { return nil }
func (d fakeDisk) Unchanged() error { return nil }
func (d fakeDisk) Next(at int64) (from, to int64, err error) {
	if at >= d.Size() {
		return 0, 0, io.EOF
	}
	return at, d.Size(), nil
}

// fakeSink keeps what comes.
type fakeSink struct {
	came *[]byte
	tell func(api.Progress)
}

func (s *fakeSink) begin(size, _ int64) error {
	if size > 64*api.MiB {
		return problem.New(problem.Unavailable, "the disk came damaged").Because("a fake disk has no %d bytes", size)
	}
	*s.came = make([]byte, size)
	return nil
}

func (s *fakeSink) put(at int64, b []byte) error {
	copy((*s.came)[at:], b)
	s.tell(api.Progress{Text: "copying the disk", Done: at + int64(len(b)), Total: int64(len(*s.came))})
	return nil
}
