package node

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Timing of finding out how this node is reached. A name service that hangs must not hold up a report for long, nor often.
const (
	reachTimeout = time.Second
	reachEvery   = time.Minute
)

// peer says how the hypervisors of other nodes reach this one's. Without a URI no guest arrives here while it runs; without
// an address, which is so where the server is on this machine or the network is not up yet, libvirt has to find one.
func (c *Config) peer(ctx context.Context) api.Peer {
	p := api.Peer{Libvirt: c.PeerLibvirt, Address: c.PeerAddress}
	if p.Address != "" || p.Libvirt == "" && c.PeerListen == "" {
		return p
	}
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	address, err := toward(ctx, c.Server)
	if err != nil {
		c.Log.Warn("the agent does not know at which address other nodes reach this one", "fix", "start it with --peer-address", "error", err)
		return p
	}
	p.Address = address
	return p
}

// toward returns the address of this node that packets to the server come from. It sends nothing: it asks the routing table.
func toward(ctx context.Context, server string) (string, error) {
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Hostname() == "" {
		return "", problem.New(problem.Invalid, "the server's address %q cannot be read", server)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", net.JoinHostPort(u.Hostname(), "9"))
	if err != nil {
		return "", problem.Wrap(err, problem.Unavailable, "the server %s cannot be reached from here", u.Hostname())
	}
	defer c.Close() //nolint:errcheck // nothing was sent
	at, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return "", problem.Wrap(err, problem.Internal, "the agent does not know its own address")
	}
	if at.Addr().IsLoopback() {
		return "", problem.New(problem.Unsupported, "the server is on this node, so its address tells nothing of how others reach the node").
			Try("start the agent with --peer-address")
	}
	return at.Addr().String(), nil
}

// transferPoint is where other agents fetch disks from this one, once that is known.
type transferPoint struct {
	at    string
	asked time.Time
}

// get returns host:port; empty: no disks are given away, or it is not known at which address.
func (t *transferPoint) get(ctx context.Context, p *peers) string {
	if t.at != "" || p == nil || p.listen == "" || time.Since(t.asked) < reachEvery {
		return t.at
	}
	t.asked = time.Now()
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	if l, err := p.open(); err == nil {
		t.at, _ = p.address(ctx, l.Addr())
	}
	return t.at
}

// freeGrain is the step in which the free room of pools is told. A record that changes with every report is written with every
// report, and nobody decides on a few MiB.
const freeGrain = 16 * api.MiB

func coarsely(pools []api.PoolUsage) []api.PoolUsage {
	for i := range pools {
		pools[i].Free -= pools[i].Free % freeGrain
	}
	return pools
}

// checkPeer checks how other nodes reach this one, as far as that can be seen from here.
func (c *Config) checkPeer(v *problem.Validation) {
	if c.PeerLibvirt == "" {
		return
	}
	u, err := url.Parse(c.PeerLibvirt)
	v.Check(err == nil && u.Scheme != "" && (u.Host != "" || u.RawQuery != ""), "peerLibvirt", c.PeerLibvirt,
		"must be a libvirt URI that other nodes can use, like qemu+tcp://10.0.0.11/system")
	if err == nil {
		_, secret := u.User.Password()
		v.Check(!secret, "peerLibvirt", "", "must hold no password: everybody who sees the node sees it")
	}
}
