// Command engine is etcd, Temporal or both as a process of their own, for tests of a control plane that uses external ones.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/nextstack/nextstack/workers/engine"
)

func main() {
	var c engine.Config
	flag.StringVar(&c.DataDir, "data-dir", "", "where everything is kept")
	flag.StringVar(&c.EtcdListen, "etcd-listen", "", "address of etcd")
	flag.StringVar(&c.TemporalListen, "temporal-listen", "", "address of Temporal")
	flag.StringVar(&c.TemporalAddress, "temporal-address", "", "no Temporal here, it is there")
	etcd := flag.String("etcd-endpoint", "", "no etcd here, it is there")
	flag.Parse()
	if *etcd != "" {
		c.EtcdEndpoints = []string{*etcd}
	}
	if err := run(c); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run(c engine.Config) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	c.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	e, err := engine.Start(ctx, c)
	if err != nil {
		return err
	}
	c.Logger.Info("ready", "etcd", e.EtcdEndpoints(), "temporal", e.TemporalAddress())
	<-ctx.Done()
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return e.Stop(ending)
}
