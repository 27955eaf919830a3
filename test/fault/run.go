package fault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// run carries an accepted operation out to its end, in Temporal's test environment, where time is skipped. A workflow that is
// lost on the way is taken up from its journal, as the control plane does. It returns the operation as it is then; one that
// has not ended is stuck.
func (w *World) run(ctx context.Context, id string, j *injector) (*api.Operation, error) {
	in, err := w.start(ctx, id)
	for err == nil && in != nil {
		if err := w.execute(in, j); err != nil && !j.over() {
			return nil, err
		}
		if !j.lost {
			break
		}
		j.lost = false
		in, err = w.start(ctx, id)
	}
	if err != nil {
		return nil, err
	}
	for _, late := range j.late {
		late()
	}
	if err := w.runOrders(ctx, id); err != nil {
		return nil, err
	}
	return store.Get[api.Operation](ctx, w.KV, w.User, "", id)
}

// start returns what the next workflow of an operation is started with, or nil if it needs none.
func (w *World) start(ctx context.Context, id string) (*steps.Op, error) {
	e, err := w.KV.Get(ctx, store.Key(api.KindOperation, "", id))
	if err != nil {
		return nil, err
	}
	var op api.Operation
	if err := store.Decode(e, &op); err != nil || op.State.Ended() {
		return nil, err
	}
	d := w.Tables[op.Kind]
	if d == nil {
		return nil, fmt.Errorf("no table for operations of kind %s", op.Kind)
	}
	in := steps.OpOf(&op, e.Created, nil)
	if op.State != api.OpAccepted || len(op.Steps) > 0 {
		in.Recover = saga.RecoveryOf(d, &op, e.Created)
	}
	return &in, nil
}

// execute runs one workflow. Its error says that it did not come to an end at which it settled the operation.
func (w *World) execute(in *steps.Op, j *injector) error {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(quiet)
	env := suite.NewTestWorkflowEnvironment()
	env.SetTestTimeout(time.Minute)
	// Else a timer of ten years keeps each world: the environment waits for it on a real clock while an activity runs.
	env.SetWorkflowRunTimeout(0)
	env.SetStartTime(w.now.get())
	before := w.now.follow(env.Now)
	defer func() { w.now.follow(before) }()
	env.SetWorkerOptions(sdkworker.Options{
		Interceptors:             []interceptor.WorkerInterceptor{&worker{w: w, j: j}},
		DeadlockDetectionTimeout: time.Minute, // a busy machine is no fault of the workflow
	})
	j.cancel = env.CancelWorkflow
	w.Register(env)
	env.RegisterWorkflowWithOptions(w.Tables[in.Kind].Func(), workflow.RegisterOptions{Name: in.Kind})
	env.ExecuteWorkflow(in.Kind, *in)
	err := env.GetWorkflowError()
	var settled *temporal.ApplicationError
	if errors.As(err, &settled) && settled.NonRetryable() {
		return nil // the operation failed or was cancelled, and says so
	}
	return err
}

// Accept is a request that becomes an operation.
type Accept func(ctx context.Context, w *World, h auth.Handle) (*api.Operation, error)

// Do makes a request and carries it out. It fails if the operation does.
func (w *World) Do(ctx context.Context, accept Accept) (*api.Operation, error) {
	op, err := accept(ctx, w, w.User)
	if err != nil {
		return nil, err
	}
	op, err = w.run(ctx, op.ID, newInjector(nil))
	if err == nil && op.State != api.OpSucceeded {
		err = fmt.Errorf("operation %s is %s: %w", op.Kind, op.State, op.Error)
	}
	return op, err
}
