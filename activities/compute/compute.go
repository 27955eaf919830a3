// Package compute runs virtual machines on one node. What a hypervisor has to be able to do is the Driver interface; the
// real one is in the package libvirt below, and Fake is one that lives in memory.
package compute

import (
	"context"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Driver is a hypervisor. All methods may be called again after any interruption, at any time, from many goroutines; calls
// for one VM are carried out one after the other. Errors are problems: unavailable while the hypervisor cannot be reached,
// not_found where a VM that is needed is not there.
type Driver interface {
	Creator
	Power
	Observer
}

// Creator makes domains and removes them.
type Creator interface {
	// Create defines the domain of plan and starts it. One that runs already is left alone; one that is defined but does not
	// run is defined again and started. A domain that is somebody else's is a conflict.
	Create(ctx context.Context, plan steps.VMPlan, files DomainFiles) error
	// Remove cuts the power and undefines, with all that belongs to the domain alone. It is content if there is none, and
	// refuses (conflict) a domain that is not ours.
	Remove(ctx context.Context, vm string) error
}

// Power switches domains.
type Power interface {
	// Start powers on (or resumes) a domain that is defined and says what it was before.
	Start(ctx context.Context, vm string) (before api.Phase, err error)
	// Stop asks the guest to power off, again and again, and cuts the power when timeout is over; force cuts it at once. A VM
	// that does not run is stopped. Progress, which may be nil, is told what is going on.
	Stop(ctx context.Context, vm string, force bool, timeout time.Duration, progress func(string)) (steps.PowerResult, error)
	// Reboot asks the guest to restart, and resets it when timeout is over; force resets at once. A VM that does not run is a
	// conflict.
	Reboot(ctx context.Context, vm string, force bool, timeout time.Duration, progress func(string)) (steps.PowerResult, error)
}

// Observer tells what there is.
type Observer interface {
	// State says in which phase a domain is: running, stopped or paused.
	State(ctx context.Context, vm string) (api.Phase, error)
	// List returns every domain of the hypervisor, also those that are not ours.
	List(ctx context.Context) ([]steps.DomainFound, error)
	// Inventory says what the node can give to VMs.
	Inventory(ctx context.Context) (api.Inventory, error)
	// Events tells of changes that somebody should look at, until ctx ends, which closes the channel. An event may stand for
	// several changes, and one without a VM for any: after a lost connection nobody knows what was missed.
	Events(ctx context.Context) <-chan Event
}

// Event says that the phase of a VM may have changed.
type Event struct {
	VM string // may be empty: look at all
}

// DomainFiles are the files of a VM on this node.
type DomainFiles struct {
	Disk string // root disk, qcow2
	Seed string // read-only cloud-init seed; empty: none
}

// Timing of a guest's shutdown and restart.
const (
	// DefaultStopTimeout is how long a guest may take when nobody said.
	DefaultStopTimeout = 60 * time.Second
	// Nag is how often a guest is asked again: one that is still booting does not hear the first time.
	Nag = 3 * time.Second
)
