package server

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

func (s *Server) routeVolumes() {
	handle(s, listOperation(api.KindVolume), s.listVolumes)
	gettable[api.Volume](s)
	creatable(s, api.KindVolume, "Empty, from an image, or as a copy of a snapshot or of another volume. It belongs to no VM, and outlives those that it is attached to.", Admission.CreateVolume)
	updatable(s, api.KindVolume, Admission.UpdateVolume)
	handle(s, writeOperation("delete-volume", http.MethodDelete, itemPath(api.KindVolume), api.KindVolume, "Delete a volume",
		"No VM must have it. It is put into the recycle bin, from which it can be restored until it expires; with now it is gone for good."), s.deleteVolume)
	acting(s, volumeVerb("restore", "Bring a volume back from the recycle bin", "With its snapshots."), api.KindVolume, Admission.RestoreVolume)
	changing(s, volumeVerb("attach", "Give a volume to a VM", "Whether the VM runs or not. A VM that has it already keeps it."), api.KindVolume, Admission.AttachVolume)
	asking(s, volumeVerb("detach", "Take a volume from a VM", "Whether the VM runs or not. A guest that does not let it go keeps it."), api.KindVolume, Admission.DetachVolume)
	changing(s, volumeVerb("resize", "Make a volume bigger", "Whether the VM that has it runs or not. A volume never shrinks."), api.KindVolume, Admission.ResizeVolume)
	acting(s, volumeVerb("flatten", "Make a volume independent of its image",
		"What it shows of the image is copied into it, whether the VM that has it runs or not. In a pool of files it must have no snapshots."), api.KindVolume, Admission.FlattenVolume)
	rehearsable(s, volumeVerb("migrate", "Bring a volume into another pool", "Whether the VM that has it runs or not: a guest goes on meanwhile. It keeps its ID, and does not need its image any more. It must have no snapshots."), s.migrateVolume)
	asking(s, volumeVerb("export", "Make a file of a volume", "Of it as it is, if no VM that runs has it, or of one of its snapshots. The operation's result tells size and SHA-256. Then download it: GET .../exports/OPERATION. It is kept for a day."), api.KindVolume, Admission.ExportVolume)
	handle(s, huma.Operation{
		OperationID: "download-volume", Method: http.MethodGet, Path: itemPath(api.KindVolume) + "/exports/{operation}", Tags: []string{string(api.KindVolume)}, Summary: "Download a volume",
		Description: "As the operation that is named has exported it. The ETag is its SHA-256. Ranges are understood, so that a download that broke can go on.",
		Responses:   map[string]*huma.Response{"200": {Description: "The file", Content: binaryContent()}},
	}, s.downloadVolume)

	readable[api.Snapshot](s)
	creatable(s, api.KindSnapshot, "Of a volume, whether a VM that has it runs or not: the guest goes on.", Admission.CreateSnapshot)
	deletable(s, api.KindSnapshot, "What goes on from it stays. In a pool of files no more than one thing may.", Admission.DeleteSnapshot)
	asking(s, writeOperation("revert-snapshot", http.MethodPost, itemPath(api.KindSnapshot)+"/revert", api.KindSnapshot, "Go back to a snapshot",
		"The volume becomes again what it was. What was written since the last snapshot is lost. A VM that has it must not run, or is restarted."), api.KindSnapshot, Admission.RevertSnapshot)
}

type volumesQuery struct {
	InProject
	ListQuery
	Pool string `query:"pool" doc:"Name or ID of the pool that they are in"`
	VM   string `query:"vm" doc:"Name or ID of a VM that has them, as its root disk or attached"`
}

func (s *Server) listVolumes(ctx context.Context, in *volumesQuery) (*listed[api.Volume], error) {
	if err := s.knownProject(ctx, api.KindVolume, in.Project); err != nil {
		return nil, err
	}
	pool, err := chosen[api.Pool](ctx, s, "", "query.pool", in.Pool)
	if err != nil {
		return nil, err
	}
	vm, err := chosen[api.VM](ctx, s, in.Project, "query.vm", in.VM)
	if err != nil {
		return nil, err
	}
	return list(ctx, s, in.Project, in.ListQuery, pool+"\x00"+vm, func(v *api.Volume) bool {
		return (pool == "" || v.Spec.Pool == pool) && (vm == "" || slices.Contains(v.VMs(), vm))
	})
}

// chosen returns the ID of what a list is to be about; empty: nobody said. What does not exist is a mistake, which an empty list would
// hide.
func chosen[T any, P resource[T]](ctx context.Context, s *Server, project, path, ref string) (string, error) {
	if ref == "" {
		return "", nil
	}
	if !api.ValidName(ref) && !api.IsUUID(ref) {
		return "", wrong(path, clip(ref), "must be a name or a UUID")
	}
	r, err := store.Find[T, P](ctx, s.o.KV, handleOf(ctx), project, ref)
	if err != nil {
		return "", err
	}
	return P(r).GetMeta().ID, nil
}

