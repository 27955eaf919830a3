package server

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
)

// maxWait bounds how long a request may wait for an operation.
const maxWait = time.Minute

// WriteHeaders comes with every write.
type WriteHeaders struct {
	IdempotencyKey string `header:"Idempotency-Key" maxLength:"128" doc:"Sent again with the same key, the same request is accepted once only"`
	Wait           string `query:"wait" doc:"How long to wait for the operation to end, at most 60s; it may not have ended when the answer comes" example:"30s"`
}

// IfMatch comes with the writes that change something that is there.
type IfMatch struct {
	IfMatch string `header:"If-Match" doc:"The ETag that the resource was read with; if it has changed since, the answer is 412" example:"\"42\""`
}

// accepted is the answer to every write.
type accepted struct {
	Location        string `header:"Location" doc:"Of the operation"`
	ContentLocation string `header:"Content-Location" doc:"Of the resource, for creates"`
	Body            *api.Operation
}

// shaped is satisfied by *B for every request body B.
type shaped[B any] interface {
	*B
	Validate() error
}

type createInProject[B any] struct {
	InProject
	WriteHeaders
	Body B
}

type createInCluster[B any] struct {
	WriteHeaders
	Body B
}

type changeInProject[B any] struct {
	ActInProject
	Body B
}

type changeInCluster[B any] struct {
	ActInCluster
	Body B
}

// ActInProject is what comes with a write on an item of a project.
type ActInProject struct {
	InProject
	Ref string `path:"ref" doc:"Name or ID"`
	WriteHeaders
	IfMatch
}

// ActInCluster is what comes with a write on what belongs to no project.
type ActInCluster struct {
	Ref string `path:"ref" doc:"Name or ID"`
	WriteHeaders
	IfMatch
}

// creatable registers POST on the collection of a kind.
func creatable[B any, P shaped[B]](s *Server, kind api.Kind, doc string, do func(Admission, context.Context, auth.Handle, admission.Options, B) (*api.Operation, error)) {
	op := writeOperation("create-"+kebab(kind), http.MethodPost, collectionPath(kind), kind, "Create "+article(kind), doc)
	create := func(ctx context.Context, project string, w WriteHeaders, body B) (*accepted, error) {
		if err := P(&body).Validate(); err != nil {
			return nil, err
		}
		return s.accept(ctx, w, IfMatch{}, project, kind, true, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
			return do(s.o.Admission, ctx, h, o, body)
		})
	}
	if kind.ClusterWide() {
		handle(s, op, func(ctx context.Context, in *createInCluster[B]) (*accepted, error) {
			return create(ctx, "", in.WriteHeaders, in.Body)
		})
		return
	}
	handle(s, op, func(ctx context.Context, in *createInProject[B]) (*accepted, error) {
		return create(ctx, in.Project, in.WriteHeaders, in.Body)
	})
}

// updatable registers PATCH on the items of a kind.
func updatable[B any, P shaped[B]](s *Server, kind api.Kind, do func(Admission, context.Context, auth.Handle, admission.Options, string, B) (*api.Operation, error)) {
	op := writeOperation("update-"+kebab(kind), http.MethodPatch, itemPath(kind), kind, "Change "+article(kind), "Fields that are left out stay as they are.")
	changing[B, P](s, op, kind, do)
}

// changing registers a write with a body on the items of a kind.
func changing[B any, P shaped[B]](s *Server, op huma.Operation, kind api.Kind, do func(Admission, context.Context, auth.Handle, admission.Options, string, B) (*api.Operation, error)) {
	change := func(ctx context.Context, project, ref string, w WriteHeaders, m IfMatch, body B) (*accepted, error) {
		if err := P(&body).Validate(); err != nil {
			return nil, err
		}
		return s.act(ctx, w, m, project, kind, ref, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
			return do(s.o.Admission, ctx, h, o, ref, body)
		})
	}
	if kind.ClusterWide() {
		handle(s, op, func(ctx context.Context, in *changeInCluster[B]) (*accepted, error) {
			return change(ctx, "", in.Ref, in.WriteHeaders, in.IfMatch, in.Body)
		})
		return
	}
	handle(s, op, func(ctx context.Context, in *changeInProject[B]) (*accepted, error) {
		return change(ctx, in.Project, in.Ref, in.WriteHeaders, in.IfMatch, in.Body)
	})
}

