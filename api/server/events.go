package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// heartbeatEvery is how often a stream is written to, so that both ends and all between notice when it is dead.
const heartbeatEvery = 15 * time.Second

// Event is what became of one resource.
type Event struct {
	Kind     api.Kind `json:"kind"`
	ID       string   `json:"id"`
	Name     string   `json:"name,omitempty" doc:"Unknown once the resource is deleted"`
	Project  string   `json:"project,omitempty"`
	Revision int64    `json:"revision"`
	Deleted  bool     `json:"deleted"`
	Resource any      `json:"resource,omitempty" doc:"As it is now; left out when it is deleted"`
}

// decoders make the resources that events tell of. What is not here is never told: users, tokens, claims, secrets.
var decoders = map[api.Kind]func() api.Resource{
	api.KindProject:       func() api.Resource { return &api.Project{} },
	api.KindImage:         func() api.Resource { return &api.Image{} },
	api.KindPool:          func() api.Resource { return &api.Pool{} },
	api.KindVolume:        func() api.Resource { return &api.Volume{} },
	api.KindSnapshot:      func() api.Resource { return &api.Snapshot{} },
	api.KindCheckpoint:    func() api.Resource { return &api.Checkpoint{} },
	api.KindVPC:           func() api.Resource { return &api.VPC{} },
	api.KindSubnet:        func() api.Resource { return &api.Subnet{} },
	api.KindPort:          func() api.Resource { return &api.Port{} },
	api.KindSecurityGroup: func() api.Resource { return &api.SecurityGroup{} },
	api.KindVM:            func() api.Resource { return &api.VM{} },
	api.KindAgent:         func() api.Resource { return &api.Agent{} },
	api.KindOperation:     func() api.Resource { return &api.Operation{} },
}

type eventsInput struct {
	Since       int64    `query:"since" doc:"Tell of what came after this revision, as a list gave it; 0: from now on"`
	Kinds       []string `query:"kinds" doc:"Kinds to tell of, with commas between them; empty: all" example:"vms,operations"`
	Project     string   `query:"project" doc:"Only what belongs to this project, operations included"`
	LastEventID string   `header:"Last-Event-ID" doc:"Where the stream broke off; goes before since"`
}

func (s *Server) routeEvents() {
	handle(s, huma.Operation{
		OperationID: "events", Method: http.MethodGet, Path: "/v1/events", Tags: []string{"events"}, Summary: "Follow all changes",
		Description: "Server-sent events. The event is put or delete, its data an Event, its id the revision. Where several resources change in one revision, the last of them carries the id, " +
			"so that a stream that broke off goes on with all of a revision or nothing. If the changes since a revision are no longer known, the answer is 409: list again, and go on from the revision of the list. " +
			"A client that is too slow gets an event named problem, and the stream ends.",
		Responses: map[string]*huma.Response{"200": {Description: "The stream", Content: map[string]*huma.MediaType{
			"text/event-stream": {Schema: s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[Event](), true, "Event")},
		}}},
	}, s.events)
}

// filter chooses events.
type filter struct {
	kinds   map[api.Kind]bool // empty: all
	project string
}

func (s *Server) events(ctx context.Context, in *eventsInput) (*huma.StreamResponse, error) {
	f, since, err := eventsQuestion(in)
	if err != nil {
		return nil, err
	}
	h := handleOf(ctx)
	for kind := range decoders {
		if len(f.kinds) == 0 || f.kinds[kind] {
			if err := h.Check(auth.Read, kind, f.project); err != nil {
				return nil, err
			}
		}
	}
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	// The stream outlives this handler, but not the request.
	ctx, cancel := context.WithCancel(ctx)
	if since == 0 {
		since = s.o.Cache.Revision()
	}
	sub, first, err := s.subscribe(ctx, since)
	if err != nil {
		cancel()
		return nil, err
	}
	return &huma.StreamResponse{Body: func(c huma.Context) {
		defer cancel()
		_, w := humachi.Unwrap(c)
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("X-Accel-Buffering", "no")
		w.WriteHeader(http.StatusOK)
		s.stream(ctx, w, stream{sub: sub, first: first, filter: f, at: since})
	}}, nil
}

func eventsQuestion(in *eventsInput) (filter, int64, error) {
	f := filter{kinds: map[api.Kind]bool{}, project: in.Project}
	var v problem.Validation
	for _, k := range in.Kinds {
		if decoders[api.Kind(k)] == nil {
			v.Add("query.kinds", clip(k), "is not a kind of resource")
		}
		f.kinds[api.Kind(k)] = true
	}
	v.Check(in.Project == "" || api.ValidName(in.Project), "query.project", clip(in.Project), "must be the name of a project")
	v.Check(in.Since >= 0, "query.since", in.Since, "must not be negative")
	since := in.Since
	if in.LastEventID != "" {
		id, err := strconv.ParseInt(in.LastEventID, 10, 64)
		v.Check(err == nil && id > 0, "header.Last-Event-ID", clip(in.LastEventID), "must be the id of an event")
		since = id
	}
	return f, since, v.Err("the request")
}

