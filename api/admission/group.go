package admission

import (
	"context"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/store"
)

// CreateGroup accepts a new VM group.
func (a *Admission) CreateGroup(ctx context.Context, h auth.Handle, o Options, req api.VMGroupCreate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, api.OpGroupCreate, req, func(c *acceptance) error {
		g := &api.VMGroup{Meta: c.meta(o.Project, req.Name, req.Labels), Spec: req.VMGroupSpec}
		c.makes(g, api.PhaseReady)
		return c.target(g)
	})
}

// DeleteGroup accepts the removal of a VM group that no VM belongs to.
func (a *Admission) DeleteGroup(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpGroupDelete, targetRequest{ref}, func(c *acceptance) error {
		g, err := store.Find[api.VMGroup](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		c.releases(store.LedgerKey(store.GroupPrefix(g.ID)))
		return c.deletes(g)
	})
}
