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

// volumeState is what the steps of an operation on a volume share; In is what its acceptance decided.
type volumeState[In any] struct {
	Ref    steps.VolumeRef    `json:"ref"`
	In     In                 `json:"in"`
	Placed steps.VolumePlaced `json:"placed"`
}

func (s *volumeState[In]) node() string  { return s.Placed.Node }
func (s *volumeState[In]) decision() any { return s.Placed.Decision }

func startVolume[In any](op steps.Op) (s volumeState[In], err error) {
	s.Ref = steps.VolumeRef{Project: op.Target.Project, Volume: op.Target.ID}
	err = json.Unmarshal(op.Input, &s.In)
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

func loadVolume[In any](r *saga.Run, s *volumeState[In]) (err error) {
	s.Placed, err = steps.LoadVolume.Call(r, "", s.Ref)
	return err
}

// VolumeCreate makes a volume: the record and quota were claimed when it was accepted, and go when it is undone.
var VolumeCreate = saga.Table[volumeState[api.VolumeMake]]{
	Kind: api.OpVolumeCreate, Start: startVolume[api.VolumeMake],
	Steps: []saga.Step[volumeState[api.VolumeMake]]{
		{Name: "place", Where: control, Do: placeVolume, Undo: unplaceVolume, Detail: (*volumeState[api.VolumeMake]).decision},
		{Name: "make", Where: node, On: (*volumeState[api.VolumeMake]).node, Do: makeVolume, Undo: removeVolume},
		{Name: "attach", Where: node, On: takerNode, Do: attachMade, Undo: detachMade},
	},
}

func placeVolume(r *saga.Run, s *volumeState[api.VolumeMake]) (err error) {
	s.Placed, err = steps.PlaceVolume.Call(r, "", steps.VolumeOrder{VolumeRef: s.Ref, VolumeMake: s.In})
	if err != nil || s.In.Attach == nil {
		return err
	}
	vm, err := steps.LoadVM.Call(r, "", steps.VMRef{Project: s.Ref.Project, VM: s.In.Attach.VM})
	s.Placed.VMs = []steps.Placement{vm}
	return err
}

// takerNode is the node of the VM that gets a volume which is made.
func takerNode(s *volumeState[api.VolumeMake]) string {
	if s.In.Attach == nil {
		return s.node()
	}
	return ofVM(s, s.In.Attach.VM).AgentName
}

func (s *volumeState[In]) given(order *api.DiskOrder) steps.DiskChange {
	c := s.change(ofVM(s, order.VM))
	c.Disk.Device = order.Device
	return c
}

func attachMade(r *saga.Run, s *volumeState[api.VolumeMake]) error {
	if s.In.Attach == nil {
		return nil
	}
	c := s.given(s.In.Attach)
	_, err := steps.AttachDisk.Call(r, c.Plan.Agent, c)
	return err
}

func detachMade(r *saga.Run, s *volumeState[api.VolumeMake]) error {
	if s.In.Attach == nil {
		return nil
	}
	c := s.given(s.In.Attach)
	_, err := steps.DetachDisk.Call(r, c.Plan.Agent, c)
	return theirs(r, c.Plan, err)
}

func unplaceVolume(r *saga.Run, s *volumeState[api.VolumeMake]) error {
	_, err := steps.UnplaceVolume.Call(r, "", s.Ref)
	return err
}

func makeVolume(r *saga.Run, s *volumeState[api.VolumeMake]) error {
	_, err := steps.MakeVolume.Call(r, s.Placed.Plan.Agent, s.Placed.Plan)
	return err
}

func removeVolume(r *saga.Run, s *volumeState[api.VolumeMake]) error {
	return s.whoever(r, func(v steps.VolumePlan, _ *steps.VMPlan) error {
		_, err := steps.RemoveVolume.Call(r, v.Agent, v)
		return err
	})
}

// VolumeAttach gives a VM a disk, whether it runs or not.
var VolumeAttach = saga.Table[volumeState[api.DiskOrder]]{
	Kind: api.OpVolumeAttach, Start: startDisk,
	Steps: []saga.Step[volumeState[api.DiskOrder]]{
		{Name: "load", Where: control, Do: loadVolume[api.DiskOrder]}, // reads only
		{Name: "attach", Where: node, On: vmNode, Do: attachDisk, Undo: takeBack},
	},
}

// VolumeDetach takes a disk from a VM. A guest that runs may refuse: then the VM keeps it.
var VolumeDetach = saga.Table[volumeState[api.DiskOrder]]{
	Kind: api.OpVolumeDetach, Start: startDisk,
	Steps: []saga.Step[volumeState[api.DiskOrder]]{
		{Name: "load", Where: control, Do: loadVolume[api.DiskOrder]}, // reads only
		{Name: "detach", Where: node, On: vmNode, Do: detachDisk, Undo: giveBack},
	},
}

func startDisk(op steps.Op) (volumeState[api.DiskOrder], error) {
	s, err := startVolume[api.DiskOrder](op)
	s.Ref.VM = s.In.VM
	return s, err
}

// ofVM returns the plan of a VM that has a volume, or gets it.
func ofVM[In any](s *volumeState[In], vm string) steps.VMPlan {
	for _, p := range s.Placed.VMs {
		if p.Plan.VM == vm {
			return p.Plan
		}
	}
	return steps.VMPlan{VM: vm}
}

func vmNode(s *volumeState[api.DiskOrder]) string { return ofVM(s, s.In.VM).AgentName }

// change returns the disk of a VM that is to change, and the VM without it.
func (s *volumeState[In]) change(vm steps.VMPlan) steps.DiskChange {
	disk := s.Placed.Disk
	for _, d := range vm.Data {
		if d.Volume == disk.Volume {
			disk.Device, disk.ReadOnly = d.Device, d.ReadOnly
		}
	}
	vm.Data = slices.DeleteFunc(slices.Clone(vm.Data), func(d steps.DataDisk) bool { return d.Volume == disk.Volume })
	return steps.DiskChange{Plan: vm, Disk: disk}
}

func diskChange(s *volumeState[api.DiskOrder]) steps.DiskChange {
	c := s.change(ofVM(s, s.In.VM))
	c.Disk.Device, c.Disk.ReadOnly = s.In.Device, s.In.ReadOnly
	return c
}

func attachDisk(r *saga.Run, s *volumeState[api.DiskOrder]) error {
	c := diskChange(s)
	_, err := steps.AttachDisk.Call(r, c.Plan.Agent, c)
	return err
}

func detachDisk(r *saga.Run, s *volumeState[api.DiskOrder]) error {
	c := diskChange(s)
	_, err := steps.DetachDisk.Call(r, c.Plan.Agent, c)
	return err
}

// takeBack leaves a VM the disk that it had before it was to get it.
func takeBack(r *saga.Run, s *volumeState[api.DiskOrder]) error {
	if s.In.Had {
		return nil
	}
	return theirs(r, ofVM(s, s.In.VM), detachDisk(r, s))
}

// theirs is what becomes of the error of taking back a disk that a VM was given. An HA VM whose node is proven not to run it any more must
// not wait for that node: it is started elsewhere, and has the disk then. That it has it not could not be said: the node may have written
// down that it has, and be back with it.
func theirs(r *saga.Run, vm steps.VMPlan, err error) error {
	if errors.Is(err, steps.ErrNeverStarted) && vm.HA && off(r, vm) {
		return saga.ErrDone
	}
	return err
}

// giveBack gives a VM its disk back. What its node would have to do for that, it has to do no more if the VM does not run there.
func giveBack(r *saga.Run, s *volumeState[api.DiskOrder]) error {
	return absent(r, ofVM(s, s.In.VM), attachDisk(r, s))
}

// VolumeResize makes a volume bigger. That cannot be taken back, and a small volume is no worse for being asked twice: an undo
// that finds that it can be bigger makes it so, and the operation goes on to its end.
var VolumeResize = saga.Table[volumeState[api.VolumeResize]]{
	Kind: api.OpVolumeResize, Start: startVolume[api.VolumeResize],
	Steps: []saga.Step[volumeState[api.VolumeResize]]{
		{Name: "load", Where: control, Do: loadVolume[api.VolumeResize]}, // reads only
		{Name: "grow", Where: node, On: (*volumeState[api.VolumeResize]).node, Do: grow, Undo: grown},
	},
}

func grow(r *saga.Run, s *volumeState[api.VolumeResize]) error {
	return growIt(r, s, s.Placed.Plan, s.vm())
}

func growIt(r *saga.Run, s *volumeState[api.VolumeResize], v steps.VolumePlan, vm *steps.VMPlan) error {
	v.Size = s.In.Size
	_, err := steps.ResizeVolume.Call(r, v.Agent, steps.Resize{Volume: v, VM: vm})
	return err
}

// grown settles whether the volume is bigger. Only the node's own no, which it says before it does anything, means that it is not.
func grown(r *saga.Run, s *volumeState[api.VolumeResize]) error {
	err := s.whoever(r, func(v steps.VolumePlan, vm *steps.VMPlan) error { return growIt(r, s, v, vm) })
	switch {
	case err == nil:
		return saga.ErrDone
	case refused(err):
		return nil
	default:
		return err
	}
}

// VolumeFlatten makes a volume independent of its image. Until the last moment the volume needs the image, and is no worse for what
// was copied already: it can be stopped anywhere. From that moment on it cannot be taken back: an undo that finds the volume alone
// brings the operation to its end.
var VolumeFlatten = saga.Table[volumeState[api.VolumeFlatten]]{
	Kind: api.OpVolumeFlatten, Start: startVolume[api.VolumeFlatten],
	Steps: []saga.Step[volumeState[api.VolumeFlatten]]{
		{Name: "load", Where: control, Do: loadVolume[api.VolumeFlatten]}, // reads only
		{Name: "flatten", Where: node, On: (*volumeState[api.VolumeFlatten]).node, Do: flatten, Undo: flattened},
	},
}

func flatten(r *saga.Run, s *volumeState[api.VolumeFlatten]) error {
	_, err := steps.FlattenVolume.Call(r, s.Placed.Plan.Agent, steps.Flatten{Volume: s.Placed.Plan, VM: s.vm()})
	return err
}

// flattened settles whether the volume stands alone.
func flattened(r *saga.Run, s *volumeState[api.VolumeFlatten]) error {
	var out steps.Flattened
	err := s.whoever(r, func(v steps.VolumePlan, vm *steps.VMPlan) (err error) {
		out, err = steps.StopFlatten.Call(r, v.Agent, steps.Flatten{Volume: v, VM: vm})
		return err
	})
	switch {
	case err == nil && out.Alone:
		return saga.ErrDone
	case err == nil || refused(err):
		return nil
	default:
		return err
	}
}

// refused reports whether a node has said that something cannot be done, rather than failed in doing it.
func refused(err error) bool {
	switch problem.KindOf(err) {
	case problem.NoCapacity, problem.Conflict, problem.Unsupported, problem.NotFound:
		return true
	default:
		return false
	}
}

// whoever has something done to the volume by its node or, if that is proven not to run the VM that has it, by another one that sees the
// volume, for which no VM has it: an HA VM must not wait for its dead node, since it is started elsewhere.
func (s *volumeState[In]) whoever(r *saga.Run, do func(v steps.VolumePlan, vm *steps.VMPlan) error) error {
	v, vm := s.Placed.Plan, s.vm()
	if vm == nil || len(s.Placed.VMs) > 1 {
		return do(v, vm)
	}
	guest := *vm
	guest.Disk.Pool = v.Pool.Pool // it is this volume that another node must see
	return whoever(r, v.Agent, guest, v.Pool.Shared, func(agent string, lost bool) error {
		if lost {
			v.Agent, vm = agent, nil
		}
		return do(v, vm)
	})
}

// vm returns the VM that has the volume; nil: none.
func (s *volumeState[In]) vm() *steps.VMPlan {
	if len(s.Placed.VMs) == 0 {
		return nil
	}
	return &s.Placed.VMs[0].Plan
}

// VolumeUpdate changes what is decided about a volume. Only its limits are known on nodes; the record itself changes when the
// operation ends.
var VolumeUpdate = saga.Table[volumeState[api.VolumeTuning]]{
	Kind: api.OpVolumeUpdate, Start: startVolume[api.VolumeTuning],
	Steps: []saga.Step[volumeState[api.VolumeTuning]]{
		{Name: "load", Where: control, Do: loadTuned}, // reads only
		{
			Name: "tune", Where: node, On: (*volumeState[api.VolumeTuning]).node,
			Do:   func(r *saga.Run, s *volumeState[api.VolumeTuning]) error { return tune(r, s, s.In.QoS) },
			Undo: untune,
		},
	},
}

func loadTuned(r *saga.Run, s *volumeState[api.VolumeTuning]) error {
	if s.In.QoS == s.In.Before {
		return nil
	}
	return loadVolume(r, s)
}

// untune waits for no node that is proven not to run the VM: where that is started next, it is with the limits that the record tells.
func untune(r *saga.Run, s *volumeState[api.VolumeTuning]) error {
	for _, vm := range s.Placed.VMs {
		if err := absent(r, vm.Plan, tuneOf(r, s, vm.Plan, s.In.Before)); err != nil {
			return err
		}
	}
	return nil
}

func tuneOf(r *saga.Run, s *volumeState[api.VolumeTuning], vm steps.VMPlan, qos api.VolumeQoS) error {
	c := s.change(vm)
	c.Disk.QoS = qos
	_, err := steps.TuneDisk.Call(r, vm.Agent, c)
	return err
}

func tune(r *saga.Run, s *volumeState[api.VolumeTuning], qos api.VolumeQoS) error {
	for _, vm := range s.Placed.VMs { // none were loaded if the limits stay
		if err := tuneOf(r, s, vm.Plan, qos); err != nil {
			return err
		}
	}
	return nil
}

// Into the recycle bin and out of it goes the record alone, which is done where all operations begin and end.
var (
	VolumeDelete  = saga.Table[steps.Nothing]{Kind: api.OpVolumeDelete, Start: nothing}
	VolumeRestore = saga.Table[steps.Nothing]{Kind: api.OpVolumeRestore, Start: nothing}
)

// VolumePurge removes a volume and its snapshots for good.
var VolumePurge = saga.Table[volumeState[api.VolumeRemoval]]{
	Kind: api.OpVolumePurge, Start: startVolume[api.VolumeRemoval],
	Steps: []saga.Step[volumeState[api.VolumeRemoval]]{
		{Name: "load", Where: control, Do: loadVolume[api.VolumeRemoval]}, // reads only
		{Name: "remove", Where: node, On: (*volumeState[api.VolumeRemoval]).node, Do: purgeVolume, Commit: true},
	},
}

func purgeVolume(r *saga.Run, s *volumeState[api.VolumeRemoval]) error {
	return removeLayers(r, s.In, s.Placed.Plan)
}

func removeLayers(r *saga.Run, in api.VolumeRemoval, plan steps.VolumePlan) error {
	for _, id := range in.Snapshots {
		if _, err := steps.DropSnapshot.Call(r, plan.Agent, steps.SnapshotDrop{Snapshot: id, Volume: plan}); err != nil {
			return err
		}
	}
	for _, layer := range in.Layers {
		plan.Layer = layer
		if _, err := steps.RemoveVolume.Call(r, plan.Agent, plan); err != nil {
			return err
		}
	}
	return nil
}
