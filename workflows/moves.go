package workflows

import (
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Moves that are made side by side, each as an operation of its own.
const (
	movesAtATime = 2 // when nobody said
	// A VM that another operation holds is waited for: asked again so often, with such a pause.
	busyTries = 60
	busyPause = 5 * time.Second
	// cancelAgain is how often an operation that was told to go back is told again, in case it was too young to hear.
	cancelAgain = 5 * time.Second
	// restartTries is how often a VM of a dead node is started. Nodes die together: the one that was chosen may have fallen
	// silent in the same moment, and is only not suspect yet.
	restartTries = 4
)

// carryOut makes the moves, parallel at a time, and writes into each what became of it. That a move fails is no failure of
// the whole. When the operation is cancelled, moves under way are cancelled too and waited for; the others are not begun.
func carryOut(r *saga.Run, moves []api.Move, parallel int, request func(api.Move) api.VMMigrate) error {
	if parallel == 0 {
		parallel = movesAtATime
	}
	c := &convoy{run: r, moves: moves, request: request, tries: make([]int, len(moves)), failed: make([]int, len(moves))}
	for i := range moves {
		c.waiting = append(c.waiting, i)
	}
	for len(c.waiting) > 0 || len(c.under) > 0 {
		busy := false
		for len(c.waiting) > 0 && len(c.under) < parallel && !busy {
			var err error
			if busy, err = c.begin(); err != nil {
				return c.callOff(err)
			}
		}
		if err := c.await(busy); err != nil {
			return c.callOff(err)
		}
	}
	return nil
}

// convoy is a number of moves on their way.
type convoy struct {
	run     *saga.Run
	moves   []api.Move
	request func(api.Move) api.VMMigrate
	tries   []int // per move: how often its VM was busy
	failed  []int // per move: how often it was made in vain
	waiting []int // moves not begun
	under   []int // moves that run
}

// begin orders the next move. It reports whether the move's VM is busy; the move is then the last in the line.
func (c *convoy) begin() (busy bool, err error) {
	i := c.waiting[0]
	m := &c.moves[i]
	c.waiting = c.waiting[1:]
	id, err := steps.OrderMove.Call(c.run, "", steps.MoveOrder{Parent: c.run.Op().ID, Move: *m, Request: c.request(*m)})
	switch {
	case err == nil:
		m.Operation, m.State, m.Error = id, api.OpAccepted, nil
		c.under = append(c.under, i)
		return false, nil
	case problem.Is(err, problem.Cancelled):
		return false, err
	case problem.TraitsOf(problem.KindOf(err)).Retry || problem.Is(err, problem.Locked):
		if c.tries[i]++; c.tries[i] < busyTries {
			c.waiting = append(c.waiting, i)
			return true, nil
		}
	}
	m.State, m.Error = api.OpFailed, problem.From(err)
	return false, nil
}

// await waits until something has ended, or for a while if somebody was busy.
func (c *convoy) await(busy bool) error {
	if len(c.under) == 0 {
		if !busy {
			return nil
		}
		return c.run.Sleep(busyPause)
	}
	w := steps.Watched{Moves: c.moves}
	for _, i := range c.under {
		w.Operations = append(w.Operations, c.moves[i].Operation)
	}
	ends, err := steps.AwaitOperations.Call(c.run, "", w)
	if err != nil {
		if problem.Is(err, problem.Cancelled) {
			return err
		}
		return c.run.Sleep(time.Second) // the operations go on whether or not somebody watches
	}
	var still []int
	again := false
	for k, i := range c.under {
		m := &c.moves[i]
		if k < len(ends) {
			m.State, m.Error = ends[k].State, ends[k].Error
		}
		switch {
		case !m.State.Ended():
			still = append(still, i)
		case c.worthAgain(i):
			c.waiting, again = append(c.waiting, i), true
		}
	}
	c.under = still
	if again {
		return c.run.Sleep(busyPause)
	}
	return nil
}

// worthAgain reports whether a move that has ended is to be made once more: a restart that failed for want of somebody who may
// be somewhere else. It chooses its node anew.
func (c *convoy) worthAgain(i int) bool {
	m := &c.moves[i]
	if m.Kind != api.MoveRestart || m.State != api.OpFailed || m.Error == nil || !problem.TraitsOf(m.Error.Kind).Retry {
		return false
	}
	c.failed[i]++
	return c.failed[i] < restartTries
}

// callOff cancels what is under way and waits until it has ended.
func (c *convoy) callOff(cause error) error {
	steady, done := c.run.Steady()
	defer done()
	c.run = steady
	for len(c.under) > 0 {
		for _, i := range c.under {
			c.run.CancelOperation(c.moves[i].Operation)
		}
		if err := c.await(false); err != nil {
			if err := c.run.Sleep(cancelAgain); err != nil {
				return err
			}
		}
	}
	return cause
}
