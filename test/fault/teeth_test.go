package fault

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Steps of operations that this test makes up: they take a claim and drop it.
var (
	take = steps.Step[string, string]{Name: "test.take", Where: steps.Local, Timeout: time.Second}
	drop = steps.Step[string, steps.Nothing]{Name: "test.drop", Where: steps.Local, Timeout: time.Second}
)

// flaws is what is wrong with an operation that is made up.
type flaws struct {
	undoMissing bool // there is no undo
	undoIdle    bool // the undo does nothing
	undoPicky   bool // the undo fails if there is nothing to undo
	takesTwice  bool // the step takes another claim every time it runs
	forgets     bool // the undo needs an answer that may have been lost
}

type flawed struct {
	Taken string `json:"taken"`
}

// table has a step that takes a claim, with the flaws, between two that do nothing.
func (f flaws) table() saga.Table[flawed] {
	idle := func(r *saga.Run, _ *flawed) error {
		_, err := steps.Noop.Call(r, "", steps.Nothing{})
		return err
	}
	claim := saga.Step[flawed]{
		Name: "claim", Where: "control",
		Do: func(r *saga.Run, s *flawed) (err error) {
			s.Taken, err = take.Call(r, "", "claim")
			return err
		},
		Undo: func(r *saga.Run, s *flawed) error {
			key := store.AddressClaim("made-up", "claim")
			if f.forgets {
				key = s.Taken
			}
			_, err := drop.Call(r, "", key)
			return err
		},
	}
	if f.undoMissing {
		claim.Undo = nil
	}
	if f.undoIdle {
		claim.Undo = idle
	}
	return saga.Table[flawed]{
		Kind: api.OpNoop, Start: func(steps.Op) (flawed, error) { return flawed{}, nil },
		Steps: []saga.Step[flawed]{{Name: "first", Where: "control", Do: idle}, claim, {Name: "last", Where: "control", Do: idle}},
	}
}

func (f flaws) implement(w *World, reg activities.Registry, host *activities.Host) {
	activities.Implement(reg, host, take, func(ctx context.Context, _ steps.Token, name string) (string, error) {
		if f.takesTwice {
			name += api.NewID()
		}
		key := store.AddressClaim("made-up", name)
		_, err := w.KV.Commit(ctx, store.Tx{Puts: []store.Put{{Key: key, Value: []byte("taken")}}})
		return key, err
	})
	activities.Implement(reg, host, drop, func(ctx context.Context, _ steps.Token, key string) (steps.Nothing, error) {
		if key == "" {
			return steps.Nothing{}, nil
		}
		if _, err := w.KV.Get(ctx, key); err != nil && f.undoPicky {
			return steps.Nothing{}, err
		}
		_, err := w.KV.Commit(ctx, store.Tx{Deletes: []string{key}})
		return steps.Nothing{}, err
	})
}

// disturb runs an operation that is made up through the harness. The audit does not know its claim and is not asked about it.
func (f flaws) disturb(t *testing.T) Report {
	ctx := context.Background()
	base, err := NewWorld(ctx, nil)
	require.NoError(t, err)
	base.Extra = f.implement
	base.Tables = map[string]saga.Definition{api.OpNoop: f.table()}
	s := Scenarios()[api.OpNoop][0]
	s.Excuse = func(found api.Finding) bool { return strings.Contains(found.ID, "made-up") }
	report, err := s.Run(ctx, base)
	require.NoError(t, err)
	require.Positive(t, report.Points)
	return report
}

func TestAFlawlessOperationIsNotReported(t *testing.T) {
	report := flaws{}.disturb(t)
	require.Zero(t, report.Leaks+report.Stuck+report.Wrong, report.Details)
}

func TestFlawsAreReported(t *testing.T) {
	for name, c := range map[string]struct {
		flaws
		leaks, stuck bool
	}{
		"undo missing":                   {flaws: flaws{undoMissing: true}, leaks: true},
		"undo does nothing":              {flaws: flaws{undoIdle: true}, leaks: true},
		"undo fails if nothing is there": {flaws: flaws{undoPicky: true}, stuck: true},
		"step takes twice":               {flaws: flaws{takesTwice: true}, leaks: true},
		"undo needs a lost answer":       {flaws: flaws{takesTwice: true, forgets: true}, leaks: true},
	} {
		t.Run(name, func(t *testing.T) {
			report := c.disturb(t)
			require.Equal(t, c.leaks, report.Leaks > 0, report.Details)
			require.Equal(t, c.stuck, report.Stuck > 0, report.Details)
		})
	}
}

// without returns a table whose step has lost its undo.
func without[S any](table saga.Table[S], step string) saga.Table[S] {
	table.Steps = append([]saga.Step[S]{}, table.Steps...)
	for i := range table.Steps {
		if table.Steps[i].Name == step {
			table.Steps[i].Undo = nil
		}
	}
	return table
}

// TestRealOperationsWithAMistakeAreReported breaks each step of vm.create in turn.
func TestRealOperationsWithAMistakeAreReported(t *testing.T) {
	ctx := context.Background()
	run := func(t *testing.T, d saga.Definition) Report {
		base, err := Base(ctx)
		require.NoError(t, err)
		base.Tables[d.Name()] = d
		s := Scenarios()[d.Name()][0]
		s.First = true
		report, err := s.Run(ctx, base)
		require.NoError(t, err)
		return report
	}
	for _, step := range workflows.VMCreate.Plan() {
		t.Run("no undo of "+step.Name, func(t *testing.T) {
			require.Positive(t, run(t, without(workflows.VMCreate, step.Name)).Leaks)
		})
	}
}

// hasty returns the table of a move whose undo starts the guest at its source without a look at the target.
func hasty[S any](table saga.Table[S]) saga.Table[S] {
	table.Steps = append([]saga.Step[S]{}, table.Steps...)
	for i := range table.Steps {
		if table.Steps[i].Name != "move" {
			continue
		}
		table.Steps[i].Undo = func(r *saga.Run, s *S) error {
			var shared struct {
				Move steps.Move `json:"move"`
			}
			checkpoint, err := json.Marshal(s)
			if err == nil {
				err = json.Unmarshal(checkpoint, &shared)
			}
			if err == nil {
				_, err = steps.StartDomain.Call(r, shared.Move.Source.Agent, shared.Move.Source)
			}
			return err
		}
	}
	return table
}

// TestMovesThatGoWrongAreReported breaks what finds out where a guest is after a move that was cut off, and what cleans up.
func TestMovesThatGoWrongAreReported(t *testing.T) {
	for name, c := range map[string]struct {
		table saga.Definition
		what  string
	}{
		"two guests":                    {hasty(workflows.VMMigrate), "at the same time"},
		"nobody looks where it is":      {without(workflows.VMMigrate, "move"), "has domains on [a2]"},
		"the target's disk is not gone": {without(workflows.VMMigrate, "disk"), "volumes/"},
		"the target's claim is kept":    {without(workflows.VMMigrate, "place"), "on its way to"},
		"ports stay bound to both":      {without(workflows.VMMigrate, "bind"), "bound to [a1 a2]"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			base, err := Base(ctx)
			require.NoError(t, err)
			base.Tables[api.OpVMMigrate] = c.table
			s := Scenarios()[api.OpVMMigrate][0]
			s.Every = 10
			report, err := s.Run(ctx, base)
			require.NoError(t, err)
			require.Positive(t, report.Leaks)
			require.Contains(t, strings.Join(report.Details, "\n"), c.what)
		})
	}
}
