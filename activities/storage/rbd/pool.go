//go:build ceph && cgo

package rbd

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Driver keeps volumes as block devices of Ceph clusters.
type Driver struct {
	cfg   Config
	turns turns

	mu       sync.Mutex
	clusters map[string]*connecting   // by pool
	calls    map[string]chan struct{} // likewise
	used     map[string]time.Time     // likewise: when it was last worked with
	named    map[string]bool          // likewise: it was this node's at some time
	noted    map[string]bool          // likewise: there is a note of it
	kept     []string                 // pools of this node when the hypervisor's keys were last right; nil: they may be wrong
}

var _ storage.Pool = (*Driver)(nil)

// New returns the driver. It connects when a pool is first used.
func New(cfg Config) storage.Pool {
	cfg.complete()
	d := &Driver{cfg: cfg, clusters: map[string]*connecting{}, calls: map[string]chan struct{}{}, used: map[string]time.Time{}, named: map[string]bool{}, noted: map[string]bool{}}
	if cfg.TempDir != "" {
		d.clearAway(tempPattern)
		d.clearAway(seedPattern)
		d.clearAway(lentPattern)
	}
	return d
}

// clearAway removes what a life before has left.
func (d *Driver) clearAway(pattern string) {
	old, err := filepath.Glob(filepath.Join(d.cfg.TempDir, pattern))
	for _, f := range old {
		err = errors.Join(err, os.RemoveAll(f))
	}
	if err != nil {
		d.cfg.Log.Warn("what an agent before this one has left cannot be removed", "error", err)
	}
}

func (c *Config) complete() {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.OpTimeout == 0 {
		c.OpTimeout = 15 * time.Second
	}
	if c.WatchPatience == 0 {
		c.WatchPatience = 40 * time.Second
	}
	if c.Step == nil {
		c.Step = func(string) {}
	}
}

const (
	markerName = "nextstack-pool"
	probeName  = "nextstack-probe-"
)

// features of all devices but seeds: what Ceph itself takes for a default, and all that is needed of it.
const features = rbd.FeatureLayering | rbd.FeatureExclusiveLock | rbd.FeatureObjectMap | rbd.FeatureFastDiff | rbd.FeatureDeepFlatten

// marker says which pool a Ceph pool is.
type marker struct {
	Pool  string `json:"pool"`
	Type  string `json:"type"`
	Agent string `json:"agent,omitempty"` // that made it
	FSID  string `json:"fsid"`            // of the cluster, so that a mirror of it is known for what it is
}

func readMarker(io *rados.IOContext) (m marker, err error) {
	b := make([]byte, 4096)
	n, err := io.Read(markerName, b, 0)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b[:n], &m); err != nil {
		return m, problem.New(problem.Conflict, "the object %s cannot be read", markerName).Because("%s", err).Try("choose another Ceph pool")
	}
	return m, nil
}

// ours returns nil if the Ceph pool is the pool p.
func ours(io *rados.IOContext, p steps.PoolOnNode) error {
	m, err := readMarker(io)
	switch {
	case code(err) == unix.ENOENT:
		return problem.New(problem.NotFound, "Ceph pool %s is not pool %s", p.Source.Name, p.Pool).Because("its object %s is missing", markerName).
			Try("see that it is the cluster and the pool that it was; if it is, add the pool again")
	case err != nil:
		return err
	case m.Pool != p.Pool:
		return problem.New(problem.Conflict, "Ceph pool %s is pool %s, not %s", p.Source.Name, m.Pool, p.Pool)
	}
	return nil
}

// onPool runs f if the Ceph pool is the pool p.
func (d *Driver) onPool(ctx context.Context, p steps.PoolOnNode, turn, what string, f func(ctx context.Context, io *rados.IOContext) error) error {
	if err := storage.CheckRBDPool(p); err != nil {
		return err
	}
	return d.call(ctx, p, turn, what, func(ctx context.Context, io *rados.IOContext) error {
		if err := ours(io, p); err != nil {
			return err
		}
		if err := d.note(p); err != nil { // it is there, and has worked before
			d.cfg.Log.Warn("a pool that is used cannot be noted", "pool", p.Pool, "error", err)
		}
		if ctx.Err() != nil {
			return late(ctx, p, what)
		}
		return f(ctx, io)
	})
}

// Prepare implements storage.Pool.
func (d *Driver) Prepare(ctx context.Context, p steps.PoolOnNode) (u api.PoolUsage, err error) {
	if err := storage.CheckRBDPool(p); err != nil {
		return u, err
	}
	err = d.call(ctx, p, markerName, "prepare the pool", func(ctx context.Context, io *rados.IOContext) error {
		c, err := d.connect(ctx, p)
		if err != nil {
			return err
		}
		defer c.users.Done()
		if err := d.claim(ctx, c, p); err != nil {
			return err
		}
		return tryOut(ctx, io, p)
	})
	if problem.Is(err, problem.NotFound) { // no such Ceph pool: waiting does not help
		f := problem.From(err)
		return u, problem.New(problem.Invalid, "%s", f.What).Because("%s", f.Why).Try("%s", f.Fix)
	}
	if err != nil {
		return u, err
	}
	u = d.Usage(ctx, p)
	if u.Error != "" {
		return u, problem.New(problem.Unavailable, "Ceph pool %s cannot be measured", p.Source.Name).Because("%s", u.Error)
	}
	return u, nil
}

