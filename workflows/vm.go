package workflows

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// vmState is what the steps of the VM operations share.
type vmState struct {
	Ref    steps.VMRef       `json:"ref"`
	Make   api.VMMake        `json:"make,omitzero"`
	Placed steps.Placement   `json:"placed"`
	Stop   api.VMStop        `json:"stop"`
	Layers api.VMRemoval     `json:"layers,omitzero"` // of its root disk, if it has snapshots
	Power  steps.PowerResult `json:"power"`
	// Left: its domain was not removed, because its node is proven to be down.
	Left bool           `json:"left,omitempty"`
	Made steps.DiskMade `json:"made,omitzero"`
}

func (s *vmState) node() string { return s.Placed.Plan.AgentName }

func startVM(op steps.Op) (vmState, error) {
	return vmState{Ref: steps.VMRef{Project: op.Target.Project, VM: op.Target.ID}}, nil
}

// VMCreate makes a VM: the records, addresses and quota were claimed when it was accepted, and go when it is undone.
var VMCreate = saga.Table[vmState]{
	Kind: api.OpVMCreate, Start: startVMCreate,
	Steps: []saga.Step[vmState]{
		{Name: "place", Where: control, Do: placeVM, Undo: unplaceVM, Detail: placeDetail},
		{Name: "wire", Where: control, Do: wireVM, Undo: unwireVM},
		{Name: "disk", Where: node, On: (*vmState).node, Do: makeDisk, Undo: unmakeDisk, Detail: diskDetail}, // and volumes that are made with it
		{Name: "start", Where: node, On: (*vmState).node, Do: createDomain, Undo: removeDomain},
	},
}

// VMDelete removes a VM. Cutting its power is the point of no return; from there on it waits for whoever is away, but not for a
// node that is proven not to run it.
var VMDelete = saga.Table[vmState]{
	Kind: api.OpVMDelete, Start: startVMDelete,
	Steps: []saga.Step[vmState]{
		{Name: "load", Where: control, Do: loadVM}, // reads only
		{Name: "stop", Where: node, On: (*vmState).node, Do: removeDomain, Commit: true},
		{Name: "snapshots", Where: node, On: (*vmState).node, Do: removeSnapshots},
		{Name: "disk", Where: node, On: (*vmState).node, Do: removeDisk},
		{Name: "unwire", Where: control, Do: unwireVM},
		{Name: "unplace", Where: control, Do: unplaceVM},
	},
}

// VMStart powers a VM on.
var VMStart = saga.Table[vmState]{
	Kind: api.OpVMStart, Start: startVM,
	Steps: []saga.Step[vmState]{
		{Name: "load", Where: control, Do: loadVM}, // reads only
		{Name: "start", Where: node, On: (*vmState).node, Do: powerOn, Undo: powerBack},
	},
}

// VMStop asks a VM to power off and cuts the power when it does not.
var VMStop = saga.Table[vmState]{
	Kind: api.OpVMStop, Start: startVMStop,
	Steps: []saga.Step[vmState]{
		{Name: "load", Where: control, Do: loadVM}, // reads only
		{Name: "stop", Where: node, On: (*vmState).node, Do: powerOff, Undo: powerBack},
	},
}

// VMReboot restarts a VM. A reboot cannot be taken back; undoing it makes sure that the VM runs, as it did before.
var VMReboot = saga.Table[vmState]{
	Kind: api.OpVMReboot, Start: startVMStop,
	Steps: []saga.Step[vmState]{
		{Name: "load", Where: control, Do: loadVM}, // reads only
		{Name: "reboot", Where: node, On: (*vmState).node, Do: reboot, Undo: powerBack},
	},
}

// vmChange is what the steps of a VM's update share.
type vmChange struct {
	vmState
	HA     bool `json:"ha"`
	Before bool `json:"before"`
}

// VMUpdate changes what is written about a VM. Only what must be known on its node is a step; the record itself changes when
// the operation ends.
var VMUpdate = saga.Table[vmChange]{
	Kind: api.OpVMUpdate, Start: startVMUpdate,
	Steps: []saga.Step[vmChange]{
		{Name: "load", Where: control, Do: func(r *saga.Run, s *vmChange) error { return loadVM(r, &s.vmState) }}, // reads only
		{
			Name: "mark", Where: node, On: func(s *vmChange) string { return s.node() },
			Do:   func(r *saga.Run, s *vmChange) error { return markHA(r, s, s.HA) },
			Undo: func(r *saga.Run, s *vmChange) error { return markHA(r, s, s.Before) },
		},
	},
}

