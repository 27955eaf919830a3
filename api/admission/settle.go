package admission

import (
	"context"
	"encoding/json"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// Outcome is how an operation ended.
type Outcome struct {
	Operation string
	State     api.OperationState // succeeded, failed or cancelled
	Steps     []api.StepRecord
	Error     *problem.Problem
	Result    json.RawMessage
	Number    int              // of the journal
	Cause     *problem.Problem // why it goes back, if it does
}

// Settle ends an operation in one transaction: its records reach the phases that its plan foresees, its locks open, its
// claims are kept or given back. Settling twice is settling once.
func (a *Admission) Settle(ctx context.Context, h auth.Handle, out Outcome) error {
	return store.Retry(ctx, func() error {
		op, err := store.Get[api.Operation](ctx, a.kv, h, "", out.Operation)
		if err != nil || op.State.Ended() {
			return err
		}
		done := out.State == api.OpSucceeded
		d := store.NewDraft(h)
		now := a.now().UTC()
		for _, l := range op.Plan.Locks {
			if err := a.unlock(ctx, h, d, op, l, out); err != nil {
				return err
			}
		}
		release, put := op.Plan.ReleaseIfUndone, op.Plan.PutIfUndone
		if done {
			release, put = op.Plan.ReleaseIfDone, op.Plan.PutIfDone
		}
		for _, key := range release {
			d.Release(key)
		}
		for _, c := range put {
			if err := a.rewrite(ctx, d, c); err != nil {
				return err
			}
		}
		op.State, op.Error, op.Result, op.Ended, op.Checkpoint = out.State, out.Error, out.Result, now, nil
		op.Steps = mergeSteps(op.Steps, out.Steps, now)
		d.Update(op)
		_, err = d.Commit(ctx, a.kv)
		return err
	})
}

// rewrite lets a claim say what is so from now on. One that is gone went with its record.
func (a *Admission) rewrite(ctx context.Context, d *store.Draft, c api.Claim) error {
	var ledger int64
	if c.Set != "" { // read before what it is about
		var err error
		if ledger, err = store.LedgerRevision(ctx, a.kv, c.Set); err != nil {
			return err
		}
	}
	if _, err := a.kv.Get(ctx, c.Key); err != nil {
		if problem.Is(err, problem.NotFound) {
			return nil
		}
		return err
	}
	d.Put(c.Key, c.Content())
	if c.Set != "" {
		d.Touch(c.Set, ledger)
	}
	return nil
}

// unlock brings one record to where the outcome wants it. A record that is gone, or that another operation holds, is not
// ours any more.
func (a *Admission) unlock(ctx context.Context, h auth.Handle, d *store.Draft, op *api.Operation, l api.Lock, out Outcome) error {
	r := api.New(l.Ref.Kind)
	if r == nil {
		return problem.New(problem.Internal, "operation %s holds a %s, which cannot be held", op.ID, l.Ref.Kind)
	}
	err := store.Load(ctx, a.kv, h, l.Ref, r)
	if problem.Is(err, problem.NotFound) {
		return nil
	}
	if err != nil || r.GetMeta().Operation != op.ID {
		return err
	}
	done, phase := out.State == api.OpSucceeded, l.Before
	if done {
		phase = l.Then
	}
	if phase == "" {
		d.Delete(r)
		return nil
	}
	if done && l.After != nil {
		if r, err = become(r, op, l.After); err != nil {
			return err
		}
	}
	if done && l.Ref.ID == op.Target.ID {
		if r, err = finish(r, op, out.Result); err != nil {
			return err
		}
	}
	r.GetMeta().Operation = ""
	r.SetPhase(phase, "")
	switch r := r.(type) {
	case *api.VM:
		r.Status.Observed = a.now().UTC() // what an agent saw before this moment no longer counts
		if phase == api.PhaseUnknown && out.Error != nil {
			r.Status.Reason = "it was not restarted on another node: " + out.Error.Error()
		}
	case *api.Agent:
		r.Status.ConfirmedOff = "" // it was said to the operation that ends here
	case *api.Pool:
		r.Status.Leaving = nil // they have left, or stay
	}
	d.Update(r)
	return nil
}

// finish returns the target as the operation has made it.
func finish(r api.Phased, op *api.Operation, result json.RawMessage) (api.Phased, error) {
	if op.Plan.After != nil {
		after, err := become(r, op, op.Plan.After)
		if err != nil {
			return nil, err
		}
		switch after := after.(type) { // what it is was not the update's to say
		case *api.VM:
			after.Status = r.(*api.VM).Status
		case *api.Pool:
			after.Status = r.(*api.Pool).Status
		case *api.Image:
			after.Status = r.(*api.Image).Status
		}
		return after, nil
	}
	var err error
	switch r := r.(type) {
	case *api.Image:
		if op.Kind == api.OpImageImport || op.Kind == api.OpImageCapture {
			var made api.ImageImported
			err = json.Unmarshal(result, &made)
			r.Status.SHA256, r.Status.Size, r.Status.VirtualSize = made.SHA256, made.Size, made.VirtualSize
		}
	case *api.Snapshot:
		if op.Kind == api.OpSnapshotCreate {
			var taken api.SnapshotTaken
			err = json.Unmarshal(result, &taken)
			r.Status.Frozen, r.Status.Pause = taken.Frozen, taken.Pause
		}
	case *api.Checkpoint:
		if op.Kind == api.OpCheckpointCreate {
			var taken api.CheckpointTaken
			err = json.Unmarshal(result, &taken)
			r.Status.Memory, r.Status.Pause = taken.Memory, taken.Pause
		}
	}
	return r, problem.Wrap(err, problem.Internal, "the result of operation %s cannot be read", op.ID)
}

// become returns a record as an operation wants it, at the revision that it has.
func become(r api.Phased, op *api.Operation, after []byte) (api.Phased, error) {
	out := api.New(r.ResourceKind()) // a fresh one: decoding into r would mix old labels with new
	if err := json.Unmarshal(after, out); err != nil {
		return nil, problem.Wrap(err, problem.Internal, "the plan of operation %s cannot be read", op.ID)
	}
	out.GetMeta().Revision = r.GetMeta().Revision
	return out, nil
}

// Record writes how far an operation has come. One that has ended stays as it is, and so does one of which a later journal was
// written: an attempt to write may be delayed, and must not take back what its successors have said.
func (a *Admission) Record(ctx context.Context, h auth.Handle, out Outcome, checkpoint json.RawMessage) error {
	return store.Retry(ctx, func() error {
		op, err := store.Get[api.Operation](ctx, a.kv, h, "", out.Operation)
		if err != nil || op.State.Ended() || out.Number < op.Plan.Journal {
			return err
		}
		op.Plan.Journal, op.Plan.Cause = out.Number, out.Cause
		now := a.now().UTC()
		if op.Started.IsZero() {
			op.Started = now
		}
		op.State, op.Error, op.Checkpoint = out.State, out.Error, checkpoint
		op.Steps = mergeSteps(op.Steps, out.Steps, now)
		d := store.NewDraft(h)
		d.Update(op)
		_, err = d.Commit(ctx, a.kv)
		return err
	})
}

// mergeSteps takes over the new states of the steps and tells their times, which the workflow does not know.
func mergeSteps(old, steps []api.StepRecord, now time.Time) []api.StepRecord {
	for i := range steps {
		s := &steps[i]
		if i < len(old) {
			s.Started, s.Ended = old[i].Started, old[i].Ended
		}
		switch s.State {
		case api.StepRunning, api.StepUndoing:
			if s.Started.IsZero() {
				s.Started = now
			}
			s.Ended = time.Time{}
		case api.StepDone, api.StepFailed, api.StepUndone:
			if s.Ended.IsZero() {
				s.Ended = now
			}
		case api.StepPending:
		}
	}
	return steps
}
