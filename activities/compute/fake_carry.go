package compute

import (
	"context"
	"slices"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// carry is the hypervisors' work: it takes the guest through the points of a move, and clears up after one that went wrong.
func (f *Fake) carry(d *fakeDomain, mv *fakeMove) {
	vm := mv.in.Plan.VM
	err := mv.target.welcome(vm, d, mv.stop)
	close(mv.ready)
	fate := MoveFails
	for _, at := range []MovePoint{MovePrepared, MoveCopied, MoveSwitched, MoveArrived} {
		if err == nil {
			err = f.reach(d, mv, at)
		}
		if err != nil {
			break
		}
		if fate = f.fate(vm, at); fate != MoveGoesOn && (at != MoveArrived || fate != MoveFails) {
			err = problem.New(problem.Unavailable, "the move of vm %s was cut off", mv.in.Plan.Name)
			break
		}
		fate = MoveFails
	}
	f.finish(d, mv, fate, err)
}

// reach brings the move to a point, if nobody has ended it and the guest is still there.
func (f *Fake) reach(d *fakeDomain, mv *fakeMove, at MovePoint) error {
	if at == MoveCopied {
		f.copied(mv)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if at == MoveSwitched {
		if err := f.fill(d, mv); err != nil {
			return err
		}
	}
	switch {
	case f.domains[mv.in.Plan.VM] != d || d.phase == api.PhaseStopped:
		return PoweredOff(mv.in.Plan.Name)
	case mv.asked.Load() && at != MoveArrived: // it could still be ended
		return problem.New(problem.Conflict, "the move of vm %s was ended by somebody", mv.in.Plan.Name)
	case at == MoveSwitched:
		d.phase = api.PhasePaused
	case at == MoveArrived:
		f.mu.Unlock()
		ok := mv.target.arrive(mv.in.Plan.VM)
		f.mu.Lock()
		if !ok {
			return problem.New(problem.Internal, "the target turned vm %s away", mv.in.Plan.Name)
		}
	}
	return nil
}

// fill brings what is in the disks that go along to the target. It is called with the lock held.
func (f *Fake) fill(d *fakeDomain, mv *fakeMove) error {
	along := Filled(mv.in.Plan, mv.in.Copy)
	for _, k := range d.disks {
		if f.Backing == nil || mv.target.Backing == nil || !slices.Contains(along, k.Device) {
			continue
		}
		if err := k.agreed(); err != nil {
			return err
		}
		if err := f.Backing.SendLayer(k.Source, mv.target.Backing); err != nil {
			return err
		}
	}
	return nil
}

// copied waits until most of the memory has been sent, or somebody ends the move.
func (f *Fake) copied(mv *fakeMove) {
	f.mu.Lock()
	restless := f.restless
	mv.post = restless && mv.in.PostCopy
	f.mu.Unlock()
	if restless && !mv.in.PostCopy && !mv.in.AutoConverge {
		<-mv.abort
	}
}

func (f *Fake) fate(vm string, at MovePoint) MoveFate {
	f.mu.Lock()
	hook := f.hook
	f.mu.Unlock()
	if hook == nil {
		return MoveGoesOn
	}
	return hook(vm, at)
}

// finish brings both sides into the state that they have after a move with this end.
func (f *Fake) finish(d *fakeDomain, mv *fakeMove, fate MoveFate, err error) {
	vm := mv.in.Plan.VM
	f.mu.Lock()
	switched := d.phase == api.PhasePaused
	halves := err != nil && fate == MoveBreaks && switched && mv.post
	f.mu.Unlock()
	lost := false // the target has nothing of the guest
	if halves {
		mv.target.tear(vm)
	} else if err != nil {
		lost = mv.target.reject(vm)
	}
	f.mu.Lock()
	switch {
	case f.domains[vm] != d: // removed meanwhile
	case err == nil && f.lingers:
		d.phase, d.left = api.PhaseStopped, true
	case err == nil:
		delete(f.domains, vm)
	case halves:
		d.broken = true
	case switched && (fate == MoveFails || fate == MoveTargetDies && lost):
		d.phase = api.PhaseRunning
	} // else it runs, or is off, or is paused because nobody told the source how it went on
	if err == nil {
		mv.moved = steps.Moved{
			Total: max(time.Since(mv.began), time.Millisecond), Downtime: time.Millisecond, Bytes: max(mv.in.Plan.Memory, 1), Iterations: 1, PostCopy: mv.post,
		}
	}
	mv.err = err
	d.move = nil
	close(mv.over)
	f.mu.Unlock()
	f.publish(vm)
	mv.target.publish(vm)
}

// welcome makes room for a guest: a domain that is paused until it has arrived.
func (f *Fake) welcome(vm string, from *fakeDomain, turnAway func()) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(context.Background(), vm)
	if err != nil && !problem.Is(err, problem.NotFound) {
		return err
	}
	if d != nil && d.phase != api.PhaseStopped {
		return AlreadyHere(vm)
	}
	f.put(vm, &fakeDomain{name: from.name, phase: api.PhasePaused, ours: true, incoming: make(chan struct{}), turnAway: turnAway, boots: from.boots, ha: from.ha, cpu: from.cpu, disks: slices.Clone(from.disks), memory: from.memory})
	return nil
}

func (f *Fake) arrive(vm string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.domains[vm]
	if d == nil || d.incoming == nil {
		return false
	}
	close(d.incoming)
	d.phase, d.incoming = api.PhaseRunning, nil
	return true
}

// reject throws a guest away that has not arrived, and reports whether none is there now.
func (f *Fake) reject(vm string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.domains[vm]
	if d != nil && d.incoming != nil {
		close(d.incoming)
		delete(f.domains, vm)
		d = nil
	}
	return d == nil
}

// tear leaves a guest with half of its memory.
func (f *Fake) tear(vm string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.domains[vm]; d != nil {
		if d.incoming != nil {
			close(d.incoming)
		}
		d.phase, d.incoming, d.broken = api.PhasePaused, nil, true
	}
}
