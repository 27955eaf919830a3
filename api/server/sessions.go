package server

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// Health is the answer of GET /v1/health.
type Health struct {
	Status  string `json:"status" example:"ok" doc:"ok; anything else comes as an error"`
	Version string `json:"version"`
}

type nothing struct{}

func (s *Server) routeSessions() {
	handle(s, huma.Operation{
		OperationID: "health", Method: http.MethodGet, Path: "/v1/health", Tags: []string{"sessions"}, Summary: "Tell whether the server works",
		Description: "It does when its store answers and its cache follows the store.",
	}, func(ctx context.Context, _ *nothing) (*struct{ Body Health }, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if _, err := s.o.KV.Get(ctx, store.Root+"health"); err != nil && !problem.Is(err, problem.NotFound) {
			return nil, problem.New(problem.Unavailable, "the store does not answer").Try("look into the server's log")
		}
		if err := s.o.Cache.Err(); err != nil {
			return nil, err
		}
		return &struct{ Body Health }{Health{Status: "ok", Version: s.o.Version}}, nil
	})
	handle(s, huma.Operation{
		OperationID: "login", Method: http.MethodPost, Path: "/v1/login", Tags: []string{"sessions"}, Summary: "Get a token",
		Description: "Too many wrong passwords for a user from one address make further tries wait.",
	}, func(ctx context.Context, in *struct{ Body api.Login }) (*struct{ Body *api.LoggedIn }, error) {
		info := infoOf(ctx)
		token, err := s.o.Accounts.Login(ctx, in.Body, info.remote)
		if err != nil {
			return nil, err
		}
		return &struct{ Body *api.LoggedIn }{token}, nil
	})
	handle(s, huma.Operation{
		OperationID: "logout", Method: http.MethodDelete, Path: "/v1/login", Tags: []string{"sessions"}, Summary: "Revoke the token in use",
	}, func(ctx context.Context, _ *nothing) (*nothing, error) {
		return nil, s.o.Accounts.Revoke(ctx, infoOf(ctx).bearer)
	})
}
