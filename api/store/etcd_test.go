package store_test

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// startEtcd runs an etcd on dir at a loopback address until the returned function is called.
func startEtcd(dir, address string) (*embed.Etcd, func(), error) {
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.LogLevel = "panic"
	client := url.URL{Scheme: "http", Host: address}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls = nil
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	cfg.InitialCluster = cfg.Name + "=" + cfg.AdvertisePeerUrls[0].String()
	cfg.TickMs, cfg.ElectionMs = 20, 200
	cfg.MaxTxnOps = store.MaxOps
	cfg.UnsafeNoFsync = true // nothing here outlives the test
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, nil, err
	}
	select {
	case <-server.Server.ReadyNotify():
		return server, server.Close, nil
	case err := <-server.Err():
		server.Close()
		return nil, nil, err
	case <-time.After(30 * time.Second):
		server.Close()
		return nil, nil, fmt.Errorf("etcd did not become ready")
	}
}

// freeAddress returns a loopback address that nobody listens on now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func dial(address string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{address}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

// shared is the etcd of all tests that do not stop theirs. Tests keep apart by their prefixes, and run one at a time.
type shared struct {
	overNetwork *clientv3.Client
	inProcess   *clientv3.Client
	stop        func()
}

var sharedEtcd = sync.OnceValues(func() (*shared, error) {
	dir, err := os.MkdirTemp("", "store-test-")
	if err != nil {
		return nil, err
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	server, stop, err := startEtcd(dir, address)
	if err != nil {
		return nil, err
	}
	started.Store(true)
	client, err := dial(address)
	if err != nil {
		return nil, err
	}
	inProcess := v3client.New(server.Server)
	return &shared{overNetwork: client, inProcess: inProcess, stop: func() {
		_ = client.Close()
		_ = inProcess.Close()
		stop()
		_ = os.RemoveAll(dir)
	}}, nil
})

func TestEtcdListsInPagesAtOneRevision(t *testing.T) {
	s, err := sharedEtcd()
	require.NoError(t, err)
	kv := store.NewEtcd(s.overNetwork)
	store.SetPage(kv, 3)
	ctx, p := context.Background(), freshPrefix()
	all := func(value int) (tx store.Tx) {
		for n := range 10 {
			tx.Puts = append(tx.Puts, store.Put{Key: fmt.Sprintf("%s%d", p, n), Value: fmt.Append(nil, value)})
		}
		return tx
	}
	commit(t, kv, all(0))
	require.NoError(t, put(kv, p[:len(p)-1]+"0", "behind the prefix"))

	// One commit changes all keys at once, again and again: a list that mixed revisions would show two values.
	stop, done := make(chan struct{}), make(chan error, 1)
	defer func() {
		close(stop)
		require.NoError(t, <-done)
	}()
	go func() {
		for round := 1; ; round++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := kv.Commit(ctx, all(round)); err != nil {
				done <- err
				return
			}
		}
	}()
	for range 100 {
		entries, revision, err := kv.List(ctx, p)
		require.NoError(t, err)
		require.Len(t, entries, 10)
		for n, e := range entries {
			require.Equal(t, fmt.Sprintf("%s%d", p, n), e.Key)
			require.Equal(t, entries[0].Value, e.Value)
			require.Equal(t, entries[0].Revision, e.Revision)
			require.LessOrEqual(t, e.Revision, revision)
		}
	}
}

func TestEtcdGoesAwayAndComesBack(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for etcd to stop with a watch open, which takes it seconds")
	}
	dir := t.TempDir()
	address, err := freeAddress()
	require.NoError(t, err)
	_, stop, err := startEtcd(dir, address)
	require.NoError(t, err)
	client, err := dial(address)
	require.NoError(t, err)
	kv := store.NewEtcd(client)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	changes := kv.Watch(ctx, "/a", 0)
	require.NoError(t, put(kv, "/a", "1"))
	require.Equal(t, "1", string(next(t, changes).Value))
	stop()

	short, cancelShort := context.WithTimeout(ctx, time.Second)
	defer cancelShort()
	_, err = kv.Commit(short, store.Tx{Puts: []store.Put{{Key: "/a", Value: []byte("lost")}}})
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
	_, err = kv.Get(short, "/a")
	require.Contains(t, []problem.Kind{problem.Unavailable, problem.Timeout}, problem.KindOf(err), "%v", err)
	_, _, err = kv.List(short, "/a")
	require.Contains(t, []problem.Kind{problem.Unavailable, problem.Timeout}, problem.KindOf(err), "%v", err)

	_, stop, err = startEtcd(dir, address)
	require.NoError(t, err)
	defer stop()
	defer client.Close() // or the server waits for its watch
	// The client may still be in its pause before it connects again.
	require.Eventually(t, func() bool { return put(kv, "/a", "2") == nil }, 20*time.Second, 50*time.Millisecond)
	require.Equal(t, "2", string(next(t, changes).Value), "the watch goes on by itself")
}

func TestEtcdClientClosed(t *testing.T) {
	s, err := sharedEtcd()
	require.NoError(t, err)
	client, err := dial(s.overNetwork.Endpoints()[0])
	require.NoError(t, err)
	kv := store.NewEtcd(client)
	p := freshPrefix()
	r := commit(t, kv, putTx(p+"a", "1"))
	changes := kv.Watch(context.Background(), p, r-1)
	require.Equal(t, p+"a", next(t, changes).Key)
	require.NoError(t, client.Close())
	requireClosed(t, changes)
	_, err = kv.Get(context.Background(), p)
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
}
