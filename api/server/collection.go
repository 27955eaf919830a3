package server

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// Page sizes.
const (
	defaultPageSize = 50
	maxPageSize     = 1000
)

// resource is satisfied by *T for every resource type T.
type resource[T any] interface {
	*T
	api.Resource
}

// InProject is the path of what belongs to a project. (Types that carry parameters are exported for the framework's sake.)
type InProject struct {
	Project string `path:"project" doc:"Name of the project" example:"default"`
}

// ListQuery is the query of every list.
type ListQuery struct {
	PageSize  int      `query:"page_size" doc:"How many items at most; more than 1000 counts as 1000" default:"50"`
	PageToken string   `query:"page_token" doc:"The nextPageToken of the page before"`
	Label     []string `query:"label,explode" doc:"key=value; may be repeated, and all must match" example:"tier=web"`
	Abnormal  bool     `query:"abnormal" doc:"Only what somebody should look at"`
}

// page is one page of a list.
type page[T any] struct {
	Items         []*T   `json:"items" nullable:"false"`
	NextPageToken string `json:"nextPageToken" doc:"Empty on the last page"`
	Revision      int64  `json:"revision" doc:"State of the store that the page shows; GET /v1/events?since= goes on from here"`
}

type listed[T any] struct{ Body page[T] }

type item[T any] struct {
	ETag string `header:"ETag" doc:"The revision, in quotes; for If-Match"`
	Body *T
}

// ItemInProject is the path of an item.
type itemInProject struct {
	InProject
	Ref string `path:"ref" doc:"Name or ID"`
}

type itemInCluster struct {
	Ref string `path:"ref" doc:"Name or ID"`
}

type listInProject struct {
	InProject
	ListQuery
}

type listInCluster struct {
	ListQuery
}

// paths of a kind.
func collectionPath(kind api.Kind) string {
	if kind.ClusterWide() {
		return "/v1/" + string(kind)
	}
	return "/v1/projects/{project}/" + string(kind)
}

func itemPath(kind api.Kind) string { return collectionPath(kind) + "/{ref}" }

// pathOf returns the address of a resource.
func pathOf(r api.Ref) string {
	return strings.Replace(collectionPath(r.Kind), "{project}", r.Project, 1) + "/" + r.ID
}

// readable registers the list and the item of a kind.
func readable[T any, P resource[T]](s *Server) {
	kind := P(new(T)).ResourceKind()
	if kind.ClusterWide() {
		handle(s, listOperation(kind), func(ctx context.Context, in *listInCluster) (*listed[T], error) {
			return list[T, P](ctx, s, "", in.ListQuery, "", nil)
		})
		handle(s, itemOperation(kind), func(ctx context.Context, in *itemInCluster) (*item[T], error) {
			return get[T, P](ctx, s, "", in.Ref)
		})
		return
	}
	handle(s, listOperation(kind), func(ctx context.Context, in *listInProject) (*listed[T], error) {
		return list[T, P](ctx, s, in.Project, in.ListQuery, "", nil)
	})
	gettable[T, P](s)
}

// gettable registers the item of a kind that belongs to projects.
func gettable[T any, P resource[T]](s *Server) {
	handle(s, itemOperation(P(new(T)).ResourceKind()), func(ctx context.Context, in *itemInProject) (*item[T], error) {
		return get[T, P](ctx, s, in.Project, in.Ref)
	})
}

func listOperation(kind api.Kind) huma.Operation {
	return huma.Operation{
		OperationID: "list-" + string(kind), Method: http.MethodGet, Path: collectionPath(kind), Tags: []string{string(kind)},
		Summary:     "List " + plural(kind),
		Description: "A page at a time, ordered by ID; operations come newest first. While things come and go between two pages, nothing that stays is left out or shown twice.",
	}
}

func itemOperation(kind api.Kind) huma.Operation {
	return huma.Operation{
		OperationID: "get-" + kebab(kind), Method: http.MethodGet, Path: itemPath(kind), Tags: []string{string(kind)},
		Summary: "Show one " + kind.Singular(),
	}
}

func plural(kind api.Kind) string { return strings.ReplaceAll(string(kind), "-", " ") }
func kebab(kind api.Kind) string  { return strings.ReplaceAll(kind.Singular(), " ", "-") }

// list answers a list, in the order of IDs. question is what else makes the list different, and keep, if not nil, chooses by
// it.
func list[T any, P resource[T]](ctx context.Context, s *Server, project string, q ListQuery, question string, keep func(*T) bool) (*listed[T], error) {
	return listFrom[T, P](ctx, s, project, q, question, keep, func(after string, limit int, want func(*T) bool) (store.Page[T], error) {
		return store.ListCached[T, P](s.o.Cache, handleOf(ctx), project, after, limit, want)
	})
}

