package server

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

type operationsQuery struct {
	ListQuery
	State   api.OperationState `query:"state" enum:"accepted,running,undoing,stuck,succeeded,failed,cancelled"`
	Kind    string             `query:"kind" doc:"Such as vm.create"`
	Target  string             `query:"target" doc:"Name or ID of what they change"`
	Project string             `query:"project"`
	Parent  string             `query:"parent" doc:"ID of the operation that asked for them"`
}

type operationQuery struct {
	Ref  string `path:"ref" doc:"ID"`
	Wait string `query:"wait" doc:"How long to wait for the operation to end, at most 60s" example:"30s"`
}

type operationWrite struct {
	Ref string `path:"ref" doc:"ID"`
	WriteHeaders
}

func (s *Server) routeOperations() {
	const kind = api.KindOperation
	handle(s, listOperation(kind), func(ctx context.Context, in *operationsQuery) (*listed[api.Operation], error) {
		question := string(in.State) + "\x00" + in.Kind + "\x00" + in.Target + "\x00" + in.Project + "\x00" + in.Parent
		return listFrom(ctx, s, "", in.ListQuery, question, func(op *api.Operation) bool {
			return (in.State == "" || op.State == in.State) && (in.Kind == "" || op.Kind == in.Kind) &&
				(in.Target == "" || op.Target.ID == in.Target || op.Target.Name == in.Target) &&
				(in.Project == "" || op.Project == in.Project) && (in.Parent == "" || op.Parent == in.Parent)
		}, s.newest(ctx))
	})
	handle(s, itemOperation(kind), func(ctx context.Context, in *operationQuery) (*item[api.Operation], error) {
		wait, err := parseWait(in.Wait)
		if err != nil {
			return nil, err
		}
		op, err := s.operation(ctx, in.Ref)
		if err != nil {
			return nil, err
		}
		if op, err = s.await(ctx, op, wait); err != nil {
			return nil, err
		}
		body := s.show(op).(*api.Operation)
		body.Progress = s.progress(ctx, op)
		return &item[api.Operation]{ETag: etag(op.Revision), Body: body}, nil
	})
	handle(s, operationVerb("cancel", "Undo an operation", "It goes back to the state before, from wherever it is."), s.steer(Engine.Cancel))
	handle(s, operationVerb("resume", "Hurry a stuck operation", "It tries again at once what it could not do."), s.steer(Engine.Resume))
	handle(s, operationVerb("retry", "Send a failed request again", "The answer is a new operation."), func(ctx context.Context, in *operationWrite) (*accepted, error) {
		op, err := s.operation(ctx, in.Ref)
		if err != nil {
			return nil, err
		}
		return s.accept(ctx, in.WriteHeaders, IfMatch{}, "", op.Target.Kind, false, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
			return s.o.Admission.Retry(ctx, h, o, op.ID)
		})
	})

	handle(s, writeOperation("audit", http.MethodPost, "/v1/audit", kind, "Compare the records with the world",
		"The result of the operation tells what exists on one side only. A repair also removes what nobody owns."),
		func(ctx context.Context, in *createInCluster[api.AuditRequest]) (*accepted, error) {
			return s.accept(ctx, in.WriteHeaders, IfMatch{}, "", kind, false, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
				return s.o.Admission.Audit(ctx, h, o, in.Body)
			})
		})
	handle(s, writeOperation("noop", http.MethodPost, "/v1/noop", kind, "Do nothing", "It runs through the workflow engine and back: a check that operations are carried out."),
		func(ctx context.Context, in *struct{ WriteHeaders }) (*accepted, error) {
			return s.accept(ctx, in.WriteHeaders, IfMatch{}, "", kind, false, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
				return s.o.Admission.Noop(ctx, h, o)
			})
		})
}

// newest returns what reads operations with the newest first. A place in the list is told by when the operation there was
// accepted, so what comes later moves nothing from one page to another.
func (s *Server) newest(ctx context.Context) func(string, int, func(*api.Operation) bool) (store.Page[api.Operation], error) {
	return func(after string, limit int, want func(*api.Operation) bool) (store.Page[api.Operation], error) {
		all, err := store.ListCached(s.o.Cache, handleOf(ctx), "", "", 0, want)
		if err != nil {
			return all, err
		}
		slices.SortFunc(all.Items, func(x, y *api.Operation) int {
			return cmp.Or(y.Created.Compare(x.Created), strings.Compare(y.ID, x.ID))
		})
		if after != "" {
			all.Items = all.Items[sort.Search(len(all.Items), func(i int) bool { return acceptedAt(all.Items[i]) < after }):]
		}
		if len(all.Items) > limit {
			all.Items = all.Items[:limit]
			all.Next = acceptedAt(all.Items[limit-1])
		}
		return all, nil
	}
}

