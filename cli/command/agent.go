package command

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// AgentConfig is what an agent needs to know to begin.
type AgentConfig struct {
	Server        string // URL of the API
	JoinToken     string // needed once
	JoinTokenFile string // where it is, in place of JoinToken; it may appear later than the agent
	DataDir       string
	Name          string
	Libvirt       string   // connection URI
	OVS           string   // address of the database of Open vSwitch
	Accel         string   // kvm or tcg; empty: kvm where it works
	LiveTCG       bool     // emulated guests run while they move; for tests
	PeerLibvirt   string   // URI at which other nodes' libvirt reaches this one's; empty: no guest arrives here while it runs
	PeerAddress   string   // of this node as others reach it; empty: the one that reaches the server
	PeerListen    string   // host:port at which other agents fetch disks; empty: none are given away
	Guard         []string // program and arguments that start the guardian; empty: the node's lease is not guarded
	LogLevel      string   // debug, info, warn or error
	Version       string
}

// GuardConfig is what the guardian of a node needs to know.
type GuardConfig struct {
	DataDir    string // of the agent that it stands by
	LibvirtRun string // where libvirt keeps the status of running domains
	Stop       bool   // do not guard, but have the one that guards stop
}

var agents = &noun[*api.Agent]{
	columns: []column[*api.Agent]{
		nameCol[*api.Agent](),
		col("PHASE", func(g *api.Agent) cell { return phase(g.Status.Phase) }),
		col("ARCH", func(g *api.Agent) cell { return text(g.Status.Inventory.Arch) }),
		col("ACCEL", func(g *api.Agent) cell { return text(g.Status.Inventory.Accel) }),
		col("CORES", func(g *api.Agent) cell { return number(g.Status.Inventory.Cores) }),
		col("MEMORY", func(g *api.Agent) cell { return size(g.Status.Inventory.Memory) }),
		col("CLAIMED VCPUS", func(g *api.Agent) cell { return number(g.Status.Claimed.VCPUs) }),
		col("CLAIMED MEMORY", func(g *api.Agent) cell { return size(g.Status.Claimed.Memory) }),
		col("SEEN", func(g *api.Agent) cell { return age(g.Status.Observed) }),
		idCol[*api.Agent](),
	},
	more: []column[*api.Agent]{
		col("REASON", func(g *api.Agent) cell { return text(g.Status.Reason) }),
		col("HOSTNAME", func(g *api.Agent) cell { return text(g.Status.Inventory.Hostname) }),
		col("CPU MODEL", func(g *api.Agent) cell { return text(g.Status.Inventory.CPUModel) }),
		col("MACHINE", func(g *api.Agent) cell { return text(g.Status.Inventory.Machine) }),
		col("CHASSIS", func(g *api.Agent) cell { return text(g.Status.Inventory.OVNChassis) }),
		col("RESERVED MEMORY", func(g *api.Agent) cell { return size(g.Spec.ReservedMemory) }),
		col("CPU RATIO", func(g *api.Agent) cell { return text(strconv.FormatFloat(g.Spec.CPURatio, 'g', -1, 64)) }),
		col("VERSIONS", func(g *api.Agent) cell { return labels(g.Status.Inventory.Versions) }),
		{"POOLS", func(ctx context.Context, a *app, g *api.Agent) cell {
			return text(strings.Join(mapped(g.Status.Inventory.Pools, func(p api.PoolUsage) string {
				s := a.nameOf(ctx, api.KindPool, p.Pool) + ": " + formatSize(p.Free) + " of " + formatSize(p.Capacity) + " free"
				if p.Error != "" {
					s += ", " + p.Error
				}
				return s
			}), "\n"))
		}},
	},
}

func (a *app) agentCmd() *cobra.Command {
	return a.group(&cobra.Command{Use: "agent", Short: "Agent management"},
		agents.listCmd(a), agents.getCmd(a), a.runCmd("run", "Run the agent of this node until it is told to stop", ""), a.guardCmd())
}