// listFrom answers a list that read reads, in whatever order that is.
func listFrom[T any, P resource[T]](ctx context.Context, s *Server, project string, q ListQuery, question string, keep func(*T) bool,
	read func(after string, limit int, want func(*T) bool) (store.Page[T], error),
) (*listed[T], error) {
	kind := P(new(T)).ResourceKind()
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	if err := s.knownProject(ctx, kind, project); err != nil {
		return nil, err
	}
	want, err := chooser[T, P](q, keep)
	if err != nil {
		return nil, err
	}
	question = strings.Join(append([]string{string(kind), project, question, strconv.FormatBool(q.Abnormal)}, sorted(q.Label)...), "\x00")
	after, err := s.pages.after(question, q.PageToken)
	if err != nil {
		return nil, err
	}
	size := q.PageSize
	switch {
	case size < 0:
		return nil, wrong("query.page_size", size, "must not be negative")
	case size == 0:
		size = defaultPageSize
	}
	found, err := read(after, min(size, maxPageSize), want)
	if err != nil {
		return nil, err
	}
	return &listed[T]{Body: page[T]{Items: shown[T](s, found.Items), NextPageToken: s.pages.token(question, found.Next), Revision: found.Revision}}, nil
}

// chooser returns what picks the items of a list; nil means all.
func chooser[T any, P resource[T]](q ListQuery, keep func(*T) bool) (func(*T) bool, error) {
	labels := make(map[string]string, len(q.Label))
	for _, l := range q.Label {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return nil, wrong("query.label", l, "must be key=value")
		}
		if was, twice := labels[k]; twice && was != v {
			return func(*T) bool { return false }, nil // nothing has two values of one label
		}
		labels[k] = v
	}
	if len(labels) == 0 && !q.Abnormal {
		return keep, nil
	}
	return func(r *T) bool {
		have := P(r).GetMeta().Labels
		for k, v := range labels {
			if got, ok := have[k]; !ok || got != v {
				return false
			}
		}
		return (!q.Abnormal || abnormal(P(r))) && (keep == nil || keep(r))
	}, nil
}

// abnormal reports whether somebody should look at a resource.
func abnormal(r api.Resource) bool {
	switch r := r.(type) {
	case *api.Operation:
		return r.State == api.OpStuck || r.State == api.OpFailed
	case *api.Agent:
		return r.Status.Phase.Abnormal()
	case api.Phased:
		return r.GetPhase().Abnormal()
	default:
		return false
	}
}

// get answers with one item. It is read from the store itself, so that it is never behind.
func get[T any, P resource[T]](ctx context.Context, s *Server, project, ref string) (*item[T], error) {
	if err := checkRef(ref); err != nil {
		return nil, err
	}
	kind := P(new(T)).ResourceKind()
	if err := s.knownProject(ctx, kind, project); err != nil {
		return nil, err
	}
	r, err := store.Find[T, P](ctx, s.o.KV, handleOf(ctx), project, ref)
	if err != nil {
		return nil, err
	}
	if a, ok := any(r).(*api.Agent); ok { // its record is not written with every sign of life
		beat, err := store.ReadBeat(ctx, s.o.KV, a.ID)
		if err != nil {
			return nil, err
		}
		beat.Show(a)
	}
	revision := P(r).GetMeta().Revision
	s.told(revision)
	return &item[T]{ETag: etag(revision), Body: s.show(r).(*T)}, nil
}

// show returns what of a resource may be seen: operations lose what is for the control plane alone.
func (s *Server) show(r any) any {
	op, ok := r.(*api.Operation)
	if !ok {
		return r
	}
	op = op.Public()
	if s.o.Engine != nil {
		op.URL = s.o.Engine.URL(op.ID)
	}
	return op
}

func shown[T any](s *Server, in []*T) []*T {
	if _, ok := any((*T)(nil)).(*api.Operation); !ok {
		return in
	}
	out := make([]*T, len(in))
	for i, r := range in {
		out[i] = s.show(r).(*T)
	}
	return out
}

// knownProject makes an unknown project a problem of its own: an empty list would hide the mistake.
func (s *Server) knownProject(ctx context.Context, kind api.Kind, project string) error {
	if kind.ClusterWide() {
		return nil
	}
	if !api.ValidName(project) {
		return wrong("path.project", clip(project), "must be the name of a project")
	}
	claim := store.NameClaim(api.KindProject, "", project)
	if _, ok := s.o.Cache.Get(claim); ok {
		return nil
	}
	_, err := s.o.KV.Get(ctx, claim)
	if problem.Is(err, problem.NotFound) {
		return store.NoSuch(api.KindProject, "", project)
	}
	return err
}

// checkRef refuses what can be neither a name nor an ID before it gets near a key.
func checkRef(ref string) error {
	if api.ValidName(ref) || api.IsUUID(ref) {
		return nil
	}
	return wrong("path.ref", clip(ref), "must be a name or a UUID")
}

// wrong returns the problem of one wrong parameter.
func wrong(path string, value any, message string) error {
	var v problem.Validation
	v.Add(path, value, "%s", message)
	return v.Err("the request")
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

func etag(revision int64) string { return strconv.Quote(strconv.FormatInt(revision, 10)) }
