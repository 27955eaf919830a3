package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/server/common/authorization"
	"go.temporal.io/server/common/cluster"
	"go.temporal.io/server/common/config"
	tlog "go.temporal.io/server/common/log"
	"go.temporal.io/server/common/membership/static"
	"go.temporal.io/server/common/primitives"
	"go.temporal.io/server/temporal"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// clusterName is written into the database at the first start and cannot change after that.
	clusterName = "nextstack"
	// historyShards is the number of independent queues into which Temporal divides the workflows. It is
	// written into the database at the first start and cannot change after that; a later value is ignored.
	//
	// Four: a shard has its own locks and its own readers of its queues, so that one slow workflow does not hold
	// up all others. But all shards share the one connection to SQLite, so more bring nothing: 1, 4 and 512 cannot
	// be told apart in latency, while 512 cost 100 MiB idle and 140 MiB under load.
	historyShards = 4

	dialTimeout = 10 * time.Second
	// maxBackoff bounds the pause between attempts to reconnect. gRPC would go up to two minutes, which is how
	// much longer than necessary the cloud would stand still after Temporal is back.
	maxBackoff = 2 * time.Second
)

type temporalBackend struct {
	client  client.Client
	address string
	log     *slog.Logger

	server temporal.Server // nil if external
	dbs    databases
	muted  atomic.Bool // stopping: the log is not wanted any more

	cancel     context.CancelFunc // ends background
	background sync.WaitGroup
	closeOnce  sync.Once
}

// startTemporal runs all of Temporal on dir and waits until a workflow can be started.
func startTemporal(ctx context.Context, dir string, cfg Config) (*temporalBackend, error) {
	// Ports of the services among each other: fixed for the life of the process, new at each start.
	free, err := freePorts(ctx, 4)
	if err != nil {
		return nil, err
	}
	ports := temporalPorts{history: free[0], matching: free[1], worker: free[2], frontend: free[3]}
	if cfg.TemporalListen != "" {
		if ports.frontend, err = probe(ctx, "the Temporal frontend", cfg.TemporalListen); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("engine: create directory of Temporal: %w", err)
	}
	b := &temporalBackend{
		address: reachable(ports.frontend).String(),
		log:     cfg.Logger.With("component", "temporal"),
		dbs:     databasesIn(dir),
	}
	if err := prepareSQLite(ctx, b.dbs, clusterName, cfg.Namespace); err != nil {
		return nil, err
	}
	if b.server, err = newServer(ports, b.dbs, newZap(cfg.Logger, "temporal", &b.muted)); err != nil {
		return nil, err
	}
	if b.client, err = newClient(b.address, cfg); err == nil {
		err = b.ready(ctx)
	}
	if err != nil {
		b.closeClient()
		return nil, errors.Join(err, b.stop())
	}
	return b, nil
}

// ready waits for an answer that needs the whole way from the frontend to the database: that a workflow, which
// cannot exist, does not exist.
func (b *temporalBackend) ready(ctx context.Context) error {
	const id = "nextstack-readiness-probe"
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := b.client.DescribeWorkflowExecution(ctx, id, "")
		if err == nil || errors.As(err, new(*serviceerror.NotFound)) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("engine: Temporal did not become ready: %w: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// dialTemporal makes a client of an external Temporal. It fails only on an address that can never work.
func dialTemporal(ctx context.Context, cfg Config) (*temporalBackend, error) {
	if _, _, err := net.SplitHostPort(cfg.TemporalAddress); err != nil {
		return nil, fmt.Errorf("engine: address of the external Temporal must be host:port: %w", err)
	}
	c, err := newClient(cfg.TemporalAddress, cfg)
	if err != nil {
		return nil, err
	}
	b := &temporalBackend{client: c, address: cfg.TemporalAddress, log: cfg.Logger.With("component", "temporal")}
	var background context.Context
	background, b.cancel = context.WithCancel(context.WithoutCancel(ctx))

	// If Temporal is there, the namespace is there when Start returns.
	first, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := ensureNamespace(first, c, cfg.Namespace); err != nil {
		b.log.Warn("Temporal does not answer; operations will be accepted and wait for it", "address", b.address, "error", err)
		b.background.Go(func() { b.keepEnsuring(background, cfg.Namespace) })
	}
	return b, nil
}

// keepEnsuring creates the namespace as soon as Temporal answers.
func (b *temporalBackend) keepEnsuring(ctx context.Context, namespace string) {
	tick := time.NewTicker(maxBackoff)
	defer tick.Stop()
	var last string
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		attempt, cancel := context.WithTimeout(ctx, dialTimeout)
		err := ensureNamespace(attempt, b.client, namespace)
		cancel()
		if err == nil {
			b.log.Info("Temporal answers", "address", b.address, "namespace", namespace)
			return
		}
		// Once per reason: the first warning has said that it does not answer, but the next may be a refusal.
		if ctx.Err() == nil && err.Error() != last {
			last = err.Error()
			b.log.Warn("Temporal namespace is not ready", "address", b.address, "namespace", namespace, "error", err)
		}
	}
}

// ensureNamespace creates the namespace unless it exists. It asks first, because a client may be allowed to
// use a namespace and not to create one.
func ensureNamespace(ctx context.Context, c client.Client, namespace string) error {
	svc := c.WorkflowService()
	_, err := svc.DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: namespace})
	if !errors.As(err, new(*serviceerror.NamespaceNotFound)) {
		return err
	}
	_, err = svc.RegisterNamespace(ctx, &workflowservice.RegisterNamespaceRequest{
		Namespace:                        namespace,
		Description:                      "Operations of NextStack",
		WorkflowExecutionRetentionPeriod: durationpb.New(Retention),
	})
	if errors.As(err, new(*serviceerror.NamespaceAlreadyExists)) {
		return nil
	}
	return err
}

