package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// serveProfiles lets developers see where time and memory go, until ctx is done. There is no password: it belongs on an
// address that only they reach.
func serveProfiles(ctx context.Context, address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return problem.New(problem.Conflict, "profiles cannot be served on %s", address).Because("%v", err).Try("choose another address with --debug-listen")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
