package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
	"github.com/temporalio/ui-server/v2/server/config"
	"github.com/temporalio/ui-server/v2/server/csrf"
	"github.com/temporalio/ui-server/v2/server/route"
	"github.com/temporalio/ui-server/v2/ui"
)

const uiReadTimeout = 10 * time.Second // for the headers of a request

type uiServer struct {
	http *http.Server
	url  string
}

// startUI serves the Temporal UI, which comes with its module, from the same process.
//
// It is put together from the parts of ui-server instead of its Server, because that one opens its own port
// and ends the process if it cannot.
func startUI(listenOn, frontend, namespace string, log *slog.Logger) (*uiServer, error) {
	log = log.With("component", "temporal-ui")
	handler, err := uiHandler(frontend, namespace)
	if err != nil {
		return nil, fmt.Errorf("engine: Temporal UI: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*grace)
	defer cancel()
	l, err := listen(ctx, "the Temporal UI", listenOn)
	if err != nil {
		return nil, err
	}
	ap := addrPort(l)
	if !reachable(ap).Addr().IsLoopback() || ap.Addr().IsUnspecified() {
		log.Warn("the Temporal UI asks nobody who they are, and can stop every operation: "+
			"listen on 127.0.0.1 and reach it through a tunnel, or put a login in front of it", "address", listenOn)
	}
	s := &uiServer{
		url: "http://" + reachable(ap).String(),
		http: &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: uiReadTimeout,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		},
	}
	go func() {
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("THE TEMPORAL UI STOPPED; everything else works", "error", err)
		}
	}()
	return s, nil
}

func uiHandler(frontend, namespace string) (http.Handler, error) {
	cfg, err := config.NewConfigProviderWithRefresh(&config.Config{
		TemporalGRPCAddress: frontend,
		DefaultNamespace:    namespace,
		EnableUI:            true,
		HideLogs:            true,
		// Whoever runs a cloud decides what it talks to. Without these, the browser and the server ask others.
		DisableNewsFetch:   true,
		NotifyOnNewVersion: false,
		// It is served without TLS, on loopback; a browser would not send a secure cookie back.
		CORS: config.CORS{CookieInsecure: true},
	})
	if err != nil {
		return nil, err
	}
	assets, err := ui.Assets()
	if err != nil {
		return nil, err
	}
	if assets, err = fs.Sub(assets, "local"); err != nil { // the other one is for Temporal's own cloud
		return nil, err
	}
	e := echo.New()
	e.Use(middleware.Recover(), middleware.Gzip(), middleware.Secure())
	// A page on another site must not be able to terminate a workflow through the operator's browser.
	e.Use(csrf.EnsureTokenCookie(false), middleware.CSRFWithConfig(csrf.MiddlewareConfig(cfg, false)))
	route.SetHealthRoute(e)
	if err := route.SetAPIRoutes(e, cfg, nil); err != nil {
		return nil, err
	}
	route.SetAuthRoutes(e, cfg)
	route.SetRenderRoute(e, "/")
	if err := route.SetUIRoutes(e, "", assets, cfg); err != nil {
		return nil, err
	}
	return e, nil
}

// stop closes all connections at once: a browser with an open page would otherwise hold up the stop.
func (s *uiServer) stop() error { return s.http.Close() }
