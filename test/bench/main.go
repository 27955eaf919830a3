// Command bench measures a running sandbox (`make up`) against bare scripts that do the same with the same tools, taking
// turns in one run: figures of one machine at one time can be compared, others cannot. It prints the tables of
// docs/benchmarks.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/nextstack/nextstack/api/client"
)

type bench struct {
	ctx      context.Context
	c        *client.Client
	root     string // of the repository
	node     string
	n        int
	burst    int
	flight   int
	ops      int
	address  string // of Temporal
	only     string
	live     bool   // emulated guests run while they move
	pool     string // of VMs; empty: the only one
	pin      string // node of VMs; empty: any
	nodes    int    // simulated ones
	sizes    string // how many VMs at a time on them
	profiles string // where the control plane of the scale part serves profiles
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	b := &bench{ctx: ctx}
	flag.StringVar(&b.root, "root", ".", "root of the repository")
	flag.StringVar(&b.node, "node", "node1", "node of the sandbox")
	flag.IntVar(&b.n, "n", 20, "VMs created one by one")
	flag.IntVar(&b.burst, "burst", 10, "VMs created at once")
	flag.IntVar(&b.flight, "flight", 50, "operations in flight")
	flag.IntVar(&b.ops, "ops", 500, "operations for the throughput")
	flag.StringVar(&b.address, "temporal", os.Getenv("GNEXT_HOST")+":7233", "address of Temporal")
	only := flag.String("only", "", "run one part: idle, vms, bursts, noops, throughput, events, moves or scale; scale needs no sandbox")
	flag.BoolVar(&b.live, "live", false, "emulated guests run while they move, and may be damaged; the agents must have --live-tcg")
	flag.IntVar(&b.nodes, "nodes", 1000, "simulated nodes of the scale part")
	flag.StringVar(&b.profiles, "profiles", "", "address at which the control plane of the scale part serves profiles")
	flag.StringVar(&b.sizes, "vms", "100,1000", "VMs created at a time in the scale part")
	flag.Parse()
	b.only = *only
	if err := b.run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run() (err error) {
	if b.only == "scale" {
		return b.scale()
	}
	b.c, err = client.New(client.Config{Host: os.Getenv("GNEXT_HOST"), Token: os.Getenv("GNEXT_TOKEN"), Timeout: 90 * time.Second})
	if err != nil {
		return err
	}
	parts := []struct {
		name string
		run  func() error
	}{{"idle", b.idle}, {"vms", b.vms}, {"bursts", b.bursts}, {"noops", b.noops}, {"throughput", b.throughput}, {"events", b.events}, {"moves", b.migrations}, {"scale", b.scale}}
	for _, part := range parts {
		if b.only != "" && b.only != part.name {
			continue
		}
		if err := part.run(); err != nil {
			return err
		}
	}
	return nil
}

// sample is a set of durations.
type sample []time.Duration

func (s sample) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	t := slices.Clone(s)
	slices.Sort(t)
	return t[min(len(t)-1, int(q*float64(len(t))))]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.0f ms", float64(d.Microseconds())/1000) }

func row(what string, ours, theirs sample, goal string) {
	fmt.Printf("| %s | %s / %s | %s / %s | %.2f | %s |\n", what, ms(ours.quantile(.5)), ms(ours.quantile(.95)),
		ms(theirs.quantile(.5)), ms(theirs.quantile(.95)), float64(ours.quantile(.5))/float64(theirs.quantile(.5)), goal)
}