func (s *Server) routeCheckpoints() {
	readable[api.Checkpoint](s)
	creatable(s, api.KindCheckpoint, "Of a VM that runs: its memory and all its disks as of one moment. The guest goes on, but for the end of it.", Admission.CreateCheckpoint)
	deletable(s, api.KindCheckpoint, "What goes on from it stays. No more than one thing may go on from what it keeps of a disk.", Admission.DeleteCheckpoint)
	acting(s, writeOperation("revert-checkpoint", http.MethodPost, itemPath(api.KindCheckpoint)+"/revert", api.KindCheckpoint, "Go back to a checkpoint",
		"The VM goes on from that very moment, whether it runs now or not. What it has in memory now is lost, and what was written since its last checkpoint or snapshot. "+
			"It must have the volumes that it had then."), api.KindCheckpoint, Admission.RevertCheckpoint)
}

func volumeVerb(verb, summary, doc string) huma.Operation {
	return writeOperation(verb+"-volume", http.MethodPost, itemPath(api.KindVolume)+"/"+verb, api.KindVolume, summary, doc)
}

type migrateVolumeInput struct {
	ActInProject
	Rehearsable
	Body api.VolumeMigrate
}

func (s *Server) migrateVolume(ctx context.Context, in *migrateVolumeInput) (*outcome, error) {
	if err := firstOf(checkRef(in.Ref), in.Body.Validate()); err != nil {
		return nil, err
	}
	return s.either(ctx, in.Rehearsable, in.WriteHeaders, in.Project, api.KindVolume, func(p Planner, h auth.Handle, o admission.Options) (*api.DryRun, error) {
		return p.PlanMigrateVolume(ctx, h, o, in.Ref, in.Body)
	}, func() (*accepted, error) {
		return s.act(ctx, in.WriteHeaders, in.IfMatch, in.Project, api.KindVolume, in.Ref, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
			return s.o.Admission.MigrateVolume(ctx, h, o, in.Ref, in.Body)
		})
	})
}

type downloadVolumeInput struct {
	InProject
	Ref       string `path:"ref" doc:"Name or ID"`
	Operation string `path:"operation" doc:"ID of the operation that has exported it"`
}

func (s *Server) downloadVolume(ctx context.Context, in *downloadVolumeInput) (*huma.StreamResponse, error) {
	if err := checkRef(in.Ref); err != nil {
		return nil, err
	}
	h := handleOf(ctx)
	if err := h.Check(auth.Read, api.KindVolume, in.Project); err != nil {
		return nil, err
	}
	if err := s.knownProject(ctx, api.KindVolume, in.Project); err != nil {
		return nil, err
	}
	v, err := store.Find[api.Volume](ctx, s.o.KV, h, in.Project, in.Ref)
	if err != nil {
		return nil, err
	}
	none := problem.New(problem.NotFound, "volume %s has no export %q", v.Name, in.Operation).Try("export it: POST .../export")
	if !api.IsUUID(in.Operation) {
		return nil, none
	}
	op, err := store.Get[api.Operation](ctx, s.o.KV, h, "", in.Operation)
	switch {
	case problem.Is(err, problem.NotFound):
		return nil, none
	case err != nil:
		return nil, err
	case op.Kind != api.OpVolumeExport || op.Target.ID != v.ID:
		return nil, none
	case op.State != api.OpSucceeded:
		return nil, problem.New(problem.Conflict, "volume %s is not exported by operation %s", v.Name, op.ID).Because("it is %s", op.State).Try("wait until it has succeeded")
	}
	var made api.ImageExported
	if err := json.Unmarshal(op.Result, &made); err != nil {
		return nil, problem.Wrap(err, problem.Internal, "the result of operation %s cannot be read", op.ID)
	}
	if s.o.ExportFile == nil {
		return nil, problem.New(problem.Unsupported, "this server exports nothing")
	}
	path, sum, err := s.o.ExportFile(op.ID, made.Format)
	if err != nil {
		return nil, err
	}
	return sendFile(path, sum, v.Name)
}

type deleteVolumeInput struct {
	ActInProject
	Now       bool `query:"now" doc:"For good, instead of into the recycle bin"`
	Snapshots bool `query:"snapshots" doc:"With all its snapshots"`
}

func (s *Server) deleteVolume(ctx context.Context, in *deleteVolumeInput) (*accepted, error) {
	return s.act(ctx, in.WriteHeaders, in.IfMatch, in.Project, api.KindVolume, in.Ref, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
		return s.o.Admission.DeleteVolume(ctx, h, o, in.Ref, api.VolumeDelete{Now: in.Now, Snapshots: in.Snapshots})
	})
}

type askInProject[B any] struct {
	ActInProject
	Body *B // may be left out
}

// asking registers a write with a body that may be left out on the items of a kind that belong to projects.
func asking[B any, P shaped[B]](s *Server, op huma.Operation, kind api.Kind, do func(Admission, context.Context, auth.Handle, admission.Options, string, B) (*api.Operation, error)) {
	handle(s, op, func(ctx context.Context, in *askInProject[B]) (*accepted, error) {
		var body B
		if in.Body != nil {
			body = *in.Body
		}
		if err := P(&body).Validate(); err != nil {
			return nil, err
		}
		return s.act(ctx, in.WriteHeaders, in.IfMatch, in.Project, kind, in.Ref, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
			return do(s.o.Admission, ctx, h, o, in.Ref, body)
		})
	})
}
