package client

import (
	"context"
	"net/http"

	"github.com/nextstack/nextstack/api"
)

// dry asks what a write would do.
func (c *Client) dry(ctx context.Context, path string, body any) (*api.DryRun, error) {
	r := &request{method: http.MethodPost, path: path, body: body, query: map[string][]string{"dryRun": {"true"}}}
	var out api.DryRun
	if err := c.call(ctx, r, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// PlanVM asks where a new VM would be placed, and why, without making it.
func (c *Client) PlanVM(ctx context.Context, project string, body *api.VMCreate) (*api.DryRun, error) {
	if err := body.Validate(); err != nil {
		return nil, err
	}
	return c.dry(ctx, collection(api.KindVM, project), body)
}

// MigrateVM asks for a VM to be moved to another node.
func (c *Client) MigrateVM(ctx context.Context, project, ref string, how api.VMMigrate, w Write) (*api.Operation, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.write(ctx, w, http.MethodPost, item(api.KindVM, project, ref)+"/migrate", how)
}

// PlanMigrate asks where a VM would be moved to, and why, without moving it.
func (c *Client) PlanMigrate(ctx context.Context, project, ref string, how api.VMMigrate) (*api.DryRun, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.dry(ctx, item(api.KindVM, project, ref)+"/migrate", how)
}

// DrainHost asks for every VM to be moved away from a node. The result of the operation is an api.MovePlan.
func (c *Client) DrainHost(ctx context.Context, ref string, how api.HostDrain, w Write) (*api.Operation, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.write(ctx, w, http.MethodPost, item(api.KindAgent, "", ref)+"/drain", how)
}

// PlanDrain asks what a drain of the node would do.
func (c *Client) PlanDrain(ctx context.Context, ref string, how api.HostDrain) (*api.DryRun, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.dry(ctx, item(api.KindAgent, "", ref)+"/drain", how)
}

// BalanceHosts asks for VMs to be moved until the nodes are used evenly. The result of the operation is an api.MovePlan.
func (c *Client) BalanceHosts(ctx context.Context, how api.HostBalance, w Write) (*api.Operation, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.write(ctx, w, http.MethodPost, collection(api.KindAgent, "")+"/balance", how)
}

// PlanBalance asks which moves would make the nodes evenly used.
func (c *Client) PlanBalance(ctx context.Context, how api.HostBalance) (*api.DryRun, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.dry(ctx, collection(api.KindAgent, "")+"/balance", how)
}

// RecoverHost asks for the HA VMs of a dead node to be started elsewhere. To ask is to confirm that the node is off. The
// result of the operation is an api.MovePlan.
func (c *Client) RecoverHost(ctx context.Context, ref string, how api.HostRecover, w Write) (*api.Operation, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.write(ctx, w, http.MethodPost, item(api.KindAgent, "", ref)+"/recover", how)
}
