package compute

import (
	"context"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// SeedDisk is what the seed of a VM goes by where disks are known by their volume's ID. It can be moved, settled and placed.
const SeedDisk = "seed"

// Disks changes the disks of domains, whether they run or not. Disks are known by their volume's ID, which is the beginning
// of their serial number. A VM that has no domain is not_found.
type Disks interface {
	// AttachDisk gives the domain a disk, now and for later starts. The same disk once more is content; another one of its
	// device name is a conflict.
	AttachDisk(ctx context.Context, vm string, disk steps.DataDisk, source DiskSource) error
	// DetachDisk takes a disk from the domain and returns when a guest that runs has let it go, which it may refuse to do for as
	// long as it likes: in_use when ctx ends. It is content if there is no such disk.
	DetachDisk(ctx context.Context, vm, volume string) error
	// ResizeDisk gives a disk of a guest that runs, and what is behind it, a new size. Running is false, and nothing has
	// happened, if no guest has it open.
	ResizeDisk(ctx context.Context, vm, volume string, size int64) (running bool, err error)
	// TuneDisk limits a disk.
	TuneDisk(ctx context.Context, vm, volume string, qos api.VolumeQoS) error
	// SwitchDisk has a disk be written to another layer, which shows what the disk does. Running is false if no
	// guest has the disk open: then the domain is started with it. A disk that is on the layer already is content. A guest that has gone
	// over in an earlier attempt without the hypervisor's management knowing is brought back first.
	SwitchDisk(ctx context.Context, vm, volume string, l LayerSwitch) (done Switched, err error)
	// PlaceDisk has a domain that does not run be started with another layer, whatever that shows. Running is true, and nothing
	// has happened, if a guest has the disk open.
	PlaceDisk(ctx context.Context, vm, volume string, to DiskSource) (running bool, err error)
	// Redirect has a domain that does not run be started with the monitors and the user by which a Ceph pool is reached now, which is
	// known by the image's secret. It is content with a domain that runs, or has no disk there.
	Redirect(ctx context.Context, vm string, now RBDImage) error
	// MergeDisk has the hypervisor of a guest that runs bring a layer of a disk into the one below, while the guest goes on. A
	// merge that is under way, whoever began it, is joined. Running is false, and nothing has happened, if no guest has either
	// of them open; otherwise Top is not used any more, and need not have been. Tell may be nil.
	MergeDisk(ctx context.Context, vm, volume string, m Merge, tell func(api.Progress)) (running bool, err error)
	// PullDisk has the hypervisor of a guest that runs bring all that a disk shows of the layers below into the one that it is written
	// to, while the guest goes on. A pull that is under way, whoever began it, is joined. Running is false, and nothing has happened, if
	// no guest has the disk open; otherwise that layer stands alone. Tell may be nil.
	PullDisk(ctx context.Context, vm, volume string, tell func(api.Progress)) (running bool, err error)
	// StopPull ends a pull where it is: the disk shows the same as ever. None is fine.
	StopPull(ctx context.Context, vm, volume string) error
	// MoveDisk has the hypervisor of a guest that runs copy a disk to another place, while the guest goes on and writes, and then has
	// the guest go on with the copy. The place is there, with the size of the disk, and all of it is written. A copy that is under
	// way, whoever began it, is joined. If no guest has the disk open nothing happens; Moved.There tells what it is started with.
	// Rate is bytes per second at most; 0: no limit. Tell may be nil.
	MoveDisk(ctx context.Context, vm, volume string, to DiskSource, rate int64, tell func(api.Progress)) (Moved, error)
	// MoveDiskStill is MoveDisk, but a guest that has got the copy stands still, and has written nothing to it, until LetGoOn: somebody is to
	// note before that the copy counts. Nothing else lets it go on.
	MoveDiskStill(ctx context.Context, vm, volume string, to DiskSource, rate int64, tell func(api.Progress)) (Moved, error)
	// LetGoOn has a guest go on that was left still, and says for how long it was. One that was not, or does not run, is content.
	LetGoOn(ctx context.Context, vm string) (pause time.Duration, err error)
	// SettleDisk ends a copy that is under way, and reports whether the VM has the disk at the other place. If so, it has it there at
	// its next start, too, and may have written to it, unless it was left still, which it stays.
	SettleDisk(ctx context.Context, vm, volume string, to DiskSource) (there bool, err error)
	// Resting runs do while the file systems of the guest are at rest, or at least not going on to be written. Rested tells
	// whether they were; a guest that cannot, or does not run, is content.
	Resting(ctx context.Context, vm string, do func() error) (rested bool, pause time.Duration, err error)
	// Freezing runs do while the file systems of the guest are at rest, if that is wanted and it can bring them to that; else while it
	// goes on. Unlike Resting it never pauses the guest: it is for what keeps all of a disk at one moment by itself.
	Freezing(ctx context.Context, vm string, freeze bool, do func() error) (done Switched, err error)
}

// LayerSwitch is a disk that is to be written to another layer.
type LayerSwitch struct {
	To     DiskSource
	Freeze bool // the guest is asked to bring its file systems to rest meanwhile
	// Fresh makes the layer, anew if it is there, for a guest that runs and does not have it open: in an earlier attempt one may have
	// written to it, before that was brought back. Nil: it is there, as it was made.
	Fresh func() error
}

// Switched is how a disk got another layer.
type Switched struct {
	Running bool
	Frozen  bool          // the guest's file systems were at rest
	Pause   time.Duration // how long the guest could not write
}

// Moved is what became of a disk that was to be moved.
type Moved struct {
	Running bool          // a guest has it open
	There   bool          // the VM has it at the other place
	Pause   time.Duration // how long the guest could not run; 0: it was there already
}

// Merge is two layers of a disk that become one.
type Merge struct {
	Top   DiskSource // goes
	Below DiskSource // stays, and then shows what Top does
	// Retired is called if Top is the layer that is written to, at the moment from which Below is: the guest waits for it. From
	// then on nobody may take Top for what the disk shows.
	Retired func() error
}
