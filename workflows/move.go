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

// moveState is what the steps of a VM's move share.
type moveState struct {
	Request  steps.MoveRequest `json:"request"`
	Move     steps.Move        `json:"move"`
	Incoming steps.Incoming    `json:"incoming"`
	Moved    steps.Moved       `json:"moved"`
}

func (s *moveState) source() string { return s.Move.Source.AgentName }
func (s *moveState) target() string { return s.Move.Target.AgentName }
func (s *moveState) live() bool     { return s.Move.Kind == api.MoveLive }

func (s *moveState) decision() any { return s.Move.Decision }

// VMMigrate moves a VM to another node: while it runs, or stopped (cold). Whatever happens, the guest runs on one node. The
// move itself cannot be foreseen: when an undo finds that the guest has arrived, the operation goes on to its end.
var VMMigrate = saga.Table[moveState]{
	Kind: api.OpVMMigrate, Start: startMove,
	Steps: []saga.Step[moveState]{
		{Name: "place", Where: control, Do: placeMove, Undo: unplaceMove, Detail: (*moveState).decision},
		{Name: "check", Where: node, On: (*moveState).target, Do: checkMove}, // reads only
		{Name: "stop", Where: node, On: (*moveState).source, Do: stopForMove, Undo: startAfterMove},
		{Name: "disk", Where: node, On: (*moveState).target, Do: disksOfMove, Undo: noDisksOfMove},
		{Name: "bind", Where: control, Do: bindMove, Undo: bindSource},
		{Name: "move", Where: node, On: (*moveState).source, Do: move, Undo: settleMove, Detail: func(s *moveState) any { return s.Moved }},
		{Name: "switch", Where: control, Do: switchMove, Commit: true},
		{Name: "rebind", Where: control, Do: bindTarget},
		{Name: "clean", Where: node, On: (*moveState).source, Do: cleanSource},
	},
}

// VMRecover starts a VM elsewhere whose node is proven to be down.
var VMRecover = saga.Table[moveState]{
	Kind: api.OpVMRecover, Start: startMove,
	Steps: []saga.Step[moveState]{
		{Name: "place", Where: control, Do: placeMove, Undo: unplaceMove, Detail: (*moveState).decision},
		{Name: "bind", Where: control, Do: bindTarget, Undo: bindSource},
		{Name: "start", Where: node, On: (*moveState).target, Do: createAtTarget, Undo: removeAtTarget},
		{Name: "switch", Where: control, Do: switchMove, Commit: true},
	},
}

