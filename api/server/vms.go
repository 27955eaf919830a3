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
	creatable(s, api.KindVM, "With its root disk, cut from the image, and its ports. It is started at once.", Admission.CreateVM)
	deletable(s, api.KindVM, "With its root disk and its ports.", Admission.DeleteVM)
	acting(s, vmVerb("start", "Power a VM on", ""), api.KindVM, Admission.StartVM)
	s.power(vmVerb("stop", "Power a VM off", "The guest is asked first; when the timeout is over, its power is cut."), Admission.StopVM)
	s.power(vmVerb("reboot", "Restart a VM", "The guest is asked first; when the timeout is over, it is reset."), Admission.RebootVM)
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
