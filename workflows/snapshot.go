package workflows

import (
	"encoding/json"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// snapState is what the steps of an operation on a snapshot share.
type snapState struct {
	volumeState[api.SnapshotOrder]
	Taken steps.SnapshotTaken `json:"taken"`
}

func (s *snapState) on() string { return s.node() }

func startSnapshot(op steps.Op) (s snapState, err error) {
	s.volumeState, err = startVolume[api.SnapshotOrder](op)
	s.Ref.Volume = s.In.Volume // the operation is about the snapshot
	return s, err
}

func loadSnapshot(r *saga.Run, s *snapState) error { return loadVolume(r, &s.volumeState) }

// SnapshotCreate keeps a volume as it is at this moment. A guest that runs goes on.
var SnapshotCreate = saga.Table[snapState]{
	Kind: api.OpSnapshotCreate, Start: startSnapshot,
	Steps: []saga.Step[snapState]{
		{Name: "load", Where: control, Do: loadSnapshot}, // reads only
		{Name: "take", Where: node, On: (*snapState).on, Do: takeSnapshot, Undo: undoSnapshot, Detail: func(s *snapState) any { return s.Taken }},
	},
	Result: func(s *snapState) (json.RawMessage, error) { return json.Marshal(s.Taken) },
}

func (s *snapState) plan(v steps.VolumePlan, vm *steps.VMPlan) steps.SnapshotPlan {
	return steps.SnapshotPlan{Snapshot: s.In.Snapshot, Volume: v, VM: vm, Layer: s.In.Layer, Freeze: s.In.Freeze}
}

func takeSnapshot(r *saga.Run, s *snapState) error {
	taken, err := steps.TakeSnapshot.Call(r, s.Placed.Plan.Agent, s.plan(s.Placed.Plan, s.vm()))
	if err == nil && (taken.Pause > 0 || s.Taken.Pause == 0) { // else an earlier attempt has taken it, and has told
		s.Taken = taken
	}
	return err
}

func undoSnapshot(r *saga.Run, s *snapState) error {
	return s.whoever(r, func(v steps.VolumePlan, vm *steps.VMPlan) error {
		_, err := steps.UndoSnapshot.Call(r, v.Agent, s.plan(v, vm))
		return err
	})
}

// SnapshotDelete gives a snapshot up. From the middle of a merge there is no way back.
var SnapshotDelete = saga.Table[snapState]{
	Kind: api.OpSnapshotDelete, Start: startSnapshot,
	Steps: []saga.Step[snapState]{
		{Name: "load", Where: control, Do: loadSnapshot}, // reads only
		{Name: "drop", Where: node, On: (*snapState).on, Do: dropSnapshot, Commit: true},
	},
}

func dropSnapshot(r *saga.Run, s *snapState) error {
	return s.whoever(r, func(v steps.VolumePlan, vm *steps.VMPlan) error {
		_, err := steps.DropSnapshot.Call(r, v.Agent, steps.SnapshotDrop{Snapshot: s.In.Snapshot, Volume: v, VM: vm, Frozen: s.In.Frozen, Child: s.In.Layer})
		return err
	})
}

// SnapshotRevert makes a volume again what it was, with a stop of the VM that has it if that was asked for. What was written
// since is kept until the VM runs again, and then removed: the point of no return.
var SnapshotRevert = saga.Table[snapState]{
	Kind: api.OpSnapshotRevert, Start: startSnapshot,
	Steps: []saga.Step[snapState]{
		{Name: "load", Where: control, Do: loadSnapshot},                   // reads only
		{Name: "check", Where: node, On: (*snapState).on, Do: checkRevert}, // reads only: no guest is stopped for what is not there
		{Name: "stop", Where: node, On: (*snapState).on, Do: stopForRevert, Undo: startBefore},
		{Name: "revert", Where: node, On: (*snapState).on, Do: revert, Undo: undoRevert},
		{Name: "start", Where: node, On: (*snapState).on, Do: startAfter, Undo: stopAfter},
		{Name: "forget", Where: node, On: (*snapState).on, Do: forgetWritten, Commit: true},
	},
}

func stopForRevert(r *saga.Run, s *snapState) error {
	if s.In.Stop == nil {
		return nil
	}
	timeout := time.Duration(s.In.Stop.Timeout) * time.Second
	if timeout == 0 {
		timeout = defaultStopTimeout
	}
	return s.halt(r, steps.StopVM{Plan: *s.vm(), Force: s.In.Stop.Force, Timeout: timeout})
}

func (s *snapState) halt(r *saga.Run, in steps.StopVM) error {
	_, err := steps.StopDomain.Call(r, in.Plan.Agent, in)
	return err
}

func startBefore(r *saga.Run, s *snapState) error {
	if s.In.Stop == nil || s.vm() == nil {
		return nil
	}
	_, err := steps.StartDomain.Call(r, s.vm().Agent, *s.vm())
	return absent(r, *s.vm(), err)
}

func (s *snapState) back(v steps.VolumePlan, vm *steps.VMPlan) steps.VolumeRevert {
	v.Size = s.In.Size
	return steps.VolumeRevert{Snapshot: s.In.Snapshot, Volume: v, VM: vm, Frozen: s.In.Frozen, Layer: s.In.Layer}
}

func checkRevert(r *saga.Run, s *snapState) error {
	_, err := steps.CheckRevert.Call(r, s.Placed.Plan.Agent, s.back(s.Placed.Plan, s.vm()))
	return err
}

func revert(r *saga.Run, s *snapState) error {
	_, err := steps.RevertVolume.Call(r, s.Placed.Plan.Agent, s.back(s.Placed.Plan, s.vm()))
	return err
}

func undoRevert(r *saga.Run, s *snapState) error {
	return s.whoever(r, func(v steps.VolumePlan, vm *steps.VMPlan) error {
		_, err := steps.UndoRevert.Call(r, v.Agent, s.back(v, vm))
		return err
	})
}

// after is the VM as it is with the volume gone back.
func (s *snapState) after() steps.VMPlan {
	vm := *s.vm()
	if s.In.Files {
		return vm.On(s.In.Volume, s.In.Layer, s.In.Size)
	}
	if vm.Disk.Volume == s.In.Volume {
		vm.Disk.Size = s.In.Size
	}
	return vm
}

func startAfter(r *saga.Run, s *snapState) error {
	if s.In.Stop == nil {
		return nil
	}
	_, err := steps.StartDomain.Call(r, s.vm().Agent, s.after())
	return err
}

func stopAfter(r *saga.Run, s *snapState) error {
	if s.In.Stop == nil {
		return nil
	}
	return absent(r, *s.vm(), s.halt(r, steps.StopVM{Plan: s.after(), Force: true}))
}

// forgetWritten removes what the guest wrote since the last snapshot. Pools whose snapshots have names have kept it under that of the
// new layer, which they have none of.
func forgetWritten(r *saga.Run, s *snapState) error {
	return s.whoever(r, func(v steps.VolumePlan, _ *steps.VMPlan) error {
		if !s.In.Files {
			v.Layer = s.In.Layer
		}
		_, err := steps.RemoveVolume.Call(r, v.Agent, v)
		return err
	})
}
