package workflows

import (
	"errors"
	"slices"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// copies reports whether any disk goes along. In a shared pool there is only one, whatever was asked for.
func (s *moveState) copies() bool { return s.rootGoes() || len(s.Move.Volumes) > 0 }

// rootGoes reports whether the root disk goes along as a child of its image, and with it the seed.
func (s *moveState) rootGoes() bool {
	return s.Move.Copy && !s.Move.Target.Disk.Shared && !s.rootAlone()
}

// rootAlone reports whether the root disk goes along as a volume of its own.
func (s *moveState) rootAlone() bool {
	return slices.ContainsFunc(s.Move.Volumes, func(v steps.VolumePlan) bool { return v.Volume == s.Move.Target.Disk.Volume })
}

// half reports whether some disks go along and others are reached from both nodes.
func (s *moveState) half() bool {
	t := s.Move.Target
	return s.copies() && (t.Disk.Shared || slices.ContainsFunc(t.Data, func(d steps.DataDisk) bool { return !d.Goes() }))
}

// still reports whether nobody writes to a volume while the guest moves.
func (s *moveState) still(volume string) bool {
	return !s.live() || slices.ContainsFunc(s.Move.Source.Data, func(d steps.DataDisk) bool { return d.Volume == volume && d.ReadOnly })
}

// disksOfMove get the target ready to hold the disks: what a guest writes to while it moves is filled by the move, and all else is
// brought as it is.
func disksOfMove(r *saga.Run, s *moveState) error {
	if s.live() && s.copies() {
		// They must be empty: what may be left of an earlier stay is older than what comes, and would show through it.
		if err := noDisksOfMove(r, s); err != nil {
			return err
		}
	}
	if s.rootGoes() {
		if err := rootOfMove(r, s); err != nil {
			return err
		}
	}
	for _, v := range s.Move.Volumes {
		if err := volumeOfMove(r, s, v); err != nil {
			return err
		}
	}
	if !s.rootAlone() {
		return nil
	}
	_, err := steps.MakeSeed.Call(r, s.Move.Target.Agent, s.Move.Target)
	return err
}

func rootOfMove(r *saga.Run, s *moveState) error {
	if s.live() {
		_, err := steps.MakeDisk.Call(r, s.Move.Target.Agent, s.Move.Target)
		return err
	}
	offer, err := steps.OfferDisk.Call(r, s.Move.Source.Agent, s.Move.Source)
	if err != nil {
		return err
	}
	_, err = steps.PullDisk.Call(r, s.Move.Target.Agent, steps.DiskPull{Plan: s.Move.Target, Offer: offer})
	return err
}

func volumeOfMove(r *saga.Run, s *moveState, v steps.VolumePlan) error {
	if !s.still(v.Volume) {
		_, err := steps.MakeVolume.Call(r, s.Move.Target.Agent, s.at(v, s.Move.Target))
		return err
	}
	offer, err := steps.OfferVolume.Call(r, s.Move.Source.Agent, s.at(v, s.Move.Source))
	if err != nil {
		return err
	}
	_, err = steps.PullVolume.Call(r, s.Move.Target.Agent, steps.VolumePull{Volume: s.at(v, s.Move.Target), Offer: offer})
	return err
}

// at is the volume on the node of a plan.
func (s *moveState) at(v steps.VolumePlan, plan steps.VMPlan) steps.VolumePlan {
	v.Agent = plan.Agent
	return v
}

// noDisksOfMove removes all of them from the target. A node that died meanwhile holds nobody up: then nobody uses them, and the audit
// finds them when it is back.
func noDisksOfMove(r *saga.Run, s *moveState) error {
	return s.removeDisks(r, s.Move.Target, func(err error) error { return absent(r, s.Move.Target, err) })
}

// leftDisksOfMove removes all of them from the source, where nothing needs them any more.
func leftDisksOfMove(r *saga.Run, s *moveState) error {
	return s.removeDisks(r, s.Move.Source, func(err error) error {
		if errors.Is(err, steps.ErrNeverStarted) && down(r, s.Move.Source.Agent) != nil {
			return nil
		}
		return err
	})
}

// removeDisks removes from the node of a plan what goes along. Excuse decides on the error of each call.
func (s *moveState) removeDisks(r *saga.Run, at steps.VMPlan, excuse func(error) error) error {
	if s.rootGoes() {
		_, err := steps.RemoveDisk.Call(r, at.Agent, at)
		if err = excuse(err); err != nil {
			return err
		}
	}
	for _, v := range s.Move.Volumes {
		_, err := steps.RemoveVolume.Call(r, at.Agent, s.at(v, at))
		if err = excuse(err); err != nil {
			return err
		}
	}
	if !s.rootAlone() {
		return nil
	}
	_, err := steps.RemoveSeed.Call(r, at.Agent, at)
	return excuse(err)
}

// settleCold removes what a cold move has brought to the target. A guest that has run there has written to what both nodes reach, which
// does not fit to those of its disks that are still at the source as they were: there is no way back.
func settleCold(r *saga.Run, s *moveState) error {
	if s.half() && s.Move.Phase != api.PhaseStopped {
		dst, err := steps.LookAtDomain.Call(r, s.Move.Target.Agent, s.Move.Target)
		if errors.Is(err, steps.ErrNeverStarted) {
			if err := absent(r, s.Move.Target, err); err != nil {
				return err
			}
			return halfMoved(s)
		}
		if err != nil {
			return err
		}
		if dst.Exists && dst.Phase != api.PhaseStopped {
			return startAtTarget(r, s)
		}
	}
	return removeAtTarget(r, s)
}

// halfMoved is the problem of a guest of which nobody knows whether it has run at the target, which is down: what it has written to
// disks that both nodes reach would not fit to those that are still at the source.
func halfMoved(s *moveState) error {
	return problem.New(problem.Unavailable, "vm %s may have run on node %s last, and some of its disks are there", s.Move.Source.Name, s.target()).
		Because("node %s is down, and others of its disks are in pools that both nodes reach", s.target()).Try("bring it back: the operation goes on by itself")
}
