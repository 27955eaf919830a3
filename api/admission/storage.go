package admission

import (
	"context"
	"path"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// CreateImage accepts the import of an image.
func (a *Admission) CreateImage(ctx context.Context, h auth.Handle, o Options, req api.ImageCreate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	if req.OfVolume() {
		return a.captureImage(ctx, h, o, req)
	}
	return a.accept(ctx, h, o, api.OpImageImport, req, func(c *acceptance) error {
		source := req.Path + req.URL
		if req.Upload != "" {
			source = "upload:" + req.Upload
		}
		img := &api.Image{Meta: c.meta(o.Project, req.Name, req.Labels), Spec: api.ImageSpec{Format: req.Format, Source: source}}
		c.makes(img, api.PhaseReady)
		return firstOf(c.target(img), c.input(api.ImageImport{Image: img.ID, Format: req.Format, Upload: req.Upload, Path: req.Path, URL: req.URL, SHA256: req.SHA256}))
	})
}

// captureImage accepts making an image of a volume, which nobody may change meanwhile, or of a snapshot, which nobody does.
func (a *Admission) captureImage(ctx context.Context, h auth.Handle, o Options, req api.ImageCreate) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpImageCapture, req, func(c *acceptance) error {
		src, err := a.volumeSource(c, &api.Volume{Meta: api.Meta{Project: o.Project}}, api.VolumeCreate{Volume: req.Volume, Snapshot: req.Snapshot})
		if err != nil {
			return err
		}
		pool, err := store.Get[api.Pool](ctx, a.kv, h, "", src.volume.Spec.Pool)
		if err != nil {
			return err
		}
		agent, err := a.reader(c, src, pool)
		if err != nil {
			return err
		}
		img := &api.Image{Meta: c.meta(o.Project, req.Name, req.Labels), Spec: api.ImageSpec{Format: api.FormatQCOW2, Source: "volume:" + src.origin.Volume}}
		if src.origin.Snapshot != "" {
			img.Spec.Source = "snapshot:" + src.origin.Snapshot
		}
		c.makes(img, api.PhaseReady)
		return firstOf(c.target(img), c.input(api.ImageCapture{
			Image: img.ID, Name: img.Name, Agent: agentRef(agent), Pool: pool.OnNode(), Size: src.size, From: *src.origin,
		}))
	})
}

// reader finds a node that can read a volume.
func (a *Admission) reader(c *acceptance, src volumeSource, pool *api.Pool) (*api.Agent, error) {
	agents, err := a.poolAgents(c, pool)
	if err != nil {
		return nil, err
	}
	if !pool.Spec.Shared {
		agents = slices.DeleteFunc(agents, func(ag *api.Agent) bool { return ag.ID != src.volume.Status.Agent })
	}
	if len(agents) == 0 {
		return nil, problem.New(problem.Unavailable, "no node reaches %s", src.what).Away().Try("see gnext pool get %s", pool.Name)
	}
	return agents[0], nil
}

// UpdateImage accepts a change of what is said of an image.
func (a *Admission) UpdateImage(ctx context.Context, h auth.Handle, o Options, ref string, req api.ImageUpdate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpImageUpdate, updateRequest[api.ImageUpdate]{targetRequest{ref}, req}, func(c *acceptance) error {
		img, err := store.Find[api.Image](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		after := *img
		if req.Labels != nil {
			after.Labels = *req.Labels
		}
		if req.Deprecated != nil {
			after.Spec.Deprecated = *req.Deprecated
		}
		if req.Advice != nil {
			after.Spec.Advice = *req.Advice
		}
		if !after.Spec.Deprecated {
			if req.Advice != nil && *req.Advice != "" {
				return problem.New(problem.Invalid, "image %s is not deprecated", img.Name).Because("advice is for those who use a deprecated image").Try("deprecate it, too")
			}
			after.Spec.Advice = ""
		}
		return updates(c, img, &after, nil, nil)
	})
}

// deprecated warns of an image that nobody should use any more.
func (c *acceptance) deprecated(img *api.Image) {
	if !img.Spec.Deprecated {
		return
	}
	w := "image " + img.Name + " is deprecated"
	if img.Spec.Advice != "" {
		w += ": " + img.Spec.Advice
	}
	c.op.Warnings = append(c.op.Warnings, w)
}

// ExportImage accepts making an image in another format.
func (a *Admission) ExportImage(ctx context.Context, h auth.Handle, o Options, ref string, req api.ImageExport) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpImageExport, updateRequest[api.ImageExport]{targetRequest{ref}, req}, func(c *acceptance) error {
		img, err := store.Find[api.Image](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		if img.Operation == "" && img.Status.Phase != api.PhaseReady {
			return problem.New(problem.Conflict, "image %s cannot be exported", img.Name).Because("it is %s", img.Status.Phase).Try("see: gnext img get %s", img.Name)
		}
		return firstOf(c.target(img), c.input(api.ImageExportWork{Image: img.ID, Format: req.Format}), c.keeps(img))
	})
}

// DeleteImage accepts the removal of an image that no volume was made from.
func (a *Admission) DeleteImage(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpImageDelete, targetRequest{ref}, func(c *acceptance) error {
		img, err := store.Find[api.Image](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		removal := api.ImageRemoval{Image: img.ID}
		pools, err := store.List[api.Pool](ctx, a.kv, h, "")
		if err != nil {
			return err
		}
		shared, err := a.sameContent(c, img)
		if err != nil {
			return err
		}
		for _, p := range pools {
			if shared {
				break
			}
			ids := p.Spec.Agents
			if p.Spec.Shared { // there is one copy, and whoever lives can remove it
				agents, err := a.poolAgents(c, p)
				if err != nil {
					return err
				}
				ids = nil
				for _, ag := range agents[:min(1, len(agents))] {
					ids = append(ids, ag.ID)
				}
			}
			for _, agent := range ids {
				removal.Copies = append(removal.Copies, api.ImageCopy{Agent: agent, Copy: p.Copy(img)})
			}
		}
		return firstOf(c.input(removal), c.deletes(img))
	})
}

