package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
)

func (s *Server) routeVMs() {
	readable[api.VM](s)
	rehearsable(s, writeOperation("create-vm", http.MethodPost, collectionPath(api.KindVM), api.KindVM, "Create a vm",
		"With its root disk, cut from the image, and its ports. It is started at once."), s.createVM)
	updatable(s, api.KindVM, Admission.UpdateVM)
	handle(s, writeOperation("delete-vm", http.MethodDelete, itemPath(api.KindVM), api.KindVM, "Delete a vm",
		"With its root disk and its ports. Other volumes stay, detached."), s.deleteVM)
	acting(s, vmVerb("start", "Power a VM on", ""), api.KindVM, Admission.StartVM)
	s.power(vmVerb("stop", "Power a VM off", "The guest is asked first; when the timeout is over, its power is cut."), Admission.StopVM)
	s.power(vmVerb("reboot", "Restart a VM", "The guest is asked first; when the timeout is over, it is reset."), Admission.RebootVM)
	rehearsable(s, vmVerb("migrate", "Move a VM to another node",
		"A VM that runs goes on running, unless cold is asked for; a stopped one stays stopped. Whatever happens, it is on one node. While it moves, GET /v1/operations/{ref} tells how far it is; cancelling leaves it where it was."), s.migrate)

	readable[api.VMGroup](s)
	creatable(s, api.KindVMGroup, "It keeps its VMs on one node, or each on another.", Admission.CreateGroup)
	deletable(s, api.KindVMGroup, "No VM may belong to it.", Admission.DeleteGroup)
}

type createVMInput struct {
	InProject
	WriteHeaders
	Rehearsable
	Body api.VMCreate
}

func (s *Server) createVM(ctx context.Context, in *createVMInput) (*outcome, error) {
	if err := in.Body.Validate(); err != nil {
		return nil, err
	}
	return s.either(ctx, in.Rehearsable, in.WriteHeaders, in.Project, api.KindVM, func(p Planner, h auth.Handle, o admission.Options) (*api.DryRun, error) {
		return p.PlanVMCreate(ctx, h, o, in.Body)
	}, func() (*accepted, error) {
		return s.accept(ctx, in.WriteHeaders, IfMatch{}, in.Project, api.KindVM, true, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
			return s.o.Admission.CreateVM(ctx, h, o, in.Body)
		})
	})
}

type deleteVMInput struct {
	ActInProject
	Snapshots bool `query:"snapshots" doc:"With all snapshots of its root disk, and all its checkpoints"`
}

func (s *Server) deleteVM(ctx context.Context, in *deleteVMInput) (*accepted, error) {
	return s.act(ctx, in.WriteHeaders, in.IfMatch, in.Project, api.KindVM, in.Ref, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
		return s.o.Admission.DeleteVMWith(ctx, h, o, in.Ref, api.VMDelete{Snapshots: in.Snapshots})
	})
}

type migrateInput struct {
	ActInProject
	Rehearsable
	Body *api.VMMigrate // may be left out
}

func (s *Server) migrate(ctx context.Context, in *migrateInput) (*outcome, error) {
	var req api.VMMigrate
	if in.Body != nil {
		req = *in.Body
	}
	if err := firstOf(checkRef(in.Ref), req.Validate()); err != nil {
		return nil, err
	}
	return s.either(ctx, in.Rehearsable, in.WriteHeaders, in.Project, api.KindVM, func(p Planner, h auth.Handle, o admission.Options) (*api.DryRun, error) {
		return p.PlanMigrate(ctx, h, o, in.Ref, req)
	}, func() (*accepted, error) {
		return s.act(ctx, in.WriteHeaders, in.IfMatch, in.Project, api.KindVM, in.Ref, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
			return s.o.Admission.MigrateVM(ctx, h, o, in.Ref, req)
		})
	})
}

func vmVerb(verb, summary, doc string) huma.Operation {
	return writeOperation(verb+"-vm", http.MethodPost, itemPath(api.KindVM)+"/"+verb, api.KindVM, summary, doc)
}

type powerInput struct {
	ActInProject
	Body *api.VMStop // may be left out
}

// power registers a verb that may be sent with a VMStop.
func (s *Server) power(op huma.Operation, do func(Admission, context.Context, auth.Handle, admission.Options, string, api.VMStop) (*api.Operation, error)) {
	handle(s, op, func(ctx context.Context, in *powerInput) (*accepted, error) {
		var how api.VMStop
		if in.Body != nil {
			how = *in.Body
		}
		if err := how.Validate(); err != nil {
			return nil, err
		}
		return s.act(ctx, in.WriteHeaders, in.IfMatch, in.Project, api.KindVM, in.Ref, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
			return do(s.o.Admission, ctx, h, o, in.Ref, how)
		})
	})
}