// acceptedAt returns the place of an operation in the list, as a text of the same order.
func acceptedAt(op *api.Operation) string {
	return fmt.Sprintf("%020d/%s", op.Created.UnixNano(), op.ID)
}

func operationVerb(verb, summary, doc string) huma.Operation {
	return writeOperation(verb+"-operation", http.MethodPost, itemPath(api.KindOperation)+"/"+verb, api.KindOperation, summary, doc)
}

func (s *Server) operation(ctx context.Context, ref string) (*api.Operation, error) {
	if !api.IsUUID(ref) {
		return nil, wrong("path.ref", clip(ref), "must be a UUID: operations have no names")
	}
	op, err := store.Get[api.Operation](ctx, s.o.KV, handleOf(ctx), "", ref)
	if err != nil {
		return nil, err
	}
	s.told(op.Revision)
	return op, nil
}

// progressTime is how long an answer waits for the engine to say how far an operation is.
const progressTime = time.Second

// progress returns what the running step of an operation last told of itself. It is nice to know: when the engine cannot say,
// the operation is shown without it.
func (s *Server) progress(ctx context.Context, op *api.Operation) *api.Progress {
	if s.o.Engine == nil || op.State.Ended() || op.State == api.OpAccepted {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, progressTime)
	defer cancel()
	p, err := s.o.Engine.Progress(ctx, op.ID)
	if err != nil {
		s.log.Debug("no progress to show", "operation", op.ID, "error", err)
		return nil
	}
	return p
}

// steer returns the handler that tells the engine something about an operation that has not ended.
func (s *Server) steer(tell func(Engine, context.Context, string) error) func(context.Context, *operationWrite) (*accepted, error) {
	return func(ctx context.Context, in *operationWrite) (*accepted, error) {
		_, wait, err := writeOptions(in.WriteHeaders, IfMatch{})
		if err != nil {
			return nil, err
		}
		op, err := s.operation(ctx, in.Ref)
		if err != nil {
			return nil, err
		}
		if err := handleOf(ctx).Check(auth.Write, op.Target.Kind, op.Project); err != nil {
			return nil, err
		}
		if op.State.Ended() {
			return nil, problem.New(problem.Conflict, "operation %s has ended", op.ID).Because("it is %s", op.State).Try("look at it: gnext op show %s", op.ID)
		}
		if err := tell(s.o.Engine, ctx, op.ID); err != nil {
			return nil, err
		}
		if op, err = s.operation(ctx, op.ID); err != nil {
			return nil, err
		}
		if op, err = s.await(ctx, op, wait); err != nil {
			return nil, err
		}
		return &accepted{Location: pathOf(api.RefTo(op)), Body: s.show(op).(*api.Operation)}, nil
	}
}

// await returns the operation as it is when it has ended, or when wait is over. It watches the record, so it learns of the
// end in the moment it is written.
func (s *Server) await(ctx context.Context, op *api.Operation, wait time.Duration) (*api.Operation, error) {
	if wait <= 0 || op.State.Ended() {
		return op, nil
	}
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	// What happened between the acceptance and here is behind the operation's revision, so nothing is missed.
	since := op.Revision
	for {
		var err error
		if op, err = s.watch(waiting, op, since); err != nil || op.State.Ended() {
			return op, err
		}
		select {
		case <-s.ending:
			return op, nil
		default:
		}
		// The time is over, or the store could not tell what came after since. What is written now is the best answer, and
		// where to go on from.
		now, revision, err := s.reread(op)
		if err != nil || now.State.Ended() || waiting.Err() != nil {
			return now, err
		}
		op, since = now, revision
	}
}

// watch returns the operation as it was last seen when it ended, the watch or the server did, or ctx was done.
func (s *Server) watch(ctx context.Context, op *api.Operation, since int64) (*api.Operation, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	key := store.Key(api.KindOperation, "", op.ID)
	changes := s.o.KV.Watch(ctx, key, since)
	for {
		select {
		case c, ok := <-changes:
			if !ok {
				return op, nil
			}
			if c.Key != key || c.Deleted {
				continue
			}
			var now api.Operation
			if err := store.Decode(c.Entry, &now); err != nil {
				return nil, err
			}
			s.told(now.Revision)
			if op = &now; op.State.Ended() {
				return op, nil
			}
		case <-s.ending:
			return op, nil
		}
	}
}

// reread returns the operation as it is now, and the revision of the store that this is. If it is gone, it is what it was.
func (s *Server) reread(op *api.Operation) (*api.Operation, int64, error) {
	// Not the request's context: its time may be over, and the answer is still wanted.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	entries, revision, err := s.o.KV.List(ctx, store.Key(api.KindOperation, "", op.ID))
	if err != nil || len(entries) == 0 {
		return op, revision, err
	}
	var now api.Operation
	if err := store.Decode(entries[0], &now); err != nil {
		return nil, 0, err
	}
	s.told(now.Revision)
	return &now, revision, nil
}
