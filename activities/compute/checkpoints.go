package compute

import (
	"context"
	"slices"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Checkpoints takes the memory of guests into files, and has guests go on from there. What takes long is the hypervisor's work,
// which goes on whatever becomes of the caller; who comes next waits for its end. A VM that has no domain is not_found.
type Checkpoints interface {
	// TakeCheckpoint writes the memory of a guest that runs to a file, and has its disks be written to other layers, which show what
	// the disks do: both as of one moment, and the guest goes on. Disks that are on those layers already
	// mean that it was done. Tell may be nil.
	TakeCheckpoint(ctx context.Context, vm string, c Checkpoint, tell func(api.Progress)) (pause time.Duration, err error)
	// TakeStill writes the memory of a guest that runs to a file, and has it stand still while its disks are kept by somebody else; those
	// that have layers are written to others from that moment on. Then it goes on. It knows nothing of an earlier attempt, but lets the
	// guest go on before, that such a one has left still; disks that such a one has left on those layers are a conflict, until a merge
	// has brought them back. Tell may be nil.
	TakeStill(ctx context.Context, vm string, s StillCheckpoint, tell func(api.Progress)) (pause time.Duration, err error)
	// EndStill breaks off what TakeStill has begun, if it has begun anything, and returns when it is over and the guest goes on. It is
	// content if there is no domain.
	EndStill(ctx context.Context, vm string) error
	// EndCheckpoint breaks off what the hypervisor does to the memory of a guest, if it does anything, and returns when it is over:
	// then the guest goes on as before, unless it was too late. Layers that it was given and is not on, of disks that may be nil, it
	// has closed then. It is content if there is no domain.
	EndCheckpoint(ctx context.Context, vm string, disks []SwitchedDisk) error
	// SaveGuest writes the memory of a guest to a file and ends the guest; all it has written to its disks is there. One that does
	// not run is content. Tell may be nil.
	SaveGuest(ctx context.Context, vm, memory string, tell func(api.Progress)) error
	// DropGuest ends a guest that has any of its disks on those layers. One that has others goes on: it is content.
	DropGuest(ctx context.Context, vm string, disks []SwitchedDisk) error
	// DropRestored ends a guest that has gone on as this, as Restore.As calls it. One that has not goes on: it is content.
	DropRestored(ctx context.Context, vm, as string) error
	// MemoryWhole reports whether a file has the whole memory of a guest.
	MemoryWhole(ctx context.Context, memory string) (bool, error)
	// RestoreGuest has a guest go on from a memory. One that runs, on those very disks, is content, and on others a conflict, and so it is
	// with one that has gone on as this, or not, if it is called anything; one that is paused has not gone on yet, and is ended. Tell may be nil.
	RestoreGuest(ctx context.Context, r Restore, tell func(api.Progress)) error
}

// Checkpoint is where the parts of a guest are kept.
type Checkpoint struct {
	Memory string // path of the file that is written
	Disks  []SwitchedDisk
	Fresh  func() error // makes their layers, as that of LayerSwitch does; nil: they are there
}

// StillCheckpoint is where the memory of a guest is kept, and who keeps its disks.
type StillCheckpoint struct {
	Memory  string         // path of the file that is written
	Volumes []string       // IDs of all that it writes to, but for those of Disks
	Disks   []SwitchedDisk // and the layers that they are written to afterwards; may be nil
	Fresh   func() error   // makes those layers; nil: they are there
	// Keep is called while the guest stands still with its memory written; it keeps the disks as they are.
	Keep func() error
	// Kept is called after that, if the guest has stood still all the time. What has come before is worth nothing without it.
	Kept func() error
}

// SwitchedDisk is a disk and the layer that it is to be written to.
type SwitchedDisk struct {
	Volume string
	To     DiskSource
}

// Restore is a guest that is to go on from a memory.
type Restore struct {
	Plan   steps.VMPlan
	Files  DomainFiles // that it goes on with, instead of those that it had
	Memory string      // path
	// As is what this going on is called, by which the guest is known if its disks do not tell; empty: they do.
	As string
	// Fresh makes the disks what they were at the moment of the memory, before anybody has them open; nil: they are.
	Fresh func() error
	// Used is called when the guest is there, and has not gone on yet; nil: nobody wants to know. If it fails the guest does not.
	Used func() error
}

// Disks returns what a guest is to have under its volumes.
func (r Restore) Disks() []SwitchedDisk {
	out := []SwitchedDisk{{r.Plan.Disk.Volume, r.Files.Disk}}
	for i, d := range r.Plan.Data {
		if i < len(r.Files.Data) {
			out = append(out, SwitchedDisk{d.Volume, r.Files.Data[i]})
		}
	}
	return out
}

// HalfSwitched is the problem of a guest some of whose disks are written to other layers, and some not: nothing that anybody does
// to it leads there.
func HalfSwitched(vm string) *problem.Problem {
	return problem.New(problem.Conflict, "vm %s has some of its disks on other layers", vm).Because("somebody has switched them by hand").Try("run gnext audit")
}

// StillOn is the problem of a guest that should go over to layers for a checkpoint, and is on some of them.
func StillOn(vm string) *problem.Problem {
	return problem.New(problem.Conflict, "vm %s has some of its disks on the layers of the checkpoint already", vm).Because("what an earlier attempt has left was not brought back").Try("run gnext audit")
}

// RunsElsewise is the problem of a guest that should go on from a memory, and runs already.
func RunsElsewise(name string) *problem.Problem {
	return problem.New(problem.Conflict, "vm %s cannot go on from a checkpoint", name).Because("it runs, and has its disks open").Try("stop it first")
}

// OtherDisks is the problem of a memory that knows other disks than the VM has.
func OtherDisks(vm string, has, kept []string) *problem.Problem {
	slices.Sort(has)
	slices.Sort(kept)
	return problem.New(problem.Conflict, "vm %s cannot go on from that memory", vm).Because("it has the disks %v, and had %v then", has, kept).Try("attach and detach volumes so that it has the same")
}

// WokenMeanwhile is the problem of a guest that should have stood still.
func WokenMeanwhile(vm string) *problem.Problem {
	return problem.New(problem.Conflict, "no checkpoint of vm %s could be taken", vm).Because("somebody has let it go on while it was to stand still").Try("take it again")
}
