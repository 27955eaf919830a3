package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/fleet"
	"github.com/nextstack/nextstack/api/problem"
)

// config is what `nextstack serve` can be told, by flag, by environment (NEXTSTACK_DATA_DIR for --data-dir) or by a YAML file
// with the flags' names as keys; the former win over the latter.
type config struct {
	DataDir         string   `koanf:"data-dir"`
	Listen          []string `koanf:"listen"`
	EtcdEndpoints   []string `koanf:"etcd-endpoints"`
	TemporalAddress string   `koanf:"temporal-address"`
	TemporalListen  string   `koanf:"temporal-listen"`
	TemporalUI      string   `koanf:"temporal-ui"`
	UIListen        string   `koanf:"ui-listen"`
	Namespace       string   `koanf:"namespace"`
	OVNNorthbound   string   `koanf:"ovn-nb"`
	JoinTokenFile   string   `koanf:"join-token-file"`
	ImageDirs       []string `koanf:"image-dir"`
	ImageMaxSize    int64    `koanf:"image-max-size"`
	ImageURLs       []string `koanf:"image-url"`
	LogLevel        string   `koanf:"log-level"`

	ImageURLTimeout time.Duration `koanf:"image-url-timeout"`

	SuspectAfter   time.Duration `koanf:"suspect-after"`
	DebugListen    string        `koanf:"debug-listen"`
	Lease          time.Duration `koanf:"ha-lease"`
	CPURatio       float64       `koanf:"cpu-ratio"`
	ReservedMemory int64         `koanf:"reserved-memory"`
	Placement      string        `koanf:"placement"`
	KeepDeleted    time.Duration `koanf:"keep-deleted"`
}

func flags(f *pflag.FlagSet) {
	f.StringP("config", "C", "", "YAML file with the same keys as these flags")
	f.String("data-dir", "/var/lib/nextstack", "where everything is kept")
	f.StringSlice("listen", []string{"127.0.0.1:8899"}, "address of the API; may be given more than once")
	f.StringSlice("etcd-endpoints", nil, "external etcd; default: embedded")
	f.String("temporal-address", "", "external Temporal; default: embedded")
	f.String("temporal-listen", "127.0.0.1:7233", "address at which agents reach the embedded Temporal")
	f.String("temporal-ui", "", "URL of an external Temporal UI, for links")
	f.String("ui-listen", "127.0.0.1:8233", "address of the embedded Temporal UI; empty: none")
	f.String("namespace", "nextstack", "Temporal namespace")
	f.String("ovn-nb", "unix:/run/ovn/ovnnb_db.sock", "OVN northbound database: unix:PATH or tcp:HOST:PORT")
	f.String("join-token-file", "", "token that agents join with; made if it does not exist (default DATA-DIR/join-token)")
	f.StringSlice("image-dir", nil, "directory on this server that images may be imported from; may be given more than once")
	f.Int64("image-max-size", 256<<30, "bytes that an image may have, as it comes and as it is kept")
	f.StringSlice("image-url", nil, "beginning of URLs that images may be fetched from, like https://cloud.debian.org/images/; may be given more than once; none: nowhere")
	f.Duration("image-url-timeout", 6*time.Hour, "how long an image may take to come from its URL")
	f.Float64("cpu-ratio", 4, "vCPUs that may be promised per core of a node, for nodes that join from now on")
	f.Int64("reserved-memory", 512<<20, "bytes of memory kept for the host itself on a node that joins")
	f.String("placement", api.Spread, "where VMs go that do not say: spread prefers the emptiest node, pack the fullest")
	f.Duration("suspect-after", fleet.SilentAfter, "how long a node may be silent before it is suspected to be dead, and its recovery begins")
	f.Duration("ha-lease", fleet.Lease, "how long a node may run HA VMs without hearing from the server; it stops them then")
	f.Duration("keep-deleted", admission.DefaultKeep, "how long deleted volumes stay in the recycle bin")
	f.String("debug-listen", "", "address at which profiles (pprof) are served, without a password; empty: nowhere")
	f.String("log-level", "info", "debug, info, warn or error")
}