// subscribe follows the changes after since, and makes sure that they can be told before the stream begins.
func (s *Server) subscribe(ctx context.Context, since int64) (*store.Subscription, []store.Change, error) {
	sub := s.o.Cache.Subscribe(ctx, since)
	if since >= s.o.Cache.Revision() {
		return sub, nil, s.reached(ctx, since)
	}
	// Something has changed since, so either it comes at once, or the reason why it cannot. (The store's revision also
	// moves by what is no resource; then nothing comes, and nothing is missed.)
	quiet := time.NewTimer(time.Second)
	defer quiet.Stop()
	select {
	case batch, ok := <-sub.Changes():
		if !ok {
			return nil, nil, goneProblem(sub.Err())
		}
		return sub, batch, nil
	case <-quiet.C:
		return sub, nil, nil
	case <-ctx.Done():
		return nil, nil, problem.New(problem.Timeout, "the request was given up")
	}
}

// reached refuses a revision that the store has not come to: it is of another store, or of this one before it was set back.
func (s *Server) reached(ctx context.Context, since int64) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if s.o.Cache.WaitFor(ctx, since) != nil {
		return goneProblem(problem.New(problem.Conflict, "revision %d has not been reached", since))
	}
	return nil
}

func goneProblem(cause error) error {
	p := problem.New(problem.Conflict, "the changes since that revision cannot be told").Try("list again, and follow the changes from the revision of the list")
	if cause != nil {
		p.Why = problem.From(cause).What
		if why := problem.From(cause).Why; why != "" {
			p.Why = why
		}
	}
	return p
}

// stream is one client's stream of events.
type stream struct {
	filter
	sub   *store.Subscription
	first []store.Change // read from sub already
	at    int64          // the revision up to which all is told
}

// stream writes events until the client goes, the server ends, or the changes can no longer be told.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, st stream) {
	control := http.NewResponseController(w)
	beat := time.NewTicker(s.heartbeat)
	defer beat.Stop()
	write := func(text string) bool {
		_ = control.SetWriteDeadline(time.Now().Add(idle)) // not every writer has one
		if _, err := io.WriteString(w, text); err != nil {
			return false
		}
		return control.Flush() == nil
	}
	tell := func(batch []store.Change) bool {
		if len(batch) == 0 {
			return true
		}
		st.at = batch[len(batch)-1].Revision
		text := s.render(batch, st.filter)
		return text == "" || write(text)
	}
	// The first lines let the client know at once that it is connected, and where: so a stream that breaks off before its
	// first event can go on, too. Heartbeats move that place along while nothing comes that the filter lets through.
	if !write(fmt.Sprintf(": connected\nid: %d\n\n", st.at)) || !tell(st.first) {
		return
	}
	for {
		select {
		case batch, ok := <-st.sub.Changes():
			if !ok {
				if err := st.sub.Err(); err != nil {
					data, _ := json.Marshal(problem.From(goneProblem(err)).Document())
					write(fmt.Sprintf("event: problem\ndata: %s\n\n", data))
				}
				return
			}
			if !tell(batch) {
				return
			}
		case <-beat.C:
			if !write(fmt.Sprintf(": heartbeat\nid: %d\n\n", st.at)) {
				return
			}
		case <-s.ending:
			return
		case <-ctx.Done():
			return
		}
	}
}

// render writes changes, which are whole revisions, as events. The last one of each revision carries the id.
func (s *Server) render(changes []store.Change, f filter) string {
	var out strings.Builder
	var last *Event
	flush := func(more bool) {
		if last == nil {
			return
		}
		name := "put"
		if last.Deleted {
			name = "delete"
		}
		data, err := json.Marshal(last)
		if err != nil {
			s.log.Error("an event cannot be written", "kind", last.Kind, "id", last.ID, "error", err)
			return
		}
		if !more {
			fmt.Fprintf(&out, "id: %d\n", last.Revision)
		}
		fmt.Fprintf(&out, "event: %s\ndata: %s\n\n", name, data)
	}
	for _, c := range changes {
		e := s.event(c, f)
		if e == nil {
			continue
		}
		flush(last != nil && last.Revision == e.Revision)
		last = e
	}
	flush(false)
	return out.String()
}

// event returns what a change means, or nil if it is not to be told.
func (s *Server) event(c store.Change, f filter) *Event {
	rest, ok := strings.CutPrefix(c.Key, store.Root)
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 {
		return nil
	}
	kind := api.Kind(parts[0])
	empty := decoders[kind]
	if empty == nil || len(f.kinds) > 0 && !f.kinds[kind] {
		return nil
	}
	e := &Event{Kind: kind, ID: parts[2], Project: parts[1], Revision: c.Revision, Deleted: c.Deleted}
	if kind.ClusterWide() {
		e.Project = ""
	}
	if !c.Deleted {
		r := empty()
		if err := store.Decode(c.Entry, r); err != nil {
			s.log.Error("a record cannot be told of", "key", c.Key, "error", err)
			return nil
		}
		e.Name, e.Resource = r.GetMeta().Name, s.show(r)
		if kind == api.KindOperation {
			e.Project = r.GetMeta().Project
		}
	}
	if f.project != "" && e.Project != f.project {
		return nil
	}
	return e
}
