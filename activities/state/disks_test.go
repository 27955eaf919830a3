package state_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/test/fault"
	"github.com/nextstack/nextstack/workflows/steps"
)

// compared compares what nodes are said to have, long after all that was done, and returns the findings of a kind.
func compared(t *testing.T, w *fault.World, kind string, nodes ...steps.NodeWorld) (out []api.Finding) {
	t.Helper()
	audit, err := w.Admission.Audit(ctx, w.User, admission.Options{}, api.AuditRequest{})
	require.NoError(t, err)
	audit.Created = audit.Created.Add(24 * time.Hour)
	write(t, w, func(d *store.Draft) { d.Update(audit) })
	token := steps.Token{Operation: audit.ID, Kind: audit.Kind, Epoch: audit.Revision}
	report, err := call(steady(w.KV, w), steps.CompareWorlds, token, steps.Worlds{Nodes: nodes})
	require.NoError(t, err)
	for _, f := range report.Findings {
		if f.Kind == kind {
			out = append(out, f)
		}
	}
	return out
}

// TestWhoHasAVolumeOpenShouldHaveIt: of a pool that several nodes see.
func TestWhoHasAVolumeOpenShouldHaveIt(t *testing.T) {
	w := populated(t)
	vm, pool := get[api.VM](t, w, opts.Project, "web1"), get[api.Pool](t, w, "", "vms")
	pool.Spec.Shared = true
	write(t, w, func(d *store.Draft) { d.Update(pool) })
	const here, there = "10.0.0.1:0/1", "10.0.0.2:0/2"
	file := func(watchers ...steps.Watch) []steps.FileFound {
		return []steps.FileFound{{Pool: pool.ID, Path: "/vms/disk", Kind: "volume", ID: vm.Status.Volumes[0], Watchers: watchers}}
	}
	mine, others := steps.Watch{Addr: here, Here: true}, steps.Watch{Addr: there}
	home := steps.NodeWorld{Agent: vm.Status.Agent, AgentName: vm.Status.AgentName}
	other := steps.NodeWorld{Agent: api.NewID(), AgentName: "other"}
	watched := func(atHome, elsewhere []steps.Watch) []api.Finding {
		t.Helper()
		home.Files, other.Files = file(atHome...), file(elsewhere...)
		return compared(t, w, "watcher", other, home)
	}
	seenThere := []steps.Watch{{Addr: here}}
	require.Empty(t, watched([]steps.Watch{mine}, seenThere), "it is its guest's")

	two := watched([]steps.Watch{mine, others}, []steps.Watch{{Addr: here}, {Addr: there, Here: true}})
	require.Len(t, two, 1, "it is told of once")
	require.False(t, two[0].Extra, "nobody knows what would come of an end of it")
	require.Contains(t, two[0].Problem, "is open on another node than that of vm web1: by a client at "+there)
	require.Empty(t, watched([]steps.Watch{mine}, []steps.Watch{{Addr: here}, {Addr: there, Here: true}}), "it has let go meanwhile")

	// The node of the guest cannot say who is on it.
	home.Files, other.Files = nil, file(steps.Watch{Addr: here})
	require.Empty(t, compared(t, w, "watcher", other, home))

	vm.Status.Phase = api.PhaseStopped
	write(t, w, func(d *store.Draft) { d.Update(vm) })
	idle := watched([]steps.Watch{mine}, seenThere)
	require.Len(t, idle, 1)
	require.Contains(t, idle[0].Problem, "is open, and no vm that runs has it: by a client at "+here)

	// What an operation works on is left out.
	vm = get[api.VM](t, w, opts.Project, "web1")
	op := &api.Operation{Meta: api.Meta{ID: api.NewID()}, Kind: api.OpVMStart, State: api.OpRunning, Plan: &api.OperationPlan{Locks: []api.Lock{{Ref: api.RefTo(vm)}}}}
	write(t, w, func(d *store.Draft) { d.Create(op) })
	require.Empty(t, watched([]steps.Watch{mine}, seenThere))
}

// TestAVolumeThatCannotBeOpenedIsToldOf, once, and neither as missing nor as somebody's who is nobody.
func TestAVolumeThatCannotBeOpenedIsToldOf(t *testing.T) {
	w := populated(t)
	vm, pool := get[api.VM](t, w, opts.Project, "web1"), get[api.Pool](t, w, "", "vms")
	pool.Spec.Shared = true
	write(t, w, func(d *store.Draft) { d.Update(pool) })
	files := []steps.FileFound{{Pool: pool.ID, Path: "/vms/disk", Kind: "volume", ID: vm.Status.Volumes[0], Defect: "it has lost its header"}}
	found := compared(t, w, "volume",
		steps.NodeWorld{Agent: vm.Status.Agent, AgentName: vm.Status.AgentName, Files: files}, steps.NodeWorld{Agent: api.NewID(), AgentName: "other", Files: files},
	)
	require.Len(t, found, 1)
	require.False(t, found[0].Extra)
	require.Contains(t, found[0].Problem, "cannot be opened: it has lost its header")
}
