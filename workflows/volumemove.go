package workflows

import (
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// volumeMoveState is what the steps of a volume's move share.
type volumeMoveState struct {
	volumeState[api.VolumeMove]
	Copied   steps.VolumeCopied   `json:"copied"`
	Switched steps.VolumeSwitched `json:"switched"`
	// Silent: the node did not take what it was asked last.
	Silent bool `json:"silent,omitempty"`
}

func (s *volumeMoveState) on() string { return s.node() }

// VolumeMigrate brings a volume into another pool, whether a VM that has it runs or not. There is one good copy at any time: that
// in the old pool until its VM goes on with the new one, which cannot be foreseen while a guest runs. An undo that finds it so has
// the operation go on to its end. A guest that is not to wait for its node, should that die, goes on with the new copy only when it is
// written down that it may. So the journal alone says which of the two is the good one: the point of no return.
var VolumeMigrate = saga.Table[volumeMoveState]{
	Kind: api.OpVolumeMigrate, Start: startVolumeMove,
	Steps: []saga.Step[volumeMoveState]{
		{Name: "place", Where: control, Do: placeVolumeMove, Detail: func(s *volumeMoveState) any { return s.decision() }}, // reads only
		{Name: "make", Where: node, On: (*volumeMoveState).on, Do: makeMoved, Undo: removeMoved},
		{Name: "seed", Where: node, On: (*volumeMoveState).on, Do: moveSeed, Undo: moveSeedBack},
		{Name: "copy", Where: node, On: (*volumeMoveState).on, Do: copyMoved, Undo: settleMoved, Detail: func(s *volumeMoveState) any { return s.Copied }},
		{Name: "switch", Where: node, On: (*volumeMoveState).on, Do: switchMoved, Detail: (*volumeMoveState).switched, Commit: true},
		{Name: "clean", Where: node, On: (*volumeMoveState).on, Do: removeLeft}, // past the point of no return
	},
}

func startVolumeMove(op steps.Op) (s volumeMoveState, err error) {
	s.volumeState, err = startVolume[api.VolumeMove](op)
	return s, err
}

func placeVolumeMove(r *saga.Run, s *volumeMoveState) (err error) {
	s.Placed, err = steps.PlaceVolumeMove.Call(r, "", steps.VolumeMoveOrder{VolumeRef: s.Ref, VolumeMove: s.In})
	return err
}

// there is the volume in the pool that it goes to. It is made on nothing: what it was made of stays behind.
func (s *volumeMoveState) there() steps.VolumePlan {
	v := s.Placed.Plan
	v.Pool, v.Layer, v.Image, v.From = s.In.To, s.In.Layer, nil, nil
	return v
}

func (s *volumeMoveState) copy() steps.VolumeCopy {
	return steps.VolumeCopy{From: s.Placed.Plan, To: s.there(), VM: s.vm(), Bandwidth: s.In.Bandwidth, Hold: s.holds()}
}

// holds reports whether a guest stands still from when it has got the copy until that is written down. Others go on at once: they are
// not started elsewhere, and would stand still for as long as the control plane is away.
func (s *volumeMoveState) holds() bool { return s.vm() != nil && (s.vm().HA || s.stopped()) }

// stopped reports whether the VM that has the volume does not run, which it is kept from meanwhile.
func (s *volumeMoveState) stopped() bool {
	return len(s.Placed.VMs) > 0 && s.Placed.VMs[0].Phase == api.PhaseStopped
}

// switched is how long a guest stood still; nil: none did, or not for this step.
func (s *volumeMoveState) switched() any {
	if s.Switched.Pause == 0 {
		return nil
	}
	return s.Switched
}

// rooted returns the VM whose root disk the volume is, as it is and as it will be; ok is false for all other volumes.
func (s *volumeMoveState) rooted() (move steps.SeedMove, ok bool) {
	vm := s.vm()
	if vm == nil || vm.Disk.Volume != s.Ref.Volume {
		return move, false
	}
	move.From, move.To = *vm, *vm
	d, to := &move.To.Disk, s.In.To
	d.Pool, d.PoolPath, d.Type, d.Source, d.Shared, d.Layer = to.Pool, to.Path, to.Type, to.Source, to.Shared, s.In.Layer
	d.Image, d.ImageSHA256, d.ImageSize = "", "", 0
	return move, true
}

func makeMoved(r *saga.Run, s *volumeMoveState) error {
	_, err := steps.MakeVolume.Call(r, s.In.Agent.ID, s.there())
	if root, ok := s.rooted(); ok && err == nil {
		_, err = steps.MakeSeed.Call(r, s.In.Agent.ID, root.To)
	}
	return s.heard(err)
}

func removeMoved(r *saga.Run, s *volumeMoveState) error {
	root, ok := s.rooted()
	return s.remove(r, s.there(), root.To, ok)
}

// removeLeft removes what is left in the old pool.
func removeLeft(r *saga.Run, s *volumeMoveState) error {
	root, ok := s.rooted()
	return s.remove(r, s.Placed.Plan, root.From, ok)
}

// moveSeed goes first: both seeds say the same, so it can be taken back.
func moveSeed(r *saga.Run, s *volumeMoveState) (err error) {
	if root, ok := s.rooted(); ok {
		_, err = steps.MoveSeed.Call(r, s.In.Agent.ID, root)
	}
	return s.heard(err)
}

func moveSeedBack(r *saga.Run, s *volumeMoveState) error {
	root, ok := s.rooted()
	if !ok {
		return nil
	}
	return s.keep(r, func() error {
		_, err := steps.MoveSeed.Call(r, s.In.Agent.ID, steps.SeedMove{From: root.To, To: root.From})
		return err
	})
}

func copyMoved(r *saga.Run, s *volumeMoveState) error {
	copied, err := steps.CopyVolume.Call(r, s.In.Agent.ID, s.copy())
	if err == nil && (copied.Took > 0 || s.Copied.Took == 0) { // else an earlier attempt has made it, and has told
		s.Copied = copied
	}
	return s.heard(err)
}

// settleMoved finds out which of the two copies is the good one. If the node is lost it is the old one, unless its guest could go on with
// the new one before that was written down: which of the two it had last, only the node knows.
func settleMoved(r *saga.Run, s *volumeMoveState) error {
	settle := func() error {
		settled, err := steps.SettleVolumeCopy.Call(r, s.In.Agent.ID, s.copy())
		if err == nil && settled.Moved {
			return saga.ErrDone
		}
		return err
	}
	if s.vm() != nil && !s.holds() {
		return s.eitherCopy(r, settle())
	}
	return s.keep(r, settle)
}

// switchMoved has the guest go on with the copy, if it waits for that. If the node is lost, so is the guest, and the VM is started with
// the copy next.
func switchMoved(r *saga.Run, s *volumeMoveState) error {
	if !s.holds() {
		return nil
	}
	_, err := s.ask(r, func() error {
		switched, err := steps.SwitchVolume.Call(r, s.In.Agent.ID, s.copy())
		if switched.Pause > 0 { // else an earlier attempt has done it, and may have told
			s.Switched = switched
		}
		return err
	})
	return err
}