// guardCmd makes the command that the agent starts its guardian with. People only need it to stop one for good.
func (a *app) guardCmd() *cobra.Command {
	var c GuardConfig
	cmd := &cobra.Command{
		Use: "guard", Hidden: true, Args: cobra.NoArgs, Short: "Stop the HA VMs of this node when its lease is over",
		Long: "The agent starts this by itself. It goes on without the agent: when nobody renews the node's lease it stops the node's\n" +
			"HA VMs, so that they can be started elsewhere.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.Guard == nil {
				return noAgent(a.Version)
			}
			if !filepath.IsAbs(c.DataDir) {
				return problem.New(problem.Invalid, "--data-dir must be an absolute directory")
			}
			return a.Guard(cmd.Context(), c)
		},
	}
	cmd.Flags().StringVar(&c.DataDir, "data-dir", defaultDataDir, "data directory of the agent")
	cmd.Flags().StringVar(&c.LibvirtRun, "libvirt-run-dir", defaultLibvirtRun, "where libvirt keeps the status of running domains")
	cmd.Flags().BoolVar(&c.Stop, "stop", false, "have the guardian of this node end; it refuses while there are HA VMs on the node")
	return cmd
}

// Defaults of a node.
const (
	defaultDataDir    = "/var/lib/gnext"
	defaultLibvirtRun = "/run/libvirt/qemu"
)

// runFlags are the flags of a running agent; a configuration file has the same keys.
type runFlags struct {
	server, tokenFile, dataDir, name, libvirt, ovs, accel, logLevel, pidFile, config string
	peerLibvirt, peerAddress, peerListen                                             string
	libvirtRun                                                                       string
	guard, liveTCG                                                                   bool
}

// runCmd makes a command that runs the agent; config is the default configuration file, if there should be one.
func (a *app) runCmd(use, short, config string) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.Agent == nil {
				return noAgent(a.Version)
			}
			if err := f.read(cmd.Flags()); err != nil {
				return err
			}
			c, err := a.agentConfig(&f)
			if err != nil {
				return err
			}
			pid, err := lockPID(f.pidPath())
			if err != nil {
				return err
			}
			defer pid.Close()
			if err := a.Agent(cmd.Context(), c); err != nil && cmd.Context().Err() == nil {
				return problem.Wrap(err, problem.Internal, "the agent has stopped")
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.server, "server", "", "URL of the server's API (default: made from --host and --port)")
	fl.StringVar(&f.tokenFile, "join-token-file", "", "file with the token that makes this node a member (or GNEXT_JOIN_TOKEN); needed once")
	fl.StringVar(&f.dataDir, "data-dir", defaultDataDir, "directory for the agent's identity and images")
	fl.StringVar(&f.name, "name", "", "name of the node (default: its host name)")
	fl.StringVar(&f.libvirt, "libvirt", "qemu:///system", "libvirt to use")
	fl.StringVar(&f.ovs, "ovs", "unix:/run/openvswitch/db.sock", "database of Open vSwitch")
	fl.StringVar(&f.accel, "accel", "", "kvm or tcg (default: kvm where it works)")
	fl.BoolVar(&f.liveTCG, "live-tcg", false, "let emulated guests run while they move, which may damage their memory; for tests of live moves without KVM")
	fl.StringVar(&f.peerLibvirt, "peer-libvirt", "", "URI at which the other nodes' libvirt reaches this one's, like qemu+tcp://10.0.0.11/system (default: guests cannot move here while they run)")
	fl.StringVar(&f.peerAddress, "peer-address", "", "address at which other nodes reach this one (default: the one that reaches the server)")
	fl.StringVar(&f.peerListen, "peer-listen", "", "host:port at which other agents fetch disks, like :8897 (default: no disks are given away)")
	fl.BoolVar(&f.guard, "guard", true, "have a guardian stop the HA VMs of this node when its lease is over; without one they are not restarted elsewhere")
	fl.StringVar(&f.libvirtRun, "libvirt-run-dir", defaultLibvirtRun, "where libvirt keeps the status of running domains, for the guardian")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fl.StringVar(&f.pidFile, "pid-file", "", "file that holds the process ID while the agent runs (default: agent.pid in the data directory)")
	fl.StringVarP(&f.config, "config", "C", config, "configuration file, YAML or JSON, with the names of these flags as keys")
	must(cmd.MarkFlagFilename("config", "yml", "yaml", "json"))
	return cmd
}

