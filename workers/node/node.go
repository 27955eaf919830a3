// Package node is the agent: it carries out the steps of one node, and tells the server what there is. It knows two
// addresses, the server's API and Temporal's, and never sees the store.
package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	temporal "go.temporal.io/sdk/client"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/libvirt"
	"github.com/nextstack/nextstack/activities/network"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/rbd"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workers/node/guard"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Config is what an agent needs to know.
type Config struct {
	Server        string        // the API: http://host:8899, host:port or host
	JoinToken     string        // needed once, unless JoinTokenFile is given
	JoinTokenFile string        // is read when it is needed; it may appear later than the agent
	DataDir       string        // the agent's identity and the consoles of its VMs
	Name          string        // of the node; empty: its host name
	LibvirtURI    string        // empty: qemu:///system
	OVS           string        // database of Open vSwitch; empty: unix:/run/openvswitch/db.sock
	Accel         string        // kvm or tcg; empty: kvm where it works
	LiveTCG       bool          // emulated guests run while they move; see libvirt.Options
	PeerLibvirt   string        // libvirt URI at which other nodes' libvirt reaches this one's; empty: no guest arrives here while it runs
	PeerListen    string        // host:port at which other agents fetch disks; empty: none are given away
	PeerAddress   string        // host that other agents reach that at; empty: what it listens on, or the address toward the server
	Guard         []string      // program and arguments that start the guardian of DataDir; empty: the node's lease is not guarded
	Version       string        // of this program
	ReportEvery   time.Duration // 0: 5 s
	Log           *slog.Logger
	Hook          activities.Hook // nil but in tests
}

// Switch is what the agent needs of the node's virtual switch.
type Switch interface {
	Local(ctx context.Context) (network.LocalInfo, error)
	ListPorts(ctx context.Context) ([]steps.PortFound, error)
	RemovePort(ctx context.Context, name string) error
}

// ovs is the switch at an OVSDB endpoint.
type ovs string

func (o ovs) Local(ctx context.Context) (network.LocalInfo, error) {
	return network.Local(ctx, string(o))
}

func (o ovs) ListPorts(ctx context.Context) ([]steps.PortFound, error) {
	return network.ListPorts(ctx, string(o))
}

func (o ovs) RemovePort(ctx context.Context, name string) error {
	return network.RemovePort(ctx, string(o), name)
}

// agent is a running agent with its parts.
type agent struct {
	cfg    Config
	log    *slog.Logger
	api    *client.Client
	driver compute.Driver
	host   *activities.Host // one for the agent's life: its fence must outlive a lost connection to Temporal
	trim   func() error     // shortens consoles; may be nil
	pools  storage.Pool
	disks  storage.Peers // how they go to and from other nodes
	peers  *peers        // the same, if it is over HTTP
	sw     Switch
	facts  *switchFacts
	keys   *keys  // of pools; nil: nobody asks for any
	lease  *lease // nil: HA VMs run without one
	dial   func(ctx context.Context, o temporal.Options) (temporal.Client, error)
}

// Run runs the agent until ctx is done. It returns an error only for what waiting cannot cure: a configuration that is
// wrong, or a join that was refused.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.complete(); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" { // there is little to collect, and memory is for VMs
		debug.SetGCPercent(50)
	}
	consoles := filepath.Join(cfg.DataDir, "consoles")
	// The hypervisor may run as somebody else, and must be able to pass through.
	if err := errors.Join(os.MkdirAll(cfg.DataDir, 0o711), os.MkdirAll(consoles, 0o711)); err != nil {
		return problem.Wrap(err, problem.Invalid, "the data directory %s cannot be made", cfg.DataDir)
	}
	dirs := storage.NewDir(cfg.Log)
	mounts := storage.NewMounts(dirs, filepath.Join(cfg.DataDir, "mounts"), cfg.Log)
	pools := storage.ByType{api.PoolDir: dirs, api.PoolNFS: mounts, api.PoolGluster: mounts}
	parts := Parts{Pools: pools, Switch: ovs(cfg.OVS), keys: &keys{}}
	facts := &switchFacts{}
	driver := libvirt.New(libvirt.Options{URI: cfg.LibvirtURI, ConsoleDir: consoles, Accel: cfg.Accel, LiveTCG: cfg.LiveTCG, Peer: cfg.peer(ctx), UserspaceDP: facts.userspace, Log: cfg.Log})
	defer driver.Close()
	if ceph := rbd.New(rbd.Config{
		Key: parts.keys.of, NewKey: parts.keys.wanted, Secrets: driver, TempDir: filepath.Join(cfg.DataDir, "ceph"), MemoryDir: filepath.Join(cfg.DataDir, "memories"),
		NoteDir: filepath.Join(cfg.DataDir, "ceph-pools"), Log: cfg.Log,
	}); ceph != nil {
		pools[api.PoolRBD] = ceph
	}
	parts.Driver, parts.Trim, parts.facts = driver, driver.TrimConsoles, facts
	return run(ctx, cfg, parts)
}

