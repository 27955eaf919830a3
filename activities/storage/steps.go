package storage

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// ImageStore is where the server keeps images.
type ImageStore interface {
	// Import checks the source of an image and stores it. An image that is stored already is told again. Tell may be nil.
	Import(ctx context.Context, in steps.ImageImport, tell func(api.Progress)) (steps.ImageImported, error)
	// Export makes an image in another format. One that is there already is told again. Tell may be nil.
	Export(ctx context.Context, in steps.ImageExport, tell func(api.Progress)) (steps.ImageExported, error)
	// ExportUpload makes a file of an upload that is no image, after it was checked like one. One that is there already is told
	// again. Remove removes it. Tell may be nil.
	ExportUpload(ctx context.Context, in api.UploadExport, tell func(api.Progress)) (steps.ImageExported, error)
	// RemoveExport removes what Export made, whole or half-made. It is content if there is nothing.
	RemoveExport(ctx context.Context, in steps.ImageExport) error
	// Remove removes an image's file, what an import left half-made, and all exports. It is content if there is nothing.
	Remove(ctx context.Context, image string) error
	// RemoveUpload removes an upload that is needed no more. It is content if there is none.
	RemoveUpload(id string) error
}

// RegisterNode registers the implementations of the storage steps of a node in reg.
func RegisterNode(reg activities.Registry, h *activities.Host, pool Pool, src Source, peers Peers) {
	activities.Implement(reg, h, steps.MakeDisk, func(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.DiskMade, error) {
		from, began := &helped{Source: src, peers: peers, offer: plan.Disk.Offer}, time.Now()
		err := pool.MakeDisk(ctx, plan, from, activities.Telling(ctx))
		return from.made(began), problem.Wrap(err, problem.Internal, "cannot make the disk of vm %s", plan.Name)
	})
	activities.Implement(reg, h, steps.OfferImage, func(ctx context.Context, _ steps.Token, in steps.ImageOffer) (steps.DiskOffer, error) {
		offer, err := offerImage(ctx, pool, peers, in.Copy)
		return offer, problem.Wrap(err, problem.Internal, "cannot offer the copy of image %s", in.Copy.Image)
	})
	activities.Implement(reg, h, steps.RemoveDisk, func(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.Nothing, error) {
		return steps.Nothing{}, problem.Wrap(pool.RemoveDisk(ctx, plan), problem.Internal, "cannot remove the disk of vm %s", plan.Name)
	})
	activities.Implement(reg, h, steps.OfferDisk, func(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.DiskOffer, error) {
		offer, err := offerDisk(ctx, pool, peers, plan)
		return offer, problem.Wrap(err, problem.Internal, "cannot offer the disk of vm %s", plan.Name)
	})
	activities.Implement(reg, h, steps.PullDisk, func(ctx context.Context, _ steps.Token, in steps.DiskPull) (steps.Nothing, error) {
		fetch := func(ctx context.Context) (io.ReadCloser, error) { return peers.Fetch(ctx, in.Offer) }
		err := pool.ReceiveDisk(ctx, in.Plan, helpedBy(src, peers, in.Offer), fetch, activities.Reporting(ctx))
		return steps.Nothing{}, problem.Wrap(err, problem.Internal, "cannot copy the disk of vm %s", in.Plan.Name)
	})
	registerCarrier(reg, h, pool, src, peers)
	activities.Implement(reg, h, steps.MakeVolume, func(ctx context.Context, _ steps.Token, v steps.VolumePlan) (steps.Nothing, error) {
		err := pool.CreateVolume(ctx, v, src, activities.Reporting(ctx))
		return steps.Nothing{}, problem.Wrap(err, problem.Internal, "cannot make volume %s", v.Name)
	})
	activities.Implement(reg, h, steps.MakeSeed, func(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.Nothing, error) {
		seeds, err := seedsOf(pool, plan.Disk.Type)
		if err == nil {
			err = seeds.MakeSeed(ctx, plan, src)
		}
		return steps.Nothing{}, problem.Wrap(err, problem.Internal, "cannot make the seed of vm %s", plan.Name)
	})
	activities.Implement(reg, h, steps.RemoveSeed, func(ctx context.Context, _ steps.Token, plan steps.VMPlan) (steps.Nothing, error) {
		seeds, err := seedsOf(pool, plan.Disk.Type)
		if err == nil {
			err = seeds.RemoveSeed(ctx, plan)
		}
		return steps.Nothing{}, problem.Wrap(err, problem.Internal, "cannot remove the seed of vm %s", plan.Name)
	})
	activities.Implement(reg, h, steps.SendVolume, func(ctx context.Context, _ steps.Token, in steps.VolumeSend) (steps.VolumeSent, error) {
		sent, err := sendVolume(ctx, pool, src, in, activities.Reporting(ctx))
		return sent, problem.Wrap(err, problem.Internal, "cannot send volume %s", in.Volume.Name)
	})
	activities.Implement(reg, h, steps.RemoveVolume, func(ctx context.Context, _ steps.Token, v steps.VolumePlan) (steps.Nothing, error) {
		return steps.Nothing{}, problem.Wrap(pool.RemoveVolume(ctx, v), problem.Internal, "cannot remove volume %s", v.Name)
	})
	activities.Implement(reg, h, steps.PreparePool, func(ctx context.Context, _ steps.Token, p steps.PoolOnNode) (api.PoolUsage, error) {
		return pool.Prepare(ctx, p)
	})
	activities.Implement(reg, h, steps.CheckPool, func(ctx context.Context, _ steps.Token, c api.PoolCheck) (steps.Nothing, error) {
		checker, ok := pool.(Checker)
		if !ok {
			return steps.Nothing{}, problem.New(problem.Unsupported, "how pools of type %s are reached cannot be changed", c.Pool.Type)
		}
		return steps.Nothing{}, checker.CheckSource(ctx, c.Pool, c.Secret)
	})
	activities.Implement(reg, h, steps.ReleasePool, func(ctx context.Context, t steps.Token, p steps.PoolOnNode) (steps.Nothing, error) {
		err := pool.Release(ctx, p)
		if t.Undo && errors.Is(err, errShut) {
			err = nil // it could not be read when it was to become a pool either: nothing was made in it
		}
		return steps.Nothing{}, err
	})
	activities.Implement(reg, h, steps.EvictImage, func(ctx context.Context, _ steps.Token, c steps.CachedImage) (steps.Nothing, error) {
		return steps.Nothing{}, pool.EvictImage(ctx, c)
	})
}

