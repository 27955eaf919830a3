package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
)

// routeHosts registers what operators do with nodes. Agents cannot come here: admit keeps them to what is theirs.
func (s *Server) routeHosts() {
	updatable(s, api.KindAgent, Admission.UpdateHost)
	deletable(s, api.KindAgent, "Its agent must be silent, and nothing may be on it.", Admission.DeleteHost)
	rehearsable(s, hostVerb("drain", "Move every VM away from a node",
		"The node takes no new VMs from then on. Each VM is moved by an operation of its own, whose parent is the drain; the result tells what became of each. Cancelling keeps what has moved."), s.drain)
	rehearsable(s, writeOperation("balance-agents", http.MethodPost, collectionPath(api.KindAgent)+"/balance", api.KindAgent, "Even out how the nodes are used",
		"Rules of groups, labels and pins are kept. The result tells what became of each move."), s.balance)
	handle(s, hostVerb("recover", "Start the HA VMs of a dead node elsewhere",
		"The server does so by itself when a node is silent and there is a proof that it is off. To ask is to confirm, by somebody who has looked, that it is. A recovery that is under way is told so, and is the answer."), s.recover)
}

func hostVerb(verb, summary, doc string) huma.Operation {
	return writeOperation(verb+"-agent", http.MethodPost, itemPath(api.KindAgent)+"/"+verb, api.KindAgent, summary, doc)
}

type drainInput struct {
	ActInCluster
	Rehearsable
	Body *api.HostDrain // may be left out
}

func (s *Server) drain(ctx context.Context, in *drainInput) (*outcome, error) {
	var req api.HostDrain
	if in.Body != nil {
		req = *in.Body
	}
	if err := firstOf(checkRef(in.Ref), req.Validate()); err != nil {
		return nil, err
	}
	return s.either(ctx, in.Rehearsable, in.WriteHeaders, "", api.KindAgent, func(p Planner, h auth.Handle, o admission.Options) (*api.DryRun, error) {
		return p.PlanDrain(ctx, h, o, in.Ref, req)
	}, func() (*accepted, error) {
		return s.act(ctx, in.WriteHeaders, in.IfMatch, "", api.KindAgent, in.Ref, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
			return s.o.Admission.DrainHost(ctx, h, o, in.Ref, req)
		})
	})
}

type balanceInput struct {
	WriteHeaders
	Rehearsable
	Body *api.HostBalance // may be left out
}

func (s *Server) balance(ctx context.Context, in *balanceInput) (*outcome, error) {
	var req api.HostBalance
	if in.Body != nil {
		req = *in.Body
	}
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return s.either(ctx, in.Rehearsable, in.WriteHeaders, "", api.KindAgent, func(p Planner, h auth.Handle, o admission.Options) (*api.DryRun, error) {
		return p.PlanBalance(ctx, h, o, req)
	}, func() (*accepted, error) {
		return s.accept(ctx, in.WriteHeaders, IfMatch{}, "", api.KindAgent, false, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
			return s.o.Admission.BalanceHosts(ctx, h, o, req)
		})
	})
}

type recoverInput struct {
	ActInCluster
	Body api.HostRecover
}

func (s *Server) recover(ctx context.Context, in *recoverInput) (*accepted, error) {
	if err := in.Body.Validate(); err != nil {
		return nil, err
	}
	return s.act(ctx, in.WriteHeaders, in.IfMatch, "", api.KindAgent, in.Ref, func(h auth.Handle, o admission.Options) (*api.Operation, error) {
		op, err := s.o.Admission.RecoverHost(ctx, h, o, in.Ref, h.Who().Name)
		if err == nil && op.State != api.OpAccepted && !op.State.Ended() {
			// It was under way, and may be waiting for this very word. It looks again by itself, so not to be hurried costs a minute.
			if err := s.o.Engine.Resume(ctx, op.ID); err != nil {
				s.log.Warn("a recovery cannot be hurried", "operation", op.ID, "error", err)
			}
		}
		return op, err
	})
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
