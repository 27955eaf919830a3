package admission

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// targetRequest is a request that names a resource, as an operation remembers it.
type targetRequest struct {
	Ref string `json:"ref"`
}

// updateRequest is a change of a resource, as an operation remembers it.
type updateRequest[T any] struct {
	targetRequest
	Update T `json:"update"`
}

// digest makes requests differ whose hidden parts do.
func digest(s string) string {
	if s == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// Audit accepts a comparison of the store with the world.
func (a *Admission) Audit(ctx context.Context, h auth.Handle, o Options, req api.AuditRequest) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpAudit, req, func(c *acceptance) error { return c.input(req) })
}

// Noop accepts an operation that does nothing.
func (a *Admission) Noop(ctx context.Context, h auth.Handle, o Options) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpNoop, struct{}{}, func(*acceptance) error { return nil })
}

// Retry accepts the request of a failed operation once more, as a new operation.
func (a *Admission) Retry(ctx context.Context, h auth.Handle, o Options, id string) (*api.Operation, error) {
	old, err := store.Get[api.Operation](ctx, a.kv, h, "", id)
	if err != nil {
		return nil, err
	}
	if old.State != api.OpFailed && old.State != api.OpCancelled {
		return nil, problem.New(problem.Conflict, "operation %s cannot be retried", id).Because("it is %s", old.State).Try("only what failed or was cancelled can be")
	}
	o.Project, o.IfMatch, o.retryOf = old.Project, 0, id
	for _, l := range old.Plan.Locks {
		if l.Ref.ID == old.Target.ID && l.Before != "" { // it was about something that was there
			o.target = old.Target.ID
		}
	}
	if o.IdempotencyKey == "" {
		o.IdempotencyKey = "retry:" + id // two retries of one failure are one
	}
	again := retries[old.Kind]
	if again == nil {
		return nil, problem.New(problem.Unsupported, "operations of kind %s cannot be retried", old.Kind).Try("send the request again")
	}
	return again(a, ctx, h, o, old.Request)
}

type retry func(*Admission, context.Context, auth.Handle, Options, json.RawMessage) (*api.Operation, error)