// envPrefix marks the variables that are ours.
const envPrefix = "NEXTSTACK_"

func loadConfig(f *pflag.FlagSet) (config, error) {
	var c config
	k := koanf.New(".")
	if path, _ := f.GetString("config"); path != "" {
		if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
			return c, problem.Wrap(err, problem.Invalid, "the configuration file %s cannot be read", path)
		}
		for _, key := range k.Keys() {
			if f.Lookup(key) == nil {
				return c, problem.New(problem.Invalid, "unknown key %q in %s", key, path).Try("see nextstack serve --help for the keys")
			}
		}
	}
	fromEnv := env.Provider(".", env.Opt{Prefix: envPrefix, TransformFunc: func(name, value string) (string, any) {
		key := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, envPrefix)), "_", "-")
		flag := f.Lookup(key)
		if flag == nil {
			return "", nil
		}
		if flag.Value.Type() == "stringSlice" {
			return key, strings.Split(value, ",")
		}
		return key, value
	}})
	if err := k.Load(fromEnv, nil); err != nil {
		return c, problem.Wrap(err, problem.Invalid, "the environment cannot be read")
	}
	if err := k.Load(posflag.Provider(f, ".", k), nil); err != nil {
		return c, problem.Wrap(err, problem.Invalid, "the flags cannot be read")
	}
	if err := k.Unmarshal("", &c); err != nil {
		return c, problem.Wrap(err, problem.Invalid, "the configuration cannot be read")
	}
	return c.complete()
}

func (c config) complete() (config, error) {
	var v problem.Validation
	v.Check(c.DataDir != "", "data-dir", c.DataDir, "must be a directory")
	v.Check(len(c.Listen) > 0, "listen", c.Listen, "must be at least one address")
	v.Check(strings.HasPrefix(c.OVNNorthbound, "unix:") || strings.HasPrefix(c.OVNNorthbound, "tcp:"), "ovn-nb", c.OVNNorthbound, "must be unix:PATH or tcp:HOST:PORT")
	v.Check(c.CPURatio > 0 && c.CPURatio <= 1000, "cpu-ratio", c.CPURatio, "must be more than 0, at most 1000")
	v.Check(c.ImageMaxSize > 0, "image-max-size", c.ImageMaxSize, "must be more than 0")
	v.Check(c.ImageURLTimeout > 0, "image-url-timeout", c.ImageURLTimeout.String(), "must be more than 0")
	v.Check(c.ReservedMemory >= 0, "reserved-memory", c.ReservedMemory, "must not be negative")
	v.Check(c.Placement == api.Spread || c.Placement == api.Pack, "placement", c.Placement, "must be %s or %s", api.Spread, api.Pack)
	v.Check(c.SuspectAfter >= 10*time.Second && c.SuspectAfter <= time.Hour, "suspect-after", c.SuspectAfter.String(), "must be 10s to 1h: agents report every 5 seconds")
	v.Check(c.Lease >= 10*time.Second && c.Lease <= 24*time.Hour, "ha-lease", c.Lease.String(), "must be 10s to 24h: agents report every 5 seconds")
	v.Check(c.Lease >= c.SuspectAfter, "ha-lease", c.Lease.String(), "must not be shorter than suspect-after (%s): nodes would stop HA VMs before anybody thinks of starting them elsewhere", c.SuspectAfter)
	v.Check(c.KeepDeleted >= time.Minute && c.KeepDeleted <= 10*365*24*time.Hour, "keep-deleted", c.KeepDeleted.String(), "must be 1m to 10 years (87600h)")
	var level slog.Level
	v.Check(level.UnmarshalText([]byte(c.LogLevel)) == nil, "log-level", c.LogLevel, "must be debug, info, warn or error")
	if c.JoinTokenFile == "" {
		c.JoinTokenFile = filepath.Join(c.DataDir, "join-token")
	}
	return c, v.Err("the configuration")
}

func (c config) logger() *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // checked in complete
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}
