package fault

import (
	"context"
	"fmt"
	"sync"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/store"
)

// makeVM asks for a VM with one NIC whose disk is in the shared pool, changed by change, which may be nil.
func makeVM(name string, change func(*api.VMCreate)) Accept {
	req := api.VMCreate{
		Name: name, VCPUs: 2, Memory: api.GiB, Image: "cirros", Pool: "shared", NICs: []api.NICRequest{{Subnet: "front"}}, SecurityGroups: []string{"web"},
	}
	if change != nil {
		change(&req)
	}
	return with((*admit).CreateVM, req)
}

func ha(r *api.VMCreate)    { r.HA = true }
func local(r *api.VMCreate) { r.Pool = "vms" }

func migrate(name string, req api.VMMigrate) Accept { return on((*admit).MigrateVM, name, req) }
func stop(name string) Accept                       { return on((*admit).StopVM, name, api.VMStop{}) }
func update(name string, req api.VMUpdate) Accept   { return on((*admit).UpdateVM, name, req) }

// makeGroup asks for a VM group.
func makeGroup(name string) Accept {
	return with((*admit).CreateGroup, api.VMGroupCreate{Name: name, VMGroupSpec: api.VMGroupSpec{Policy: api.AntiAffinity}})
}

// moves returns the scenarios of the operations on VMs that have several nodes in mind.
func moves() map[string][]Scenario {
	yes, no, group, other, none, packed := true, false, "apart", "near", "", api.Pack
	copying, cold := api.VMMigrate{CopyStorage: true}, api.VMMigrate{Cold: true}
	coldCopy := api.VMMigrate{Cold: true, CopyStorage: true}
	out := map[string][]Scenario{
		api.OpGroupCreate: {{Name: "group.create", Accept: makeGroup("apart")}},
		api.OpGroupDelete: {{Name: "group.delete", Prepare: []Accept{makeGroup("apart")}, Accept: about((*admit).DeleteGroup, "apart")}},
		api.OpVMUpdate: {
			{Name: "vm.update, ha", Prepare: []Accept{makeVM("web1", nil)}, Accept: update("web1", api.VMUpdate{HA: &yes})},
			{Name: "vm.update, no ha", Prepare: []Accept{makeVM("web1", ha)}, Accept: update("web1", api.VMUpdate{HA: &no})},
			{Name: "vm.update, stopped", Prepare: []Accept{makeVM("web1", nil), stop("web1")}, Accept: update("web1", api.VMUpdate{HA: &yes})},
			{Name: "vm.update, group", Prepare: []Accept{makeGroup("apart"), makeVM("web1", nil)}, Accept: update("web1", api.VMUpdate{Group: &group})},
			{Name: "vm.update, no group", Accept: update("web1", api.VMUpdate{Group: &none}), Prepare: []Accept{
				makeGroup("apart"), makeVM("web1", func(r *api.VMCreate) { r.Group = "apart" }),
			}},
			{Name: "vm.update, another group", Accept: update("web1", api.VMUpdate{Group: &other, Placement: &packed}), Prepare: []Accept{
				makeGroup("apart"), makeVM("web1", func(r *api.VMCreate) { r.Group = "apart" }),
				with((*admit).CreateGroup, api.VMGroupCreate{Name: "near", VMGroupSpec: api.VMGroupSpec{Policy: api.Affinity}}),
			}},
		},
		api.OpVMMigrate: {
			{Name: "vm.migrate with its disk", Prepare: []Accept{createVM}, Accept: migrate("web1", copying), Check: is("web1", "a2", api.PhaseRunning)},
			{Name: "vm.migrate", Prepare: []Accept{makeVM("web1", ha)}, Accept: migrate("web1", api.VMMigrate{}), Check: is("web1", "a2", api.PhaseRunning)},
			{Name: "vm.migrate to a node", Prepare: []Accept{makeVM("web1", nil)}, Accept: migrate("web1", api.VMMigrate{To: "a3"}), Check: is("web1", "a3", api.PhaseRunning)},
			{Name: "vm.migrate back with its disk", Prepare: []Accept{createVM, migrate("web1", copying)}, Accept: migrate("web1", copying), Check: is("web1", "a1", api.PhaseRunning)},
			{Name: "vm.migrate cold", Prepare: []Accept{makeVM("web1", nil)}, Accept: migrate("web1", cold), Check: is("web1", "a2", api.PhaseRunning)},
			{Name: "vm.migrate cold with its disk", Prepare: []Accept{createVM}, Accept: migrate("web1", coldCopy), Check: is("web1", "a2", api.PhaseRunning)},
			{Name: "vm.migrate, stopped", Prepare: []Accept{makeVM("web1", nil), stop("web1")}, Accept: migrate("web1", api.VMMigrate{}), Check: is("web1", "a2", api.PhaseStopped)},
			{Name: "vm.migrate with its disk, stopped", Prepare: []Accept{createVM, stopVM}, Accept: migrate("web1", copying), Check: is("web1", "a2", api.PhaseStopped)},
		},
		api.OpVMRecover: {{
			Name: "vm.recover", Prepare: []Accept{makeVM("web1", ha)}, Plant: died("a1"), Accept: about((*admit).RecoverVM, "web1"), Check: is("web1", "a2", api.PhaseRunning),
		}},
	}
	for i := range out[api.OpVMMigrate] {
		out[api.OpVMMigrate][i].Turns = true
		if i > 1 && i != 5 { // the first, the second and the sixth make all the calls that there are
			out[api.OpVMMigrate][i].Every = 3
		}
	}
	out[api.OpVMMigrate] = append(out[api.OpVMMigrate], cutOff()...)
	return out
}