func newClient(address string, cfg Config) (client.Client, error) {
	bo := backoff.DefaultConfig
	bo.BaseDelay, bo.MaxDelay = 100*time.Millisecond, maxBackoff
	c, err := client.NewLazyClient(client.Options{
		HostPort:  address,
		Namespace: cfg.Namespace,
		Logger:    newSDKLogger(cfg.Logger),
		ConnectionOptions: client.ConnectionOptions{
			GrpcCompression: &client.GrpcCompressionNone{}, // it is on this machine, or next to it
			DialOptions: []grpc.DialOption{
				grpc.WithConnectParams(grpc.ConnectParams{Backoff: bo, MinConnectTimeout: dialTimeout}),
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("engine: client of Temporal at %s: %w", address, err)
	}
	return c, nil
}

func (b *temporalBackend) closeClient() {
	b.closeOnce.Do(func() {
		if b.cancel != nil {
			b.cancel()
		}
		b.background.Wait()
		if b.client != nil {
			b.client.Close()
		}
	})
}

func (b *temporalBackend) stop() error {
	if b.server == nil {
		return nil
	}
	b.muted.Store(true)
	err := b.server.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), sqliteCheckpointTimeout)
	defer cancel()
	return errors.Join(err, checkpointSQLite(ctx, b.dbs))
}

// temporalPorts are the gRPC addresses of Temporal's services.
type temporalPorts struct{ frontend, history, matching, worker netip.AddrPort }

// newServer starts the server's services. It returns before they are ready.
func newServer(ports temporalPorts, dbs databases, log *zap.Logger) (_ temporal.Server, err error) {
	defer func() {
		// What is fatal to a Temporal server ends in a panic, see newZap; for a start it is an error.
		if r := recover(); r != nil {
			err = fmt.Errorf("engine: start Temporal: %v", r)
		}
	}()
	services := map[primitives.ServiceName]netip.AddrPort{
		primitives.FrontendService: ports.frontend,
		primitives.HistoryService:  ports.history,
		primitives.MatchingService: ports.matching,
		primitives.WorkerService:   ports.worker,
	}
	// The services know each other by fixed addresses. The alternative is a gossip protocol, with four more
	// ports, that a restarted process would first have to talk out of believing in its predecessor.
	hosts := map[primitives.ServiceName]static.Hosts{}
	rpc := map[string]config.Service{}
	for name, ap := range services {
		hosts[name] = static.SingleLocalHost(reachable(ap).String())
		rpc[string(name)] = config.Service{RPC: config.RPC{GRPCPort: int(ap.Port()), BindOnIP: ap.Addr().String()}}
	}
	const history, list = "history", "list"
	server, err := temporal.NewServer(
		temporal.ForServices(temporal.DefaultServices),
		temporal.WithStaticHosts(hosts),
		temporal.WithDynamicConfigClient(dynamicConfig()),
		temporal.WithLogger(tlog.NewZapLogger(log)),
		temporal.WithAuthorizer(authorization.NewNoopAuthorizer()),
		temporal.WithClaimMapper(func(*config.Config) authorization.ClaimMapper { return authorization.NewNoopClaimMapper() }),
		temporal.WithConfig(&config.Config{
			Services:     rpc,
			PublicClient: config.PublicClient{HostPort: reachable(ports.frontend).String()},
			Persistence: config.Persistence{
				DefaultStore:     history,
				VisibilityStore:  list,
				NumHistoryShards: historyShards,
				DataStores:       map[string]config.DataStore{history: {SQL: dbs.history}, list: {SQL: dbs.list}},
			},
			ClusterMetadata: &cluster.Config{
				FailoverVersionIncrement: 10,
				MasterClusterName:        clusterName,
				CurrentClusterName:       clusterName,
				ClusterInformation: map[string]cluster.ClusterInformation{clusterName: {
					Enabled:                true,
					InitialFailoverVersion: 1,
					RPCAddress:             reachable(ports.frontend).String(),
				}},
			},
			DCRedirectionPolicy: config.DCRedirectionPolicy{Policy: "noop"},
			Archival: config.Archival{
				History:    config.HistoryArchival{State: config.ArchivalDisabled},
				Visibility: config.VisibilityArchival{State: config.ArchivalDisabled},
			},
			NamespaceDefaults: config.NamespaceDefaults{Archival: config.ArchivalNamespaceDefaults{
				History:    config.HistoryArchivalNamespaceDefaults{State: enumspb.ARCHIVAL_STATE_DISABLED.String()},
				Visibility: config.VisibilityArchivalNamespaceDefaults{State: enumspb.ARCHIVAL_STATE_DISABLED.String()},
			}},
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("engine: configure Temporal: %w", err)
	}
	if err := server.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("engine: start Temporal: %w", err), server.Stop())
	}
	return server, nil
}
