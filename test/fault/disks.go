package fault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// disks is the storage of one node, which remembers every pool that it ever had: so one that was left behind is seen.
type disks struct {
	*storage.Fake
	mu   sync.Mutex
	seen map[string]steps.PoolOnNode // by ID
}

func newDisks(on *storage.Fake) *disks { return &disks{Fake: on, seen: map[string]steps.PoolOnNode{}} }

// Prepare implements storage.Pool.
func (d *disks) Prepare(ctx context.Context, p steps.PoolOnNode) (api.PoolUsage, error) {
	d.mu.Lock()
	d.seen[p.Pool] = p
	d.mu.Unlock()
	if real := d.real(p); real != nil {
		return real.Prepare(ctx, p)
	}
	return d.Fake.Prepare(ctx, p)
}

// Release implements storage.Pool.
func (d *disks) Release(ctx context.Context, p steps.PoolOnNode) error {
	if real := d.real(p); real != nil {
		return real.Release(ctx, p)
	}
	return d.Fake.Release(ctx, p)
}

// real returns the real driver for directories that cannot be: what is wrong with them no fake knows better.
func (d *disks) real(p steps.PoolOnNode) storage.Pool {
	if p.Path != os.DevNull && !strings.HasPrefix(p.Path, os.DevNull+"/") {
		return nil
	}
	return storage.NewDir(quiet)
}

// pools returns the pools that there are.
func (d *disks) pools(ctx context.Context) (out []steps.PoolOnNode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(d.seen)) {
		if d.Usage(ctx, d.seen[id]).Error == "" {
			out = append(out, d.seen[id])
		}
	}
	return out
}

func (d *disks) list(ctx context.Context) ([]steps.FileFound, error) {
	out := []steps.FileFound{}
	for _, p := range d.pools(ctx) {
		files, err := d.List(ctx, p)
		if err != nil {
			return nil, err
		}
		out = append(out, files...)
	}
	return out, nil
}

// unread returns the pools that cannot be read now.
func (d *disks) unread(ctx context.Context) (out []steps.PoolUnread) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(d.seen)) {
		if _, err := d.List(ctx, d.seen[id]); problem.Is(err, problem.Unavailable) {
			out = append(out, steps.PoolUnread{Pool: id, Why: err.Error()})
		}
	}
	return out
}