// fates are the ways in which a live move is cut off.
var fates = []struct {
	fate compute.MoveFate
	name string
}{{compute.MoveFails, "fails"}, {compute.MoveSourceDies, "loses its source"}, {compute.MoveTargetDies, "loses its target"}, {compute.MoveBreaks, "breaks"}}

// cutOff returns live moves that are cut off at each of their moments in each way, once or whenever they are tried.
func cutOff() (out []Scenario) {
	for _, at := range []compute.MovePoint{compute.MovePrepared, compute.MoveCopied, compute.MoveSwitched, compute.MoveArrived} {
		for _, f := range fates {
			for _, always := range []bool{false, true} {
				for _, shared := range []bool{false, true} {
					out = append(out, cutAt(at, f.fate, fmt.Sprintf("vm.migrate that %s when %s", f.name, at), always, shared))
				}
			}
		}
	}
	return out
}

func cutAt(at compute.MovePoint, fate compute.MoveFate, name string, always, shared bool) Scenario {
	s := Scenario{Turns: true, From: "move", Any: true, Every: 4}
	vm, often := local, "once"
	if shared {
		vm, name = nil, name+", shared"
	}
	if always {
		often = "always"
	}
	s.Name = name + ", " + often
	s.Prepare = []Accept{makeVM("web1", vm)}
	s.Accept = migrate("web1", api.VMMigrate{CopyStorage: !shared, PostCopy: true})
	s.Fate = func() func(compute.MovePoint) compute.MoveFate {
		var mu sync.Mutex
		happened := false
		return func(now compute.MovePoint) compute.MoveFate {
			mu.Lock()
			defer mu.Unlock()
			if now != at || happened && !always {
				return compute.MoveGoesOn
			}
			happened = true
			return fate
		}
	}
	return s
}

// is checks where a VM is and in which phase.
func is(name, node string, phase api.Phase) func(ctx context.Context, w *World) (string, error) {
	return func(ctx context.Context, w *World) (string, error) {
		vm, err := store.Find[api.VM](ctx, w.KV, w.User, api.DefaultProject, name)
		if err != nil || vm.Status.AgentName == node && vm.Status.Phase == phase {
			return "", err
		}
		return fmt.Sprintf("vm %s is %s on %s, not %s on %s", name, vm.Status.Phase, vm.Status.AgentName, phase, node), nil
	}
}
