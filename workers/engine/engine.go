// Package engine runs what NextStack stands on inside the nextstack process: etcd (the state of the
// cloud), the Temporal server (its operations) and the Temporal UI. Each can be replaced by an external
// one, and nothing above this package sees the difference.
//
// # Two engines in one process
//
// Works, with two reservations that come from Temporal: its SQLite plugin never closes a database handle
// once opened, so a stopped engine keeps one idle file descriptor until the process ends; and after Stop
// a few of the server's goroutines linger. Both are harmless to a process that exits, and to tests.
//
// # Security
//
// Neither etcd nor the Temporal frontend nor the UI authenticates its callers. Whoever reaches their ports
// owns the cloud: keep EtcdListen and UIListen on loopback, and TemporalListen on the management network.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.temporal.io/sdk/client"
)

const (
	// DefaultNamespace is the Temporal namespace used when Config.Namespace is empty.
	DefaultNamespace = "nextstack"
	// Retention is how long Temporal keeps the history of a closed workflow in a namespace that this
	// package creates. An existing namespace keeps the retention it has.
	Retention = 7 * 24 * time.Hour
	// MemoryLimit is the suggested soft limit, in bytes, of the memory that Go manages (GOMEMLIMIT) in a process
	// that embeds everything. It is not set here: the memory of the process belongs to main.
	//
	// Measured with BenchmarkReady: idle the process takes 140 to 190 MiB (PSS). 40 of that are memory; the rest
	// are clean pages of the executable, which the kernel can drop, and maps in larger or smaller pieces
	// depending on how the file was written. Under load the memory grows to 150 MiB without a limit and to 105
	// with this one, which makes 205 to 255 in all.
	MemoryLimit = 110 << 20
)

// Config says what to embed and where the rest is. The zero value of a field is a working default, except
// DataDir, which is needed as soon as something is embedded.
type Config struct {
	// DataDir is the directory of everything embedded: etcd/ and temporal/, created with mode 0700. One
	// process at a time can use it; a second one gets an error from Start.
	DataDir string
	// EtcdEndpoints are the client addresses ("host:port" or "http://host:port") of an external etcd.
	// Empty: etcd is embedded.
	EtcdEndpoints []string
	// EtcdListen is the client address (host:port) of the embedded etcd, for etcdctl and the like.
	// Empty: a free port on a loopback address, see Engine.EtcdEndpoints.
	EtcdListen string
	// TemporalAddress is the frontend (host:port) of an external Temporal. Empty: Temporal is embedded.
	TemporalAddress string
	// TemporalListen is the address (host:port) of the embedded frontend, to which the agents connect.
	// Empty: a free port on a loopback address.
	TemporalListen string
	// UIListen is the address (host:port) of the Temporal UI. Empty: no UI.
	UIListen string
	// Namespace is created if it does not exist. Empty: DefaultNamespace.
	Namespace string
	// Logger gets warnings and errors of everything embedded. Nil: slog.Default().
	Logger *slog.Logger
}

// Engine is a running etcd and Temporal, embedded or external. Its methods are safe for concurrent use.
type Engine struct {
	cfg      Config
	log      *slog.Logger
	lock     io.Closer
	etcd     *etcdBackend
	temporal *temporalBackend
	ui       *uiServer

	stopOnce sync.Once
	stopErr  error
}

// Start starts or connects to etcd, Temporal and the UI, and returns when a workflow can be started. ctx
// bounds the start only.
//
// It fails with an error that says what to change if an address is taken (errors.Is syscall.EADDRINUSE), if
// DataDir is in use by another process (errors.Is ErrDataDirInUse), or if an external etcd does not answer:
// without state no request can be served.
//
// An external Temporal that does not answer is not an error: operations are accepted into etcd and started
// later, so the control plane must come up without it. The client connects by itself as soon as Temporal is
// there, and calls on it fail with an Unavailable error until then, so their caller keeps the operation and
// tries again. The namespace is created in the background. The same goes for a UI that fails: it is logged as
// an error and the engine runs without it.
func Start(ctx context.Context, cfg Config) (*Engine, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Namespace == "" {
		cfg.Namespace = DefaultNamespace
	}
	e := &Engine{cfg: cfg, log: cfg.Logger.With("component", "engine")}
	if err := e.start(ctx); err != nil {
		// What already runs must not survive a failed start: a caller that tries again would meet its ports.
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
		defer cancel()
		return nil, errors.Join(err, e.Stop(stopCtx))
	}
	return e, nil
}

