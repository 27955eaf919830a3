package compute

import (
	"strings"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// ArrivalWait is how long Look waits for a guest that is just arriving.
const ArrivalWait = 10 * time.Second

// CanArrive refuses guests that no node, or no node of this kind, can take while they run. The arguments are the target's.
func CanArrive(l steps.Leaving, hostUUID, accel, arch string) error {
	switch {
	case l.HostUUID != "" && strings.EqualFold(l.HostUUID, hostUUID):
		return problem.New(problem.Conflict, "both agents are on the same host (same host UUID)").Because("both call themselves %s", hostUUID).
			Try("set host_uuid in libvirtd.conf of machines that were cloned from each other")
	case len(l.Blockers) > 0:
		return problem.New(problem.Conflict, "the guest cannot leave while it runs").Because("%s", strings.Join(l.Blockers, "; ")).Try("move it --cold")
	case l.Phase != api.PhaseRunning:
		return problem.New(problem.Conflict, "the guest does not run, it is %s", l.Phase)
	case l.Arch != "" && l.Arch != arch:
		return problem.New(problem.Unsupported, "the guest is %s, and this node is %s", l.Arch, arch)
	case l.Accel != "" && l.Accel != accel:
		return problem.New(problem.Unsupported, "the guest runs with %s, and this node has %s", l.Accel, accel).Try("move it --cold")
	case l.OwnCPU:
		return problem.New(problem.Unsupported, "the guest has its node's own processor, which no other node is known to have").
			Try("move it --cold, or give the vm a CPU model and restart it")
	}
	return nil
}

// NoPeer is the problem of a node that other nodes' hypervisors cannot reach.
func NoPeer() *problem.Problem {
	return problem.New(problem.Unsupported, "this node takes no guests that run").Because("its agent does not know at which address other nodes reach its libvirt").
		Try("let libvirtd listen, and start the agent with that address; or move the vm --cold")
}

// AlreadyHere is the problem of a guest that should arrive where it is.
func AlreadyHere(vm string) *problem.Problem {
	return problem.New(problem.Conflict, "there is a domain of vm %s here already, and it is not off", vm).Try("run `gnext audit` to see what is where")
}

// PoweredOff is the problem of a guest that cannot be moved any more.
func PoweredOff(name string) *problem.Problem {
	return problem.New(problem.Conflict, "vm %s cannot be moved while it runs: the guest was powered off meanwhile", name).Try("try again: a stopped vm is moved cold")
}

// PausedMeanwhile is the problem of a guest that is paused though nothing moves it.
func PausedMeanwhile(name string) *problem.Problem {
	return problem.New(problem.Conflict, "vm %s cannot be moved: the guest is paused", name).Because("it was paused meanwhile, or an earlier move was cut off at its very end")
}

// InHalves is the problem of a guest whose memory is partly somewhere else for ever.
func InHalves(name string) *problem.Problem {
	return problem.New(problem.Conflict, "vm %s cannot go on: a move with post-copy was cut off", name).Because("part of its memory was at the target, and part was not")
}

// Left is the answer of a process that leaves a move to itself.
func Left(name string) *problem.Problem {
	return problem.New(problem.Unavailable, "the move of vm %s goes on without this agent, which is stopping", name)
}

// NotConverging is the problem of a guest that changes its memory faster (dirty) than it can be sent (rate), both in bytes per
// second. Throttle is by how many percent it was slowed down already.
func NotConverging(name string, dirty, rate int64, throttle int) *problem.Problem {
	p := problem.New(problem.Conflict, "the move of vm %s was given up: it did not converge in time", name).
		Because("the guest changes memory faster (%d MiB/s) than it can be sent (%d MiB/s)", dirty/api.MiB, rate/api.MiB)
	if dirty < rate {
		p.Why = "what is left could not be sent within the downtime that is allowed"
	}
	if throttle > 0 {
		return p.Try("its processors were slowed down by %d %% already; try --post-copy or more bandwidth", throttle)
	}
	return p.Try("try --auto-converge, --post-copy or more bandwidth")
}

// NoModel is the problem of a CPU model that a node cannot give to guests; there are the ones that it can.
func NoModel(model string, there []string) *problem.Problem {
	p := problem.New(problem.Unsupported, "this node cannot give CPU model %s to a guest", model)
	if len(there) > 0 {
		return p.Try("use one of %s, or a node that has it", strings.Join(there[:min(len(there), 20)], ", "))
	}
	return p.Try("use another model or another node")
}