// claim writes the marker, unless the Ceph pool belongs to somebody else or another agent has to write it.
func (d *Driver) claim(ctx context.Context, c *cluster, p steps.PoolOnNode) error {
	fsid, err := c.conn.GetFSID()
	if err != nil {
		return err
	}
	m, err := readMarker(c.io)
	switch {
	case err == nil && m.Pool == p.Pool && m.FSID != fsid:
		return notJoined(p, "it is the pool of cluster "+m.FSID+", and this is cluster "+fsid)
	case err == nil && m.Pool == p.Pool:
		return d.note(p)
	case err == nil && p.Join:
		return notJoined(p, "it is pool "+m.Pool+" here")
	case err == nil:
		return problem.New(problem.Conflict, "Ceph pool %s is pool %s already", p.Source.Name, m.Pool).Try("choose another Ceph pool")
	case code(err) != unix.ENOENT:
		return err
	case p.Join:
		return notJoined(p, "its object "+markerName+" is missing here")
	}
	names, err := rbd.GetImageNames(c.io)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return problem.New(problem.Conflict, "Ceph pool %s cannot be a pool", p.Source.Name).Because("it has block devices that NextStack has not made, %s among them", names[0]).
			Try("choose an empty Ceph pool, which is for NextStack alone")
	}
	b, err := json.Marshal(marker{Pool: p.Pool, Type: p.Type, Agent: p.Agent, FSID: fsid})
	if err != nil {
		return err
	}
	if err := d.note(p); err != nil {
		return err
	}
	if ctx.Err() != nil { // a release may have begun, and have found no note
		return late(ctx, p, "prepare the pool")
	}
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Create(rados.CreateExclusive)
	op.WriteFull(b)
	err = op.Operate(c.io, markerName, rados.OperationNoFlag)
	if code(err) == unix.EEXIST {
		return problem.New(problem.Conflict, "Ceph pool %s has just become another pool", p.Source.Name).Try("choose another Ceph pool")
	}
	return err
}

func notJoined(p steps.PoolOnNode, why string) error {
	return problem.New(problem.Conflict, "Ceph pool %s at %s is not what the other agents of the pool see: %s", p.Source.Name, p.Path, why).
		Try("see which cluster the monitors lead to from there")
}

// tryOut does to the pool what will be done to it later, so that a user who may not shows now.
func tryOut(ctx context.Context, io *rados.IOContext, p steps.PoolOnNode) error {
	name := probeName + p.Agent
	if err := remove(io, name); err != nil && code(err) != unix.EBUSY {
		return err
	}
	if err := create(io, name, api.MiB, rbd.FeatureLayering|rbd.FeatureExclusiveLock); err != nil && code(err) != unix.EEXIST {
		return err
	}
	if ctx.Err() != nil {
		return late(ctx, p, "try it out")
	}
	img, err := rbd.OpenImage(io, name, rbd.NoSnapshot)
	if err != nil {
		return err
	}
	b := make([]byte, 4096)
	for i := range b {
		b[i] = byte(i)
	}
	got := make([]byte, len(b))
	_, err = img.WriteAt(b, 0)
	if err == nil {
		_, err = img.ReadAt(got, 0)
	}
	if err == nil && !slices.Equal(b, got) {
		err = problem.New(problem.Unavailable, "Ceph pool %s does not give back what was written to it", p.Source.Name)
	}
	if err = errors.Join(err, img.Close()); err != nil {
		return err
	}
	return remove(io, name)
}

// create makes an empty device.
func create(io *rados.IOContext, name string, size int64, features uint64) error {
	o := rbd.NewRbdImageOptions()
	defer o.Destroy()
	if err := o.SetUint64(rbd.ImageOptionFeatures, features); err != nil {
		return err
	}
	return rbd.CreateImage(io, name, uint64(size), o)
}

// remove removes a device that nobody has open and that has no snapshots; none is fine.
func remove(io *rados.IOContext, name string) error {
	if err := rbd.RemoveImage(io, name); code(err) != unix.ENOENT {
		return err
	}
	return nil
}