func startVMUpdate(op steps.Op) (s vmChange, err error) {
	if s.vmState, err = startVM(op); err != nil {
		return s, err
	}
	if err = json.Unmarshal(op.Input, &s.HA); err == nil {
		err = json.Unmarshal(op.Before, &s.Before)
	}
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

func markHA(r *saga.Run, s *vmChange, ha bool) error {
	if s.HA == s.Before {
		return nil
	}
	_, err := steps.MarkHA.Call(r, s.Placed.Plan.Agent, steps.HAMark{Plan: s.Placed.Plan, HA: ha})
	return err
}

// The operations on VM groups change nothing but records, which is done where all operations begin and end.
var (
	GroupCreate = saga.Table[steps.Nothing]{Kind: api.OpGroupCreate, Start: nothing}
	GroupDelete = saga.Table[steps.Nothing]{Kind: api.OpGroupDelete, Start: nothing}
)

func nothing(steps.Op) (steps.Nothing, error) { return steps.Nothing{}, nil }

// defaultStopTimeout is how long a guest may take to power off when nobody said.
const defaultStopTimeout = 60 * time.Second

func startVMStop(op steps.Op) (vmState, error) {
	s, err := startVM(op)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(op.Input, &s.Stop); err != nil {
		return s, problem.Wrap(err, problem.Invalid, "the request cannot be read")
	}
	return s, nil
}

func startVMCreate(op steps.Op) (vmState, error) {
	s, err := startVM(op)
	if err == nil && len(op.Input) > 0 {
		err = json.Unmarshal(op.Input, &s.Make)
	}
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

func placeVM(r *saga.Run, s *vmState) (err error) {
	s.Placed, err = steps.PlaceVM.Call(r, "", steps.VMOrder{VMRef: s.Ref, VMMake: s.Make})
	return err
}

func placeDetail(s *vmState) any { return s.Placed.Decision }

func unplaceVM(r *saga.Run, s *vmState) error {
	_, err := steps.UnplaceVM.Call(r, "", s.Ref)
	return err
}

func loadVM(r *saga.Run, s *vmState) (err error) {
	s.Placed, err = steps.LoadVM.Call(r, "", s.Ref)
	// What a late undo goes back to, should the power step never answer.
	s.Power.Before = s.Placed.Phase
	return err
}

func wireVM(r *saga.Run, s *vmState) error {
	_, err := steps.WirePorts.Call(r, "", s.Placed.Ports)
	return err
}

func unwireVM(r *saga.Run, s *vmState) error {
	refs := steps.PortRefs{Project: s.Ref.Project}
	for _, p := range s.Placed.Ports {
		refs.Ports = append(refs.Ports, p.Port)
	}
	_, err := steps.UnwirePorts.Call(r, "", refs)
	return err
}

func makeDisk(r *saga.Run, s *vmState) (err error) {
	plan := s.Placed.Plan
	plan.Disk.Offer = imageOffer(r, s)
	if s.Made, err = steps.MakeDisk.Call(r, plan.Agent, plan); err != nil {
		return err
	}
	for _, v := range s.Placed.Volumes {
		if _, err := steps.MakeVolume.Call(r, plan.Agent, v); err != nil {
			return err
		}
	}
	return nil
}

// unmakeDisk is for a VM that is not made after all: the volumes that were to be made with it go, too.
func unmakeDisk(r *saga.Run, s *vmState) error {
	for _, v := range s.Placed.Volumes {
		as := *s
		as.Placed.Plan.Disk = steps.DiskPlan{Volume: v.Volume, Pool: v.Pool.Pool, PoolName: v.Pool.Name, PoolPath: v.Pool.Path, Type: v.Pool.Type, Shared: v.Pool.Shared, Source: v.Pool.Source}
		err := withDisk(r, &as, func(plan steps.VMPlan) error {
			v.Agent, v.Pool.Path = plan.Agent, plan.Disk.PoolPath
			_, err := steps.RemoveVolume.Call(r, plan.Agent, v)
			return err
		})
		if err != nil {
			return err
		}
	}
	return removeDisk(r, s)
}

// imageOffer asks a node that has a copy of the image to give it away. A node that does not is not asked again: the server has the
// image, too.
func imageOffer(r *saga.Run, s *vmState) *steps.DiskOffer {
	at := s.Placed.ImageAt
	if at == nil {
		return nil
	}
	offer, err := steps.OfferImage.Call(r, at.Agent, steps.ImageOffer{Copy: at.Copy})
	if err != nil {
		s.Placed.ImageAt = nil
		return nil
	}
	return &offer
}

func diskDetail(s *vmState) any { return s.Made }

// removeDisk waits for no node that is proven not to run the VM: a disk in a shared pool is removed by another node of the pool,
// and any other stays where it is until the node is back, and is then what the audit finds.
func removeDisk(r *saga.Run, s *vmState) error {
	return withDisk(r, s, func(plan steps.VMPlan) error {
		_, err := steps.RemoveDisk.Call(r, plan.Agent, plan)
		return err
	})
}

// withDisk removes something of a VM's disk, on its node or, if that is proven not to run the VM, on another that sees it.
func withDisk(r *saga.Run, s *vmState, remove func(steps.VMPlan) error) error {
	if s.Left && down(r, s.Placed.Plan.Agent) == nil { // it has come back meanwhile
		if err := removeDomain(r, s); err != nil {
			return err
		}
	}
	plan := s.Placed.Plan
	err := remove(plan)
	gone := errors.Is(err, steps.ErrNeverStarted)
	if err = absent(r, plan, err); err != nil || !gone || !plan.Disk.Shared {
		return err
	}
	other, err := otherOfPool(r, plan)
	if err == nil {
		err = remove(other)
	}
	return err
}

// otherOfPool returns the plan for another node that sees the same disk, and more pools, by ID, if they are named.
func otherOfPool(r *saga.Run, plan steps.VMPlan, more ...string) (steps.VMPlan, error) {
	list, err := steps.LoadAgents.Call(r, "", steps.Nothing{})
	if err != nil {
		return plan, err
	}
	for _, a := range list.Agents {
		if a.ID == plan.Agent || !a.Ready || !a.Has(more) {
			continue
		}
		for _, p := range a.Pools {
			if p.Pool == plan.Disk.Pool {
				plan.Agent, plan.AgentName, plan.Disk.PoolPath = a.ID, a.Name, p.Path
				return plan, nil
			}
		}
	}
	return plan, problem.New(problem.Unavailable, "the disk of vm %s cannot be removed", plan.Name).
		Because("node %s is down, and no other node of its pool is ready", plan.AgentName).Try("bring one of the pool's nodes back: gnext host list")
}

func startVMDelete(op steps.Op) (vmState, error) {
	s, err := startVM(op)
	if err == nil && len(op.Input) > 0 {
		err = json.Unmarshal(op.Input, &s.Layers)
	}
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

// removeSnapshots removes the root disk with all that it consists of; without snapshots the next step does.
func removeSnapshots(r *saga.Run, s *vmState) error {
	if len(s.Layers.Layers) == 0 {
		return nil
	}
	return withDisk(r, s, func(vm steps.VMPlan) error {
		for _, id := range s.Layers.Checkpoints {
			if _, err := steps.RemoveMemory.Call(r, vm.Agent, steps.MemoryFile{Memory: id, Pool: vm.Disk.OnNode()}); err != nil {
				return err
			}
		}
		return removeLayers(r, s.Layers.VolumeRemoval, steps.VolumePlan{
			Volume: vm.Disk.Volume, Name: vm.Name, Project: vm.Project, Agent: vm.Agent, Size: vm.Disk.Size,
			Pool: vm.Disk.OnNode(),
		})
	})
}

func createDomain(r *saga.Run, s *vmState) error {
	_, err := steps.CreateDomain.Call(r, s.Placed.Plan.Agent, s.Placed.Plan)
	return err
}

// removeDomain waits for no node that is proven not to run the VM. Such a node is told when it is back what it must not keep.
func removeDomain(r *saga.Run, s *vmState) error {
	_, err := steps.RemoveDomain.Call(r, s.Placed.Plan.Agent, s.Placed.Plan)
	gone := errors.Is(err, steps.ErrNeverStarted)
	if err = absent(r, s.Placed.Plan, err); err == nil {
		s.Left = gone
	}
	return err
}

func powerOn(r *saga.Run, s *vmState) error {
	_, err := steps.StartDomain.Call(r, s.Placed.Plan.Agent, s.Placed.Plan)
	return err
}

func (s *vmState) stopRequest() steps.StopVM {
	timeout := time.Duration(s.Stop.Timeout) * time.Second
	if timeout == 0 {
		timeout = defaultStopTimeout
	}
	return steps.StopVM{Plan: s.Placed.Plan, Force: s.Stop.Force, Timeout: timeout}
}

func powerOff(r *saga.Run, s *vmState) error {
	_, err := steps.StopDomain.Call(r, s.Placed.Plan.Agent, s.stopRequest())
	return err
}

func reboot(r *saga.Run, s *vmState) error {
	_, err := steps.RebootDomain.Call(r, s.Placed.Plan.Agent, s.stopRequest())
	return err
}

// powerBack brings the VM back to the power state that it had when the operation began. One that ran on a node that is proven to
// be down is lost with its node, as if nobody had touched it.
func powerBack(r *saga.Run, s *vmState) (err error) {
	if s.Power.Before != api.PhaseRunning {
		_, err = steps.StopDomain.Call(r, s.Placed.Plan.Agent, steps.StopVM{Plan: s.Placed.Plan, Force: true})
		return absent(r, s.Placed.Plan, err)
	}
	_, err = steps.StartDomain.Call(r, s.Placed.Plan.Agent, s.Placed.Plan)
	if errors.Is(err, steps.ErrNeverStarted) && down(r, s.Placed.Plan.Agent) != nil {
		return nil
	}
	return err
}
