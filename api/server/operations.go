package server

import (
	"context"
	"net/http"
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
		question := string(in.State) + "\x00" + in.Kind + "\x00" + in.Target + "\x00" + in.Project
		return list(ctx, s, "", in.ListQuery, question, func(op *api.Operation) bool {
			return (in.State == "" || op.State == in.State) && (in.Kind == "" || op.Kind == in.Kind) &&
				(in.Target == "" || op.Target.ID == in.Target || op.Target.Name == in.Target) &&
				(in.Project == "" || op.Project == in.Project)
		})
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
		return &item[api.Operation]{ETag: etag(op.Revision), Body: s.show(op).(*api.Operation)}, nil
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
