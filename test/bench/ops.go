package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
	sdk "go.temporal.io/sdk/client"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
)

const bareQueue = "bench"

// bareWorkflow is the least that does anything: one activity.
func bareWorkflow(ctx workflow.Context) error {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: 10 * time.Second})
	return workflow.ExecuteActivity(ctx, "bench.nothing").Get(ctx, nil)
}

// noops compares what an operation costs by itself with a bare workflow on the same Temporal.
func (b *bench) noops() error {
	temporal, err := sdk.Dial(sdk.Options{HostPort: b.address, Namespace: "nextstack", Logger: log.NewStructuredLogger(slog.New(slog.DiscardHandler))})
	if err != nil {
		return err
	}
	defer temporal.Close()
	w := worker.New(temporal, bareQueue, worker.Options{})
	w.RegisterWorkflowWithOptions(bareWorkflow, workflow.RegisterOptions{Name: "bench.bare"})
	w.RegisterActivityWithOptions(func(context.Context) error { return nil }, activity.RegisterOptions{Name: "bench.nothing"})
	if err := w.Start(); err != nil {
		return err
	}
	defer w.Stop()
	var ours, bare sample
	for range 100 {
		start := time.Now()
		op, err := b.c.Noop(b.ctx, client.Write{Wait: time.Minute})
		if err != nil {
			return err
		}
		d, err := b.done(start, op)
		if err != nil {
			return err
		}
		ours = append(ours, d)
		start = time.Now()
		run, err := temporal.ExecuteWorkflow(b.ctx, sdk.StartWorkflowOptions{TaskQueue: bareQueue}, "bench.bare")
		if err != nil {
			return err
		}
		if err := run.Get(b.ctx, nil); err != nil {
			return err
		}
		bare = append(bare, time.Since(start))
	}
	fmt.Printf("\n| doing nothing, 100 times, in turns | operation p50 / p95 | bare workflow p50 / p95 | ratio at p50 | goal |\n|---|---|---|---|---|\n")
	row("API call until it has ended", ours, bare, "<= 2")
	return nil
}

// throughput keeps operations in flight and counts how many end per second.
func (b *bench) throughput() error {
	work := make(chan int)
	errs := make(chan error, b.flight)
	var wg sync.WaitGroup
	start := time.Now()
	for range b.flight {
		wg.Go(func() {
			for range work {
				op, err := b.c.Noop(b.ctx, client.Write{Wait: time.Minute})
				if err == nil {
					_, err = b.done(start, op)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	for i := range b.ops {
		select {
		case work <- i:
		case err := <-errs:
			return err
		}
	}
	close(work)
	wg.Wait()
	fmt.Printf("\n| %d operations, %d in flight | %.0f per second |\n|---|---|\n", b.ops, b.flight, float64(b.ops)/time.Since(start).Seconds())
	return nil
}

// events measures from a write's request to the event that tells a watcher of it.
func (b *bench) events() error {
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	type seen struct {
		id string
		at time.Time
	}
	got := make(chan seen, 1024)
	ready := make(chan struct{})
	go func() {
		close(ready)
		for e, err := range b.c.Events(ctx, client.EventOptions{Kinds: []api.Kind{api.KindOperation}}) {
			if err != nil {
				return
			}
			got <- seen{e.ID, time.Now()}
		}
	}()
	<-ready
	if _, err := b.c.Noop(b.ctx, client.Write{Wait: time.Minute}); err != nil {
		return err
	}
	var latency sample
	for range 50 {
		start := time.Now()
		op, err := b.c.Noop(b.ctx, client.Write{})
		if err != nil {
			return err
		}
		for {
			s := <-got
			if s.id == op.ID {
				latency = append(latency, s.at.Sub(start))
				break
			}
		}
		if _, err := b.done(start, op); err != nil {
			return err
		}
	}
	fmt.Printf("\n| request sent until a watcher has the event, 50 times | p50 %s | p95 %s |\n|---|---|---|\n", ms(latency.quantile(.5)), ms(latency.quantile(.95)))
	return nil
}
