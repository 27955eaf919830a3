package client

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/nextstack/nextstack/api"
)

// collection returns the path of a kind's collection.
func collection(kind api.Kind, project string) string {
	if kind.ClusterWide() {
		return "/v1/" + string(kind)
	}
	if project == "" {
		project = api.DefaultProject
	}
	return "/v1/projects/" + url.PathEscape(project) + "/" + string(kind)
}

// item returns the path of one resource; ref is its name or ID.
func item(kind api.Kind, project, ref string) string {
	return collection(kind, project) + "/" + url.PathEscape(ref)
}

// Get returns the resource of T's kind that has ref as its name or ID. The project does not matter for cluster-wide kinds;
// empty is the default project.
func Get[T api.Resource](ctx context.Context, c *Client, project, ref string) (T, error) {
	var out T
	err := c.call(ctx, &request{method: http.MethodGet, path: item(out.ResourceKind(), project, ref)}, &out)
	return out, err
}

// ListOptions choose what a list holds. The zero value chooses everything.
type ListOptions struct {
	Labels    map[string]string // all must match
	Abnormal  bool              // only what somebody should look at
	PageSize  int               // default 50 for List and 500 for All; the server allows up to 1000
	PageToken string            // NextPageToken of the page before; for List only

	// For volumes alone, by name or ID: those in a pool, and those that a VM has.

	Pool string
	VM   string

	// The rest is for operations alone.

	State   api.OperationState
	Kind    string // such as vm.create
	Target  string // name or ID
	Project string
	Parent  string // ID of the operation that asked for them
}

func (o ListOptions) query() url.Values {
	q := url.Values{}
	for k, v := range o.Labels {
		q.Add("label", k+"="+v)
	}
	if o.Abnormal {
		q.Set("abnormal", "true")
	}
	if o.PageSize > 0 {
		q.Set("page_size", strconv.Itoa(o.PageSize))
	}
	for k, v := range map[string]string{"page_token": o.PageToken, "state": string(o.State), "kind": o.Kind, "target": o.Target, "project": o.Project, "parent": o.Parent, "pool": o.Pool, "vm": o.VM} {
		if v != "" {
			q.Set(k, v)
		}
	}
	return q
}

// Page is a part of a list.
type Page[T api.Resource] struct {
	Items         []T    `json:"items"`
	NextPageToken string `json:"nextPageToken"` // empty: this is the last page
	Revision      int64  `json:"revision"`      // of the store when it was read; events go on from there
}

// List returns one page of the resources of T's kind.
func List[T api.Resource](ctx context.Context, c *Client, project string, o ListOptions) (*Page[T], error) {
	var page Page[T]
	var zero T
	err := c.call(ctx, &request{method: http.MethodGet, path: collection(zero.ResourceKind(), project), query: o.query()}, &page)
	return &page, err
}

// All goes through the resources of T's kind, page by page. It ends after the first error.
func All[T api.Resource](ctx context.Context, c *Client, project string, o ListOptions) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		if o.PageSize == 0 {
			o.PageSize = 500
		}
		for {
			page, err := List[T](ctx, c, project, o)
			if err != nil {
				var zero T
				yield(zero, err)
				return
			}
			for _, r := range page.Items {
				if !yield(r, nil) {
					return
				}
			}
			if o.PageToken = page.NextPageToken; o.PageToken == "" {
				return
			}
		}
	}
}

// Write holds what goes with any change.
type Write struct {
	Key     string        // Idempotency-Key; empty: a new one, so that the request happens once
	IfMatch int64         // the revision that the resource must have; 0: any
	Wait    time.Duration // for how long the answer may wait for the end of the operation, at most 60 s
}

func (w Write) request(method, path string, body any) *request {
	r := &request{method: method, path: path, body: body, wait: w.Wait, header: http.Header{}, query: url.Values{}}
	if w.Key == "" {
		w.Key = api.NewID()
	}
	r.header.Set("Idempotency-Key", w.Key)
	if w.IfMatch > 0 {
		r.header.Set("If-Match", strconv.Quote(strconv.FormatInt(w.IfMatch, 10)))
	}
	if w.Wait > 0 {
		r.query.Set("wait", w.Wait.String())
	}
	return r
}

func (c *Client) write(ctx context.Context, w Write, method, path string, body any) (*api.Operation, error) {
	var op api.Operation
	if err := c.call(ctx, w.request(method, path, body), &op); err != nil {
		return nil, err
	}
	return &op, nil
}