func startMove(op steps.Op) (s moveState, err error) {
	if len(op.Input) > 0 {
		err = json.Unmarshal(op.Input, &s.Request.VMMigrate)
	}
	s.Request.VMRef = steps.VMRef{Project: op.Target.Project, VM: op.Target.ID}
	s.Request.Recover = op.Kind == api.OpVMRecover
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

func placeMove(r *saga.Run, s *moveState) (err error) {
	s.Move, err = steps.PlaceMove.Call(r, "", s.Request)
	return err
}

func unplaceMove(r *saga.Run, s *moveState) error {
	_, err := steps.UnplaceMove.Call(r, "", s.Request.VMRef)
	return err
}

// checkMove fails while nothing has happened to the guest. Without a guest that runs there is nothing to check but that the
// target answers.
func checkMove(r *saga.Run, s *moveState) error {
	if !s.live() {
		_, err := steps.LookAtDomain.Call(r, s.Move.Target.Agent, s.Move.Target)
		return err
	}
	leaving, err := steps.DescribeDomain.Call(r, s.Move.Source.Agent, s.Move.Source)
	if err != nil {
		return err
	}
	s.Incoming, err = steps.CheckIncoming.Call(r, s.Move.Target.Agent, steps.IncomingRequest{Plan: s.Move.Target, Leaving: leaving, Copy: s.Move.Copy})
	return err
}

func stopForMove(r *saga.Run, s *moveState) error {
	if s.live() || s.Move.Phase == api.PhaseStopped {
		return nil
	}
	_, err := steps.StopDomain.Call(r, s.Move.Source.Agent, steps.StopVM{Plan: s.Move.Source, Timeout: defaultStopTimeout})
	return err
}

func startAfterMove(r *saga.Run, s *moveState) error {
	if s.live() || s.Move.Phase == api.PhaseStopped {
		return nil
	}
	err := startAtSource(r, s)
	if errors.Is(err, steps.ErrNeverStarted) && down(r, s.Move.Source.Agent) != nil {
		return nil // it is lost with its node, as if it had not been stopped
	}
	return absent(r, s.Move.Source, err)
}

// bindMove: during a live move both nodes may have the port, and the target gets it with the first packet from there.
func bindMove(r *saga.Run, s *moveState) error {
	if s.live() {
		return bind(r, s, s.Move.From, s.Move.To)
	}
	return bind(r, s, s.Move.To)
}

func bindSource(r *saga.Run, s *moveState) error { return bind(r, s, s.Move.From) }
func bindTarget(r *saga.Run, s *moveState) error { return bind(r, s, s.Move.To) }

func bind(r *saga.Run, s *moveState, chassis ...string) error {
	if len(s.Move.Ports) == 0 {
		return nil
	}
	b := steps.PortBinding{Ports: s.Move.Ports}
	for _, c := range chassis {
		if c != "" {
			b.Chassis = append(b.Chassis, c)
		}
	}
	_, err := steps.BindPorts.Call(r, "", b)
	return err
}

func move(r *saga.Run, s *moveState) (err error) {
	if !s.live() {
		if s.Move.Phase == api.PhaseStopped {
			_, err = steps.DefineDomain.Call(r, s.Move.Target.Agent, s.Move.Target)
			return err
		}
		return createAtTarget(r, s)
	}
	req := s.Request.VMMigrate
	moved, err := steps.MigrateDomain.Call(r, s.Move.Source.Agent, steps.MoveDomain{
		Plan: s.Move.Source, Incoming: s.Incoming, Copy: s.Move.Copy,
		Bandwidth: req.Bandwidth, MaxDowntime: time.Duration(req.MaxDowntime) * time.Millisecond,
		AutoConverge: req.AutoConverge, PostCopy: req.PostCopy, Timeout: time.Duration(req.Timeout) * time.Second,
	})
	if err != nil {
		return err
	}
	if moved.Total > 0 { // else an earlier attempt has made the move, and has told
		s.Moved = moved
	}
	there, err := steps.LookAtDomain.Call(r, s.Move.Target.Agent, s.Move.Target)
	if err != nil {
		return err
	}
	if !there.Exists || there.Phase == api.PhaseStopped || there.Broken {
		return problem.New(problem.Internal, "vm %s has left %s and does not run on %s", s.Move.Source.Name, s.source(), s.target())
	}
	return nil
}

// settleMove finds out where the guest is after a move that went wrong, and sees to it that it is nowhere else. Where it ran last
// its latest writes are: if that is the target, there is no way back, and should it not run any more, it is started there.
func settleMove(r *saga.Run, s *moveState) error {
	if !s.live() {
		return settleCold(r, s)
	}
	src, asked, err := stateAtSource(r, s)
	if err != nil {
		return err
	}
	if src.Exists && src.Phase == api.PhaseRunning {
		return removeAtTarget(r, s)
	}
	left := asked && !src.Exists
	dst, err := steps.LookAtDomain.Call(r, s.Move.Target.Agent, s.Move.Target)
	if errors.Is(err, steps.ErrNeverStarted) {
		return settleWithoutTarget(r, s, src, asked, err)
	}
	if err != nil {
		return err
	}
	switch {
	case dst.Exists && dst.Phase == api.PhaseRunning:
		return saga.ErrDone
	case dst.Exists && (src.Broken || dst.Broken): // half its memory was at the target when it was lost
		if err := removeAtTarget(r, s); err != nil {
			return err
		}
		if err := createAtTarget(r, s); err != nil {
			return err
		}
		return saga.ErrDone
	case dst.Exists && !asked && dst.Phase == api.PhaseStopped && s.copies(): // it may be one of an earlier stay
		return eitherDisk(s)
	case dst.Exists && !asked && dst.Phase == api.PhaseStopped: // whether it has arrived or not: the disk is one and the same
		if err := notAtSource(r, s); err != nil {
			return err
		}
		return startAtTarget(r, s)
	case dst.Exists && left: // it has powered itself off there, or was paused by its disk
		return startAtTarget(r, s)
	}
	if err := removeAtTarget(r, s); err != nil || down(r, s.Move.Source.Agent) != nil {
		return err
	}
	return startAtSource(r, s)
}

// stateAtSource asks the source, or concludes from the proof that it is down.
func stateAtSource(r *saga.Run, s *moveState) (state steps.DomainState, asked bool, err error) {
	state, err = steps.SettleDomain.Call(r, s.Move.Source.Agent, s.Move.Source)
	if !errors.Is(err, steps.ErrNeverStarted) {
		return state, true, err
	}
	if down(r, s.Move.Source.Agent) != nil {
		return steps.DomainState{Phase: api.PhaseStopped}, false, nil
	}
	return state, true, absent(r, s.Move.Source, err)
}

// settleWithoutTarget settles a live move whose target took no question; err says so. The guest does not run at its source.
func settleWithoutTarget(r *saga.Run, s *moveState, src steps.DomainState, asked bool, err error) error {
	if asked && !src.Exists && down(r, s.Move.Target.Agent) != nil {
		return saga.ErrDone // it had arrived, and its new node has died with it
	}
	if err := absent(r, s.Move.Target, err); err != nil || asked && !src.Exists {
		return err
	}
	// It does not run at the target.
	switch {
	case !asked && s.copies():
		return eitherDisk(s)
	case !asked: // there is one disk, which others reach; the VM is recovered from it as from any dead node
		return notAtSource(r, s)
	case src.Broken && s.copies():
		return problem.New(problem.Unavailable, "vm %s ran on node %s last, and its disk is there", s.Move.Source.Name, s.target()).
			Because("node %s is down", s.target()).Try("bring it back: the operation goes on by itself")
	case src.Phase == api.PhasePaused && s.half():
		return halfMoved(s)
	case src.Phase == api.PhasePaused && !s.copies():
		// It may have run at the target and written to the disk since, of which its memory here knows nothing.
		if _, err := steps.StopDomain.Call(r, s.Move.Source.Agent, steps.StopVM{Plan: s.Move.Source, Force: true}); err != nil {
			return err
		}
	}
	return startAtSource(r, s)
}

// eitherDisk is the problem of a move with its disk whose source cannot be asked whether the guest has left.
func eitherDisk(s *moveState) error {
	return problem.New(problem.Unavailable, "nobody knows on which node vm %s ran last", s.Move.Source.Name).
		Because("node %s is down, and the disk there or the one on node %s may be as it was last", s.source(), s.target()).
		Try("bring node %s back: the operation goes on by itself", s.source())
}

// notAtSource returns nil if the source, which is down, certainly does not run the guest.
func notAtSource(r *saga.Run, s *moveState) error {
	if off(r, s.Move.Source) {
		return nil
	}
	_, err := steps.LookAtDomain.Call(r, s.Move.Source.Agent, s.Move.Source) // it may be back meanwhile
	if err := absent(r, s.Move.Source, err); err != nil {
		return err
	}
	return problem.New(problem.Unavailable, "node %s is back", s.source()) // the next attempt asks it
}

func startAtSource(r *saga.Run, s *moveState) error {
	_, err := steps.StartDomain.Call(r, s.Move.Source.Agent, s.Move.Source)
	return err
}

func startAtTarget(r *saga.Run, s *moveState) error {
	if _, err := steps.StartDomain.Call(r, s.Move.Target.Agent, s.Move.Target); err != nil {
		return err
	}
	return saga.ErrDone
}

func createAtTarget(r *saga.Run, s *moveState) error {
	_, err := steps.CreateDomain.Call(r, s.Move.Target.Agent, s.Move.Target)
	return err
}

// removeAtTarget removes what has come to the target. A node that died meanwhile is told when it is back what it must not keep.
func removeAtTarget(r *saga.Run, s *moveState) error {
	_, err := steps.RemoveDomain.Call(r, s.Move.Target.Agent, s.Move.Target)
	return absent(r, s.Move.Target, err)
}

func switchMove(r *saga.Run, s *moveState) error {
	_, err := steps.SwitchVM.Call(r, "", steps.MoveEnd{VMRef: s.Request.VMRef, Target: s.Move.Target.Agent})
	return err
}

// cleanSource removes what is left of the VM at its old node. A node that died meanwhile is told when it is back what it must
// not keep.
func cleanSource(r *saga.Run, s *moveState) error {
	_, err := steps.RemoveDomain.Call(r, s.Move.Source.Agent, s.Move.Source)
	if errors.Is(err, steps.ErrNeverStarted) && down(r, s.Move.Source.Agent) != nil {
		return nil
	}
	if err != nil {
		return err
	}
	return leftDisksOfMove(r, s)
}
