package workflows

import (
	"encoding/json"
	"errors"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// checkpointState is what the steps of an operation on a checkpoint share.
type checkpointState struct {
	Project string                `json:"project"`
	In      api.CheckpointOrder   `json:"in"`
	VM      steps.Placement       `json:"vm"`
	Disks   []steps.VolumePlaced  `json:"disks"` // as In.Disks
	Taken   steps.CheckpointTaken `json:"taken"`
}

func (s *checkpointState) node() string { return s.VM.Plan.AgentName }

func startCheckpoint(op steps.Op) (s checkpointState, err error) {
	s.Project = op.Target.Project
	err = json.Unmarshal(op.Input, &s.In)
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

func loadCheckpoint(r *saga.Run, s *checkpointState) (err error) {
	if s.VM, err = steps.LoadVM.Call(r, "", steps.VMRef{Project: s.Project, VM: s.In.VM}); err != nil {
		return err
	}
	s.Disks = make([]steps.VolumePlaced, len(s.In.Disks))
	for i, d := range s.In.Disks {
		if s.Disks[i], err = steps.LoadVolume.Call(r, "", steps.VolumeRef{Project: s.Project, Volume: d.Volume}); err != nil {
			return err
		}
	}
	return nil
}

// CheckpointCreate keeps a VM, with its memory and its disks, as it is at a moment. The guest goes on.
var CheckpointCreate = saga.Table[checkpointState]{
	Kind: api.OpCheckpointCreate, Start: startCheckpoint,
	Steps: []saga.Step[checkpointState]{
		{Name: "load", Where: control, Do: loadCheckpoint}, // reads only
		{Name: "take", Where: node, On: (*checkpointState).node, Do: takeCheckpoint, Undo: undoCheckpoint, Detail: func(s *checkpointState) any { return s.Taken }},
	},
	Result: func(s *checkpointState) (json.RawMessage, error) { return json.Marshal(s.Taken) },
}

func (s *checkpointState) plan() steps.CheckpointPlan {
	out := steps.CheckpointPlan{Checkpoint: s.In.Checkpoint, VM: s.VM.Plan}
	for i, d := range s.In.Disks {
		out.Disks = append(out.Disks, steps.SnapshotPlan{Snapshot: d.Snapshot, Volume: s.Disks[i].Plan, Layer: d.Layer})
	}
	return out
}

func takeCheckpoint(r *saga.Run, s *checkpointState) error {
	taken, err := steps.TakeCheckpoint.Call(r, s.VM.Plan.Agent, s.plan())
	if err == nil {
		if taken.Pause == 0 { // an earlier attempt has taken it, and may have told
			taken.Pause = s.Taken.Pause
		}
		s.Taken = taken
	}
	return err
}

func undoCheckpoint(r *saga.Run, s *checkpointState) error {
	plan := s.plan()
	return s.whoever(r, func(agent string, lost bool) error {
		if !lost {
			_, err := steps.UndoCheckpoint.Call(r, agent, plan)
			return err
		}
		for _, d := range plan.Disks {
			d.Volume.Agent = agent
			if _, err := steps.UndoSnapshot.Call(r, agent, d); err != nil {
				return err
			}
		}
		_, err := steps.RemoveMemory.Call(r, agent, s.memory(s.In.Checkpoint))
		return err
	})
}

// whoever has something done by the VM's node, or by another one that sees all its disks.
func (s *checkpointState) whoever(r *saga.Run, do func(agent string, lost bool) error) error {
	pools := make([]string, len(s.Disks))
	for i, v := range s.Disks {
		pools[i] = v.Plan.Pool.Pool
	}
	return whoever(r, s.VM.Plan.Agent, s.VM.Plan, s.shared(), do, pools...)
}

// whoever has something done by an agent or, if the VM's node is proven not to run the guest any more, by another one that sees the same
// disks: then the guest is lost with its node, and must not be waited for, since it may be started elsewhere. What others do not
// see, not being shared, waits for the node. Pools are by ID, and more than that of the VM's root disk.
func whoever(r *saga.Run, agent string, vm steps.VMPlan, shared bool, do func(agent string, lost bool) error, pools ...string) error {
	err := do(agent, false)
	if !errors.Is(err, steps.ErrNeverStarted) || !shared || !off(r, vm) {
		return err
	}
	other, err := otherOfPool(r, vm, pools...)
	if err != nil {
		return err
	}
	return do(other.Agent, true)
}

// shared reports whether all that the VM has is in shared pools.
func (s *checkpointState) shared() bool {
	return s.VM.Plan.Disk.Shared && !slices.ContainsFunc(s.Disks, func(v steps.VolumePlaced) bool { return !v.Plan.Pool.Shared })
}

// CheckpointDelete gives a checkpoint up. Without its memory it is none any more.
var CheckpointDelete = saga.Table[checkpointState]{
	Kind: api.OpCheckpointDelete, Start: startCheckpoint,
	Steps: []saga.Step[checkpointState]{
		{Name: "load", Where: control, Do: loadCheckpoint}, // reads only
		{Name: "forget", Where: node, On: (*checkpointState).node, Do: forgetMemory, Commit: true},
		{Name: "drop", Where: node, On: (*checkpointState).node, Do: dropDisks}, // past the point of no return
	},
}

func (s *checkpointState) memory(id string) steps.MemoryFile {
	return steps.MemoryFile{Memory: id, Pool: s.VM.Plan.Disk.OnNode()}
}

func forgetMemory(r *saga.Run, s *checkpointState) error {
	return whoever(r, s.VM.Plan.Agent, s.VM.Plan, s.shared(), func(agent string, _ bool) error {
		_, err := steps.RemoveMemory.Call(r, agent, s.memory(s.In.Checkpoint))
		return err
	})
}

// dropDisks gives up what the checkpoint keeps of each volume, whoever has that now.
func dropDisks(r *saga.Run, s *checkpointState) error {
	for i, d := range s.In.Disks {
		v := &s.Disks[i]
		in := steps.SnapshotDrop{Snapshot: d.Snapshot, Volume: v.Plan, Frozen: d.Frozen, Child: d.Layer}
		var vm steps.VMPlan
		if len(v.VMs) > 0 {
			vm = v.VMs[0].Plan
			in.VM = &v.VMs[0].Plan
		}
		vm.Disk.Pool = v.Plan.Pool.Pool // it is this volume that another node must see
		err := whoever(r, v.Plan.Agent, vm, in.VM != nil && v.Plan.Pool.Shared, func(agent string, lost bool) error {
			if lost {
				in.VM = nil
			}
			_, err := steps.DropSnapshot.Call(r, agent, in)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// CheckpointRevert brings a VM back to the moment of a checkpoint. What it is now, its memory included, is kept until it has gone on
// from then, and then removed: the point of no return.
var CheckpointRevert = saga.Table[checkpointState]{
	Kind: api.OpCheckpointRevert, Start: startCheckpoint,
	Steps: []saga.Step[checkpointState]{
		{Name: "load", Where: control, Do: loadCheckpoint},                             // reads only
		{Name: "check", Where: node, On: (*checkpointState).node, Do: checkCheckpoint}, // reads only
		{Name: "save", Where: node, On: (*checkpointState).node, Do: saveGuest, Undo: undoSave},
		{Name: "switch", Where: node, On: (*checkpointState).node, Do: switchCheckpoint, Undo: undoSwitch},
		{Name: "forget", Where: node, On: (*checkpointState).node, Do: forgetNow, Commit: true},
	},
}

func (s *checkpointState) saved() steps.GuestSave {
	return steps.GuestSave{Memory: s.In.Save, VM: s.VM.Plan}
}

func saveGuest(r *saga.Run, s *checkpointState) error {
	if s.In.Save == "" {
		return nil
	}
	_, err := steps.SaveGuest.Call(r, s.VM.Plan.Agent, s.saved())
	return err
}

// undoSave: a guest that ran on a node that is proven not to run it any more is lost with its node, as if nobody had touched it.
func undoSave(r *saga.Run, s *checkpointState) error {
	if s.In.Save == "" {
		return nil
	}
	return s.whoever(r, func(agent string, lost bool) error {
		if lost {
			_, err := steps.RemoveMemory.Call(r, agent, s.memory(s.In.Save))
			return err
		}
		_, err := steps.UndoSave.Call(r, agent, s.saved())
		return err
	})
}

func (s *checkpointState) back() steps.CheckpointSwitch {
	out := steps.CheckpointSwitch{Checkpoint: s.In.Checkpoint, VM: s.VM.Plan}
	for i, d := range s.In.Disks {
		v := s.Disks[i].Plan
		v.Size = d.Size
		out.Disks = append(out.Disks, steps.VolumeRevert{Snapshot: d.Snapshot, Volume: v, Frozen: d.Frozen, Layer: d.Layer})
	}
	return out
}

// checkCheckpoint fails while nothing has happened to the guest, if what the checkpoint keeps of a disk is lost.
func checkCheckpoint(r *saga.Run, s *checkpointState) error {
	for _, d := range s.back().Disks {
		if _, err := steps.CheckRevert.Call(r, s.VM.Plan.Agent, d); err != nil {
			return err
		}
	}
	return nil
}

func switchCheckpoint(r *saga.Run, s *checkpointState) error {
	_, err := steps.SwitchCheckpoint.Call(r, s.VM.Plan.Agent, s.back())
	return err
}

func undoSwitch(r *saga.Run, s *checkpointState) error {
	back := s.back()
	return s.whoever(r, func(agent string, lost bool) error {
		if !lost {
			_, err := steps.UndoSwitch.Call(r, agent, back)
			return err
		}
		for _, d := range back.Disks {
			d.Volume.Agent = agent
			if _, err := steps.UndoRevert.Call(r, agent, d); err != nil {
				return err
			}
		}
		return nil
	})
}

// forgetNow removes what the VM was before it went back.
func forgetNow(r *saga.Run, s *checkpointState) error {
	return s.whoever(r, func(agent string, _ bool) error {
		for i := range s.Disks {
			plan := s.Disks[i].Plan
			if !s.In.Disks[i].Files { // see forgetWritten
				plan.Layer = s.In.Disks[i].Layer
			}
			if _, err := steps.RemoveVolume.Call(r, agent, plan); err != nil {
				return err
			}
		}
		if s.In.Save == "" {
			return nil
		}
		_, err := steps.RemoveMemory.Call(r, agent, s.memory(s.In.Save))
		return err
	})
}