// Creation is a request for a new resource.
type Creation interface {
	*api.VMCreate | *api.VMGroupCreate | *api.ImageCreate | *api.PoolCreate | *api.VolumeCreate | *api.SnapshotCreate | *api.CheckpointCreate | *api.VPCCreate | *api.SubnetCreate | *api.PortCreate | *api.SecurityGroupCreate
	Validate() error
}

// Update is a request to change a resource.
type Update interface {
	*api.VMUpdate | *api.AgentUpdate | *api.ImageUpdate | *api.PoolUpdate | *api.VolumeUpdate | *api.VPCUpdate | *api.SubnetUpdate | *api.PortUpdate | *api.SecurityGroupUpdate
	Validate() error
}

// kindOf returns the kind of resource that a request is about.
func kindOf(body any) api.Kind {
	switch body.(type) {
	case *api.VMCreate, *api.VMUpdate:
		return api.KindVM
	case *api.VMGroupCreate:
		return api.KindVMGroup
	case *api.AgentUpdate:
		return api.KindAgent
	case *api.ImageCreate, *api.ImageUpdate:
		return api.KindImage
	case *api.PoolCreate, *api.PoolUpdate:
		return api.KindPool
	case *api.VolumeCreate, *api.VolumeUpdate:
		return api.KindVolume
	case *api.SnapshotCreate:
		return api.KindSnapshot
	case *api.CheckpointCreate:
		return api.KindCheckpoint
	case *api.VPCCreate, *api.VPCUpdate:
		return api.KindVPC
	case *api.SubnetCreate, *api.SubnetUpdate:
		return api.KindSubnet
	case *api.PortCreate, *api.PortUpdate:
		return api.KindPort
	case *api.SecurityGroupCreate, *api.SecurityGroupUpdate:
		return api.KindSecurityGroup
	default:
		panic(fmt.Sprintf("client: no kind for %T", body)) // a type that the constraints allow and this table lacks
	}
}

// Create asks for a new resource. What comes back is accepted, not yet done: see Client.Wait.
func Create[B Creation](ctx context.Context, c *Client, project string, body B, w Write) (*api.Operation, error) {
	if err := body.Validate(); err != nil {
		return nil, err
	}
	return c.write(ctx, w, http.MethodPost, collection(kindOf(body), project), body)
}

// Change asks for a change of the resource that ref names.
func Change[B Update](ctx context.Context, c *Client, project, ref string, body B, w Write) (*api.Operation, error) {
	if err := body.Validate(); err != nil {
		return nil, err
	}
	return c.write(ctx, w, http.MethodPatch, item(kindOf(body), project, ref), body)
}

// Delete asks for the end of the resource that ref names.
func (c *Client) Delete(ctx context.Context, kind api.Kind, project, ref string, w Write) (*api.Operation, error) {
	return c.write(ctx, w, http.MethodDelete, item(kind, project, ref), nil)
}

// ExportImage asks for an image in another format. The result of the operation is an api.ImageExported.
func (c *Client) ExportImage(ctx context.Context, project, ref string, how api.ImageExport, w Write) (*api.Operation, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.write(ctx, w, http.MethodPost, item(api.KindImage, project, ref)+"/export", how)
}

// StartVM asks for a VM to be started.
func (c *Client) StartVM(ctx context.Context, project, ref string, w Write) (*api.Operation, error) {
	return c.write(ctx, w, http.MethodPost, item(api.KindVM, project, ref)+"/start", nil)
}

// StopVM asks for a VM to be stopped.
func (c *Client) StopVM(ctx context.Context, project, ref string, how api.VMStop, w Write) (*api.Operation, error) {
	return c.verb(ctx, project, ref, "stop", how, w)
}

// RebootVM asks for a VM to be stopped and started again.
func (c *Client) RebootVM(ctx context.Context, project, ref string, how api.VMStop, w Write) (*api.Operation, error) {
	return c.verb(ctx, project, ref, "reboot", how, w)
}

func (c *Client) verb(ctx context.Context, project, ref, verb string, how api.VMStop, w Write) (*api.Operation, error) {
	if err := how.Validate(); err != nil {
		return nil, err
	}
	return c.write(ctx, w, http.MethodPost, item(api.KindVM, project, ref)+"/"+verb, how)
}