// Parts are what an agent works with: the real ones, or those of a simulation.
type Parts struct {
	Driver compute.Driver
	Pools  storage.Pool
	Switch Switch
	Trim   func() error // shortens consoles; may be nil
	// Peers is how disks go to and from other nodes; nil: over HTTP, as the configuration says.
	Peers storage.Peers
	// Dial connects to Temporal; nil: a connection of its own. Many agents in one process may share one.
	Dial func(ctx context.Context, o temporal.Options) (temporal.Client, error)

	facts *switchFacts // what is known of Switch; nil: nothing yet
	keys  *keys        // that Pools ask for; nil: they ask for none
}

// RunParts is Run with parts of the caller's choice, which stay the caller's.
func RunParts(ctx context.Context, cfg Config, parts Parts) error {
	if err := cfg.complete(); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o711); err != nil {
		return problem.Wrap(err, problem.Invalid, "the data directory %s cannot be made", cfg.DataDir)
	}
	return run(ctx, cfg, parts)
}

func run(ctx context.Context, cfg Config, parts Parts) error {
	c, err := newClient(cfg.Server, cfg.Version)
	if err != nil {
		return err
	}
	if parts.Dial == nil {
		parts.Dial = temporal.DialContext
	}
	if parts.facts == nil {
		parts.facts = &switchFacts{}
	}
	a := &agent{
		cfg: cfg, log: cfg.Log, api: c, keys: parts.keys, driver: parts.Driver, pools: parts.Pools, sw: parts.Switch, trim: parts.Trim, facts: parts.facts,
		dial: parts.Dial, host: &activities.Host{Log: cfg.Log, Hook: cfg.Hook},
	}
	if a.disks = parts.Peers; a.disks == nil {
		a.peers = newPeers(cfg.PeerListen, cfg.PeerAddress, cfg.Server, cfg.Log)
		defer a.peers.close()
		a.disks = a.peers
	}
	if a.peers != nil && cfg.PeerListen != "" {
		if _, err := a.peers.open(); err != nil {
			a.log.Warn("no disks can be given to other nodes yet; it is tried again with each", "error", err)
		}
	}
	a.lease = newLease(nil, cfg.Log)
	if len(cfg.Guard) > 0 {
		a.lease.guardian = &guard.Keeper{DataDir: cfg.DataDir, Command: cfg.Guard, Build: guard.Build(), Log: cfg.Log}
	}
	return a.run(ctx)
}

func (c *Config) complete() error {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Name == "" {
		h, err := os.Hostname()
		if err != nil {
			return problem.Wrap(err, problem.Invalid, "this node has no name")
		}
		h, _, _ = strings.Cut(strings.ToLower(h), ".")
		c.Name = h
	}
	if c.LibvirtURI == "" {
		c.LibvirtURI = "qemu:///system"
	}
	if c.OVS == "" {
		c.OVS = "unix:/run/openvswitch/db.sock"
	}
	if c.ReportEvery == 0 {
		c.ReportEvery = 5 * time.Second
	}
	var v problem.Validation
	api.CheckName(&v, "name", c.Name)
	v.Check(filepath.IsAbs(c.DataDir), "dataDir", c.DataDir, "must be an absolute path")
	v.Check(c.Server != "", "server", c.Server, "is missing")
	v.Check(c.ReportEvery >= 100*time.Millisecond, "reportEvery", c.ReportEvery.String(), "must be at least 100ms")
	if c.PeerListen != "" {
		_, _, err := net.SplitHostPort(c.PeerListen)
		v.Check(err == nil, "peerListen", c.PeerListen, "must be host:port, or :port for all addresses")
	}
	v.Check(!strings.ContainsAny(c.PeerAddress, "/ []"), "peerAddress", c.PeerAddress, "must be a host name or an IP address")
	c.checkPeer(&v)
	v.Check(c.Accel == "" || c.Accel == "kvm" || c.Accel == "tcg", "accel", c.Accel, "must be kvm or tcg, or be left out")
	return v.Err("agent configuration")
}

// run is a member of the cloud, and becomes one again if the server has forgotten it, until ctx is done.
func (a *agent) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	guarding := make(chan struct{})
	go func() { defer close(guarding); a.lease.run(ctx) }()
	defer func() { cancel(); <-guarding }()
	for {
		id, err := a.identity(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		err = a.serve(ctx, id)
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, errForgotten) {
			return err
		}
		if err := a.forget(id); err != nil {
			return err
		}
	}
}

// errForgotten says that the server does not know this agent any more.
var errForgotten = errors.New("the server does not know this agent")

// serve works for one identity: it takes steps and reports, each whether or not the other can.
func (a *agent) serve(ctx context.Context, id *identity) error {
	a.keys.set(func(ctx context.Context, pool, operation string) (string, error) {
		return a.api.PoolKey(ctx, id.ID, pool, operation)
	})
	a.log.Info("agent runs", "name", a.cfg.Name, "id", id.ID, "server", a.api.Address(), "temporal", id.TemporalAddress)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// It reports until its last step has ended: a node that falls silent while it finishes its work might be taken for dead.
	telling, silent := context.WithCancel(context.WithoutCancel(ctx))
	defer silent()
	worker := make(chan struct{})
	go func() {
		defer close(worker)
		defer silent()
		a.work(ctx, id)
	}()
	err := a.report(telling, id)
	cancel()
	<-worker
	return err
}