// deletable registers DELETE on the items of a kind.
func deletable(s *Server, kind api.Kind, doc string, do func(Admission, context.Context, auth.Handle, admission.Options, string) (*api.Operation, error)) {
	acting(s, writeOperation("delete-"+kebab(kind), http.MethodDelete, itemPath(kind), kind, "Delete "+article(kind), doc), kind, do)
}

// acting registers a write without a body on the items of a kind.
func acting(s *Server, op huma.Operation, kind api.Kind, do func(Admission, context.Context, auth.Handle, admission.Options, string) (*api.Operation, error)) {
	if kind.ClusterWide() {
		handle(s, op, func(ctx context.Context, in *ActInCluster) (*accepted, error) {
			return s.act(ctx, in.WriteHeaders, in.IfMatch, "", kind, in.Ref, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
				return do(s.o.Admission, ctx, h, o, in.Ref)
			})
		})
		return
	}
	handle(s, op, func(ctx context.Context, in *ActInProject) (*accepted, error) {
		return s.act(ctx, in.WriteHeaders, in.IfMatch, in.Project, kind, in.Ref, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
			return do(s.o.Admission, ctx, h, o, in.Ref)
		})
	})
}

func writeOperation(id, method, path string, kind api.Kind, summary, doc string) huma.Operation {
	return huma.Operation{
		OperationID: id, Method: method, Path: path, Tags: []string{string(kind)}, Summary: summary, Description: doc,
		DefaultStatus: http.StatusAccepted,
	}
}

func article(kind api.Kind) string {
	if strings.ContainsRune("aeio", rune(kind[0])) {
		return "an " + kind.Singular()
	}
	return "a " + kind.Singular()
}

// act accepts a write on an item.
func (s *Server) act(ctx context.Context, w WriteHeaders, m IfMatch, project string, kind api.Kind, ref string, do func(auth.Handle, admission.Options) (*api.Operation, error)) (*accepted, error) {
	if err := checkRef(ref); err != nil {
		return nil, err
	}
	return s.accept(ctx, w, m, project, kind, false, do)
}

// accept checks what comes with every write, has it accepted, and waits for the operation if that is wanted.
func (s *Server) accept(ctx context.Context, w WriteHeaders, m IfMatch, project string, kind api.Kind, creates bool, do func(auth.Handle, admission.Options) (*api.Operation, error)) (*accepted, error) {
	o, wait, err := writeOptions(w, m)
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
	o.Project = project
	op, err := do(h, o)
	if err != nil {
		return nil, err
	}
	s.told(op.Revision)
	if op, err = s.await(ctx, op, wait); err != nil {
		return nil, err
	}
	out := &accepted{Location: pathOf(api.RefTo(op)), Body: s.show(op).(*api.Operation)}
	if creates && op.Target.ID != "" {
		out.ContentLocation = pathOf(op.Target)
	}
	return out, nil
}

func writeOptions(w WriteHeaders, m IfMatch) (o admission.Options, wait time.Duration, err error) {
	if wait, err = parseWait(w.Wait); err != nil {
		return o, 0, err
	}
	for _, r := range w.IdempotencyKey {
		if r < 0x20 || r > 0x7e {
			return o, 0, wrong("header.Idempotency-Key", clip(w.IdempotencyKey), "must be printable ASCII characters")
		}
	}
	o.IdempotencyKey = w.IdempotencyKey
	o.IfMatch, err = parseIfMatch(m.IfMatch)
	return o, wait, err
}

// parseIfMatch reads an ETag. Only one, and no weak one: what is compared is the exact revision.
func parseIfMatch(s string) (int64, error) {
	if s == "" || s == "*" {
		return 0, nil
	}
	quoted := len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"'
	revision, err := strconv.ParseInt(strings.Trim(s, `"`), 10, 64)
	if !quoted || err != nil || revision <= 0 {
		return 0, wrong("header.If-Match", clip(s), `must be an ETag as it was given, like "42" with the quotes`)
	}
	return revision, nil
}

// parseWait reads "30s" or "30", and cuts it to what is allowed.
func parseWait(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		d, err = time.ParseDuration(s + "s")
	}
	if err != nil || d < 0 {
		return 0, wrong("query.wait", clip(s), "must be a duration, like 30s")
	}
	return min(d, maxWait), nil
}
