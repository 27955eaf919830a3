// Package rbd is the driver of pools of block devices in a Ceph cluster, through librbd. It is only in programs that are built with
// the tags ceph and pacific, on a machine with librbd's headers: others have no such driver, and say so.
//
// In the Ceph pool of a pool there are
//
//	object nextstack-pool   which pool it is
//	image disk-ID           volumes; root disks are copy-on-write children of
//	image image-SHA256      copies of images, raw; whole once they have a snapshot "base", which is protected
//	image seed-VM           cloud-init seeds
//	image memory-ID         the memory of a guest, as libvirt writes it into a file
//
// Nothing but these names is ever touched.
package rbd

import (
	"context"
	"log/slog"
	"time"

	"github.com/nextstack/nextstack/activities/compute"
)

// Config is what the driver needs to know.
type Config struct {
	// Key fetches the key of the pool's Ceph user, by the pool's ID.
	Key func(ctx context.Context, pool string) (string, error)
	// NewKey fetches the key that an operation wants a pool to be tried with, by their IDs; nil: there are none.
	NewKey func(ctx context.Context, pool, operation string) (string, error)
	// Secrets is the hypervisor, which needs the keys, too; nil: there is none.
	Secrets compute.Secrets
	// TempDir holds images while they are brought into a pool, first as they come and then raw, and copies of memories while guests are
	// made to go on from them. What is in it is removed.
	TempDir string
	// MemoryDir holds memories that the hypervisor writes, until the pool has them or nobody needs them any more. It must be where
	// what is written survives the end of the node. Empty: guests have no memories in the pool.
	MemoryDir string
	// NoteDir is for what is to outlive a reboot: which pools this node may have something in. Empty: all that it is asked about.
	NoteDir string
	Log     *slog.Logger // nil: the default
	// OpTimeout is how long the cluster may take for one thing; 0: 15 s.
	OpTimeout time.Duration
	// WatchPatience is how long to wait for a device to be let go of that is to be removed: the cluster takes 30 s to notice that
	// whoever had it open has died. 0: 40 s.
	WatchPatience time.Duration

	// Step is told of moments in the middle of things, at which tests want to die; nil but in tests.
	Step func(at string)
}
