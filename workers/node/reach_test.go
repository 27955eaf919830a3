package node

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func TestHowOthersReachThisNode(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	peer := func(c Config) api.Peer {
		c.Log = quiet
		return c.peer(t.Context())
	}
	const uri = "qemu+tcp://10.0.0.11/system"
	require.Equal(t, api.Peer{}, peer(Config{Server: "http://127.0.0.1:8899"}), "nobody asked")
	require.Equal(t, api.Peer{Libvirt: uri, Address: "10.9.9.9"}, peer(Config{Server: "http://127.0.0.1:8899", PeerLibvirt: uri, PeerAddress: "10.9.9.9"}))
	for _, server := range []string{"http://127.0.0.1:8899", "127.0.0.1:8899", "http://[::1]:8899", "http://", "://", "http://x.invalid"} {
		require.Equal(t, api.Peer{Libvirt: uri}, peer(Config{Server: server, PeerLibvirt: uri}), server)
	}
	// Towards an address that is not this machine's the kernel chooses one of ours.
	for _, server := range []string{"http://192.0.2.1:8899", "192.0.2.1:8899", "192.0.2.1"} {
		at, err := toward(t.Context(), server)
		if problem.Is(err, problem.Unavailable) {
			t.Skip("NOT TESTED: this machine has no route")
		}
		require.NoError(t, err, server)
		ip, err := netip.ParseAddr(at)
		require.NoError(t, err)
		require.False(t, ip.IsLoopback())
		l, err := net.Listen("tcp", net.JoinHostPort(at, "0"))
		require.NoError(t, err, "it is one of this machine's")
		require.NoError(t, l.Close())
	}
}

func TestPeerIsChecked(t *testing.T) {
	for uri, ok := range map[string]bool{
		"": true, "qemu+tcp://10.0.0.11/system": true, "qemu+tls://node-1/system": true, "qemu+unix:///system?socket=/run/x": true,
		"10.0.0.11": false, "qemu:///system": false, "qemu+tcp://%zz/": false, "qemu+ssh://root:secret@node/system": false,
	} {
		c := Config{Server: "http://s:1", DataDir: "/x", Name: "a", PeerLibvirt: uri}
		err := c.complete()
		require.Equal(t, ok, err == nil, "%s: %v", uri, err)
		if err != nil {
			require.True(t, problem.Is(err, problem.Invalid), "%v", err)
			require.NotContains(t, err.Error(), "secret")
		}
	}
}

func TestTransferPointIsTold(t *testing.T) {
	ctx := t.Context()
	quiet := slog.New(slog.DiscardHandler)
	var none transferPoint
	require.Empty(t, none.get(ctx, nil))
	require.Empty(t, none.get(ctx, newPeers("", "10.0.0.9", "http://192.0.2.1", quiet)))

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := newPeers(taken.Addr().String(), "10.0.0.9", "http://192.0.2.1", quiet)
	defer p.close()
	var point transferPoint
	require.Empty(t, point.get(ctx, p))
	require.NoError(t, taken.Close())
	require.Empty(t, point.get(ctx, p), "it is not tried with every report")
	point.asked = point.asked.Add(-reachEvery)
	_, port, err := net.SplitHostPort(taken.Addr().String())
	require.NoError(t, err)
	require.Equal(t, "10.0.0.9:"+port, point.get(ctx, p))
	gone, cancel := context.WithCancel(ctx)
	cancel()
	require.Equal(t, "10.0.0.9:"+port, point.get(gone, p))
}

func TestRoomOfPoolsIsToldCoarsely(t *testing.T) {
	in := []api.PoolUsage{{Pool: "a", Capacity: 100*api.MiB + 1, Free: 47*api.MiB + 5}, {Pool: "b", Free: 1}, {Pool: "c", Free: 32 * api.MiB}}
	require.Equal(t, []api.PoolUsage{{Pool: "a", Capacity: 100*api.MiB + 1, Free: 32 * api.MiB}, {Pool: "b"}, {Pool: "c", Free: 32 * api.MiB}}, coarsely(in))
}