// Release implements storage.Pool. A node that does not reach a cluster can only wait: what it would have to remove is there still. If
// it never did, there is nothing, whatever is in the way.
func (d *Driver) Release(ctx context.Context, p steps.PoolOnNode) error {
	if err := storage.CheckRBDPool(p); err != nil {
		return err
	}
	err := d.call(ctx, p, markerName, "release the pool", func(ctx context.Context, io *rados.IOContext) error {
		if err := ours(io, p); err != nil {
			return err
		}
		if err := d.note(p); err != nil { // a release that goes on is no release of nothing
			return err
		}
		names, err := rbd.GetImageNames(io)
		if err != nil {
			return err
		}
		var copies, rest []string
		for _, n := range names {
			switch kind, _ := storage.ClassifyRBD(n); kind {
			case storage.KindVolume, storage.KindMemory:
				return problem.New(problem.InUse, "Ceph pool %s is not empty", p.Source.Name).Because("%s is in it", n).
					Try("delete the VMs and volumes in it, or run an audit with repair if nobody owns them")
			case storage.KindBacking:
				copies = append(copies, n)
			case storage.KindSeed:
				rest = append(rest, n)
			default:
				if isProbe(n) {
					rest = append(rest, n)
				}
			}
		}
		for _, n := range copies {
			if err := d.evict(ctx, io, p, n); err != nil {
				return err
			}
		}
		for _, n := range rest {
			if err := d.removeUnused(ctx, io, p, n); err != nil {
				return err
			}
		}
		// The marker goes last, so that an interrupted release can be done again.
		if err := io.Delete(markerName); code(err) != unix.ENOENT {
			return err
		}
		return nil
	})
	if problem.Is(err, problem.NotFound) || problem.Is(err, problem.Conflict) {
		err = nil // not ours, or not any more
	}
	if err != nil && !d.touched(p) && !problem.Is(err, problem.Cancelled) {
		d.cfg.Log.Info("a pool that was never reached from here is released", "pool", p.Pool, "error", err)
		err = nil
	}
	if err != nil {
		return err
	}
	d.forget(p.Pool)
	if d.cfg.Secrets != nil {
		if err := d.cfg.Secrets.DropSecret(ctx, p.Pool); err != nil {
			return err
		}
	}
	return d.unnote(p.Pool)
}

// forget ends the connection for a pool.
func (d *Driver) forget(pool string) {
	d.mu.Lock()
	delete(d.used, pool)
	at := d.clusters[pool]
	d.mu.Unlock()
	if at == nil {
		return
	}
	select {
	case <-at.done:
		if at.c != nil {
			d.drop(pool, at.c)
		}
	default: // somebody is just coming
	}
}

// Usage implements storage.Pool.
func (d *Driver) Usage(ctx context.Context, p steps.PoolOnNode) api.PoolUsage {
	u := api.PoolUsage{Pool: p.Pool}
	err := d.onPool(ctx, p, "", "measure it", func(ctx context.Context, io *rados.IOContext) error {
		names, err := rbd.GetImageNames(io)
		if err != nil {
			return err
		}
		for _, n := range names {
			if kind, id := storage.ClassifyRBD(n); kind == storage.KindBacking {
				u.Images = append(u.Images, id)
			}
		}
		slices.Sort(u.Images)
		u.Images = u.Images[:min(len(u.Images), api.MaxPoolImages)]
		u.Capacity, u.Free, err = d.measure(ctx, p)
		return err
	})
	if err != nil {
		return api.PoolUsage{Pool: p.Pool, Error: err.Error()}
	}
	return u
}

// measure asks the monitors how much room there is, in bytes as users count them: copies do not count.
func (d *Driver) measure(ctx context.Context, p steps.PoolOnNode) (capacity, free int64, err error) {
	c, err := d.connect(ctx, p)
	if err != nil {
		return 0, 0, err
	}
	defer c.users.Done()
	b, _, err := c.conn.MonCommand([]byte(`{"prefix":"df","detail":"detail","format":"json"}`))
	if err != nil {
		return 0, 0, err
	}
	var df struct {
		Pools []struct {
			Name  string `json:"name"`
			Stats struct {
				Stored   int64 `json:"stored"`
				MaxAvail int64 `json:"max_avail"`
				Quota    int64 `json:"quota_bytes"`
			} `json:"stats"`
		} `json:"pools"`
	}
	if err := json.Unmarshal(b, &df); err != nil {
		return 0, 0, problem.New(problem.Unavailable, "what the cluster says of its space cannot be read").Because("%s", err)
	}
	for _, pool := range df.Pools {
		if pool.Name != p.Source.Name {
			continue
		}
		s := pool.Stats
		capacity, free = s.Stored+s.MaxAvail, s.MaxAvail
		if s.Quota > 0 {
			capacity, free = min(capacity, s.Quota), min(free, max(0, s.Quota-s.Stored))
		}
		return capacity, free, nil
	}
	return 0, 0, problem.New(problem.Unavailable, "the cluster does not say how much room Ceph pool %s has", p.Source.Name).
		Because("its manager has not counted it yet, or is away").Try("see: ceph df")
}

// Capabilities implements storage.Volumes.
func (d *Driver) Capabilities(steps.PoolOnNode) storage.Capabilities {
	return storage.RBDCapabilities()
}

// Locate implements storage.Pool.
func (d *Driver) Locate(plan steps.VMPlan) (compute.DomainFiles, error) {
	return storage.LocateRBD(plan)
}

// LocateVolume implements storage.Volumes.
func (d *Driver) LocateVolume(v steps.VolumePlan) (compute.DiskSource, error) {
	return storage.LocateRBDVolume(v)
}