// retries knows how to send the remembered request of each kind of operation again.
var retries = map[string]retry{
	api.OpVMCreate: func(a *Admission, ctx context.Context, h auth.Handle, o Options, raw json.RawMessage) (*api.Operation, error) {
		return retryWith(raw, func(r api.VMCreate) (*api.Operation, error) {
			if r.UserData != "" {
				return nil, problem.New(problem.Unsupported, "this operation cannot be retried").Because("its user-data was a secret and went with the VM").
					Try("create the VM again: gnext vm create %s --user-data FILE ...", r.Name)
			}
			return a.CreateVM(ctx, h, o, r)
		})
	},
	api.OpVMDelete: retryOf((*Admission).DeleteVMWith, func(r vmDeleteRequest) (string, api.VMDelete) { return r.Ref, r.VMDelete }),
	api.OpVMStart:  retryRef((*Admission).StartVM),
	api.OpVMStop:   retryPower((*Admission).StopVM), api.OpVMReboot: retryPower((*Admission).RebootVM),
	api.OpVMUpdate: retryUpdate((*Admission).UpdateVM), api.OpVMRecover: retryRef((*Admission).RecoverVM),
	api.OpVMMigrate: func(a *Admission, ctx context.Context, h auth.Handle, o Options, raw json.RawMessage) (*api.Operation, error) {
		return retryWith(raw, func(r migrateRequest) (*api.Operation, error) { return a.MigrateVM(ctx, h, o, r.Ref, r.VMMigrate) })
	},
	api.OpGroupCreate: retryBody((*Admission).CreateGroup), api.OpGroupDelete: retryRef((*Admission).DeleteGroup),
	api.OpHostUpdate: func(a *Admission, ctx context.Context, h auth.Handle, o Options, raw json.RawMessage) (*api.Operation, error) {
		return retryWith(raw, func(r updateRequest[api.AgentUpdate]) (*api.Operation, error) {
			if f := r.Update.Fence; f != nil && f.Password == hiddenPassword {
				return nil, problem.New(problem.Unsupported, "this operation cannot be retried").Because("the password in it was a secret and is not kept").
					Try("send the change again: gnext host set %s --fence ...", r.Ref)
			}
			return a.UpdateHost(ctx, h, o, r.Ref, r.Update)
		})
	},
	api.OpHostDrain: func(a *Admission, ctx context.Context, h auth.Handle, o Options, raw json.RawMessage) (*api.Operation, error) {
		return retryWith(raw, func(r drainRequest) (*api.Operation, error) { return a.DrainHost(ctx, h, o, r.Ref, r.HostDrain) })
	},
	api.OpHostBalance: retryBody((*Admission).BalanceHosts), api.OpHostDelete: retryRef((*Admission).DeleteHost),
	// That somebody saw the node off then does not mean that it is now.
	api.OpHostRecover: func(a *Admission, ctx context.Context, h auth.Handle, o Options, raw json.RawMessage) (*api.Operation, error) {
		return retryWith(raw, func(r recoverRequest) (*api.Operation, error) { return a.RecoverHost(ctx, h, o, r.Ref, "") })
	},
	api.OpImageCapture: retryBody((*Admission).CreateImage),
	api.OpImageExport:  retryUpdate((*Admission).ExportImage), api.OpImageUpdate: retryUpdate((*Admission).UpdateImage),
	api.OpImageImport: retryBody((*Admission).CreateImage), api.OpImageDelete: retryRef((*Admission).DeleteImage),
	api.OpPoolAdd: func(a *Admission, ctx context.Context, h auth.Handle, o Options, raw json.RawMessage) (*api.Operation, error) {
		return retryWith(raw, func(r api.PoolCreate) (*api.Operation, error) {
			if r.Key == hiddenPassword {
				return nil, problem.New(problem.Unsupported, "this operation cannot be retried").Because("the key in it was a secret and is not kept").Try("send the request again: gnext pool add %s ...", r.Name)
			}
			return a.CreatePool(ctx, h, o, r)
		})
	},
	api.OpPoolUpdate: func(a *Admission, ctx context.Context, h auth.Handle, o Options, raw json.RawMessage) (*api.Operation, error) {
		return retryWith(raw, func(r updateRequest[api.PoolUpdate]) (*api.Operation, error) {
			if r.Update.Key == hiddenPassword {
				return nil, problem.New(problem.Unsupported, "this operation cannot be retried").Because("the key in it was a secret and is not kept").Try("send the change again: gnext pool update %s ...", r.Ref)
			}
			return a.UpdatePool(ctx, h, o, r.Ref, r.Update)
		})
	},
	api.OpPoolDelete:   retryRef((*Admission).DeletePool),
	api.OpVolumeCreate: retryBody((*Admission).CreateVolume), api.OpVolumeUpdate: retryUpdate((*Admission).UpdateVolume), api.OpVolumeRestore: retryRef((*Admission).RestoreVolume),
	api.OpVolumeAttach:   retryOf((*Admission).AttachVolume, func(r attachRequest) (string, api.VolumeAttach) { return r.Ref, r.VolumeAttach }),
	api.OpVolumeDetach:   retryOf((*Admission).DetachVolume, func(r detachRequest) (string, api.VolumeDetach) { return r.Ref, r.VolumeDetach }),
	api.OpVolumeResize:   retryOf((*Admission).ResizeVolume, func(r resizeRequest) (string, api.VolumeResize) { return r.Ref, r.VolumeResize }),
	api.OpVolumeFlatten:  retryRef((*Admission).FlattenVolume),
	api.OpVolumeMigrate:  retryUpdate((*Admission).MigrateVolume),
	api.OpVolumeExport:   retryUpdate((*Admission).ExportVolume),
	api.OpVolumeDelete:   retryOf((*Admission).DeleteVolume, func(r deleteRequest) (string, api.VolumeDelete) { return r.Ref, r.VolumeDelete }),
	api.OpVolumePurge:    retryOf((*Admission).DeleteVolume, func(r deleteRequest) (string, api.VolumeDelete) { return r.Ref, r.VolumeDelete }),
	api.OpSnapshotCreate: retryBody((*Admission).CreateSnapshot), api.OpSnapshotDelete: retryRef((*Admission).DeleteSnapshot),
	api.OpSnapshotRevert: retryOf((*Admission).RevertSnapshot, func(r revertRequest) (string, api.SnapshotRevert) { return r.Ref, r.SnapshotRevert }),
	api.OpVPCCreate:      retryBody((*Admission).CreateVPC), api.OpVPCUpdate: retryUpdate((*Admission).UpdateVPC), api.OpVPCDelete: retryRef((*Admission).DeleteVPC),
	api.OpSubnetCreate: retryBody((*Admission).CreateSubnet), api.OpSubnetUpdate: retryUpdate((*Admission).UpdateSubnet), api.OpSubnetDelete: retryRef((*Admission).DeleteSubnet),
	api.OpPortCreate: retryBody((*Admission).CreatePort), api.OpPortUpdate: retryUpdate((*Admission).UpdatePort), api.OpPortDelete: retryRef((*Admission).DeletePort),
	api.OpSGCreate: retryBody((*Admission).CreateSecurityGroup), api.OpSGUpdate: retryUpdate((*Admission).UpdateSecurityGroup), api.OpSGDelete: retryRef((*Admission).DeleteSecurityGroup),
	api.OpCheckpointCreate: retryBody((*Admission).CreateCheckpoint), api.OpCheckpointDelete: retryRef((*Admission).DeleteCheckpoint), api.OpCheckpointRevert: retryRef((*Admission).RevertCheckpoint),
	api.OpAudit: retryBody((*Admission).Audit),
	api.OpNoop: func(a *Admission, ctx context.Context, h auth.Handle, o Options, _ json.RawMessage) (*api.Operation, error) {
		return a.Noop(ctx, h, o)
	},
}

