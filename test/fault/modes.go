package fault

import (
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// many is more often than a saga tries before it says that it is stuck, or gives up where it may.
const many = 12

// forward returns what can go wrong with a call of an operation that goes forward.
func forward(c Call) []Mode {
	modes := []Mode{
		{Name: "fails once", Before: problem.Unavailable},
		{Name: "answer lost", After: problem.Timeout},
		{Name: "runs twice", Twice: true},
		{Name: "cancelled before", CancelBefore: true},
		{Name: "cancelled after", CancelAfter: true},
		{Name: "workflow lost before", LoseBefore: true},
		{Name: "workflow lost after", LoseAfter: true},
		{Name: "fails for good", Before: problem.Invalid, Times: many},
		{Name: "every answer lost", After: problem.Timeout, Times: many},
	}
	if c.bookkeeping() {
		return modes
	}
	modes = append(modes,
		Mode{Name: "done, but fails for good", After: problem.Invalid, Times: many},
		Mode{Name: "cancelled and fails", CancelBefore: true, Before: problem.Unavailable},
	)
	return append(modes, apart(c)...)
}

// apart returns what can go wrong with a call that runs in another process than the workflow.
func apart(c Call) (modes []Mode) {
	if c.Queue != "" {
		modes = append(modes,
			Mode{Name: "worker dies", Dies: true},
			Mode{Name: "worker dies again and again", Dies: true, Times: many},
		)
	}
	if c.onNode() {
		modes = append(modes,
			Mode{Name: "worker gone", Gone: true},
			Mode{Name: "worker gone for long", Gone: true, Times: many},
			Mode{Name: "cancelled, worker gone", Gone: true, CancelBefore: true, Times: many},
			Mode{Name: "runs when all is over", Late: true},
		)
	}
	return modes
}

// back returns what can go wrong with a call of an operation that goes back.
func back(c Call) []Mode {
	modes := []Mode{
		{Name: "runs twice", Twice: true},
		{Name: "answer lost", After: problem.Timeout},
		{Name: "workflow lost before", LoseBefore: true},
		{Name: "workflow lost after", LoseAfter: true},
		{Name: "cancelled before", CancelBefore: true},
		{Name: "fails three times", Before: problem.Internal, Times: 3},
	}
	if c.bookkeeping() {
		return modes
	}
	modes = append(modes,
		Mode{Name: "many answers lost", After: problem.Timeout, Times: many},
		Mode{Name: "fails for good, they say", Before: problem.Invalid, Times: many},
	)
	return append(modes, apart(c)...)
}

// ends returns the states that the operation may end in when mode hits a call of its way forward.
func (s *Scenario) ends(c Call, m Mode, committed bool) []api.OperationState {
	done, failed, cancelled := api.OpSucceeded, api.OpFailed, api.OpCancelled
	free := !committed && !c.bookkeeping()
	switch {
	case s.Any:
		return []api.OperationState{done, failed, cancelled}
	case m.CancelBefore || m.CancelAfter:
		if committed {
			return []api.OperationState{done}
		}
		return []api.OperationState{done, cancelled}
	case m.LoseBefore || m.LoseAfter:
		if committed && !c.bookkeeping() {
			return []api.OperationState{done}
		}
		return []api.OperationState{done, failed}
	case free && (s.Looks || s.turns(c) || s.Spares != "" && c.Activity == s.Spares), s.Orders && !committed:
		return []api.OperationState{done, failed}
	case free && (m.Times == many || m.Gone): // who is gone is not asked again
		return []api.OperationState{failed}
	default:
		return []api.OperationState{done}
	}
}