func (e *Engine) start(ctx context.Context) error {
	embedEtcd, embedTemporal := len(e.cfg.EtcdEndpoints) == 0, e.cfg.TemporalAddress == ""
	if embedEtcd || embedTemporal {
		if err := e.openDataDir(ctx); err != nil {
			return err
		}
	}

	// Side by side, because each alone takes a good part of the second that a start may last: etcd waits for
	// its election while Temporal builds its object graph.
	var wg sync.WaitGroup
	var etcdErr, temporalErr error
	wg.Go(func() {
		if embedEtcd {
			e.etcd, etcdErr = startEtcd(ctx, filepath.Join(e.cfg.DataDir, "etcd"), e.cfg.EtcdListen, e.cfg.Logger)
		} else {
			e.etcd, etcdErr = dialEtcd(ctx, e.cfg.EtcdEndpoints, e.cfg.Logger)
		}
	})
	wg.Go(func() {
		if embedTemporal {
			e.temporal, temporalErr = startTemporal(ctx, filepath.Join(e.cfg.DataDir, "temporal"), e.cfg)
		} else {
			e.temporal, temporalErr = dialTemporal(ctx, e.cfg)
		}
	})
	wg.Wait()
	if err := errors.Join(etcdErr, temporalErr); err != nil {
		return err
	}

	if e.cfg.UIListen != "" {
		ui, err := startUI(e.cfg.UIListen, e.temporal.address, e.cfg.Namespace, e.cfg.Logger)
		if err != nil {
			// Somebody looks for the UI when something is wrong: not the time to also have no control plane.
			e.log.Error("THE TEMPORAL UI IS NOT RUNNING; everything else works", "error", err)
		}
		e.ui = ui
	}
	return nil
}

func (e *Engine) openDataDir(ctx context.Context) error {
	if e.cfg.DataDir == "" {
		return errors.New("engine: no data directory given, and etcd or Temporal is embedded: " +
			"set a data directory, or the addresses of an external etcd and an external Temporal")
	}
	// An absolute path, so that a later chdir of the process does not move the database.
	dir, err := filepath.Abs(e.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("engine: data directory %q: %w", e.cfg.DataDir, err)
	}
	e.cfg.DataDir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("engine: create data directory: %w", err)
	}
	e.lock, err = lockDataDir(ctx, dir)
	return err
}

// Etcd is the client of the embedded or external etcd. The embedded one is called in the process, without a
// socket, at half the latency; keys and values in its responses and watch events are shared, so they are
// read-only. The engine closes it: do not use it after Stop.
func (e *Engine) Etcd() *clientv3.Client { return e.etcd.client }

// EtcdEndpoints are the client addresses of etcd as a process on this machine reaches them.
func (e *Engine) EtcdEndpoints() []string { return e.etcd.endpoints }

// Temporal is the SDK client in the engine's namespace. It connects on first use and reconnects by itself.
// The engine closes it: stop workers that use it before Stop.
func (e *Engine) Temporal() client.Client { return e.temporal.client }

// TemporalAddress is the host:port of the Temporal frontend as a process on this machine reaches it.
func (e *Engine) TemporalAddress() string { return e.temporal.address }

// UIURL is the address of the Temporal UI as a browser on this machine reaches it, or "" without a UI.
func (e *Engine) UIURL() string {
	if e.ui == nil {
		return ""
	}
	return e.ui.url
}

// Namespace is the Temporal namespace of the engine's client.
func (e *Engine) Namespace() string { return e.cfg.Namespace }

// Stop closes the clients, then the UI, Temporal and etcd, and gives the data directory free. It takes about
// one second: Temporal lets its long polls run out. If ctx ends before, Stop returns an error that names what
// still runs, and the data directory stays locked, because something may still write to it. Nothing is lost
// by that: all state is on disk at all times. A second call returns the result of the first.
func (e *Engine) Stop(ctx context.Context) error {
	e.stopOnce.Do(func() { e.stopErr = e.stop(ctx) })
	return e.stopErr
}

func (e *Engine) stop(ctx context.Context) error {
	// Clients first: an open client holds streams, and a server waits for its streams when it stops.
	if e.temporal != nil {
		e.temporal.closeClient()
	}
	var errs []error
	if e.ui != nil {
		errs = append(errs, bounded(ctx, "Temporal UI", e.ui.stop))
	}
	if e.temporal != nil {
		errs = append(errs, bounded(ctx, "Temporal", e.temporal.stop))
	}
	if e.etcd != nil {
		errs = append(errs, bounded(ctx, "etcd", e.etcd.stop))
	}
	err := errors.Join(errs...)
	if e.lock != nil && err == nil {
		err = e.lock.Close()
	}
	return err
}

// bounded runs stop, and gives up waiting for it when ctx ends: none of the embedded servers takes a context.
func bounded(ctx context.Context, what string, stop func() error) error {
	done := make(chan error, 1)
	go func() { done <- stop() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("engine: stop %s: %w", what, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("engine: %s is still stopping: %w", what, context.Cause(ctx))
	}
}