func retryWith[T any](raw json.RawMessage, send func(T) (*api.Operation, error)) (*api.Operation, error) {
	var req T
	if err := json.Unmarshal(raw, &req); err != nil {
		return nil, problem.Wrap(err, problem.Internal, "the remembered request cannot be read")
	}
	return send(req)
}

func retryBody[T any](send func(*Admission, context.Context, auth.Handle, Options, T) (*api.Operation, error)) retry {
	return func(a *Admission, ctx context.Context, h auth.Handle, o Options, raw json.RawMessage) (*api.Operation, error) {
		return retryWith(raw, func(r T) (*api.Operation, error) { return send(a, ctx, h, o, r) })
	}
}

func retryRef(send func(*Admission, context.Context, auth.Handle, Options, string) (*api.Operation, error)) retry {
	return func(a *Admission, ctx context.Context, h auth.Handle, o Options, raw json.RawMessage) (*api.Operation, error) {
		return retryWith(raw, func(r targetRequest) (*api.Operation, error) { return send(a, ctx, h, o, r.Ref) })
	}
}

func retryPower(send func(*Admission, context.Context, auth.Handle, Options, string, api.VMStop) (*api.Operation, error)) retry {
	return func(a *Admission, ctx context.Context, h auth.Handle, o Options, raw json.RawMessage) (*api.Operation, error) {
		return retryWith(raw, func(r powerRequest) (*api.Operation, error) { return send(a, ctx, h, o, r.Ref, r.VMStop) })
	}
}

func retryUpdate[T any](send func(*Admission, context.Context, auth.Handle, Options, string, T) (*api.Operation, error)) retry {
	return func(a *Admission, ctx context.Context, h auth.Handle, o Options, raw json.RawMessage) (*api.Operation, error) {
		return retryWith(raw, func(r updateRequest[T]) (*api.Operation, error) { return send(a, ctx, h, o, r.Ref, r.Update) })
	}
}

// retryOf sends a request again that names a resource and has a body of its own.
func retryOf[R, T any](send func(*Admission, context.Context, auth.Handle, Options, string, T) (*api.Operation, error), parts func(R) (string, T)) retry {
	return func(a *Admission, ctx context.Context, h auth.Handle, o Options, raw json.RawMessage) (*api.Operation, error) {
		return retryWith(raw, func(r R) (*api.Operation, error) {
			ref, body := parts(r)
			return send(a, ctx, h, o, ref, body)
		})
	}
}
