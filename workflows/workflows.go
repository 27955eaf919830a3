// Package workflows holds the operations: one step table each, at the top of its file. A workflow decides what is done in
// which order and what undoes it; everything it does, it asks for through workflows/steps.
package workflows

import (
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Where a step runs, as people read it.
const (
	control = "control"
	node    = "node"
)

// All returns every operation.
func All() []saga.Definition {
	return append([]saga.Definition{
		VMCreate, VMDelete, VMStart, VMStop, VMReboot, VMUpdate, VMMigrate, VMRecover, GroupCreate, GroupDelete,
		HostUpdate, HostDrain, HostBalance, HostRecover, HostDelete,
		ImageImport, ImageCapture, ImageUpdate, ImageExport, ImageDelete, PoolAdd, PoolUpdate, PoolDelete,
		VolumeCreate, VolumeUpdate, VolumeAttach, VolumeDetach, VolumeResize, VolumeFlatten, VolumeMigrate, VolumeExport, VolumeDelete, VolumeRestore, VolumePurge,
		SnapshotCreate, SnapshotDelete, SnapshotRevert,
		CheckpointCreate, CheckpointDelete, CheckpointRevert,
		Audit, Noop,
	}, network()...)
}

// Noop does nothing, in one step: it is there to practise crashes on and to measure what an operation costs by itself.
var Noop = saga.Table[steps.Nothing]{
	Kind:  api.OpNoop,
	Start: func(steps.Op) (steps.Nothing, error) { return steps.Nothing{}, nil },
	Steps: []saga.Step[steps.Nothing]{{Name: "noop", Where: control, Do: func(r *saga.Run, _ *steps.Nothing) error {
		_, err := steps.Noop.Call(r, "", steps.Nothing{})
		return err
	}}}, // nothing is done, so there is nothing to undo
}
