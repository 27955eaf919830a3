package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
)

func (s *Server) routeVolumes() {
	readable[api.Volume](s)
	creatable(s, api.KindVolume, "Empty, from an image, or as a copy of a snapshot or of another volume. It belongs to no VM, and outlives those that it is attached to.", Admission.CreateVolume)
	updatable(s, api.KindVolume, Admission.UpdateVolume)
	handle(s, writeOperation("delete-volume", http.MethodDelete, itemPath(api.KindVolume), api.KindVolume, "Delete a volume",
		"No VM must have it. It is put into the recycle bin, from which it can be restored until it expires; with now it is gone for good."), s.deleteVolume)
	acting(s, volumeVerb("restore", "Bring a volume back from the recycle bin", "With its snapshots."), api.KindVolume, Admission.RestoreVolume)
	changing(s, volumeVerb("attach", "Give a volume to a VM", "Whether the VM runs or not. A VM that has it already keeps it."), api.KindVolume, Admission.AttachVolume)
	asking(s, volumeVerb("detach", "Take a volume from a VM", "Whether the VM runs or not. A guest that does not let it go keeps it."), api.KindVolume, Admission.DetachVolume)
	changing(s, volumeVerb("resize", "Make a volume bigger", "Whether the VM that has it runs or not. A volume never shrinks."), api.KindVolume, Admission.ResizeVolume)
	changing(s, volumeVerb("migrate", "Bring a volume into another pool", "Whether the VM that has it runs or not: a guest goes on meanwhile. It keeps its ID, and does not need its image any more. It must have no snapshots."), api.KindVolume, Admission.MigrateVolume)

	readable[api.Snapshot](s)
	creatable(s, api.KindSnapshot, "Of a volume, whether a VM that has it runs or not: the guest goes on.", Admission.CreateSnapshot)
	deletable(s, api.KindSnapshot, "What goes on from it stays. In a pool of files no more than one thing may.", Admission.DeleteSnapshot)
	asking(s, writeOperation("revert-snapshot", http.MethodPost, itemPath(api.KindSnapshot)+"/revert", api.KindSnapshot, "Go back to a snapshot",
		"The volume becomes again what it was. What was written since the last snapshot is lost. A VM that has it must not run, or is restarted."), api.KindSnapshot, Admission.RevertSnapshot)
}

func volumeVerb(verb, summary, doc string) huma.Operation {
	return writeOperation(verb+"-volume", http.MethodPost, itemPath(api.KindVolume)+"/"+verb, api.KindVolume, summary, doc)
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
