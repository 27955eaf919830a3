// Package server is the REST API. A handler decodes a request, checks its shape and who sent it, and hands it on: writes to
// the admission, which accepts them as operations; reads to the store and its cache. Whatever can be said about all
// resources alike is said once, in collection.go and write.go.
package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"

	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
)

// Server answers the API's requests.
type Server struct {
	o       Options
	log     *slog.Logger
	api     huma.API
	handler http.Handler
	pages   pageSigner
	uploads uploads

	// seen is the highest store revision that any answer has told of. Lists wait for it: what somebody was told to be so,
	// later reads show.
	seen atomic.Int64

	heartbeat time.Duration // of event streams

	ending   chan struct{} // closed when the server shuts down, so that streams and waits end
	endOnce  sync.Once
	document []byte
}

// New returns a Server. With zero Options it can answer nothing, but its OpenAPI document is complete.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.MaxUpload == 0 {
		o.MaxUpload = 64 << 30
	}
	if len(o.PageKey) == 0 {
		o.PageKey = make([]byte, 32)
		_, _ = rand.Read(o.PageKey) // it does not fail: the runtime ends the process instead
	}
	s := &Server{o: o, log: o.Log, pages: pageSigner(o.PageKey), ending: make(chan struct{}), heartbeat: heartbeatEvery}
	s.uploads = uploads{dir: o.Dir, limit: o.MaxUpload, busy: map[string]*writing{}}

	r := chi.NewRouter()
	r.Use(s.observe, s.authenticate)
	r.NotFound(func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, problem.New(problem.NotFound, "there is no %s", r.URL.Path).Try("see /docs for what there is"))
	})
	r.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		d := problem.New(problem.Invalid, "%s cannot be done with %s", r.Method, r.URL.Path).Try("see /docs for what can").Document()
		d.Status = http.StatusMethodNotAllowed
		writeDocument(w, d)
	})
	s.api = humachi.New(r, config())
	s.api.UseMiddleware(s.admit)
	s.routes()
	s.document = s.finishDocument()
	r.Get("/openapi.json", s.serveDocument)
	r.Get("/docs", serveDocs)
	s.handler = r
	return s
}

func config() huma.Config {
	c := huma.DefaultConfig("NextStack", "v1")
	c.CreateHooks = nil // no $schema in answers
	c.OpenAPIPath, c.DocsPath, c.SchemasPath = "", "", ""
	c.RejectUnknownQueryParameters = true
	c.Info.Description = description
	c.Servers = []*huma.Server{{URL: "/"}}
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer", Description: "From POST /v1/login, or for agents from POST /v1/agents/join"},
	}
	return c
}

func (s *Server) routes() {
	s.routeSessions()
	s.routeProjects()
	s.routeVMs()
	s.routeStorage()
	s.routeNetwork()
	s.routeOperations()
	s.routeAgents()
	s.routeHosts()
	s.routeUploads()
	s.routeEvents()
}

// Handler returns the API as a http.Handler.
func (s *Server) Handler() http.Handler { return s.handler }

// OpenAPI returns the OpenAPI 3.1 document, indented.
func (s *Server) OpenAPI() []byte { return s.document }

// Serve answers requests on l until ctx is done; then it lets what is under way end, for at most grace, and ends the streams.
func (s *Server) Serve(ctx context.Context, l net.Listener, grace time.Duration) error {
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		s.end()
		return problem.Wrap(err, problem.Internal, "the API at %s ended", l.Addr())
	case <-ctx.Done():
	}
	s.end()
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := srv.Shutdown(ending)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	if end := <-failed; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	return err
}

// end makes streams and waits end.
func (s *Server) end() { s.endOnce.Do(func() { close(s.ending) }) }

// told notes that an answer tells of a store revision.
func (s *Server) told(revision int64) {
	for {
		was := s.seen.Load()
		if revision <= was || s.seen.CompareAndSwap(was, revision) {
			return
		}
	}
}

// fresh waits until the cache shows all that answers have told of.
func (s *Server) fresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// A filled cache is wanted in any case: revision 1 is that of an empty store.
	if err := s.o.Cache.WaitFor(ctx, max(1, s.seen.Load())); err != nil {
		return problem.New(problem.Unavailable, "the server has not caught up with its store").Because("%v", err).Try("try again in a moment")
	}
	return nil
}

// Audiences of an operation.
const (
	audience  = "audience"
	forUsers  = ""      // everybody but agents; what they may do is for api/auth to say
	forAgents = "agent" // the agent that the path names, and nobody else
)

// admit checks that an endpoint is for those who ask. The authority itself is checked where resources are touched.
func (s *Server) admit(ctx huma.Context, next func(huma.Context)) {
	op := ctx.Operation()
	if open[op.Method+" "+op.Path] {
		next(ctx)
		return
	}
	_, w := humachi.Unwrap(ctx)
	who := handleOf(ctx.Context()).Who()
	audience, _ := op.Metadata[audience].(string)
	switch {
	case who.Name == "":
		writeProblem(w, problem.New(problem.Unauthenticated, "a token is needed").Try("log in"))
	case audience == forAgents && (who.Role != auth.Agent || who.Name != ctx.Param("id")):
		writeProblem(w, problem.New(problem.Forbidden, "this is for agent %s alone", ctx.Param("id")).Try("use the credential that this agent got when it joined"))
	case audience == forUsers && who.Role == auth.Agent:
		writeProblem(w, problem.New(problem.Forbidden, "this is not for agents").Try("log in as a user"))
	default:
		next(ctx)
	}
}

// handle registers one operation of the API.
func handle[I, O any](s *Server, op huma.Operation, do func(context.Context, *I) (*O, error)) {
	if !open[op.Method+" "+op.Path] {
		op.Security = []map[string][]string{{"token": {}}}
	}
	op.MaxBodyBytes = maxBody
	op.BodyReadTimeout = 30 * time.Second
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := do(ctx, in)
		if err == nil {
			return out, nil
		}
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = problem.New(problem.Timeout, "the request was given up")
		}
		return nil, err
	})
}

// finishDocument completes what the framework knows of the API.
func (s *Server) finishDocument() []byte {
	doc := s.api.OpenAPI()
	// What the server never shows of an operation is no part of its schema.
	if op := doc.Components.Schemas.Map()["Operation"]; op != nil {
		for _, hidden := range []string{"plan", "requestHash", "checkpoint"} {
			delete(op.Properties, hidden)
		}
	}
	for _, unused := range []string{"OperationPlan", "Lock"} {
		delete(doc.Components.Schemas.Map(), unused)
	}
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		panic("the OpenAPI document cannot be written: " + err.Error()) // at start, by a mistake in a type; never on input
	}
	return append(b, '\n')
}
