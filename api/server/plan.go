package server

import (
	"context"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
)

// Planner tells what a request would do. Nothing is accepted, and nothing is promised: by the time that the request is sent in
// earnest, the world may be another one. A request that would be refused, or that could not be carried out now, is a plan
// with an Error; an error of the method itself is for requests that cannot be understood.
type Planner interface {
	PlanVMCreate(ctx context.Context, h auth.Handle, o admission.Options, req api.VMCreate) (*api.DryRun, error)
	PlanMigrate(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VMMigrate) (*api.DryRun, error)
	PlanMigrateVolume(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VolumeMigrate) (*api.DryRun, error)
	PlanDrain(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.HostDrain) (*api.DryRun, error)
	PlanBalance(ctx context.Context, h auth.Handle, o admission.Options, req api.HostBalance) (*api.DryRun, error)
}

// Rehearsable comes with the writes that can be tried out.
type Rehearsable struct {
	DryRun bool `query:"dryRun" doc:"Tell what would be done, and why, and do nothing: the answer is 200 with the plan"`
}

// outcome is the answer to a write that can be tried out: an operation or a plan.
type outcome struct {
	Status          int
	Location        string `header:"Location" doc:"Of the operation"`
	ContentLocation string `header:"Content-Location" doc:"Of the resource, for creates"`
	Body            any
}

// rehearsable registers a write whose answer is an outcome.
func rehearsable[I any](s *Server, op huma.Operation, do func(context.Context, *I) (*outcome, error)) {
	schemas := s.api.OpenAPI().Components.Schemas
	answer := func(description string, t reflect.Type) *huma.Response {
		return &huma.Response{Description: description, Content: map[string]*huma.MediaType{
			"application/json": {Schema: schemas.Schema(t, true, t.Name())},
		}}
	}
	op.Responses = map[string]*huma.Response{"202": answer("Accepted", reflect.TypeFor[api.Operation]())}
	handle(s, op, do)
	op.Responses["200"] = answer("With dryRun: what would be done", reflect.TypeFor[api.DryRun]())
}

// either plans a write or has it accepted.
func (s *Server) either(ctx context.Context, dry Rehearsable, w WriteHeaders, project string, kind api.Kind,
	plan func(Planner, auth.Handle, admission.Options) (*api.DryRun, error), accept func() (*accepted, error),
) (*outcome, error) {
	if !dry.DryRun {
		a, err := accept()
		if err != nil {
			return nil, err
		}
		return &outcome{Status: http.StatusAccepted, Location: a.Location, ContentLocation: a.ContentLocation, Body: a.Body}, nil
	}
	o, _, err := writeOptions(w, IfMatch{})
	if err != nil {
		return nil, err
	}
	h := handleOf(ctx)
	if err := h.Check(auth.Write, kind, project); err != nil {
		return nil, err
	}
	if project != "" {
		if err := s.knownProject(ctx, kind, project); err != nil {
			return nil, err
		}
	}
	if s.o.Planner == nil {
		return nil, problem.New(problem.Unsupported, "this server cannot plan").Try("send the request without dryRun")
	}
	o.Project = project
	out, err := plan(s.o.Planner, h, o)
	if err != nil {
		return nil, err
	}
	return &outcome{Status: http.StatusOK, Body: out}, nil
}
