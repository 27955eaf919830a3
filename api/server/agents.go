package server

import (
	"context"
	"io"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// ofAgents marks the endpoints that are for the agent in the path alone.
var ofAgents = map[string]any{audience: forAgents}

func (s *Server) routeAgents() {
	readable[api.Agent](s)
	const tag = "agents"
	handle(s, huma.Operation{
		OperationID: "join-agent", Method: http.MethodPost, Path: "/v1/agents/join", Tags: []string{tag}, Summary: "Make a node a member",
		Description: "The join token in the body is what authenticates. A node that joins again under its name keeps its ID and gets a new credential; the old one is revoked.",
	}, func(ctx context.Context, in *struct{ Body api.AgentJoin }) (*struct{ Body *api.AgentJoined }, error) {
		joined, err := s.o.Fleet.Join(ctx, in.Body)
		return &struct{ Body *api.AgentJoined }{joined}, err
	})
	handle(s, huma.Operation{
		OperationID: "report-agent", Method: http.MethodPost, Path: "/v1/agents/{id}/report", Tags: []string{tag}, Metadata: ofAgents,
		Summary: "Tell what a node has and sees", Description: "For the agent itself only.",
	}, func(ctx context.Context, in *struct {
		ID   string `path:"id" doc:"Agent ID"`
		Body api.AgentReport
	},
	) (*struct{ Body *api.AgentOrders }, error) {
		orders, err := s.o.Fleet.Report(ctx, handleOf(ctx), in.ID, in.Body)
		return &struct{ Body *api.AgentOrders }{orders}, err
	})
	handle(s, huma.Operation{
		OperationID: "get-seed", Method: http.MethodGet, Path: "/v1/agents/{id}/vms/{vm}/seed", Tags: []string{tag}, Metadata: ofAgents,
		Summary: "Show what a VM's cloud-init gets", Description: "For the agent that runs the VM only.",
	}, func(ctx context.Context, in *struct {
		ID string `path:"id" doc:"Agent ID"`
		VM string `path:"vm" doc:"VM ID"`
	},
	) (*struct{ Body *api.Seed }, error) {
		if !api.IsUUID(in.VM) {
			return nil, wrong("path.vm", clip(in.VM), "must be a UUID")
		}
		seed, err := s.o.Fleet.Seed(ctx, handleOf(ctx), in.ID, in.VM)
		return &struct{ Body *api.Seed }{seed}, err
	})
	handle(s, huma.Operation{
		OperationID: "get-pool-key", Method: http.MethodGet, Path: "/v1/agents/{id}/pools/{pool}/key", Tags: []string{tag}, Metadata: ofAgents,
		Summary: "Show the key that a pool is used with", Description: "For the agents of a pool in a Ceph cluster only.",
	}, func(ctx context.Context, in *struct {
		ID        string `path:"id" doc:"Agent ID"`
		Pool      string `path:"pool" doc:"Pool ID"`
		Operation string `query:"operation" doc:"Operation that wants to give the pool another key: that one"`
	},
	) (*struct{ Body *api.PoolKey }, error) {
		if !api.IsUUID(in.Pool) {
			return nil, wrong("path.pool", clip(in.Pool), "must be a UUID")
		}
		if in.Operation != "" {
			if !api.IsUUID(in.Operation) {
				return nil, wrong("query.operation", clip(in.Operation), "must be a UUID")
			}
			key, err := s.o.Fleet.NewPoolKey(ctx, handleOf(ctx), in.ID, in.Pool, in.Operation)
			return &struct{ Body *api.PoolKey }{key}, err
		}
		key, err := s.o.Fleet.PoolKey(ctx, handleOf(ctx), in.ID, in.Pool)
		return &struct{ Body *api.PoolKey }{key}, err
	})
	handle(s, huma.Operation{
		OperationID: "get-image-content", Method: http.MethodGet, Path: "/v1/agents/{id}/images/{image}/content", Tags: []string{tag}, Metadata: ofAgents,
		Summary: "Send an image's file", Description: "For agents only. Ranges are understood, so that a transfer that broke can go on.",
		Responses: map[string]*huma.Response{"200": {Description: "The file", Content: binaryContent()}},
	}, s.imageContent)
	handle(s, huma.Operation{
		OperationID: "put-image-upload", Method: http.MethodPut, Path: "/v1/agents/{id}/images/{image}/upload", Tags: []string{tag}, Metadata: ofAgents,
		Summary: "Send what an image is made of", Description: "For agents only, and for images that are being made of a volume, or exports of one: those go by the ID of their operation.",
		RequestBody: &huma.RequestBody{Required: true, Content: binaryContent()},
	}, func(ctx context.Context, in *imageUploadInput) (*struct{ Body *Uploaded }, error) {
		if err := s.captured(ctx, in.ID, in.Image); err != nil {
			return nil, err
		}
		return s.takeUpload(in.Image, in.FileBody)
	})
	handle(s, huma.Operation{
		OperationID: "get-image-upload", Method: http.MethodGet, Path: "/v1/agents/{id}/images/{image}/upload", Tags: []string{tag}, Metadata: ofAgents,
		Summary: "Tell how much has arrived of what an image is made of", Description: "For agents only.",
	}, func(ctx context.Context, in *ImageOfAgent) (*struct{ Body *UploadState }, error) {
		if err := s.captured(ctx, in.ID, in.Image); err != nil {
			return nil, err
		}
		state, err := s.uploads.state(in.Image)
		return &struct{ Body *UploadState }{state}, err
	})
	accept[api.AgentJoin](s)
	accept[api.AgentReport](s)
}

type imageUploadInput struct {
	ImageOfAgent
	FileBody
}

// captured checks that an image is being made of a volume, or that an operation exports one from this agent: agents send nothing
// else.
func (s *Server) captured(ctx context.Context, agent, id string) error {
	image, err := s.anyImage(ctx, id)
	if problem.Is(err, problem.NotFound) && s.o.Fleet.Exports(ctx, handleOf(ctx), agent, id) {
		return nil
	}
	if err != nil {
		return err
	}
	if image.Status.Phase != api.PhaseCreating || !strings.HasPrefix(image.Spec.Source, "volume:") && !strings.HasPrefix(image.Spec.Source, "snapshot:") {
		return problem.New(problem.Conflict, "image %s is not being made of a volume", image.Name)
	}
	return nil
}

// accept makes the server ignore what it does not know in a T, however deep it stands. Agents are upgraded one by one, and one
// that is newer than its server and knows more to tell must not be lost by it.
func accept[T any](s *Server) {
	schemas := s.api.OpenAPI().Components.Schemas
	seen := map[*huma.Schema]bool{}
	var open func(*huma.Schema)
	open = func(schema *huma.Schema) {
		if schema != nil && schema.Ref != "" {
			schema = schemas.SchemaFromRef(schema.Ref)
		}
		if schema == nil || seen[schema] {
			return
		}
		seen[schema] = true
		if more, ok := schema.AdditionalProperties.(bool); ok && !more {
			schema.AdditionalProperties = true
		}
		for _, property := range schema.Properties {
			open(property)
		}
		open(schema.Items)
	}
	open(schemas.Schema(reflect.TypeFor[T](), true, ""))
}

// binaryContent is made anew for each route: huma writes into the schemas that it is given, and servers may start side by side.
func binaryContent() map[string]*huma.MediaType {
	return map[string]*huma.MediaType{"application/octet-stream": {Schema: &huma.Schema{Type: "string", Format: "binary"}}}
}

// ImageOfAgent is what comes with a request of an agent about an image.
type ImageOfAgent struct {
	ID    string `path:"id" doc:"Agent ID"`
	Image string `path:"image" doc:"Image ID"`
}

func (s *Server) imageContent(ctx context.Context, in *ImageOfAgent) (*huma.StreamResponse, error) {
	image, err := s.anyImage(ctx, in.Image)
	if err != nil {
		return nil, err
	}
	return s.sendImage(image)
}

// anyImage finds an image of any project by its ID.
func (s *Server) anyImage(ctx context.Context, id string) (*api.Image, error) {
	if !api.IsUUID(id) {
		return nil, wrong("path.image", clip(id), "must be a UUID")
	}
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	found, err := store.ListCached(s.o.Cache, handleOf(ctx), "*", "", 1, func(i *api.Image) bool { return i.ID == id })
	if err != nil {
		return nil, err
	}
	if len(found.Items) == 0 {
		return nil, store.NoSuch(api.KindImage, "*", id)
	}
	return found.Items[0], nil
}

// idle is how long a transfer may stand still.
const idle = time.Minute

// patient moves the write deadline along while a long answer makes progress.
type patient struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (p *patient) Write(b []byte) (int, error) {
	_ = p.control.SetWriteDeadline(time.Now().Add(idle)) // not every writer has one
	return p.ResponseWriter.Write(b)
}

// ReadFrom copies piece by piece, through Write: in one piece, the deadline would be that of the whole.
func (p *patient) ReadFrom(r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{p}, struct{ io.Reader }{r}, make([]byte, 1<<20))
}

// mayUpload is the authority that uploads need: they become images.
func mayUpload(h auth.Handle) error { return h.Check(auth.Write, api.KindImage, "") }
