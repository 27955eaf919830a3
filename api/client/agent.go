package client

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/nextstack/nextstack/api"
)

// Join makes a machine a member of the cloud. It needs no token but the join token in j.
func (c *Client) Join(ctx context.Context, j api.AgentJoin) (*api.AgentJoined, error) {
	if err := j.Validate(); err != nil {
		return nil, err
	}
	var out api.AgentJoined
	if err := c.call(ctx, &request{method: http.MethodPost, path: "/v1/agents/join", body: j}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Report tells what the agent with this ID sees and returns what it should look at.
func (c *Client) Report(ctx context.Context, agent string, r api.AgentReport) (*api.AgentOrders, error) {
	var out api.AgentOrders
	if err := c.call(ctx, &request{method: http.MethodPost, path: item(api.KindAgent, "", agent) + "/report", body: r}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Seed returns what the cloud-init of a VM on this agent gets. Secrets are in it: it must not be logged.
func (c *Client) Seed(ctx context.Context, agent, vm string) (*api.Seed, error) {
	var out api.Seed
	path := item(api.KindAgent, "", agent) + "/vms/" + url.PathEscape(vm) + "/seed"
	if err := c.call(ctx, &request{method: http.MethodGet, path: path}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// PoolKey returns the key that this agent uses a pool with, or that which an operation wants to give it, if one is named. It must not
// be logged.
func (c *Client) PoolKey(ctx context.Context, agent, pool, operation string) (string, error) {
	var out api.PoolKey
	r := &request{method: http.MethodGet, path: item(api.KindAgent, "", agent) + "/pools/" + url.PathEscape(pool) + "/key"}
	if operation != "" {
		r.query = url.Values{"operation": {operation}}
	}
	if err := c.call(ctx, r, &out); err != nil {
		return "", err
	}
	return out.Key, nil
}

// SendImage sends what an image is made of that this agent was asked to send. What has arrived of it already is not sent again.
func (c *Client) SendImage(ctx context.Context, agent, image string, file io.ReadSeeker, size int64, progress func(sent int64)) (*Uploaded, error) {
	return c.uploadTo(ctx, item(api.KindAgent, "", agent)+"/images/"+url.PathEscape(image)+"/upload", image, file, size, progress)
}

// OpenImage streams the stored file of an image to this agent. The size is -1 if the server does not tell. The caller
// closes the stream, and checks the content against the image's SHA-256.
func (c *Client) OpenImage(ctx context.Context, agent, image string) (content io.ReadCloser, size int64, err error) {
	resp, err := c.open(ctx, &request{
		method: http.MethodGet, path: item(api.KindAgent, "", agent) + "/images/" + url.PathEscape(image) + "/content",
		header: http.Header{"Accept": {"application/octet-stream, application/problem+json"}},
	})
	if err != nil {
		return nil, 0, err
	}
	return resp.Body, resp.ContentLength, nil
}
