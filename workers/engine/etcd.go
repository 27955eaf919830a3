package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/nextstack/nextstack/api/store"
)

const (
	// etcdTick is etcd's clock, in milliseconds. Every tick wakes the idle process; twice as many cost 0.1 % of
	// a core. An election takes five to ten ticks, the least that etcd accepts. With a single member its only
	// purpose is to find itself, and a start waits for it.
	etcdTick     = 100
	etcdElection = 5 * etcdTick
	// etcdQuota is the size of the database, in bytes, at which etcd refuses writes. etcd's default is 2 GiB;
	// a cloud of 1000 nodes with 100000 resources of 4 KiB and an hour of versions stays well below 4 GiB.
	etcdQuota = 4 << 30
	// etcdHistory is how long old versions are kept. A watcher that was away for longer must list again.
	etcdHistory = "1h"
	// etcdSnapshotCount is the number of writes between two snapshots. The default of 10000 keeps as many
	// writes in memory for a slow follower, and there is no follower.
	etcdSnapshotCount   = 5000
	etcdSnapshotCatchUp = 100

	etcdDialTimeout = 5 * time.Second
)

type etcdBackend struct {
	client    *clientv3.Client
	endpoints []string
	server    *embed.Etcd // nil if external
	muted     atomic.Bool // stopping: the log is not wanted any more
}

// startEtcd runs a single etcd member on dir and waits until it serves.
func startEtcd(ctx context.Context, dir, listenOn string, log *slog.Logger) (*etcdBackend, error) {
	if listenOn == "" {
		free, err := freePorts(ctx, 1)
		if err != nil {
			return nil, err
		}
		listenOn = free[0].String()
	}
	addr, err := probe(ctx, "etcd", listenOn)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("engine: create directory of etcd: %w", err)
	}

	b := &etcdBackend{endpoints: []string{reachable(addr).String()}}
	cfg := embed.NewConfig()
	cfg.Name = "nextstack"
	cfg.Dir = dir
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(log, "etcd", &b.muted))
	cfg.ListenClientUrls = []url.URL{{Scheme: "http", Host: addr.String()}}
	cfg.AdvertiseClientUrls = []url.URL{{Scheme: "http", Host: reachable(addr).String()}}
	// A single member has no peers, so it has no peer port that could be taken. The advertised address is part
	// of the member's identity and must be there, and the same at every start; nobody connects to it.
	cfg.ListenPeerUrls = nil
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	cfg.InitialCluster = cfg.Name + "=" + cfg.AdvertisePeerUrls[0].String()
	cfg.TickMs, cfg.ElectionMs = etcdTick, etcdElection
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, etcdHistory
	cfg.QuotaBackendBytes = etcdQuota
	cfg.MaxTxnOps = store.MaxOps
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = etcdSnapshotCount, etcdSnapshotCatchUp
	cfg.EnableGRPCGateway = false // an HTTP proxy to itself that nobody uses, with its own connection

	server, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("engine: start etcd on %s: %w", dir, err)
	}
	b.server = server
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		return nil, errors.Join(fmt.Errorf("engine: start etcd on %s: %w", dir, err), b.stop())
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("engine: etcd on %s is not ready: %w", dir, context.Cause(ctx)), b.stop())
	}
	go func() {
		// Closed by Stop. Before that, it means that the client port is gone; the client in the process works on.
		if err, ok := <-server.Err(); ok {
			log.Error("etcd no longer listens; etcdctl cannot reach it, nextstack can", "component", "etcd", "error", err)
		}
	}()
	b.client = v3client.New(server.Server)
	return b, nil
}

// dialEtcd connects to an external etcd and makes sure that it answers.
func dialEtcd(ctx context.Context, endpoints []string, log *slog.Logger) (*etcdBackend, error) {
	b := &etcdBackend{endpoints: endpoints}
	var err error
	b.client, err = clientv3.New(clientv3.Config{
		Endpoints:   endpoints,
		DialTimeout: etcdDialTimeout,
		// A broken connection with nothing to say is otherwise found only after minutes, and watches hang on it.
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		Logger:               newZap(log, "etcd", &b.muted),
	})
	if err != nil {
		return nil, fmt.Errorf("engine: etcd at %s: %w", strings.Join(endpoints, ", "), err)
	}
	ctx, cancel := context.WithTimeout(ctx, etcdDialTimeout)
	defer cancel()
	// A linearizable read needs a quorum: an etcd that answers this can be written to.
	if _, err := b.client.Get(ctx, "nextstack/probe", clientv3.WithCountOnly()); err != nil {
		return nil, errors.Join(fmt.Errorf("engine: etcd at %s does not answer: check that it runs, that a majority of its "+
			"members is up, and that this machine reaches it: %w", strings.Join(endpoints, ", "), err), b.stop())
	}
	return b, nil
}

func (b *etcdBackend) stop() error {
	b.muted.Store(true)
	var err error
	if b.client != nil {
		// Before the server: open watches are streams, and the server would wait for them.
		if err = b.client.Close(); errors.Is(err, context.Canceled) {
			err = nil // how the client in the process reports that it was closed
		}
	}
	if b.server != nil {
		b.server.Close()
	}
	return err
}
