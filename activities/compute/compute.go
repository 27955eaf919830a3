// Package compute runs virtual machines on one node. What a hypervisor has to be able to do is the Driver interface; the
// real one is in the package libvirt below, and Fake is one that lives in memory.
package compute

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Driver is a hypervisor. All methods may be called again after any interruption, at any time, from many goroutines; calls
// for one VM are carried out one after the other, but for those of Migrator that may come while a guest is on its way. Errors
// are problems: unavailable while the hypervisor cannot be reached, not_found where a VM that is needed is not there.
type Driver interface {
	Creator
	Power
	Observer
	Migrator
	Disks
	Checkpoints
	Secrets
}

// Creator makes domains and removes them.
type Creator interface {
	// Create defines the domain of plan and starts it. One that runs already is left alone; one that is defined but does not
	// run is defined again and started. A domain that is somebody else's is a conflict.
	Create(ctx context.Context, plan steps.VMPlan, files DomainFiles) error
	// Define defines the domain without starting it. One that is defined but does not run is defined again; one that runs is
	// left alone.
	Define(ctx context.Context, plan steps.VMPlan, files DomainFiles) error
	// MarkHA writes into the domain whether it is to be stopped when its node's lease ends. It is content if there is none.
	MarkHA(ctx context.Context, vm string, ha bool) error
	// Remove cuts the power and undefines, with all that belongs to the domain alone. It is content if there is none, and
	// refuses (conflict) a domain that is not ours. A guest that is just arriving is turned away.
	Remove(ctx context.Context, vm string) error
}

// Power switches domains.
type Power interface {
	// Start powers on (or resumes) a domain that is defined and says what it was before. One that can never go on, because its
	// memory is partly lost, is powered off first.
	Start(ctx context.Context, vm string) (before api.Phase, err error)
	// Stop asks the guest to power off, again and again, and cuts the power when timeout is over; force cuts it at once. A VM
	// that does not run is stopped. Progress, which may be nil, is told what is going on.
	Stop(ctx context.Context, vm string, force bool, timeout time.Duration, progress func(string)) (steps.PowerResult, error)
	// Reboot asks the guest to restart, and resets it when timeout is over; force resets at once. A VM that does not run is a
	// conflict.
	Reboot(ctx context.Context, vm string, force bool, timeout time.Duration, progress func(string)) (steps.PowerResult, error)
}

// Migrator moves guests between nodes while they run.
type Migrator interface {
	// Describe says what a guest needs of its next node. It changes nothing.
	Describe(ctx context.Context, vm string) (steps.Leaving, error)
	// CheckIncoming says how this node can take a guest, or why not: conflict or unsupported. It changes nothing. Files are
	// the guest's here; when its disk is to be copied, they need not be there yet.
	CheckIncoming(ctx context.Context, req steps.IncomingRequest, files DomainFiles) (steps.Incoming, error)
	// Migrate moves the guest away and returns when it is not here any more. A move that is under way already, whoever began
	// it, is joined; a guest that has left is content, and gives no figures. When ctx ends the move is ended, and Migrate
	// returns when it is over: cancelled, or nil if the guest was faster; but when ctx ends because of ErrLeave, the move
	// goes on by itself. One that does not converge in time is ended: a conflict. Tell, which may be nil, is told every second
	// how far the move is.
	Migrate(ctx context.Context, m steps.MoveDomain, tell func(api.Progress)) (steps.Moved, error)
	// Settle ends a move away from here that is under way, waits until it is over, and says what is left here. It does not
	// wait for Migrate, nor for anything else that works on the VM.
	Settle(ctx context.Context, vm string) (steps.DomainState, error)
	// Look says what is here of a VM. While a guest is just arriving, it waits a moment for it.
	Look(ctx context.Context, vm string) (steps.DomainState, error)
}

// ErrLeave is the cause with which the context of Migrate ends when its process does: whoever comes next joins the move.
var ErrLeave = errors.New("the move goes on without this process")

// Defaults of live moves, for those who did not say.
const (
	DefaultMaxDowntime = 300 * time.Millisecond
	DefaultMoveTimeout = time.Hour
)

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

// DomainFiles are the disks of a VM as this node's hypervisor opens them.
type DomainFiles struct {
	Disk DiskSource   // root disk
	Seed DiskSource   // read-only cloud-init seed; none if it is not set
	Data []DiskSource // of the plan's data disks, in their order
}

// All returns the disks that there are.
func (f DomainFiles) All() []DiskSource {
	return slices.DeleteFunc(append([]DiskSource{f.Disk, f.Seed}, f.Data...), func(s DiskSource) bool { return !s.IsSet() })
}

// DiskSource is where a hypervisor finds a disk: a file, or an image of a storage cluster.
type DiskSource struct {
	Format string    // api.FormatQCOW2 or api.FormatRaw; it is never guessed
	File   string    // absolute path
	RBD    *RBDImage // nil: it is a file
}

// RBDImage is a block device of a Ceph cluster.
type RBDImage struct {
	Monitors []string // HOST:PORT
	Pool     string
	Image    string
	User     string // of cephx, without "client."
	Secret   string // UUID under which libvirt knows the user's key
}

// IsSet reports whether there is a disk.
func (s DiskSource) IsSet() bool { return s.File != "" || s.RBD != nil }

// Same reports whether two are one and the same, however they are opened.
func (s DiskSource) Same(o DiskSource) bool {
	if s.RBD == nil || o.RBD == nil {
		return s.IsSet() && s.RBD == o.RBD && s.File == o.File
	}
	return s.RBD.Pool == o.RBD.Pool && s.RBD.Image == o.RBD.Image && s.RBD.Secret == o.RBD.Secret
}

// String implements fmt.Stringer.
func (s DiskSource) String() string {
	if s.RBD != nil {
		return "rbd:" + s.RBD.Pool + "/" + s.RBD.Image
	}
	return s.File
}

// QCOW2 is a qcow2 file.
func QCOW2(path string) DiskSource { return DiskSource{Format: api.FormatQCOW2, File: path} }

// Raw is a file that is the disk byte by byte.
func Raw(path string) DiskSource { return DiskSource{Format: api.FormatRaw, File: path} }

// Timing of a guest's shutdown and restart.
const (
	// DefaultStopTimeout is how long a guest may take when nobody said.
	DefaultStopTimeout = 60 * time.Second
	// Nag is how often a guest is asked again: one that is still booting does not hear the first time.
	Nag = 3 * time.Second
)