// repair removes files, each if it is in a pool that was named.
func (d *disks) repair(ctx context.Context, files []steps.FileFound, pools []steps.PoolOnNode) error {
	for _, f := range files {
		for _, p := range pools {
			if p.Pool != f.Pool {
				continue
			}
			if err := d.Remove(ctx, p, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// clone returns storage with the same pools and files in it.
func (d *disks) clone() *disks {
	out := newDisks(d.Clone())
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.Copy(out.seen, d.seen)
	return out
}

// Stray leaves a file of this kind in every pool of the node, which nobody asked for.
func (n *Node) Stray(ctx context.Context, kind, id string) {
	dirs := map[string]string{storage.KindVolume: "volumes", storage.KindSeed: "seeds", storage.KindBacking: "backing", storage.KindMemory: "checkpoints"}
	for _, p := range n.disks.pools(ctx) {
		n.disks.Put(p, filepath.Join(dirs[kind], id), kind, id)
	}
}

// Lose takes a file of this kind from the node, behind everybody's back.
func (n *Node) Lose(ctx context.Context, kind, id string) {
	for _, p := range n.disks.pools(ctx) {
		files, _ := n.disks.List(ctx, p)
		for _, f := range files {
			if f.Kind == kind && f.ID == id {
				_ = n.disks.Remove(ctx, p, f)
			}
		}
	}
}

// StrayImage leaves a file in the image store, which nobody asked for.
func (w *World) StrayImage(ctx context.Context, id string) {
	_, _ = w.images.Import(ctx, steps.ImageImport{Image: id}, nil)
}

// images is the server's image store, in memory. An image's content is its ID.
type images struct {
	mu     sync.Mutex
	stored map[string]steps.ImageImported // by image ID
	others map[steps.ImageExport]bool     // exports
	sent   map[string]string              // uploads of nodes
	texts  map[string]string              // content of images that is not their ID
}

func newImages() *images {
	return &images{stored: map[string]steps.ImageImported{}, others: map[steps.ImageExport]bool{}, sent: map[string]string{}, texts: map[string]string{}}
}

func (i *images) clone() *images {
	i.mu.Lock()
	defer i.mu.Unlock()
	return &images{stored: maps.Clone(i.stored), others: maps.Clone(i.others), sent: maps.Clone(i.sent), texts: maps.Clone(i.texts)}
}

// Stored implements state.ImageView.
func (i *images) Stored(context.Context) ([]string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	ids := maps.Clone(i.stored)
	for e := range i.others {
		ids[e.Image] = steps.ImageImported{}
	}
	return slices.Sorted(maps.Keys(ids)), nil
}

// Import implements storage.ImageStore.
func (i *images) Import(_ context.Context, in steps.ImageImport, _ func(api.Progress)) (steps.ImageImported, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if made, ok := i.stored[in.Image]; ok {
		return made, nil
	}
	text := in.Image
	if in.Upload != "" {
		var there bool
		if text, there = i.sent[in.Upload]; !there {
			return steps.ImageImported{}, problem.New(problem.NotFound, "there is no upload %s", in.Upload)
		}
		i.texts[in.Image] = text
	}
	sum := sha256.Sum256([]byte(text))
	made := steps.ImageImported{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(text)), VirtualSize: api.GiB}
	i.stored[in.Image] = made
	return made, nil
}

// Export implements storage.ImageStore.
func (i *images) Export(_ context.Context, in steps.ImageExport, _ func(api.Progress)) (steps.ImageExported, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	made, ok := i.stored[in.Image]
	if !ok {
		return steps.ImageExported{}, problem.New(problem.NotFound, "there is no file of image %s", in.Image)
	}
	i.others[in] = true
	return steps.ImageExported{Format: in.Format, SHA256: made.SHA256, Size: made.Size}, nil
}

// ExportUpload implements storage.ImageStore.
func (i *images) ExportUpload(_ context.Context, in api.UploadExport, _ func(api.Progress)) (steps.ImageExported, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	text, sent := i.sent[in.ID]
	if known, there := i.texts[in.ID]; there {
		text = known
	} else if !sent {
		return steps.ImageExported{}, problem.New(problem.NotFound, "there is no upload %s", in.ID)
	}
	i.texts[in.ID] = text
	i.others[steps.ImageExport{Image: in.ID, Format: in.Format}] = true
	sum := sha256.Sum256([]byte(text))
	return steps.ImageExported{Format: in.Format, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(text))}, nil
}

// RemoveExport implements storage.ImageStore.
func (i *images) RemoveExport(_ context.Context, in steps.ImageExport) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.others, in)
	return nil
}

// exported returns what was exported, one line each.
func (i *images) exported() (out []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for e := range i.others {
		out = append(out, "image "+e.Image+" as "+e.Format)
	}
	for id := range i.sent {
		out = append(out, "upload "+id)
	}
	return out
}

// Remove implements storage.ImageStore.
func (i *images) Remove(_ context.Context, image string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.stored, image)
	delete(i.texts, image)
	maps.DeleteFunc(i.others, func(e steps.ImageExport, _ bool) bool { return e.Image == image })
	return nil
}

// RemoveUpload implements storage.ImageStore.
func (i *images) RemoveUpload(id string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.sent, id)
	return nil
}

// TakeImage implements storage.Receiver.
func (i *images) TakeImage(_ context.Context, image string, file io.ReadSeeker, _ int64, _ func(int64)) (string, error) {
	b, err := io.ReadAll(file)
	if err != nil {
		return "", err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.sent[image] = string(b)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// OpenImage implements storage.Source.
func (i *images) OpenImage(_ context.Context, image string) (io.ReadCloser, int64, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, ok := i.stored[image]; !ok {
		return nil, 0, problem.New(problem.NotFound, "there is no file of image %s", image)
	}
	text := image
	if t, ok := i.texts[image]; ok {
		text = t
	}
	return io.NopCloser(strings.NewReader(text)), int64(len(text)), nil
}

// Seed implements storage.Source.
func (i *images) Seed(_ context.Context, vm string) (api.Seed, error) {
	return api.Seed{InstanceID: vm}, nil
}
