package node

import (
	"context"
	"time"

	"go.temporal.io/sdk/activity"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/workflows/steps"
)

// readied is a registry in which steps that let a hypervisor open disks first see that the pools of those are there. After a
// reboot nothing is mounted.
type readied struct {
	activities.Registry
	pools storage.Readier
}

// RegisterActivityWithOptions implements activities.Registry.
func (r readied) RegisterActivityWithOptions(do any, o activity.RegisterOptions) {
	plan := func(p steps.VMPlan) []steps.PoolOnNode { return poolsOf(p) }
	switch o.Name {
	case steps.CreateDomain.Name:
		do = afterReady(r.pools, steps.CreateDomain, do, plan)
	case steps.StartDomain.Name:
		do = afterReady(r.pools, steps.StartDomain, do, plan)
	case steps.DefineDomain.Name: // what a file system can do goes into the definition
		do = afterReady(r.pools, steps.DefineDomain, do, plan)
	case steps.CheckIncoming.Name:
		do = afterReady(r.pools, steps.CheckIncoming, do, func(i steps.IncomingRequest) []steps.PoolOnNode { return poolsOf(i.Plan) })
	case steps.SwitchCheckpoint.Name:
		do = afterReady(r.pools, steps.SwitchCheckpoint, do, func(c steps.CheckpointSwitch) []steps.PoolOnNode { return poolsOf(c.VM) })
	case steps.UndoSave.Name:
		do = afterReady(r.pools, steps.UndoSave, do, func(g steps.GuestSave) []steps.PoolOnNode { return poolsOf(g.VM) })
	case steps.AttachDisk.Name:
		do = afterReady(r.pools, steps.AttachDisk, do, func(d steps.DiskChange) []steps.PoolOnNode { return []steps.PoolOnNode{d.Disk.Pool} })
	case steps.MoveSeed.Name:
		do = afterReady(r.pools, steps.MoveSeed, do, func(s steps.SeedMove) []steps.PoolOnNode { return []steps.PoolOnNode{s.To.Disk.OnNode()} })
	case steps.CopyVolume.Name: // a guest may get its disk there
		do = afterReady(r.pools, steps.CopyVolume, do, func(v steps.VolumeCopy) []steps.PoolOnNode { return []steps.PoolOnNode{v.To.Pool} })
	}
	r.Registry.RegisterActivityWithOptions(do, o)
}

// poolsOf returns the pools that a VM has disks in.
func poolsOf(p steps.VMPlan) []steps.PoolOnNode {
	out := []steps.PoolOnNode{p.Disk.OnNode()}
	for _, d := range p.Data {
		out = append(out, d.Pool)
	}
	return out
}

// afterReady puts the readiness of pools before the implementation of a step.
func afterReady[In, Out any](pools storage.Readier, step steps.Step[In, Out], do any, of func(In) []steps.PoolOnNode) any {
	run := implementation(step, do)
	return func(ctx context.Context, env steps.Envelope[In]) (out Out, err error) {
		for _, p := range of(env.In) {
			if p.Pool == "" {
				continue
			}
			if err := pools.Ready(ctx, p); err != nil {
				return out, steps.ToActivity(err)
			}
		}
		return run(ctx, env)
	}
}

// keepTimeout is how long it may take to take away what a node does not need any more.
const keepTimeout = 5 * time.Second

// keep takes away what belongs to pools that this node does not have any more.
func (r *reporter) keep(ctx context.Context) {
	k, ok := r.agent.pools.(storage.Keeper)
	if !ok {
		return
	}
	if r.keeping != nil {
		select {
		case <-r.keeping:
		default:
			return // the last time has not come back: a server is away
		}
	}
	pools := make([]steps.PoolOnNode, 0, len(r.pools))
	for _, p := range r.pools {
		pools = append(pools, p)
	}
	done := make(chan struct{})
	r.keeping = done
	result := make(chan error, 1)
	go func() {
		defer close(done)
		result <- k.Keep(ctx, pools)
	}()
	select {
	case err := <-result:
		r.say("pools that are not this node's any more", err)
	case <-time.After(keepTimeout):
	}
}