// offerDisk offers a disk after a look at whether it could be given now.
func offerDisk(ctx context.Context, pool Pool, peers Peers, plan steps.VMPlan) (steps.DiskOffer, error) {
	copied := steps.CachedImage{Image: plan.Disk.Image, SHA256: plan.Disk.ImageSHA256, Pool: plan.Disk.Pool, PoolPath: plan.Disk.PoolPath}
	return offerFile(ctx, pool, peers, plan.Disk.Volume, func(ctx context.Context) (Disk, error) { return pool.OpenDisk(ctx, plan) }, &copied)
}

// RegisterControl registers the implementations of the storage steps of the control plane in reg.
func RegisterControl(reg activities.Registry, h *activities.Host, store ImageStore) {
	activities.Implement(reg, h, steps.ImportImage, func(ctx context.Context, _ steps.Token, in steps.ImageImport) (steps.ImageImported, error) {
		out, err := store.Import(ctx, in, activities.Reporting(ctx))
		if err == nil && in.Upload != "" {
			err = store.RemoveUpload(in.Upload) // not after a failure: a retry of the operation needs it
		}
		return out, err
	})
	activities.Implement(reg, h, steps.ExportImage, func(ctx context.Context, _ steps.Token, in steps.ImageExport) (steps.ImageExported, error) {
		return store.Export(ctx, in, activities.Reporting(ctx))
	})
	activities.Implement(reg, h, steps.ExportUpload, func(ctx context.Context, _ steps.Token, in api.UploadExport) (steps.ImageExported, error) {
		out, err := store.ExportUpload(ctx, in, activities.Reporting(ctx))
		if err == nil {
			err = store.RemoveUpload(in.ID)
		}
		return out, problem.Wrap(err, problem.Internal, "the volume cannot be exported")
	})
	activities.Implement(reg, h, steps.RemoveUpload, func(_ context.Context, _ steps.Token, f steps.ImageFile) (steps.Nothing, error) {
		return steps.Nothing{}, store.RemoveUpload(f.Image)
	})
	activities.Implement(reg, h, steps.RemoveExport, func(ctx context.Context, _ steps.Token, in steps.ImageExport) (steps.Nothing, error) {
		return steps.Nothing{}, store.RemoveExport(ctx, in)
	})
	activities.Implement(reg, h, steps.RemoveImage, func(ctx context.Context, _ steps.Token, f steps.ImageFile) (steps.Nothing, error) {
		return steps.Nothing{}, store.Remove(ctx, f.Image)
	})
}
