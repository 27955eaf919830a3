// Package sim runs many agents in one process: the code of real agents, each with a hypervisor, pools and a switch that live
// in memory. It is there to see how a control plane bears a thousand nodes, and for tests that need many.
package sim

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	temporal "go.temporal.io/sdk/client"
	"golang.org/x/sync/errgroup"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/network"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workers/node"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Config is how many nodes there are, and what each is like.
type Config struct {
	Server      string        // the API
	JoinToken   string        //
	DataDir     string        // holds the agents' identities: the same directory gives the same nodes again
	Nodes       int           //
	Prefix      string        // of the nodes' names; empty: sim
	Cores       int           // of each; 0: 64
	Memory      int64         // bytes of each; 0: 256 GiB
	ReportEvery time.Duration // 0: as agents do
	Log         *slog.Logger  // nil: nothing is logged
}

func (c *Config) complete() error {
	if c.Prefix == "" {
		c.Prefix = "sim"
	}
	if c.Cores == 0 {
		c.Cores = 64
	}
	if c.Memory == 0 {
		c.Memory = 256 * api.GiB
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	var v problem.Validation
	v.Check(c.Nodes >= 1 && c.Nodes <= 10_000, "nodes", c.Nodes, "must be 1 to 10000")
	api.CheckName(&v, "prefix", c.Prefix)
	v.Check(c.Cores > 0 && c.Memory > 0, "cores", c.Cores, "cores and memory must be more than 0")
	return v.Err("simulation")
}

// starting is how many nodes come up at the same time.
const starting = 32

// Run runs the nodes until ctx is done, or one of them cannot go on.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.complete(); err != nil {
		return err
	}
	line, disks, rack := &line{}, &storage.Exchange{}, &compute.Rack{}
	defer line.close()
	group, ctx := errgroup.WithContext(ctx)
	door := make(chan struct{}, starting)
	for i := range cfg.Nodes {
		group.Go(func() error {
			select {
			case door <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
			leave := sync.OnceFunc(func() { <-door })
			defer leave()
			return one(ctx, cfg, i, line, disks, rack, leave)
		})
	}
	return group.Wait()
}

// Name returns the name of node i.
func (c Config) Name(i int) string { return fmt.Sprintf("%s-%05d", c.Prefix, i) }

// one runs one node. Ready is called when it takes steps.
func one(ctx context.Context, cfg Config, i int, line *line, disks storage.Peers, rack *compute.Rack, ready func()) error {
	name := cfg.Name(i)
	driver := &compute.Fake{Inv: api.Inventory{
		Hostname: name, HostUUID: uuid.NewSHA1(uuid.NameSpaceOID, []byte(name)).String(), Arch: "x86_64", Accel: "kvm", Machine: "pc", Emulator: "simulated", CPUModel: "EPYC", CPUModels: []string{"EPYC"},
		Cores: cfg.Cores, Memory: cfg.Memory, Versions: map[string]string{"hypervisor": "simulated"},
	}}
	rack.Plug(name, driver)
	pools := &storage.Fake{Capacity: 10 * api.TiB}
	driver.Backing = pools
	return node.RunParts(ctx, node.Config{
		Server: cfg.Server, JoinToken: cfg.JoinToken, DataDir: filepath.Join(cfg.DataDir, name), Name: name, Version: "simulated",
		ReportEvery: cfg.ReportEvery, Log: cfg.Log.With("node", name),
	}, node.Parts{
		Driver: driver, Pools: pools, Switch: wire(name), Peers: disks,
		Dial: func(ctx context.Context, o temporal.Options) (temporal.Client, error) {
			defer ready()
			return line.dial(ctx, o)
		},
	})
}

// line is the connection to Temporal that all nodes share: a thousand connections would measure the kernel.
type line struct {
	mu    sync.Mutex
	first temporal.Client
}

func (l *line) dial(ctx context.Context, o temporal.Options) (temporal.Client, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == nil {
		c, err := temporal.DialContext(ctx, o)
		if err != nil {
			return nil, err
		}
		l.first = c
	}
	return temporal.NewClientFromExistingWithContext(ctx, l.first, o)
}

func (l *line) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first != nil {
		l.first.Close()
	}
}

// wire is a switch that has the chassis of this name and nothing else.
type wire string

// Local implements node.Switch.
func (w wire) Local(context.Context) (network.LocalInfo, error) {
	return network.LocalInfo{ChassisID: string(w), Version: "simulated"}, nil
}

// ListPorts implements node.Switch.
func (wire) ListPorts(context.Context) ([]steps.PortFound, error) { return nil, nil }

// RemovePort implements node.Switch.
func (wire) RemovePort(context.Context, string) error { return nil }