func noAgent(version string) error {
	return problem.New(problem.Unsupported, "this gnext %s has no agent", version).
		Because("it is the small build without cgo, and the agent needs libvirt").
		Try("on nodes, use a gnext that was built with CGO_ENABLED=1 and libvirt's headers; `gnext -V` tells which one it is")
}

// read takes from the configuration file what the command line leaves open.
func (f *runFlags) read(flags *pflag.FlagSet) error {
	if f.config == "" {
		return nil
	}
	b, err := os.ReadFile(f.config)
	if err != nil {
		return problem.Wrap(err, problem.Invalid, "cannot read the configuration file %s", f.config)
	}
	values := map[string]string{}
	dec := yaml.NewDecoder(bytes.NewReader(b)) // JSON is YAML, too
	if err := dec.Decode(&values); err != nil && !errors.Is(err, io.EOF) {
		return problem.Wrap(err, problem.Invalid, "the configuration file %s cannot be understood", f.config)
	}
	var v problem.Validation
	for key, value := range values {
		flag := flags.Lookup(key)
		switch {
		case flag == nil || key == "config" || key == "help":
			v.Add(key, nil, "is not known")
		case !flag.Changed:
			if err := flags.Set(key, value); err != nil {
				v.Add(key, value, "%v", err)
			}
		}
	}
	return v.Err("the configuration file " + f.config)
}

func (f *runFlags) pidPath() string {
	if f.pidFile != "" {
		return f.pidFile
	}
	return filepath.Join(f.dataDir, "agent.pid")
}

// agentConfig checks the flags and completes them.
func (a *app) agentConfig(f *runFlags) (AgentConfig, error) {
	c := AgentConfig{
		Server: f.server, DataDir: f.dataDir, Name: f.name, Libvirt: f.libvirt, OVS: f.ovs,
		PeerLibvirt: f.peerLibvirt, PeerAddress: f.peerAddress, PeerListen: f.peerListen,
		Accel: f.accel, LiveTCG: f.liveTCG, LogLevel: f.logLevel, Version: a.Version, JoinTokenFile: f.tokenFile,
	}
	if f.guard {
		program, err := os.Executable()
		if err != nil {
			return c, problem.Caused(err, problem.Internal, "this program cannot find itself, and so cannot start its guardian").Try("give --guard=false")
		}
		c.Guard = []string{program, "agent", "guard", "--data-dir", c.DataDir, "--libvirt-run-dir", f.libvirtRun}
	}
	if c.JoinTokenFile == "" {
		c.JoinToken = a.Getenv("GNEXT_JOIN_TOKEN")
	}
	var v problem.Validation
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		v.Add("log-level", c.LogLevel, "must be debug, info, warn or error")
	}
	v.Check(c.Accel == "" || c.Accel == "kvm" || c.Accel == "tcg", "accel", c.Accel, "must be kvm or tcg")
	v.Check(filepath.IsAbs(c.DataDir), "data-dir", c.DataDir, "must be an absolute directory")
	v.Check(filepath.IsAbs(f.libvirtRun), "libvirt-run-dir", f.libvirtRun, "must be an absolute directory")
	v.Check(c.Libvirt != "", "libvirt", nil, "must not be empty")
	v.Check(c.OVS != "", "ovs", nil, "must not be empty")
	if c.Server == "" {
		c.Server = "http://" + net.JoinHostPort(a.host, strconv.Itoa(int(a.port)))
	}
	v.Check(strings.HasPrefix(c.Server, "http://") || strings.HasPrefix(c.Server, "https://"), "server", c.Server, "must be a URL, like http://10.0.0.1:8899")
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return c, problem.Wrap(err, problem.Invalid, "this machine does not know its host name, so give --name")
		}
		host, _, _ = strings.Cut(host, ".")
		c.Name = strings.ToLower(host)
	}
	api.CheckName(&v, "name", c.Name)
	return c, v.Err("the agent's configuration")
}