// sameContent reports whether another image has the same content: copies on nodes are kept by content.
func (a *Admission) sameContent(c *acceptance, img *api.Image) (bool, error) {
	images, err := store.List[api.Image](c.ctx, c.kv, c.h, "*")
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(images, func(o *api.Image) bool { return o.ID != img.ID && o.Status.SHA256 == img.Status.SHA256 }), nil
}

// CreatePool accepts a new pool.
func (a *Admission) CreatePool(ctx context.Context, h auth.Handle, o Options, req api.PoolCreate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	shown := req
	if req.Key != "" {
		shown.Key, o.hidden = hiddenPassword, digest(req.Key)
	}
	return a.accept(ctx, h, o, api.OpPoolAdd, shown, func(c *acceptance) error {
		agents, err := a.agentsFor(c, req.Agents)
		if err != nil {
			return err
		}
		pool := &api.Pool{Meta: c.meta("", req.Name, req.Labels), Spec: api.PoolSpec{Type: req.Type, Path: req.Path, Shared: req.Shared, Source: req.Source}}
		if api.Mounted(req.Type) {
			pool.Spec.Path, pool.Spec.Shared = path.Join(api.MountDir, pool.ID), true
		}
		taken := problem.New(problem.Conflict, "directory %s is a pool already", pool.Spec.Path).Try("choose another directory")
		if req.Type == api.PoolRBD {
			pool.Spec.Path, pool.Spec.Shared = api.CephPath(req.Source), true
			taken = problem.New(problem.Conflict, "Ceph pool %s is a pool already", req.Source.Name).Try("choose another Ceph pool")
			if err := a.keepKey(c, pool.ID, req.Key); err != nil {
				return err
			}
		}
		work := api.PoolWork{Pool: pool.OnNode()}
		for _, ag := range agents {
			pool.Spec.Agents = append(pool.Spec.Agents, ag.ID)
			work.Agents = append(work.Agents, agentRef(ag))
			key := store.PoolPathClaim(ag.ID, pool.Spec.Path)
			c.claims(key, pool.ID)
			c.Meaning(key, problem.New(taken.Kind, "%s", taken.What).Because("on agent %s", ag.Name).Try("%s", taken.Fix))
		}
		c.makes(pool, api.PhaseReady)
		return firstOf(a.apart(c, pool, agents), c.target(pool), c.input(work))
	})
}

// keepKey keeps the key of a pool, for its agents alone.
func (a *Admission) keepKey(c *acceptance, pool, key string) error {
	sealed, err := a.seal.Seal(key, pool)
	if err != nil {
		return err
	}
	c.claims(store.SecretKey(pool), string(sealed))
	return nil
}

// agentsFor finds the agents that were named, or all that are ready.
func (a *Admission) agentsFor(c *acceptance, refs []string) ([]*api.Agent, error) {
	if len(refs) == 0 {
		agents, err := store.List[api.Agent](c.ctx, c.kv, c.h, "")
		if err != nil {
			return nil, err
		}
		agents = slices.DeleteFunc(agents, func(ag *api.Agent) bool { return ag.Status.Phase != api.PhaseReady })
		if len(agents) == 0 {
			return nil, problem.New(problem.Unavailable, "no agent is ready").Try("start one: gnext agent run; see: gnext agent list")
		}
		return agents, nil
	}
	var out []*api.Agent
	for _, ref := range refs {
		ag, err := store.Find[api.Agent](c.ctx, c.kv, c.h, "", ref)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(o *api.Agent) bool { return o.ID == ag.ID }) {
			continue // by name and by ID
		}
		out = append(out, ag)
	}
	return out, nil
}

// poolAgents returns the agents of a pool, those that are ready first: of a shared pool the first one stands for all.
func (a *Admission) poolAgents(c *acceptance, p *api.Pool) ([]*api.Agent, error) {
	var out []*api.Agent
	for _, id := range p.Spec.Agents {
		ag, err := store.Get[api.Agent](c.ctx, c.kv, c.h, "", id)
		if err != nil {
			return nil, err
		}
		out = append(out, ag)
	}
	slices.SortStableFunc(out, func(x, y *api.Agent) int { return readiness(x) - readiness(y) })
	return out, nil
}

// readiness is the lower the better.
func readiness(ag *api.Agent) int {
	switch {
	case ag.Status.Phase == api.PhaseReady:
		return 0
	case ag.Status.Alive():
		return 1
	default:
		return 2
	}
}

func agentRef(ag *api.Agent) api.AgentRef {
	return api.AgentRef{ID: ag.ID, Name: ag.Name, Ready: ag.Status.Phase == api.PhaseReady}
}

// DeletePool accepts the removal of a pool that no volume is in.
func (a *Admission) DeletePool(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpPoolDelete, targetRequest{ref}, func(c *acceptance) error {
		pool, err := store.Find[api.Pool](ctx, a.kv, h, "", ref)
		if err != nil {
			return err
		}
		agents, err := a.poolAgents(c, pool)
		if err != nil {
			return err
		}
		work := api.PoolWork{Pool: pool.OnNode()}
		for _, ag := range agents {
			work.Agents = append(work.Agents, agentRef(ag))
			c.releases(store.PoolPathClaim(ag.ID, pool.Spec.Path))
		}
		if pool.Spec.Type == api.PoolRBD {
			c.releases(store.SecretKey(pool.ID))
		}
		return firstOf(c.input(work), c.deletes(pool))
	})
}
