package node

import (
	"context"
	"errors"
	"io"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/volume"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Limits of the worker of one node.
const (
	maxSteps = 20 // at once; a node's disk and libvirtd gain nothing from more
	pollers  = 2
	// stopGrace is how long running steps may take to end when the agent stops. Those that take longer are given to the next
	// agent once their heartbeats are missed.
	stopGrace = 10 * time.Second
	// beatAtMost is how rarely heartbeats are really sent. The answer to one tells that the operation was cancelled.
	beatAtMost = time.Second
	// retryTemporal is how long to wait before Temporal is tried again.
	retryTemporal = time.Second
)

// work takes steps until ctx is done, whatever happens to Temporal.
func (a *agent) work(ctx context.Context, id *identity) {
	said := ""
	for ctx.Err() == nil {
		err := a.workOnce(ctx, id)
		if err == nil {
			said = ""
			continue
		}
		if ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			a.log.Warn("no steps can be taken, trying on", "temporal", a.temporalAddress(id), "error", err)
		}
		pause(ctx, retryTemporal)
	}
}

// workOnce takes steps over one connection, until ctx is done or the worker gives up.
func (a *agent) workOnce(ctx context.Context, id *identity) error {
	c, err := a.dial(ctx, client.Options{
		HostPort: a.temporalAddress(id), Namespace: id.Namespace, Identity: "agent/" + a.cfg.Name,
		Logger: log.NewStructuredLogger(a.log.With("part", "temporal")),
		// What is sent is small: making it smaller takes longer than sending it, and a compressor takes a megabyte.
		ConnectionOptions: client.ConnectionOptions{GrpcCompression: &client.GrpcCompressionNone{}},
	})
	if err != nil {
		return err
	}
	defer c.Close()
	fatal := make(chan error, 1)
	w := worker.New(c, steps.NodeQueue(id.ID), worker.Options{
		Identity:                           "agent/" + a.cfg.Name,
		DisableWorkflowWorker:              true,
		MaxConcurrentActivityExecutionSize: maxSteps,
		MaxConcurrentActivityTaskPollers:   pollers,
		MaxHeartbeatThrottleInterval:       beatAtMost,
		DefaultHeartbeatThrottleInterval:   beatAtMost,
		WorkerStopTimeout:                  stopGrace,
		OnFatalError: func(err error) {
			select {
			case fatal <- err:
			default:
			}
		},
	})
	a.register(w, id)
	if err := w.Start(); err != nil {
		return err
	}
	a.log.Info("steps are taken", "temporal", a.temporalAddress(id), "queue", steps.NodeQueue(id.ID))
	defer w.Stop()
	select {
	case err := <-fatal:
		return errors.Join(errors.New("the worker gave up"), err)
	case <-ctx.Done():
		return nil
	}
}

// register registers everything that this node can do.
func (a *agent) register(reg activities.Registry, id *identity) {
	if r, ok := a.pools.(storage.Readier); ok {
		reg = readied{reg, r}
	}
	if a.lease != nil {
		reg = leased{reg, a.lease}
	}
	compute.Register(reg, a.host, a.driver, a.pools)
	storage.RegisterNode(reg, a.host, a.pools, source{a, id}, a.disks)
	volume.Register(reg, a.host, a.driver, a.pools)
	activities.Implement(reg, a.host, steps.LookAtNode, a.look)
	activities.Implement(reg, a.host, steps.RepairNode, a.repair)
}

// source is the server as the pools see it.
type source struct {
	a  *agent
	id *identity
}

// Seed implements storage.Source.
func (s source) Seed(ctx context.Context, vm string) (api.Seed, error) {
	seed, err := s.a.api.Seed(ctx, s.id.ID, vm)
	if err != nil {
		return api.Seed{}, err
	}
	return *seed, nil
}

// TakeImage implements storage.Receiver.
func (s source) TakeImage(ctx context.Context, image string, file io.ReadSeeker, size int64, progress func(int64)) (string, error) {
	sent, err := s.a.api.SendImage(ctx, s.id.ID, image, file, size, progress)
	if err != nil {
		return "", err
	}
	return sent.SHA256, nil
}

// OpenImage implements storage.Source.
func (s source) OpenImage(ctx context.Context, image string) (io.ReadCloser, int64, error) {
	return s.a.api.OpenImage(ctx, s.id.ID, image)
}
